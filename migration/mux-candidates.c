/*
 * Migration over a multiplexed connection: who may be the source
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "qemu/error-report.h"
#include "qemu/queue.h"
#include "qemu/timer.h"
#include "qemu/units.h"
#include "qemu/yank.h"
#include "control-message.h"
#include "migration.h"
#include "mux-candidates.h"
#include "mux-control.h"
#include "mux-destination.h"
#include "mux-migration.h"
#include "mux-offer.h"
#include "options.h"
#include "trace.h"

/* Maximum number of pending connections, and of those being closed */
#define MUX_CANDIDATES_MAX  8
#define MUX_LEAVING_MAX     8
/*
 * Time limit for acceptance, including TLS.  Longer than that of HELLO, whose
 * error is more specific.
 */
#define MUX_CANDIDATE_MS    35000

typedef struct MuxCandidate {
    QIOChannel *ioc;            /* during the handshake, whose task keeps it */
    MuxSession *session;        /* afterwards */
    MuxControl *control;        /* once it is open */
    QIOChannelMux *main;        /* once it was opened; not answered */
    QEMUTimer *timer;
    bool leaving;
    QTAILQ_ENTRY(MuxCandidate) next;
} MuxCandidate;

static QTAILQ_HEAD(, MuxCandidate) candidates =
    QTAILQ_HEAD_INITIALIZER(candidates);

/* --- life --- */

static void mux_candidate_timeout(void *opaque);

/* Has another source been accepted? */
static bool mux_candidates_late(void)
{
    MigrationIncomingState *mis = migration_incoming_get_current();

    return mis->mux || mis->state != MIGRATION_STATUS_SETUP;
}

static uint32_t mux_candidate_ms(void)
{
    uint32_t silence = migrate_channel_mux_timeout();

    if (mux_candidates_late()) {
        /* For the TLS handshake, after which the reason can be sent */
        return MIGRATION_MUX_LINGER_MS;
    }
    return silence ? MIN(silence, MUX_CANDIDATE_MS) : MUX_CANDIDATE_MS;
}

static void mux_candidate_set_timer(MuxCandidate *c, int64_t ms)
{
    timer_mod(c->timer, qemu_clock_get_ms(QEMU_CLOCK_REALTIME) + ms);
}

static MuxCandidate *mux_candidate_new(void)
{
    MuxCandidate *c = g_new0(MuxCandidate, 1);

    c->timer = timer_new_ms(QEMU_CLOCK_REALTIME, mux_candidate_timeout, c);
    mux_candidate_set_timer(c, mux_candidate_ms());
    QTAILQ_INSERT_TAIL(&candidates, c, next);
    return c;
}

static MuxCandidate *mux_candidate_find(QIOChannel *ioc)
{
    MuxCandidate *c;

    QTAILQ_FOREACH(c, &candidates, next) {
        if (c->ioc == ioc) {
            break;
        }
    }
    return c;
}

/* Its session has been taken over, or is being closed. */
static void mux_candidate_free(MuxCandidate *c)
{
    mux_control_free(c->control);
    object_unref(OBJECT(c->main));
    mux_session_unref(c->session);
    timer_free(c->timer);
    QTAILQ_REMOVE(&candidates, c, next);
    g_free(c);
}

static unsigned mux_candidates_count(bool leaving)
{
    MuxCandidate *c, *tmp;
    unsigned n = 0;

    QTAILQ_FOREACH_SAFE(c, &candidates, next, tmp) {
        if (c->leaving && mux_session_closed(c->session)) {
            mux_candidate_free(c);
        } else {
            n += c->leaving == leaving;
        }
    }
    return n;
}

/*
 * Say @why and close, in the background.  The streams stay until that is done:
 * what was sent on `control` has to go out, and `main` gets no other answer.
 */
static void mux_candidate_close(MuxCandidate *c, const Error *why)
{
    mux_session_detach(c->session);
    if (mux_candidates_count(true) < MUX_LEAVING_MAX) {
        mux_session_close(c->session, why, MIGRATION_MUX_LINGER_MS);
    } else {
        mux_session_yank(c->session);
    }
    c->leaving = true;
    mux_candidate_set_timer(c, MIGRATION_MUX_LINGER_MS);
}

