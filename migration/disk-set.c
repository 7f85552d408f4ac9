/*
 * Migration: the disks of a migration, source side
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "block/block.h"
#include "qemu/lockable.h"
#include "disk-set.h"
#include "mux-stream-info.h"

struct DiskSet {
    const DiskSetOps *ops;
    void *opaque;
    unsigned pending;           /* disks that have not reached the next step */
    bool failed;                /* one of them */
    QemuMutex lock;             /* protects @disks from other threads */
    GPtrArray *disks;           /* DiskMirror *; BQL held for changes */
};

static void disk_set_reached(DiskSet *set, void (*step)(void *opaque))
{
    if (!--set->pending) {
        step(set->opaque);
    }
}

static void disk_set_connected(DiskMirror *d, void *opaque)
{
    DiskSet *set = opaque;

    disk_set_reached(set, set->ops->connected);
}

static void disk_set_probed(DiskMirror *d, void *opaque)
{
    DiskSet *set = opaque;

    disk_set_reached(set, set->ops->probed);
}

static void disk_set_ready(DiskMirror *d, void *opaque)
{
    DiskSet *set = opaque;

    disk_set_reached(set, set->ops->ready);
}

static void disk_set_completed(DiskMirror *d, void *opaque)
{
    DiskSet *set = opaque;

    disk_set_reached(set, set->ops->completed);
}

static void disk_set_flushed(DiskMirror *d, void *opaque)
{
    DiskSet *set = opaque;

    set->ops->flushed(d, set->opaque);
}

static void disk_set_failed(DiskMirror *d, const MuxFailure *failure,
                            void *opaque)
{
    DiskSet *set = opaque;

    set->failed = true;
    set->ops->failed(failure, set->opaque);
}

static void disk_set_ending(DiskMirror *d, void *opaque)
{
    DiskSet *set = opaque;

    set->ops->ending(set->opaque);
}

static const DiskMirrorOps disk_set_ops = {
    .connected = disk_set_connected,
    .probed = disk_set_probed,
    .ready = disk_set_ready,
    .flushed = disk_set_flushed,
    .completed = disk_set_completed,
    .failed = disk_set_failed,
    .ending = disk_set_ending,
};

DiskSet *disk_set_new(const DiskSetOps *ops, void *opaque)
{
    DiskSet *set = g_new0(DiskSet, 1);

    set->ops = ops;
    set->opaque = opaque;
    set->disks = g_ptr_array_new();
    qemu_mutex_init(&set->lock);
    return set;
}

void disk_set_free(DiskSet *set)
{
    assert(!set->disks->len);
    g_ptr_array_unref(set->disks);
    qemu_mutex_destroy(&set->lock);
    g_free(set);
}

GPtrArray *disk_set_disks(DiskSet *set)
{
    return set->disks;
}

static DiskMirror *disk_set_get(DiskSet *set, guint i)
{
    return i < set->disks->len ? g_ptr_array_index(set->disks, i) : NULL;
}

