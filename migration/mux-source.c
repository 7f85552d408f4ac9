/*
 * Migration over a multiplexed connection: the source's order of things
 *
 * Owns the session, the stream `main` and the copies of the disks from the
 * connection to the end of the migration, and decides when each may go on:
 *
 *   connect     HELLO, the list of what is to be migrated accepted by the
 *               destination
 *   disks       every disk is copied for the first time
 *   precopy     the migration thread sends RAM; mirrors copy what is written
 *   converge    RAM is nearly copied; the guest's writes wait for the mirrors
 *   switchover  guest stopped, disks completed, device state sent; in the end
 *               the destination has it all, and is given the guest
 *   done        the connection is being closed
 *
 * Until `precopy` there is no migration thread: the session's and the disks'
 * callbacks drive this file from the main loop, and a failure is finished
 * here.  From then on a failure cuts the stream `main` off, which ends the
 * migration thread, and that ends the migration.  What the migration thread
 * asks for on its way is in mux-switchover.c.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "qemu/main-loop.h"
#include "qemu/timer.h"
#include "qemu/yank.h"
#include "channel-args.h"
#include "migration.h"
#include "mux-departure.h"
#include "mux-migration.h"
#include "mux-offer.h"
#include "mux-source.h"
#include "mux-stream-info.h"
#include "options.h"
#include "qemu-file.h"
#include "trace.h"

/* How long the destination may take for each step of the set-up */
#define MUX_SOURCE_SETUP_MS 30000

bool migration_mux_source(MigrationState *s)
{
    return s->channels && s->channels->mux;
}

bool migration_mux_source_phase(MigrationState *s, MigrationPhase *phase)
{
    if (!migration_mux_source(s)) {
        return false;
    }
    *phase = s->mux ? qatomic_read(&s->mux->phase) : MIGRATION_PHASE_CONNECT;
    return true;
}

void mux_source_set_phase(MuxSource *m, MigrationPhase phase)
{
    trace_migration_mux_source_phase(MigrationPhase_str(m->phase),
                                     MigrationPhase_str(phase));
    qatomic_set(&m->phase, phase);
}

void mux_source_say_phase(MuxSource *m)
{
    MigrationControl message = { .type = MIGRATION_CONTROL_TYPE_PHASE };

    if (!mux_control_knows(m->control, "phase") ||
        !mux_control_knows(m->control, "phase.phase")) {
        return;
    }
    message.u.phase.phase = (char *)MigrationPhase_str(m->phase);
    /* If the stream has failed, its reader says so */
    mux_control_send(m->control, &message, NULL);
}

const Error *mux_source_cause(MuxSource *m)
{
    QEMU_LOCK_GUARD(&m->lock);
    return m->cause;
}

bool mux_source_over(MuxSource *m)
{
    QEMU_LOCK_GUARD(&m->lock);
    return m->ended || m->cause;
}

static bool mux_source_has_thread(MuxSource *m)
{
    return m->phase >= MIGRATION_PHASE_PRECOPY;
}

MuxSource *mux_source_ref(MuxSource *m)
{
    qatomic_inc(&m->refcount);
    return m;
}

void mux_source_unref(MuxSource *m)
{
    if (qatomic_fetch_dec(&m->refcount) > 1) {
        return;
    }
    timer_free(m->setup_timer);
    mux_switchover_destroy(m);
    qemu_mutex_destroy(&m->lock);
    disk_set_free(m->disks);
    g_ptr_array_unref(m->channels);
    error_free(m->cause);
    g_free(m);
}

/* --- failure --- */

