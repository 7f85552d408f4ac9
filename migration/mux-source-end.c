/*
 * Migration over a multiplexed connection: how it ends at the source
 *
 * A failure is recorded once, sent to the destination, and ends whatever waits
 * for it.  Then the thread that is in charge finishes the migration: until
 * `precopy` the main loop, afterwards the migration thread.  The clean-up waits
 * until all mirrors have ended.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/lockable.h"
#include "qemu/main-loop.h"
#include "migration.h"
#include "migration-limit.h"
#include "mux-departure.h"
#include "mux-failure.h"
#include "mux-limits.h"
#include "mux-migration.h"
#include "mux-source.h"
#include "outgoing-connect.h"
#include "qemu-file.h"
#include "trace.h"

static bool mux_source_has_thread(MuxSource *m)
{
    return mux_link_phase(m->link) >= MIGRATION_PHASE_PRECOPY;
}

static MuxFailure *mux_source_unknown_failure(void)
{
    return mux_failure_new(NULL, MUX_CODE_ABORTED,
                           "the migration failed at the source");
}

static MuxFailure *mux_source_cancelled(void)
{
    return mux_failure_new(NULL, MUX_CODE_ABORTED,
                           "the migration was cancelled at the source");
}

/* Must precede disk_set_release(): see disk_mirror_abort(). */
static void mux_source_abort_disks(MuxSource *m)
{
    g_autoptr(MuxFailure) unknown = mux_source_unknown_failure();

    mux_switchover_stop(m);
    disk_set_abort(m->disks, mux_link_failure(m->link) ?: unknown);
}

/* --- finish --- */

/*
 * The migration has ended: streams that are not finished are reset, the mirrors
 * are gone.  The connection closes in the background.  Main loop.
 */
static void mux_source_cleanup(MuxSource *m)
{
    MigrationState *s = m->s;
    MuxLink *l = m->link;

    mux_link_unregister_yank(l);
    migration_cleanup(s);
    s->mux = NULL;
    mux_source_set_phase(m, MIGRATION_PHASE_DONE);
    /* What the disks may tell while the polls below wait for them is late */
    mux_link_settle(l);
    mux_session_detach(l->session);
    mux_source_abort_disks(m);
    s->mux_streams = mux_source_streams(m);
    disk_set_release(m->disks);
    migration_limit_lift();
    if (m->committed) {
        mux_departure_free(s->mux_departure);
        s->mux_departure = mux_departure_new(l->session,
                                             g_steal_pointer(&l->control));
    } else {
        mux_session_close(l->session, l->failure, MIGRATION_MUX_LINGER_MS);
        g_clear_pointer(&l->control, mux_control_free);
    }
    qio_channel_mux_set_changed(m->main, NULL, NULL);
    object_unref(OBJECT(m->main));
    mux_source_unref(m);
    if (s->state == MIGRATION_STATUS_FAILED) {
        migrate_generate_event(s->state);
    }
}

static void mux_source_cleanup_bh(void *opaque)
{
    MuxSource *m = opaque;

    if (!m->exiting && m->s->mux == m) {
        mux_source_abort_disks(m);
        if (disk_set_quiescent(m->disks) && mux_switchover_quiescent(m)) {
            disk_set_cancel(m->disks);
        }
        if (disk_set_ended(m->disks)) {
            mux_source_cleanup(m);
        }
    }
    mux_source_unref(m);
}

/*
 * Clean up once all mirrors have ended, which may have to wait for the source's
 * storage.  Not in a nested aio_poll(): this changes the block graph.
 */
void mux_source_continue_cleanup(MuxSource *m)
{
    if (m->ending) {
        aio_bh_schedule_oneshot(iohandler_get_aio_context(),
                                mux_source_cleanup_bh, mux_source_ref(m));
    }
}

static void mux_source_finish_bh(void *opaque)
{
    MuxSource *m = opaque;
    MigrationState *s = m->s;

    if (!m->exiting && s->mux == m &&
        s->state != MIGRATION_STATUS_CANCELLING) {
        migrate_set_state(&s->state, s->state, MIGRATION_STATUS_FAILED);
    }
    m->ending = true;
    mux_source_cleanup_bh(m);
}

/* --- failure --- */

/*
 * End what waits for the destination, and send it the cause.  The thread that
 * is in charge of the migration at this time finishes it.
 */
static void mux_source_abort(MuxSource *m)
{
    MuxLink *l = m->link;
    bool has_thread;

    WITH_QEMU_LOCK_GUARD(&l->lock) {
        if (!l->failure || m->aborted) {
            return;
        }
        m->aborted = true;
        m->step.late = NULL;
        has_thread = mux_source_has_thread(m);
    }
    trace_migration_mux_source_abort(MigrationPhase_str(mux_link_phase(l)),
                                     l->failure->text);
    /* Pauses the mirrors, before their streams fail */
    disk_set_reset(m->disks, l->failure);
    mux_link_reset_streams(l, l->failure);
    mux_switchover_wake(m);
    if (!has_thread) {
        /* Not in a nested aio_poll(): the finish changes the block graph */
        aio_bh_schedule_oneshot(iohandler_get_aio_context(),
                                mux_source_finish_bh, mux_source_ref(m));
    }
}

