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
#include "control-message.h"
#include "migration.h"
#include "mux-candidates.h"
#include "mux-limits.h"
#include "mux-migration.h"
#include "mux-offer.h"
#include "mux-streams.h"
#include "trace.h"

/* Maximum number of pending connections, and of those being closed */
#define MUX_CANDIDATES_MAX  8
#define MUX_LEAVING_MAX     8

typedef struct MuxCandidate {
    QIOChannel *ioc;            /* during the handshake, whose task keeps it */
    MuxLink *link;              /* afterwards */
    QIOChannelMux *main;        /* once it was opened; not answered */
    QEMUTimer *timer;
    bool leaving;
    QTAILQ_ENTRY(MuxCandidate) next;
} MuxCandidate;

static const MuxCandidatesOps *candidates_ops;
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
    /* If late: for the TLS handshake, after which the reason can be sent */
    return mux_candidates_late() ? MIGRATION_MUX_LINGER_MS :
                                   mux_limit_offer_ms();
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
    if (c->main) {
        qio_channel_mux_set_changed(c->main, NULL, NULL);
        object_unref(OBJECT(c->main));
    }
    mux_link_free(c->link);
    timer_free(c->timer);
    QTAILQ_REMOVE(&candidates, c, next);
    g_free(c);
}

static unsigned mux_candidates_count(bool leaving)
{
    MuxCandidate *c, *tmp;
    unsigned n = 0;

    QTAILQ_FOREACH_SAFE(c, &candidates, next, tmp) {
        if (c->leaving && mux_session_closed(c->link->session)) {
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
static void mux_candidate_close(MuxCandidate *c, const MuxFailure *why)
{
    if (mux_candidates_count(true) < MUX_LEAVING_MAX) {
        mux_session_close(c->link->session, why, MIGRATION_MUX_LINGER_MS);
    } else {
        mux_session_yank(c->link->session);
    }
    /* Afterwards: streams that were just opened are refused with @why, too */
    mux_session_detach(c->link->session);
    c->leaving = true;
    mux_candidate_set_timer(c, MIGRATION_MUX_LINGER_MS);
}

static void mux_candidate_leave(MuxCandidate *c, const MuxFailure *why)
{
    if (c->link) {
        mux_link_unregister_yank(c->link);
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

/* @c cannot be the source because of @failure. */
static void mux_candidate_fail(MuxCandidate *c, const MuxFailure *failure)
{
    g_autofree char *text = mux_failure_text(failure);

    if (c->leaving) {
        return;
    }
    trace_migration_mux_candidate_failed(text);
    mux_candidate_leave(c, failure);
    if (mux_candidate_is_only()) {
        candidates_ops->failed(failure);
    } else {
        error_report("migration: rejected a connection: %s", text);
    }
}

static void mux_candidate_timeout(void *opaque)
{
    MuxCandidate *c = opaque;
    g_autoptr(MuxFailure) late = mux_failure_timeout(NULL, mux_candidate_ms(),
                                                     "the source's offer");

    if (c->leaving) {
        mux_candidate_free(c);
        return;
    }
    mux_candidate_fail(c, late);
}

/* --- the offer --- */

static void mux_candidate_reject(MuxCandidate *c,
                                 MigrationControlReasonList *reasons)
{
    MigrationControl message = { .type = MIGRATION_CONTROL_TYPE_REJECTED };
    g_autoptr(MuxFailure) failure = mux_offer_failure(reasons, false);

    message.u.rejected.reasons = reasons;
    mux_control_send(c->link->control, &message, NULL);
    mux_candidate_fail(c, failure);
}

static MuxFailure *mux_candidates_too_late(void)
{
    return mux_failure_new(NULL, MUX_CODE_REFUSED,
                           "another source was accepted");
}

static bool mux_candidate_send_accepted(MuxCandidate *c, MuxFailure **failp)
{
    MigrationControl message = { .type = MIGRATION_CONTROL_TYPE_ACCEPTED };
    g_autofree char *token = mux_offer_token_new(failp);

    message.u.accepted.token = token;
    return token && mux_control_send(c->link->control, &message, failp);
}

static void mux_candidate_accept(MuxCandidate *c)
{
    g_autoptr(MuxFailure) others = mux_candidates_too_late();
    g_autoptr(MuxFailure) failure = NULL;
    QIOChannelMux *main;
    MuxLink *link;

    if (!mux_candidate_send_accepted(c, &failure)) {
        mux_candidate_fail(c, failure);
        return;
    }
    link = g_steal_pointer(&c->link);
    main = g_steal_pointer(&c->main);
    mux_candidate_free(c);
    mux_candidates_end(others, false);
    candidates_ops->accepted(link, main);
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

/* --- the session --- */

/* The connection, or `control`, has ended because of @failure, or NULL. */
static void mux_candidate_lost(MuxCandidate *c, const MuxFailure *failure)
{
    g_autoptr(MuxFailure) early =
        mux_failure_new(NULL, MUX_CODE_PROTOCOL,
                        "the source ended the connection early");

    mux_candidate_fail(c, failure ?: early);
}

static void mux_candidate_control_ended(const MuxFailure *failure,
                                        void *opaque)
{
    mux_candidate_lost(opaque, failure);
}

static const MuxControlOps mux_candidate_control_ops = {
    .message = mux_candidate_message,
    .broken = mux_candidate_control_ended,
    .ended = mux_candidate_control_ended,
};

/* The end of `control` is seen by those who read it. */
static void mux_candidate_main_changed(QIOChannelMux *ioc, void *opaque)
{
    g_autoptr(MuxFailure) failure = qio_channel_mux_get_failure(ioc);

    if (failure) {
        mux_candidate_fail(opaque, failure);
    }
}

static void mux_candidate_refuse(QIOChannelMux *ioc)
{
    g_autoptr(MuxFailure) early =
        mux_failure_new(NULL, MUX_CODE_REFUSED, "opened before the destination "
                        "has accepted the migration");

    qio_channel_mux_abort(ioc, early);
}

static void mux_candidate_opened(MuxSession *session, QIOChannelMux *ioc,
                                 void *opaque)
{
    MuxCandidate *c = opaque;
    MuxLink *l = c->link;
    MuxStreamKind kind = mux_stream_kind_of(qio_channel_mux_name(ioc));

    if (kind == MUX_STREAM_KIND_CONTROL && !l->control) {
        mux_stream_kind_set_up(kind, ioc);
        l->control = mux_control_new(ioc, MUX_ROLE_DESTINATION,
                                     &mux_candidate_control_ops, c);
        qio_channel_mux_accept(ioc);
    } else if (kind == MUX_STREAM_KIND_MAIN && !c->main) {
        qio_channel_mux_set_changed(ioc, mux_candidate_main_changed, c);
        c->main = ioc;
        object_ref(OBJECT(ioc));
    } else {
        mux_candidate_refuse(ioc);
    }
}

static void mux_candidate_ended(MuxSession *session, const MuxFailure *failure,
                                void *opaque)
{
    mux_candidate_lost(opaque, failure);
}

static const MuxSessionOps mux_candidate_ops = {
    .opened = mux_candidate_opened,
    .ended = mux_candidate_ended,
};

/* --- what comes from the listener and from TLS --- */

bool mux_candidates_admit(QIOChannel *ioc, const MuxCandidatesOps *ops)
{
    candidates_ops = ops;
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
    g_autoptr(MuxFailure) failure = mux_failure_from_error(NULL, err);

    if (c) {
        c->ioc = NULL;
        mux_candidate_free(c);
        if (mux_candidate_is_only()) {
            candidates_ops->failed(failure);
        }
    }
}

void mux_candidate_serve(QIOChannel *ioc)
{
    MuxCandidate *c = mux_candidate_find(ioc) ?: mux_candidate_new();
    g_autoptr(MuxFailure) late = mux_candidates_too_late();

    c->ioc = NULL;
    c->link = mux_link_new();
    mux_link_begin(c->link, ioc, MUX_ROLE_DESTINATION, &mux_candidate_ops, c);
    if (mux_candidates_late()) {
        mux_candidate_close(c, late);
        error_report("migration: rejected a connection: %s", late->text);
        return;
    }
    mux_link_watch(c->link);
}

void mux_candidates_end(const MuxFailure *why, bool wait)
{
    MuxCandidate *c, *tmp;

    QTAILQ_FOREACH(c, &candidates, next) {
        if (!c->leaving) {
            mux_candidate_leave(c, why);
        }
    }
    QTAILQ_FOREACH_SAFE(c, &candidates, next, tmp) {
        if (wait && c->link) {
            mux_session_close_wait(c->link->session, why,
                                   MIGRATION_MUX_LINGER_MS);
        }
    }
}