static void mux_candidate_leave(MuxCandidate *c, const Error *why)
{
    if (c->session) {
        yank_unregister_function(MIGRATION_YANK_INSTANCE, mux_session_yank,
                                 c->session);
        mux_candidate_close(c, why);
    } else {
        /* Ends the handshake */
        qio_channel_shutdown(c->ioc, QIO_CHANNEL_SHUTDOWN_BOTH, NULL);
    }
}

/* Is this the only connection that is possible? */
static bool mux_candidate_is_only(void)
{
    MigrationAddress *addr =
        migration_incoming_get_current()->channels->main_addr;

    return addr->transport != MIGRATION_ADDRESS_TYPE_SOCKET ||
        addr->u.socket.type == SOCKET_ADDRESS_TYPE_FD;
}

/* @c cannot be the source because of @err. */
static void mux_candidate_fail(MuxCandidate *c, const Error *err)
{
    if (c->leaving) {
        return;
    }
    trace_migration_mux_candidate_failed(error_get_pretty(err));
    mux_candidate_leave(c, err);
    if (mux_candidate_is_only()) {
        mux_destination_no_source(migration_incoming_get_current(), err);
    } else {
        error_report("migration: rejected a connection: %s",
                     error_get_pretty(err));
    }
}

static void mux_candidate_timeout(void *opaque)
{
    MuxCandidate *c = opaque;
    g_autofree char *text = mux_timeout_text(mux_candidate_ms(),
                                             "the source's offer");
    g_autoptr(Error) err = NULL;

    if (c->leaving) {
        mux_candidate_free(c);
        return;
    }
    error_setg(&err, "all streams: %s", text);
    mux_candidate_fail(c, err);
}

/* --- the offer --- */

static void mux_candidate_reject(MuxCandidate *c,
                                 MigrationControlReasonList *reasons)
{
    MigrationControl message = { .type = MIGRATION_CONTROL_TYPE_REJECTED };
    g_autoptr(Error) err = mux_offer_error(reasons);

    message.u.rejected.reasons = reasons;
    mux_control_send(c->control, &message, NULL);
    mux_candidate_fail(c, err);
}

static bool mux_candidate_send_accepted(MuxCandidate *c, Error **errp)
{
    MigrationControl message = { .type = MIGRATION_CONTROL_TYPE_ACCEPTED };
    g_autofree char *token = mux_offer_token_new(errp);

    message.u.accepted.token = token;
    return token && mux_control_send(c->control, &message, errp);
}

static void mux_candidate_accept(MuxCandidate *c)
{
    MigrationIncomingState *mis = migration_incoming_get_current();
    g_autoptr(Error) others = NULL;
    g_autoptr(Error) err = NULL;
    QIOChannelMux *main;
    MuxSession *session;
    MuxControl *control;

    if (!mux_candidate_send_accepted(c, &err)) {
        mux_candidate_fail(c, err);
        return;
    }
    session = g_steal_pointer(&c->session);
    control = g_steal_pointer(&c->control);
    main = g_steal_pointer(&c->main);
    mux_candidate_free(c);
    error_setg(&others, "another source was accepted");
    mux_candidates_end(others, false);
    mux_destination_begin(mis, session, control, main);
}

static void mux_candidate_message(const MigrationControl *message, void *opaque)
{
    MuxCandidate *c = opaque;
    g_autoptr(MigrationControlReasonList) reasons = NULL;

    if (!c->leaving && message->type == MIGRATION_CONTROL_TYPE_OFFER) {
        reasons = mux_offer_check(&message->u.offer,
                                  migration_incoming_get_current()->channels);
        if (reasons) {
            mux_candidate_reject(c, reasons);
        } else {
            mux_candidate_accept(c);
        }
    }
}

static void mux_candidate_broken(const Error *err, void *opaque)
{
    mux_candidate_fail(opaque, err);
}

/* --- the session --- */

/* The connection has ended because of @err, or NULL. */
static void mux_candidate_lost(MuxCandidate *c, const Error *err)
{
    g_autoptr(Error) early = NULL;

    if (!err) {
        error_setg(&early, "all streams: the source ended the connection "
                   "early");
    }
    mux_candidate_fail(c, err ?: early);
}

