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
 * List the nodes of all drives that a device of the guest uses, that have a
 * medium and are not read-only: 'disk' and 'node-name' of each.  The name is
 * the id of the drive, of the device, or else the node name that the user has
 * chosen.  Main thread.
 *
 * Returns: MigrationChannelNbd *, to be given back with g_ptr_array_unref(); or
 *          NULL with @errp set: a disk has no name
 */
GPtrArray *migration_guest_disks(Error **errp);

#endif
