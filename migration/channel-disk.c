/*
 * The disk that a migration channel of type 'nbd' copies
 *
 * Checks the disk's name and finds its node.  Copies nothing.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "block/block_int.h"
#include "block/blockjob.h"
#include "hw/qdev-core.h"
#include "qapi/error.h"
#include "qemu/id.h"
#include "system/block-backend.h"
#include "channel-disk.h"
#include "mux-streams.h"

static bool check_disk_name(const char *disk, Error **errp)
{
    if (!*disk) {
        error_setg(errp, "Disk name is empty");
        return false;
    }
    if (strlen(disk) > MIGRATION_DISK_NAME_MAX) {
        error_setg(errp, "Disk name '%.16s...' is longer than %d characters",
                   disk, MIGRATION_DISK_NAME_MAX);
        return false;
    }
    if (!id_wellformed(disk)) {
        error_setg(errp, "Disk name '%s' is not well-formed: it must start "
                   "with a letter and have only letters, digits, '-', '.' "
                   "and '_'; use 'node-name' for a node with another name",
                   disk);
        return false;
    }
    return true;
}

static bool belongs_to(BlockBackend *blk, Object *device)
{
    Object *obj = OBJECT(blk_get_attached_dev(blk));

    while (obj && obj != device) {
        obj = obj->parent;
    }
    return obj;
}

/*
 * Find the drive of the device with this id or QOM path.  It may belong to a
 * part of the device, such as the virtio-blk device of a virtio-blk-pci.
 */
static BlockBackend *find_drive(const char *disk, const char *name,
                                Error **errp)
{
    Object *obj =
        object_resolve_path_at(machine_get_container("peripheral"), name);
    Object *device = object_dynamic_cast(obj, TYPE_DEVICE);
    BlockBackend *found = NULL;

    if (!device) {
        error_setg(errp, "Disk '%s': no block node or device is called '%s'",
                   disk, name);
        return NULL;
    }
    for (BlockBackend *blk = NULL; (blk = blk_all_next(blk)); ) {
        if (!belongs_to(blk, device)) {
            continue;
        }
        if (found) {
            error_setg(errp, "Disk '%s': device '%s' has more than one drive",
                       disk, name);
            return NULL;
        }
        found = blk;
    }
    if (!found) {
        error_setg(errp, "Disk '%s': device '%s' has no drive", disk, name);
    }
    return found;
}

/* Find the node called @name, or the one in the device called @name */
static BlockDriverState *find_node(const char *disk, const char *name,
                                   Error **errp)
{
    BlockDriverState *bs = bdrv_find_node(name);
    BlockBackend *blk;

    if (bs) {
        return bs;
    }

    blk = blk_by_name(name) ?: find_drive(disk, name, errp);
    if (!blk) {
        return NULL;
    }
    if (!blk_bs(blk)) {
        error_setg(errp, "Disk '%s': device '%s' has no medium", disk, name);
        return NULL;
    }
    return blk_bs(blk);
}

static bool GRAPH_RDLOCK check_no_job(const char *disk, BlockDriverState *bs,
                                      Error **errp)
{
    JOB_LOCK_GUARD();
    for (BlockJob *job = NULL; (job = block_job_next_locked(job)); ) {
        if (block_job_has_bdrv(job, bs) && !job_is_internal(&job->job)) {
            error_setg(errp, "Disk '%s': node '%s' is in use by job '%s' (%s); "
                       "cancel the job, or wait until it has ended",
                       disk, bdrv_get_device_or_node_name(bs), job->job.id,
                       job_type_str(&job->job));
            return false;
        }
    }
    return true;
}

static bool GRAPH_RDLOCK check_topmost(const char *disk, BlockDriverState *bs,
                                       Error **errp)
{
    BdrvChild *c;

    QLIST_FOREACH(c, &bs->parents, next_parent) {
        if (c->klass == &child_of_bds) {
            BlockDriverState *parent = c->opaque;

            if (!check_no_job(disk, parent, errp)) {
                return false;
            }
            error_setg(errp, "Disk '%s': node '%s' is a child of node '%s' "
                       "(driver '%s'); use the topmost node of the disk",
                       disk, bdrv_get_node_name(bs), bdrv_get_node_name(parent),
                       parent->drv ? parent->drv->format_name : "none");
            return false;
        }
    }
    if (!bdrv_is_root_node(bs)) {
        error_setg(errp, "Disk '%s': node '%s' is not a root node",
                   disk, bdrv_get_node_name(bs));
        return false;
    }
    return true;
}

/* The requirements of a block job that mirrors @bs */
static bool check_copyable(const char *disk, BlockDriverState *bs,
                           Error **errp)
{
    ERRP_GUARD();
    GRAPH_RDLOCK_GUARD_MAINLOOP();

    if (!check_no_job(disk, bs, errp)) {
        return false;
    }
    if (bdrv_op_is_blocked(bs, BLOCK_OP_TYPE_MIRROR_SOURCE, errp)) {
        error_prepend(errp, "Disk '%s': ", disk);
        return false;
    }
    return check_topmost(disk, bs, errp);
}

/*
 * The destination writes to its node.  At the source, a read-only disk does not
 * change during the migration, and is better copied beforehand.
 */
static bool check_writable(const char *disk, BlockDriverState *bs,
                           Error **errp)
{
    if (bdrv_is_read_only(bs)) {
        error_setg(errp, "Disk '%s': node '%s' is read-only",
                   disk, bdrv_get_node_name(bs));
        return false;
    }
    return true;
}

static bool check_node(const char *disk, BlockDriverState *bs, bool incoming,
                       Error **errp)
{
    if (!bdrv_is_inserted(bs)) {
        error_setg(errp, "Disk '%s': node '%s' has no medium",
                   disk, bdrv_get_node_name(bs));
        return false;
    }
    return check_writable(disk, bs, errp) &&
        (incoming || check_copyable(disk, bs, errp));
}

static bool check_side(const MigrationChannelNbd *def, bool incoming,
                       Error **errp)
{
    const char *option = def->has_sync ? "sync" :
                         def->has_detect_zeroes ? "detect-zeroes" : NULL;

    if (incoming && option) {
        error_setg(errp, "Disk '%s': '%s' is only accepted by 'migrate'",
                   def->disk, option);
        return false;
    }
    return true;
}

MigrationDiskChannel *migration_disk_channel_new(const MigrationChannelNbd *def,
                                                 bool incoming, Error **errp)
{
    MigrationDiskChannel *channel;
    BlockDriverState *bs;

    if (!check_disk_name(def->disk, errp) ||
        !check_side(def, incoming, errp)) {
        return NULL;
    }

    bs = find_node(def->disk, def->node_name ?: def->disk, errp);
    if (!bs || !check_node(def->disk, bs, incoming, errp)) {
        return NULL;
    }

    channel = g_new0(MigrationDiskChannel, 1);
    channel->disk = g_strdup(def->disk);
    channel->stream = mux_stream_kind_name(MUX_STREAM_KIND_NBD, def->disk);
    channel->node_name = g_strdup(bdrv_get_node_name(bs));
    channel->sync = def->has_sync ? def->sync : MIGRATION_DISK_SYNC_FULL;
    channel->has_detect_zeroes = def->has_detect_zeroes;
    channel->detect_zeroes = def->detect_zeroes;
    return channel;
}

void migration_disk_channel_free(MigrationDiskChannel *channel)
{
    if (!channel) {
        return;
    }
    g_free(channel->disk);
    g_free(channel->stream);
    g_free(channel->node_name);
    g_free(channel);
}
