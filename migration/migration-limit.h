/*
 * Migration: the limit of RAM and disks together
 *
 * max-bandwidth limits all that the source reads to send it: RAM, and what the
 * mirrors copy in the background.  It has two kinds of users: the mirror jobs,
 * by migration_limit(), and RAM, by migration_rate_exceeded().  RAM draws as
 * much at a time as all disks.
 *
 * The guest's own writes are counted, but never held back.  The limit is lifted
 * before the guest is stopped.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef MIGRATION_LIMIT_H
#define MIGRATION_LIMIT_H

#include "qemu/shared-limit.h"

/* Without a limit while no disks are migrated. */
SharedLimit *migration_limit(void);

/*
 * Set the limit of a migration with @disks disks to @rate bytes per second; 0:
 * none.  Before the migration thread is started; BQL held.
 */
void migration_limit_begin(uint64_t rate, unsigned disks);

/*
 * Change the limit, unless it is lifted.  The mirror jobs must be woken.  BQL
 * held.
 */
void migration_limit_set(uint64_t rate);

/* There is no limit until migration_limit_begin().  Otherwise the same. */
void migration_limit_lift(void);

/*
 * Must RAM wait?
 *
 * @transferred: the bytes that this migration has sent for it so far
 * @exceeded: set to the answer, if there is a limit for RAM and disks together
 *
 * Returns: whether there is.  Migration thread.
 */
bool migration_limit_ram(uint64_t transferred, bool *exceeded);

/*
 * Returns: milliseconds that RAM should wait, @ms at most, before
 *          migration_limit_ram() is called again.  Migration thread.
 */
int migration_limit_ram_wait_ms(int ms);

#endif
