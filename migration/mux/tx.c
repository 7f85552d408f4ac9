/*
 * Migration multiplexer: bytes out
 *
 * What goes to the transport is put together in batches.  A batch refers to
 * its own small buffer (headers, control frames) and to memory of streams
 * (payload); once built it does not change until all of it was sent, but for
 * an offer that is taken back, whose bytes are then replaced by a copy.
 *
 * Order: HELLO, control frames, OPENs, data (sched.c), and GOAWAY last of all.
 * Control that does not fit in a batch stops data, so what a data frame relies
 * on (OPEN_OK before DATA) is always ahead of it.
 *
 * What waits is bounded: for each stream one bit per control frame type, and a
 * fixed number of PONGs.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/bswap.h"
#include "engine-int.h"

/* A data frame shorter than this is left to the next batch if that helps. */
#define SHORTEST_CUT    4096

/* --- queues --- */

void mux_stream_want_control(MuxStream *s, MuxPending what)
{
    MuxEngine *e = s->engine;

    s->pending |= what;
    if (!s->control_queue) {
        s->control_queue = &e->control;
        g_queue_push_tail_link(&e->control, &s->control_link);
    }
}

void mux_stream_unqueue(MuxStream *s)
{
    s->pending &= MUX_PENDING_RESET;
    if (s->control_queue && !s->pending) {
        g_queue_unlink(s->control_queue, &s->control_link);
        s->control_queue = NULL;
    }
}

/* --- putting things in the batch --- */

static bool control_fits(MuxBatch *b, size_t size)
{
    return b->niov + 1 <= MUX_BATCH_IOV &&
           b->control_len + size <= sizeof(b->control);
}

static void add_piece(MuxBatch *b, void *base, size_t len,
                      MuxStream *s, bool own)
{
    unsigned last = b->niov - 1;

    if (b->niov && b->piece[last].stream == s && b->piece[last].own == own &&
        b->iov[last].iov_base + b->iov[last].iov_len == base) {
        b->iov[last].iov_len += len;
        return;
    }
    b->iov[b->niov] = (struct iovec) { .iov_base = base, .iov_len = len };
    b->piece[b->niov] = (MuxBatchPiece) { .stream = s, .own = own };
    b->niov++;
    if (s) {
        s->batch_refs++;
    }
}

/* Room for @size bytes of the batch's own, as the next thing to be sent. */
static uint8_t *add_control(MuxBatch *b, size_t size)
{
    uint8_t *p = b->control + b->control_len;

    b->control_len += size;
    add_piece(b, p, size, NULL, false);
    return p;
}

/* A control frame; returns where its payload belongs. */
static uint8_t *add_frame(MuxEngine *e, MuxFrameType type, uint32_t stream,
                          uint32_t length, uint32_t arg)
{
    MuxHeader h = {
        .type = type, .stream = stream, .length = length, .arg = arg,
    };
    uint8_t *p = add_control(&e->batch, MUX_HEADER_SIZE + length);

    mux_header_encode(&h, p);
    return p + MUX_HEADER_SIZE;
}

static void add_u64_frame(MuxEngine *e, MuxFrameType type, uint32_t stream,
                          uint64_t value)
{
    stq_be_p(add_frame(e, type, stream, 8, 0), value);
}

static void add_text_frame(MuxEngine *e, MuxFrameType type, uint32_t stream,
                           uint32_t code, const char *text)
{
    size_t len = strlen(text);

    memcpy(add_frame(e, type, stream, len, code), text, len);
}

static void put_pending(MuxStream *s, MuxPending what, int64_t now)
{
    MuxEngine *e = s->engine;

    switch (what) {
    case MUX_PENDING_RESET:
        add_text_frame(e, MUX_FRAME_RESET, s->id, s->reset_code,
                       s->reset_text);
        break;
    case MUX_PENDING_OPEN_OK:
        mux_credit_first(s, now);
        add_u64_frame(e, MUX_FRAME_OPEN_OK, s->id, s->rx_limit);
        break;
    case MUX_PENDING_WINDOW:
        if (mux_credit_grant(s, now)) {
            add_u64_frame(e, MUX_FRAME_WINDOW, s->id, s->rx_limit);
        }
        break;
    case MUX_PENDING_FIN:
        s->fin_sent = true;
        add_u64_frame(e, MUX_FRAME_FIN, s->id, s->tx_offset);
        break;
    case MUX_PENDING_FIN_OK:
        add_u64_frame(e, MUX_FRAME_FIN_OK, s->id, s->rx_offset);
        break;
    }
}

