/*
 * Migration: the disks of a migration, source side
 *
 * A DiskSet owns a DiskMirror for each disk.  Whatever concerns all disks is
 * here: steps that all of them have to reach, sums, resets.
 *
 * All functions belong to the main loop (BQL held) unless said otherwise.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef MIGRATION_DISK_SET_H
#define MIGRATION_DISK_SET_H

#include "disk-mirror.h"
#include "qapi/qapi-types-migration.h"

typedef struct DiskSet DiskSet;

/* Called in the main loop; what DiskMirrorOps says of one disk holds for all */
typedef struct DiskSetOps {
    void (*connected)(void *opaque);
    void (*probed)(void *opaque);
    void (*ready)(void *opaque);
    void (*completed)(void *opaque);
    /* Of one disk */
    void (*flushed)(DiskMirror *d, void *opaque);
    void (*failed)(const MuxFailure *failure, void *opaque);
    void (*ending)(void *opaque);
} DiskSetOps;

DiskSet *disk_set_new(const DiskSetOps *ops, void *opaque);

/* Must be empty: see disk_set_release().  Any thread. */
void disk_set_free(DiskSet *set);

/* The disks, DiskMirror *, in the order in which they were given */
GPtrArray *disk_set_disks(DiskSet *set);

/*
 * Open the stream of each disk of @defs (MigrationDiskChannel *) and start the
 * NBD handshakes.  ops->connected() or ops->failed() follows.
 */
void disk_set_start(DiskSet *set, GPtrArray *defs, MuxSession *session);

/*
 * Attach the filters, and request the block status of the destination's images.
 * ops->probed() or ops->failed() follows.  Not in a nested event loop.
 */
void disk_set_probe(DiskSet *set);

/* Start the mirrors.  ops->ready() follows.  Not in a nested event loop. */
void disk_set_begin(DiskSet *set);

/*
 * The guest is stopped: end all mirrors, see disk_mirror_complete().
 * ops->completed() follows.
 */
void disk_set_complete(DiskSet *set);

/* migration_limit() has changed. */
void disk_set_limit_changed(DiskSet *set);

/* Is @bs the node that the mirror of a disk writes to? */
bool disk_set_has_target(DiskSet *set, BlockDriverState *bs);

/* See disk_mirror_modified(). */
MuxFailure *disk_set_modified(DiskSet *set);

/* See disk_mirror_late().  Any thread. */
MuxFailure *disk_set_late(DiskSet *set, uint32_t ms);

/* Bytes that were sent on the disks' streams.  Any thread. */
uint64_t disk_set_sent(DiskSet *set);

/*
 * Bytes that the destination lacks; *@converged: whether each disk has
 * disk_mirror_converged().  Any thread.
 */
uint64_t disk_set_remaining(DiskSet *set, bool *converged);

/* Returns: a failure if what @d waits for, @wait, exceeds a time limit */
typedef MuxFailure *DiskSetCheck(DiskMirror *d, const DiskWatchTime *t,
                                 const DiskWait *wait, void *opaque);

/*
 * Check each disk's mirror, and what it waits for with @check; *@ping is set if
 * a PING is to be sent.  Thread of the session.
 *
 * Returns: the first failure; NULL: none
 */
MuxFailure *disk_set_watch(DiskSet *set, const DiskWatchTime *t,
                           DiskSetCheck *check, void *opaque, bool *ping);

/* Append the streams of the disks to a list for query-migrate. */
void disk_set_info(DiskSet *set, MigrationStreamInfoList ***tail);

/* See disk_mirror_reset().  Any thread. */
void disk_set_reset(DiskSet *set, const MuxFailure *why);

/*
 * The steps to end all disks, which disk_mirror_abort() explains.  The first
 * one may be repeated; ops->ending() is called when another may be possible.
 */
void disk_set_abort(DiskSet *set, const MuxFailure *why);
bool disk_set_quiescent(DiskSet *set);
void disk_set_cancel(DiskSet *set);
bool disk_set_ended(DiskSet *set);
void disk_set_release(DiskSet *set);

#endif
