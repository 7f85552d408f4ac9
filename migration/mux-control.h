/*
 * Stream `control` of a multiplexed migration
 *
 * Sends and receives the messages of the offer and of the handover: section
 * "control" of docs/interop/migration-mux.rst.  Checks their order and their
 * limits.  Never waits for the peer.
 *
 * All functions need the BQL, except mux_control_stream(), which any thread may
 * call.  Callbacks run in the main loop.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef MIGRATION_MUX_CONTROL_H
#define MIGRATION_MUX_CONTROL_H

#include "migration/mux/channel-mux.h"
#include "qapi/qapi-types-migration-control.h"

typedef struct MuxControl MuxControl;

/*
 * Called by the main loop and by mux_control_receive(); each may free the
 * MuxControl.
 */
typedef struct MuxControlOps {
    /*
     * @message has come, in the right order; after `knows` of the peer, the
     * first one, others can be sent.
     */
    void (*message)(const MigrationControl *message, void *opaque);

    /* The peer broke a rule, @failure says which; nothing more comes. */
    void (*broken)(const MuxFailure *failure, void *opaque);

    /*
     * The stream or the connection has ended; nothing more comes.  @failure is
     * NULL if the connection has ended without one.
     */
    void (*ended)(const MuxFailure *failure, void *opaque);
} MuxControlOps;

/*
 * Use @ioc, of which a reference is taken: send `knows` as soon as the stream
 * is accepted, and receive.
 */
MuxControl *mux_control_new(QIOChannelMux *ioc, MuxRole role,
                            const MuxControlOps *ops, void *opaque);

/* Replace the callbacks. */
void mux_control_set_ops(MuxControl *c, const MuxControlOps *ops, void *opaque);

/* Let go of the stream, NULL is ignored.  What was sent still goes out. */
void mux_control_free(MuxControl *c);

/*
 * End the stream while @c is still in use, so that it does not hold up the end
 * of the connection.  What was sent still goes out.
 */
void mux_control_finish(MuxControl *c);

/*
 * Handle a piece of what was received, or the end, with callbacks, when the
 * main loop does not run any more.
 */
void mux_control_receive(MuxControl *c);

/* Does the peer know @name, such as "phase.phase"? */
bool mux_control_knows(MuxControl *c, const char *name);

QIOChannelMux *mux_control_stream(MuxControl *c);

/* Has such a message come? */
bool mux_control_received(MuxControl *c, MigrationControlType type);

/* Will nothing more come?  Then mux_control_failure() says why. */
bool mux_control_over(MuxControl *c);
const MuxFailure *mux_control_failure(MuxControl *c);

/*
 * Send @message, when the peer takes it.  It is an error if the peer does not
 * know it.
 */
bool mux_control_send(MuxControl *c, const MigrationControl *message,
                      MuxFailure **failp);

/* The same for one that has nothing but its type */
bool mux_control_say(MuxControl *c, MigrationControlType type,
                     MuxFailure **failp);

/*
 * Send `committed` without queueing it.
 *
 * Returns: true if the stream has accepted all of it; false with @failp set if
 *          not, and the peer will never receive the complete message
 */
bool mux_control_commit(MuxControl *c, MuxFailure **failp);

#endif
