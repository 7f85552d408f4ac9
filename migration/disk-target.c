/*
 * Migration: the node that a disk's mirror writes to, source side
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "block/aio_task.h"
#include "block/block_int.h"
#include "block/dirty-bitmap.h"
#include "qemu/iov.h"
#include "qemu/main-loop.h"
#include "qemu/timer.h"
#include "qemu/units.h"
#include "disk-target.h"
#include "migration-limit.h"
#include "trace.h"

/* Granularity of the bitmap and of the detection of zeroes, in bytes */
#define DISK_TARGET_CHUNK (64 * KiB)
/*
 * The largest clusters of qcow2.  A destination that refuses to zero this much
 * with this alignment cannot zero anything fast.
 */
#define DISK_TARGET_CLUSTER (2 * MiB)
/* Data that a fresh image may contain */
#define DISK_TARGET_FRESH_DATA MiB
/*
 * The probe doubles the size of its requests from this one on.  It gives up
 * after the maximum number of requests, or, once it has made the minimum, after
 * this time.
 */
#define DISK_TARGET_PROBE_BYTES (16 * MiB)
#define DISK_TARGET_PROBES_MIN 8
#define DISK_TARGET_PROBES_MAX 128
#define DISK_TARGET_PROBE_MS 2000
/* Parts of one write that are in flight at the same time */
#define DISK_TARGET_TASKS 16

typedef struct DiskTarget {
    const MigrationDiskChannel *def;
    bool detect;                /* look for zeroes in data */
    bool slow;                  /* atomic: do not try to zero fast */
    bool advertised;            /* BDRV_REQ_MAY_UNMAP */
    BdrvDirtyBitmap *maybe_data;    /* chunks not known to be zeroes */
    int64_t bytes;              /* of the image */
} DiskTarget;

/* --- chunks that may hold data --- */

/* Called before a write, which may change a part of the range and then fail */
static void disk_target_set_maybe_data(DiskTarget *t, int64_t offset,
                                       int64_t bytes)
{
    bdrv_set_dirty_bitmap(t->maybe_data, offset, bytes);
}

/* The range has become zeroes. */
static void disk_target_set_zeroed(DiskTarget *t, int64_t offset, int64_t bytes)
{
    bdrv_reset_dirty_bitmap(t->maybe_data, offset, bytes);
}

static bool disk_target_covers_chunks(DiskTarget *t, int64_t offset,
                                      int64_t bytes)
{
    return QEMU_IS_ALIGNED(offset, DISK_TARGET_CHUNK) &&
           (QEMU_IS_ALIGNED(offset + bytes, DISK_TARGET_CHUNK) ||
            offset + bytes == t->bytes);
}

/* Returns: how much of the range lies in the chunk of @offset */
static int64_t disk_target_clip(int64_t offset, int64_t bytes)
{
    return MIN(bytes, DISK_TARGET_CHUNK - offset % DISK_TARGET_CHUNK);
}

/*
 * Returns: length of the first part of the range whose chunks all have the same
 *     state, which is *@maybe_data
 */
static int64_t disk_target_run(DiskTarget *t, int64_t offset, int64_t bytes,
                               bool *maybe_data)
{
    int64_t run = 0;

    *maybe_data = false;
    if (bytes) {
        bdrv_dirty_bitmap_lock(t->maybe_data);
        *maybe_data = bdrv_dirty_bitmap_status(t->maybe_data, offset, bytes,
                                               &run);
        bdrv_dirty_bitmap_unlock(t->maybe_data);
    }
    return run;
}

/* --- requests --- */

/*
 * A mirror checks bdrv_can_write_zeroes_with_unmap() when it starts, to decide
 * whether to zero the whole target first, and in each iteration, to decide
 * whether zeroes count as data.  So advertise BDRV_REQ_MAY_UNMAP before it
 * starts only if the image is fresh, else with its first request, and withdraw
 * it when zeroing turns out to be slow.
 */
static void disk_target_advertise_unmap(BlockDriverState *bs, DiskTarget *t)
{
    if (!t->advertised) {
        t->advertised = true;
        bs->supported_zero_flags |= BDRV_REQ_MAY_UNMAP;
    }
}

/*
 * Zero a range, which is a number of whole clusters or less than one, only if
 * the target can do that fast; else return -ENOTSUP
 */
static int coroutine_fn GRAPH_RDLOCK
disk_target_zero_fast(BlockDriverState *bs, int64_t offset, int64_t bytes,
                      BdrvRequestFlags flags)
{
    DiskTarget *t = bs->opaque;
    int ret;

    if (qatomic_read(&t->slow)) {
        return -ENOTSUP;
    }
    ret = bdrv_co_pwrite_zeroes(bs->file, offset, bytes,
                                flags | BDRV_REQ_NO_FALLBACK);
    if (ret == -ENOTSUP && bytes >= DISK_TARGET_CLUSTER) {
        qatomic_set(&t->slow, true);
        qatomic_and(&bs->supported_zero_flags, ~BDRV_REQ_MAY_UNMAP);
    }
    return ret;
}

