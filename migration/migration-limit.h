/*
 * Migration: the limit that RAM and disks share
 *
 * max-bandwidth limits RAM and the background copies of all disks together.
 * Each mirror job is a user of migration_limit().  RAM is another one, in
 * migration_rate_exceeded(), and draws as much at a time as all disks.
 *
 * Guest writes that a mirror copies synchronously count, but do not wait for
 * the limit.  It is lifted before the guest is stopped.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef MIGRATION_LIMIT_H
#define MIGRATION_LIMIT_H

#include "qemu/shared-limit.h"

/* No limit applies before migration_limit_begin() and after it was lifted. */
SharedLimit *migration_limit(void);

/*
 * Set the limit of a migration of @disks disks to @rate bytes per second; 0: no
 * limit.  Call it before the migration thread starts.  BQL held.
 */
void migration_limit_begin(uint64_t rate, unsigned disks);

/*
 * Change the limit, unless it has been lifted.  The caller must wake the mirror
 * jobs.  BQL held.
 */
void migration_limit_set(uint64_t rate);

/*
 * Remove the limit until the next migration_limit_begin().  The caller must
 * wake the mirror jobs.  BQL held.
 */
void migration_limit_lift(void);

/*
 * Check whether RAM exceeds the limit that it shares with disks.
 *
 * @transferred: bytes that the migration has sent so far, without the disks
 * @exceeded: whether RAM must wait; set only if the shared limit applies
 *
 * Returns: whether the shared limit applies; otherwise QEMU's own one does.
 *     Migration thread.
 */
bool migration_limit_ram(uint64_t transferred, bool *exceeded);

/*
 * Returns: milliseconds that RAM should wait, @ms at most, before
 *          migration_limit_ram() is called again.  Migration thread.
 */
int migration_limit_ram_wait_ms(int ms);

#endif
