/*
 * Migration: the copy of one disk, source side
 *
 * Owns the disk's stream, its NBD node and its mirror job.  Never touches the
 * state of the migration, and never blocks: what has to be waited for (the
 * handshake, the mirror, the peer's last acknowledgement) comes as an event.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "qapi/qapi-commands-block-core.h"
#include "block/block.h"
#include "block/block_int.h"
#include "block/blockjob.h"
#include "block/dirty-bitmap.h"
#include "block/nbd-channel.h"
#include "qemu/job.h"
#include "qemu/main-loop.h"
#include "disk-copy.h"
#include "trace.h"

typedef enum DiskCopyState {
    DISK_COPY_NEW,          /* nothing exists yet */
    DISK_COPY_HANDSHAKE,    /* stream open, NBD is being negotiated */
    DISK_COPY_FIRST_PASS,   /* the mirror runs, the destination is behind */
    DISK_COPY_IN_STEP,      /* the mirror is ready */
    DISK_COPY_COMPLETING,   /* guest stopped, the mirror is being ended */
    DISK_COPY_CLOSING,      /* NBD disconnected, waiting for FIN_OK */
    DISK_COPY_COMPLETED,    /* the destination has everything, on disk */
    DISK_COPY_FAILED,       /* ops->failed() was called; nothing else comes */
} DiskCopyState;

struct DiskCopy {
    unsigned refcount;      /* atomic: the owner's, one of each pending event */
    bool freed;             /* the owner let go: no callback any more */
    bool starting;          /* events may run while node and job are made */
    DiskCopyState state;

    char *disk;
    char *id;               /* nbd-<disk>: the stream's and the job's name */
    char *node_name;
    MigrationDiskSync sync;
    int64_t speed;
    const DiskCopyOps *ops;
    void *opaque;

    QIOChannelMux *ioc;
    BlockDriverState *bs;           /* what is copied */
    BlockDriverState *target;       /* the NBD node */
    BdrvDirtyBitmap *bitmap;        /* writes since disk_copy_complete() */
    bool converged;                 /* atomic */

    QemuMutex job_lock;             /* protects @job against other threads */
    Job *job;                       /* holds a reference */
    bool job_ended;                 /* the last event was seen */
    Notifier on_ready;
    Notifier on_completed;
    Notifier on_cancelled;
};

static DiskCopy *disk_copy_ref(DiskCopy *d)
{
    qatomic_inc(&d->refcount);
    return d;
}

static void disk_copy_unref(DiskCopy *d)
{
    if (qatomic_fetch_dec(&d->refcount) > 1) {
        return;
    }
    qemu_mutex_destroy(&d->job_lock);
    g_free(d->disk);
    g_free(d->id);
    g_free(d->node_name);
    g_free(d);
}

DiskCopy *disk_copy_new(const char *disk, const char *node_name,
                        MigrationDiskSync sync, int64_t speed,
                        const DiskCopyOps *ops, void *opaque)
{
    DiskCopy *d = g_new0(DiskCopy, 1);

    d->refcount = 1;
    d->disk = g_strdup(disk);
    d->id = g_strdup_printf("nbd-%s", disk);
    d->node_name = g_strdup(node_name);
    d->sync = sync;
    d->speed = speed;
    d->ops = ops;
    d->opaque = opaque;
    qemu_mutex_init(&d->job_lock);
    return d;
}

QIOChannelMux *disk_copy_stream(DiskCopy *d)
{
    return d->ioc;
}

static void disk_copy_set_state(DiskCopy *d, DiskCopyState state)
{
    trace_migration_disk_copy_state(d->disk, d->state, state);
    d->state = state;
}

/* Takes @err. */
static void disk_copy_fail(DiskCopy *d, Error *err)
{
    g_autoptr(Error) own = err;
    g_autoptr(Error) stream_err = NULL;

    if (d->freed || d->state == DISK_COPY_FAILED) {
        return;
    }
    disk_copy_set_state(d, DISK_COPY_FAILED);
    error_prepend(&own, "disk '%s': ", d->disk);
    stream_err = qio_channel_mux_get_error(d->ioc);
    if (stream_err && !strstr(error_get_pretty(own),
                              error_get_pretty(stream_err))) {
        Error *both = NULL;

        error_setg(&both, "%s: %s", error_get_pretty(own),
                   error_get_pretty(stream_err));
        error_free(own);
        own = both;
    }
    d->ops->failed(d, own, d->opaque);
}

