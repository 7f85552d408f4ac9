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
 * List the guest's disks that have a medium and that it can write, with 'disk'
 * and 'node-name' set.  'disk' is the id of the drive, otherwise the id of the
 * device, otherwise the node name; NULL if QEMU generated that.  Main thread.
 *
 * Returns: an array of MigrationChannelNbd *, to be released with
 *     g_ptr_array_unref()
 */
GPtrArray *migration_guest_disks(void);

#endif