static int coroutine_fn GRAPH_RDLOCK
disk_target_zero(BlockDriverState *bs, int64_t offset, int64_t bytes,
                 BdrvRequestFlags flags)
{
    DiskTarget *t = bs->opaque;
    int ret = disk_target_zero_fast(bs, offset, bytes, flags);
    int64_t done = 0;

    if (ret == -ENOTSUP) {
        ret = 0;
        while (ret == 0 && done < bytes) {
            int64_t len = MIN(bytes - done, DISK_TARGET_CLUSTER);

            ret = bdrv_co_pwrite_zeroes(bs->file, offset + done, len, flags);
            done += len;
        }
    }
    if (ret == 0 && disk_target_covers_chunks(t, offset, bytes)) {
        disk_target_set_zeroed(t, offset, bytes);
    }
    return ret;
}

/*
 * Returns: length of the first part of the range that disk_target_zero_fast()
 *     accepts
 */
static int64_t disk_target_clip_zero(int64_t offset, int64_t bytes)
{
    int64_t head = offset % DISK_TARGET_CLUSTER;

    if (head) {
        return MIN(bytes, DISK_TARGET_CLUSTER - head);
    }
    return QEMU_ALIGN_DOWN(bytes, DISK_TARGET_CLUSTER) ?: bytes;
}

static int coroutine_fn GRAPH_RDLOCK
disk_target_co_pwrite_zeroes(BlockDriverState *bs, int64_t offset,
                             int64_t bytes, BdrvRequestFlags flags)
{
    DiskTarget *t = bs->opaque;

    disk_target_advertise_unmap(bs, t);
    while (bytes) {
        bool maybe_data;
        int64_t run = disk_target_run(t, offset, bytes, &maybe_data);

        if (maybe_data) {
            int ret;

            run = disk_target_clip_zero(offset, run);
            ret = disk_target_zero(bs, offset, run, flags);
            if (ret < 0) {
                return ret;
            }
        }
        offset += run;
        bytes -= run;
    }
    return 0;
}

static int coroutine_fn GRAPH_RDLOCK
disk_target_write(BlockDriverState *bs, int64_t offset, int64_t bytes,
                  QEMUIOVector *qiov, size_t qiov_offset,
                  BdrvRequestFlags flags)
{
    disk_target_set_maybe_data(bs->opaque, offset, bytes);
    return bdrv_co_pwritev_part(bs->file, offset, bytes, qiov, qiov_offset,
                                flags);
}

/* Write data that consists of zeroes */
static int coroutine_fn GRAPH_RDLOCK
disk_target_write_detected(BlockDriverState *bs, int64_t offset, int64_t bytes,
                           QEMUIOVector *qiov, size_t qiov_offset,
                           BdrvRequestFlags flags)
{
    DiskTarget *t = bs->opaque;
    bool unmap = t->def->detect_zeroes == BLOCKDEV_DETECT_ZEROES_OPTIONS_UNMAP;
    bool maybe_data;
    int64_t run = disk_target_run(t, offset, bytes, &maybe_data);

    if ((run < bytes || maybe_data) &&
        !disk_target_covers_chunks(t, offset, bytes)) {
        return disk_target_write(bs, offset, bytes, qiov, qiov_offset, flags);
    }
    if (!qatomic_read(&t->slow)) {
        /* The mirror has spent credit for these bytes */
        shared_limit_give_back(migration_limit(), bytes);
    }
    return disk_target_co_pwrite_zeroes(bs, offset, bytes, flags |
                                        (unmap ? BDRV_REQ_MAY_UNMAP : 0));
}

typedef struct DiskTargetPart {
    AioTask task;
    BlockDriverState *bs;
    int64_t offset, bytes;
    QEMUIOVector *qiov;
    size_t qiov_offset;
    BdrvRequestFlags flags;
    bool zeroes;
} DiskTargetPart;

/*
 * The graph is locked: disk_target_co_pwritev_part() holds the lock until this
 * coroutine has ended.
 */
static int coroutine_fn GRAPH_RDLOCK disk_target_part(const DiskTargetPart *p)
{
    return p->zeroes ?
        disk_target_write_detected(p->bs, p->offset, p->bytes, p->qiov,
                                   p->qiov_offset, p->flags) :
        disk_target_write(p->bs, p->offset, p->bytes, p->qiov, p->qiov_offset,
                          p->flags);
}

static int coroutine_fn GRAPH_RDLOCK disk_target_task(AioTask *task)
{
    return disk_target_part(container_of(task, DiskTargetPart, task));
}

