/*
 * Migration over a multiplexed connection: control flow of the destination
 *
 * Owns the session, the streams of RAM and the disks that migrate-incoming
 * listed, from the source that was accepted (see mux-candidates.h) to the end
 * of the migration.
 *
 * The stream `main` is accepted, each stream nbd-<disk> of a listed disk, and
 * those of multifd if that capability is set here; each once.  Loading starts
 * when `main` has data.  The device state comes when all disks were answered
 * with FIN_OK; that is checked before the guest may run.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "qapi/util.h"
#include "qemu/error-report.h"
#include "qemu/lockable.h"
#include "qemu/main-loop.h"
#include "channel-args.h"
#include "export-set.h"
#include "migration.h"
#include "multifd.h"
#include "mux-candidates.h"
#include "mux-failure.h"
#include "mux-limits.h"
#include "mux-migration.h"
#include "mux-stream-info.h"
#include "mux-streams.h"
#include "options.h"
#include "qemu-file.h"
#include "trace.h"

typedef struct MuxDestination MuxDestination;

/* `main` or a stream of multifd, which QEMU's loader takes once it has data */
typedef struct MuxDestinationChannel {
    MuxDestination *m;
    QIOChannelMux *ioc;
    guint watch;                /* 0: it was taken */
} MuxDestinationChannel;

struct MuxDestination {
    MigrationIncomingState *mis;
    MuxLink *link;              /* its lock protects @loaded, @deciding, too */
    QIOChannelMux *main;        /* NULL until the source opened it */
    QEMUFile *file;             /* of @main, until the loader has it */
    GPtrArray *channels;        /* MuxDestinationChannel *, `main` among them */
    const char *taking;         /* the loader takes it now; main loop */
    ExportSet *exports;
    bool loaded;                /* all data, device state included */
    bool deciding;              /* `loaded` was sent: the source may commit */
    bool committed;             /* `committed` was received */
    bool over;                  /* nothing more comes on `control` */
    bool failing;               /* mux_destination_fail() was called */
    bool event_held;            /* the clean-up sends FAILED */
    Coroutine *taking_over;     /* waits for the source's commit */
};

bool migration_mux_destination_phase(MigrationIncomingState *mis,
                                     MigrationPhase *phase)
{
    if (mis->mux) {
        *phase = mux_link_phase(mis->mux->link);
        return true;
    }
    *phase = MIGRATION_PHASE_CONNECT;
    return mis->state == MIGRATION_STATUS_SETUP && migration_mux_expected(mis);
}

/* --- failure --- */

/*
 * Is the incoming migration's coroutine in charge?  With multifd it starts when
 * all channels are there, some time after `main`.
 */
static bool mux_destination_loading(MuxDestination *m)
{
    return m->mis->state != MIGRATION_STATUS_SETUP;
}

bool mux_destination_hold_failed(const MigrationStatus *status)
{
    MigrationIncomingState *mis = migration_incoming_get_current();

    if (status != &mis->state || !mis->mux || mis->exit_on_error) {
        return false;
    }
    mis->mux->event_held = true;
    return true;
}

/* Returns: @failure, saying that everything had been loaded before */
static MuxFailure *mux_destination_not_committed(const MuxFailure *failure)
{
    g_autofree char *text = mux_failure_text(failure);

    return mux_failure_new("main", MUX_CODE_ABORTED, "everything was loaded, "
                           "but the source did not hand the guest over: %s",
                           text);
}

/*
 * Record @failure, unless one is recorded or the source has committed.  Any
 * thread.
 *
 * Returns: a copy of what is recorded, or of @failure
 */
static MuxFailure *mux_destination_record(MuxDestination *m,
                                          const MuxFailure *failure)
{
    MuxLink *l = m->link;

    QEMU_LOCK_GUARD(&l->lock);
    if (!l->failure && !l->settled) {
        l->failure = m->loaded ? mux_destination_not_committed(failure) :
                                 mux_failure_copy(failure);
    }
    return mux_failure_copy(l->failure ?: failure);
}