/* --- the mirror job --- */

/* Let go of the job; it is over, or @d does not care any more. */
static void disk_copy_release_job(DiskCopy *d)
{
    Job *job = d->job;

    if (!job) {
        return;
    }
    WITH_QEMU_LOCK_GUARD(&d->job_lock) {
        d->job = NULL;
    }
    WITH_JOB_LOCK_GUARD() {
        notifier_remove(&d->on_ready);
        notifier_remove(&d->on_completed);
        notifier_remove(&d->on_cancelled);
        job_unref_locked(job);
    }
}

/* Closes the NBD node: NBD_CMD_DISC, then a FIN on the stream. */
static void disk_copy_release_target(DiskCopy *d)
{
    BlockDriverState *target = g_steal_pointer(&d->target);

    if (target) {
        nbd_channel_close_node(target, QIO_CHANNEL(d->ioc));
    }
}

/*
 * Has the mirror come to an end of its own?  Then it may be halfway through its
 * finalization (which polls), and must be left alone; its last event follows.
 */
static bool disk_copy_job_over(DiskCopy *d)
{
    JOB_LOCK_GUARD();
    return job_is_completed_locked(d->job);
}

/* Let go of all that @d holds; ends the job.  Events may run meanwhile. */
static void disk_copy_release(DiskCopy *d)
{
    if (d->job) {
        Job *job = d->job;
        bool over = disk_copy_job_over(d);

        WITH_JOB_LOCK_GUARD() {
            job_ref_locked(job);
        }
        disk_copy_release_job(d);
        if (!over) {
            job_cancel_sync(job, true);
        }
        WITH_JOB_LOCK_GUARD() {
            job_unref_locked(job);
        }
    }
    disk_copy_release_target(d);
    if (d->bitmap) {
        bdrv_release_dirty_bitmap(d->bitmap);
    }
    if (d->bs) {
        bdrv_unref(d->bs);
    }
    if (d->ioc) {
        object_unref(OBJECT(d->ioc));
    }
}

static void disk_copy_job_ended(DiskCopy *d)
{
    Error *err = NULL;

    WITH_JOB_LOCK_GUARD() {
        if (d->job->ret < 0) {
            error_setg(&err, "mirror failed: %s",
                       d->job->err ? error_get_pretty(d->job->err) :
                                     strerror(-d->job->ret));
        }
    }
    disk_copy_release_job(d);

    if (err) {
        disk_copy_fail(d, err);
    } else if (d->state != DISK_COPY_COMPLETING) {
        error_setg(&err, "job '%s' was ended by someone other than the "
                   "migration", d->id);
        disk_copy_fail(d, err);
    } else {
        disk_copy_set_state(d, DISK_COPY_CLOSING);
        disk_copy_release_target(d);
        disk_copy_stream_changed(d);
    }
}

/* Deals with what the notifiers below have seen, outside the job lock. */
static void disk_copy_job_event_bh(void *opaque)
{
    DiskCopy *d = opaque;

    if (!d->freed && d->job) {
        if (d->job_ended) {
            disk_copy_job_ended(d);
        } else if (d->state == DISK_COPY_FIRST_PASS) {
            disk_copy_set_state(d, DISK_COPY_IN_STEP);
            d->ops->ready(d, d->opaque);
        }
    }
    disk_copy_unref(d);
}

static void disk_copy_schedule_job_event(DiskCopy *d)
{
    aio_bh_schedule_oneshot(qemu_get_aio_context(), disk_copy_job_event_bh,
                            disk_copy_ref(d));
}

/* The notifiers are called with the job lock held, on_ready in any thread. */
static void disk_copy_on_ready(Notifier *n, void *data)
{
    disk_copy_schedule_job_event(container_of(n, DiskCopy, on_ready));
}

static void disk_copy_on_completed(Notifier *n, void *data)
{
    DiskCopy *d = container_of(n, DiskCopy, on_completed);

    d->job_ended = true;
    disk_copy_schedule_job_event(d);
}