/*
 * Set @p to the first part of @whole whose chunks all are zeroes, or of which
 * none is
 */
static void disk_target_first_part(const DiskTargetPart *whole,
                                   DiskTargetPart *p)
{
    int64_t run = disk_target_clip(whole->offset, whole->bytes);

    *p = *whole;
    p->zeroes = qemu_iovec_is_zero(p->qiov, p->qiov_offset, run);
    while (run < whole->bytes) {
        int64_t clip = disk_target_clip(whole->offset + run,
                                        whole->bytes - run);

        if (qemu_iovec_is_zero(p->qiov, p->qiov_offset + run, clip) !=
            p->zeroes) {
            break;
        }
        run += clip;
    }
    p->bytes = run;
}

/* Write the parts that are zeroes, and those that are not, in parallel */
static int coroutine_fn GRAPH_RDLOCK
disk_target_write_parts(DiskTargetPart *rest)
{
    AioTaskPool *pool = NULL;
    int ret;

    for (;;) {
        DiskTargetPart part;

        disk_target_first_part(rest, &part);
        if (part.bytes == rest->bytes) {
            ret = disk_target_part(&part);
            break;
        }
        if (!pool) {
            pool = aio_task_pool_new(DISK_TARGET_TASKS);
        }
        part.task.func = disk_target_task;
        /* The pool frees it */
        aio_task_pool_start_task(pool, g_memdup2(&part, sizeof(part)));
        rest->offset += part.bytes;
        rest->qiov_offset += part.bytes;
        rest->bytes -= part.bytes;
    }
    if (pool) {
        aio_task_pool_wait_all(pool);
        ret = aio_task_pool_status(pool) ?: ret;
        aio_task_pool_free(pool);
    }
    return ret;
}

static int coroutine_fn GRAPH_RDLOCK
disk_target_co_pwritev_part(BlockDriverState *bs, int64_t offset,
                            int64_t bytes, QEMUIOVector *qiov,
                            size_t qiov_offset, BdrvRequestFlags flags)
{
    DiskTarget *t = bs->opaque;
    DiskTargetPart whole = {
        .bs = bs,
        .offset = offset,
        .bytes = bytes,
        .qiov = qiov,
        .qiov_offset = qiov_offset,
        .flags = flags,
    };

    disk_target_advertise_unmap(bs, t);
    return t->detect ? disk_target_write_parts(&whole) :
                       disk_target_part(&whole);
}

static int coroutine_fn GRAPH_RDLOCK
disk_target_co_pdiscard(BlockDriverState *bs, int64_t offset, int64_t bytes)
{
    DiskTarget *t = bs->opaque;
    bool maybe_data;
    int64_t run = disk_target_run(t, offset, bytes, &maybe_data);

    disk_target_advertise_unmap(bs, t);
    if (run == bytes && !maybe_data) {
        return 0;
    }
    disk_target_set_maybe_data(t, offset, bytes);
    return bdrv_co_pdiscard(bs->file, offset, bytes);
}

static int coroutine_fn GRAPH_RDLOCK
disk_target_co_preadv_part(BlockDriverState *bs, int64_t offset, int64_t bytes,
                           QEMUIOVector *qiov, size_t qiov_offset,
                           BdrvRequestFlags flags)
{
    return bdrv_co_preadv_part(bs->file, offset, bytes, qiov, qiov_offset,
                               flags);
}

/* --- the node --- */

static void disk_target_close(BlockDriverState *bs)
{
    DiskTarget *t = bs->opaque;

    if (t->maybe_data) {
        bdrv_release_dirty_bitmap(t->maybe_data);
    }
}

static BlockDriver bdrv_disk_target = {
    .format_name            = "migration-target",
    .instance_size          = sizeof(DiskTarget),
    .is_filter              = true,
    .bdrv_close             = disk_target_close,
    .bdrv_child_perm        = bdrv_default_perms,
    .bdrv_co_preadv_part    = disk_target_co_preadv_part,
    .bdrv_co_pwritev_part   = disk_target_co_pwritev_part,
    .bdrv_co_pwrite_zeroes  = disk_target_co_pwrite_zeroes,
    .bdrv_co_pdiscard       = disk_target_co_pdiscard,
};

static bool disk_target_attach(BlockDriverState *bs, BlockDriverState *nbd,
                               Error **errp)
{
    BdrvChild *child;

    bdrv_ref(nbd);
    bdrv_graph_wrlock();
    child = bdrv_attach_child(bs, nbd, "file", &child_of_bds,
                              BDRV_CHILD_FILTERED | BDRV_CHILD_PRIMARY, errp);
    bdrv_graph_wrunlock();
    if (!child) {
        return false;
    }
    bdrv_graph_rdlock_main_loop();
    bdrv_refresh_limits(bs, NULL, NULL);
    bdrv_graph_rdunlock_main_loop();
    return true;
}

