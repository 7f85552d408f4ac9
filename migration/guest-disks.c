/*
 * Migration: the writable disks of the guest
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "block/block_int.h"
#include "hw/qdev-core.h"
#include "qemu/id.h"
#include "system/block-backend.h"
#include "guest-disks.h"

/* The id of @device, or of the device that it is a part of, or NULL */
static const char *device_id(DeviceState *device)
{
    for (Object *obj = OBJECT(device); obj; obj = obj->parent) {
        Object *dev = object_dynamic_cast(obj, TYPE_DEVICE);

        if (dev && DEVICE(dev)->id) {
            return DEVICE(dev)->id;
        }
    }
    return NULL;
}

/* The name that the user gave to @bs, or NULL if QEMU generated it */
static const char *chosen_node_name(BlockDriverState *bs)
{
    const char *name = bdrv_get_node_name(bs);

    return id_wellformed(name) ? name : NULL;
}

static const char *disk_name(BlockBackend *blk)
{
    const char *name = blk_name(blk);

    if (*name) {
        return name;
    }
    return device_id(blk_get_attached_dev(blk)) ?:
           chosen_node_name(blk_bs(blk));
}

static bool is_writable_disk(BlockBackend *blk)
{
    return blk_get_attached_dev(blk) && blk_is_inserted(blk) &&
           blk_is_writable(blk) && !bdrv_is_read_only(blk_bs(blk));
}

GPtrArray *migration_guest_disks(void)
{
    GPtrArray *disks = g_ptr_array_new_with_free_func(
        (GDestroyNotify)qapi_free_MigrationChannelNbd);

    for (BlockBackend *blk = NULL; (blk = blk_all_next(blk)); ) {
        if (is_writable_disk(blk)) {
            MigrationChannelNbd *disk = g_new0(MigrationChannelNbd, 1);

            disk->disk = g_strdup(disk_name(blk));
            disk->node_name = g_strdup(bdrv_get_node_name(blk_bs(blk)));
            g_ptr_array_add(disks, disk);
        }
    }
    return disks;
}
