/*
 * Tests of the migration multiplexer's engine: every order of events in a
 * model so small that all of them can be tried
 *
 * Two engines, two streams, most often with a window of 2 bytes and 3 bytes to
 * send, and a connection that holds a few bytes.  What happens next is one of:
 * a side hands bytes to the connection, a side takes bytes from it, an
 * application reads a byte.  Most models begin with open streams; in others
 * both OPENs are still to be sent, and an application may accept a stream, or
 * reset it, once on each side.  All of these lead a step nearer to the end, so
 * there is no deadlock if every state in which nothing can happen is a good
 * end.
 *
 * The search goes depth first, and runs the path again from the start where it
 * goes back.  States that were seen before are not entered again; a state is
 * all that the two engines hold.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "migration/mux/engine-int.h"
#include "mux-engine-helpers.h"

#define STREAMS     2

/* What may happen next; a model's actions are numbered from 0. */
enum {
    SEND,                       /* + side */
    RECEIVE = SEND + 2,         /* + side that receives */
    READ = RECEIVE + 2,         /* + 2 * stream + side that reads */
    ACCEPT = READ + 2 * STREAMS,        /* + stream */
    RESET = ACCEPT + STREAMS,   /* + 2 * stream + side that resets */
    ACTIONS = RESET + 2 * STREAMS,
};

typedef struct Rules {
    bool writes[2][STREAMS];    /* side has something to send on the stream */
    bool unread[STREAMS];       /* the destination never reads it */
    bool opening;               /* begins with the OPENs */
    bool resets[2];             /* side may reset a stream */
    size_t window, bytes;       /* of a stream, to send on it */
    size_t capacity;            /* of the connection, each way, bytes */
} Rules;

typedef struct Model {
    const Rules *rules;
    MuxEngine *e[2];
    MuxStream *s[2][STREAMS];   /* NULL: not yet known to that side */
    bool reset[2][STREAMS];     /* by that side's application */
    GByteArray *line[2];        /* what a side has sent, not received */
    GHashTable *seen;           /* states, as GBytes */
    uint8_t path[1000];         /* actions that led to the present state */
    unsigned depth;
    unsigned ends;              /* states without anything left to do */
} Model;

/* --- one run --- */

static uint8_t payload[3];

/* All that can go out does. */
static void exchange(Model *m)
{
    for (int side = 0; side < 2; side++) {
        g_autoptr(GByteArray) out = g_byte_array_new();

        mux_drain(m->e[side], out, 0);
        mux_feed(m->e[!side], out->data, out->len, 0);
    }
}

static void make_engine(Model *m, int side)
{
    MuxConfig config;

    mux_config_default(&config, side == SRC ? MUX_ROLE_SOURCE
                                            : MUX_ROLE_DESTINATION);
    config.window = config.window_max = m->rules->window;
    m->e[side] = mux_engine_new(&config, 0);
    g_byte_array_set_size(m->line[side], 0);
}

/* An application says all that it ever will. */
static void write_all(Model *m, int side, int stream)
{
    struct iovec iov = { .iov_base = payload, .iov_len = m->rules->bytes };
    MuxStream *s = m->s[side][stream];

    if (m->rules->writes[side][stream]) {
        mux_stream_tx_offer(s, &iov, 1);
    }
    mux_stream_fin(s);
}

static void take_events(Model *m, int side)
{
    MuxEvent event;

    while (mux_engine_next_event(m->e[side], &event)) {
        if (event.type == MUX_EVENT_OPEN) {
            m->s[side][mux_stream_id(event.stream) / 2] = event.stream;
        }
    }
}

static void accept_stream(Model *m, int stream)
{
    mux_stream_accept(m->s[DST][stream]);
    write_all(m, DST, stream);
}