/* What the loader has seen, which its own error does not tell */
static MuxFailure *mux_destination_load_failure(MuxDestination *m)
{
    QEMUFile *f = qemu_in_main_thread() ? m->mis->from_src_file : NULL;
    g_autoptr(Error) err = NULL;

    if (f) {
        qemu_file_get_error_obj(f, &err);
    }
    return err ? mux_failure_from_error(NULL, err) : NULL;
}

/* Returns: @err, or the cause where that is known better */
static MuxFailure *mux_destination_cause(MuxDestination *m, const Error *err)
{
    const MuxFailure *failure = mux_link_failure(m->link);

    if (failure) {
        return mux_failure_copy(failure);
    }
    return mux_session_find_failure(m->link->session) ?:
        mux_destination_load_failure(m) ?:
        mux_failure_from_error(qemu_in_main_thread() ? m->taking : NULL, err);
}

/*
 * The source learns the cause by the streams, too, while GOAWAY waits for other
 * data; and closing `main` cannot send FIN any more.  Any thread.
 */
static void mux_destination_abort(MuxDestination *m, const MuxFailure *failure)
{
    WITH_QEMU_LOCK_GUARD(&m->link->lock) {
        if (m->deciding || m->link->settled) {
            /* `committed` may be on its way, and must be received */
            return;
        }
    }
    mux_session_close(m->link->session, failure, MIGRATION_MUX_LINGER_MS);
    mux_link_reset_streams(m->link, failure);
}

MuxFailure *mux_destination_failed(MigrationIncomingState *mis,
                                   const Error *err)
{
    MuxDestination *m = mis->mux;
    g_autoptr(MuxFailure) cause = NULL;
    MuxFailure *failure;

    if (!m) {
        return mux_failure_from_error(NULL, err);
    }
    cause = mux_destination_cause(m, err);
    failure = mux_destination_record(m, cause);
    mux_destination_abort(m, failure);
    return failure;
}

/*
 * The main loop does not wait for a source that does not read the cause, unless
 * the process is about to exit.
 */
static void mux_destination_report_cause(MuxDestination *m,
                                         const MuxFailure *failure)
{
    if (m->mis->exit_on_error) {
        mux_session_close_wait(m->link->session, failure,
                               MIGRATION_MUX_LINGER_MS);
    }
}

/* Nothing was loaded yet: finish the incoming migration here. */
static void mux_destination_give_up(MigrationIncomingState *mis,
                                    const MuxFailure *failure)
{
    MigrationState *s = migrate_get_current();

    mux_failure_set(s, failure, mis->mux ? mux_link_phase(mis->mux->link) :
                                           MIGRATION_PHASE_CONNECT,
                    MIGRATION_SIDE_DESTINATION);
    WITH_QEMU_LOCK_GUARD(&s->error_mutex) {
        error_report_err(error_copy(s->error));
    }
    migrate_set_state(&mis->state, mis->state, MIGRATION_STATUS_FAILED);
    if (mis->mux) {
        mux_destination_abort(mis->mux, failure);
        mux_destination_report_cause(mis->mux, failure);
    } else {
        mux_candidates_end(failure, mis->exit_on_error);
    }
    if (mis->exit_on_error) {
        exit(EXIT_FAILURE);
    }
    migration_incoming_state_destroy();
    /* The reference that qmp_migrate_incoming() has taken */
    object_unref(OBJECT(s));
}

static void mux_destination_no_source(const MuxFailure *failure)
{
    MigrationIncomingState *mis = migration_incoming_get_current();

    if (!mis->mux && mis->state == MIGRATION_STATUS_SETUP) {
        mux_destination_give_up(mis, failure);
    }
}

/* Has the source handed over the guest, or can it no longer do so? */
static bool mux_destination_decided(MuxDestination *m)
{
    return m->over || m->committed;
}

