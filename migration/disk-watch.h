/*
 * Migration: how long a disk has been taking for a request
 *
 * Watches the requests of one copy, on the side of the source: those to the
 * destination's disk over NBD, and those to the source's.
 *
 * One thread, or with a lock of the caller.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef MIGRATION_DISK_WATCH_H
#define MIGRATION_DISK_WATCH_H

#include "block/block.h"
#include "migration/mux/channel-mux.h"

/*
 * How long a copy has been waiting for a disk, in nanoseconds; 0: it does not
 * wait.  For the destination: the time since the oldest unanswered request was
 * sent or, while one is being sent, since the stream last sent a byte.
 */
typedef struct DiskWait {
    int64_t destination;
    int64_t flush;          /* the same for flushes, which may take long */
    int64_t silent;         /* since the last reply */
    bool unread;            /* a reply was received and is not being read */
    int64_t source;         /* in the first pass */
    bool ping;              /* a request is unanswered for 1 s: send PING */
} DiskWait;

/* get_clock() times */
typedef struct DiskWatchTime {
    int64_t now;
    int64_t heard;          /* last data from the peer */
    int64_t resumed;        /* end of the last interruption of either process */
    int64_t responsive;     /* the main loop last ran, not a nested one */
    bool blocked;           /* not for a while: it may wait for a request */
} DiskWatchTime;

/* What was seen the last time; get_clock() times */
typedef struct DiskWatch {
    uint64_t sent;              /* bytes sent on the stream */
    int64_t sent_at;            /* @sent changed, or nothing was unsent */
    uint64_t received;          /* bytes */
    int64_t received_at;        /* @received changed */
    bool unread;                /* there was input, and none was read */
    int64_t idle_since;         /* last not waiting for the source alone */
} DiskWatch;

void disk_watch_init(DiskWatch *w);

/*
 * Look at the requests to @target, an NBD node over @ioc, at regular intervals.
 * @source: whether a request to the source's disk is in flight, in the first
 * pass.  While the main loop responds, time counts only until @t->heard: a
 * silent peer is not a disk that hangs.
 */
DiskWait disk_watch_look(DiskWatch *w, const DiskWatchTime *t,
                         QIOChannelMux *ioc, BlockDriverState *target,
                         bool source);

#endif
