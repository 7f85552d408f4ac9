/*
 * Migration multiplexer: one stream
 *
 * What the application may do in each state (MuxStreamState); everything else
 * is harmless and has no effect.
 *
 *   OPENING    offer data, fin, reset, release; the peer's: accept.  All but
 *              reset and accept take effect after OPEN_OK, but release of
 *              the peer's resets it.
 *   OPEN       both directions carry data; fin, reset, release.
 *   FINISHING  our fin was called, the peer's FIN came, or both.  The
 *              direction that is not finished still carries data; fin_ok
 *              once the peer's FIN came; reset, release.
 *   FINISHED   both directions are finished and dealt with.  What was
 *              received stays readable; release.
 *   RESET      aborted by one side, or the connection ended first:
 *              mux_stream_error() says why.  What was received before the
 *              end of the connection stays readable, what was before a RESET
 *              of either side does not; release.
 *
 * FINISHED and RESET are final: each stream gets to exactly one of them.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "engine-int.h"

/* --- life --- */

MuxStream *mux_stream_new(MuxEngine *e, char *name, uint32_t id, bool local)
{
    MuxStream *s = g_new0(MuxStream, 1);

    s->engine = e;
    s->name = name;
    s->id = id;
    s->local = local;
    s->weight = 1;
    s->window_max = e->config.window_max;
    s->control_link.data = s;
    s->data_link.data = s;
    s->event_link.data = s;
    mux_chunks_init(&s->own, &e->pool);
    mux_chunks_init(&s->rx, &e->pool);
    g_hash_table_add(e->all, s);
    return s;
}

void mux_stream_destroy(MuxStream *s)
{
    mux_chunks_clear(&s->own);
    mux_chunks_clear(&s->rx);
    mux_tx_offer_clear(&s->offer);
    g_free(s->reset_text);
    g_free(s->error);
    g_free(s->name);
    g_free(s);
}

static bool rx_memory_named(MuxStream *s)
{
    return s->engine->rx_named_stream && s->engine->rx_stream == s;
}

void mux_stream_maybe_free(MuxStream *s)
{
    MuxEngine *e = s->engine;

    if (!s->released || s->batch_refs || rx_memory_named(s) || s->pending) {
        return;
    }
    if (!s->retired) {
        return;
    }
    if (e->rx_stream == s) {
        e->rx_stream = NULL;
    }
    g_assert(!s->control_queue);
    g_hash_table_remove(e->all, s);
    mux_stream_destroy(s);
}

/* The wire has no more use for @s: leave the tables. */
static void forget_id(MuxStream *s, MuxStreamState state)
{
    MuxEngine *e = s->engine;
    MuxStreamCounts *counts = s->local ? &e->local : &e->remote;
    MuxRetired *r;

    if (s->announced) {
        r = g_new(MuxRetired, 1);
        r->offset = s->rx_offset;
        r->limit = state == MUX_STREAM_FINISHED ? s->rx_offset : s->rx_limit;
        g_hash_table_insert(e->retired, GUINT_TO_POINTER(s->id), r);
        g_hash_table_remove(e->live, GUINT_TO_POINTER(s->id));
        counts->announced--;
        if (s->state == MUX_STREAM_OPENING) {
            counts->unanswered--;
        }
    }
    if (s->local) {
        e->local_open--;
    }
    s->retired = true;
    mux_credit_end(s);
}

/* The first @bytes of what was received are gone. */
static void consume(MuxStream *s, size_t bytes)
{
    mux_chunks_consume(&s->rx, bytes);
    s->rx_consumed += bytes;
    mux_credit_consumed(s, bytes);
}

/*
 * Data from before a RESET must not be read.  If it stayed until the release, a
 * peer could have us hold more and more of it: the credit of a retired stream
 * goes to the next one.
 */
static void drop_aborted(MuxStream *s)
{
    if (!s->rx_lent) {
        consume(s, s->rx.size);
    }
}

void mux_stream_retire(MuxStream *s, MuxStreamState state)
{
    MuxEngine *e = s->engine;

    forget_id(s, state);
    s->state = state;
    if (state == MUX_STREAM_RESET) {
        s->aborted = true;
        drop_aborted(s);
        mux_stream_unqueue(s);
        if (e->rx_stream == s) {
            e->rx_drop = true;
        }
    }
    mux_sched_update(s);
    mux_stream_maybe_free(s);
}

void mux_stream_check_finished(MuxStream *s)
{
    if (s->fin_acked && s->fin_received && s->fin_ok_wanted) {
        mux_stream_retire(s, MUX_STREAM_FINISHED);
    }
}

void mux_stream_end(MuxStream *s, const char *why)
{
    MuxEngine *e = s->engine;

    if (e->tx_closed) {
        s->pending = 0;
        mux_stream_unqueue(s);
    }
    if (!s->retired) {
        forget_id(s, MUX_STREAM_RESET);
        s->state = MUX_STREAM_RESET;
        s->error = g_strdup(why);
        s->cause = e->cause;
        if (!s->announced) {
            mux_stream_unqueue(s);
        }
        mux_sched_update(s);
    }
    mux_stream_maybe_free(s);
}

