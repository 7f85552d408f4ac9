/*
 * Migration: the copy of one disk, source side
 *
 * Owns the disk's stream, its NBD node with the filter above it, and its mirror
 * job.  Never changes the state of the migration.  The handshake, the mirror
 * and FIN_OK are reported as events; only disk_mirror_free() may block.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "block/aio-wait.h"
#include "block/block.h"
#include "block/block_int.h"
#include "block/dirty-bitmap.h"
#include "block/nbd-channel.h"
#include "qemu/main-loop.h"
#include "qemu/timer.h"
#include "disk-mirror.h"
#include "disk-target.h"
#include "mirror-job.h"
#include "mux/frame.h"
#include "trace.h"

#define DISK_MIRROR_POLL_MS 100
/* Polls until a mirror that has copied the whole disk is treated as ready */
#define DISK_MIRROR_POLLS 10

typedef enum DiskMirrorState {
    DISK_MIRROR_NEW,            /* nothing exists yet */
    DISK_MIRROR_HANDSHAKE,      /* stream open, NBD is being negotiated */
    DISK_MIRROR_CONNECTED,      /* there is an NBD node */
    DISK_MIRROR_PROBING,        /* the filter requests the block status */
    DISK_MIRROR_PROBED,         /* the block status is known */
    DISK_MIRROR_FIRST_PASS,     /* the mirror runs, the destination is behind */
    DISK_MIRROR_SYNCED,         /* the mirror copies what the guest writes */
    DISK_MIRROR_COMPLETING,     /* guest stopped, the mirror is being ended */
    DISK_MIRROR_DISCONNECTING,  /* mirror over, NBD is being closed */
    DISK_MIRROR_CLOSING,        /* NBD disconnected, waiting for FIN_OK */
    DISK_MIRROR_COMPLETED,      /* the destination has everything, on disk */
    DISK_MIRROR_FAILED,         /* ops->failed() was called */
} DiskMirrorState;

struct DiskMirror {
    unsigned refcount;      /* atomic: the owner's, one of each pending event */
    bool aborted;           /* ops->ending() is the only callback now */
    DiskMirrorState state;  /* atomic: read by other threads */

    const MigrationDiskChannel *def;    /* its stream's name is the job's */
    const DiskMirrorOps *ops;           /* NULL: the owner is gone */
    void *opaque;

    QIOChannelMux *ioc;
    BlockDriverState *bs;           /* what is copied */
    BlockDriverState *target;       /* the NBD node; changed with @lock held */
    BlockDriverState *filter;       /* above @target; the mirror writes to it */
    NBDMode mode;                   /* what was negotiated for @target */
    bool probing;                   /* disk_target_probe() is in progress */
    bool disconnecting;             /* @target is being closed */
    BdrvDirtyBitmap *bitmap;        /* writes since disk_mirror_complete() */
    QEMUTimer *ready_timer;         /* runs in the first pass */
    uint64_t first_pass;            /* bytes it had to copy; 0: not known */
    unsigned polls;                 /* since it has copied them */
    bool converged;                 /* atomic */
    int flush_ret;                  /* of the last disk_mirror_flush() */

    QemuMutex lock;                 /* protects @target, @job and @wait */
    MirrorJob *job;                 /* NULL: none */
    DiskWait wait;
    DiskWatch watch;                /* under @lock */

};

static DiskMirror *disk_mirror_ref(DiskMirror *d)
{
    qatomic_inc(&d->refcount);
    return d;
}

static void disk_mirror_unref(DiskMirror *d)
{
    if (qatomic_fetch_dec(&d->refcount) > 1) {
        return;
    }
    timer_free(d->ready_timer);
    qemu_mutex_destroy(&d->lock);
    g_free(d);
}

DiskMirror *disk_mirror_new(const MigrationDiskChannel *def,
                            const DiskMirrorOps *ops, void *opaque)
{
    DiskMirror *d = g_new0(DiskMirror, 1);

    d->refcount = 1;
    d->def = def;
    d->ops = ops;
    d->opaque = opaque;
    qemu_mutex_init(&d->lock);
    return d;
}

const char *disk_mirror_stream_name(DiskMirror *d)
{
    return d->def->stream;
}

BlockDriverState *disk_mirror_filter(DiskMirror *d)
{
    return d->filter;
}

QIOChannelMux *disk_mirror_stream(DiskMirror *d)
{
    return d->ioc;
}

static void disk_mirror_stream_changed(QIOChannelMux *ioc, void *opaque);

static void disk_mirror_set_state(DiskMirror *d, DiskMirrorState state)
{
    trace_migration_disk_mirror_state(d->def->disk, d->state, state);
    qatomic_set(&d->state, state);
}