/* From here on the model runs. */
static void model_start(Model *m)
{
    const char *why;

    make_engine(m, SRC);
    make_engine(m, DST);
    memset(m->s, 0, sizeof(m->s));
    memset(m->reset, 0, sizeof(m->reset));
    exchange(m);
    for (int i = 0; i < STREAMS; i++) {
        m->s[SRC][i] = mux_engine_open(m->e[SRC], "x", &why);
    }
    if (!m->rules->opening) {
        exchange(m);
        take_events(m, DST);
        mux_stream_accept(m->s[DST][0]);
        mux_stream_accept(m->s[DST][1]);
        exchange(m);
        take_events(m, SRC);
    }
    for (int i = 0; i < STREAMS; i++) {
        write_all(m, SRC, i);
        if (!m->rules->opening) {
            write_all(m, DST, i);
        }
    }
}

static void model_stop(Model *m)
{
    mux_engine_free(m->e[SRC]);
    mux_engine_free(m->e[DST]);
}

static bool may_read(Model *m, int side, int stream)
{
    MuxStream *s = m->s[side][stream];

    return s && mux_stream_rx_pending(s) &&
           !(side == DST && m->rules->unread[stream]);
}

static bool may_reset(Model *m, int side, int stream)
{
    MuxStream *s = m->s[side][stream];

    return s && m->rules->resets[side] &&
           !m->reset[side][0] && !m->reset[side][1] &&
           mux_stream_state(s) < MUX_STREAM_FINISHED;
}

static bool enabled(Model *m, unsigned action)
{
    if (action < RECEIVE) {
        return m->line[action]->len < m->rules->capacity &&
               !mux_engine_tx_idle(m->e[action]);
    }
    if (action < READ) {
        return m->line[!(action - RECEIVE)]->len > 0;
    }
    if (action < ACCEPT) {
        return may_read(m, action % 2, (action - READ) / 2);
    }
    if (action < RESET) {
        MuxStream *s = m->s[DST][action - ACCEPT];

        return s && mux_stream_asked(s);
    }
    return may_reset(m, action % 2, (action - RESET) / 2);
}

static void send_bytes(Model *m, int side)
{
    size_t left = m->rules->capacity - m->line[side]->len;
    size_t done = 0;
    struct iovec iov[64];
    unsigned n = mux_engine_tx_want(m->e[side], iov, 64, 0);

    for (unsigned i = 0; i < n && done < left; i++) {
        size_t len = MIN(left - done, iov[i].iov_len);

        g_byte_array_append(m->line[side], iov[i].iov_base, len);
        done += len;
    }
    mux_engine_tx_done(m->e[side], done);
}

/* What is dealt with is acknowledged at once. */
static void acknowledge(Model *m)
{
    for (int i = 0; i < 2 * STREAMS; i++) {
        MuxStream *s = m->s[i % 2][i / 2];

        if (s && mux_stream_rx_fin(s) && !mux_stream_rx_pending(s)) {
            mux_stream_fin_ok(s);
        }
    }
}

static void apply(Model *m, unsigned action)
{
    if (action < RECEIVE) {
        send_bytes(m, action);
    } else if (action < READ) {
        int to = action - RECEIVE;

        mux_feed(m->e[to], m->line[!to]->data, m->line[!to]->len, 0);
        g_byte_array_set_size(m->line[!to], 0);
        take_events(m, to);
    } else if (action < ACCEPT) {
        mux_stream_rx_consume(m->s[action % 2][(action - READ) / 2], 1);
    } else if (action < RESET) {
        accept_stream(m, action - ACCEPT);
    } else {
        int stream = (action - RESET) / 2;

        mux_stream_reset(m->s[action % 2][stream], MUX_CODE_ABORTED, "");
        m->reset[action % 2][stream] = true;
    }
    acknowledge(m);
}

/* --- states --- */

static void put(GByteArray *out, uint64_t value)
{
    g_byte_array_append(out, (uint8_t *)&value, sizeof(value));
}

static void put_queue(GByteArray *out, GQueue *queue)
{
    for (GList *l = queue->head; l; l = l->next) {
        put(out, ((MuxStream *)l->data)->id);
    }
    put(out, 0);
}

