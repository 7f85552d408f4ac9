/*
 * Migration over a multiplexed connection: control flow of the source
 *
 * Owns the session, the stream `main` and the copies of the disks from the
 * connection to the end of the migration, and decides when each may go on:
 *
 *   connect     HELLO, the list of what is to be migrated accepted by the
 *               destination
 *   disks       every disk is copied for the first time
 *   precopy     the migration thread sends RAM; mirrors copy what is written
 *   converge    RAM is nearly copied; the guest's writes wait for the mirrors
 *   switchover  guest stopped, disks completed, device state sent and loaded,
 *               guest handed over
 *   done        the connection is being closed
 *
 * Until `precopy` there is no migration thread: the session's and the disks'
 * callbacks drive this file from the main loop.  What the migration thread
 * calls afterwards is in mux-switchover.c; how a failure ends the migration, in
 * mux-source-end.c.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "qemu/lockable.h"
#include "qemu/main-loop.h"
#include "channel-args.h"
#include "migration.h"
#include "migration-limit.h"
#include "mux-limits.h"
#include "mux-migration.h"
#include "mux-offer.h"
#include "mux-source.h"
#include "mux-stream-info.h"
#include "options.h"
#include "qemu-file.h"
#include "trace.h"

bool migration_mux_source_phase(MigrationState *s, MigrationPhase *phase)
{
    if (!migration_mux_source(s)) {
        return false;
    }
    *phase = s->mux ? mux_link_phase(s->mux->link) : MIGRATION_PHASE_CONNECT;
    return true;
}

/* What may follow each phase; a failure ends each of them with `done`. */
static const uint32_t mux_source_next[MIGRATION_PHASE__MAX] = {
    [MIGRATION_PHASE_CONNECT] = BIT(MIGRATION_PHASE_DISKS) |
                                BIT(MIGRATION_PHASE_DONE),
    [MIGRATION_PHASE_DISKS] = BIT(MIGRATION_PHASE_PRECOPY) |
                              BIT(MIGRATION_PHASE_DONE),
    /* Without disks there is nothing to converge */
    [MIGRATION_PHASE_PRECOPY] = BIT(MIGRATION_PHASE_CONVERGE) |
                                BIT(MIGRATION_PHASE_SWITCHOVER) |
                                BIT(MIGRATION_PHASE_DONE),
    [MIGRATION_PHASE_CONVERGE] = BIT(MIGRATION_PHASE_SWITCHOVER) |
                                 BIT(MIGRATION_PHASE_DONE),
    [MIGRATION_PHASE_SWITCHOVER] = BIT(MIGRATION_PHASE_DONE),
};

void mux_source_set_phase(MuxSource *m, MigrationPhase phase)
{
    MigrationPhase now = mux_link_phase(m->link);

    trace_migration_mux_source_phase(MigrationPhase_str(now),
                                     MigrationPhase_str(phase));
    assert(mux_source_next[now] & BIT(phase));
    mux_link_set_phase(m->link, phase);
}

void mux_source_say_phase(MuxSource *m)
{
    MuxControl *control = m->link->control;
    MigrationControl message = { .type = MIGRATION_CONTROL_TYPE_PHASE };

    if (!mux_control_knows(control, "phase") ||
        !mux_control_knows(control, "phase.phase")) {
        return;
    }
    message.u.phase.phase = (char *)MigrationPhase_str(
        mux_link_phase(m->link));
    /* If the stream has failed, its reader says so */
    mux_control_send(control, &message, NULL);
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
    mux_switchover_destroy(m);
    disk_set_free(m->disks);
    g_ptr_array_unref(m->channels);
    mux_link_free(m->link);
    g_free(m);
}

/* --- what the peer has to accept --- */

static MuxFailure *mux_source_main_late(MuxSource *m, uint32_t ms)
{
    return mux_failure_timeout("main", ms, "the destination to accept it");
}

static MuxFailure *mux_source_disks_late(MuxSource *m, uint32_t ms)
{
    return disk_set_late(m->disks, ms);
}

/* --- the disks --- */

/* For what a BH does next, some time after it was scheduled */
static bool mux_source_goes_on(MuxSource *m)
{
    return !m->exiting && m->s->mux == m && !mux_link_over(m->link);
}

/* Not in a nested aio_poll(), which may be where disks reach their next step */
static void mux_source_schedule(MuxSource *m, QEMUBHFunc *bh)
{
    aio_bh_schedule_oneshot(iohandler_get_aio_context(), bh, mux_source_ref(m));
}

static void mux_source_probe_disks_bh(void *opaque)
{
    MuxSource *m = opaque;

    if (mux_source_goes_on(m)) {
        disk_set_probe(m->disks);
    }
    mux_source_unref(m);
}

static void mux_source_disks_connected(void *opaque)
{
    MuxSource *m = opaque;

    mux_watch_end_step(m);
    if (!mux_link_over(m->link)) {
        mux_source_schedule(m, mux_source_probe_disks_bh);
    }
}

