/*
 * Migration over a multiplexed connection: the source's order of things
 *
 * Owns the session, the stream `main` and the copies of the disks from the
 * connection to the end of the migration, and decides when each may go on:
 *
 *   connect     HELLO, stream `main` accepted by the destination
 *   disks       every disk is copied for the first time
 *   precopy     the migration thread sends RAM; mirrors keep the disks in step
 *   converge    RAM could be switched over; the disks are brought level
 *   switchover  guest stopped, disks completed, device state sent
 *   done        the destination has it all
 *
 * Until `precopy` there is no migration thread: the session's and the disks'
 * callbacks drive this file from the main loop, and a failure is finished
 * here.  From then on a failure cuts the stream `main` off, which ends the
 * migration thread, and that ends the migration.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "qemu/main-loop.h"
#include "qemu/yank.h"
#include "channel-list.h"
#include "disk-copy.h"
#include "migration.h"
#include "mux-migration.h"
#include "mux-stream-info.h"
#include "options.h"
#include "qemu-file.h"
#include "trace.h"
#include "yank_functions.h"

/* How often the migration thread looks whether the disks are level */
#define MUX_OUTGOING_POLL_US 1000

typedef struct MuxOutgoing {
    MigrationState *s;
    unsigned refcount;          /* atomic; one of each pending BH, and s->mux */
    MigrationPhase phase;       /* atomic: the migration thread reads it */
    bool failed;                /* atomic; the cause is in s->error */
    bool exiting;               /* the process: @s may be gone before a BH */
    Error *cause;               /* what the destination is told */
    MuxSession *session;
    QIOChannelMux *main;
    /* The migration thread uses the two lists without the BQL. */
    QemuMutex lock;
    GPtrArray *disks;           /* DiskCopy *; changed with the BQL held, too */
    GPtrArray *channels;        /* QIOChannelMux *: multifd's */
    /*
     * Bytes that fit into the downtime limit, as measured when RAM got there:
     * once RAM has little to send, the measured bandwidth falls.
     */
    uint64_t budget;
    unsigned pending;           /* disks not ready, later: not completed */
    QemuEvent completed;        /* all disks are, or the migration failed */
} MuxOutgoing;

bool migration_mux_outgoing(MigrationState *s)
{
    return s->channels && s->channels->mux;
}

static void mux_outgoing_set_phase(MuxOutgoing *m, MigrationPhase phase)
{
    trace_migration_mux_outgoing_phase(MigrationPhase_str(m->phase),
                                       MigrationPhase_str(phase));
    qatomic_set(&m->phase, phase);
}

static bool mux_outgoing_has_thread(MuxOutgoing *m)
{
    return m->phase >= MIGRATION_PHASE_PRECOPY;
}

static MuxOutgoing *mux_outgoing_ref(MuxOutgoing *m)
{
    qatomic_inc(&m->refcount);
    return m;
}

static void mux_outgoing_unref(MuxOutgoing *m)
{
    if (qatomic_fetch_dec(&m->refcount) > 1) {
        return;
    }
    qemu_event_destroy(&m->completed);
    qemu_mutex_destroy(&m->lock);
    g_ptr_array_unref(m->disks);
    g_ptr_array_unref(m->channels);
    error_free(m->cause);
    g_free(m);
}

/* --- failure --- */

static void mux_outgoing_finish_bh(void *opaque)
{
    MuxOutgoing *m = opaque;
    MigrationState *s = m->s;

    if (!m->exiting && s->mux == m) {
        if (s->state != MIGRATION_STATUS_CANCELLING) {
            migrate_set_state(&s->state, s->state, MIGRATION_STATUS_FAILED);
        }
        migration_cleanup(s);
    }
    mux_outgoing_unref(m);
}

/*
 * Give up, because of @cause, which the destination is told.  Whoever is in
 * charge of the migration at this time finishes it.
 */
