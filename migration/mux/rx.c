/*
 * Migration multiplexer: bytes in
 *
 * HELLO, then frames.  While a payload is being received the next header's 16
 * bytes are asked for too, so that a run of DATA frames costs one read each.
 * Payload of DATA goes straight into its stream's memory, of control frames
 * into one small buffer, and unwanted data into a scratch area.
 *
 * This path never waits for an application: credit made sure of room, and a
 * stream that is gone has its data dropped.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "engine-int.h"

/* Account for @bytes of what was named for payload; nothing stays named. */
static void rx_settle(MuxEngine *e, size_t bytes)
{
    MuxStream *s = e->rx_named_stream ? e->rx_stream : NULL;

    e->rx_left -= bytes;
    e->rx_named = 0;
    e->rx_named_stream = false;
    if (!s) {
        return;
    }
    mux_chunks_commit(&s->rx, bytes);
    if (bytes) {
        mux_stream_rx_arrived(s, bytes);
    }
    mux_stream_maybe_free(s);
}

static unsigned want_payload(MuxEngine *e, struct iovec *iov, unsigned max)
{
    unsigned n = 1;

    if (e->rx_drop) {
        iov->iov_base = e->rx_scratch;
        iov->iov_len = MIN(e->rx_left, MUX_SCRATCH_SIZE);
    } else if (e->rx_stream) {
        n = mux_chunks_reserve(&e->rx_stream->rx,
                               MIN(e->rx_left, MUX_FRAME_BULK), iov, max);
        e->rx_named_stream = true;
    } else {
        iov->iov_base = e->rx_control + e->rx_header.length - e->rx_left;
        iov->iov_len = e->rx_left;
    }
    for (unsigned i = 0; i < n; i++) {
        e->rx_named += iov[i].iov_len;
    }
    return n;
}

/* Up to where rx_buf is filled next */
static size_t rx_buf_want(MuxEngine *e)
{
    if (e->hello_done || e->rx_left) {
        return MUX_HEADER_SIZE;
    }
    return mux_hello_want(e);
}

unsigned mux_engine_rx_want(MuxEngine *e, struct iovec *iov, unsigned max)
{
    unsigned n = 0;

    g_assert(max >= 3);
    rx_settle(e, 0);
    if (e->ended) {
        return 0;
    }
    if (e->rx_left) {
        n = want_payload(e, iov, max - 1);
        if (e->rx_named < e->rx_left) {
            return n;
        }
    }
    iov[n].iov_base = e->rx_buf + e->rx_buf_len;
    iov[n].iov_len = rx_buf_want(e) - e->rx_buf_len;
    return n + 1;
}

/*
 * The payload of the current frame, or the tail of the HELLO, is complete; it
 * may have been empty.
 */
static void payload_complete(MuxEngine *e, int64_t now)
{
    if (e->rx_stream) {
        e->rx_stream = NULL;
    } else if (!e->rx_drop) {
        mux_frame_complete(e, now);
    } else if (!e->hello_done) {
        mux_hello_complete(e, now);
    }
}

static void header_arrived(MuxEngine *e, int64_t now)
{
    if (e->rx_buf_len < MUX_HEADER_SIZE) {
        return;
    }
    mux_header_decode(e->rx_buf, &e->rx_header);
    e->rx_buf_len = 0;
    e->rx_left = e->rx_header.length;
    e->rx_drop = false;
    mux_frame_begin(e, now);
    if (!e->ended && !e->rx_left) {
        payload_complete(e, now);
    }
}

void mux_engine_rx_done(MuxEngine *e, size_t bytes, int64_t now)
{
    size_t payload = MIN(bytes, e->rx_named);
    bool had_payload = e->rx_left > 0;

    if (e->ended) {
        /* No events after ENDED */
        rx_settle(e, 0);
        return;
    }
    if (bytes) {
        mux_liveness_heard(e, now);
    }
    rx_settle(e, payload);
    bytes -= payload;
    if (had_payload) {
        if (e->rx_left) {
            g_assert(bytes == 0);
            return;
        }
        payload_complete(e, now);
        if (e->ended) {
            return;
        }
    }
    if (bytes) {
        e->rx_buf_len += bytes;
        g_assert(e->rx_buf_len <= sizeof(e->rx_buf));
        if (e->hello_done) {
            header_arrived(e, now);
        } else {
            mux_hello_arrived(e, now);
        }
    }
}
