/*
 * Migration over a multiplexed connection: what the source's files share
 *
 * mux-source.c has what the main loop drives, mux-switchover.c what the
 * migration thread calls, mux-watch.c what the session's thread calls,
 * mux-source-end.c how a migration ends.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef MIGRATION_MUX_SOURCE_H
#define MIGRATION_MUX_SOURCE_H

#include "qemu/thread.h"
#include "disk-set.h"
#include "mux-link.h"
#include "migration.h"
#include "delivery-probe.h"
#include "source-flush.h"

/* Belongs to mux-switchover.c. */
typedef struct MuxSwitchover {
    DeliveryProbe *probe;
    bool flushing;              /* @flush was asked for; migration thread */
    SourceFlush *flush;         /* atomic; NULL: not begun */
    /* The last sample of the disks' rate; migration thread */
    uint64_t disks_sent;
    int64_t disks_sent_at;      /* 0: there was none yet */
    uint64_t disk_rate;         /* bytes per second */
    QemuSemaphore completed;    /* all disks are, or the migration failed */
    QemuEvent loaded;           /* the destination has, or as above */
} MuxSwitchover;

typedef struct MuxSource MuxSource;

/*
 * The time limit of a step, @ms, has expired.
 *
 * Returns: the failure; NULL: nothing is awaited from the destination, the main
 *          loop is late.  Any thread.
 */
typedef MuxFailure *MuxStepLate(MuxSource *m, uint32_t ms);

/* Belongs to mux-watch.c. */
typedef struct MuxStep {
    MuxStepLate *late;          /* NULL: no step is limited */
    uint32_t ms;
    int64_t expiry;             /* get_clock() time */
} MuxStep;

struct MuxSource {
    MigrationState *s;
    unsigned refcount;          /* atomic: s->mux, pending BHs, source flush */
    MigrationStatus shown;      /* atomic: reported instead of FAILED */
    bool exiting;               /* the process: @s may be gone before a BH */
    bool ending;                /* migration_cleanup() is to follow */
    /*
     * Its lock protects @aborted, @channels, @step and, with the BQL,
     * @committed.
     */
    MuxLink *link;
    bool accepted;              /* the destination takes the offer */
    QIOChannelMux *main;
    DiskSet *disks;
    /* Also used by the migration thread and the session's, without the BQL */
    bool aborted;               /* the streams, because of the failure */
    GPtrArray *channels;        /* QIOChannelMux *: multifd's */
    MuxStep step;               /* that is being waited for */
    MuxSwitchover switchover;
    bool committed;             /* the guest is the destination's; BQL, lock */
    bool asked;                 /* atomic: the main loop is to respond */
    /* Used by mux-watch.c; get_clock() times */
    int64_t ticked;             /* the last one */
    bool away;                  /* this process was, before it */
    int64_t heard;              /* the last byte from the peer before it */
    int64_t resumed;            /* the last interruption of either side ended */
    int64_t responsive;         /* the main loop last ran */
};

/*
 * --- mux-source.c ---
 */

MuxSource *mux_source_ref(MuxSource *m);
void mux_source_unref(MuxSource *m);

/* The change must be one that the table in mux-source.c allows. */
void mux_source_set_phase(MuxSource *m, MigrationPhase phase);

/* Send the phase to the destination.  BQL held. */
void mux_source_say_phase(MuxSource *m);

/* Lift the bandwidth limit: the guest is about to be stopped.  BQL held. */
void mux_source_lift_limit(MuxSource *m);

/* The connection has ended; @failure: NULL: without one.  Any thread. */
void mux_source_ended(MuxSource *m, const MuxFailure *failure);

/* The streams, as query-migrate shows them */
MigrationStreamInfoList *mux_source_streams(MuxSource *m);

/*
 * --- mux-source-end.c ---
 */

/*
 * The migration has failed because of @failure, which is sent to the
 * destination; nothing happens if it has failed before, or cannot fail any
 * more.  Any thread.
 */
void mux_source_fail(MuxSource *m, const MuxFailure *failure);

/*
 * A mirror or a source flush may have become idle: check whether the clean-up
 * can proceed.  Main loop.
 */
void mux_source_continue_cleanup(MuxSource *m);

/*
 * --- mux-switchover.c ---
 */

void mux_switchover_init(MuxSource *m);
void mux_switchover_destroy(MuxSource *m);

/*
 * The migration thread is about to start.  Its set-up holds the BQL at times,
 * so what it writes to `main` is held back until migration_mux_end_setup(): the
 * destination may not accept it.  The time is limited from now on.
 */
void mux_switchover_begin_setup(MuxSource *m);

/* DiskSetOps.flushed and .completed; @opaque is the MuxSource */
void mux_switchover_disk_flushed(DiskMirror *d, void *opaque);
void mux_switchover_disks_completed(void *opaque);

/* The destination has loaded all there is. */
void mux_switchover_loaded(MuxSource *m);

/* The migration has failed: no use in waiting.  Any thread. */
void mux_switchover_wake(MuxSource *m);

/* Stop the periodic flushes; idempotent.  With the BQL. */
void mux_switchover_stop(MuxSource *m);

/*
 * Is no flush of the source's disks in flight?  After mux_switchover_stop(),
 * with the BQL; mux_source_continue_cleanup() is called when it becomes true.
 */
bool mux_switchover_quiescent(MuxSource *m);

/*
 * --- mux-watch.c ---
 */

/*
 * A step begins, and the one before has ended: unless this is called again, or
 * mux_watch_end_step(), within @ms (0: no limit), the migration fails with what
 * @late returns.  A thread of the session sees to it, even if the main loop is
 * blocked.  Any thread.
 */
void mux_watch_begin_step(MuxSource *m, uint32_t ms, MuxStepLate *late);
void mux_watch_end_step(MuxSource *m);

/* MuxSessionOps.tick: check the step and the disks' requests */
void mux_watch_tick(MuxSession *session, int64_t now, int64_t heard,
                    void *opaque);

#endif