static void mux_outgoing_abort(MuxOutgoing *m, const Error *cause)
{
    if (qatomic_xchg(&m->failed, true)) {
        return;
    }
    trace_migration_mux_outgoing_abort(MigrationPhase_str(m->phase),
                                       error_get_pretty(cause));
    m->cause = error_copy(cause);
    qio_channel_mux_abort(m->main, cause);
    qemu_event_set(&m->completed);
    if (!mux_outgoing_has_thread(m)) {
        /* Not in a nested aio_poll(): the finish changes the block graph */
        aio_bh_schedule_oneshot(iohandler_get_aio_context(),
                                mux_outgoing_finish_bh, mux_outgoing_ref(m));
    }
}

static void mux_outgoing_fail(MuxOutgoing *m, const Error *err)
{
    if (!qatomic_read(&m->failed) &&
        m->s->state != MIGRATION_STATUS_CANCELLING) {
        migrate_set_error(m->s, err);
    }
    mux_outgoing_abort(m, err);
}

void migration_mux_cancel(MigrationState *s)
{
    MuxOutgoing *m = s->mux;
    g_autoptr(Error) cause = NULL;

    if (m) {
        error_setg(&cause, "the migration was cancelled at the source");
        mux_outgoing_abort(m, cause);
    }
}

/* --- the disks --- */

static void mux_outgoing_disk_ready(DiskCopy *d, void *opaque)
{
    MuxOutgoing *m = opaque;

    if (qatomic_read(&m->failed) || --m->pending) {
        return;
    }
    mux_outgoing_set_phase(m, MIGRATION_PHASE_PRECOPY);
    migration_connect(m->s, NULL);
}

static void mux_outgoing_disk_completed(DiskCopy *d, void *opaque)
{
    MuxOutgoing *m = opaque;

    if (!--m->pending) {
        qemu_event_set(&m->completed);
    }
}

static void mux_outgoing_disk_failed(DiskCopy *d, const Error *err,
                                     void *opaque)
{
    mux_outgoing_fail(opaque, err);
}

static const DiskCopyOps mux_outgoing_disk_ops = {
    .ready = mux_outgoing_disk_ready,
    .completed = mux_outgoing_disk_completed,
    .failed = mux_outgoing_disk_failed,
};

static bool mux_outgoing_start_disks(MuxOutgoing *m, Error **errp)
{
    GPtrArray *defs = m->s->channels->disks;
    /* The copies share the limit that the user set for the migration. */
    uint64_t speed = migrate_max_bandwidth() / defs->len;

    for (guint i = 0; i < defs->len; i++) {
        MigrationDiskChannel *def = g_ptr_array_index(defs, i);
        DiskCopy *d = disk_copy_new(def->disk, def->node_name, def->sync,
                                    speed, &mux_outgoing_disk_ops, m);

        WITH_QEMU_LOCK_GUARD(&m->lock) {
            g_ptr_array_add(m->disks, d);
        }
        if (!disk_copy_start(d, m->session, errp)) {
            error_prepend(errp, "disk '%s': ", def->disk);
            return false;
        }
    }
    return true;
}

static void mux_outgoing_main_open(MuxOutgoing *m)
{
    g_autoptr(Error) err = NULL;

    m->pending = m->s->channels->disks->len;
    if (!m->pending) {
        mux_outgoing_set_phase(m, MIGRATION_PHASE_PRECOPY);
        migration_connect(m->s, NULL);
        return;
    }
    mux_outgoing_set_phase(m, MIGRATION_PHASE_DISKS);
    if (!mux_outgoing_start_disks(m, &err)) {
        mux_outgoing_fail(m, err);
    }
}

/* --- the session --- */

static void mux_outgoing_main_changed(MuxOutgoing *m)
{
    g_autoptr(Error) err = NULL;

    if (qio_channel_mux_state(m->main) == MUX_STREAM_RESET) {
        err = qio_channel_mux_get_error(m->main);
        if (err) {
            mux_outgoing_fail(m, err);
        }
        /* Else the connection ended in good order: mux_outgoing_ended(). */
    } else if (m->phase == MIGRATION_PHASE_CONNECT &&
               qio_channel_mux_state(m->main) == MUX_STREAM_OPEN) {
        mux_outgoing_main_open(m);
    }
}

