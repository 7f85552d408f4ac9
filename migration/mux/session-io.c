/*
 * Migration multiplexer: the threads of a session and the sender's role
 *
 * The receive thread reads, keeps the time and closes the transport in the
 * end.  It never writes and never waits for a consumer.  The send thread
 * sends what no other thread is sending.  Neither takes the BQL.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "qemu/bswap.h"
#include "qemu/iov.h"
#include "qemu/timer.h"
#include "qemu/units.h"
#include "session.h"
#include "trace.h"

/* Batches that a caller who must not block sends at most in one go */
#define MUX_PUMP_ROUNDS 8
#define MUX_DISCARD_SIZE (16 * KiB)

/* --- events and wake-ups --- */

static void mux_session_trace_id(MuxSession *s)
{
    const uint8_t *id = mux_engine_session(s->engine);

    trace_mux_session_id(s, ldq_be_p(id), ldq_be_p(id + 8));
}

static void mux_session_event(MuxSession *s, const MuxEvent *event)
{
    QIOChannelMux *ioc = event->stream ? mux_stream_opaque(event->stream)
                                       : NULL;

    switch (event->type) {
    case MUX_EVENT_HELLO:
        mux_session_trace_id(s);
        mux_session_call_ready(s);
        break;
    case MUX_EVENT_OPEN:
        mux_session_call_opened(s, event->stream);
        break;
    case MUX_EVENT_ENDED:
        mux_session_over(s);
        break;
    case MUX_EVENT_READABLE:
    case MUX_EVENT_WRITABLE:
        if (ioc) {
            mux_channel_update(ioc);
        }
        break;
    default:
        if (ioc) {
            trace_mux_stream_event(ioc, ioc->name, event->type);
            ioc->peer_reset |= event->type == MUX_EVENT_RESET;
            mux_channel_update(ioc);
            mux_session_call_changed(ioc);
        }
        break;
    }
}

/* The sender's role is free: wake a thread that has something to send. */
static void mux_session_kick(MuxSession *s)
{
    QIOChannelMux *writer = QTAILQ_FIRST(&s->writers);

    if (s->sending || s->tx_error || mux_engine_tx_idle(s->engine)) {
        if (s->over) {
            qemu_cond_signal(&s->send_cond);
        }
        return;
    }
    if (writer && !s->over) {
        /* Others may wait there for their turn to offer something */
        mux_session_wake(s, &(MuxWake) { .ioc = writer, .writers = true });
    } else {
        qemu_cond_signal(&s->send_cond);
    }
}

/*
 * To report a failure, it is enough that what was queued has gone, or never
 * will.  In a clean end, all streams end first; if nothing can be
 * sent, the peer ends the connection.
 */
static bool mux_session_may_part(MuxSession *s)
{
    if (s->why) {
        return s->tx_error || mux_engine_tx_idle(s->engine);
    }
    return !s->tx_error && mux_engine_tx_idle(s->engine) &&
        !mux_engine_has_streams(s->engine);
}

void mux_session_settle(MuxSession *s)
{
    MuxEvent event;

    if (s->closing && !s->over && mux_session_may_part(s)) {
        g_autofree char *why = mux_session_closing_text(s, NULL);

        mux_engine_goaway(s->engine, why ? MUX_CODE_ABORTED : MUX_CODE_OK, why);
    }
    while (mux_engine_next_event(s->engine, &event)) {
        mux_session_event(s, &event);
    }
    if (mux_session_next_due(s) < s->rx_deadline) {
        mux_transport_wake_in(s->transport);
    }
    mux_session_kick(s);
}

/* --- sending --- */

/*
 * The peer may have closed after a GOAWAY that says why, so the receive
 * thread reads on for a while.
 */
static void mux_session_write_failed(MuxSession *s, Error *err)
{
    trace_mux_session_write_failed(s, error_get_pretty(err));
    if (!s->tx_error) {
        s->tx_error = g_strdup(error_get_pretty(err));
    }
    error_free(err);
    mux_session_hurry(s, get_clock() + MUX_LINGER_NS);
}