/* Must precede disk_set_release(): see disk_mirror_abort(). */
static void mux_source_abort_disks(MuxSource *m)
{
    g_autoptr(Error) unknown = NULL;

    error_setg(&unknown, "the migration failed at the source");
    mux_switchover_stop(m);
    disk_set_abort(m->disks, m->cause ?: unknown);
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
            migration_cleanup(m->s);
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

bool migration_mux_defer_cleanup(MigrationState *s)
{
    if (!s->mux || disk_set_ended(s->mux->disks)) {
        return false;
    }
    migration_mux_ending(s);
    s->mux->ending = true;
    mux_source_continue_cleanup(s->mux);
    return true;
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

/*
 * Abort because of @cause, which is sent to the destination.  The thread that
 * is in charge of the migration at this time finishes it.
 */
static void mux_source_abort(MuxSource *m, const Error *cause)
{
    bool has_thread;

    WITH_QEMU_LOCK_GUARD(&m->lock) {
        if (m->committed || m->cause || m->ended) {
            return;
        }
        m->cause = error_copy(cause);
        has_thread = mux_source_has_thread(m);
    }
    trace_migration_mux_source_abort(MigrationPhase_str(m->phase),
                                     error_get_pretty(cause));
    qio_channel_mux_abort(m->main, cause);
    /* Now, so that nothing waits for the destination any more */
    disk_set_reset(m->disks, cause);
    WITH_QEMU_LOCK_GUARD(&m->lock) {
        for (guint i = 0; i < m->channels->len; i++) {
            qio_channel_mux_abort(g_ptr_array_index(m->channels, i), cause);
        }
    }
    mux_switchover_wake(m);
    if (!has_thread) {
        /* Not in a nested aio_poll(): the finish changes the block graph */
        aio_bh_schedule_oneshot(iohandler_get_aio_context(),
                                mux_source_finish_bh, mux_source_ref(m));
    }
}

void mux_source_fail(MuxSource *m, const Error *err)
{
    if (!m->committed && !mux_source_over(m)) {
        migrate_set_error(m->s, err);
    }
    mux_source_abort(m, err);
}

void migration_mux_cancel(MigrationState *s)
{
    MuxSource *m = s->mux;
    g_autoptr(Error) cause = NULL;

    if (m) {
        error_setg(&cause, "the migration was cancelled at the source");
        mux_source_abort(m, cause);
    }
}

/* --- what the peer has to accept --- */

uint32_t migration_mux_setup_ms(void)
{
    uint32_t silence = migrate_channel_mux_timeout();

    return silence ? MIN(silence, MUX_SOURCE_SETUP_MS)
                   : MUX_SOURCE_SETUP_MS;
}

static bool mux_source_set_up_in_time(MuxSource *m, Error **errp)
{
    uint32_t ms = migration_mux_setup_ms();

    if (m->phase == MIGRATION_PHASE_CONNECT) {
        mux_stream_timed_out("main", ms, "the destination to accept it", errp);
        return false;
    }
    return disk_set_in_time(m->disks, ms, errp);
}

static void mux_source_setup_timeout(void *opaque)
{
    MuxSource *m = opaque;
    g_autoptr(Error) err = NULL;

    if (m->phase <= MIGRATION_PHASE_DISKS &&
        !mux_source_set_up_in_time(m, &err)) {
        mux_source_fail(m, err);
    }
}

static void mux_source_start_setup_timer(MuxSource *m)
{
    timer_mod(m->setup_timer, qemu_clock_get_ms(QEMU_CLOCK_REALTIME) +
                              migration_mux_setup_ms());
}

/* --- the disks --- */

/* For what a BH does next, some time after it was scheduled */
static bool mux_source_goes_on(MuxSource *m)
{
    return !m->exiting && m->s->mux == m && !mux_source_over(m);
}

/* Not in a nested aio_poll(), where a handshake may have ended */
static void mux_source_begin_disks_bh(void *opaque)
{
    MuxSource *m = opaque;

    if (mux_source_goes_on(m)) {
        disk_set_begin(m->disks);
    }
    mux_source_unref(m);
}

static void mux_source_disks_connected(void *opaque)
{
    MuxSource *m = opaque;

    if (!mux_source_over(m)) {
        aio_bh_schedule_oneshot(iohandler_get_aio_context(),
                                mux_source_begin_disks_bh,
                                mux_source_ref(m));
    }
}

/* From now on, unless it has failed, the thread ends the migration. */
static bool mux_source_enter_precopy(MuxSource *m)
{
    QEMU_LOCK_GUARD(&m->lock);
    if (m->cause || m->ended) {
        return false;
    }
    mux_source_set_phase(m, MIGRATION_PHASE_PRECOPY);
    return true;
}

static void mux_source_precopy_bh(void *opaque)
{
    MuxSource *m = opaque;

    if (mux_source_goes_on(m) && mux_source_enter_precopy(m)) {
        mux_source_say_phase(m);
        mux_switchover_begin_setup(m);
        migration_connect(m->s, NULL);
    }
    mux_source_unref(m);
}

/* All disks were copied once: start the migration thread */
static void mux_source_start_precopy(MuxSource *m)
{
    /* Not in a nested aio_poll(), which may be where a mirror gets ready */
    aio_bh_schedule_oneshot(iohandler_get_aio_context(),
                            mux_source_precopy_bh, mux_source_ref(m));
}

static void mux_source_disks_ready(void *opaque)
{
    MuxSource *m = opaque;

    if (!mux_source_over(m)) {
        mux_source_start_precopy(m);
    }
}

static void mux_source_disk_failed(const Error *err, void *opaque)
{
    mux_source_fail(opaque, err);
}

static void mux_source_disk_ending(void *opaque)
{
    mux_source_continue_cleanup(opaque);
}

static const DiskSetOps mux_source_disk_ops = {
    .connected = mux_source_disks_connected,
    .ready = mux_source_disks_ready,
    .completed = mux_switchover_disks_completed,
    .flushed = mux_switchover_disk_flushed,
    .failed = mux_source_disk_failed,
    .ending = mux_source_disk_ending,
};

/* The disks share the limit that the user set for the migration; 0: none. */
static int64_t mux_source_disk_speed(void)
{
    return MIN(migrate_max_bandwidth(), INT64_MAX);
}

void migration_mux_bandwidth_changed(MigrationState *s)
{
    if (s->mux) {
        disk_set_set_speed(s->mux->disks, mux_source_disk_speed());
    }
}

static void mux_source_main_open(MuxSource *m)
{
    GPtrArray *defs = m->s->channels->disks;
    g_autoptr(Error) err = NULL;

    mux_source_set_phase(m, MIGRATION_PHASE_DISKS);
    mux_source_say_phase(m);
    if (!defs->len) {
        mux_source_start_precopy(m);
        return;
    }
    mux_source_start_setup_timer(m);
    /* RAM gets as much as all the disks, as it does of the limit. */
    qio_channel_mux_set_weight(m->main, defs->len);
    if (!disk_set_start(m->disks, defs, mux_source_disk_speed(), m->session,
                        &err)) {
        mux_source_fail(m, err);
    }
}

/* --- the session --- */

/* Both answers are needed, and come in any order. */
static void mux_source_set_up(MuxSource *m)
{
    if (m->phase == MIGRATION_PHASE_CONNECT && m->accepted &&
        qio_channel_mux_state(m->main) == MUX_STREAM_OPEN) {
        mux_source_main_open(m);
    }
}

static void mux_source_stream_reset(MuxSource *m, QIOChannelMux *ioc)
{
    g_autoptr(Error) err = qio_channel_mux_get_error(ioc);

    /* Else the connection ended without an error: mux_source_ended(). */
    if (err) {
        mux_source_fail(m, err);
    }
}

static void mux_source_ready(MuxSession *session, void *opaque)
{
    mux_source_start_setup_timer(opaque);
}

static void mux_source_changed(MuxSession *session, QIOChannelMux *ioc,
                               void *opaque)
{
    MuxSource *m = opaque;

    if (mux_source_over(m)) {
        return;
    }
    if (ioc != m->main && ioc != mux_control_stream(m->control)) {
        disk_set_stream_changed(m->disks, ioc);
    } else if (qio_channel_mux_state(ioc) == MUX_STREAM_RESET) {
        mux_source_stream_reset(m, ioc);
    } else {
        mux_source_set_up(m);
    }
}

void mux_source_ended(MuxSource *m, const Error *err)
{
    g_autoptr(Error) early = NULL;

    if (!err) {
        error_setg(&early, "all streams: the destination ended the "
                   "connection early");
    }
    mux_source_fail(m, err ?: early);
}

/* The end of the connection is seen on `control`, after what came before it. */
static const MuxSessionOps mux_source_ops = {
    .ready = mux_source_ready,
    .changed = mux_source_changed,
    .tick = mux_watch_tick,
};

/* --- control --- */

static void mux_source_offer(MuxSource *m)
{
    g_autoptr(Error) err = NULL;
    g_autoptr(MigrationControl) offer = mux_offer_new(m->s->channels, &err);

    if (!offer || !mux_control_send(m->control, offer, &err)) {
        mux_source_fail(m, err);
    }
}

static void mux_source_accepted(MuxSource *m,
                                const MigrationControlAccepted *accepted)
{
    g_autoptr(Error) err = NULL;

    if (!mux_offer_token_ok(accepted->token)) {
        error_setg(&err, "stream 'control': the destination sent a malformed "
                   "token");
        mux_source_fail(m, err);
        return;
    }
    m->accepted = true;
    mux_source_set_up(m);
}

static void mux_source_rejected(MuxSource *m,
                                const MigrationControlRejected *rejected)
{
    g_autoptr(Error) err = mux_offer_error(rejected->reasons);

    mux_source_fail(m, err);
}

static void mux_source_loaded(MuxSource *m)
{
    g_autoptr(Error) err = NULL;

    if (m->phase == MIGRATION_PHASE_SWITCHOVER) {
        mux_switchover_loaded(m);
    } else {
        error_setg(&err, "stream 'control': the destination sent 'loaded' "
                   "before the switchover");
        mux_source_fail(m, err);
    }
}

static void mux_source_message(const MigrationControl *message, void *opaque)
{
    MuxSource *m = opaque;

    if (mux_source_over(m)) {
        return;
    }
    switch (message->type) {
    case MIGRATION_CONTROL_TYPE_KNOWS:
        mux_source_offer(m);
        break;
    case MIGRATION_CONTROL_TYPE_ACCEPTED:
        mux_source_accepted(m, &message->u.accepted);
        break;
    case MIGRATION_CONTROL_TYPE_REJECTED:
        mux_source_rejected(m, &message->u.rejected);
        break;
    case MIGRATION_CONTROL_TYPE_LOADED:
        mux_source_loaded(m);
        break;
    default:
        break;
    }
}

static void mux_source_broken(const Error *err, void *opaque)
{
    mux_source_fail(opaque, err);
}

static void mux_source_control_ended(void *opaque)
{
    MuxSource *m = opaque;
    QIOChannelMux *ioc = mux_control_stream(m->control);
    g_autoptr(Error) err = qio_channel_mux_get_error(ioc);

    if (!err && qio_channel_mux_state(ioc) != MUX_STREAM_RESET) {
        error_setg(&err, "stream 'control': the destination ended the "
                   "stream early");
    }
    if (!m->committed) {
        mux_source_ended(m, err);
    }
}

static const MuxControlOps mux_source_control_ops = {
    .message = mux_source_message,
    .broken = mux_source_broken,
    .ended = mux_source_control_ended,
};

/* --- life --- */

/* The destination answers `main` only when it has accepted the offer. */
static bool mux_source_open(MuxSource *m, Error **errp)
{
    QIOChannelMux *control = mux_session_open(m->session, "control", errp);

    if (!control) {
        return false;
    }
    m->control = mux_control_new(control, MUX_ROLE_SOURCE,
                                 &mux_source_control_ops, m);
    object_unref(OBJECT(control));
    m->main = mux_session_open(m->session, "main", errp);
    return m->main;
}

/* Returns NULL with @errp set if the connection is lost already. */
static MuxSource *mux_source_new(MigrationState *s, QIOChannel *ioc,
                                 Error **errp)
{
    MuxSource *m = g_new0(MuxSource, 1);

    m->s = s;
    m->refcount = 1;
    m->disks = disk_set_new(&mux_source_disk_ops, m);
    m->channels = g_ptr_array_new_with_free_func(object_unref);
    qemu_mutex_init(&m->lock);
    mux_switchover_init(m);
    m->setup_timer = timer_new_ms(QEMU_CLOCK_REALTIME,
                                  mux_source_setup_timeout, m);
    m->session = mux_session_new(ioc, MUX_ROLE_SOURCE, &mux_source_ops, m);
    mux_session_set_silence(m->session, migrate_channel_mux_timeout());
    if (!mux_source_open(m, errp)) {
        mux_control_free(m->control);
        mux_session_detach(m->session);
        mux_session_close(m->session, NULL, MIGRATION_MUX_LINGER_MS);
        mux_session_unref(m->session);
        mux_source_unref(m);
        return NULL;
    }
    yank_register_function(MIGRATION_YANK_INSTANCE, mux_session_yank,
                           m->session);
    return m;
}

void migration_mux_connect(MigrationState *s, QIOChannel *ioc)
{
    g_autoptr(Error) err = NULL;
    QEMUFile *f;

    s->mux = mux_source_new(s, ioc, &err);
    if (!s->mux) {
        migration_connect(s, err);
        return;
    }
    f = qemu_file_new_output(QIO_CHANNEL(s->mux->main));
    WITH_QEMU_LOCK_GUARD(&s->qemu_file_lock) {
        s->to_dst_file = f;
    }
}

void migration_mux_open_channel(MigrationState *s, const char *name,
                                QIOTaskFunc func, void *opaque)
{
    MuxSource *m = s->mux;
    Error *err = NULL;
    QIOChannelMux *ioc = mux_session_open(m->session, name, &err);
    QIOTask *task = qio_task_new(OBJECT(ioc), func, opaque, NULL);

    if (ioc) {
        QEMU_LOCK_GUARD(&m->lock);
        g_ptr_array_add(m->channels, object_ref(OBJECT(ioc)));
        if (m->cause) {
            qio_channel_mux_abort(ioc, m->cause);
        }
    } else {
        qio_task_set_error(task, err);
    }
    qio_task_complete(task);
    qio_task_free(task);
}

/* --- query --- */

static MigrationStreamInfoList *mux_source_streams(MuxSource *m)
{
    MigrationStreamInfoList *list = NULL, **tail = &list;

    QAPI_LIST_APPEND(tail, mux_stream_info_new(m->main));
    disk_set_info(m->disks, &tail);
    QEMU_LOCK_GUARD(&m->lock);
    for (guint i = 0; i < m->channels->len; i++) {
        QAPI_LIST_APPEND(tail, mux_stream_info_new(
                                   g_ptr_array_index(m->channels, i)));
    }
    return list;
}

void mux_source_info(MigrationState *s, MigrationInfo *info)
{
    if (s->mux) {
        mux_stream_info_report(info, qatomic_read(&s->mux->phase),
                               mux_source_streams(s->mux));
    } else if (migration_mux_source(s) && migration_is_running()) {
        mux_stream_info_report(info, MIGRATION_PHASE_CONNECT, NULL);
    } else {
        mux_stream_info_report_done(info, s->mux_streams);
    }
}

/* --- the end --- */

void migration_mux_ending(MigrationState *s)
{
    g_autoptr(Error) cause = NULL;

    if (!s->mux || s->state == MIGRATION_STATUS_COMPLETED) {
        return;
    }
    WITH_QEMU_LOCK_GUARD(&s->error_mutex) {
        cause = s->error ? migration_mux_bare_cause(s->error) : NULL;
    }
    if (!cause) {
        error_setg(&cause, "the migration failed at the source");
    }
    mux_source_abort(s->mux, cause);
}

void migration_mux_cleanup(MigrationState *s)
{
    MuxSource *m = g_steal_pointer(&s->mux);

    if (!m) {
        return;
    }
    mux_source_set_phase(m, MIGRATION_PHASE_DONE);
    /* What the disks may tell while the polls below wait for them is late */
    WITH_QEMU_LOCK_GUARD(&m->lock) {
        m->ended = true;
    }
    mux_session_detach(m->session);
    mux_source_abort_disks(m);
    s->mux_streams = mux_source_streams(m);
    disk_set_release(m->disks);
    yank_unregister_function(MIGRATION_YANK_INSTANCE, mux_session_yank,
                             m->session);
    if (m->committed) {
        mux_departure_free(s->mux_departure);
        s->mux_departure = mux_departure_new(m->session,
                                             g_steal_pointer(&m->control));
    } else {
        mux_session_close(m->session, m->cause, MIGRATION_MUX_LINGER_MS);
        g_clear_pointer(&m->control, mux_control_free);
    }
    mux_session_unref(m->session);
    object_unref(OBJECT(m->main));
    mux_source_unref(m);
    if (s->state == MIGRATION_STATUS_FAILED) {
        migrate_generate_event(s->state);
    }
}

void mux_source_shutdown(MigrationState *s)
{
    MuxSource *m = s->mux;
    MuxSession *session;

    mux_departure_wait(g_steal_pointer(&s->mux_departure));
    if (!m) {
        return;
    }
    /*
     * The main loop runs no more: let go of what the block layer holds.  To
     * wait for the jobs may run migration_cleanup().
     */
    mux_source_ref(m);
    session = mux_session_ref(m->session);
    mux_session_detach(session);
    mux_source_abort_disks(m);
    disk_set_cancel(m->disks);
    disk_set_release(m->disks);
    if (m->control) {
        mux_control_finish(m->control);
    }
    mux_session_close_wait(session, m->cause,
                           m->committed ? MIGRATION_MUX_DONE_MS :
                                          MIGRATION_MUX_LINGER_MS);
    mux_session_unref(session);
    if (s->mux == m && (m->ending || !mux_source_has_thread(m))) {
        /* The clean-up that is scheduled will not run. */
        migration_cleanup(s);
    }
    m->exiting = true;
    mux_source_unref(m);
}

