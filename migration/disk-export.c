/*
 * Migration: one disk as it arrives, destination side
 *
 * Owns the disk's private export.  Nothing here waits: the end of the export
 * and the flush come as events.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "block/block.h"
#include "block/nbd-channel.h"
#include "qemu/main-loop.h"
#include "system/block-backend.h"
#include "disk-export.h"
#include "trace.h"

struct DiskExport {
    unsigned refcount;          /* the owner's, the export's, the flush's */
    bool freed;                 /* the owner let go: no callback any more */
    bool done;
    bool lost;                  /* ops->failed() was called */
    const MigrationDiskChannel *def;
    const DiskExportOps *ops;
    void *opaque;
    QIOChannelMux *ioc;
    NBDPrivateExport *export;   /* NULL again when it is gone */
    BlockBackend *blk;          /* while it is being flushed */
    int flush_ret;
    QEMUTimer *end_timer;       /* NULL before the end, or without a limit */
    uint32_t end_ms;
};

static void disk_export_unref(DiskExport *d)
{
    if (!--d->refcount) {
        timer_free(d->end_timer);
        g_free(d);
    }
}

DiskExport *disk_export_new(const MigrationDiskChannel *def,
                            const DiskExportOps *ops, void *opaque)
{
    DiskExport *d = g_new0(DiskExport, 1);

    d->refcount = 1;
    d->def = def;
    d->ops = ops;
    d->opaque = opaque;
    return d;
}

const MigrationDiskChannel *disk_export_def(DiskExport *d)
{
    return d->def;
}

QIOChannelMux *disk_export_stream(DiskExport *d)
{
    return d->ioc;
}

bool disk_export_done(DiskExport *d)
{
    return d->done;
}

/* @own: what was seen of the failure; the stream may know the cause. */
static void disk_export_fail(DiskExport *d, const MuxFailure *own)
{
    g_autoptr(MuxFailure) known = NULL;

    if (d->freed || d->lost) {
        return;
    }
    d->lost = true;
    known = qio_channel_mux_get_failure(d->ioc);
    if (!known) {
        qio_channel_mux_abort(d->ioc, own);
    }
    d->ops->failed(d, known ?: own, d->opaque);
}

/* Takes @err. */
static void disk_export_error(DiskExport *d, Error *err)
{
    g_autoptr(MuxFailure) failure = mux_failure_from_error(d->def->stream, err);

    error_free(err);
    disk_export_fail(d, failure);
}

/* --- the end: export closed, node flushed, FIN answered --- */

static void disk_export_flushed_bh(void *opaque)
{
    DiskExport *d = opaque;
    Error *err = NULL;

    blk_unref(g_steal_pointer(&d->blk));
    if (d->flush_ret < 0) {
        error_setg_errno(&err, -d->flush_ret, "cannot flush node '%s'",
                         d->def->node_name);
        disk_export_error(d, err);
    } else if (!d->freed && !d->lost) {
        trace_migration_disk_export_done(d->def->disk);
        d->done = true;
        if (d->end_timer) {
            timer_del(d->end_timer);
        }
        qio_channel_mux_fin_ok(d->ioc);
    }
    disk_export_unref(d);
}

static void coroutine_fn disk_export_flush_co(void *opaque)
{
    DiskExport *d = opaque;

    d->flush_ret = blk_co_flush(d->blk);
    aio_bh_schedule_oneshot(qemu_get_aio_context(), disk_export_flushed_bh, d);
}

static void disk_export_flush(DiskExport *d)
{
    const char *node_name = d->def->node_name;
    BlockDriverState *bs;
    Error *err = NULL;
    Coroutine *co;

    bs = bdrv_lookup_bs(node_name, node_name, &err);
    if (bs) {
        /* A node flushes those below only if it has a writer. */
        d->blk = blk_new_with_bs(bs, BLK_PERM_WRITE, BLK_PERM_ALL, &err);
    }
    if (!d->blk) {
        disk_export_error(d, err);
        return;
    }
    d->refcount++;
    co = qemu_coroutine_create(disk_export_flush_co, d);
    aio_co_enter(bdrv_get_aio_context(bs), co);
}

static void disk_export_closed(void *opaque, const Error *why)
{
    DiskExport *d = opaque;
    const char *text = why ? error_get_pretty(why) : "";

    trace_migration_disk_export_closed(d->def->disk, text);
    d->export = NULL;
    if (why) {
        disk_export_error(d, error_copy(why));
    } else if (!d->freed && !d->lost) {
        disk_export_flush(d);
    }
    disk_export_unref(d);
}

static void disk_export_end_timeout(void *opaque)
{
    DiskExport *d = opaque;
    g_autoptr(MuxFailure) late =
        mux_failure_timeout(d->def->stream, d->end_ms, d->export ?
                            "the source's requests in flight" :
                            "the last flush of the disk");

    disk_export_fail(d, late);
}

void disk_export_end(DiskExport *d, uint32_t ms)
{
    if (d->done || d->lost || d->end_timer || !ms) {
        return;
    }
    d->end_ms = ms;
    /* In the AioContext: the main loop may be waiting for a hanging request */
    d->end_timer = aio_timer_new(qemu_get_aio_context(), QEMU_CLOCK_REALTIME,
                                 SCALE_MS, disk_export_end_timeout, d);
    timer_mod(d->end_timer, qemu_clock_get_ms(QEMU_CLOCK_REALTIME) + ms);
}

/* --- the beginning --- */

static void disk_export_stream_changed(QIOChannelMux *ioc, void *opaque)
{
    DiskExport *d = opaque;
    g_autoptr(MuxFailure) failure = NULL;

    if (d->freed || d->lost) {
        return;
    }
    switch (qio_channel_mux_state(ioc)) {
    case MUX_STREAM_RESET:
        /* None: the connection was closed without a reason */
        failure = qio_channel_mux_get_failure(ioc);
        if (failure) {
            d->lost = true;
            d->ops->failed(d, failure, d->opaque);
        }
        break;
    case MUX_STREAM_FINISHING:
        d->ops->finishing(d, d->opaque);
        break;
    default:
        break;
    }
}

bool disk_export_accept(DiskExport *d, QIOChannelMux *ioc, Error **errp)
{
    if (d->ioc) {
        error_setg(errp, "stream is already open");
        return false;
    }
    d->refcount++;
    d->export = nbd_export_private(d->def->node_name, d->def->disk,
                                   QIO_CHANNEL(ioc),
                                   disk_export_closed, d, errp);
    if (!d->export) {
        disk_export_unref(d);
        return false;
    }
    if (d->freed) {
        /* To activate the node polls: meanwhile another disk has failed. */
        nbd_export_private_close(d->export);
        error_setg(errp, "the migration failed at the destination");
        return false;
    }
    d->ioc = ioc;
    object_ref(OBJECT(ioc));
    qio_channel_mux_set_changed(ioc, disk_export_stream_changed, d);
    qio_channel_mux_accept(ioc);
    return true;
}

void disk_export_free(DiskExport *d, const MuxFailure *why)
{
    d->freed = true;
    if (d->end_timer) {
        timer_del(d->end_timer);
    }
    if (d->ioc && !d->done) {
        qio_channel_mux_abort(d->ioc, why);
    }
    if (d->export) {
        nbd_export_private_close(d->export);
    }
    if (d->ioc) {
        qio_channel_mux_set_changed(d->ioc, NULL, NULL);
        object_unref(OBJECT(d->ioc));
    }
    disk_export_unref(d);
}