static void mux_outgoing_changed(MuxSession *session, QIOChannelMux *ioc,
                                 void *opaque)
{
    MuxOutgoing *m = opaque;

    if (qatomic_read(&m->failed)) {
        return;
    }
    if (ioc == m->main) {
        mux_outgoing_main_changed(m);
        return;
    }
    for (guint i = 0; i < m->disks->len; i++) {
        DiskCopy *d = g_ptr_array_index(m->disks, i);

        if (disk_copy_stream(d) == ioc) {
            disk_copy_stream_changed(d);
            return;
        }
    }
}

static void mux_outgoing_ended(MuxSession *session, const Error *err,
                               void *opaque)
{
    MuxOutgoing *m = opaque;
    g_autoptr(Error) closed = NULL;

    /* A destination that has all it needs may go first. */
    if (m->s->state == MIGRATION_STATUS_COMPLETED ||
        (!err && m->phase >= MIGRATION_PHASE_SWITCHOVER && !m->pending)) {
        return;
    }
    if (!err) {
        error_setg(&closed, "the destination ended the connection early");
    }
    mux_outgoing_fail(m, err ?: closed);
}

static const MuxSessionOps mux_outgoing_ops = {
    .changed = mux_outgoing_changed,
    .ended = mux_outgoing_ended,
};

