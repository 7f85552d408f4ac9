/*
 * Migration: the copy of one disk, source side
 *
 * A DiskMirror takes one block node to the destination over the stream
 * nbd-<disk> of a mux session: NBD handshake, NBD node, mirror job, completion.
 * It knows nothing of the other disks, of RAM, or of the migration's state.
 *
 * All functions belong to the main loop (BQL held) unless said otherwise, and
 * callbacks are called from there.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef MIGRATION_DISK_MIRROR_H
#define MIGRATION_DISK_MIRROR_H

#include "channel-disk.h"
#include "migration/mux/channel-mux.h"

typedef struct DiskMirror DiskMirror;

typedef struct DiskMirrorOps {
    /* The NBD node is there: disk_mirror_begin() may be called. */
    void (*connected)(DiskMirror *d, void *opaque);
    /* All data was copied once; the mirror copies what the guest writes. */
    void (*ready)(DiskMirror *d, void *opaque);
    /* disk_mirror_flush() is done, or has failed, which ops->failed() tells. */
    void (*flushed)(DiskMirror *d, void *opaque);
    /* The destination has written all data; the node is no longer in use. */
    void (*completed)(DiskMirror *d, void *opaque);
    /*
     * The copy has failed.  Called at most once.  @err begins with the name
     * of the stream.
     */
    void (*failed)(DiskMirror *d, const Error *err, void *opaque);
    /*
     * After disk_mirror_abort(): disk_mirror_quiescent() or
     * disk_mirror_ended() may have become true.
     */
    void (*ending)(DiskMirror *d, void *opaque);
} DiskMirrorOps;

/*
 * Prepare to copy the disk of @def, which must live until disk_mirror_free().
 * @speed is in bytes per second, 0: no limit.
 *
 * Returns: the copy, to be given back with disk_mirror_free()
 */
DiskMirror *disk_mirror_new(const MigrationDiskChannel *def, int64_t speed,
                            const DiskMirrorOps *ops, void *opaque);

/*
 * Open the stream and shake hands; failures from here on go to ops->failed().
 */
bool disk_mirror_start(DiskMirror *d, MuxSession *session, Error **errp);

/*
 * Start to copy.  Making a mirror job waits until no request uses the block
 * graph, and those of another disk's mirror may wait for a peer that is silent:
 * call it for all disks of a migration in one drained section.
 */
void disk_mirror_begin(DiskMirror *d);

const char *disk_mirror_name(DiskMirror *d);

/* The name of its stream.  Any thread. */
const char *disk_mirror_stream_name(DiskMirror *d);

/* The NBD node, or NULL: there is none. */
BlockDriverState *disk_mirror_target(DiskMirror *d);

/* The stream of @d, or NULL before disk_mirror_start(). */
QIOChannelMux *disk_mirror_stream(DiskMirror *d);

/*
 * The stream's state changed (the session's @changed callback).  May call
 * ops->completed() or ops->failed().
 */
void disk_mirror_stream_changed(DiskMirror *d);

/* Change the limit; 0: none. */
void disk_mirror_set_speed(DiskMirror *d, int64_t speed);

/*
 * Make the guest's writes wait for the destination, so that it cannot fall
 * behind any more.
 */
void disk_mirror_converge(DiskMirror *d);

/*
 * Has disk_mirror_converge() taken effect, by the time of the last flush: are
 * writes of the guest that are under way all that the destination lacks?
 * Any thread.
 */
bool disk_mirror_converged(DiskMirror *d);

/*
 * Have the destination flush what it has; ops->flushed() follows, unless the
 * copy ends first.  One at a time.
 */
void disk_mirror_flush(DiskMirror *d);

/*
 * The guest is stopped: copy the rest, end the mirror without switching over to
 * its target, disconnect.  ops->completed() follows; ops->failed()
 * may be called at once.
 */
void disk_mirror_complete(DiskMirror *d);

/*
 * @ms have passed since disk_mirror_start() or disk_mirror_complete(): is @d
 * where it should be by now?  If not, @errp says what is late.  Any thread.
 */
bool disk_mirror_in_time(DiskMirror *d, uint32_t ms, Error **errp);

/* Was the node not written to since disk_mirror_complete()? */
bool disk_mirror_unmodified(DiskMirror *d, Error **errp);

/*
 * How long a copy has been waiting for a disk, in nanoseconds; 0: it does not
 * wait.  For the destination: the time since the oldest unanswered request was
 * sent or, while one is being sent, since the stream last sent a byte.
 */
typedef struct DiskMirrorWait {
    int64_t destination;
    int64_t flush;          /* the same for flushes, which may take long */
    int64_t silent;         /* since the last reply */
    bool unread;            /* a reply was received and is not being read */
    int64_t source;         /* in the first pass */
    bool ping;              /* a request is unanswered for 1 s: send PING */
} DiskMirrorWait;

/* get_clock() times */
typedef struct DiskMirrorTime {
    int64_t now;
    int64_t heard;          /* last data from the peer */
    int64_t resumed;        /* end of the last interruption of either process */
    int64_t responsive;     /* the main loop last ran, not a nested one */
    bool blocked;           /* not for a while: it may wait for a request */
} DiskMirrorTime;

/*
 * Find out what @d waits for; called at regular intervals, by one thread of the
 * session.  While the main loop responds, time counts only until @t->heard: a
 * silent peer is not a disk that hangs.
 */
DiskMirrorWait disk_mirror_watch(DiskMirror *d, const DiskMirrorTime *t);

/*
 * Check that the mirror job of @d, if there is one, has not failed or been
 * cancelled by force.  Detects that before ops->failed() is called: the job
 * waits for its requests first, and to finalize it, the main loop waits for
 * those of all other disks.  Any thread.
 */
bool disk_mirror_check_mirror(DiskMirror *d, Error **errp);

/* What disk_mirror_watch() found last.  Any thread. */
DiskMirrorWait disk_mirror_wait(DiskMirror *d);

/* Bytes still to be copied, and in all, as far as known.  Any thread. */
void disk_mirror_progress(DiskMirror *d, uint64_t *remaining, uint64_t *total);

/*
 * Unless the copy is completed, pause the mirror and reset the stream with the
 * reason @why, so that nothing waits for a stalled peer.  Any thread.
 */
void disk_mirror_reset(DiskMirror *d, const Error *why);

/*
 * Give up the copy, whatever its state: reset it, as above, if it is not
 * completed.  No callback follows but ops->ending().  Not in a nested event
 * loop; idempotent.
 *
 * Ending a mirror blocks the main loop until no request uses the block graph.
 * Therefore call this for all disks of a migration, wait until all are
 * quiescent, call disk_mirror_cancel() for each, wait until all have ended, and
 * then call disk_mirror_free().  If storage of the source hangs, only the end
 * of the migration is delayed.
 */
void disk_mirror_abort(DiskMirror *d, const Error *why);

/* Is the mirror paused or ended, so that it has no requests? */
bool disk_mirror_quiescent(DiskMirror *d);

/* End the mirror; idempotent.  Not in a nested event loop. */
void disk_mirror_cancel(DiskMirror *d);

/* Has the mirror ended, and is no NBD node being disconnected? */
bool disk_mirror_ended(DiskMirror *d);

/*
 * Let go of what is left, after disk_mirror_abort(); if need be, end the mirror
 * and wait for its end.
 */
void disk_mirror_free(DiskMirror *d);

#endif