static void mux_candidate_control_ended(void *opaque)
{
    MuxCandidate *c = opaque;
    g_autoptr(Error) err =
        qio_channel_mux_get_error(mux_control_stream(c->control));

    mux_candidate_lost(c, err);
}

static const MuxControlOps mux_candidate_control_ops = {
    .message = mux_candidate_message,
    .broken = mux_candidate_broken,
    .ended = mux_candidate_control_ended,
};

static void mux_candidate_opened(MuxSession *session, QIOChannelMux *ioc,
                                 void *opaque)
{
    MuxCandidate *c = opaque;
    const char *name = qio_channel_mux_name(ioc);
    g_autoptr(Error) err = NULL;

    if (g_str_equal(name, "control") && !c->control) {
        qio_channel_mux_set_window_max(ioc, MUX_CONTROL_MESSAGE_MAX);
        c->control = mux_control_new(ioc, MUX_ROLE_DESTINATION,
                                     &mux_candidate_control_ops, c);
        qio_channel_mux_accept(ioc);
    } else if (g_str_equal(name, "main") && !c->main) {
        c->main = ioc;
        object_ref(OBJECT(ioc));
    } else {
        error_setg(&err, "opened before the destination has accepted the "
                   "migration");
        qio_channel_mux_abort(ioc, err);
    }
}

static void mux_candidate_changed(MuxSession *session, QIOChannelMux *ioc,
                                  void *opaque)
{
    g_autoptr(Error) err = NULL;

    if (qio_channel_mux_state(ioc) == MUX_STREAM_RESET) {
        err = qio_channel_mux_get_error(ioc);
        if (err) {
            mux_candidate_fail(opaque, err);
        }
    }
}

static void mux_candidate_ended(MuxSession *session, const Error *err,
                                void *opaque)
{
    mux_candidate_lost(opaque, err);
}

static const MuxSessionOps mux_candidate_ops = {
    .opened = mux_candidate_opened,
    .changed = mux_candidate_changed,
    .ended = mux_candidate_ended,
};

/* --- what comes from the listener and from TLS --- */

bool mux_candidates_admit(QIOChannel *ioc)
{
    if (mux_candidate_find(ioc) ||
        mux_candidates_count(false) < MUX_CANDIDATES_MAX) {
        return true;
    }
    error_report("migration: rejected a connection: %d connections are "
                 "pending already", MUX_CANDIDATES_MAX);
    qio_channel_close(ioc, NULL);
    return false;
}

void mux_candidate_handshake(QIOChannel *ioc)
{
    mux_candidate_new()->ioc = ioc;
}

void mux_candidate_handshake_failed(QIOChannel *ioc, const Error *err)
{
    MuxCandidate *c = mux_candidate_find(ioc);

    if (c) {
        c->ioc = NULL;
        mux_candidate_free(c);
        if (mux_candidate_is_only()) {
            mux_destination_no_source(migration_incoming_get_current(), err);
        }
    }
}

void mux_candidate_serve(QIOChannel *ioc)
{
    MuxCandidate *c = mux_candidate_find(ioc) ?: mux_candidate_new();
    g_autoptr(Error) late = NULL;

    c->ioc = NULL;
    c->session = mux_session_new(ioc, MUX_ROLE_DESTINATION,
                                 &mux_candidate_ops, c);
    if (mux_candidates_late()) {
        error_setg(&late, "another source was accepted");
        mux_candidate_close(c, late);
        error_report("migration: rejected a connection: %s",
                     error_get_pretty(late));
        return;
    }
    mux_session_set_silence(c->session, migrate_channel_mux_timeout());
    yank_register_function(MIGRATION_YANK_INSTANCE, mux_session_yank,
                           c->session);
}

void mux_candidates_end(const Error *why, bool wait)
{
    MuxCandidate *c, *tmp;

    QTAILQ_FOREACH(c, &candidates, next) {
        if (!c->leaving) {
            mux_candidate_leave(c, why);
        }
    }
    QTAILQ_FOREACH_SAFE(c, &candidates, next, tmp) {
        if (wait && c->session) {
            mux_session_close_wait(c->session, why, MIGRATION_MUX_LINGER_MS);
        }
    }
}