static void mux_destination_wake(MuxDestination *m)
{
    if (m->taking_over && mux_destination_decided(m)) {
        aio_co_schedule(qemu_get_aio_context(),
                        g_steal_pointer(&m->taking_over));
    }
}

static void mux_destination_fail(MuxDestination *m, const MuxFailure *cause)
{
    g_autoptr(MuxFailure) failure = NULL;

    if (m->failing) {
        return;
    }
    m->failing = true;
    failure = mux_destination_record(m, cause);
    if (mux_destination_loading(m)) {
        /* Ends the loading, which reports the failure that was recorded. */
        qio_channel_mux_abort(m->main, failure);
    } else {
        mux_destination_give_up(m->mis, failure);
    }
}

static void mux_destination_disk_failed(const MuxFailure *failure, void *opaque)
{
    mux_destination_fail(opaque, failure);
}

/* --- main --- */

static void mux_destination_channel_free(gpointer opaque)
{
    MuxDestinationChannel *c = opaque;

    if (c->watch) {
        g_source_remove(c->watch);
    }
    object_unref(OBJECT(c->ioc));
    g_free(c);
}

/* Hand @c, which has data, to the loader; it starts when it has them all. */
static bool mux_destination_take(MuxDestinationChannel *c, Error **errp)
{
    MuxDestination *m = c->m;
    Error *err = NULL;

    if (multifd_recv_setup(errp) != 0) {
        return false;
    }
    if (c->ioc == m->main) {
        m->file = qemu_file_new_input(QIO_CHANNEL(c->ioc));
    } else {
        /* It records an error, too, before it returns */
        m->taking = qio_channel_mux_name(c->ioc);
        multifd_recv_new_channel(QIO_CHANNEL(c->ioc), &err);
        m->taking = NULL;
        if (err) {
            error_propagate(errp, err);
            return false;
        }
    }
    if (m->file && multifd_recv_all_channels_created()) {
        migration_fd_process_incoming(g_steal_pointer(&m->file));
    }
    return true;
}

static MuxFailure *mux_destination_channel_ready(MuxDestinationChannel *c)
{
    MuxFailure *failure = qio_channel_mux_get_failure(c->ioc);
    g_autoptr(Error) err = NULL;

    if (!failure && c->ioc == c->m->main) {
        failure = export_set_unopened(c->m->exports);
    }
    if (failure) {
        return failure;
    }
    /* This may be the end of @c */
    return mux_destination_take(c, &err) ? NULL :
        mux_failure_from_error(qio_channel_mux_name(c->ioc), err);
}

static gboolean mux_destination_channel_readable(QIOChannel *ioc,
                                                 GIOCondition cond,
                                                 gpointer opaque)
{
    MuxDestinationChannel *c = opaque;
    g_autoptr(MuxFailure) failure = NULL;

    c->watch = 0;
    qio_channel_mux_set_read_least(c->ioc, 1);
    failure = mux_destination_channel_ready(c);
    if (failure) {
        mux_destination_fail(c->m, failure);
    }
    return G_SOURCE_REMOVE;
}

/* None: the connection was closed without a reason */
static void mux_destination_channel_changed(QIOChannelMux *ioc, void *opaque)
{
    g_autoptr(MuxFailure) failure = qio_channel_mux_get_failure(ioc);

    if (failure) {
        mux_destination_fail(opaque, failure);
    }
}

static bool mux_destination_is_open(MuxDestination *m, const char *name)
{
    for (guint i = 0; i < m->channels->len; i++) {
        MuxDestinationChannel *c = g_ptr_array_index(m->channels, i);

        if (g_str_equal(qio_channel_mux_name(c->ioc), name)) {
            return true;
        }
    }
    return false;
}

