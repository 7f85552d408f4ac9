/*
 * Migration over a multiplexed connection: what both sides have
 *
 * A side's end of the connection: the session, the stream `control`, the phase
 * of the migration and the failure that ended it.  At the source it belongs to
 * mux-source.c; at the destination to mux-candidates.c, and from the acceptance
 * of the offer on to mux-destination.c.
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
 * Begin a session on @ioc, of which a reference is taken, with HELLO.  Threads
 * of the session may call @ops before this returns.  Main loop.
 */
void mux_link_begin(MuxLink *l, QIOChannel *ioc, MuxRole role,
                    const MuxSessionOps *ops, void *opaque);

/*
 * Let go of the session, which has to be closed before, and of `control`.
 * NULL is ignored.  Main loop.
 */
void mux_link_free(MuxLink *l);

/* From now on a silent peer and yank end the connection.  Main loop. */
void mux_link_guard(MuxLink *l);

/* Yank does not do so any more; idempotent.  Main loop. */
void mux_link_end_yank(MuxLink *l);

/*
 * The migration has failed because of @failure.  Any thread.
 *
 * Returns: false if it has failed before, or cannot fail any more
 */
bool mux_link_record(MuxLink *l, const MuxFailure *failure);

/* The migration cannot fail any more.  Any thread. */
void mux_link_settle(MuxLink *l);

/* Has it failed, or can it not fail any more?  Any thread. */
bool mux_link_over(MuxLink *l);

/*
 * Why has the migration failed, NULL: it has not.  Stays valid.  Any thread.
 */
const MuxFailure *mux_link_failure(MuxLink *l);

/* Reset all streams except `control` because of @failure.  Any thread. */
void mux_link_reset_streams(MuxLink *l, const MuxFailure *failure);

/* Any thread */
MigrationPhase mux_link_phase(MuxLink *l);
void mux_link_set_phase(MuxLink *l, MigrationPhase phase);

#endif
