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
#include "disk-watch.h"
#include "migration/mux/channel-mux.h"

typedef struct DiskMirror DiskMirror;

typedef struct DiskMirrorOps {
    /* The NBD node is there: disk_mirror_attach() may be called. */
    void (*connected)(DiskMirror *d, void *opaque);
    /* The block status is known: disk_mirror_begin() may be called. */
    void (*probed)(DiskMirror *d, void *opaque);
    /* All data was copied once; the mirror copies what the guest writes. */
    void (*ready)(DiskMirror *d, void *opaque);
    /* disk_mirror_flush() is done, or has failed, which ops->failed() tells. */
    void (*flushed)(DiskMirror *d, void *opaque);
    /* The destination has written all data; the node is no longer in use. */
    void (*completed)(DiskMirror *d, void *opaque);
    /* The copy has failed.  Called at most once. */
    void (*failed)(DiskMirror *d, const MuxFailure *failure, void *opaque);
    /*
     * After disk_mirror_abort(): disk_mirror_quiescent() or
     * disk_mirror_ended() may have become true.
     */
    void (*ending)(DiskMirror *d, void *opaque);
} DiskMirrorOps;

/*
 * Prepare to copy the disk of @def, which must live until disk_mirror_free().
 *
 * Returns: the copy, to be given back with disk_mirror_free()
 */
DiskMirror *disk_mirror_new(const MigrationDiskChannel *def,
                            const DiskMirrorOps *ops, void *opaque);

/* Open the stream and negotiate NBD.  May call ops->failed(). */
void disk_mirror_start(DiskMirror *d, MuxSession *session);

/*
 * Insert the filter above the NBD node.  This changes the block graph, and
 * therefore waits for all requests in it: call it for all disks of a migration
 * before disk_mirror_probe() for the first one, and not in a nested event loop.
 * May call ops->failed().
 */
void disk_mirror_attach(DiskMirror *d);

/*
 * Request the block status of the destination's image.  ops->probed() follows,
 * unless the copy ends first.
 */
void disk_mirror_probe(DiskMirror *d);

/*
 * Start to copy.  Making a mirror job waits until no request uses the block
 * graph, and those of another disk's mirror may wait for a peer that is silent:
 * call it for all disks of a migration in one drained section.
 */
void disk_mirror_begin(DiskMirror *d);

/* The name of its stream.  Any thread. */
const char *disk_mirror_stream_name(DiskMirror *d);

/* The node that the mirror writes to, or NULL: there is none. */
BlockDriverState *disk_mirror_filter(DiskMirror *d);

/* The stream of @d, or NULL before disk_mirror_start(). */
QIOChannelMux *disk_mirror_stream(DiskMirror *d);

/* migration_limit() has changed. */
void disk_mirror_limit_changed(DiskMirror *d);

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
 * @ms have passed since disk_mirror_start() or disk_mirror_complete().
 *
 * Returns: what @d still waits for, as a failure; NULL: nothing.  Any thread.
 */
MuxFailure *disk_mirror_late(DiskMirror *d, uint32_t ms);

/* Returns: a failure if the node was written to since disk_mirror_complete() */
MuxFailure *disk_mirror_modified(DiskMirror *d);

/* See disk_watch_look().  By one thread of the session. */
DiskWait disk_mirror_watch(DiskMirror *d, const DiskWatchTime *t);

/*
 * Returns: the failure of the mirror job of @d, if it has failed or was
 * cancelled by force.  Known before ops->failed() is called: the job waits for
 * its requests first, and to finalize it, the main loop waits for those of all
 * other disks.  Any thread.
 */
MuxFailure *disk_mirror_job_failure(DiskMirror *d);

/* What disk_mirror_watch() found last.  Any thread. */
DiskWait disk_mirror_wait(DiskMirror *d);

/* Bytes still to be copied, and in all, as far as known.  Any thread. */
void disk_mirror_progress(DiskMirror *d, uint64_t *remaining, uint64_t *total);

/*
 * Unless the copy is completed, pause the mirror and reset the stream with the
 * reason @why, so that nothing waits for a stalled peer.  Any thread.
 */
void disk_mirror_reset(DiskMirror *d, const MuxFailure *why);

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
void disk_mirror_abort(DiskMirror *d, const MuxFailure *why);

/* Is the mirror paused or ended, so that it has no requests? */
bool disk_mirror_quiescent(DiskMirror *d);

/* End the mirror; idempotent.  Not in a nested event loop. */
void disk_mirror_cancel(DiskMirror *d);

/* Has the mirror ended, and is no NBD node being disconnected? */
bool disk_mirror_ended(DiskMirror *d);

/*
 * Free @d, after disk_mirror_abort().  If the mirror has not ended, cancel it
 * and wait.
 */
void disk_mirror_free(DiskMirror *d);

#endif
