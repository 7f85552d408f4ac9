/*
 * Migration multiplexer: bytes in
 *
 * HELLO, then frames.  Payload of DATA goes straight to the memory that a
 * reader has posted, otherwise to the chunks of its stream; payload of control
 * frames goes to one small buffer, unwanted data to a scratch area.  The next
 * header is asked for too, so that a run of large DATA frames costs one read
 * each.  Unless a reader has posted memory for a large payload, what follows
 * the header is read ahead, so that many small frames cost one read, and the
 * stream of a large frame is known before most of its payload is read; payload
 * that was read ahead is copied.
 *
 * This path never waits for an application: credit made sure of room, and a
 * stream that is gone has its data dropped.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "engine-int.h"

static size_t iov_total(const struct iovec *iov, unsigned niov)
{
    size_t total = 0;

    for (unsigned i = 0; i < niov; i++) {
        total += iov[i].iov_len;
    }
    return total;
}

/* The first @placed of @bytes went to what a reader has posted. */
static void stream_payload_arrived(MuxStream *s, size_t placed, size_t bytes)
{
    if (placed) {
        mux_stream_rx_placed(s, placed);
    }
    if (bytes > placed) {
        mux_stream_rx_arrived(s, bytes - placed);
    }
    mux_stream_maybe_free(s);
}

/* Account for @bytes of what was named for payload; nothing stays named. */
static void rx_settle(MuxEngine *e, size_t bytes)
{
    MuxStream *s = e->rx_named_stream ? e->rx_stream : NULL;
    size_t placed = MIN(bytes, e->rx_named_post);

    e->rx_left -= bytes;
    e->rx_named = 0;
    e->rx_named_post = 0;
    e->rx_named_stream = false;
    if (!s) {
        return;
    }
    mux_rx_post_filled(&s->post, placed);
    mux_chunks_commit(&s->rx, bytes - placed);
    stream_payload_arrived(s, placed, bytes);
}

/*
 * Name memory of rx_stream.  Little posted memory is not worth a system call of
 * its own: also name memory of the stream, up to MUX_READ_AHEAD in all.
 */
static unsigned want_stream_payload(MuxEngine *e, struct iovec *iov,
                                    unsigned max)
{
    MuxStream *s = e->rx_stream;
    size_t want = MIN(e->rx_left, MUX_FRAME_BULK);
    unsigned n = 0;

    if (!s->rx.size) {
        n = mux_rx_post_name(&s->post, want, iov, max);
        e->rx_named_post = iov_total(iov, n);
    }
    want -= e->rx_named_post;
    if (n) {
        want = MIN(want, MUX_READ_AHEAD -
                         MIN(e->rx_named_post, MUX_READ_AHEAD));
    }
    e->rx_named_stream = true;
    return n + mux_chunks_reserve(&s->rx, want, iov + n, max - n);
}

/* Name memory for the payload of the current frame. */
static unsigned want_payload(MuxEngine *e, struct iovec *iov, unsigned max)
{
    unsigned n = 1;

    if (e->rx_drop) {
        iov->iov_base = e->rx_scratch;
        iov->iov_len = MIN(e->rx_left, MUX_SCRATCH_SIZE);
    } else if (e->rx_stream) {
        n = want_stream_payload(e, iov, max);
    } else {
        iov->iov_base = e->rx_control + e->rx_header.length - e->rx_left;
        iov->iov_len = e->rx_left;
    }
    e->rx_named = iov_total(iov, n);
    return n;
}

/* Bytes that rx_buf lacks of what comes after the payload */
static size_t rx_buf_lacks(MuxEngine *e)
{
    return (e->hello_done || e->rx_left ? MUX_HEADER_SIZE : mux_hello_want(e)) -
        e->rx_buf_len;
}

/* Bytes to ask for after the payload that is named, if any */
static size_t ahead_want(MuxEngine *e)
{
    return e->hello_done && e->rx_named_post < MUX_READ_AHEAD ? MUX_READ_AHEAD
                                                              : rx_buf_lacks(e);
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
    iov[n].iov_base = e->rx_ahead;
    iov[n].iov_len = ahead_want(e);
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

/* @bytes of the current payload have come at @data. */
static void payload_arrived(MuxEngine *e, const uint8_t *data, size_t bytes)
{
    MuxStream *s = e->rx_drop ? NULL : e->rx_stream;
    size_t placed = 0;

    if (s) {
        placed = s->rx.size ? 0 : mux_rx_post_copy(&s->post, data, bytes);
        mux_chunks_append(&s->rx, data + placed, bytes - placed);
    } else if (!e->rx_drop) {
        memcpy(e->rx_control + e->rx_header.length - e->rx_left, data, bytes);
    }
    e->rx_left -= bytes;
    if (s) {
        stream_payload_arrived(s, placed, bytes);
    }
}

/* @bytes of a header, or of the HELLO, have come at @data. */
static void rx_buf_arrived(MuxEngine *e, const uint8_t *data, size_t bytes,
                           int64_t now)
{
    memcpy(e->rx_buf + e->rx_buf_len, data, bytes);
    e->rx_buf_len += bytes;
    if (e->hello_done) {
        header_arrived(e, now);
    } else {
        mux_hello_arrived(e, now);
    }
}

/* @bytes have come in rx_ahead. */
static void ahead_arrived(MuxEngine *e, size_t bytes, int64_t now)
{
    const uint8_t *data = e->rx_ahead;

    while (bytes && !e->ended) {
        size_t n;

        if (e->rx_left) {
            n = MIN(bytes, e->rx_left);
            payload_arrived(e, data, n);
            if (!e->rx_left) {
                payload_complete(e, now);
            }
        } else {
            n = MIN(bytes, rx_buf_lacks(e));
            rx_buf_arrived(e, data, n, now);
        }
        data += n;
        bytes -= n;
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
    }
    ahead_arrived(e, bytes, now);
}