static bool mux_destination_add_channel(MuxDestination *m, QIOChannelMux *ioc,
                                        Error **errp)
{
    MuxDestinationChannel *c;

    if (mux_destination_is_open(m, qio_channel_mux_name(ioc))) {
        error_setg(errp, "stream is already open");
        return false;
    }
    c = g_new0(MuxDestinationChannel, 1);
    c->m = m;
    c->ioc = ioc;
    object_ref(OBJECT(ioc));
    c->watch = qio_channel_add_watch(QIO_CHANNEL(ioc), G_IO_IN,
                                     mux_destination_channel_readable, c, NULL);
    g_ptr_array_add(m->channels, c);
    qio_channel_mux_set_changed(ioc, mux_destination_channel_changed, m);
    qio_channel_mux_accept(ioc);
    return true;
}

static bool mux_destination_open_main(MuxDestination *m, QIOChannelMux *ioc,
                                      Error **errp)
{
    if (!mux_destination_add_channel(m, ioc, errp)) {
        return false;
    }
    m->main = ioc;
    return true;
}

/* Is it multifd-0, or one of those that follow? */
static bool mux_destination_is_multifd(const char *name)
{
    for (int i = 0; i < migrate_multifd_channels(); i++) {
        g_autofree char *id = g_strdup_printf("%d", i);
        g_autofree char *expected =
            mux_stream_kind_name(MUX_STREAM_KIND_MULTIFD, id);

        if (g_str_equal(name, expected)) {
            return true;
        }
    }
    return false;
}

static bool mux_destination_open_multifd(MuxDestination *m, QIOChannelMux *ioc,
                                         Error **errp)
{
    if (!migrate_multifd()) {
        error_setg(errp, "the destination lacks the capability 'multifd'");
        return false;
    }
    if (!mux_destination_is_multifd(qio_channel_mux_name(ioc))) {
        error_setg(errp, "the destination has %d multifd channels",
                   migrate_multifd_channels());
        return false;
    }
    return mux_destination_add_channel(m, ioc, errp);
}

/* --- the session --- */

static bool mux_destination_open(MuxDestination *m, QIOChannelMux *ioc,
                                 Error **errp)
{
    MuxStreamKind kind = mux_stream_kind_of(qio_channel_mux_name(ioc));

    if (kind < MUX_STREAM_KIND__MAX) {
        mux_stream_kind_set_up(kind, ioc);
    }
    switch (kind) {
    case MUX_STREAM_KIND_MAIN:
        return mux_destination_open_main(m, ioc, errp);
    case MUX_STREAM_KIND_MULTIFD:
        return mux_destination_open_multifd(m, ioc, errp);
    default:
        return export_set_accept(m->exports, ioc, errp);
    }
}

static void mux_destination_opened(MuxSession *session, QIOChannelMux *ioc,
                                   void *opaque)
{
    const char *name = qio_channel_mux_name(ioc);
    g_autoptr(MuxFailure) refusal = NULL;
    g_autoptr(Error) err = NULL;

    if (!mux_destination_open(opaque, ioc, &err)) {
        trace_migration_mux_destination_refused(name, error_get_pretty(err));
        refusal = mux_failure_from_error(name, err);
        qio_channel_mux_abort(ioc, refusal);
    }
}

static const MuxSessionOps mux_destination_ops = {
    .opened = mux_destination_opened,
};

/* --- control --- */

static void mux_destination_set_phase(MuxDestination *m, const char *name)
{
    int phase = qapi_enum_parse(&MigrationPhase_lookup, name, -1, NULL);

    /*
     * Those of a later version are not known here.  There is no way back, or a
     * source could cause any number of events.
     */
    if (phase > (int)mux_link_phase(m->link)) {
        trace_migration_mux_destination_phase(name);
        mux_link_set_phase(m->link, phase);
    }
}