/* With the BQL or set->lock held */
#define FOR_EACH_DISK(d, set)                                           \
    for (guint d##_i = 0; (d = disk_set_get(set, d##_i)); d##_i++)

static bool disk_set_all(DiskSet *set, bool (*has)(DiskMirror *d))
{
    DiskMirror *d;

    FOR_EACH_DISK(d, set) {
        if (!has(d)) {
            return false;
        }
    }
    return true;
}

/* --- steps --- */

void disk_set_start(DiskSet *set, GPtrArray *defs, MuxSession *session)
{
    set->pending = defs->len;
    for (guint i = 0; i < defs->len && !set->failed; i++) {
        DiskMirror *d = disk_mirror_new(g_ptr_array_index(defs, i),
                                        &disk_set_ops, set);

        WITH_QEMU_LOCK_GUARD(&set->lock) {
            g_ptr_array_add(set->disks, d);
        }
        disk_mirror_start(d, session);
    }
}

void disk_set_probe(DiskSet *set)
{
    DiskMirror *d;

    set->pending = set->disks->len;
    FOR_EACH_DISK(d, set) {
        if (!set->failed) {
            disk_mirror_attach(d);
        }
    }
    FOR_EACH_DISK(d, set) {
        if (!set->failed) {
            disk_mirror_probe(d);
        }
    }
}

void disk_set_begin(DiskSet *set)
{
    DiskMirror *d;

    set->pending = set->disks->len;
    bdrv_drain_all_begin();
    FOR_EACH_DISK(d, set) {
        if (!set->failed) {
            disk_mirror_begin(d);
        }
    }
    bdrv_drain_all_end();
}

void disk_set_complete(DiskSet *set)
{
    DiskMirror *d;

    set->pending = set->disks->len;
    FOR_EACH_DISK(d, set) {
        disk_mirror_complete(d);
    }
}

void disk_set_limit_changed(DiskSet *set)
{
    DiskMirror *d;

    FOR_EACH_DISK(d, set) {
        disk_mirror_limit_changed(d);
    }
}

/* --- queries --- */

bool disk_set_has_target(DiskSet *set, BlockDriverState *bs)
{
    DiskMirror *d;

    FOR_EACH_DISK(d, set) {
        if (disk_mirror_filter(d) == bs) {
            return true;
        }
    }
    return false;
}

MuxFailure *disk_set_modified(DiskSet *set)
{
    MuxFailure *failure = NULL;
    DiskMirror *d;

    FOR_EACH_DISK(d, set) {
        failure = failure ?: disk_mirror_modified(d);
    }
    return failure;
}

MuxFailure *disk_set_late(DiskSet *set, uint32_t ms)
{
    MuxFailure *failure = NULL;
    DiskMirror *d;

    QEMU_LOCK_GUARD(&set->lock);
    FOR_EACH_DISK(d, set) {
        failure = failure ?: disk_mirror_late(d, ms);
    }
    return failure;
}

uint64_t disk_set_sent(DiskSet *set)
{
    uint64_t sent, received, sum = 0;
    DiskMirror *d;

    QEMU_LOCK_GUARD(&set->lock);
    FOR_EACH_DISK(d, set) {
        qio_channel_mux_get_bytes(disk_mirror_stream(d), &sent, &received);
        sum += sent;
    }
    return sum;
}

uint64_t disk_set_remaining(DiskSet *set, bool *converged)
{
    uint64_t remaining, total, sum = 0;
    DiskMirror *d;

    *converged = true;
    QEMU_LOCK_GUARD(&set->lock);
    FOR_EACH_DISK(d, set) {
        *converged &= disk_mirror_converged(d);
        disk_mirror_progress(d, &remaining, &total);
        sum += remaining;
    }
    return sum;
}

MuxFailure *disk_set_watch(DiskSet *set, const DiskWatchTime *t,
                           DiskSetCheck *check, void *opaque, bool *ping)
{
    MuxFailure *failure = NULL;
    DiskMirror *d;

    QEMU_LOCK_GUARD(&set->lock);
    FOR_EACH_DISK(d, set) {
        DiskWait wait = disk_mirror_watch(d, t);

        *ping |= wait.ping;
        failure = failure ?: disk_mirror_job_failure(d) ?:
            check(d, t, &wait, opaque);
    }
    return failure;
}

void disk_set_info(DiskSet *set, MigrationStreamInfoList ***tail)
{
    DiskMirror *d;

    FOR_EACH_DISK(d, set) {
        if (disk_mirror_stream(d)) {
            QAPI_LIST_APPEND(*tail, mux_stream_info_disk(d));
        }
    }
}

/* --- the end --- */

void disk_set_reset(DiskSet *set, const MuxFailure *why)
{
    DiskMirror *d;

    QEMU_LOCK_GUARD(&set->lock);
    FOR_EACH_DISK(d, set) {
        disk_mirror_reset(d, why);
    }
}

void disk_set_abort(DiskSet *set, const MuxFailure *why)
{
    DiskMirror *d;

    FOR_EACH_DISK(d, set) {
        disk_mirror_abort(d, why);
    }
}

bool disk_set_quiescent(DiskSet *set)
{
    return disk_set_all(set, disk_mirror_quiescent);
}

void disk_set_cancel(DiskSet *set)
{
    DiskMirror *d;

    FOR_EACH_DISK(d, set) {
        disk_mirror_cancel(d);
    }
}

bool disk_set_ended(DiskSet *set)
{
    return disk_set_all(set, disk_mirror_ended);
}

void disk_set_release(DiskSet *set)
{
    DiskMirror *d;

    while ((d = disk_set_get(set, set->disks->len - 1))) {
        WITH_QEMU_LOCK_GUARD(&set->lock) {
            g_ptr_array_set_size(set->disks, set->disks->len - 1);
        }
        disk_mirror_free(d);
    }
}