/* Control frames of streams, as many as fit. */
static bool put_controls(MuxEngine *e, int64_t now)
{
    MuxStream *s;

    while ((s = g_queue_peek_head(&e->control))) {
        MuxPending what = s->pending & -s->pending;

        if (!control_fits(&e->batch, MUX_HEADER_SIZE + MUX_TEXT_MAX)) {
            return false;
        }
        if (what) {
            put_pending(s, what, now);
            s->pending &= ~what;
        }
        if (!s->pending) {
            g_queue_unlink(&e->control, &s->control_link);
            s->control_queue = NULL;
            mux_stream_maybe_free(s);
        }
    }
    return true;
}

static void put_goaway(MuxEngine *e)
{
    if (control_fits(&e->batch, MUX_HEADER_SIZE + MUX_TEXT_MAX)) {
        add_text_frame(e, MUX_FRAME_GOAWAY, 0, e->goaway_code,
                       e->goaway_text);
        e->goaway_wanted = false;
    }
}

static bool put_pings(MuxEngine *e, int64_t now)
{
    size_t size = (e->npongs + 1) * (MUX_HEADER_SIZE + 8);

    if (!control_fits(&e->batch, size)) {
        return false;
    }
    for (unsigned i = 0; i < e->npongs; i++) {
        add_u64_frame(e, MUX_FRAME_PONG, 0, e->pongs[i]);
    }
    e->npongs = 0;
    if (e->ping_wanted) {
        add_u64_frame(e, MUX_FRAME_PING, 0, mux_liveness_ping_sent(e, now));
    }
    return true;
}

static void put_open(MuxStream *s, int64_t now)
{
    MuxEngine *e = s->engine;
    size_t len = strlen(s->name);
    uint8_t *p = add_frame(e, MUX_FRAME_OPEN, s->id, MUX_OPEN_SIZE + len, 0);

    mux_credit_first(s, now);
    stq_be_p(p, s->rx_limit);
    stw_be_p(p + 8, len);
    stw_be_p(p + 10, 0);
    memcpy(p + MUX_OPEN_SIZE, s->name, len);
    s->announced = true;
    e->local.announced++;
    e->local.unanswered++;
    g_hash_table_insert(e->live, GUINT_TO_POINTER(s->id), s);
}

/* The peer's limits allow the next OPEN. */
static bool open_possible(MuxEngine *e)
{
    return e->opens.length && e->hello_done &&
           e->local.unanswered < MUX_UNANSWERED_OPENS &&
           e->local.announced < e->peer.max_streams;
}

static bool put_opens(MuxEngine *e, int64_t now)
{
    while (open_possible(e)) {
        MuxStream *s = g_queue_peek_head(&e->opens);

        if (!control_fits(&e->batch, MUX_HEADER_SIZE + MUX_OPEN_SIZE +
                          MUX_NAME_MAX)) {
            return false;
        }
        g_queue_unlink(&e->opens, &s->control_link);
        s->control_queue = NULL;
        put_open(s, now);
    }
    return true;
}

/* --- data --- */

/* Put up to @max bytes of what @s copied in the batch; returns how many. */
static size_t put_own(MuxStream *s, size_t max)
{
    MuxBatch *b = &s->engine->batch;
    struct iovec iov[MUX_BATCH_IOV];
    size_t done = 0;
    unsigned n;

    n = mux_chunks_peek(&s->own, s->own_committed, max, iov,
                        MUX_BATCH_IOV - b->niov);
    for (unsigned i = 0; i < n; i++) {
        add_piece(b, iov[i].iov_base, iov[i].iov_len, s, true);
        done += iov[i].iov_len;
    }
    s->own_committed += done;
    return done;
}

/* The same for what @s offers. */
static size_t put_offer(MuxStream *s, size_t max)
{
    MuxBatch *b = &s->engine->batch;
    size_t done = 0;

    while (done < max && b->niov < MUX_BATCH_IOV) {
        void *base;
        size_t n = mux_tx_offer_commit(&s->offer, max - done, &base);

        if (!n) {
            break;
        }
        add_piece(b, base, n, s, false);
        done += n;
    }
    return done;
}

