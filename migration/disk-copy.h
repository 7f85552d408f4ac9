/*
 * Migration: the copy of one disk, source side
 *
 * A DiskCopy takes one block node to the destination over the stream
 * nbd-<disk> of a mux session: NBD handshake, NBD node, mirror job, completion.
 * It knows nothing of the other disks, of RAM, or of the migration's state.
 *
 * All functions belong to the main loop (BQL held) unless said otherwise, and
 * callbacks are called from there.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef MIGRATION_DISK_COPY_H
#define MIGRATION_DISK_COPY_H

#include "disk-channel.h"
#include "migration/mux/channel-mux.h"

typedef struct DiskCopy DiskCopy;

typedef struct DiskCopyOps {
    /* The NBD node is there: disk_copy_begin() may be called. */
    void (*connected)(DiskCopy *d, void *opaque);
    /* All data was copied once; the mirror keeps the destination in step. */
    void (*ready)(DiskCopy *d, void *opaque);
    /* disk_copy_flush() is done, or has failed, which ops->failed() tells. */
    void (*flushed)(DiskCopy *d, void *opaque);
    /* The destination has dealt with every byte; the node is in use no more. */
    void (*completed)(DiskCopy *d, void *opaque);
    /*
     * The copy came to an end that nobody asked for.  At most once.  @err
     * begins with the stream's name.
     */
    void (*failed)(DiskCopy *d, const Error *err, void *opaque);
    /*
     * After disk_copy_abort(): disk_copy_quiescent() or disk_copy_ended() may
     * have become true.
     */
    void (*ending)(DiskCopy *d, void *opaque);
} DiskCopyOps;

/*
 * Prepare to copy the disk of @def, which must live until disk_copy_free().
 * @speed is in bytes per second, 0: no limit.
 *
 * Returns: the copy, to be given back with disk_copy_free()
 */
DiskCopy *disk_copy_new(const MigrationDiskChannel *def, int64_t speed,
                        const DiskCopyOps *ops, void *opaque);

/*
 * Open the stream and shake hands; failures from here on go to ops->failed().
 */
bool disk_copy_start(DiskCopy *d, MuxSession *session, Error **errp);

/*
 * Start to copy.  Making a mirror job waits until no request uses the block
 * graph, and those of another disk's mirror may wait for a peer that is silent:
 * call it for all disks of a migration in one drained section.
 */
void disk_copy_begin(DiskCopy *d);

const char *disk_copy_name(DiskCopy *d);

/* The name of its stream.  Any thread. */
const char *disk_copy_stream_name(DiskCopy *d);

/* The NBD node, or NULL: there is none. */
BlockDriverState *disk_copy_target(DiskCopy *d);

/* The stream of @d, or NULL before disk_copy_start(). */
QIOChannelMux *disk_copy_stream(DiskCopy *d);

/*
 * The stream's state changed (the session's @changed callback).  May call
 * ops->completed() or ops->failed().
 */
void disk_copy_stream_changed(DiskCopy *d);

/* Change the limit; 0: none. */
void disk_copy_set_speed(DiskCopy *d, int64_t speed);

/*
 * Make the guest's writes wait for the destination, so that it cannot fall
 * behind any more.
 */
void disk_copy_converge(DiskCopy *d);

/*
 * Has disk_copy_converge() taken effect, by the time of the last flush: are
 * writes of the guest that are under way all that the destination lacks?
 * Any thread.
 */
bool disk_copy_converged(DiskCopy *d);

/*
 * Have the destination flush what it has; ops->flushed() follows, unless the
 * copy ends first.  One at a time.
 */
void disk_copy_flush(DiskCopy *d);

/*
 * The guest is stopped: bring the destination level, end the mirror without
 * switching over to it, disconnect.  ops->completed() follows; ops->failed()
 * may be called at once.
 */
void disk_copy_complete(DiskCopy *d);

/*
 * @ms have passed since disk_copy_start() or disk_copy_complete(): is @d where
 * it should be by now?  If not, @errp says what is late.  Any thread.
 */
bool disk_copy_in_time(DiskCopy *d, uint32_t ms, Error **errp);

/* Did nobody write to the node since disk_copy_complete()? */
bool disk_copy_untouched(DiskCopy *d, Error **errp);

/*
 * How long a copy has been waiting for a disk, in nanoseconds; 0: it does not
 * wait.  For the destination: the time since the oldest unanswered request was
 * sent or, while one is being sent, since the stream last sent a byte.
 */
typedef struct DiskCopyWait {
    int64_t destination;
    int64_t flush;          /* the same for flushes, which may take long */
    int64_t silent;         /* since the last reply */
    bool unread;            /* a reply was received and is not being read */
    int64_t source;         /* in the first pass */
    bool ping;              /* a request is unanswered for 1 s: send PING */
} DiskCopyWait;

/* get_clock() times */
typedef struct DiskCopyTime {
    int64_t now;
    int64_t heard;          /* last data from the peer */
    int64_t resumed;        /* end of the last interruption of either process */
    int64_t responsive;     /* the main loop last ran, not a nested one */
    bool blocked;           /* not for a while: it may wait for a request */
} DiskCopyTime;

/*
 * Find out what @d waits for; called at regular intervals, by one thread of the
 * session.  While the main loop responds, time counts only until @t->heard: a
 * silent peer is not a disk that hangs.
 */
DiskCopyWait disk_copy_watch(DiskCopy *d, const DiskCopyTime *t);

/*
 * Check that the mirror job of @d, if there is one, has not failed or been
 * cancelled by force.  Detects that before ops->failed() is called: the job
 * waits for its requests first, and to finalize it, the main loop waits for
 * those of all other disks.  Any thread.
 */
bool disk_copy_check_mirror(DiskCopy *d, Error **errp);

/* What disk_copy_watch() found last.  Any thread. */
DiskCopyWait disk_copy_wait(DiskCopy *d);

/* Bytes still to be copied, and in all, as far as known.  Any thread. */
void disk_copy_progress(DiskCopy *d, uint64_t *remaining, uint64_t *total);

/*
 * Unless the copy is completed, pause the mirror and reset the stream with the
 * reason @why, so that nothing waits for a stalled peer.  Any thread.
 */
void disk_copy_reset(DiskCopy *d, const Error *why);

/*
 * Give up the copy, whatever its state: reset it, as above, if it is not
 * completed.  No callback follows but ops->ending().  Not in a nested event
 * loop; idempotent.
 *
 * Ending a mirror blocks the main loop until no request uses the block graph.
 * Therefore call this for all disks of a migration, wait until all are
 * quiescent, call disk_copy_cancel() for each, wait until all have ended, and
 * then call disk_copy_free().  If storage of the source hangs, only the end of
 * the migration is delayed.
 */
void disk_copy_abort(DiskCopy *d, const Error *why);

/* Is the mirror paused or ended, so that it has no requests? */
bool disk_copy_quiescent(DiskCopy *d);

/* End the mirror; idempotent.  Not in a nested event loop. */
void disk_copy_cancel(DiskCopy *d);

/* Has the mirror ended, and is no NBD node being disconnected? */
bool disk_copy_ended(DiskCopy *d);

/*
 * Let go of what is left, after disk_copy_abort(); if need be, end the mirror
 * and wait for its end.
 */
void disk_copy_free(DiskCopy *d);

#endif
