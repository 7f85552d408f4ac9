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
#include "block/aio-wait.h"
#include "block/block.h"
#include "block/block_int.h"
#include "block/blockjob.h"
#include "block/dirty-bitmap.h"
#include "block/nbd-channel.h"
#include "qemu/job.h"
#include "qemu/main-loop.h"
#include "qemu/timer.h"
#include "disk-mirror.h"
#include "mux/frame.h"
#include "trace.h"

#define DISK_MIRROR_POLL_MS 100
/* Polls until a mirror that has copied the whole disk is treated as ready */
#define DISK_MIRROR_POLLS 10
/* A request that is unanswered for this time has PING sent */
#define DISK_MIRROR_PING_NS NANOSECONDS_PER_SECOND

typedef enum DiskMirrorState {
    DISK_MIRROR_NEW,            /* nothing exists yet */
    DISK_MIRROR_HANDSHAKE,      /* stream open, NBD is being negotiated */
    DISK_MIRROR_CONNECTED,      /* there is an NBD node */
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
    bool cancelled;         /* disk_mirror_cancel() was called */
    DiskMirrorState state;  /* atomic: read by other threads */

    const MigrationDiskChannel *def;    /* its stream's name is the job's */
    int64_t speed;
    const DiskMirrorOps *ops;           /* NULL: the owner is gone */
    void *opaque;

    QIOChannelMux *ioc;
    BlockDriverState *bs;           /* what is copied */
    BlockDriverState *target;       /* the NBD node; changed with @lock held */
    NBDMode mode;                   /* what was negotiated for it */
    bool disconnecting;             /* the node is being closed */
    BdrvDirtyBitmap *bitmap;        /* writes since disk_mirror_complete() */
    QEMUTimer *ready_timer;         /* runs in the first pass */
    uint64_t first_pass;            /* bytes it had to copy; 0: not known */
    unsigned polls;                 /* since it has copied them */
    bool converged;                 /* atomic */
    int flush_ret;                  /* of the last disk_mirror_flush() */

    QemuMutex lock;                 /* protects @target, @job and @wait */
    Job *job;                       /* holds a reference */
    bool paused;                    /* disk_mirror_reset() paused @job */
    DiskMirrorWait wait;
    /* Used by disk_mirror_watch(), under @lock; get_clock() times */
    uint64_t sent;                  /* bytes sent on the stream */
    int64_t sent_at;                /* @sent changed, or nothing was unsent */
    uint64_t received;              /* bytes */
    int64_t received_at;            /* @received changed */
    bool unread;                    /* there was input, and none was read */
    int64_t idle_since;             /* last not waiting for the source alone */

    bool job_ended;                 /* the last event was seen */
    Notifier on_idle;
    Notifier on_ready;
    Notifier on_completed;
    Notifier on_cancelled;
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

DiskMirror *disk_mirror_new(const MigrationDiskChannel *def, int64_t speed,
                            const DiskMirrorOps *ops, void *opaque)
{
    DiskMirror *d = g_new0(DiskMirror, 1);

    d->refcount = 1;
    d->def = def;
    d->speed = speed;
    d->ops = ops;
    d->opaque = opaque;
    qemu_mutex_init(&d->lock);
    return d;
}

const char *disk_mirror_name(DiskMirror *d)
{
    return d->def->disk;
}

const char *disk_mirror_stream_name(DiskMirror *d)
{
    return d->def->stream;
}

BlockDriverState *disk_mirror_target(DiskMirror *d)
{
    return d->target;
}

QIOChannelMux *disk_mirror_stream(DiskMirror *d)
{
    return d->ioc;
}

static void disk_mirror_set_state(DiskMirror *d, DiskMirrorState state)
{
    trace_migration_disk_mirror_state(d->def->disk, d->state, state);
    qatomic_set(&d->state, state);
}

/* Takes @err, what was seen of the failure; the stream may know the cause. */
static void disk_mirror_fail(DiskMirror *d, Error *err)
{
    g_autoptr(Error) own = err;
    g_autoptr(Error) cause = NULL;

    if (d->aborted || d->state == DISK_MIRROR_FAILED) {
        return;
    }
    disk_mirror_set_state(d, DISK_MIRROR_FAILED);
    cause = qio_channel_mux_get_error(d->ioc);
    if (!cause) {
        error_prepend(&own, "stream '%s': ", d->def->stream);
    }
    d->ops->failed(d, cause ?: own, d->opaque);
}

static void disk_mirror_flush_failed(DiskMirror *d, int ret)
{
    Error *err = NULL;

    error_setg_errno(&err, -ret, "cannot flush the destination's disk");
    disk_mirror_fail(d, err);
}

/* --- the mirror job --- */

static void disk_mirror_release_job(DiskMirror *d)
{
    Job *job = d->job;

    if (!job) {
        return;
    }
    WITH_QEMU_LOCK_GUARD(&d->lock) {
        d->job = NULL;
    }
    WITH_JOB_LOCK_GUARD() {
        notifier_remove(&d->on_idle);
        notifier_remove(&d->on_ready);
        notifier_remove(&d->on_completed);
        notifier_remove(&d->on_cancelled);
        job_unref_locked(job);
    }
}

bool disk_mirror_ended(DiskMirror *d)
{
    return !d->job && !d->disconnecting;
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

    d->disconnecting = false;
    if (d->state == DISK_MIRROR_DISCONNECTING) {
        disk_mirror_set_state(d, DISK_MIRROR_CLOSING);
        disk_mirror_stream_changed(d);
    }
    disk_mirror_report_ending(d);
    disk_mirror_unref(d);
}

static BlockDriverState *disk_mirror_take_target(DiskMirror *d)
{
    QEMU_LOCK_GUARD(&d->lock);
    return g_steal_pointer(&d->target);
}

static void disk_mirror_disconnect(DiskMirror *d)
{
    disk_mirror_set_state(d, DISK_MIRROR_DISCONNECTING);
    d->disconnecting = true;
    nbd_channel_close_node(disk_mirror_take_target(d), QIO_CHANNEL(d->ioc),
                           d->mode, disk_mirror_disconnected,
                           disk_mirror_ref(d));
}

/*
 * Is there no mirror, or has it ended by itself?  Then it may be in the middle
 * of its finalization (which polls), and must be left alone; its last event
 * follows.
 */
static bool disk_mirror_job_over(DiskMirror *d)
{
    JOB_LOCK_GUARD();
    return !d->job || job_is_completed_locked(d->job);
}

/* Let go of all that @d holds.  Events may run meanwhile. */
static void disk_mirror_release(DiskMirror *d)
{
    disk_mirror_cancel(d);
    /* With the stream reset this does not wait for the peer */
    AIO_WAIT_WHILE_UNLOCKED(NULL, !disk_mirror_ended(d));
    bdrv_unref(disk_mirror_take_target(d));
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

/* Why has the job ended?  Returns NULL if it was asked to, and succeeded. */
static Error *disk_mirror_job_error(DiskMirror *d)
{
    Error *err = NULL;

    JOB_LOCK_GUARD();
    /* A READY mirror that is cancelled without force succeeds */
    if (job_is_cancelled_locked(d->job) ||
        (d->job->ret == 0 &&
         qatomic_read(&d->state) != DISK_MIRROR_COMPLETING)) {
        error_setg(&err, "job '%s' was ended by someone other than the "
                   "migration", d->def->stream);
    } else if (d->job->ret < 0) {
        error_setg(&err, "mirror failed: %s",
                   d->job->err ? error_get_pretty(d->job->err) :
                                 strerror(-d->job->ret));
    }
    return err;
}

/* Such a job waits to be cancelled */
static bool disk_mirror_job_failed(DiskMirror *d)
{
    JOB_LOCK_GUARD();
    return d->job->ret < 0;
}

static void disk_mirror_job_ended(DiskMirror *d)
{
    Error *err = disk_mirror_job_error(d);

    disk_mirror_release_job(d);

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
 * The mirror is ready when there is nothing to copy and nothing on its way, for
 * once; a guest that always writes something may never let it be.  But when it
 * has copied as much as there was at first, it has been through the whole disk:
 * then it gets a little more time, and has to do as it is.
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
    } else if (total - remaining >= d->first_pass) {
        if (d->polls++ == DISK_MIRROR_POLLS) {
            disk_mirror_synced(d);
            return;
        }
    }
    timer_mod(d->ready_timer, qemu_clock_get_ms(QEMU_CLOCK_REALTIME) +
                       DISK_MIRROR_POLL_MS);
}

/* Deals with what the notifiers below have seen, outside the job lock. */
static void disk_mirror_job_event_bh(void *opaque)
{
    DiskMirror *d = opaque;

    if (d->job && d->job_ended) {
        disk_mirror_job_ended(d);
    } else if (d->job && disk_mirror_job_failed(d)) {
        disk_mirror_fail(d, disk_mirror_job_error(d));
    } else if (d->job && !d->aborted && d->state == DISK_MIRROR_FIRST_PASS &&
               job_is_ready(d->job)) {
        disk_mirror_synced(d);
    }
    disk_mirror_report_ending(d);
    disk_mirror_unref(d);
}

static void disk_mirror_schedule_job_event(DiskMirror *d)
{
    aio_bh_schedule_oneshot(qemu_get_aio_context(), disk_mirror_job_event_bh,
                            disk_mirror_ref(d));
}

/*
 * The notifiers are called with the job lock held, on_idle and on_ready in any
 * thread.
 */
static void disk_mirror_on_idle(Notifier *n, void *data)
{
    Job *job = data;

    if (job->paused || job->ret < 0) {
        disk_mirror_schedule_job_event(container_of(n, DiskMirror, on_idle));
    }
}

static void disk_mirror_on_ready(Notifier *n, void *data)
{
    disk_mirror_schedule_job_event(container_of(n, DiskMirror, on_ready));
}

static void disk_mirror_on_completed(Notifier *n, void *data)
{
    DiskMirror *d = container_of(n, DiskMirror, on_completed);

    d->job_ended = true;
    disk_mirror_schedule_job_event(d);
}

static void disk_mirror_on_cancelled(Notifier *n, void *data)
{
    DiskMirror *d = container_of(n, DiskMirror, on_cancelled);

    d->job_ended = true;
    disk_mirror_schedule_job_event(d);
}

static void disk_mirror_adopt_job(DiskMirror *d, Job *job)
{
    d->on_idle.notify = disk_mirror_on_idle;
    d->on_ready.notify = disk_mirror_on_ready;
    d->on_completed.notify = disk_mirror_on_completed;
    d->on_cancelled.notify = disk_mirror_on_cancelled;

    WITH_QEMU_LOCK_GUARD(&d->lock) {
        d->job = job;
    }
    WITH_JOB_LOCK_GUARD() {
        job_ref_locked(job);
        job->complete_refusal = "it is controlled by the running migration";
        /* To end, the first one would wait for the requests of the others */
        job->hold_failed = true;
        notifier_list_add(&job->on_idle, &d->on_idle);
        notifier_list_add(&job->on_ready, &d->on_ready);
        notifier_list_add(&job->on_finalize_completed, &d->on_completed);
        notifier_list_add(&job->on_finalize_cancelled, &d->on_cancelled);
        if (job_is_ready_locked(job)) {
            disk_mirror_schedule_job_event(d);
        }
    }
}

static bool disk_mirror_start_mirror(DiskMirror *d, Error **errp)
{
    ERRP_GUARD();
    BlockJob *job;

    qmp_blockdev_mirror(d->def->stream, bdrv_get_node_name(d->bs),
                        bdrv_get_node_name(d->target), NULL,
                        d->def->sync == MIGRATION_DISK_SYNC_TOP ?
                        MIRROR_SYNC_MODE_TOP : MIRROR_SYNC_MODE_FULL,
                        d->speed > 0, d->speed, false, 0, false, 0,
                        true, BLOCKDEV_ON_ERROR_REPORT,
                        true, BLOCKDEV_ON_ERROR_REPORT, NULL,
                        true, MIRROR_COPY_MODE_BACKGROUND,
                        false, false, false, false, errp);
    if (*errp) {
        return false;
    }
    job = block_job_get(d->def->stream);
    if (!job) {
        error_setg(errp, "mirror ended at once");
        return false;
    }
    disk_mirror_adopt_job(d, &job->job);
    d->ready_timer = timer_new_ms(QEMU_CLOCK_REALTIME,
                                  disk_mirror_poll_ready, d);
    disk_mirror_poll_ready(d);
    return true;
}

void disk_mirror_set_speed(DiskMirror *d, int64_t speed)
{
    d->speed = speed;
    if (!disk_mirror_job_over(d)) {
        WITH_JOB_LOCK_GUARD() {
            block_job_set_speed_locked(container_of(d->job, BlockJob, job),
                                       speed, &error_abort);
        }
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
    d->sent_at = d->received_at = d->idle_since = get_clock();
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

void disk_mirror_begin(DiskMirror *d)
{
    Error *err = NULL;

    if (d->state != DISK_MIRROR_CONNECTED) {
        return;
    }
    disk_mirror_set_state(d, DISK_MIRROR_FIRST_PASS);
    if (!disk_mirror_start_mirror(d, &err)) {
        disk_mirror_fail(d, err);
    }
}

bool disk_mirror_start(DiskMirror *d, MuxSession *session, Error **errp)
{
    d->bs = bdrv_lookup_bs(d->def->node_name, d->def->node_name, errp);
    if (!d->bs) {
        error_prepend(errp, "stream '%s': ", d->def->stream);
        return false;
    }
    bdrv_ref(d->bs);
    d->ioc = mux_session_open(session, d->def->stream, errp);
    if (!d->ioc) {
        return false;
    }
    disk_mirror_set_state(d, DISK_MIRROR_HANDSHAKE);
    nbd_channel_negotiate(QIO_CHANNEL(d->ioc), d->def->disk,
                          disk_mirror_negotiated, disk_mirror_ref(d));
    return true;
}

void disk_mirror_stream_changed(DiskMirror *d)
{
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
    BlockJobChangeOptions opts = {
        .id = d->def->stream,
        .type = JOB_TYPE_MIRROR,
        .u.mirror.copy_mode = MIRROR_COPY_MODE_WRITE_BLOCKING,
    };

    if (d->state != DISK_MIRROR_SYNCED || disk_mirror_job_over(d)) {
        return;
    }
    WITH_JOB_LOCK_GUARD() {
        block_job_change_locked(container_of(d->job, BlockJob, job), &opts,
                                &error_abort);
    }
}

/*
 * The mirror learns gradually what was written before writes began to wait;
 * until then its progress is not meaningful.
 */
static bool disk_mirror_actively_synced(DiskMirror *d)
{
    g_autoptr(BlockJobInfo) info = NULL;

    if (disk_mirror_job_over(d)) {
        return false;
    }
    WITH_JOB_LOCK_GUARD() {
        info = block_job_query_locked(container_of(d->job, BlockJob, job),
                                      NULL);
    }
    return info && info->u.mirror.actively_synced;
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
        qatomic_set(&d->converged, disk_mirror_actively_synced(d));
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

    if (d->state != DISK_MIRROR_SYNCED || disk_mirror_job_over(d)) {
        return;
    }
    co = qemu_coroutine_create(disk_mirror_flush_co, disk_mirror_ref(d));
    /* Here, not in the node's AioContext, so that @target is in use at once */
    qemu_coroutine_enter(co);
}

void disk_mirror_progress(DiskMirror *d, uint64_t *remaining, uint64_t *total)
{
    uint64_t current = 0;

    *total = 0;
    WITH_QEMU_LOCK_GUARD(&d->lock) {
        if (d->job) {
            progress_get_snapshot(&d->job->progress, &current, total);
        }
    }
    *remaining = *total - current;
}

/* --- requests without progress --- */

/* How long has a request from @since been waited for? */
static int64_t disk_mirror_waited(int64_t since, const DiskMirrorTime *t)
{
    if (since == INT64_MAX) {
        return 0;
    }
    since = MAX(since, t->resumed);
    if (t->blocked) {
        return t->now - MAX(since, t->responsive);
    }
    return MAX(t->heard - since, 0);
}

/* With d->lock held */
static void disk_mirror_watch_target(DiskMirror *d, const DiskMirrorTime *t)
{
    NBDChannelRequests requests;
    uint64_t sent, received;
    int64_t oldest;
    bool unread;

    qio_channel_mux_get_bytes(d->ioc, &sent, &received);
    nbd_channel_get_requests(d->target, &requests);
    /* Input that is being read without an end does not answer a request */
    unread = d->received == received && qio_channel_mux_has_input(d->ioc);
    /* Reading may have begun, and not have reached the oldest reply yet */
    d->wait.unread = unread || d->unread;
    d->unread = unread;
    if (d->received != received) {
        d->received = received;
        d->received_at = t->now;
    }
    if (!requests.sending || d->sent != sent) {
        d->sent = sent;
        d->sent_at = t->now;
    }
    oldest = MIN(requests.oldest, requests.sending ? d->sent_at : INT64_MAX);
    d->wait.destination = disk_mirror_waited(oldest, t);
    d->wait.flush = disk_mirror_waited(requests.oldest_flush, t);
    d->wait.silent = t->now - d->received_at;
    d->wait.ping = t->now - MIN(MIN(oldest, requests.oldest_flush), t->now) >=
                   DISK_MIRROR_PING_NS;
}

/* With d->lock held */
static void disk_mirror_watch_source(DiskMirror *d, int64_t now)
{
    if (!d->job || qatomic_read(&d->state) != DISK_MIRROR_FIRST_PASS ||
        !qatomic_read(&d->bs->in_flight) ||
        qatomic_read(&d->target->in_flight)) {
        d->idle_since = now;
    }
    d->wait.source = now - d->idle_since;
}

DiskMirrorWait disk_mirror_watch(DiskMirror *d, const DiskMirrorTime *t)
{
    QEMU_LOCK_GUARD(&d->lock);
    d->wait = (DiskMirrorWait) {};
    if (d->target) {
        disk_mirror_watch_target(d, t);
        disk_mirror_watch_source(d, t->now);
    }
    return d->wait;
}

static bool disk_mirror_job_is_ending(DiskMirror *d)
{
    JOB_LOCK_GUARD();
    return d->job->ret < 0 || d->job->deferred_to_main_loop ||
           job_is_cancelled_locked(d->job);
}

bool disk_mirror_check_mirror(DiskMirror *d, Error **errp)
{
    Error *err = NULL;

    QEMU_LOCK_GUARD(&d->lock);
    if (d->job && disk_mirror_job_is_ending(d)) {
        err = disk_mirror_job_error(d);
    }
    if (err) {
        error_prepend(&err, "stream '%s': ", d->def->stream);
        error_propagate(errp, err);
        return false;
    }
    return true;
}

DiskMirrorWait disk_mirror_wait(DiskMirror *d)
{
    QEMU_LOCK_GUARD(&d->lock);
    return d->wait;
}

/* --- the end --- */

void disk_mirror_complete(DiskMirror *d)
{
    Error *err = NULL;

    if (d->state != DISK_MIRROR_SYNCED || disk_mirror_job_over(d)) {
        return;
    }
    disk_mirror_set_state(d, DISK_MIRROR_COMPLETING);
    d->bitmap = bdrv_create_dirty_bitmap(d->bs, BDRV_SECTOR_SIZE * 128, NULL,
                                         &err);
    if (!d->bitmap) {
        disk_mirror_fail(d, err);
        return;
    }
    WITH_JOB_LOCK_GUARD() {
        /* A soft cancellation: the mirror drains, flushes and succeeds. */
        job_cancel_locked(d->job, false);
    }
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

bool disk_mirror_in_time(DiskMirror *d, uint32_t ms, Error **errp)
{
    const char *awaited = disk_mirror_awaited(d);

    if (awaited) {
        mux_stream_timed_out(d->def->stream, ms, awaited, errp);
    }
    return !awaited;
}

bool disk_mirror_unmodified(DiskMirror *d, Error **errp)
{
    if (d->bitmap && bdrv_get_dirty_count(d->bitmap)) {
        error_setg(errp, "stream '%s': node '%s' was written to after its copy "
                   "was completed", d->def->stream, d->def->node_name);
        return false;
    }
    return true;
}

static void disk_mirror_pause(DiskMirror *d)
{
    QEMU_LOCK_GUARD(&d->lock);
    if (d->job && !d->paused) {
        d->paused = true;
        WITH_JOB_LOCK_GUARD() {
            job_pause_locked(d->job);
        }
    }
}

void disk_mirror_reset(DiskMirror *d, const Error *why)
{
    if (d->ioc && qatomic_read(&d->state) != DISK_MIRROR_COMPLETED) {
        /* First, so that the reset does not make the mirror fail */
        disk_mirror_pause(d);
        qio_channel_mux_abort(d->ioc, why);
    }
}

void disk_mirror_abort(DiskMirror *d, const Error *why)
{
    d->aborted = true;
    disk_mirror_reset(d, why);
}

bool disk_mirror_quiescent(DiskMirror *d)
{
    JOB_LOCK_GUARD();
    /* A paused job that is busy has been resumed, but has not run yet */
    return !d->job || (d->job->paused && !d->job->busy) ||
           job_is_completed_locked(d->job);
}

void disk_mirror_cancel(DiskMirror *d)
{
    if (d->cancelled || disk_mirror_job_over(d)) {
        return;
    }
    d->cancelled = true;
    WITH_JOB_LOCK_GUARD() {
        job_cancel_locked(d->job, true);
        if (d->paused) {
            job_resume_locked(d->job);
        }
    }
}

void disk_mirror_free(DiskMirror *d)
{
    disk_mirror_release(d);
    d->ops = NULL;
    disk_mirror_unref(d);
}