static void mux_session_wake_writers(MuxSession *s)
{
    QIOChannelMux *ioc;

    QTAILQ_FOREACH(ioc, &s->writers, next_writer) {
        if (mux_channel_write_done(ioc)) {
            mux_session_wake(s, &(MuxWake) { .ioc = ioc, .writers = true });
        }
    }
}

/* Returns: whether the transport takes no more for now */
static bool mux_session_send_batch(MuxSession *s, unsigned niov)
{
    size_t size = iov_size(s->tx_iov, niov);
    Error *err = NULL;
    ssize_t len;

    s->in_write = true;
    mux_session_unlock(s);
    len = mux_transport_writev(s->transport, s->tx_iov, niov, &err);
    mux_session_lock(s);
    s->in_write = false;
    qemu_cond_broadcast(&s->sender_moved);

    if (len == QIO_CHANNEL_ERR_BLOCK) {
        return true;
    }
    if (len < 0) {
        mux_session_write_failed(s, err);
        return false;
    }
    mux_engine_tx_done(s->engine, len);
    mux_session_wake_writers(s);
    return len < size;
}

bool mux_session_pump(MuxSession *s, QIOChannelMux *ioc, bool block)
{
    unsigned rounds = 0;

    s->sending = true;
    while (!s->tx_error) {
        unsigned niov = mux_engine_tx_want(s->engine, s->tx_iov, MUX_IOV,
                                           get_clock());
        bool full;

        if (!niov) {
            break;
        }
        full = mux_session_send_batch(s, niov);
        rounds++;
        if (ioc ? mux_channel_write_done(ioc) : !QTAILQ_EMPTY(&s->writers)) {
            break;
        }
        if (!block && (full || !ioc || rounds == MUX_PUMP_ROUNDS)) {
            break;
        }
        if (full) {
            mux_session_unlock(s);
            mux_transport_wait_out(s->transport, INT64_MAX);
            mux_session_lock(s);
        }
    }
    s->sending = false;
    qemu_cond_broadcast(&s->sender_moved);
    mux_session_settle(s);
    return rounds;
}

static bool mux_session_send_finished(MuxSession *s)
{
    return s->over && !s->sending &&
        (s->tx_error || mux_engine_tx_idle(s->engine));
}

void *mux_session_send_thread(void *opaque)
{
    MuxSession *s = opaque;
    int64_t linger;

    mux_session_lock(s);
    while (!mux_session_send_finished(s)) {
        bool leave = !s->over && !QTAILQ_EMPTY(&s->writers);

        if (s->sending || leave || !mux_session_pump(s, NULL, true)) {
            mux_session_wait(s, &s->send_cond);
        }
    }
    if (!s->tx_error) {
        s->sending = true;
        linger = s->linger;
        mux_session_unlock(s);
        mux_transport_finish(s->transport, linger);
        mux_session_lock(s);
        s->sending = false;
    }
    s->flushed = true;
    qemu_cond_broadcast(&s->sender_moved);
    mux_transport_wake_in(s->transport);
    mux_session_unlock(s);

    mux_session_unref(s);
    return NULL;
}

/* --- receiving --- */

/* What the time demands; with the lock held. */
static void mux_session_check_time(MuxSession *s, int64_t now)
{
    if (s->linger && now >= s->linger) {
        mux_session_cut(s, s->tx_error ?: "timed out closing the connection");
    } else if (now >= mux_engine_deadline(s->engine)) {
        mux_engine_timeout(s->engine, now);
    }
}

/* With the lock held, which is dropped meanwhile */
static void mux_session_tick(MuxSession *s, int64_t now)
{
    const MuxSessionOps *ops = s->ops;
    int64_t heard = s->heard;

    if (now < s->tick_due) {
        return;
    }
    s->tick_due = now + MUX_TICK_MS * (int64_t)SCALE_MS;
    s->ticking = true;
    mux_session_unlock(s);
    ops->tick(s, now, heard, s->opaque);
    mux_session_lock(s);
    s->ticking = false;
    qemu_cond_broadcast(&s->ticked);
}