/* One DATA frame; returns whether the batch may take another. */
static bool put_data(MuxEngine *e)
{
    MuxBatch *b = &e->batch;
    MuxHeader h = { .type = MUX_FRAME_DATA };
    size_t most = mux_sched_batch_max(e);
    /* It falls when a stream turns out to be urgent within a batch */
    size_t room = most > b->size ? most - b->size : 0;
    size_t max, len;
    MuxStream *s = mux_sched_pick(e, &max);
    uint8_t *header;

    if (!s || b->niov + 2 > MUX_BATCH_IOV ||
        !control_fits(b, MUX_HEADER_SIZE) ||
        (room < max && room < SHORTEST_CUT)) {
        return false;
    }
    header = add_control(b, MUX_HEADER_SIZE);
    max = MIN(max, room);
    len = put_own(s, max);
    len += put_offer(s, max - len);
    h.stream = s->id;
    h.length = len;
    h.arg = (uint32_t)s->tx_offset;
    mux_header_encode(&h, header);
    b->size += len;
    s->tx_offset += len;
    e->control_earned += MUX_CONTROL_PER_DATA(len);
    mux_sched_sent(s, len);
    return true;
}

/* --- the batch --- */

static void batch_build(MuxEngine *e, int64_t now)
{
    if (!e->hello_queued) {
        mux_hello_put(e, add_control(&e->batch, MUX_HELLO_V2_SIZE));
    }
    if (e->ended) {
        if (put_controls(e, now) && e->goaway_wanted) {
            put_goaway(e);
        }
        return;
    }
    if (!e->hello_done) {
        return;
    }
    mux_sched_batch_begin(e);
    /* the last data of a stream lets its FIN follow */
    do {
        if (!put_pings(e, now) || !put_controls(e, now) ||
            !put_opens(e, now)) {
            return;
        }
    } while (put_data(e));
}

static bool batch_empty(MuxBatch *b)
{
    return b->first == b->niov;
}

static void batch_reset(MuxBatch *b)
{
    b->niov = b->first = 0;
    b->skip = b->size = b->control_len = 0;
    g_slist_free_full(b->copies, g_free);
    b->copies = NULL;
}

unsigned mux_engine_tx_want(MuxEngine *e, struct iovec *iov, unsigned max,
                            int64_t now)
{
    MuxBatch *b = &e->batch;
    unsigned n;

    if (e->tx_closed) {
        return 0;
    }
    if (batch_empty(b)) {
        batch_build(e, now);
    }
    n = MIN(max, b->niov - b->first);
    memcpy(iov, b->iov + b->first, n * sizeof(*iov));
    if (n) {
        iov[0].iov_base += b->skip;
        iov[0].iov_len -= b->skip;
    }
    return n;
}

void mux_engine_tx_done(MuxEngine *e, size_t bytes)
{
    MuxBatch *b = &e->batch;

    while (bytes) {
        MuxStream *s;
        size_t left, n;

        g_assert(!batch_empty(b));
        s = b->piece[b->first].stream;
        left = b->iov[b->first].iov_len - b->skip;
        n = MIN(bytes, left);
        bytes -= n;
        b->skip += n;
        if (s) {
            mux_stream_tx_taken(s, b->piece[b->first].own, n);
        }
        if (n == left) {
            b->first++;
            b->skip = 0;
            if (s) {
                s->batch_refs--;
                mux_stream_maybe_free(s);
            }
        }
    }
    if (batch_empty(b)) {
        batch_reset(b);
    }
}

bool mux_engine_tx_idle(MuxEngine *e)
{
    if (e->tx_closed) {
        return true;
    }
    if (!batch_empty(&e->batch) || !e->hello_queued || e->goaway_wanted ||
        e->control.length) {
        return false;
    }
    if (e->ended || !e->hello_done) {
        return true;
    }
    return !e->npongs && !e->ping_wanted && !open_possible(e) &&
           !e->urgent.length && !e->bulk.length;
}

size_t mux_stream_tx_withdraw(MuxStream *s)
{
    MuxBatch *b = &s->engine->batch;
    size_t taken;

    for (unsigned i = b->first; i < b->niov; i++) {
        if (b->piece[i].stream == s && !b->piece[i].own) {
            b->iov[i].iov_base = g_memdup2(b->iov[i].iov_base,
                                           b->iov[i].iov_len);
            b->copies = g_slist_prepend(b->copies, b->iov[i].iov_base);
            b->piece[i].stream = NULL;
            s->batch_refs--;
        }
    }
    taken = mux_tx_offer_withdraw(&s->offer);
    mux_sched_update(s);
    mux_stream_tx_unblock(s);
    return taken;
}