/* Returns NULL with @errp set if the connection is lost already. */
static MuxOutgoing *mux_outgoing_new(MigrationState *s, QIOChannel *ioc,
                                     Error **errp)
{
    MuxOutgoing *m = g_new0(MuxOutgoing, 1);

    m->s = s;
    m->refcount = 1;
    m->disks = g_ptr_array_new();
    m->channels = g_ptr_array_new_with_free_func(object_unref);
    qemu_mutex_init(&m->lock);
    qemu_event_init(&m->completed, false);
    m->session = mux_session_new(ioc, MUX_ROLE_SOURCE, &mux_outgoing_ops, m);
    m->main = mux_session_open(m->session, "main", errp);
    if (!m->main) {
        mux_session_detach(m->session);
        mux_session_close(m->session, NULL, MIGRATION_MUX_LINGER_MS);
        mux_session_unref(m->session);
        mux_outgoing_unref(m);
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

    if (s->state != MIGRATION_STATUS_SETUP) {
        /* Cancelled while it was connecting */
        migration_cleanup(s);
        return;
    }

    g_clear_pointer(&s->mux_streams, qapi_free_MigrationStreamInfoList);
    s->mux = mux_outgoing_new(s, ioc, &err);
    if (!s->mux) {
        migration_connect(s, err);
        return;
    }
    f = qemu_file_new_output(QIO_CHANNEL(s->mux->main));
    migration_ioc_register_yank(QIO_CHANNEL(s->mux->main));
    WITH_QEMU_LOCK_GUARD(&s->qemu_file_lock) {
        s->to_dst_file = f;
    }
}

void migration_mux_open_channel(MigrationState *s, const char *name,
                                QIOTaskFunc func, void *opaque)
{
    MuxOutgoing *m = s->mux;
    Error *err = NULL;
    QIOChannelMux *ioc = mux_session_open(m->session, name, &err);
    QIOTask *task = qio_task_new(OBJECT(ioc), func, opaque, NULL);

    if (ioc) {
        QEMU_LOCK_GUARD(&m->lock);
        g_ptr_array_add(m->channels, object_ref(OBJECT(ioc)));
    } else {
        qio_task_set_error(task, err);
    }
    qio_task_complete(task);
    qio_task_free(task);
}

/* --- the switchover --- */

static void mux_outgoing_converge_bh(void *opaque)
{
    MuxOutgoing *m = opaque;

    if (!qatomic_read(&m->failed)) {
        g_ptr_array_foreach(m->disks, (GFunc)disk_copy_converge, NULL);
    }
    mux_outgoing_unref(m);
}

/* Returns the bytes that the disks lack; @converged: no more can be done. */
static uint64_t mux_outgoing_disks_pending(MuxOutgoing *m, bool *converged)
{
    uint64_t remaining, total, pending = 0;

    *converged = true;
    QEMU_LOCK_GUARD(&m->lock);
    for (guint i = 0; i < m->disks->len; i++) {
        DiskCopy *d = g_ptr_array_index(m->disks, i);

        *converged &= disk_copy_converged(d);
        disk_copy_progress(d, &remaining, &total);
        pending += remaining;
    }
    return pending;
}

bool migration_mux_can_switchover(MigrationState *s, uint64_t ram_pending)
{
    MuxOutgoing *m = s->mux;
    uint64_t pending;
    bool converged;

    if (!m || !s->channels->disks->len ||
        qatomic_read(&m->phase) >= MIGRATION_PHASE_SWITCHOVER) {
        return true;
    }
    if (qatomic_read(&m->phase) == MIGRATION_PHASE_PRECOPY) {
        m->budget = s->threshold_size;
        mux_outgoing_set_phase(m, MIGRATION_PHASE_CONVERGE);
        aio_bh_schedule_oneshot(qemu_get_aio_context(),
                                mux_outgoing_converge_bh, mux_outgoing_ref(m));
        return false;
    }
    pending = mux_outgoing_disks_pending(m, &converged);
    trace_migration_mux_can_switchover(ram_pending, pending, converged);
    if (converged && (!pending || ram_pending + pending < m->budget)) {
        return true;
    }
    g_usleep(MUX_OUTGOING_POLL_US);
    return false;
}

static void mux_outgoing_complete_bh(void *opaque)
{
    MuxOutgoing *m = opaque;

    if (!qatomic_read(&m->failed)) {
        g_ptr_array_foreach(m->disks, (GFunc)disk_copy_complete, NULL);
    }
    mux_outgoing_unref(m);
}

bool migration_mux_complete_disks(MigrationState *s, Error **errp)
{
    MuxOutgoing *m = s->mux;

    if (!m || m->phase >= MIGRATION_PHASE_SWITCHOVER) {
        return true;
    }
    mux_outgoing_set_phase(m, MIGRATION_PHASE_SWITCHOVER);
    if (m->disks->len && !m->failed) {
        m->pending = m->disks->len;
        aio_bh_schedule_oneshot(qemu_get_aio_context(),
                                mux_outgoing_complete_bh, mux_outgoing_ref(m));
        bql_unlock();
        qemu_event_wait(&m->completed);
        bql_lock();
    }
    if (m->failed) {
        error_propagate(errp, error_copy(m->cause));
        return false;
    }
    return true;
}

bool migration_mux_disks_untouched(MigrationState *s, Error **errp)
{
    MuxOutgoing *m = s->mux;
    Error *err = NULL;

    for (guint i = 0; m && i < m->disks->len; i++) {
        if (!disk_copy_untouched(g_ptr_array_index(m->disks, i), &err)) {
            mux_outgoing_fail(m, err);
            error_propagate(errp, err);
            return false;
        }
    }
    return true;
}

void migration_mux_completion_failed(MigrationState *s)
{
    MuxOutgoing *m = s->mux;
    g_autoptr(Error) err = NULL;

    if (!m || s->state == MIGRATION_STATUS_CANCELLING) {
        return;
    }
    err = qio_channel_mux_get_error(m->main);
    WITH_QEMU_LOCK_GUARD(&m->lock) {
        for (guint i = 0; !err && i < m->disks->len; i++) {
            DiskCopy *d = g_ptr_array_index(m->disks, i);

            err = qio_channel_mux_get_error(disk_copy_stream(d));
        }
    }
    if (err) {
        migrate_set_error(s, err);
    }
}

/* --- query --- */

static void mux_outgoing_add_stream(MigrationStreamInfoList ***tail,
                                    QIOChannelMux *ioc, DiskCopy *d)
{
    MigrationStreamInfo *info = mux_stream_info_new(ioc);

    if (d) {
        disk_copy_progress(d, &info->remaining, &info->total);
        info->has_total = info->has_remaining = info->total > 0;
    }
    QAPI_LIST_APPEND(*tail, info);
}

static MigrationStreamInfoList *mux_outgoing_streams(MuxOutgoing *m)
{
    MigrationStreamInfoList *list = NULL, **tail = &list;

    mux_outgoing_add_stream(&tail, m->main, NULL);
    for (guint i = 0; i < m->disks->len; i++) {
        DiskCopy *d = g_ptr_array_index(m->disks, i);

        if (disk_copy_stream(d)) {
            mux_outgoing_add_stream(&tail, disk_copy_stream(d), d);
        }
    }
    QEMU_LOCK_GUARD(&m->lock);
    for (guint i = 0; i < m->channels->len; i++) {
        mux_outgoing_add_stream(&tail, g_ptr_array_index(m->channels, i), NULL);
    }
    return list;
}

void migration_mux_outgoing_info(MigrationState *s, MigrationInfo *info)
{
    if (s->mux) {
        mux_stream_info_report(info, qatomic_read(&s->mux->phase),
                               mux_outgoing_streams(s->mux));
    } else {
        mux_stream_info_report_done(info, s->mux_streams);
    }
}

/* --- the end --- */

static void mux_outgoing_free_disks(MuxOutgoing *m)
{
    g_autoptr(Error) unknown = NULL;

    error_setg(&unknown, "the migration failed at the source");
    while (m->disks->len) {
        DiskCopy *d;

        WITH_QEMU_LOCK_GUARD(&m->lock) {
            d = g_ptr_array_remove_index(m->disks, m->disks->len - 1);
        }
        disk_copy_free(d, m->cause ?: unknown);
    }
}

void migration_mux_ending(MigrationState *s)
{
    g_autoptr(Error) cause = NULL;

    if (!s->mux || s->state == MIGRATION_STATUS_COMPLETED) {
        return;
    }
    WITH_QEMU_LOCK_GUARD(&s->error_mutex) {
        cause = s->error ? error_copy(s->error) : NULL;
    }
    if (!cause) {
        error_setg(&cause, "the migration failed at the source");
    }
    mux_outgoing_abort(s->mux, cause);
}

void migration_mux_cleanup(MigrationState *s)
{
    MuxOutgoing *m = g_steal_pointer(&s->mux);

    if (!m) {
        return;
    }
    mux_outgoing_set_phase(m, MIGRATION_PHASE_DONE);
    /* What the disks may tell while the polls below wait for them is late */
    qatomic_set(&m->failed, true);
    s->mux_streams = mux_outgoing_streams(m);
    mux_session_detach(m->session);
    mux_outgoing_free_disks(m);
    yank_unregister_function(MIGRATION_YANK_INSTANCE, mux_session_yank,
                             m->session);
    mux_session_close(m->session, m->cause, m->cause ? MIGRATION_MUX_LINGER_MS :
                                                       MIGRATION_MUX_DONE_MS);
    mux_session_unref(m->session);
    object_unref(OBJECT(m->main));
    mux_outgoing_unref(m);
}

void migration_mux_shutdown(MigrationState *s)
{
    MuxOutgoing *m = s->mux;
    MuxSession *session;

    if (!m) {
        return;
    }
    /*
     * The main loop runs no more: let go of what the block layer holds.  To
     * wait for the jobs may run migration_cleanup().
     */
    mux_outgoing_ref(m);
    session = mux_session_ref(m->session);
    mux_session_detach(session);
    mux_outgoing_free_disks(m);
    mux_session_close_wait(session, m->cause, MIGRATION_MUX_LINGER_MS);
    mux_session_unref(session);
    m->exiting = true;
    mux_outgoing_unref(m);
}