/* What is left of a stream that the engine may have forgotten */
static void put_retired(GByteArray *out, MuxEngine *e, uint32_t id)
{
    MuxRetired *r = g_hash_table_lookup(e->retired, GUINT_TO_POINTER(id));

    put(out, r ? r->offset + 1 : 0);
    put(out, r ? r->limit : 0);
}

static void put_stream(GByteArray *out, MuxStream *s)
{
    put(out, s != NULL);
    if (!s) {
        return;
    }
    put_retired(out, s->engine, s->id);
    put(out, s->state);
    put(out, s->retired);
    put(out, s->tx_limit);
    put(out, s->tx_offset);
    put(out, s->offer.committed);
    put(out, s->offer.sent);
    put(out, s->fin_wanted | s->fin_sent << 1 | s->fin_acked << 2 |
             s->fin_received << 3 | s->fin_ok_wanted << 4);
    put(out, s->rx_limit);
    put(out, s->rx_offset);
    put(out, s->rx_arrived);
    put(out, s->rx_consumed);
    put(out, s->pending);
    put(out, s->had);
}

static void put_engine(GByteArray *out, MuxEngine *e)
{
    MuxBatch *b = &e->batch;

    put_queue(out, &e->opens);
    put_queue(out, &e->control);
    put_queue(out, &e->bulk);
    put(out, e->bulk_had);
    put(out, e->ended);
    put(out, e->rx_left);
    put(out, e->rx_left && e->rx_drop);
    put(out, e->rx_left ? e->rx_header.type : 0);
    put(out, e->rx_left ? e->rx_header.stream : 0);
    if (e->rx_left && !e->rx_stream) {
        g_byte_array_append(out, e->rx_control,
                            e->rx_header.length - e->rx_left);
    }
    put(out, e->rx_buf_len);
    g_byte_array_append(out, e->rx_buf, e->rx_buf_len);
    for (unsigned i = b->first; i < b->niov; i++) {
        size_t skip = i == b->first ? b->skip : 0;

        put(out, b->piece[i].stream ? b->piece[i].stream->id : 0);
        g_byte_array_append(out, b->iov[i].iov_base + skip,
                            b->iov[i].iov_len - skip);
    }
    put(out, b->niov - b->first);
}

/* Returns whether the present state is new. */
static bool enter_state(Model *m)
{
    GByteArray *out = g_byte_array_new();

    for (int side = 0; side < 2; side++) {
        put_engine(out, m->e[side]);
        for (int i = 0; i < STREAMS; i++) {
            put_stream(out, m->s[side][i]);
        }
        g_byte_array_append(out, (uint8_t *)m->reset[side],
                            sizeof(m->reset[side]));
        put(out, m->line[side]->len);
        g_byte_array_append(out, m->line[side]->data, m->line[side]->len);
    }
    return g_hash_table_add(m->seen, g_byte_array_free_to_bytes(out));
}

/* --- the search --- */

static void check_end_of_stream(Model *m, int side, int stream)
{
    MuxStream *s = m->s[side][stream];
    bool reset = m->reset[SRC][stream] || m->reset[DST][stream];
    bool stuck = m->rules->unread[stream];
    size_t sent = stuck && side == SRC ? m->rules->window : m->rules->bytes;

    if (reset && !m->s[SRC][stream]->announced) {
        g_assert_null(m->s[DST][stream]);
        return;
    }
    if (reset && mux_stream_state(s) == MUX_STREAM_RESET) {
        g_assert_cmpuint(s->rx.size, ==, 0);
        return;
    }
    /* Who was done before the RESET came, or was sent, stays so */
    g_assert_false(m->reset[side][stream]);
    g_assert_cmpint(mux_stream_state(s), ==,
                    stuck ? MUX_STREAM_FINISHING : MUX_STREAM_FINISHED);
    g_assert_cmpuint(mux_stream_bytes_sent(s), ==,
                     m->rules->writes[side][stream] ? sent : 0);
}

