/*
 * Migration multiplexer: which stream sends next, and how much
 *
 * Urgent streams go first, a frame each in turn; after MUX_URGENT_RUN of their
 * frames one bulk frame goes, so that bulk is slowed down and never stopped.
 * Bulk streams share by weighted deficit round robin: the next one is that
 * which has had least for its weight, with equal weights each in turn.  A queue
 * holds only streams that could send now, so a stream falls behind while its
 * writer prepares the next piece.  It may catch up, but by MUX_CATCH_UP at
 * most: idle time is not credited.
 *
 * A writer of small pieces offers the next one when the batch with the last is
 * out.  Where others would get further ahead of it than it may catch up, the
 * batch ends with its piece, or it would never have more than one in each.
 *
 * While an urgent stream is in use a batch has no more data than the longest
 * frame may have then, so that what is urgent waits for no more than that.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "engine-int.h"

/* As far as a stream may be behind, as MuxStream.had: two frames, by weight */
#define MUX_CATCH_UP    (2ULL * MUX_FRAME_BULK * MUX_WEIGHT_MAX)

/* Largest payload of a frame now, bytes. */
static size_t frame_max(MuxEngine *e)
{
    size_t most = e->urgent_active ? MUX_FRAME_URGENT : MUX_FRAME_BULK;

    return MIN(most, e->peer.max_frame);
}

size_t mux_sched_batch_max(MuxEngine *e)
{
    return e->urgent_active ? MUX_FRAME_URGENT : MUX_BATCH_BYTES;
}

size_t mux_stream_tx_waiting(MuxStream *s)
{
    return s->own.size - s->own_committed + mux_tx_offer_waiting(&s->offer);
}

/* Our direction is open: it carries data until its FIN is at least queued. */
static bool may_send(MuxStream *s)
{
    return !s->retired && s->state != MUX_STREAM_OPENING && !s->fin_sent &&
           !(s->pending & MUX_PENDING_FIN);
}

static void leave_data_queue(MuxStream *s)
{
    if (s->data_queue) {
        g_queue_unlink(s->data_queue, &s->data_link);
    }
}

/* Behind those that had as much or less for their weight */
static void insert_bulk(MuxStream *s)
{
    GQueue *queue = &s->engine->bulk;
    GList *before = NULL;

    for (GList *l = queue->tail; l; l = l->prev) {
        if (((MuxStream *)l->data)->had <= s->had) {
            break;
        }
        before = l;
    }
    g_queue_insert_before_link(queue, before, &s->data_link);
}

static void join_data_queue(MuxStream *s, GQueue *queue)
{
    MuxEngine *e = s->engine;

    if (queue == &e->bulk) {
        if (e->bulk_had > MUX_CATCH_UP) {
            s->had = MAX(s->had, e->bulk_had - MUX_CATCH_UP);
        }
        insert_bulk(s);
    } else if (queue) {
        g_queue_push_tail_link(queue, &s->data_link);
    }
    s->data_queue = queue;
}

/* An urgent stream shortens everybody's frames once it carries data. */
static void count_urgent(MuxStream *s)
{
    bool count = s->urgent && !s->retired &&
                 (s->tx_offset || s->rx_offset);

    if (count != s->urgent_counted) {
        s->engine->urgent_active += count ? 1 : -1;
        s->urgent_counted = count;
    }
}

void mux_sched_batch_begin(MuxEngine *e)
{
    e->dry_had = UINT64_MAX;
}

/* @s has sent all there was.  There may be more once the batch is out. */
static void note_dry(MuxStream *s)
{
    if (!mux_stream_tx_waiting(s) && !s->fin_wanted) {
        s->engine->dry_had = MIN(s->engine->dry_had, s->had);
    }
}

/* One that ran dry in this batch could not catch up with @s any more. */
static bool too_far_ahead(MuxStream *s)
{
    return s->had - MIN(s->had, s->engine->dry_had) > MUX_CATCH_UP;
}

void mux_sched_update(MuxStream *s)
{
    MuxEngine *e = s->engine;
    bool waiting = may_send(s) && mux_stream_tx_waiting(s);
    GQueue *queue = NULL;

    count_urgent(s);
    if (waiting && s->tx_limit > s->tx_offset) {
        queue = s->urgent ? &e->urgent : &e->bulk;
    }
    if (s->data_queue != queue) {
        leave_data_queue(s);
        join_data_queue(s, queue);
    }
    if (!waiting && may_send(s) && s->fin_wanted) {
        mux_stream_want_control(s, MUX_PENDING_FIN);
    }
}

MuxStream *mux_sched_pick(MuxEngine *e, size_t *max)
{
    bool bulk = e->urgent_run >= MUX_URGENT_RUN || !e->urgent.length;
    GQueue *queue = bulk && e->bulk.length ? &e->bulk : &e->urgent;
    MuxStream *s = g_queue_peek_head(queue);
    uint64_t credit;

    if (!s || (queue == &e->bulk && too_far_ahead(s))) {
        return NULL;
    }
    *max = MIN(frame_max(e), mux_stream_tx_waiting(s));
    credit = s->tx_limit - s->tx_offset;
    *max = MIN(*max, credit);
    return s;
}

void mux_sched_sent(MuxStream *s, size_t bytes)
{
    MuxEngine *e = s->engine;
    GQueue *queue = s->data_queue;

    g_queue_unlink(queue, &s->data_link);
    if (queue == &e->urgent) {
        e->urgent_run++;
        g_queue_push_tail_link(queue, &s->data_link);
    } else {
        e->urgent_run = 0;
        e->bulk_had = s->had;
        s->had += bytes * MUX_WEIGHT_MAX / s->weight;
        insert_bulk(s);
        note_dry(s);
    }
    mux_sched_update(s);
}
