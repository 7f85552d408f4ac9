/*
 * A model of two applications that talk over two engines of the migration
 * multiplexer
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "mux-fuzz-model.h"

#define OFFER_MAX       (300 * KIB)
#define OFFER_PIECES    70      /* more than one batch takes */

static MuxModelEnd *other_end(MuxModelEnd *end)
{
    return &end->stream->end[!end->side];
}

static MuxModelStream *stream_get(MuxModel *m, uint32_t id)
{
    gpointer key = GUINT_TO_POINTER(id);
    MuxModelStream *stream = g_hash_table_lookup(m->streams, key);

    if (!stream) {
        stream = g_new0(MuxModelStream, 1);
        stream->id = id;
        for (int side = 0; side < 2; side++) {
            stream->end[side].stream = stream;
            stream->end[side].side = side;
        }
        g_hash_table_insert(m->streams, key, stream);
    }
    return stream;
}

static void stream_free(gpointer opaque)
{
    MuxModelStream *stream = opaque;

    for (int side = 0; side < 2; side++) {
        g_free(stream->end[side].offer);
        g_free(stream->end[side].post[0].iov_base);
    }
    g_free(stream);
}

static int free_slot(MuxModel *m, int side)
{
    for (int i = 0; i < MUX_MODEL_SLOTS; i++) {
        if (!m->slot[side][i]) {
            return i;
        }
    }
    return -1;
}

/* --- what must be true --- */

/* A stream that was aborted was so by someone. */
static void check_reset_has_cause(MuxModel *m, MuxModelEnd *end)
{
    MuxModelEnd *other = other_end(end);

    g_assert_nonnull(mux_stream_error(end->s));
    g_assert_true(end->reset || other->reset || other->refused ||
                  m->disturbed);
}

static void check_state(MuxModel *m, MuxModelEnd *end)
{
    MuxStreamState state = mux_stream_state(end->s);

    if (state != end->state) {
        /* states have an order, and the last two are final */
        g_assert_cmpint(state, >, end->state);
        g_assert_cmpint(end->state, <, MUX_STREAM_FINISHED);
        end->state = state;
    }
    if (state == MUX_STREAM_RESET) {
        check_reset_has_cause(m, end);
        return;
    }
    g_assert_null(mux_stream_error(end->s));
    if (state != MUX_STREAM_OPENING) {
        g_assert_cmpint(state == MUX_STREAM_OPEN, ==,
                        !end->fin && !mux_stream_rx_fin(end->s));
    }
    if (state == MUX_STREAM_FINISHED) {
        g_assert_true(end->fin && end->fin_ok);
        g_assert_true(mux_stream_fin_acked(end->s) &&
                      mux_stream_rx_fin(end->s));
    }
}

/*
 * A RESET of either side came before the end of the connection, so that what
 * was not read is gone.
 */
static bool dropped(MuxModel *m, MuxModelEnd *end)
{
    MuxEngine *e = m->link.side[end->side].e;

    return end->reset || end->reported & 1u << MUX_EVENT_RESET ||
           (end->state == MUX_STREAM_RESET && !mux_engine_ended(e));
}

/* The same, or the end came before the RESET of the other side. */
static bool may_be_dropped(MuxModel *m, MuxModelEnd *end)
{
    return end->state == MUX_STREAM_RESET &&
           (other_end(end)->reset || m->corrupted);
}

static void check_received(MuxModel *m, MuxModelEnd *end)
{
    uint64_t came = end->read + mux_stream_rx_posted(end->s) +
                    mux_stream_rx_pending(end->s);
    uint64_t *granted = g_hash_table_lookup(m->link.side[end->side].limits,
                                            GUINT_TO_POINTER(end->stream->id));
    MuxModelEnd *from = other_end(end);

    g_assert_cmpuint(came, <=, granted ? *granted : 0);
    if (dropped(m, end)) {
        g_assert_cmpuint(mux_stream_rx_pending(end->s), ==, 0);
        return;
    }
    if (may_be_dropped(m, end) && !mux_stream_rx_pending(end->s)) {
        return;
    }
    g_assert_cmpuint(came, ==, mux_stream_bytes_received(end->s));
    if (m->corrupted) {
        return;
    }
    g_assert_cmpuint(came, <=, from->written + from->offer_len);
    if (mux_stream_rx_fin(end->s)) {
        g_assert_true(from->fin);
        g_assert(from->late_offer ||
                 came == from->written + from->offer_len);
    }
}

