/*
 * Migration over a multiplexed connection: what migration.c calls
 *
 * The control flow of the source is in mux-source.c and mux-switchover.c, that
 * of the destination in mux-destination.c.  When the migration is not
 * multiplexed, the functions behave as QEMU does without them.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef MIGRATION_MUX_MIGRATION_H
#define MIGRATION_MUX_MIGRATION_H

#include "io/channel.h"
#include "io/task.h"
#include "migration/mux/failure.h"
#include "qapi/qapi-types-migration.h"

typedef struct MigrationState MigrationState;
typedef struct MigrationIncomingState MigrationIncomingState;

/*
 * --- source ---
 */

/* Is a multiplexed migration in progress, and where?  Any thread. */
bool migration_mux_source_phase(MigrationState *s, MigrationPhase *phase);

/*
 * Take over the connected (and, if configured, encrypted) @ioc: HELLO, streams
 * `control` and `main`, then the disks; migration_connect() is called when all
 * disks were copied once.  Sets s->to_dst_file, so that from here on a
 * cancellation or a failure ends in migration_cleanup().  Main loop.
 */
void migration_mux_connect(MigrationState *s, QIOChannel *ioc);

/*
 * Open stream @name as one more channel of the migration, as
 * socket_send_channel_create() would open a connection: @func is called, from
 * within, with a completed task whose source is the channel, and keeps the
 * reference that it was made with.  Any thread.
 */
void migration_mux_open_channel(MigrationState *s, const char *name,
                                QIOTaskFunc func, void *opaque);

/*
 * The set-up of the migration thread is complete, which held the BQL at times:
 * send what it has written to `main`.  Migration thread, without the BQL.
 */
void migration_mux_end_setup(MigrationState *s);

/*
 * Cancel a multiplexed migration, or one whose connection is being established.
 *
 * Returns: false if it is neither, and nothing was done
 */
bool migration_mux_cancel(MigrationState *s);

/* The parameter max-bandwidth has changed.  Main loop. */
void migration_mux_bandwidth_changed(MigrationState *s);

/*
 * May the guest be stopped, with @ram_pending bytes of RAM left?  The first
 * call for which RAM is nearly copied makes the guest's writes wait for the
 * destination.  If true, the guest has to be stopped now.  Migration thread,
 * without the BQL.
 */
bool migration_mux_can_switchover(MigrationState *s, uint64_t ram_pending);

/*
 * The guest is stopped: complete the disks and wait until the destination has
 * all their data on stable storage, call migration_switchover_prepare(), which
 * may wait for the user, and check that the disks have not changed meanwhile.
 * The device state follows, which has a time limit, too.  Migration thread,
 * with the BQL, which is released meanwhile: the migration may have been
 * cancelled when this returns.
 */
bool migration_mux_switchover_prepare(MigrationState *s, Error **errp);

/*
 * The device state is sent: wait until the destination has loaded it, then hand
 * the guest over and send that to the destination, which waits for it: from now
 * on nothing can fail or cancel the migration.  Migration thread, without the
 * BQL.
 *
 * Returns: false, with the cause recorded, if the guest stays here
 */
bool migration_mux_handover_commit(MigrationState *s);

/*
 * The migration has succeeded, failed or been cancelled.
 *
 * Returns: true if it was multiplexed; then migration_cleanup() is called here,
 * or, if mirrors still exist, when the last one has ended, which may have to
 * wait for the source's storage.  If false, the caller has to call it.  Main
 * loop.
 */
bool migration_mux_cleanup(MigrationState *s);

/* Returns: the status that query-migrate reports. */
MigrationStatus migration_mux_status(MigrationState *s);

/*
 * --- destination ---
 */

/* Is one there, and where is the migration?  Any thread, while it lasts. */
bool migration_mux_destination_phase(MigrationIncomingState *mis,
                                     MigrationPhase *phase);

/*
 * @ioc was accepted, or has completed its TLS handshake: it may become the
 * connection, see mux-candidates.h.  Main loop.
 *
 * Returns: false, with @ioc closed, if it is one too many
 */
bool migration_mux_admit(QIOChannel *ioc);

/*
 * The device state is loaded: check that all disks are complete, tell the
 * source, and wait until it has handed the guest over.  If this fails, the
 * guest must not run here: the source has resumed it, or the connection was
 * lost before the source's answer.
 */
bool coroutine_fn migration_mux_handover_accept(MigrationIncomingState *mis,
                                                Error **errp);

/* The incoming migration has ended, well or not.  Main loop. */
void migration_mux_destination_cleanup(MigrationIncomingState *mis);

/*
 * --- both sides: mux-migration.c ---
 */

/*
 * Fill in @phase and @streams, those of the last multiplexed migration when
 * none is in progress, and @failure.  Main loop.
 */
void migration_mux_info(MigrationInfo *info);

/*
 * @status is about to change from @now to FAILED: delay the event MIGRATION
 * until the clean-up is done, which then sends it.  At the source,
 * query-migrate reports @now until then.  At a destination with exit-on-error
 * nothing is delayed.  Any thread.
 *
 * Returns: false if nothing is delayed: the caller sends the event
 */
bool migration_mux_hold_failed(const MigrationStatus *status,
                               MigrationStatus now);

/* Is @ioc a stream of a connection, which is where encryption belongs? */
bool migration_mux_is_stream(QIOChannel *ioc);

/*
 * A migration has failed because of @err, or of what the streams know.  End
 * what waits for the peer, and send it the cause.  Any thread; with
 * s->error_mutex held.
 *
 * Returns: a copy of @err if the migration is not multiplexed, else an error
 * that tells the phase and the stream; NULL if this is how it was cancelled
 */
Error *migration_mux_failed(MigrationState *s, const Error *err);

/*
 * --- the parts of each side that mux-migration.c calls ---
 */

/* For migration_mux_failed(); returns the failure, to be freed */
MuxFailure *mux_source_failed(MigrationState *s, const Error *err);
MuxFailure *mux_destination_failed(MigrationIncomingState *mis,
                                   const Error *err);

void mux_source_info(MigrationState *s, MigrationInfo *info);
void mux_destination_info(MigrationIncomingState *mis, MigrationInfo *info);
bool mux_source_hold_failed(const MigrationStatus *status, MigrationStatus now);
bool mux_destination_hold_failed(const MigrationStatus *status);
void mux_source_shutdown(MigrationState *s);
void mux_destination_shutdown(MigrationIncomingState *mis);

#endif