/* Takes @err, what was seen of the failure; the stream may know the cause. */
static void disk_mirror_fail(DiskMirror *d, Error *err)
{
    g_autoptr(MuxFailure) failure = NULL;
    g_autoptr(Error) own = err;

    if (d->aborted || d->state == DISK_MIRROR_FAILED) {
        return;
    }
    disk_mirror_set_state(d, DISK_MIRROR_FAILED);
    failure = (d->ioc ? qio_channel_mux_get_failure(d->ioc) : NULL) ?:
        mux_failure_from_error(d->def->stream, own);
    d->ops->failed(d, failure, d->opaque);
}

static void disk_mirror_flush_failed(DiskMirror *d, int ret)
{
    Error *err = NULL;

    error_setg_errno(&err, -ret, "cannot flush the destination's disk");
    disk_mirror_fail(d, err);
}

/* --- the mirror job --- */

bool disk_mirror_ended(DiskMirror *d)
{
    return !d->job && !d->probing && !d->disconnecting;
}

/* The owner may have seen the end by itself, and be gone. */
static void disk_mirror_report_ending(DiskMirror *d)
{
    if (d->aborted && d->ops) {
        d->ops->ending(d, d->opaque);
    }
}

/* The mirror ended with a flush of the target; a FIN is in flight. */
static void disk_mirror_disconnected(void *opaque)
{
    DiskMirror *d = opaque;

    /* This closes the NBD node, too */
    bdrv_unref(g_steal_pointer(&d->filter));
    d->disconnecting = false;
    if (d->state == DISK_MIRROR_DISCONNECTING) {
        disk_mirror_set_state(d, DISK_MIRROR_CLOSING);
        disk_mirror_stream_changed(d->ioc, d);
    }
    disk_mirror_report_ending(d);
    disk_mirror_unref(d);
}

static BlockDriverState *disk_mirror_take_target(DiskMirror *d)
{
    QEMU_LOCK_GUARD(&d->lock);
    return g_steal_pointer(&d->target);
}

static MirrorJob *disk_mirror_take_job(DiskMirror *d)
{
    QEMU_LOCK_GUARD(&d->lock);
    return g_steal_pointer(&d->job);
}

static void disk_mirror_disconnect(DiskMirror *d)
{
    disk_mirror_set_state(d, DISK_MIRROR_DISCONNECTING);
    d->disconnecting = true;
    nbd_channel_close_node(disk_mirror_take_target(d), QIO_CHANNEL(d->ioc),
                           d->mode, disk_mirror_disconnected,
                           disk_mirror_ref(d));
}

/* Is there a mirror job, which has not ended by itself? */
static bool disk_mirror_has_job(DiskMirror *d)
{
    return d->job && !mirror_job_is_over(d->job);
}

/* Let go of all that @d holds.  Events may run meanwhile. */
static void disk_mirror_release(DiskMirror *d)
{
    disk_mirror_cancel(d);
    /* With the stream reset this does not wait for the peer */
    AIO_WAIT_WHILE_UNLOCKED(NULL, !disk_mirror_ended(d));
    bdrv_unref(g_steal_pointer(&d->filter));
    bdrv_unref(disk_mirror_take_target(d));
    if (d->bitmap) {
        bdrv_release_dirty_bitmap(d->bitmap);
    }
    if (d->bs) {
        bdrv_unref(d->bs);
    }
    if (d->ioc) {
        qio_channel_mux_set_changed(d->ioc, NULL, NULL);
        object_unref(OBJECT(d->ioc));
    }
}

static Error *disk_mirror_job_error(DiskMirror *d)
{
    return mirror_job_error(d->job, qatomic_read(&d->state) ==
                                    DISK_MIRROR_COMPLETING);
}

static void disk_mirror_job_ended(DiskMirror *d)
{
    Error *err = disk_mirror_job_error(d);

    mirror_job_free(disk_mirror_take_job(d));

    if (d->aborted) {
        error_free(err);
    } else if (err) {
        disk_mirror_fail(d, err);
    } else {
        disk_mirror_disconnect(d);
    }
}

static void disk_mirror_synced(DiskMirror *d)
{
    disk_mirror_set_state(d, DISK_MIRROR_SYNCED);
    d->ops->ready(d, d->opaque);
}

/*
 * Mirrors become READY only when idle; a busy guest may prevent that.  A mirror
 * that has copied as many bytes as there were at the start has copied the whole
 * disk: after another second, treat it as ready.
 */