static void check_sent(MuxModel *m, MuxModelEnd *end)
{
    uint64_t sent = mux_stream_bytes_sent(end->s);

    g_assert_cmpuint(sent, <=, end->written + end->offer_len);
    g_assert_cmpuint(mux_stream_tx_sent(end->s), <=, end->offer_len);
    if (mux_stream_fin_acked(end->s) && !m->corrupted) {
        g_assert_true(other_end(end)->fin_ok);
    }
}

static void check_end(MuxModel *m, MuxModelEnd *end)
{
    g_assert(mux_stream_opaque(end->s) == end);
    g_assert_cmpuint(mux_stream_id(end->s), ==, end->stream->id);
    check_state(m, end);
    check_received(m, end);
    check_sent(m, end);
    if (end->peeked.iov_len) {
        g_assert_cmphex(*(uint8_t *)end->peeked.iov_base, ==,
                        end->peeked_byte);
    }
}

void mux_model_check(MuxModel *m, int side)
{
    MuxEngine *e = m->link.side[side].e;

    g_assert(m->disturbed || !mux_engine_ended(e));
    g_assert(mux_engine_ended(e) || !mux_engine_error(e));
    mux_assert_memory_bounded(e);
    for (int i = 0; i < MUX_MODEL_SLOTS; i++) {
        if (m->slot[side][i]) {
            check_end(m, m->slot[side][i]);
        }
    }
}

/* --- streams come and go --- */

static void end_attach(MuxModel *m, MuxModelEnd *end, MuxStream *s)
{
    end->s = s;
    end->slot = free_slot(m, end->side);
    if (end->slot >= 0) {
        m->slot[end->side][end->slot] = end;
    }
    mux_stream_set_opaque(s, end);
}

/* Not while the transport uses the memory of an offer. */
static bool may_withdraw(MuxModel *m, MuxModelEnd *end)
{
    return !m->tx[end->side].niov || !end->offer ||
           mux_stream_tx_sent(end->s) == end->offer_len;
}

static void withdraw(MuxModelEnd *end)
{
    if (end->offer) {
        size_t taken = mux_stream_tx_withdraw(end->s);

        g_assert_cmpuint(taken, <=, end->offer_len);
        end->written += taken;
        end->offer_len = 0;
        /* what was taken must not be needed any more */
        g_clear_pointer(&end->offer, g_free);
    }
}

void mux_model_withdraw(MuxModel *m, MuxModelEnd *end)
{
    if (may_withdraw(m, end)) {
        withdraw(end);
    }
}

static void unpost(MuxModel *m, MuxModelEnd *end)
{
    size_t posted = mux_stream_rx_posted(end->s);
    uint8_t *data = end->post[0].iov_base;
    size_t came;

    if (!data) {
        return;
    }
    m->rx[end->side].niov = 0;
    came = mux_stream_rx_unpost(end->s);
    g_assert(came == posted ||
             (!came && mux_stream_state(end->s) == MUX_STREAM_RESET));
    for (size_t i = 0; i < came && !m->corrupted; i++) {
        g_assert_cmphex(data[i], ==, mux_pattern(end->stream->id, !end->side,
                                                 end->read + i));
    }
    end->read += came;
    end->placed += posted;
    g_free(data);
    end->post[0].iov_base = NULL;
}

static void let_go(MuxModel *m, MuxModelEnd *end)
{
    MuxStream *s = end->s;
    bool theirs = mux_stream_id(s) % 2 != (end->side == SRC);

    end->refused = theirs && mux_stream_state(s) == MUX_STREAM_OPENING;
    end->fin = end->fin_ok = end->released = true;
    mux_stream_release(s);
    end->s = NULL;
    if (end->slot >= 0) {
        m->slot[end->side][end->slot] = NULL;
    }
}

void mux_model_release(MuxModel *m, MuxModelEnd *end)
{
    if (may_withdraw(m, end)) {
        withdraw(end);
        unpost(m, end);
        let_go(m, end);
    }
}

void mux_model_reset(MuxModelEnd *end, uint32_t code)
{
    end->reset |= mux_stream_state(end->s) < MUX_STREAM_FINISHED;
    mux_stream_reset(end->s, code, "some reason");
}