void mux_source_fail(MuxSource *m, const MuxFailure *failure)
{
    if (mux_link_record(m->link, failure)) {
        mux_failure_set(m->s, failure, mux_link_phase(m->link),
                        MIGRATION_SIDE_SOURCE);
        mux_source_abort(m);
    }
}

MuxFailure *mux_source_failed(MigrationState *s, const Error *err)
{
    MuxSource *m = s->mux;
    MuxFailure *failure;

    if (!m) {
        return mux_failure_from_error(NULL, err);
    }
    failure = s->state == MIGRATION_STATUS_CANCELLING ?
        mux_source_cancelled() : mux_session_find_failure(m->link->session) ?:
        mux_failure_from_error(NULL, err);
    if (!mux_link_record(m->link, failure) && mux_link_failure(m->link)) {
        mux_failure_free(failure);
        failure = mux_failure_copy(mux_link_failure(m->link));
    }
    mux_source_abort(m);
    return failure;
}

/* Unless it has succeeded, it has failed, even if no cause is known. */
static void mux_source_abort_failed(MuxSource *m)
{
    g_autoptr(MuxFailure) unknown = mux_source_unknown_failure();

    if (m->s->state != MIGRATION_STATUS_COMPLETED) {
        mux_link_record(m->link, unknown);
        mux_source_abort(m);
    }
}

bool migration_mux_cleanup(MigrationState *s)
{
    MuxSource *m = s->mux;

    if (!m) {
        return false;
    }
    mux_source_abort_failed(m);
    if (disk_set_ended(m->disks)) {
        mux_source_cleanup(m);
    } else {
        m->ending = true;
        mux_source_continue_cleanup(m);
    }
    return true;
}

bool mux_source_hold_failed(const MigrationStatus *status, MigrationStatus now)
{
    MigrationState *s = migrate_get_current();

    if (status != &s->state || !s->mux) {
        return false;
    }
    if (now != MIGRATION_STATUS_FAILED) {
        qatomic_set(&s->mux->shown, now);
    }
    return true;
}

MigrationStatus migration_mux_status(MigrationState *s)
{
    MigrationStatus status = qatomic_read(&s->state);

    return status == MIGRATION_STATUS_FAILED && s->mux ?
           qatomic_read(&s->mux->shown) : status;
}

/* --- cancellation --- */

/* Returns: false if no migration is in progress */
static bool mux_source_set_cancelling(MigrationState *s)
{
    MigrationStatus state;

    do {
        state = qatomic_read(&s->state);
        if (!migration_is_running()) {
            return false;
        }
        if (state == MIGRATION_STATUS_PRE_SWITCHOVER) {
            qemu_sem_post(&s->pause_sem);
        }
        migrate_set_state(&s->state, state, MIGRATION_STATUS_CANCELLING);
    } while (qatomic_read(&s->state) != MIGRATION_STATUS_CANCELLING);
    return true;
}

bool migration_mux_cancel(MigrationState *s)
{
    g_autoptr(MuxFailure) cancelled = mux_source_cancelled();

    /* The connection may be that of a postcopy migration that is resumed */
    if (!s->mux &&
        !(s->connecting && s->state == MIGRATION_STATUS_SETUP)) {
        return false;
    }
    if (!mux_source_set_cancelling(s)) {
        return true;
    }
    if (!s->mux) {
        outgoing_connect_cancel(s);
        return true;
    }
    mux_link_record(s->mux->link, cancelled);
    mux_source_abort(s->mux);
    WITH_QEMU_LOCK_GUARD(&s->qemu_file_lock) {
        if (s->to_dst_file) {
            qemu_file_shutdown(s->to_dst_file);
        }
    }
    return true;
}

/* --- the end --- */

/* migration_cleanup(), which would close them, will not run. */
static void mux_source_finish_channels(MuxSource *m)
{
    QEMU_LOCK_GUARD(&m->link->lock);
    for (guint i = 0; i < m->channels->len; i++) {
        QIOChannelMux *ioc = g_ptr_array_index(m->channels, i);

        qio_channel_shutdown(QIO_CHANNEL(ioc), QIO_CHANNEL_SHUTDOWN_WRITE,
                             NULL);
        qio_channel_mux_fin_ok(ioc);
    }
}

void mux_source_shutdown(MigrationState *s)
{
    MuxSource *m = s->mux;

    mux_departure_wait(g_steal_pointer(&s->mux_departure));
    if (!m) {
        return;
    }
    /*
     * The main loop does not run any more: release jobs and nodes.  Waiting
     * for the jobs may run migration_cleanup().
     */
    mux_source_ref(m);
    mux_session_detach(m->link->session);
    mux_source_abort_disks(m);
    disk_set_cancel(m->disks);
    disk_set_release(m->disks);
    if (m->link->control) {
        mux_control_finish(m->link->control);
    }
    if (m->committed) {
        mux_source_finish_channels(m);
    }
    mux_session_close_wait(m->link->session, mux_link_failure(m->link),
                           m->committed ? MIGRATION_MUX_DONE_MS :
                                          MIGRATION_MUX_LINGER_MS);
    if (s->mux == m && (m->ending || !mux_source_has_thread(m))) {
        /* The clean-up that is scheduled will not run. */
        mux_source_cleanup(m);
    }
    m->exiting = true;
    mux_source_unref(m);
}