static void mux_session_received(MuxSession *s, ssize_t len, Error *err)
{
    /*
     * A socket error is reported only once.  If a concurrent write consumed
     * it, the read sees the end of file.
     */
    while (len == 0 && s->in_write) {
        mux_session_wait(s, &s->sender_moved);
    }
    if (len > 0) {
        s->heard = get_clock();
        mux_engine_rx_done(s->engine, len, s->heard);
    } else if (s->tx_error) {
        mux_session_cut(s, s->tx_error);
    } else if (len == 0) {
        mux_engine_rx_eof(s->engine);
    } else {
        mux_engine_transport_error(s->engine, error_get_pretty(err));
    }
    error_free(err);
}

/* Read until the engine has ended; with the lock held */
static void mux_session_receive(MuxSession *s)
{
    struct iovec iov[MUX_IOV];
    unsigned niov;

    while (!s->over &&
           (niov = mux_engine_rx_want(s->engine, iov, MUX_IOV)) > 0) {
        Error *err = NULL;
        int64_t now;
        ssize_t len;

        s->rx_deadline = mux_session_next_due(s);
        mux_session_unlock(s);
        len = mux_transport_readv(s->transport, iov, niov, &err);
        if (len == QIO_CHANNEL_ERR_BLOCK) {
            mux_transport_wait_in(s->transport, s->rx_deadline);
        }
        mux_session_lock(s);
        if (len != QIO_CHANNEL_ERR_BLOCK) {
            mux_session_received(s, len, err);
        }
        now = get_clock();
        mux_session_check_time(s, now);
        mux_session_tick(s, now);
        /* Has the engine ended? */
        mux_session_settle(s);
    }
}

/* Throw away some of what comes; returns whether more may follow.  No lock. */
static bool mux_session_discard(MuxSession *s, int64_t deadline)
{
    g_autofree char *buf = g_malloc(MUX_DISCARD_SIZE);
    struct iovec iov = { .iov_base = buf, .iov_len = MUX_DISCARD_SIZE };
    ssize_t len;

    len = mux_transport_readv(s->transport, &iov, 1, NULL);
    if (len == QIO_CHANNEL_ERR_BLOCK) {
        mux_transport_wait_in(s->transport, deadline);
    }
    return len > 0 || len == QIO_CHANNEL_ERR_BLOCK;
}

/*
 * The engine has ended.  If data arrives after we have closed, our kernel
 * answers with RST, and the peer may lose a GOAWAY that it has not read yet: so
 * after a GOAWAY wait until the peer has closed.  With the lock held.
 */
static void mux_session_linger(MuxSession *s)
{
    bool more = s->last_words;

    /* A change of @linger wakes this thread; settling does not have to */
    s->rx_deadline = INT64_MIN;
    while (!s->flushed || s->sending || more) {
        int64_t left = s->linger - get_clock();

        if (left <= 0) {
            more = false;
            if (!s->flushed || s->sending) {
                mux_session_cut(s, "timed out closing the connection");
                mux_session_settle(s);
                mux_session_wait(s, &s->sender_moved);
            }
        } else if (more) {
            int64_t deadline = s->linger;

            mux_session_unlock(s);
            more = mux_session_discard(s, deadline);
            mux_session_lock(s);
        } else {
            mux_session_timedwait(s, &s->sender_moved,
                                  left / SCALE_MS + 1);
        }
    }
}

void *mux_session_receive_thread(void *opaque)
{
    MuxSession *s = opaque;

    mux_session_lock(s);
    mux_session_receive(s);
    mux_session_linger(s);
    /* From here on mux_session_cut() leaves the transport alone */
    s->closed = true;
    mux_transport_end_waits(s->transport);
    trace_mux_session_closed(s);
    mux_session_unlock(s);

    /* A command at the other end may take its time to exit */
    mux_transport_close(s->transport);

    mux_session_lock(s);
    s->transport_closed = true;
    qemu_cond_broadcast(&s->closed_cond);
    mux_session_unlock(s);
    mux_session_unref(s);
    return NULL;
}
