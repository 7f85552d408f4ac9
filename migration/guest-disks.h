/*
 * Migration: the writable disks of the guest
 *
 * What a channel of type 'nbd' with the disk '*' stands for.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef MIGRATION_GUEST_DISKS_H
#define MIGRATION_GUEST_DISKS_H

#include "qapi/qapi-types-migration.h"

/* The name that stands for all disks */
#define MIGRATION_GUEST_DISKS "*"

/*
 * List the guest's disks that have a medium and are not read-only, with 'disk'
 * and 'node-name' set.  'disk' is the id of the drive, otherwise the id of the
 * device, otherwise the node name, unless QEMU generated it.  Main thread.
 *
 * Returns: an array of MigrationChannelNbd *, to be released with
 *     g_ptr_array_unref(); NULL with @errp set if a disk has no such name
 */
GPtrArray *migration_guest_disks(Error **errp);

#endif
