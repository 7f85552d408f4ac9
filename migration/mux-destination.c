/*
 * Migration over a multiplexed connection: the destination's order of things
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
#include "qemu/main-loop.h"
#include "qemu/units.h"
#include "qemu/yank.h"
#include "channel-args.h"
#include "disk-export.h"
#include "migration.h"
#include "multifd.h"
#include "mux-candidates.h"
#include "mux-destination.h"
#include "mux-migration.h"
#include "mux-stream-info.h"
#include "options.h"
#include "qemu-file.h"
#include "trace.h"

/*
 * What waits here to be loaded is downtime that the source cannot see.  At the
 * 500 MB/s of a slow loader this much is 34 ms, a tenth of the default limit;
 * and RAM has the whole of a 10 Gb/s link up to a round trip of 7 ms.
 */
#define MUX_DESTINATION_RAM_WINDOW     (16 * MiB)

typedef struct MuxDestination MuxDestination;

/* A stream that migration_ioc_process_incoming() takes once it has data */
typedef struct MuxDestinationChannel {
    MuxDestination *m;
    QIOChannelMux *ioc;
    guint watch;                /* 0: it was taken */
} MuxDestinationChannel;

struct MuxDestination {
    MigrationIncomingState *mis;
    MuxSession *session;
    MuxControl *control;
    MigrationPhase phase;       /* what the source said last; atomic */
    QIOChannelMux *main;        /* NULL until the source opened it */
    GPtrArray *channels;        /* MuxDestinationChannel *, `main` among them */
    GPtrArray *disks;           /* DiskExport *, as migrate-incoming listed */
    Error *err;                 /* the first failure */
    bool committed;             /* the source has given the guest up */
    bool over;                  /* nothing more comes on `control` */
    bool event_held;            /* the clean-up sends FAILED */
    Coroutine *taking_over;     /* waits for the source's commit */
};

bool migration_mux_expected(MigrationIncomingState *mis)
{
    return mis->channels && mis->channels->mux;
}

bool migration_mux_destination_phase(MigrationIncomingState *mis,
                                     MigrationPhase *phase)
{
    if (mis->mux) {
        *phase = qatomic_read(&mis->mux->phase);
        return true;
    }
    *phase = MIGRATION_PHASE_CONNECT;
    return mis->state == MIGRATION_STATUS_SETUP && migration_mux_expected(mis);
}

