/*
 * Migration multiplexer: the receiver's role
 *
 * One thread at a time reads the transport, for all streams.  A reader that
 * finds nothing takes this role if it is free: payload goes straight to its
 * memory, and no other thread has to wake it.  A non-blocking reader leaves it
 * when the transport has no more, or after MUX_READ_ROUNDS reads of data for
 * others; a blocking one waits for the transport.
 *
 * A reader that has left the role may be back soon, as may one that the receive
 * thread has just woken.  So the receive thread yields the role to them for
 * MUX_YIELD_NS, or until an event loop or a writer has to wait for the peer.
 * Data is late by that time at most if no reader comes back.  That holds for a
 * blocking reader that has waited while another one was receiving, too.
 *
 * The receive thread also applies the time limits and closes the transport at
 * the end.  It never writes, and waits for readers only as described above.  It
 * does not take the BQL.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "qemu/timer.h"
#include "qemu/units.h"
#include "session.h"
#include "trace.h"

/* Reads of data for others only that a non-blocking reader does at most */
#define MUX_READ_ROUNDS 8
#define MUX_YIELD_NS (1 * (int64_t)SCALE_MS)
#define MUX_DISCARD_SIZE (16 * KiB)

/* Apply the time limits; with the lock held. */
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
    unsigned writes = s->writes;

    /*
     * A socket error is reported only once.  If a concurrent write consumed
     * it, the read sees the end of file.
     */
    while (len == 0 && s->in_write && s->writes == writes) {
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

/*
 * Read once; if there is nothing, wait for data until @deadline (0: do not),
 * without reading it.  Has the role and the lock, which is dropped meanwhile.
 *
 * Returns: whether there was something to read
 */
static bool mux_session_receive(MuxSession *s, int64_t deadline)
{
    struct iovec iov[MUX_IOV];
    unsigned niov = mux_engine_rx_want(s->engine, iov, MUX_IOV);
    Error *err = NULL;
    ssize_t len;

    if (!niov) {
        /* The engine has ended: settling says so */
        mux_session_settle(s);
        return false;
    }
    s->rx_in_call = true;
    mux_session_unlock(s);
    len = mux_transport_readv(s->transport, iov, niov, &err);
    if (len == QIO_CHANNEL_ERR_BLOCK && deadline) {
        mux_transport_wait_in(s->transport, deadline);
    }
    mux_session_lock(s);
    s->rx_in_call = false;
    if (len == QIO_CHANNEL_ERR_BLOCK) {
        return false;
    }
    mux_session_received(s, len, err);
    mux_session_settle(s);
    return true;
}

/* --- a reader --- */

size_t mux_session_read(MuxSession *s, QIOChannelMux *ioc,
                        const struct iovec *iov, unsigned niov, bool block)
{
    MuxStream *stream = ioc->stream;
    unsigned rounds = 0;

    s->receiving = true;
    s->rx_reader = ioc;
    mux_stream_rx_post(stream, iov, niov);
    while (!mux_stream_rx_posted(stream) && !mux_channel_readable(ioc)) {
        bool received = mux_session_receive(s, block ? INT64_MAX : 0);

        if (!block && (!received || ++rounds == MUX_READ_ROUNDS)) {
            break;
        }
    }
    s->rx_reader = NULL;
    s->receiving = false;
    s->rx_turns++;
    s->rx_yield = s->rx_needed ? 0 : get_clock() + MUX_YIELD_NS;
    s->wake_receive_thread |= s->rx_parked || s->rx_needed;
    s->rx_needed = false;
    return mux_stream_rx_unpost(stream);
}

void mux_session_needs_receiver(MuxSession *s)
{
    if (s->receiving) {
        s->rx_needed = true;
    } else if (s->rx_yield) {
        s->rx_yield = 0;
        s->wake_receive_thread = true;
    }
}

void mux_session_wake_receiver(MuxSession *s)
{
    s->wake_receive_thread = true;
    mux_transport_wake_in(s->transport);
}

/* --- the receive thread --- */

/*
 * A reader has the role.  It may be back soon after it has left, so look again
 * after a while; if it has not moved by then, sleep until it leaves.
 */
static void mux_session_park(MuxSession *s)
{
    int64_t deadline = MIN(s->rx_deadline, get_clock() + MUX_YIELD_NS);
    unsigned turns = s->rx_turns;

    mux_session_timedwait(s, &s->receive_cond, deadline);
    if (s->receiving && s->rx_turns == turns) {
        s->rx_parked = true;
        mux_session_timedwait(s, &s->receive_cond, s->rx_deadline);
        s->rx_parked = false;
    }
}

/* Read for all streams once */
static void mux_session_serve(MuxSession *s)
{
    s->receiving = true;
    s->rx_woke = false;
    mux_session_receive(s, s->rx_deadline);
    s->receiving = false;
    s->rx_needed = false;
    s->rx_yield = s->rx_woke ? get_clock() + MUX_YIELD_NS : 0;
}

/* Returns once the engine has ended, with the role */
static void mux_session_receive_all(MuxSession *s)
{
    while (!s->over) {
        int64_t now = get_clock();

        s->rx_deadline = mux_session_next_due(s);
        if (s->receiving) {
            mux_session_park(s);
        } else if (now < s->rx_yield) {
            mux_session_timedwait(s, &s->receive_cond,
                                  MIN(s->rx_deadline, s->rx_yield));
        } else {
            mux_session_serve(s);
        }
        now = get_clock();
        mux_session_check_time(s, now);
        mux_session_tick(s, now);
        /* Settles (has the engine ended?), and wakes before the next wait */
        mux_session_unlock(s);
        mux_session_lock(s);
    }
    s->rx_parked = true;
    while (s->receiving) {
        mux_session_wait(s, &s->receive_cond);
    }
    s->rx_parked = false;
    s->receiving = true;
}

/* Read and discard some data; returns whether more may follow.  No lock. */
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
    while ((!s->flushed || s->sending || more) && get_clock() < s->linger) {
        if (more) {
            int64_t deadline = s->linger;

            mux_session_unlock(s);
            more = mux_session_discard(s, deadline);
            mux_session_lock(s);
        } else {
            mux_session_timedwait(s, &s->sender_moved, s->linger);
        }
    }
    if (!s->flushed || s->sending) {
        mux_session_cut(s, "timed out closing the connection");
    }
    while (!s->flushed || s->sending) {
        mux_session_wait(s, &s->sender_moved);
    }
}

void *mux_session_receive_thread(void *opaque)
{
    MuxSession *s = opaque;

    mux_session_lock(s);
    mux_session_receive_all(s);
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