void mux_model_fin(MuxModelEnd *end)
{
    mux_stream_fin(end->s);
    end->fin = true;
}

void mux_model_fin_ok(MuxModelEnd *end)
{
    mux_stream_fin_ok(end->s);
    end->fin_ok = true;
}

void mux_model_open(MuxModel *m, int side)
{
    MuxEngine *e = m->link.side[side].e;
    const char *why = NULL;
    MuxStream *s;

    if (free_slot(m, side) < 0) {
        return;
    }
    s = mux_engine_open(e, "x", &why);
    g_assert_cmpint(s == NULL, ==, why != NULL);
    if (s) {
        g_assert_false(mux_engine_ended(e));
        end_attach(m, &stream_get(m, mux_stream_id(s))->end[side], s);
    }
}

/* --- events --- */

static void on_open(MuxModel *m, int side, MuxStream *s)
{
    MuxModelEnd *end = &stream_get(m, mux_stream_id(s))->end[side];
    MuxModelEnd *opener = other_end(end);

    g_assert_null(mux_stream_opaque(s));
    g_assert_cmpuint(mux_stream_id(s) % 2, ==, side == DST);
    g_assert(!end->s && !end->released);
    g_assert(opener->s || opener->released || m->corrupted);
    end_attach(m, end, s);
    if (end->slot < 0) {
        let_go(m, end);
    }
}

/* Bytes that came, but not in memory that was posted for them */
static uint64_t queued(MuxModelEnd *end)
{
    return mux_stream_bytes_received(end->s) - end->placed -
        mux_stream_rx_posted(end->s);
}

/* Most events come once, and say what the stream says too. */
static void on_stream_event(MuxModel *m, int side, const MuxEvent *event)
{
    MuxModelEnd *end = mux_stream_opaque(event->stream);
    unsigned bit = 1u << event->type;
    MuxStream *s = event->stream;

    g_assert(end && end->s == s && end->side == side);
    if (event->type != MUX_EVENT_READABLE &&
        event->type != MUX_EVENT_WRITABLE) {
        g_assert_false(end->reported & bit);
    }
    end->reported |= bit;
    switch (event->type) {
    case MUX_EVENT_OPEN_OK:
        g_assert_cmpuint(mux_stream_id(s) % 2, ==, side == SRC);
        break;
    case MUX_EVENT_READABLE:
        end->readable = queued(end);
        break;
    case MUX_EVENT_WRITABLE:
        end->owed = false;
        break;
    case MUX_EVENT_FIN:
        g_assert_true(mux_stream_rx_fin(s));
        break;
    case MUX_EVENT_FIN_OK:
        g_assert_true(mux_stream_fin_acked(s));
        break;
    case MUX_EVENT_RESET:
        g_assert_cmpint(mux_stream_state(s), ==, MUX_STREAM_RESET);
        break;
    default:
        break;
    }
}

/* No event is missing. */
static void check_told(MuxModel *m, MuxModelEnd *end)
{
    MuxStream *s = end->s;
    bool ours = mux_stream_id(s) % 2 == (end->side == SRC);

    g_assert(end->reported & 1u << MUX_EVENT_FIN || !mux_stream_rx_fin(s));
    g_assert(end->reported & 1u << MUX_EVENT_FIN_OK ||
             !mux_stream_fin_acked(s));
    g_assert_cmpuint(end->readable, ==, queued(end));
    g_assert(!end->owed || !mux_stream_writable(s));
    if (end->state == MUX_STREAM_RESET) {
        g_assert(end->reported & 1u << MUX_EVENT_RESET || end->reset ||
                 m->over[end->side]);
    } else {
        g_assert_cmpint(end->state == MUX_STREAM_OPENING, <=,
                        !(end->reported & 1u << MUX_EVENT_OPEN_OK));
        g_assert(!ours || end->state == MUX_STREAM_OPENING ||
                 end->reported & 1u << MUX_EVENT_OPEN_OK);
    }
}