static void mux_destination_message(const MigrationControl *message,
                                    void *opaque)
{
    MuxDestination *m = opaque;

    switch (message->type) {
    case MIGRATION_CONTROL_TYPE_PHASE:
        mux_destination_set_phase(m, message->u.phase.phase);
        break;
    case MIGRATION_CONTROL_TYPE_COMMITTED:
        mux_link_settle(m->link);
        m->committed = true;
        mux_destination_wake(m);
        break;
    default:
        break;
    }
}

static void mux_destination_control_ended(const MuxFailure *failure,
                                          void *opaque)
{
    MuxDestination *m = opaque;
    g_autoptr(MuxFailure) early =
        mux_failure_new(NULL, MUX_CODE_PROTOCOL,
                        "the source ended the connection early");

    /* What `main` has received is loaded before it sees the end. */
    if (mux_destination_loading(m)) {
        m->over = true;
        mux_destination_wake(m);
    } else {
        mux_destination_fail(m, failure ?: early);
    }
}

static void mux_destination_broken(const MuxFailure *failure, void *opaque)
{
    mux_destination_fail(opaque, failure);
}

static const MuxControlOps mux_destination_control_ops = {
    .message = mux_destination_message,
    .broken = mux_destination_broken,
    .ended = mux_destination_control_ended,
};

/* --- the source --- */

static void mux_destination_begin(MuxLink *link, QIOChannelMux *main)
{
    MigrationIncomingState *mis = migration_incoming_get_current();
    MuxDestination *m = mis->mux = g_new0(MuxDestination, 1);

    m->mis = mis;
    m->channels = g_ptr_array_new_with_free_func(mux_destination_channel_free);
    m->exports = export_set_new(mis->channels->disks,
                                mux_destination_disk_failed, m);
    m->link = link;
    mux_control_set_ops(link->control, &mux_destination_control_ops, m);
    mux_session_set_ops(link->session, &mux_destination_ops, m);
    if (main) {
        mux_destination_opened(link->session, main, m);
    }
    object_unref(OBJECT(main));
}

static const MuxCandidatesOps mux_destination_candidates_ops = {
    .accepted = mux_destination_begin,
    .failed = mux_destination_no_source,
};

bool migration_mux_admit(QIOChannel *ioc)
{
    return mux_candidates_admit(ioc, &mux_destination_candidates_ops);
}

/* --- loading --- */

/* Returns: why the source cannot hand over the guest any more */
static MuxFailure *mux_destination_end_cause(MuxDestination *m)
{
    const MuxFailure *cause = mux_control_failure(m->link->control);
    g_autoptr(MuxFailure) end = mux_failure_new(NULL, MUX_CODE_ABORTED,
                                                "the source ended the "
                                                "connection");

    return mux_destination_record(m, cause ?: end);
}

/* Returns: why the guest must not run here; NULL: it may */
static MuxFailure *coroutine_fn mux_destination_take_over(MuxDestination *m)
{
    MuxFailure *failure = export_set_unfinished(m->exports);

    if (failure) {
        return failure;
    }
    if (m->mis->to_src_file) {
        migrate_send_rp_shut(m->mis, 0);
        qemu_fclose(g_steal_pointer(&m->mis->to_src_file));
    }
    /* No limit: after the source's commit only this side has the guest */
    mux_session_set_silence(m->link->session, 0);
    WITH_QEMU_LOCK_GUARD(&m->link->lock) {
        if (m->link->failure) {
            return mux_failure_copy(m->link->failure);
        }
        m->loaded = m->deciding = true;
    }
    /* If this fails, `control` ends, too */
    mux_control_say(m->link->control, MIGRATION_CONTROL_TYPE_LOADED, NULL);
    while (!mux_destination_decided(m)) {
        m->taking_over = qemu_coroutine_self();
        qemu_coroutine_yield();
    }
    WITH_QEMU_LOCK_GUARD(&m->link->lock) {
        m->deciding = false;
    }
    return m->committed ? NULL : mux_destination_end_cause(m);
}

