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
#include "disk-receive.h"
#include "trace.h"

struct DiskReceive {
    unsigned refcount;          /* the owner's, the export's, the flush's */
    bool freed;                 /* the owner let go: no callback any more */
    bool done;
    const MigrationDiskChannel *def;
    DiskReceiveFailed *failed;
    void *opaque;
    QIOChannelMux *ioc;
    NBDPrivateExport *export;   /* NULL again when it is gone */
    BlockDriverState *bs;       /* while it is being flushed */
    int flush_ret;
};

static void disk_receive_unref(DiskReceive *d)
{
    if (!--d->refcount) {
        g_free(d);
    }
}

DiskReceive *disk_receive_new(const MigrationDiskChannel *def,
                              DiskReceiveFailed *failed, void *opaque)
{
    DiskReceive *d = g_new0(DiskReceive, 1);

    d->refcount = 1;
    d->def = def;
    d->failed = failed;
    d->opaque = opaque;
    return d;
}

const MigrationDiskChannel *disk_receive_def(DiskReceive *d)
{
    return d->def;
}

QIOChannelMux *disk_receive_stream(DiskReceive *d)
{
    return d->ioc;
}

bool disk_receive_done(DiskReceive *d)
{
    return d->done;
}

/* Takes @err. */
static void disk_receive_fail(DiskReceive *d, Error *err)
{
    error_prepend(&err, "disk '%s': ", d->def->disk);
    qio_channel_mux_abort(d->ioc, err);
    d->failed(d, err, d->opaque);
    error_free(err);
}

/* --- the end: export closed, node flushed, FIN answered --- */

static void disk_receive_flushed_bh(void *opaque)
{
    DiskReceive *d = opaque;
    Error *err = NULL;

    bdrv_unref(g_steal_pointer(&d->bs));
    if (!d->freed && d->flush_ret < 0) {
        error_setg_errno(&err, -d->flush_ret, "cannot flush node '%s'",
                         d->def->node_name);
        disk_receive_fail(d, err);
    } else if (!d->freed) {
        trace_migration_disk_receive_done(d->def->disk);
        d->done = true;
        qio_channel_mux_fin_ok(d->ioc);
    }
    disk_receive_unref(d);
}

static void coroutine_fn disk_receive_flush_co(void *opaque)
{
    DiskReceive *d = opaque;

    WITH_GRAPH_RDLOCK_GUARD() {
        d->flush_ret = bdrv_co_flush(d->bs);
    }
    aio_bh_schedule_oneshot(qemu_get_aio_context(), disk_receive_flushed_bh, d);
}

static void disk_receive_flush(DiskReceive *d)
{
    const char *node_name = d->def->node_name;
    Error *err = NULL;
    Coroutine *co;

    d->bs = bdrv_lookup_bs(node_name, node_name, &err);
    if (!d->bs) {
        disk_receive_fail(d, err);
        return;
    }
    bdrv_ref(d->bs);
    d->refcount++;
    co = qemu_coroutine_create(disk_receive_flush_co, d);
    aio_co_enter(bdrv_get_aio_context(d->bs), co);
}

static void disk_receive_export_closed(void *opaque, const Error *why)
{
    DiskReceive *d = opaque;
    const char *text = why ? error_get_pretty(why) : "";
    Error *err = NULL;

    trace_migration_disk_receive_export_closed(d->def->disk, text);
    d->export = NULL;
    if (!d->freed && why) {
        err = qio_channel_mux_get_error(d->ioc) ?: error_copy(why);
        disk_receive_fail(d, err);
    } else if (!d->freed) {
        disk_receive_flush(d);
    }
    disk_receive_unref(d);
}

/* --- the beginning --- */

bool disk_receive_accept(DiskReceive *d, QIOChannelMux *ioc, Error **errp)
{
    if (d->ioc) {
        error_setg(errp, "disk '%s' is sent twice", d->def->disk);
        return false;
    }
    d->export = nbd_export_private(d->def->node_name, d->def->disk,
                                   QIO_CHANNEL(ioc),
                                   disk_receive_export_closed, d, errp);
    if (!d->export) {
        error_prepend(errp, "disk '%s': ", d->def->disk);
        return false;
    }
    d->refcount++;
    d->ioc = ioc;
    object_ref(OBJECT(ioc));
    qio_channel_mux_accept(ioc);
    return true;
}

void disk_receive_free(DiskReceive *d, const Error *why)
{
    d->freed = true;
    if (d->ioc && !d->done) {
        qio_channel_mux_abort(d->ioc, why);
    }
    if (d->export) {
        nbd_export_private_close(d->export);
    }
    if (d->ioc) {
        object_unref(OBJECT(d->ioc));
    }
    disk_receive_unref(d);
}