bool mux_model_take_events(MuxModel *m, int side)
{
    MuxEngine *e = m->link.side[side].e;
    bool any = false;
    MuxEvent event;

    while (mux_engine_next_event(e, &event)) {
        any = true;
        g_assert_false(m->over[side]);
        switch (event.type) {
        case MUX_EVENT_HELLO:
            g_assert_false(m->hello[side]);
            m->hello[side] = true;
            break;
        case MUX_EVENT_ENDED:
            g_assert_true(mux_engine_ended(e));
            m->over[side] = true;
            break;
        case MUX_EVENT_OPEN:
            g_assert_true(m->hello[side]);
            on_open(m, side, event.stream);
            break;
        default:
            on_stream_event(m, side, &event);
            break;
        }
    }
    g_assert_cmpint(m->over[side], ==, mux_engine_ended(e));
    for (int i = 0; i < MUX_MODEL_SLOTS; i++) {
        if (m->slot[side][i]) {
            check_state(m, m->slot[side][i]);
            check_told(m, m->slot[side][i]);
        }
    }
    return any;
}

/* --- data --- */

void mux_model_offer(MuxModel *m, MuxModelEnd *end, size_t len, size_t piece)
{
    struct iovec iov[OFFER_PIECES];
    unsigned n = 0;

    if (!may_withdraw(m, end)) {
        return;
    }
    withdraw(end);
    len = MIN(len, OFFER_MAX);
    end->offer = g_malloc(len + 1);
    end->offer_len = len;
    end->late_offer |= end->fin;
    for (size_t i = 0; i < len; i++) {
        end->offer[i] = mux_pattern(end->stream->id, end->side,
                                    end->written + i);
    }
    for (size_t done = 0; done < len; n++) {
        size_t left = len - done;

        iov[n].iov_base = end->offer + done;
        iov[n].iov_len = n == OFFER_PIECES - 1 ? left : MIN(piece, left);
        done += iov[n].iov_len;
    }
    mux_stream_tx_offer(end->s, iov, n);
}

void mux_model_copy(MuxModel *m, MuxModelEnd *end, size_t len)
{
    size_t done;

    if (end->offer && mux_stream_tx_sent(end->s) == end->offer_len) {
        withdraw(end);
    }
    done = mux_copy_pattern(end->s, end->side, end->written, len);
    g_assert_cmpuint(done, <=, len);
    g_assert(!done || (!end->fin && end->state != MUX_STREAM_OPENING));
    end->written += done;
}

size_t mux_model_consume(MuxModel *m, MuxModelEnd *end, size_t max)
{
    size_t done;

    if (mux_stream_rx_posted(end->s)) {
        unpost(m, end);         /* that came before the rest */
    }
    end->peeked.iov_len = 0;
    if (m->corrupted) {
        done = MIN(max, mux_stream_rx_pending(end->s));
        mux_stream_rx_consume(end->s, done);
    } else {
        done = mux_read_pattern(end->s, !end->side, end->read, max);
    }
    end->read += done;
    return done;
}

void mux_model_post(MuxModel *m, MuxModelEnd *end, size_t len)
{
    if (end->post[0].iov_base) {
        unpost(m, end);
        return;
    }
    end->post[0].iov_base = g_malloc(len + 1);
    end->post[0].iov_len = len / 3;
    end->post[1].iov_base = end->post[0].iov_base + len / 3;
    end->post[1].iov_len = len - len / 3;
    mux_stream_rx_post(end->s, end->post, 2);
}

void mux_model_writable(MuxModelEnd *end)
{
    bool writable = mux_stream_writable(end->s);

    g_assert(!writable || (end->state < MUX_STREAM_FINISHED && !end->fin));
    end->owed |= !writable;
}

void mux_model_peek(MuxModelEnd *end)
{
    if (mux_stream_rx_iov(end->s, &end->peeked, 1)) {
        g_assert_cmpuint(end->peeked.iov_len, >, 0);
        end->peeked_byte = *(uint8_t *)end->peeked.iov_base;
    } else {
        end->peeked.iov_len = 0;
    }
}

/* --- begin and end --- */

void mux_model_init(MuxModel *m, const MuxConfig config[2])
{
    *m = (MuxModel) { 0 };
    mux_wire_init(&m->link, 1, &config[SRC], &config[DST]);
    m->streams = g_hash_table_new_full(NULL, NULL, NULL, stream_free);
}

void mux_model_cleanup(MuxModel *m)
{
    mux_wire_cleanup(&m->link);
    g_hash_table_unref(m->streams);
}
