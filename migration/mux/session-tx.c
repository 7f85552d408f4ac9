/*
 * Migration multiplexer: the sender's role
 *
 * The send thread sends what no other thread is sending.  It does not take the
 * BQL.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "qemu/iov.h"
#include "qemu/timer.h"
#include "session.h"
#include "trace.h"

/* Batches that a caller who must not block sends at most in one go */
#define MUX_PUMP_ROUNDS 8

void mux_session_kick_sender(MuxSession *s)
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
    s->writes++;
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
    mux_session_wake_receiver(s);
    mux_session_unlock(s);

    mux_session_unref(s);
    return NULL;
}