static void disk_copy_on_cancelled(Notifier *n, void *data)
{
    DiskCopy *d = container_of(n, DiskCopy, on_cancelled);

    d->job_ended = true;
    disk_copy_schedule_job_event(d);
}

static void disk_copy_adopt_job(DiskCopy *d, Job *job)
{
    d->on_ready.notify = disk_copy_on_ready;
    d->on_completed.notify = disk_copy_on_completed;
    d->on_cancelled.notify = disk_copy_on_cancelled;

    WITH_QEMU_LOCK_GUARD(&d->job_lock) {
        d->job = job;
    }
    WITH_JOB_LOCK_GUARD() {
        job_ref_locked(job);
        job->complete_refusal = "the migration that started it will end it";
        notifier_list_add(&job->on_ready, &d->on_ready);
        notifier_list_add(&job->on_finalize_completed, &d->on_completed);
        notifier_list_add(&job->on_finalize_cancelled, &d->on_cancelled);
        if (job_is_ready_locked(job)) {
            disk_copy_schedule_job_event(d);
        }
    }
}

static bool disk_copy_start_mirror(DiskCopy *d, Error **errp)
{
    ERRP_GUARD();
    BlockJob *job;

    qmp_blockdev_mirror(d->id, bdrv_get_node_name(d->bs),
                        bdrv_get_node_name(d->target), NULL,
                        d->sync == MIGRATION_DISK_SYNC_TOP ?
                        MIRROR_SYNC_MODE_TOP : MIRROR_SYNC_MODE_FULL,
                        d->speed > 0, d->speed, false, 0, false, 0,
                        true, BLOCKDEV_ON_ERROR_REPORT,
                        true, BLOCKDEV_ON_ERROR_REPORT, NULL,
                        true, MIRROR_COPY_MODE_BACKGROUND,
                        false, false, false, false, errp);
    if (*errp) {
        return false;
    }
    job = block_job_get(d->id);
    if (!job) {
        error_setg(errp, "mirror ended at once");
        return false;
    }
    disk_copy_adopt_job(d, &job->job);
    return true;
}

/* --- the connection --- */

static bool disk_copy_check_size(DiskCopy *d, const NBDExportInfo *info,
                                 Error **errp)
{
    int64_t size = bdrv_getlength(d->bs);

    if (size < 0) {
        error_setg_errno(errp, -size, "cannot get the size of node '%s'",
                         d->node_name);
        return false;
    }
    if (info->size < size) {
        error_setg(errp, "the destination's image is too small: it has "
                   "%" PRIu64 " bytes, the source's has %" PRId64,
                   info->size, size);
        return false;
    }
    return true;
}

static bool disk_copy_open_target(DiskCopy *d, const NBDExportInfo *info,
                                  Error **errp)
{
    d->target = nbd_channel_open_node(QIO_CHANNEL(d->ioc), info, NULL, errp);
    return d->target;
}

static void disk_copy_negotiated(void *opaque, const NBDExportInfo *info,
                                 const Error *err)
{
    DiskCopy *d = opaque;
    Error *local_err = NULL;

    if (d->freed || d->state != DISK_COPY_HANDSHAKE) {
        goto out;
    }
    if (err) {
        error_setg(&local_err, "NBD handshake failed: %s",
                   error_get_pretty(err));
        disk_copy_fail(d, local_err);
        goto out;
    }
    d->starting = true;
    disk_copy_set_state(d, DISK_COPY_FIRST_PASS);
    if (!disk_copy_check_size(d, info, &local_err) ||
        !disk_copy_open_target(d, info, &local_err) ||
        !disk_copy_start_mirror(d, &local_err)) {
        disk_copy_fail(d, local_err);
    }
    d->starting = false;
    if (d->freed) {
        disk_copy_release(d);
    }
out:
    disk_copy_unref(d);
}

bool disk_copy_start(DiskCopy *d, MuxSession *session, Error **errp)
{
    d->bs = bdrv_lookup_bs(d->node_name, d->node_name, errp);
    if (!d->bs) {
        return false;
    }
    bdrv_ref(d->bs);
    d->ioc = mux_session_open(session, d->id, errp);
    if (!d->ioc) {
        return false;
    }
    disk_copy_set_state(d, DISK_COPY_HANDSHAKE);
    nbd_channel_negotiate(QIO_CHANNEL(d->ioc), d->disk, disk_copy_negotiated,
                          disk_copy_ref(d));
    return true;
}