/* Not every request changes the bitmap, so the block layer must not do that. */
static bool disk_target_track(BlockDriverState *bs, DiskTarget *t, Error **errp)
{
    t->maybe_data = bdrv_create_dirty_bitmap(bs, DISK_TARGET_CHUNK, NULL, errp);
    if (!t->maybe_data) {
        return false;
    }
    bdrv_disable_dirty_bitmap(t->maybe_data);
    disk_target_set_maybe_data(t, 0, t->bytes);
    return true;
}

BlockDriverState *disk_target_new(const MigrationDiskChannel *def,
                                  BlockDriverState *nbd, Error **errp)
{
    BlockDriverState *bs = bdrv_new_open_driver(&bdrv_disk_target, NULL,
                                                BDRV_O_RDWR | BDRV_O_UNMAP,
                                                errp);
    DiskTarget *t;

    if (!bs) {
        return NULL;
    }
    t = bs->opaque;
    t->def = def;
    t->bytes = bdrv_getlength(nbd);
    t->detect = def->has_detect_zeroes &&
                def->detect_zeroes != BLOCKDEV_DETECT_ZEROES_OPTIONS_OFF;
    bs->total_sectors = t->bytes / BDRV_SECTOR_SIZE;
    bs->supported_write_flags = BDRV_REQ_WRITE_UNCHANGED |
                                (BDRV_REQ_FUA & nbd->supported_write_flags);
    bs->supported_zero_flags = BDRV_REQ_WRITE_UNCHANGED |
                               (BDRV_REQ_FUA & nbd->supported_zero_flags);
    if (!disk_target_track(bs, t, errp) || !disk_target_attach(bs, nbd, errp)) {
        bdrv_unref(bs);
        return NULL;
    }
    return bs;
}

/* --- is the image fresh? --- */

typedef struct DiskTargetProbe {
    BlockDriverState *bs;
    bool fresh;
    void (*done)(void *opaque);
    void *opaque;
} DiskTargetProbe;

static void disk_target_probed_bh(void *opaque)
{
    g_autofree DiskTargetProbe *p = opaque;
    DiskTarget *t = p->bs->opaque;

    trace_migration_disk_target_probed(t->def->disk, p->fresh);
    if (p->fresh) {
        t->detect |= !t->def->has_detect_zeroes;
        /* To zero all of it is cheap */
        disk_target_advertise_unmap(p->bs, t);
    }
    p->done(p->opaque);
}

static bool disk_target_probed_enough(unsigned probes, int64_t end)
{
    return probes == DISK_TARGET_PROBES_MAX ||
        (probes >= DISK_TARGET_PROBES_MIN &&
         qemu_clock_get_ms(QEMU_CLOCK_REALTIME) > end);
}

static void coroutine_fn disk_target_probe_co(void *opaque)
{
    DiskTargetProbe *p = opaque;
    DiskTarget *t = p->bs->opaque;
    int64_t end = qemu_clock_get_ms(QEMU_CLOCK_REALTIME) + DISK_TARGET_PROBE_MS;
    int64_t offset = 0, data = 0, ask = DISK_TARGET_PROBE_BYTES;
    unsigned probes = 0;

    bdrv_clear_dirty_bitmap(t->maybe_data, NULL);
    /* With sync=top, zeroes may be what hides the contents of a backing file */
    p->fresh = t->def->sync == MIGRATION_DISK_SYNC_FULL;
    while (p->fresh && offset < t->bytes) {
        int64_t bytes = 0;
        int ret;

        WITH_GRAPH_RDLOCK_GUARD() {
            ret = bdrv_co_block_status_above(p->bs->file->bs, NULL, offset,
                                             MIN(ask, t->bytes - offset),
                                             &bytes, NULL, NULL);
        }
        if (ret >= 0 && !(ret & BDRV_BLOCK_ZERO)) {
            disk_target_set_maybe_data(t, offset, bytes);
            data += bytes;
        }
        offset += bytes;
        ask = MIN(2 * ask, t->bytes);
        p->fresh = ret >= 0 && data <= DISK_TARGET_FRESH_DATA &&
            (offset >= t->bytes || !disk_target_probed_enough(++probes, end));
    }
    if (!p->fresh) {
        disk_target_set_maybe_data(t, 0, t->bytes);
    }
    aio_bh_schedule_oneshot(qemu_get_aio_context(), disk_target_probed_bh, p);
}

void disk_target_probe(BlockDriverState *bs, void (*done)(void *opaque),
                       void *opaque)
{
    DiskTargetProbe *p = g_new(DiskTargetProbe, 1);

    *p = (DiskTargetProbe) { .bs = bs, .done = done, .opaque = opaque };
    qemu_coroutine_enter(qemu_coroutine_create(disk_target_probe_co, p));
}