bool mux_destination_is_main(MigrationIncomingState *mis, QIOChannel *ioc)
{
    return mis->mux && ioc == QIO_CHANNEL(mis->mux->main);
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

/*
 * Tell the source why.  The main loop does not wait for a source that does not
 * read that, unless the process is about to exit.
 */
static void mux_destination_close(MuxDestination *m, const Error *why)
{
    if (m->mis->exit_on_error) {
        mux_session_close_wait(m->session, why, MIGRATION_MUX_LINGER_MS);
    } else {
        mux_session_close(m->session, why, MIGRATION_MUX_LINGER_MS);
    }
}

/* Nothing was loaded yet: finish the incoming migration here. */
static void mux_destination_give_up(MigrationIncomingState *mis,
                                    const Error *err)
{
    migrate_set_error(migrate_get_current(), err);
    error_report_err(migration_mux_explain(err));
    migrate_set_state(&mis->state, mis->state, MIGRATION_STATUS_FAILED);
    if (mis->mux) {
        mux_destination_close(mis->mux, err);
    } else {
        mux_candidates_end(err, mis->exit_on_error);
    }
    if (mis->exit_on_error) {
        exit(EXIT_FAILURE);
    }
    migration_incoming_state_destroy();
    /* The reference that qmp_migrate_incoming() has taken */
    object_unref(OBJECT(migrate_get_current()));
}

void mux_destination_no_source(MigrationIncomingState *mis, const Error *err)
{
    if (!mis->mux && mis->state == MIGRATION_STATUS_SETUP) {
        mux_destination_give_up(mis, err);
    }
}

/* Has the source given the guest up, or will it not any more? */
static bool mux_destination_decided(MuxDestination *m)
{
    return m->err || m->over || m->committed;
}

static void mux_destination_wake(MuxDestination *m)
{
    if (m->taking_over && mux_destination_decided(m)) {
        aio_co_schedule(qemu_get_aio_context(),
                        g_steal_pointer(&m->taking_over));
    }
}

static void mux_destination_fail(MuxDestination *m, const Error *err)
{
    if (m->err) {
        return;
    }
    m->err = error_copy(err);
    if (mux_destination_loading(m)) {
        /* Ends the loading, which reports m->err. */
        qio_channel_mux_abort(m->main, err);
        mux_destination_wake(m);
    } else {
        mux_destination_give_up(m->mis, err);
    }
}

static void mux_destination_disk_failed(DiskExport *d, const Error *err,
                                        void *opaque)
{
    mux_destination_fail(opaque, err);
}

/* --- main --- */

static bool mux_destination_disks_opened(MuxDestination *m, Error **errp)
{
    for (guint i = 0; i < m->disks->len; i++) {
        DiskExport *d = g_ptr_array_index(m->disks, i);

        if (!disk_export_stream(d)) {
            error_setg(errp, "stream '%s': listed in the destination's "
                       "migrate-incoming, but not opened by the source",
                       disk_export_def(d)->stream);
            return false;
        }
    }
    return true;
}

static void mux_destination_channel_free(gpointer opaque)
{
    MuxDestinationChannel *c = opaque;

    if (c->watch) {
        g_source_remove(c->watch);
    }
    object_unref(OBJECT(c->ioc));
    g_free(c);
}

static gboolean mux_destination_channel_readable(QIOChannel *ioc,
                                                 GIOCondition cond,
                                                 gpointer opaque)
{
    MuxDestinationChannel *c = opaque;
    MuxDestination *m = c->m;
    Error *err = qio_channel_mux_get_error(c->ioc);

    c->watch = 0;
    qio_channel_mux_set_read_least(c->ioc, 1);
    if (!err && (c->ioc != m->main || mux_destination_disks_opened(m, &err))) {
        migration_ioc_process_incoming(ioc, &err);
        if (err) {
            error_prepend(&err, "stream '%s': ", qio_channel_mux_name(c->ioc));
        }
    }
    if (err) {
        mux_destination_fail(m, err);
        error_free(err);
    }
    return G_SOURCE_REMOVE;
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

/* @least: bytes that the code that takes it over reads at once */
static bool mux_destination_add_channel(MuxDestination *m, QIOChannelMux *ioc,
                                        size_t least, Error **errp)
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
    qio_channel_mux_set_read_least(ioc, least);
    c->watch = qio_channel_add_watch(QIO_CHANNEL(ioc), G_IO_IN,
                                     mux_destination_channel_readable, c, NULL);
    g_ptr_array_add(m->channels, c);
    qio_channel_mux_set_window_max(ioc, MUX_DESTINATION_RAM_WINDOW);
    qio_channel_mux_accept(ioc);
    return true;
}

static bool mux_destination_open_main(MuxDestination *m, QIOChannelMux *ioc,
                                      Error **errp)
{
    if (!mux_destination_add_channel(m, ioc, 1, errp)) {
        return false;
    }
    m->main = ioc;
    return true;
}

/* Is it multifd-0, or one of those that follow? */
static bool mux_destination_is_multifd(const char *name)
{
    for (int i = 0; i < migrate_multifd_channels(); i++) {
        g_autofree char *expected = g_strdup_printf("multifd-%d", i);

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
    return mux_destination_add_channel(m, ioc, MULTIFD_INIT_SIZE, errp);
}

/* --- the session --- */

static bool mux_destination_open_disk(MuxDestination *m, QIOChannelMux *ioc,
                                      Error **errp)
{
    const char *name = qio_channel_mux_name(ioc);

    for (guint i = 0; i < m->disks->len; i++) {
        DiskExport *d = g_ptr_array_index(m->disks, i);

        if (g_str_equal(disk_export_def(d)->stream, name)) {
            return disk_export_accept(d, ioc, errp);
        }
    }
    error_setg(errp, "not listed in the destination's migrate-incoming");
    return false;
}

static void mux_destination_opened(MuxSession *session, QIOChannelMux *ioc,
                                   void *opaque)
{
    MuxDestination *m = opaque;
    const char *name = qio_channel_mux_name(ioc);
    g_autoptr(Error) err = NULL;
    bool ok;

    if (g_str_equal(name, "main")) {
        ok = mux_destination_open_main(m, ioc, &err);
    } else if (g_str_has_prefix(name, "multifd-")) {
        ok = mux_destination_open_multifd(m, ioc, &err);
    } else {
        ok = mux_destination_open_disk(m, ioc, &err);
    }
    if (!ok) {
        trace_migration_mux_destination_refused(name, error_get_pretty(err));
        qio_channel_mux_abort(ioc, err);
    }
}

static void mux_destination_disk_ends(MuxDestination *m, QIOChannelMux *ioc)
{
    for (guint i = 0; i < m->disks->len; i++) {
        DiskExport *d = g_ptr_array_index(m->disks, i);

        if (disk_export_stream(d) == ioc) {
            disk_export_end(d, migrate_channel_mux_stop_timeout() / 2);
        }
    }
}

static void mux_destination_changed(MuxSession *session, QIOChannelMux *ioc,
                                    void *opaque)
{
    MuxDestination *m = opaque;
    g_autoptr(Error) err = NULL;

    switch (qio_channel_mux_state(ioc)) {
    case MUX_STREAM_RESET:
        /* The source's reason comes with the stream that it resets first. */
        err = qio_channel_mux_get_error(ioc);
        if (err) {
            mux_destination_fail(m, err);
        }
        break;
    case MUX_STREAM_FINISHING:
        mux_destination_disk_ends(m, ioc);
        break;
    default:
        break;
    }
}

static const MuxSessionOps mux_destination_ops = {
    .opened = mux_destination_opened,
    .changed = mux_destination_changed,
};

/* --- control --- */

static void mux_destination_set_phase(MuxDestination *m, const char *name)
{
    int phase = qapi_enum_parse(&MigrationPhase_lookup, name, -1, NULL);

    /* Those of a later version are not known here */
    if (phase >= 0) {
        trace_migration_mux_destination_phase(name);
        qatomic_set(&m->phase, phase);
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
        m->committed = true;
        mux_destination_wake(m);
        break;
    default:
        break;
    }
}

static void mux_destination_broken(const Error *err, void *opaque)
{
    mux_destination_fail(opaque, err);
}

/* With the connection, usually */
static void mux_destination_control_ended(void *opaque)
{
    MuxDestination *m = opaque;
    g_autoptr(Error) err = NULL;

    /* What `main` has received is loaded before it sees the end. */
    if (mux_destination_loading(m)) {
        m->over = true;
        mux_destination_wake(m);
        return;
    }
    err = qio_channel_mux_get_error(mux_control_stream(m->control));
    if (!err) {
        error_setg(&err, "all streams: the source ended the connection "
                   "early");
    }
    mux_destination_fail(m, err);
}

static const MuxControlOps mux_destination_control_ops = {
    .message = mux_destination_message,
    .broken = mux_destination_broken,
    .ended = mux_destination_control_ended,
};

/* --- the source --- */

bool migration_mux_refuses(MigrationIncomingState *mis, QIOChannel *ioc)
{
    return migration_mux_expected(mis) && !mux_candidates_admit(ioc);
}

void migration_mux_accept(MigrationIncomingState *mis, QIOChannel *ioc)
{
    mux_candidate_serve(ioc);
}

void mux_destination_begin(MigrationIncomingState *mis, MuxSession *session,
                           MuxControl *control, QIOChannelMux *main)
{
    GPtrArray *defs = mis->channels->disks;
    MuxDestination *m = mis->mux = g_new0(MuxDestination, 1);

    m->mis = mis;
    m->phase = MIGRATION_PHASE_CONNECT;
    m->channels = g_ptr_array_new_with_free_func(mux_destination_channel_free);
    m->disks = g_ptr_array_new();
    for (guint i = 0; i < defs->len; i++) {
        g_ptr_array_add(m->disks,
                        disk_export_new(g_ptr_array_index(defs, i),
                                        mux_destination_disk_failed, m));
    }
    m->session = session;
    m->control = control;
    mux_control_set_ops(control, &mux_destination_control_ops, m);
    mux_session_set_ops(session, &mux_destination_ops, m);
    if (main) {
        mux_destination_opened(session, main, m);
    }
    object_unref(OBJECT(main));
}

/* --- loading --- */

static bool mux_destination_check_disks(MuxDestination *m, Error **errp)
{
    for (guint i = 0; i < m->disks->len; i++) {
        DiskExport *d = g_ptr_array_index(m->disks, i);

        if (!disk_export_done(d)) {
            error_setg(errp, "stream '%s': the device state arrived before "
                       "the disk was complete", disk_export_def(d)->stream);
            return false;
        }
    }
    return true;
}

bool coroutine_fn migration_mux_handover_accept(MigrationIncomingState *mis,
                                                Error **errp)
{
    MuxDestination *m = mis->mux;
    g_autoptr(Error) cause = NULL;
    Error *err = NULL;

    if (!m) {
        return true;
    }
    if (!mux_destination_check_disks(m, errp)) {
        return false;
    }
    if (mis->to_src_file) {
        migrate_send_rp_shut(mis, 0);
        qemu_fclose(g_steal_pointer(&mis->to_src_file));
    }
    /* No limit: after the source's commit only this side has the guest */
    mux_session_set_silence(m->session, 0);
    if (!mux_control_say(m->control, MIGRATION_CONTROL_TYPE_LOADED, errp)) {
        return false;
    }
    while (!mux_destination_decided(m)) {
        m->taking_over = qemu_coroutine_self();
        qemu_coroutine_yield();
    }
    if (m->committed) {
        return true;
    }
    cause = m->err ? error_copy(m->err) :
        qio_channel_mux_get_error(mux_control_stream(m->control));
    error_setg(&err, "stream 'main': everything was loaded, but the source did "
               "not hand the guest over: %s", cause ? error_get_pretty(cause) :
               "it ended the connection");
    /* For migration_mux_load_failed() */
    error_free(m->err);
    m->err = error_copy(err);
    error_propagate(errp, err);
    return false;
}

/*
 * While the GOAWAY waits for other data, the peer sees the cause by these; and
 * closing `main` cannot send a FIN any more.
 */
static void mux_destination_abort_streams(MuxDestination *m)
{
    for (guint i = 0; i < m->channels->len; i++) {
        MuxDestinationChannel *c = g_ptr_array_index(m->channels, i);

        qio_channel_mux_abort(c->ioc, m->err);
    }
    for (guint i = 0; i < m->disks->len; i++) {
        disk_export_abort(g_ptr_array_index(m->disks, i), m->err);
    }
}

void migration_mux_load_failed(MigrationIncomingState *mis, Error **errp)
{
    MuxDestination *m = mis->mux;
    Error *cause = NULL;

    if (!m) {
        return;
    }
    if (m->err) {
        cause = error_copy(m->err);
    } else {
        qemu_file_get_error_obj(mis->from_src_file, &cause);
    }
    if (cause) {
        error_free(*errp);
        *errp = cause;
    }
    if (!m->err) {
        m->err = error_copy(*errp);
    }
    mux_destination_close(m, *errp);
    mux_destination_abort_streams(m);
}

/* --- query --- */

static MigrationStreamInfoList *mux_destination_streams(MuxDestination *m)
{
    MigrationStreamInfoList *list = NULL, **tail = &list;

    for (guint i = 0; i < m->channels->len; i++) {
        MuxDestinationChannel *c = g_ptr_array_index(m->channels, i);

        QAPI_LIST_APPEND(tail, mux_stream_info_new(c->ioc));
    }
    for (guint i = 0; i < m->disks->len; i++) {
        QIOChannelMux *ioc =
            disk_export_stream(g_ptr_array_index(m->disks, i));

        if (ioc) {
            QAPI_LIST_APPEND(tail, mux_stream_info_new(ioc));
        }
    }
    return list;
}

void mux_destination_info(MigrationIncomingState *mis, MigrationInfo *info)
{
    if (mis->mux) {
        mux_stream_info_report(info, qatomic_read(&mis->mux->phase),
                               mux_destination_streams(mis->mux));
    } else {
        mux_stream_info_report_done(info, mis->mux_streams);
    }
}

/* --- the end --- */

void mux_destination_shutdown(MigrationIncomingState *mis)
{
    MuxSession *closing = g_steal_pointer(&mis->mux_closing);
    MuxDestination *m = mis->mux;
    g_autoptr(Error) why = NULL;

    if (closing) {
        mux_session_close_wait(closing, NULL, MIGRATION_MUX_LINGER_MS);
        mux_session_unref(closing);
    }
    error_setg(&why, "the destination was shut down");
    mux_candidates_end(why, true);
    if (!m) {
        return;
    }
    /* The loading fails because of this, which is no reason for exit(1) */
    mis->exit_on_error = false;
    /* First, so that streams which are not accepted any more hear of it, too */
    mux_session_close(m->session, why, MIGRATION_MUX_LINGER_MS);
    mux_session_detach(m->session);
    while (m->disks->len) {
        disk_export_free(g_ptr_array_remove_index(m->disks,
                                                  m->disks->len - 1), why);
    }
    mux_session_close_wait(m->session, why, MIGRATION_MUX_LINGER_MS);
}

void migration_mux_destination_cleanup(MigrationIncomingState *mis)
{
    MuxDestination *m = g_steal_pointer(&mis->mux);
    g_autoptr(Error) unknown = NULL;

    error_setg(&unknown, "the migration failed at the destination");
    mux_candidates_end(unknown, false);
    if (!m) {
        return;
    }
    mux_session_detach(m->session);
    if (m->err) {
        mux_destination_abort_streams(m);
    } else {
        /* Errors are ignored: the confirmation is not essential */
        mux_control_say(m->control, MIGRATION_CONTROL_TYPE_RUNNING, NULL);
    }
    mux_control_free(m->control);
    mis->mux_streams = mux_destination_streams(m);
    for (guint i = 0; i < m->disks->len; i++) {
        disk_export_free(g_ptr_array_index(m->disks, i), m->err ?: unknown);
    }
    g_ptr_array_unref(m->disks);
    g_ptr_array_unref(m->channels);
    yank_unregister_function(MIGRATION_YANK_INSTANCE, mux_session_yank,
                             m->session);
    mux_session_close(m->session, m->err, MIGRATION_MUX_LINGER_MS);
    mis->mux_closing = m->session;
    if (m->event_held) {
        migrate_generate_event(MIGRATION_STATUS_FAILED);
    }
    error_free(m->err);
    g_free(m);
}