/* Nothing can happen any more: all is done that can be. */
static void check_end(Model *m)
{
    m->ends++;
    for (int side = 0; side < 2; side++) {
        g_assert_null(mux_engine_error(m->e[side]));
        for (int i = 0; i < STREAMS; i++) {
            check_end_of_stream(m, side, i);
        }
    }
}

static void run_path(Model *m)
{
    model_stop(m);
    model_start(m);
    for (unsigned i = 0; i < m->depth; i++) {
        apply(m, m->path[i]);
    }
}

static void search(Model *m)
{
    unsigned possible = 0;
    bool moved = false;

    if (!enter_state(m)) {
        return;
    }
    for (unsigned a = 0; a < ACTIONS; a++) {
        possible |= enabled(m, a) << a;
    }
    if (!possible) {
        check_end(m);
    }
    g_assert_cmpuint(m->depth, <, sizeof(m->path));
    for (unsigned a = 0; a < ACTIONS; a++) {
        if (!(possible & 1 << a)) {
            continue;
        }
        if (moved) {
            run_path(m);
        }
        moved = true;
        apply(m, a);
        m->path[m->depth++] = a;
        search(m);
        m->depth--;
    }
}

static void search_all(const Rules *rules)
{
    Model m = {
        .rules = rules,
        .line = { g_byte_array_new(), g_byte_array_new() },
        .seen = g_hash_table_new_full(g_bytes_hash, g_bytes_equal,
                                      (GDestroyNotify)g_bytes_unref, NULL),
    };

    model_start(&m);
    search(&m);
    g_test_message("capacity %zu: %u states, %u of them ends",
                   rules->capacity, g_hash_table_size(m.seen), m.ends);
    g_assert_cmpuint(m.ends, >, 0);
    model_stop(&m);
    g_hash_table_unref(m.seen);
    g_byte_array_unref(m.line[SRC]);
    g_byte_array_unref(m.line[DST]);
}

/* The less the connection holds the more states there are. */
static void search_with(Rules rules, size_t quick, size_t thorough)
{
    for (size_t c = g_test_thorough() ? thorough : quick; c < 200; c *= 2) {
        rules.capacity = c;
        search_all(&rules);
    }
}

static void test_source_writes(void)
{
    Rules rules = {
        .writes = { [SRC] = { true, true } }, .window = 2, .bytes = 3,
    };

    search_with(rules, 100, 7);
}

static void test_each_side_writes_one_stream(void)
{
    Rules rules = {
        .writes = { { true, false }, { false, true } }, .window = 2, .bytes = 3,
    };

    search_with(rules, 88, 11);
}

static void test_both_sides_write_both_streams(void)
{
    Rules rules = {
        .writes = { { true, true }, { true, true } }, .window = 1, .bytes = 2,
    };

    search_with(rules, 150, 60);
}

static void test_one_stream_is_never_read(void)
{
    Rules rules = {
        .writes = { { true, true }, { false, true } },
        .unread = { true, false }, .window = 2, .bytes = 3,
    };

    search_with(rules, 60, 25);
}

static void test_streams_are_opened_and_reset(void)
{
    Rules rules = {
        .writes = { [SRC] = { true, false } }, .window = 1, .bytes = 2,
        .opening = true, .resets = { true, true },
    };

    search_with(rules, 50, 12);
    rules.writes[DST][1] = true;
    search_with(rules, 100, 50);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);

#define ADD(path, func) g_test_add_func("/mux/model/" path, func)
    ADD("source-writes", test_source_writes);
    ADD("each-side-writes-one-stream", test_each_side_writes_one_stream);
    ADD("both-sides-write-both-streams", test_both_sides_write_both_streams);
    ADD("one-stream-is-never-read", test_one_stream_is_never_read);
    ADD("streams-are-opened-and-reset", test_streams_are_opened_and_reset);
#undef ADD

    return g_test_run();
}