static void mux_source_begin_disks_bh(void *opaque)
{
    MuxSource *m = opaque;

    if (mux_source_goes_on(m)) {
        disk_set_begin(m->disks);
    }
    mux_source_unref(m);
}

static void mux_source_disks_probed(void *opaque)
{
    MuxSource *m = opaque;

    if (!mux_link_over(m->link)) {
        mux_source_schedule(m, mux_source_begin_disks_bh);
    }
}

/* From now on, unless it has failed, the thread ends the migration. */
static bool mux_source_enter_precopy(MuxSource *m)
{
    QEMU_LOCK_GUARD(&m->link->lock);
    if (m->link->failure || m->link->settled) {
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
    mux_source_schedule(m, mux_source_precopy_bh);
}

static void mux_source_disks_ready(void *opaque)
{
    MuxSource *m = opaque;

    if (!mux_link_over(m->link)) {
        mux_source_start_precopy(m);
    }
}

static void mux_source_disk_failed(const MuxFailure *failure, void *opaque)
{
    mux_source_fail(opaque, failure);
}

static void mux_source_disk_ending(void *opaque)
{
    mux_source_continue_cleanup(opaque);
}

static const DiskSetOps mux_source_disk_ops = {
    .connected = mux_source_disks_connected,
    .probed = mux_source_disks_probed,
    .ready = mux_source_disks_ready,
    .completed = mux_switchover_disks_completed,
    .flushed = mux_switchover_disk_flushed,
    .failed = mux_source_disk_failed,
    .ending = mux_source_disk_ending,
};

void migration_mux_bandwidth_changed(MigrationState *s)
{
    migration_limit_set(migrate_max_bandwidth());
    if (s->mux) {
        disk_set_limit_changed(s->mux->disks);
    }
}

void mux_source_lift_limit(MuxSource *m)
{
    migration_limit_lift();
    disk_set_limit_changed(m->disks);
}

static void mux_source_main_open(MuxSource *m)
{
    GPtrArray *defs = m->s->channels->disks;

    mux_watch_end_step(m);
    mux_source_set_phase(m, MIGRATION_PHASE_DISKS);
    mux_source_say_phase(m);
    if (!defs->len) {
        mux_source_start_precopy(m);
        return;
    }
    /* RAM gets as much as all the disks, as it does of the limit. */
    qio_channel_mux_set_weight(m->main, defs->len);
    migration_limit_begin(migrate_max_bandwidth(), defs->len);
    mux_watch_begin_step(m, mux_limit_setup_ms(), mux_source_disks_late);
    disk_set_start(m->disks, defs, m->link->session);
}

/* --- the session --- */

/* Both answers are needed, and come in any order. */
static void mux_source_set_up(MuxSource *m)
{
    if (mux_link_phase(m->link) == MIGRATION_PHASE_CONNECT && m->accepted &&
        qio_channel_mux_state(m->main) == MUX_STREAM_OPEN) {
        mux_source_main_open(m);
    }
}

static void mux_source_ready(MuxSession *session, void *opaque)
{
    MuxSource *m = opaque;

    mux_watch_begin_step(m, mux_limit_setup_ms(), mux_source_main_late);
}

static void mux_source_main_changed(QIOChannelMux *ioc, void *opaque)
{
    MuxSource *m = opaque;
    g_autoptr(MuxFailure) failure = NULL;

    if (mux_link_over(m->link)) {
        return;
    }
    /* None if the connection ended without: see mux_source_ended() */
    failure = qio_channel_mux_get_failure(ioc);
    if (failure) {
        mux_source_fail(m, failure);
    } else {
        mux_source_set_up(m);
    }
}

void mux_source_ended(MuxSource *m, const MuxFailure *failure)
{
    g_autoptr(MuxFailure) early =
        mux_failure_new(NULL, MUX_CODE_PROTOCOL,
                        "the destination ended the connection early");

    mux_source_fail(m, failure ?: early);
}

/* The end of the connection is seen on `control`, after what came before it. */
static const MuxSessionOps mux_source_ops = {
    .ready = mux_source_ready,
    .tick = mux_watch_tick,
};

/* --- control --- */

static void mux_source_offer(MuxSource *m)
{
    g_autoptr(MuxFailure) failure = NULL;
    g_autoptr(MigrationControl) offer = mux_offer_new(m->s->channels,
                                                      &failure);

    if (!offer || !mux_control_send(m->link->control, offer, &failure)) {
        mux_source_fail(m, failure);
    }
}

static void mux_source_accepted(MuxSource *m,
                                const MigrationControlAccepted *accepted)
{
    g_autoptr(MuxFailure) malformed =
        mux_failure_new("control", MUX_CODE_PROTOCOL,
                        "the destination sent a malformed token");

    if (!mux_offer_token_ok(accepted->token)) {
        mux_source_fail(m, malformed);
        return;
    }
    m->accepted = true;
    mux_source_set_up(m);
}

static void mux_source_rejected(MuxSource *m,
                                const MigrationControlRejected *rejected)
{
    g_autoptr(MuxFailure) failure = mux_offer_failure(rejected->reasons, true);

    mux_source_fail(m, failure);
}

static void mux_source_loaded(MuxSource *m)
{
    g_autoptr(MuxFailure) early =
        mux_failure_new("control", MUX_CODE_PROTOCOL,
                        "the destination sent 'loaded' before the switchover");

    if (mux_link_phase(m->link) == MIGRATION_PHASE_SWITCHOVER) {
        mux_switchover_loaded(m);
    } else {
        mux_source_fail(m, early);
    }
}

static void mux_source_message(const MigrationControl *message, void *opaque)
{
    MuxSource *m = opaque;

    if (mux_link_over(m->link)) {
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

static void mux_source_control_ended(const MuxFailure *failure, void *opaque)
{
    MuxSource *m = opaque;

    if (!m->committed) {
        mux_source_ended(m, failure);
    }
}

static const MuxControlOps mux_source_control_ops = {
    .message = mux_source_message,
    .broken = mux_source_control_ended,
    .ended = mux_source_control_ended,
};

/* --- query --- */

MigrationStreamInfoList *mux_source_streams(MuxSource *m)
{
    MigrationStreamInfoList *list = NULL, **tail = &list;

    QAPI_LIST_APPEND(tail, mux_stream_info_new(m->main));
    disk_set_info(m->disks, &tail);
    QEMU_LOCK_GUARD(&m->link->lock);
    for (guint i = 0; i < m->channels->len; i++) {
        QAPI_LIST_APPEND(tail, mux_stream_info_new(
                                   g_ptr_array_index(m->channels, i)));
    }
    return list;
}

void mux_source_info(MigrationState *s, MigrationInfo *info)
{
    if (s->mux) {
        mux_stream_info_report(info, mux_link_phase(s->mux->link),
                               mux_source_streams(s->mux));
    } else if (migration_mux_source(s) && migration_is_running()) {
        mux_stream_info_report(info, MIGRATION_PHASE_CONNECT, NULL);
    } else {
        mux_stream_info_report_done(info, s->mux_streams);
    }
}

/* --- life --- */

/* The destination answers `main` only when it has accepted the offer. */
static bool mux_source_open(MuxSource *m, MuxFailure **failp)
{
    MuxLink *l = m->link;
    QIOChannelMux *control = mux_session_open(l->session, "control", failp);

    if (!control) {
        return false;
    }
    l->control = mux_control_new(control, MUX_ROLE_SOURCE,
                                 &mux_source_control_ops, m);
    object_unref(OBJECT(control));
    m->main = mux_session_open(l->session, "main", failp);
    if (m->main) {
        qio_channel_mux_set_changed(m->main, mux_source_main_changed, m);
    }
    return m->main;
}

/* Returns NULL with @failp set if the connection is lost already. */
static MuxSource *mux_source_new(MigrationState *s, QIOChannel *ioc,
                                 MuxFailure **failp)
{
    MuxSource *m = g_new0(MuxSource, 1);

    m->s = s;
    m->refcount = 1;
    m->link = mux_link_new();
    m->disks = disk_set_new(&mux_source_disk_ops, m);
    m->channels = g_ptr_array_new_with_free_func(object_unref);
    mux_switchover_init(m);
    mux_link_begin(m->link, ioc, MUX_ROLE_SOURCE, &mux_source_ops, m);
    if (!mux_source_open(m, failp)) {
        g_clear_pointer(&m->link->control, mux_control_free);
        mux_session_detach(m->link->session);
        mux_session_close(m->link->session, NULL, MIGRATION_MUX_LINGER_MS);
        mux_source_unref(m);
        return NULL;
    }
    mux_link_watch(m->link);
    return m;
}

void migration_mux_connect(MigrationState *s, QIOChannel *ioc)
{
    g_autoptr(MuxFailure) failure = NULL;
    g_autoptr(Error) err = NULL;
    QEMUFile *f;

    s->mux = mux_source_new(s, ioc, &failure);
    if (!s->mux) {
        error_setg(&err, "%s", failure->text);
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
    g_autoptr(MuxFailure) failure = NULL;
    QIOChannelMux *ioc = mux_session_open(m->link->session, name, &failure);
    QIOTask *task = qio_task_new(OBJECT(ioc), func, opaque, NULL);
    Error *err = NULL;

    if (ioc) {
        QEMU_LOCK_GUARD(&m->link->lock);
        g_ptr_array_add(m->channels, object_ref(OBJECT(ioc)));
        if (m->link->failure) {
            qio_channel_mux_abort(ioc, m->link->failure);
        }
    } else {
        mux_failure_to_error(failure, &err);
        qio_task_set_error(task, err);
    }
    qio_task_complete(task);
    qio_task_free(task);
}
