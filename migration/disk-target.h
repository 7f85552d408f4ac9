/*
 * Migration: the node that a disk's mirror writes to, source side
 *
 * A filter above the NBD node that keeps the destination's image as sparse as
 * its contents allow.
 *
 * An image is fresh if it reads as zeroes before the copy, apart from up to
 * 1 MiB of data: the first block of a raw image is allocated when the image is
 * created.  In a fresh image, zeroes are neither sent nor written to what still
 * reads as zeroes.  In any other image, and to what may hold data, zeroes are
 * written.  If the destination cannot do that fast, they count as data in the
 * mirror's rate limit.
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
 * Find out whether the image is fresh.  Call it before the first write, in the
 * main loop with the BQL held.  @done is called there after this function has
 * returned; until then the caller keeps the node.
 *
 * The image is treated as not fresh if a request for its block status fails, or
 * if the probe takes too many requests or too long.  The probe does not limit
 * the time of a single request; changes of the block graph wait meanwhile.
 */
void disk_target_probe(BlockDriverState *bs, void (*done)(void *opaque),
                       void *opaque);

#endif