static void disk_mirror_poll_ready(void *opaque)
{
    DiskMirror *d = opaque;
    uint64_t remaining, total;

    if (d->aborted || d->state != DISK_MIRROR_FIRST_PASS) {
        return;
    }
    disk_mirror_progress(d, &remaining, &total);
    if (!d->first_pass || total < d->first_pass) {
        /* The mirror has begun to copy, maybe after it wrote zeroes */
        d->first_pass = total;
    } else if (total - remaining >= d->first_pass &&
               d->polls++ == DISK_MIRROR_POLLS) {
        disk_mirror_synced(d);
        return;
    }
    timer_mod(d->ready_timer, qemu_clock_get_ms(QEMU_CLOCK_REALTIME) +
                       DISK_MIRROR_POLL_MS);
}

static void disk_mirror_job_event_bh(void *opaque)
{
    DiskMirror *d = opaque;

    if (d->job && mirror_job_is_finalized(d->job)) {
        disk_mirror_job_ended(d);
    } else if (d->job && mirror_job_has_failed(d->job)) {
        disk_mirror_fail(d, disk_mirror_job_error(d));
    } else if (d->job && !d->aborted && d->state == DISK_MIRROR_FIRST_PASS &&
               mirror_job_is_ready(d->job)) {
        disk_mirror_synced(d);
    }
    disk_mirror_report_ending(d);
    disk_mirror_unref(d);
}

/* MirrorJobNotify */
static void disk_mirror_job_event(void *opaque)
{
    aio_bh_schedule_oneshot(qemu_get_aio_context(), disk_mirror_job_event_bh,
                            disk_mirror_ref(opaque));
}

static bool disk_mirror_start_job(DiskMirror *d, Error **errp)
{
    MirrorJob *job = mirror_job_start(d->def, d->bs, d->filter,
                                      disk_mirror_job_event, d, errp);

    if (!job) {
        return false;
    }
    WITH_QEMU_LOCK_GUARD(&d->lock) {
        d->job = job;
    }
    d->ready_timer = timer_new_ms(QEMU_CLOCK_REALTIME,
                                  disk_mirror_poll_ready, d);
    disk_mirror_poll_ready(d);
    return true;
}

void disk_mirror_limit_changed(DiskMirror *d)
{
    if (disk_mirror_has_job(d)) {
        mirror_job_limit_changed(d->job);
    }
}

/* --- the connection --- */

static bool disk_mirror_check_export(DiskMirror *d, const NBDExportInfo *info,
                                     Error **errp)
{
    int64_t size = bdrv_getlength(d->bs);

    if (size < 0) {
        error_setg_errno(errp, -size, "cannot get the size of node '%s'",
                         d->def->node_name);
        return false;
    }
    if (info->size != size) {
        error_setg(errp, "the destination's image has %" PRIu64 " bytes, the "
                   "source's has %" PRId64, info->size, size);
        return false;
    }
    if (info->flags & NBD_FLAG_READ_ONLY) {
        error_setg(errp, "the destination's export is read-only");
        return false;
    }
    /* Otherwise, the NBD node reports success for each flush */
    if (!(info->flags & NBD_FLAG_SEND_FLUSH)) {
        error_setg(errp, "the destination's export does not support "
                   "NBD_CMD_FLUSH");
        return false;
    }
    return true;
}

static bool disk_mirror_open_target(DiskMirror *d, const NBDExportInfo *info,
                                    Error **errp)
{
    BlockDriverState *target = nbd_channel_open_node(QIO_CHANNEL(d->ioc), info,
                                                     NULL, errp);

    QEMU_LOCK_GUARD(&d->lock);
    d->mode = info->mode;
    d->target = target;
    disk_watch_init(&d->watch);
    return target;
}

static void disk_mirror_negotiated(void *opaque, const NBDExportInfo *info,
                                   const Error *err)
{
    DiskMirror *d = opaque;
    Error *local_err = NULL;

    if (d->aborted || d->state != DISK_MIRROR_HANDSHAKE) {
        goto out;
    }
    if (err) {
        /* Some texts quote the server */
        g_autofree char *text =
            mux_text_sanitize((const uint8_t *)error_get_pretty(err),
                              strlen(error_get_pretty(err)));

        error_setg(&local_err, "NBD handshake failed: %s", text);
        disk_mirror_fail(d, local_err);
        goto out;
    }
    if (!disk_mirror_check_export(d, info, &local_err) ||
        !disk_mirror_open_target(d, info, &local_err)) {
        disk_mirror_fail(d, local_err);
    } else if (d->state == DISK_MIRROR_HANDSHAKE) {
        /* To open the node polls: the stream might have failed meanwhile */
        disk_mirror_set_state(d, DISK_MIRROR_CONNECTED);
        d->ops->connected(d, d->opaque);
    }
out:
    disk_mirror_unref(d);
}