/* --- opening and ending --- */

MuxStream *mux_engine_open(MuxEngine *e, const char *name, const char **why)
{
    unsigned most = e->config.max_streams;
    MuxStream *s;

    if (e->hello_fits) {
        most = MIN(most, e->peer.max_streams);
    }
    if (e->ended) {
        *why = e->error ?: "the connection has ended";
        return NULL;
    }
    if (!mux_name_ok(name, strlen(name))) {
        *why = "a stream's name has 1 to 255 printable ASCII characters";
        return NULL;
    }
    if (e->local_open >= most) {
        *why = "too many streams are open on this connection";
        return NULL;
    }
    if (e->local.lifetime >= MUX_LIFETIME_STREAMS) {
        *why = "too many streams have been opened on this connection";
        return NULL;
    }
    s = mux_stream_new(e, g_strdup(name), e->next_id, true);
    e->next_id += 2;
    e->local.lifetime++;
    e->local_open++;
    s->control_queue = &e->opens;
    g_queue_push_tail_link(&e->opens, &s->control_link);
    return s;
}

void mux_stream_accept(MuxStream *s)
{
    if (!mux_stream_asked(s)) {
        return;
    }
    s->state = s->fin_wanted ? MUX_STREAM_FINISHING : MUX_STREAM_OPEN;
    s->engine->remote.unanswered--;
    mux_stream_want_control(s, MUX_PENDING_OPEN_OK);
    mux_sched_update(s);
    mux_stream_tx_unblock(s);
}

void mux_stream_reset(MuxStream *s, uint32_t code, const char *text)
{
    if (s->retired) {
        return;
    }
    text = text ?: "";
    s->error = g_strdup_printf("aborted by the %s: %s",
                               mux_local_name(s->engine), text);
    s->cause = (MuxCause) { .code = code };
    s->reset_code = code;
    s->reset_text = g_strndup(text, mux_text_length(text));
    if (s->announced) {
        mux_stream_want_control(s, MUX_PENDING_RESET);
    }
    mux_stream_retire(s, MUX_STREAM_RESET);
}

void mux_stream_fin(MuxStream *s)
{
    s->fin_wanted = true;
    if (s->state == MUX_STREAM_OPEN) {
        s->state = MUX_STREAM_FINISHING;
    }
    mux_sched_update(s);
}

void mux_stream_answer_fin(MuxStream *s)
{
    mux_stream_want_control(s, MUX_PENDING_FIN_OK);
    mux_stream_check_finished(s);
}

void mux_stream_fin_ok(MuxStream *s)
{
    if (s->retired || s->fin_ok_wanted) {
        return;
    }
    s->fin_ok_wanted = true;
    if (s->fin_received) {
        mux_stream_answer_fin(s);
    }
}

void mux_stream_release(MuxStream *s)
{
    g_assert(!s->released && !mux_tx_offer_active(&s->offer));
    s->released = true;
    if (s->event_queue) {
        g_queue_unlink(s->event_queue, &s->event_link);
        s->event_queue = NULL;
    }
    mux_stream_rx_consume(s, s->rx.size);
    if (mux_stream_asked(s)) {
        mux_stream_reset(s, MUX_CODE_REFUSED, "stream was not accepted");
    }
    mux_stream_fin(s);
    mux_stream_fin_ok(s);
    mux_stream_maybe_free(s);
}

/* --- received data --- */

/* What the application may read. */
static size_t rx_readable(MuxStream *s)
{
    return s->aborted ? 0 : s->rx.size;
}

/* Bytes have been consumed: is it time to tell the peer? */
static void want_window(MuxStream *s)
{
    if (!s->retired && !s->fin_received && s->rx_limit && mux_credit_due(s)) {
        mux_stream_want_control(s, MUX_PENDING_WINDOW);
    }
}

unsigned mux_stream_rx_iov(MuxStream *s, struct iovec *iov, unsigned max)
{
    unsigned n = mux_chunks_peek(&s->rx, 0, rx_readable(s), iov, max);

    s->rx_lent |= n > 0;
    return n;
}

size_t mux_stream_rx_pending(MuxStream *s)
{
    return rx_readable(s);
}

void mux_stream_rx_consume(MuxStream *s, size_t bytes)
{
    s->rx_lent = false;
    consume(s, s->aborted ? s->rx.size : bytes);
    want_window(s);
}

void mux_stream_rx_arrived(MuxStream *s, size_t bytes)
{
    if (s->aborted) {
        drop_aborted(s);
        return;
    }
    s->rx_arrived += bytes;
    if (s->released) {
        mux_stream_rx_consume(s, s->rx.size);
    } else {
        mux_stream_event(s, MUX_EVENT_READABLE);
    }
    mux_sched_update(s);
}