void disk_copy_stream_changed(DiskCopy *d)
{
    Error *err = NULL;

    if (d->freed) {
        return;
    }
    if (d->state == DISK_COPY_CLOSING &&
        qio_channel_mux_fin_acked(d->ioc)) {
        disk_copy_set_state(d, DISK_COPY_COMPLETED);
        qio_channel_mux_fin_ok(d->ioc);
        d->ops->completed(d, d->opaque);
    } else if (d->state != DISK_COPY_COMPLETED &&
               qio_channel_mux_state(d->ioc) == MUX_STREAM_RESET) {
        err = qio_channel_mux_get_error(d->ioc);
        if (!err) {
            error_setg(&err, "stream '%s' was aborted", d->id);
        }
        disk_copy_fail(d, err);
    }
}

/* --- convergence --- */

static void disk_copy_flushed_bh(void *opaque)
{
    DiskCopy *d = opaque;

    qatomic_set(&d->converged, true);
    disk_copy_unref(d);
}

static void coroutine_fn disk_copy_flush_co(void *opaque)
{
    DiskCopy *d = opaque;

    WITH_GRAPH_RDLOCK_GUARD() {
        /* An error shows again in the mirror, which reports it. */
        bdrv_co_flush(d->target);
    }
    aio_bh_schedule_oneshot(qemu_get_aio_context(), disk_copy_flushed_bh, d);
}

void disk_copy_converge(DiskCopy *d)
{
    BlockJobChangeOptions opts = {
        .id = d->id,
        .type = JOB_TYPE_MIRROR,
        .u.mirror.copy_mode = MIRROR_COPY_MODE_WRITE_BLOCKING,
    };
    Coroutine *co;

    if (d->state != DISK_COPY_IN_STEP || disk_copy_job_over(d)) {
        return;
    }
    WITH_JOB_LOCK_GUARD() {
        block_job_change_locked(container_of(d->job, BlockJob, job), &opts,
                                &error_abort);
    }
    co = qemu_coroutine_create(disk_copy_flush_co, disk_copy_ref(d));
    /* Here, not in the node's AioContext, so that @target is in use at once */
    qemu_coroutine_enter(co);
}

bool disk_copy_converged(DiskCopy *d)
{
    return qatomic_read(&d->converged);
}

void disk_copy_progress(DiskCopy *d, uint64_t *remaining, uint64_t *total)
{
    uint64_t current = 0;

    *total = 0;
    WITH_QEMU_LOCK_GUARD(&d->job_lock) {
        if (d->job) {
            progress_get_snapshot(&d->job->progress, &current, total);
        }
    }
    *remaining = *total - current;
}

/* --- the end --- */

void disk_copy_complete(DiskCopy *d)
{
    Error *err = NULL;

    if (d->state != DISK_COPY_IN_STEP || disk_copy_job_over(d)) {
        return;
    }
    disk_copy_set_state(d, DISK_COPY_COMPLETING);
    d->bitmap = bdrv_create_dirty_bitmap(d->bs, BDRV_SECTOR_SIZE * 128, NULL,
                                         &err);
    if (!d->bitmap) {
        disk_copy_fail(d, err);
        return;
    }
    WITH_JOB_LOCK_GUARD() {
        /* A soft cancellation: the mirror drains, flushes and succeeds. */
        job_cancel_locked(d->job, false);
    }
}

bool disk_copy_untouched(DiskCopy *d, Error **errp)
{
    if (d->bitmap && bdrv_get_dirty_count(d->bitmap)) {
        error_setg(errp, "disk '%s': node '%s' was written to after its copy "
                   "was completed", d->disk, d->node_name);
        return false;
    }
    return true;
}

void disk_copy_free(DiskCopy *d, const Error *why)
{
    d->freed = true;
    if (d->ioc && d->state != DISK_COPY_COMPLETED) {
        qio_channel_mux_abort(d->ioc, why);
    }
    /* Else the stream's end makes disk_copy_negotiated() get to it soon. */
    if (!d->starting) {
        disk_copy_release(d);
    }
    disk_copy_unref(d);
}
