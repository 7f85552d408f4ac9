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

#include "migration/mux/channel-mux.h"
#include "qapi/qapi-types-migration-stream.h"

typedef struct DiskCopy DiskCopy;

typedef struct DiskCopyOps {
    /* All data was copied once; the mirror keeps the destination in step. */
    void (*ready)(DiskCopy *d, void *opaque);
    /* The destination has dealt with every byte; the node is in use no more. */
    void (*completed)(DiskCopy *d, void *opaque);
    /* The copy came to an end that nobody asked for.  At most once. */
    void (*failed)(DiskCopy *d, const Error *err, void *opaque);
} DiskCopyOps;

/*
 * Prepare to copy the node or device @node_name as disk @disk.  @speed is in
 * bytes per second, 0: no limit.
 *
 * Returns: the copy, to be given back with disk_copy_free()
 */
DiskCopy *disk_copy_new(const char *disk, const char *node_name,
                        MigrationDiskSync sync, int64_t speed,
                        const DiskCopyOps *ops, void *opaque);

/* Open the stream and start; failures from here on go to ops->failed(). */
bool disk_copy_start(DiskCopy *d, MuxSession *session, Error **errp);

/* The stream of @d, or NULL before disk_copy_start(). */
QIOChannelMux *disk_copy_stream(DiskCopy *d);

/*
 * The stream's state changed (the session's @changed callback).  May call
 * ops->completed() or ops->failed().
 */
void disk_copy_stream_changed(DiskCopy *d);

/*
 * Make the guest's writes wait for the destination, and have the destination
 * flush what it has, so that little is left to do once the guest is stopped.
 */
void disk_copy_converge(DiskCopy *d);

/* Has disk_copy_converge() taken effect?  Any thread. */
bool disk_copy_converged(DiskCopy *d);

/*
 * The guest is stopped: bring the destination level, end the mirror without
 * switching over to it, disconnect.  ops->completed() follows; ops->failed()
 * may be called at once.
 */
void disk_copy_complete(DiskCopy *d);

/* Did nobody write to the node since disk_copy_complete()? */
bool disk_copy_untouched(DiskCopy *d, Error **errp);

/* Bytes still to be copied, and in all, as far as known.  Any thread. */
void disk_copy_progress(DiskCopy *d, uint64_t *remaining, uint64_t *total);

/*
 * End the copy, whatever its state.  If it is not completed, the stream is
 * reset first, with @why as the reason for the peer, so that a peer that has
 * stalled cannot hold up the cancellation of the mirror.  No callback follows.
 */
void disk_copy_free(DiskCopy *d, const Error *why);

#endif
