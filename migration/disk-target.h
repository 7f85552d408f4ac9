/*
 * Migration: the node that a disk's mirror writes to, source side
 *
 * A filter above the NBD node that keeps the destination's image as sparse as
 * its contents allow.
 *
 * An image that reads as zeroes before anything was written to it is fresh; so
 * is one that may have a little data, such as a raw image, whose first block is
 * written when it is created.  In a fresh image, zeroes are neither sent nor
 * written where nothing else has been written.  In any other, and where
 * something may be, they are written.  If the destination cannot do that fast,
 * they count as data in the limit of the mirror's speed.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef MIGRATION_DISK_TARGET_H
#define MIGRATION_DISK_TARGET_H

#include "block/block.h"
#include "channel-disk.h"

/*
 * Put a filter above @nbd.  The image counts as not fresh until
 * disk_target_probe() finds that it is.  Main loop, BQL held.  @def must live
 * as long as the filter.
 *
 * Returns: the filter with one reference that belongs to the caller, NULL with
 *     @errp set on error
 */
BlockDriverState *disk_target_new(const MigrationDiskChannel *def,
                                  BlockDriverState *nbd, Error **errp);

/*
 * Find out whether the image is fresh.  Before anything is written, by the main
 * loop, BQL held.  @done follows, in the main loop, after this function has
 * returned; until then the caller keeps the node.
 *
 * An image whose block status cannot be told is not fresh, nor one for which
 * that takes too many requests or too long; a single request may take any time.
 * Until then, a change of the block graph has to wait.
 */
void disk_target_probe(BlockDriverState *bs, void (*done)(void *opaque),
                       void *opaque);

#endif