void disk_mirror_attach(DiskMirror *d)
{
    Error *err = NULL;

    if (d->state != DISK_MIRROR_CONNECTED) {
        return;
    }
    d->filter = disk_target_new(d->def, d->target, &err);
    if (!d->filter) {
        disk_mirror_fail(d, err);
    }
}

static void disk_mirror_probed(void *opaque)
{
    DiskMirror *d = opaque;

    d->probing = false;
    if (!d->aborted && d->state == DISK_MIRROR_PROBING) {
        disk_mirror_set_state(d, DISK_MIRROR_PROBED);
        d->ops->probed(d, d->opaque);
    }
    disk_mirror_report_ending(d);
    disk_mirror_unref(d);
}

void disk_mirror_probe(DiskMirror *d)
{
    if (d->aborted || d->state != DISK_MIRROR_CONNECTED) {
        return;
    }
    disk_mirror_set_state(d, DISK_MIRROR_PROBING);
    d->probing = true;
    disk_target_probe(d->filter, disk_mirror_probed, disk_mirror_ref(d));
}

void disk_mirror_begin(DiskMirror *d)
{
    Error *err = NULL;

    if (d->state != DISK_MIRROR_PROBED) {
        return;
    }
    disk_mirror_set_state(d, DISK_MIRROR_FIRST_PASS);
    if (!disk_mirror_start_job(d, &err)) {
        disk_mirror_fail(d, err);
    }
}

void disk_mirror_start(DiskMirror *d, MuxSession *session)
{
    g_autoptr(MuxFailure) failure = NULL;
    Error *err = NULL;

    d->bs = bdrv_lookup_bs(d->def->node_name, d->def->node_name, &err);
    if (!d->bs) {
        disk_mirror_fail(d, err);
        return;
    }
    bdrv_ref(d->bs);
    d->ioc = mux_session_open(session, d->def->stream, &failure);
    if (!d->ioc) {
        disk_mirror_set_state(d, DISK_MIRROR_FAILED);
        d->ops->failed(d, failure, d->opaque);
        return;
    }
    qio_channel_mux_set_changed(d->ioc, disk_mirror_stream_changed, d);
    disk_mirror_set_state(d, DISK_MIRROR_HANDSHAKE);
    nbd_channel_negotiate(QIO_CHANNEL(d->ioc), d->def->disk,
                          disk_mirror_negotiated, disk_mirror_ref(d));
}

static void disk_mirror_stream_changed(QIOChannelMux *ioc, void *opaque)
{
    DiskMirror *d = opaque;
    Error *err = NULL;

    if (d->aborted) {
        return;
    }
    if (d->state == DISK_MIRROR_CLOSING &&
        qio_channel_mux_fin_acked(d->ioc)) {
        disk_mirror_set_state(d, DISK_MIRROR_COMPLETED);
        qio_channel_mux_fin_ok(d->ioc);
        d->ops->completed(d, d->opaque);
    } else if (d->state != DISK_MIRROR_COMPLETED &&
               qio_channel_mux_state(d->ioc) == MUX_STREAM_RESET) {
        error_setg(&err, "the connection was closed");
        disk_mirror_fail(d, err);
    }
}

/* --- convergence --- */

void disk_mirror_converge(DiskMirror *d)
{
    if (d->state == DISK_MIRROR_SYNCED && disk_mirror_has_job(d)) {
        mirror_job_block_writes(d->job);
    }
}

bool disk_mirror_converged(DiskMirror *d)
{
    return qatomic_read(&d->converged);
}

static void disk_mirror_flushed_bh(void *opaque)
{
    DiskMirror *d = opaque;

    if (d->flush_ret < 0) {
        disk_mirror_flush_failed(d, d->flush_ret);
    } else if (!d->aborted && d->state == DISK_MIRROR_SYNCED) {
        qatomic_set(&d->converged, disk_mirror_has_job(d) &&
                                   mirror_job_writes_blocked(d->job));
        d->ops->flushed(d, d->opaque);
    }
    disk_mirror_unref(d);
}

static void coroutine_fn disk_mirror_flush_co(void *opaque)
{
    DiskMirror *d = opaque;

    WITH_GRAPH_RDLOCK_GUARD() {
        d->flush_ret = bdrv_co_flush(d->target);
    }
    aio_bh_schedule_oneshot(qemu_get_aio_context(), disk_mirror_flushed_bh, d);
}

