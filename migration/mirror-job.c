/*
 * Migration: the mirror job of one disk
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "qapi/qapi-commands-block-core.h"
#include "block/blockjob.h"
#include "qemu/job.h"
#include "migration-limit.h"
#include "mirror-job.h"

struct MirrorJob {
    Job *job;                       /* a reference */
    MirrorJobNotify *notify;
    void *opaque;
    bool paused;                    /* by mirror_job_pause(); job lock */
    bool cancelled;                 /* mirror_job_cancel() was called */
    bool finalized;                 /* the last event was seen; job lock */
    Notifier on_idle;
    Notifier on_ready;
    Notifier on_completed;
    Notifier on_cancelled;
};

/* --- start and end --- */

/*
 * The notifiers are called with the job lock held, on_idle and on_ready in any
 * thread.
 */
static void mirror_job_on_idle(Notifier *n, void *data)
{
    MirrorJob *j = container_of(n, MirrorJob, on_idle);
    Job *job = data;

    if (job->paused || job->ret < 0) {
        j->notify(j->opaque);
    }
}

static void mirror_job_on_ready(Notifier *n, void *data)
{
    MirrorJob *j = container_of(n, MirrorJob, on_ready);

    j->notify(j->opaque);
}

static void mirror_job_on_completed(Notifier *n, void *data)
{
    MirrorJob *j = container_of(n, MirrorJob, on_completed);

    j->finalized = true;
    j->notify(j->opaque);
}

static void mirror_job_on_cancelled(Notifier *n, void *data)
{
    MirrorJob *j = container_of(n, MirrorJob, on_cancelled);

    j->finalized = true;
    j->notify(j->opaque);
}

static MirrorJob *mirror_job_adopt(Job *job, MirrorJobNotify *notify,
                                   void *opaque)
{
    MirrorJob *j = g_new0(MirrorJob, 1);

    j->job = job;
    j->notify = notify;
    j->opaque = opaque;
    j->on_idle.notify = mirror_job_on_idle;
    j->on_ready.notify = mirror_job_on_ready;
    j->on_completed.notify = mirror_job_on_completed;
    j->on_cancelled.notify = mirror_job_on_cancelled;
    JOB_LOCK_GUARD();
    job_ref_locked(job);
    job->complete_refusal = "it is controlled by the running migration";
    /* To end, the first one would wait for the requests of the others */
    job->hold_failed = true;
    notifier_list_add(&job->on_idle, &j->on_idle);
    notifier_list_add(&job->on_ready, &j->on_ready);
    notifier_list_add(&job->on_finalize_completed, &j->on_completed);
    notifier_list_add(&job->on_finalize_cancelled, &j->on_cancelled);
    if (job_is_ready_locked(job)) {
        notify(opaque);
    }
    return j;
}

MirrorJob *mirror_job_start(const MigrationDiskChannel *def,
                            BlockDriverState *source, BlockDriverState *target,
                            MirrorJobNotify *notify, void *opaque,
                            Error **errp)
{
    ERRP_GUARD();
    BlockJob *job;

    qmp_blockdev_mirror(def->stream, bdrv_get_node_name(source),
                        bdrv_get_node_name(target), NULL,
                        def->sync == MIGRATION_DISK_SYNC_TOP ?
                        MIRROR_SYNC_MODE_TOP : MIRROR_SYNC_MODE_FULL,
                        false, 0, false, 0, false, 0,
                        true, BLOCKDEV_ON_ERROR_REPORT,
                        true, BLOCKDEV_ON_ERROR_REPORT, NULL,
                        true, MIRROR_COPY_MODE_BACKGROUND,
                        false, false, false, false, errp);
    if (*errp) {
        return NULL;
    }
    job = block_job_get(def->stream);
    if (!job) {
        error_setg(errp, "job '%s' ended immediately", def->stream);
        return NULL;
    }
    shared_limit_user_init(&job->share, migration_limit(), 1);
    return mirror_job_adopt(&job->job, notify, opaque);
}