bool coroutine_fn migration_mux_handover_accept(MigrationIncomingState *mis,
                                                Error **errp)
{
    MuxDestination *m = mis->mux;
    g_autoptr(MuxFailure) failure = m ? mux_destination_take_over(m) : NULL;

    if (!failure) {
        return true;
    }
    mux_link_record(m->link, failure);
    error_setg(errp, "%s", failure->text);
    return false;
}

/* --- query --- */

static MigrationStreamInfoList *mux_destination_streams(MuxDestination *m)
{
    MigrationStreamInfoList *list = NULL, **tail = &list;

    for (guint i = 0; i < m->channels->len; i++) {
        MuxDestinationChannel *c = g_ptr_array_index(m->channels, i);

        QAPI_LIST_APPEND(tail, mux_stream_info_new(c->ioc));
    }
    export_set_info(m->exports, &tail);
    return list;
}

void mux_destination_info(MigrationIncomingState *mis, MigrationInfo *info)
{
    if (mis->mux) {
        mux_stream_info_report(info, mux_link_phase(mis->mux->link),
                               mux_destination_streams(mis->mux));
    } else {
        mux_stream_info_report_done(info, mis->mux_streams);
    }
}

/* --- the end --- */

void mux_destination_shutdown(MigrationIncomingState *mis)
{
    MuxSession *closing = g_steal_pointer(&mis->mux_closing);
    g_autoptr(MuxFailure) why =
        mux_failure_new(NULL, MUX_CODE_ABORTED,
                        "the destination was shut down");
    MuxDestination *m = mis->mux;

    if (closing) {
        mux_session_close_wait(closing, NULL, MIGRATION_MUX_LINGER_MS);
        mux_session_unref(closing);
    }
    mux_candidates_end(why, true);
    if (!m) {
        return;
    }
    /* The loading fails because of this, which is no reason for exit(1) */
    mis->exit_on_error = false;
    /* First, so that streams which are not accepted any more get it, too */
    mux_session_close(m->link->session, why, MIGRATION_MUX_LINGER_MS);
    mux_session_detach(m->link->session);
    export_set_release(m->exports, why);
    mux_session_close_wait(m->link->session, why, MIGRATION_MUX_LINGER_MS);
}

void migration_mux_destination_cleanup(MigrationIncomingState *mis)
{
    MuxDestination *m = g_steal_pointer(&mis->mux);
    const MuxFailure *failure;
    g_autoptr(MuxFailure) unknown =
        mux_failure_new(NULL, MUX_CODE_ABORTED,
                        "the migration failed at the destination");
    MuxLink *l;

    mux_candidates_end(unknown, false);
    if (!m) {
        return;
    }
    l = m->link;
    /* What fails after the commit does not matter */
    failure = m->committed ? NULL : mux_link_failure(l) ?: unknown;
    if (failure) {
        /* First, so that streams which are not accepted any more get it, too */
        mux_destination_abort(m, failure);
    }
    mux_session_detach(l->session);
    if (!failure) {
        /* Errors are ignored: the confirmation is not essential */
        mux_control_say(l->control, MIGRATION_CONTROL_TYPE_RUNNING, NULL);
    }
    g_clear_pointer(&l->control, mux_control_free);
    mux_link_set_phase(l, MIGRATION_PHASE_DONE);
    mis->mux_streams = mux_destination_streams(m);
    export_set_release(m->exports, failure ?: unknown);
    export_set_free(m->exports);
    g_ptr_array_unref(m->channels);
    if (m->file) {
        qemu_fclose(m->file);
    }
    mux_link_unregister_yank(l);
    if (failure) {
        mux_destination_report_cause(m, failure);
    } else {
        mux_session_close(l->session, NULL, MIGRATION_MUX_DONE_MS);
    }
    mis->mux_closing = mux_session_ref(l->session);
    if (m->event_held) {
        migrate_generate_event(MIGRATION_STATUS_FAILED);
    }
    mux_link_free(l);
    g_free(m);
}
