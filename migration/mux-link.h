/*
 * Migration over a multiplexed connection: state common to both sides
 *
 * One side's state of the connection: the session, the stream `control`, the
 * phase of the migration and the failure that ended it.  At the source it
 * belongs to mux-source.c; at the destination to mux-candidates.c, and from the
 * acceptance of the offer on to mux-destination.c.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef MIGRATION_MUX_LINK_H
#define MIGRATION_MUX_LINK_H

#include "qemu/thread.h"
#include "mux-control.h"
#include "qapi/qapi-types-migration.h"

typedef struct MuxLink {
    MuxSession *session;
    MuxControl *control;        /* NULL: not open yet, or not needed any more */
    MigrationPhase phase;       /* atomic; as far as this side knows */
    QemuMutex lock;             /* protects @failure and @settled */
    MuxFailure *failure;        /* why the migration failed; set once */
    bool settled;               /* it cannot fail any more */
    bool yankable;              /* main loop */
} MuxLink;

MuxLink *mux_link_new(void);

/*
 * Start a session on @ioc, which takes a reference to it, and send HELLO.
 * Threads of the session may call @ops before this returns.  Main loop.
 */
void mux_link_begin(MuxLink *l, QIOChannel *ioc, MuxRole role,
                    const MuxSessionOps *ops, void *opaque);

/*
 * Free @l with its `control` and its session, which must have been closed.
 * NULL is ignored.  Main loop.
 */
void mux_link_free(MuxLink *l);

/*
 * Apply the parameter channel-mux-timeout, and register the yank function.
 * Main loop.
 */
void mux_link_watch(MuxLink *l);

/* Unregister the yank function; idempotent.  Main loop. */
void mux_link_unregister_yank(MuxLink *l);

/*
 * Record @failure as the cause of the failed migration.  Any thread.
 *
 * Returns: false if a failure is recorded already, or the migration is settled
 */
bool mux_link_record(MuxLink *l, const MuxFailure *failure);

/*
 * No failure is recorded from now on: the handover is committed, or the
 * migration has ended.  Any thread.
 */
void mux_link_settle(MuxLink *l);

/* Was a failure recorded, or is the migration settled?  Any thread. */
bool mux_link_over(MuxLink *l);

/* The failure; NULL: none was recorded.  Stays valid.  Any thread. */
const MuxFailure *mux_link_failure(MuxLink *l);

/* Reset all streams except `control` because of @failure.  Any thread. */
void mux_link_reset_streams(MuxLink *l, const MuxFailure *failure);

/* Any thread */
MigrationPhase mux_link_phase(MuxLink *l);

/* A change is reported by an event.  Any thread. */
void mux_link_set_phase(MuxLink *l, MigrationPhase phase);

#endif