void mux_stream_rx_placed(MuxStream *s, size_t bytes)
{
    if (s->aborted) {
        return;
    }
    s->rx_arrived += bytes;
    s->rx_consumed += bytes;
    want_window(s);
    mux_sched_update(s);
}

void mux_stream_rx_post(MuxStream *s, const struct iovec *iov, unsigned niov)
{
    mux_rx_post_set(&s->post, iov, niov);
}

size_t mux_stream_rx_posted(MuxStream *s)
{
    return s->post.filled;
}

size_t mux_stream_rx_unpost(MuxStream *s)
{
    size_t filled = s->aborted ? 0 : s->post.filled;

    mux_rx_post_set(&s->post, NULL, 0);
    return filled;
}

bool mux_stream_rx_continues(MuxStream *s)
{
    return s->engine->rx_stream == s && s->engine->rx_left;
}

bool mux_stream_rx_fin(MuxStream *s)
{
    return s->fin_received;
}

/* --- data to send --- */

/* The state allows new data. */
static bool may_write(MuxStream *s)
{
    return !s->retired && !s->fin_wanted && !s->released;
}

static bool takes_data(MuxStream *s)
{
    return may_write(s) && s->state != MUX_STREAM_OPENING &&
           s->tx_limit > s->tx_offset && !s->own.size &&
           !mux_tx_offer_active(&s->offer);
}

bool mux_stream_writable(MuxStream *s)
{
    bool ok = takes_data(s);

    s->tx_blocked |= !ok;
    return ok;
}

void mux_stream_tx_unblock(MuxStream *s)
{
    if (s->tx_blocked && takes_data(s)) {
        s->tx_blocked = false;
        mux_stream_event(s, MUX_EVENT_WRITABLE);
    }
}

void mux_stream_tx_offer(MuxStream *s, const struct iovec *iov, unsigned niov)
{
    mux_tx_offer_set(&s->offer, iov, niov);
    mux_sched_update(s);
}

size_t mux_stream_tx_sent(MuxStream *s)
{
    return s->offer.sent;
}

size_t mux_stream_tx_copy(MuxStream *s, const struct iovec *iov, unsigned niov)
{
    uint64_t credit = s->tx_limit - s->tx_offset;
    size_t queued = s->own.size - s->own_committed;
    size_t room = MUX_OWN_BUFFER - s->own.size;
    size_t done = 0;

    if (!may_write(s) || s->state == MUX_STREAM_OPENING ||
        mux_tx_offer_active(&s->offer)) {
        room = 0;
    } else {
        room = MIN(room, credit - queued);
    }
    for (unsigned i = 0; i < niov; i++) {
        size_t n = MIN(iov[i].iov_len, room - done);

        mux_chunks_append(&s->own, iov[i].iov_base, n);
        done += n;
        if (n < iov[i].iov_len) {
            s->tx_blocked = true;
            break;
        }
    }
    mux_sched_update(s);
    return done;
}

void mux_stream_tx_taken(MuxStream *s, bool own, size_t bytes)
{
    if (own) {
        s->own_committed -= bytes;
        mux_chunks_consume(&s->own, bytes);
    } else {
        s->offer.sent += bytes;
        if (!mux_tx_offer_active(&s->offer)) {
            mux_stream_event(s, MUX_EVENT_WRITABLE);
        }
    }
    mux_stream_tx_unblock(s);
}

/* --- queries --- */

MuxStreamState mux_stream_state(MuxStream *s)
{
    return s->state;
}

bool mux_stream_asked(MuxStream *s)
{
    return !s->local && s->state == MUX_STREAM_OPENING;
}

bool mux_stream_fin_acked(MuxStream *s)
{
    return s->fin_acked;
}

const char *mux_stream_name(MuxStream *s)
{
    return s->name;
}

const char *mux_stream_error(MuxStream *s)
{
    return s->error;
}

MuxCause mux_stream_cause(MuxStream *s)
{
    return s->cause;
}

uint32_t mux_stream_id(MuxStream *s)
{
    return s->id;
}

uint64_t mux_stream_bytes_sent(MuxStream *s)
{
    return s->tx_offset;
}

uint64_t mux_stream_bytes_received(MuxStream *s)
{
    return s->rx_arrived;
}

void mux_stream_set_opaque(MuxStream *s, void *opaque)
{
    s->opaque = opaque;
}

void *mux_stream_opaque(MuxStream *s)
{
    return s->opaque;
}

void mux_stream_set_weight(MuxStream *s, unsigned weight)
{
    s->weight = CLAMP(weight, 1, MUX_WEIGHT_MAX);
}

void mux_stream_set_urgent(MuxStream *s, bool urgent)
{
    s->urgent = urgent;
    mux_sched_update(s);
}