void disk_mirror_flush(DiskMirror *d)
{
    Coroutine *co;

    if (d->state != DISK_MIRROR_SYNCED || !disk_mirror_has_job(d)) {
        return;
    }
    co = qemu_coroutine_create(disk_mirror_flush_co, disk_mirror_ref(d));
    /* Here, not in the node's AioContext, so that @target is in use at once */
    qemu_coroutine_enter(co);
}

void disk_mirror_progress(DiskMirror *d, uint64_t *remaining, uint64_t *total)
{
    *remaining = *total = 0;
    QEMU_LOCK_GUARD(&d->lock);
    if (d->job) {
        mirror_job_progress(d->job, remaining, total);
    }
}

/* --- requests without progress --- */

/* With d->lock held */
static bool disk_mirror_waits_for_source(DiskMirror *d)
{
    return d->job && qatomic_read(&d->state) == DISK_MIRROR_FIRST_PASS &&
           qatomic_read(&d->bs->in_flight);
}

DiskWait disk_mirror_watch(DiskMirror *d, const DiskWatchTime *t)
{
    QEMU_LOCK_GUARD(&d->lock);
    d->wait = (DiskWait) {};
    if (d->target) {
        d->wait = disk_watch_look(&d->watch, t, d->ioc, d->target,
                                  disk_mirror_waits_for_source(d));
    }
    return d->wait;
}

MuxFailure *disk_mirror_job_failure(DiskMirror *d)
{
    g_autoptr(Error) err = NULL;

    QEMU_LOCK_GUARD(&d->lock);
    if (d->job && mirror_job_is_ending(d->job)) {
        err = disk_mirror_job_error(d);
    }
    return err ? mux_failure_from_error(d->def->stream, err) : NULL;
}

DiskWait disk_mirror_wait(DiskMirror *d)
{
    QEMU_LOCK_GUARD(&d->lock);
    return d->wait;
}

/* --- the end --- */

void disk_mirror_complete(DiskMirror *d)
{
    Error *err = NULL;

    if (d->state != DISK_MIRROR_SYNCED || !disk_mirror_has_job(d)) {
        return;
    }
    disk_mirror_set_state(d, DISK_MIRROR_COMPLETING);
    d->bitmap = bdrv_create_dirty_bitmap(d->bs, BDRV_SECTOR_SIZE * 128, NULL,
                                         &err);
    if (!d->bitmap) {
        disk_mirror_fail(d, err);
        return;
    }
    mirror_job_complete(d->job);
}

/* What @d waits for that is the peer's business, NULL: nothing */
static const char *disk_mirror_awaited(DiskMirror *d)
{
    switch (qatomic_read(&d->state)) {
    case DISK_MIRROR_HANDSHAKE:
        return "the NBD handshake";
    case DISK_MIRROR_COMPLETING:
        return "the mirror job to end";
    case DISK_MIRROR_DISCONNECTING:
    case DISK_MIRROR_CLOSING:
        return "the destination to complete the disk";
    default:
        return NULL;
    }
}

MuxFailure *disk_mirror_late(DiskMirror *d, uint32_t ms)
{
    const char *awaited = disk_mirror_awaited(d);

    return awaited ? mux_failure_timeout(d->def->stream, ms, awaited) : NULL;
}

MuxFailure *disk_mirror_modified(DiskMirror *d)
{
    return d->bitmap && bdrv_get_dirty_count(d->bitmap) ?
        mux_failure_new(d->def->stream, MUX_CODE_ABORTED, "node '%s' was "
                        "written to after its copy was completed",
                        d->def->node_name) : NULL;
}

static void disk_mirror_pause(DiskMirror *d)
{
    QEMU_LOCK_GUARD(&d->lock);
    if (d->job) {
        mirror_job_pause(d->job);
    }
}

void disk_mirror_reset(DiskMirror *d, const MuxFailure *why)
{
    if (d->ioc && qatomic_read(&d->state) != DISK_MIRROR_COMPLETED) {
        /* First, so that the reset does not make the mirror fail */
        disk_mirror_pause(d);
        qio_channel_mux_abort(d->ioc, why);
    }
}

void disk_mirror_abort(DiskMirror *d, const MuxFailure *why)
{
    d->aborted = true;
    disk_mirror_reset(d, why);
}

bool disk_mirror_quiescent(DiskMirror *d)
{
    return !d->job || mirror_job_is_idle(d->job);
}

void disk_mirror_cancel(DiskMirror *d)
{
    if (d->job) {
        mirror_job_cancel(d->job);
    }
}

void disk_mirror_free(DiskMirror *d)
{
    disk_mirror_release(d);
    d->ops = NULL;
    disk_mirror_unref(d);
}