void mirror_job_free(MirrorJob *j)
{
    WITH_JOB_LOCK_GUARD() {
        notifier_remove(&j->on_idle);
        notifier_remove(&j->on_ready);
        notifier_remove(&j->on_completed);
        notifier_remove(&j->on_cancelled);
        job_unref_locked(j->job);
    }
    g_free(j);
}

void mirror_job_complete(MirrorJob *j)
{
    JOB_LOCK_GUARD();
    /* A soft cancellation: the mirror drains, flushes and succeeds. */
    job_cancel_locked(j->job, false);
}

void mirror_job_pause(MirrorJob *j)
{
    JOB_LOCK_GUARD();
    if (!j->paused) {
        j->paused = true;
        job_pause_locked(j->job);
    }
}

void mirror_job_cancel(MirrorJob *j)
{
    if (j->cancelled || mirror_job_is_over(j)) {
        return;
    }
    j->cancelled = true;
    JOB_LOCK_GUARD();
    job_cancel_locked(j->job, true);
    if (j->paused) {
        job_resume_locked(j->job);
    }
}

/* --- control --- */

static BlockJob *mirror_job_block_job(MirrorJob *j)
{
    return container_of(j->job, BlockJob, job);
}

void mirror_job_limit_changed(MirrorJob *j)
{
    JOB_LOCK_GUARD();
    block_job_shared_limit_changed_locked(mirror_job_block_job(j));
}

void mirror_job_block_writes(MirrorJob *j)
{
    BlockJobChangeOptions opts = {
        .id = j->job->id,
        .type = JOB_TYPE_MIRROR,
        .u.mirror.copy_mode = MIRROR_COPY_MODE_WRITE_BLOCKING,
    };

    JOB_LOCK_GUARD();
    block_job_change_locked(mirror_job_block_job(j), &opts, &error_abort);
}

bool mirror_job_writes_blocked(MirrorJob *j)
{
    g_autoptr(BlockJobInfo) info = NULL;

    JOB_LOCK_GUARD();
    info = block_job_query_locked(mirror_job_block_job(j), NULL);
    return info && info->u.mirror.actively_synced;
}

void mirror_job_progress(MirrorJob *j, uint64_t *remaining, uint64_t *total)
{
    uint64_t current;

    progress_get_snapshot(&j->job->progress, &current, total);
    *remaining = *total - current;
}

/* --- queries --- */

bool mirror_job_is_ready(MirrorJob *j)
{
    return job_is_ready(j->job);
}

bool mirror_job_has_failed(MirrorJob *j)
{
    JOB_LOCK_GUARD();
    return j->job->ret < 0;
}

bool mirror_job_is_ending(MirrorJob *j)
{
    JOB_LOCK_GUARD();
    return j->job->ret < 0 || j->job->deferred_to_main_loop ||
           job_is_cancelled_locked(j->job);
}

bool mirror_job_is_idle(MirrorJob *j)
{
    JOB_LOCK_GUARD();
    /* A paused job that is busy has been resumed, but has not run yet */
    return (j->job->paused && !j->job->busy) ||
           job_is_completed_locked(j->job);
}

bool mirror_job_is_over(MirrorJob *j)
{
    JOB_LOCK_GUARD();
    return job_is_completed_locked(j->job);
}

bool mirror_job_is_finalized(MirrorJob *j)
{
    JOB_LOCK_GUARD();
    return j->finalized;
}

Error *mirror_job_error(MirrorJob *j, bool completing)
{
    Error *err = NULL;

    JOB_LOCK_GUARD();
    /* A READY mirror that is cancelled without force succeeds */
    if (job_is_cancelled_locked(j->job) ||
        (j->job->ret == 0 && !completing)) {
        error_setg(&err, "job '%s' was ended by a command",
                   j->job->id);
    } else if (j->job->ret < 0) {
        error_setg(&err, "mirror failed: %s",
                   j->job->err ? error_get_pretty(j->job->err) :
                                 strerror(-j->job->ret));
    }
    return err;
}
