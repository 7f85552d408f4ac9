/*
 * Tests of the migration multiplexer's engine: credit that grows, memory
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "migration/mux/engine-int.h"
#include "mux-link-sim.h"

#define MIB     (1024 * KIB)
#define RATE    (10 * SIM_GBIT)

/* Memory that what @e has received and not given away takes, bytes. */
static uint64_t held(MuxEngine *e)
{
    return (uint64_t)e->pool.nused * MUX_CHUNK_SIZE;
}

/*
 * What the limits allow: chunks are allocated as a whole, the first and the
 * last of a stream may be all but empty.
 */
static uint64_t allowed(MuxEngine *e)
{
    return e->config.window_sum +
           (uint64_t)g_hash_table_size(e->all) * 2 * MUX_CHUNK_SIZE;
}

/* What the peer may still send and what is unread, over all streams. */
static uint64_t promised(MuxEngine *e)
{
    uint64_t sum = 0;
    GHashTableIter iter;
    gpointer key;

    g_hash_table_iter_init(&iter, e->all);
    while (g_hash_table_iter_next(&iter, &key, NULL)) {
        MuxStream *s = key;

        sum += s->retired ? s->rx.size : s->rx_limit - s->rx_consumed;
    }
    return sum;
}

static uint64_t total_read(Sim *sim)
{
    uint64_t sum = 0;

    for (unsigned i = 0; i < sim->flows->len; i++) {
        sum += ((SimFlow *)g_ptr_array_index(sim->flows, i))->read;
    }
    return sum;
}

/* Run in small steps, and look at the limits all the time. */
static void run_within_limits(Sim *sim, int64_t ns)
{
    MuxEngine *e = sim->side[DST].e;

    for (int i = 0; i < 50; i++) {
        sim_run(sim, ns / 50);
        g_assert_cmpuint(promised(e), <=, e->config.window_sum);
        g_assert_cmpuint(held(e), <=, allowed(e));
    }
}

static SimFlow *flow(Sim *sim, unsigned i)
{
    return g_ptr_array_index(sim->flows, i);
}

static void open_writers(Sim *sim, int n)
{
    for (int i = 0; i < n; i++) {
        sim_open(sim, SRC, "nbd-disk0");
    }
    for (int i = 0; i < n; i++) {
        flow(sim, i)->writing = true;
    }
}

static void stop_readers(Sim *sim)
{
    for (unsigned i = 0; i < sim->flows->len; i++) {
        flow(sim, i)->reading = false;
    }
}

/* --- speed --- */

static void fills_the_link(int64_t rtt, int nstreams)
{
    int64_t measured = MAX(10 * rtt, 20 * SIM_MS);
    uint64_t before;
    double part;
    Sim sim;

    sim_init(&sim, RATE, rtt, NULL, NULL);
    if (rtt < SIM_MS) {
        sim.buffer = sim.write_max = 8 * KIB;
    }
    open_writers(&sim, nstreams);
    run_within_limits(&sim, 10 * rtt);
    before = total_read(&sim);
    run_within_limits(&sim, measured);
    part = (total_read(&sim) - before) / ((double)RATE * measured / SIM_S);
    g_test_message("%d streams, %g ms: %.1f %% of the link", nstreams,
                   (double)rtt / SIM_MS, 100 * part);
    g_assert_cmpfloat(part, >=, 0.9);
    sim_cleanup(&sim);
}

static void test_short_link_is_filled(void)
{
    fills_the_link(SIM_MS / 10, 1);
    fills_the_link(SIM_MS / 10, 8);
}

static void test_regional_link_is_filled(void)
{
    fills_the_link(10 * SIM_MS, 1);
    fills_the_link(10 * SIM_MS, 8);
}

static void test_long_link_is_filled(void)
{
    fills_the_link(60 * SIM_MS, 1);
    fills_the_link(60 * SIM_MS, 8);
}

/* --- one window --- */

static void test_window_grows_no_further_than_useful(void)
{
    Sim sim;

    /* 125 KB are on the way in one round trip, 5 MB on the longer link */
    sim_init(&sim, RATE / 10, SIM_MS, NULL, NULL);
    open_writers(&sim, 1);
    sim_run(&sim, SIM_S);
    g_assert_cmpuint(flow(&sim, 0)->to->window, ==, 4 * MIB);
    sim_cleanup(&sim);

    /* 625 KB are, but a window of 4 MiB would last for 3 ms only */
    sim_init(&sim, RATE, SIM_MS / 2, NULL, NULL);
    open_writers(&sim, 1);
    sim_run(&sim, SIM_S);
    g_assert_cmpuint(flow(&sim, 0)->to->window, >, 11 * MIB);
    g_assert_cmpuint(flow(&sim, 0)->to->window, <, 13 * MIB);
    sim_cleanup(&sim);

    sim_init(&sim, RATE, 4 * SIM_MS, NULL, NULL);
    open_writers(&sim, 1);
    sim_run(&sim, SIM_S);
    g_assert_cmpuint(flow(&sim, 0)->to->window, >, 10 * MIB);
    g_assert_cmpuint(flow(&sim, 0)->to->window, <, 24 * MIB);
    sim_cleanup(&sim);
}

static void test_slow_reader_gets_no_larger_window(void)
{
    SimFlow *f;
    Sim sim;

    sim_init(&sim, RATE, 60 * SIM_MS, NULL, NULL);
    open_writers(&sim, 1);
    f = flow(&sim, 0);
    for (int i = 0; i < 100; i++) {
        /* 10 MiB/s: two thirds of a MiB in a round trip */
        f->reading = false;
        sim_run(&sim, 100 * SIM_MS);
        mux_stream_rx_consume(f->to, MIN(MIB, mux_stream_rx_pending(f->to)));
    }
    g_assert_cmpuint(f->to->window, ==, 4 * MIB);
    g_assert_cmpuint(held(sim.side[DST].e), <=, 4 * MIB + 2 * MUX_CHUNK_SIZE);
    sim_cleanup(&sim);
}

static void test_capped_window_stays(void)
{
    MuxEngine *e;
    SimFlow *f;
    Sim sim;

    sim_init(&sim, RATE, 60 * SIM_MS, NULL, NULL);
    e = sim.side[DST].e;
    open_writers(&sim, 1);
    f = flow(&sim, 0);
    mux_stream_set_window_max(f->to, 16 * MIB);
    sim_run(&sim, 2 * SIM_S);
    g_assert_cmpuint(f->to->window, ==, 16 * MIB);
    stop_readers(&sim);
    sim_run(&sim, 2 * SIM_S);
    /* half of it may have been used up when the reader stopped */
    g_assert_cmpuint(mux_stream_rx_pending(f->to), >=, 8 * MIB);
    g_assert_cmpuint(mux_stream_rx_pending(f->to), <=, 16 * MIB);
    g_assert_cmpuint(held(e), <=, 16 * MIB + 2 * MUX_CHUNK_SIZE);
    sim_cleanup(&sim);
}

static void test_cap_holds_for_first_window(void)
{
    const char *why;
    MuxStream *a, *b;
    MuxPair p;

    mux_pair_init(&p, MIB);
    a = mux_engine_open(p.src, "main", &why);
    mux_wire_run(&p.link);
    b = mux_expect_event(p.dst, MUX_EVENT_OPEN);
    mux_stream_set_window_max(b, 100 * KIB);
    mux_stream_accept(b);
    mux_wire_run(&p.link);
    g_assert_cmpuint(mux_copy_pattern(a, SRC, 0, 200 * KIB), ==, 100 * KIB);
    mux_stream_set_window_max(b, 0);
    g_assert_cmpuint(b->window_max, ==, MUX_WINDOW_SHARE);
    mux_pair_cleanup(&p);
}

/* Nothing is measured where nothing may grow, and not too often elsewhere. */
static void test_pings_are_rare(void)
{
    MuxConfig config;
    Sim sim;

    sim_init(&sim, RATE, 10 * SIM_MS, NULL, NULL);
    open_writers(&sim, 1);
    sim_run(&sim, 5 * SIM_S);
    g_assert_cmpuint(sim.side[DST].e->ping_id, >, 2);
    g_assert_cmpuint(sim.side[DST].e->ping_id, <=, 51);
    g_assert_cmpint(mux_engine_rtt(sim.side[DST].e), >=, 10 * SIM_MS);
    g_assert_cmpint(mux_engine_rtt(sim.side[DST].e), <, 11 * SIM_MS);
    sim_cleanup(&sim);

    mux_config_default(&config, MUX_ROLE_DESTINATION);
    config.window_max = config.window;
    sim_init(&sim, RATE, 10 * SIM_MS, NULL, &config);
    open_writers(&sim, 1);
    sim_run(&sim, SIM_S);
    g_assert_cmpuint(sim.side[DST].e->ping_id, ==, 0);
    sim_cleanup(&sim);
}

/* --- all windows --- */

static void test_memory_is_bounded_by_the_sum(void)
{
    MuxEngine *e;
    Sim sim;

    sim_init(&sim, 8 * RATE, 60 * SIM_MS, NULL, NULL);
    e = sim.side[DST].e;
    open_writers(&sim, 8);
    run_within_limits(&sim, 2 * SIM_S);
    /* all is granted, though at any time up to half of it is used up */
    g_assert_cmpint(e->credit_free, <, 8 * MIB);
    stop_readers(&sim);
    run_within_limits(&sim, 2 * SIM_S);
    /* all that was promised has come */
    g_assert_cmpuint(held(e), >, 256 * MIB / 3);
    for (int i = 0; i < 8; i++) {
        SimFlow *f = flow(&sim, i);

        g_assert_cmpuint(mux_stream_rx_pending(f->to), ==,
                         f->to->rx_limit - f->to->rx_consumed);
    }
    sim_cleanup(&sim);
}

static void test_new_stream_gets_its_part(void)
{
    SimFlow *f;
    MuxEngine *e;
    uint64_t before;
    Sim sim;

    sim_init(&sim, 8 * RATE, 60 * SIM_MS, NULL, NULL);
    e = sim.side[DST].e;
    open_writers(&sim, 3);
    run_within_limits(&sim, 2 * SIM_S);
    g_assert_cmpint(e->credit_free, <, 8 * MIB);
    f = sim_open(&sim, SRC, "late");
    g_assert_cmpuint(f->to->window, >=, MUX_WINDOW_SHARE);
    f->writing = true;
    run_within_limits(&sim, 5 * SIM_S);
    g_assert_cmpuint(f->to->window, >, 40 * MIB);
    before = f->read;
    run_within_limits(&sim, SIM_S);
    g_assert_cmpuint(f->read - before, >, 256 * MIB);
    sim_cleanup(&sim);
}

static void test_every_possible_stream_has_a_share(void)
{
    Sim sim;

    sim_init(&sim, RATE, SIM_MS, NULL, NULL);
    for (int i = 0; i < 2 * MUX_MAX_STREAMS; i++) {
        SimFlow *f = sim_open(&sim, i % 2, "x");

        g_assert_cmpuint(f->to->window, >=, MUX_WINDOW_SHARE);
        g_assert_cmpuint(f->from->window, >=, MUX_WINDOW_SHARE);
    }
    g_assert_cmpuint(promised(sim.side[DST].e), <=, 256 * MIB);
    g_assert_cmpuint(promised(sim.side[SRC].e), <=, 256 * MIB);
    sim_cleanup(&sim);
}

static void test_credit_comes_back(void)
{
    struct iovec iov;
    SimFlow *f;
    MuxEngine *e;
    int64_t before;
    Sim sim;

    sim_init(&sim, RATE, SIM_MS, NULL, NULL);
    e = sim.side[DST].e;
    before = e->credit_free;
    g_assert_cmpint(before, ==, 192 * MIB);
    open_writers(&sim, 1);
    f = flow(&sim, 0);
    stop_readers(&sim);
    sim_run(&sim, SIM_S);
    g_assert_cmpuint(mux_stream_rx_iov(f->to, &iov, 1), ==, 1);
    mux_stream_reset(f->from, 1, "");
    f->writing = false;
    sim_run(&sim, SIM_S);
    /* its credit is free again, what a reader is still looking at is not */
    g_assert_cmpint(mux_stream_state(f->to), ==, MUX_STREAM_RESET);
    g_assert_cmpint(e->credit_free, ==, before - 4 * MIB);
    mux_stream_rx_consume(f->to, 0);
    g_assert_cmpint(e->credit_free, ==, before);
    g_assert_cmpuint(e->pool.nused, ==, 0);
    sim_cleanup(&sim);
}

/* --- to the byte --- */

/* One engine, to which the test is the peer. */
typedef struct Reader {
    MuxEngine *e;
    int64_t now;                /* ns */
    uint32_t streams;           /* opened so far */
} Reader;

static void reader_init(Reader *r, const MuxConfig *config)
{
    MuxHello hello = {
        .magic = MUX_MAGIC,
        .version_min = MUX_VERSION, .version_max = MUX_VERSION,
        .length = MUX_HELLO_V2_SIZE, .max_frame = MUX_FRAME_BULK,
        .max_streams = MUX_MAX_STREAMS, .role = MUX_ROLE_SOURCE,
    };
    uint8_t buf[MUX_HELLO_V2_SIZE];

    *r = (Reader) { .e = mux_engine_new(config, 0), .now = 1000 * SIM_S };
    mux_hello_encode(&hello, buf);
    mux_feed(r->e, buf, sizeof(buf), r->now);
}

/* Returns how many frames of @type the engine sends now. */
static unsigned reader_sends(Reader *r, MuxFrameType type)
{
    g_autoptr(GByteArray) out = g_byte_array_new();
    unsigned n = 0;

    mux_drain(r->e, out, r->now);
    for (size_t i = 0; i < out->len; ) {
        MuxHeader h;

        if (out->data[i] == 'Q') {
            i += MUX_HELLO_V2_SIZE;
            continue;
        }
        mux_header_decode(out->data + i, &h);
        n += h.type == type;
        i += MUX_HEADER_SIZE + h.length;
    }
    return n;
}

static MuxStream *reader_open(Reader *r, uint64_t window_max)
{
    uint8_t buf[MUX_HEADER_SIZE + MUX_OPEN_SIZE + 1] = { 0 };
    MuxHeader h = {
        .type = MUX_FRAME_OPEN, .stream = 2 * r->streams++ + 1,
        .length = MUX_OPEN_SIZE + 1,
    };
    MuxStream *s;

    mux_header_encode(&h, buf);
    buf[MUX_HEADER_SIZE + 9] = 1;
    buf[MUX_HEADER_SIZE + MUX_OPEN_SIZE] = 'x';
    mux_feed(r->e, buf, sizeof(buf), r->now);
    s = mux_expect_event(r->e, MUX_EVENT_OPEN);
    mux_stream_set_window_max(s, window_max);
    mux_stream_accept(s);
    g_assert_cmpuint(reader_sends(r, MUX_FRAME_OPEN_OK), ==, 1);
    return s;
}

/* @bytes more arrive. */
static void reader_receive(Reader *r, MuxStream *s, size_t bytes)
{
    while (bytes) {
        size_t len = MIN(bytes, MUX_FRAME_BULK);
        g_autofree uint8_t *buf = g_malloc0(MUX_HEADER_SIZE + len);
        MuxHeader h = {
            .type = MUX_FRAME_DATA, .stream = s->id, .length = len,
            .arg = s->rx_offset,
        };

        mux_header_encode(&h, buf);
        mux_feed(r->e, buf, MUX_HEADER_SIZE + len, r->now);
        bytes -= len;
    }
    g_assert_null(mux_engine_error(r->e));
}

/* They are read, and so many that credit is due. */
static void reader_read(Reader *r, MuxStream *s, size_t bytes)
{
    reader_receive(r, s, bytes);
    mux_stream_rx_consume(s, bytes);
    g_assert_cmpuint(reader_sends(r, MUX_FRAME_WINDOW), ==, 1);
    g_assert_cmpuint(s->rx_limit, ==, s->rx_consumed + s->window);
}

/* Two streams of each side: their shares are 256 KiB, there is @pool more. */
static void reader_config(MuxConfig *config, uint64_t window, uint64_t pool)
{
    mux_config_default(config, MUX_ROLE_DESTINATION);
    config->window = window;
    config->window_sum = 4 * MUX_WINDOW_SHARE + pool;
    config->max_streams = 2;
}

static void test_growth_to_the_byte(void)
{
    MuxConfig config;
    MuxStream *s;
    Reader r;

    reader_config(&config, 64 * KIB, 10 * MIB);
    reader_init(&r, &config);
    s = reader_open(&r, MIB);
    /* nothing is known of the link */
    r.now += 10 * SIM_MS;
    reader_read(&r, s, 32 * KIB);
    g_assert_cmpuint(s->window, ==, 64 * KIB);
    /* nor is anything where the clock does not tell */
    r.e->rtt_min = 0;
    s->measured_at = r.now;
    reader_read(&r, s, 32 * KIB);
    g_assert_cmpuint(s->window, ==, 64 * KIB);
    /* 32 KiB in 10 ms, which is what a window lasts for at least */
    r.e->rtt_min = 1;
    s->measured_at = r.now;
    s->measured_from = s->rx_consumed;
    r.now += 10 * SIM_MS;
    reader_read(&r, s, 32 * KIB);
    g_assert_cmpuint(s->window, ==, 64 * KIB);
    r.now += 5 * SIM_MS;
    reader_read(&r, s, 32 * KIB + 4);
    g_assert_cmpuint(s->window, ==, 64 * KIB + 8);

    s = reader_open(&r, MIB);
    r.e->rtt_min = 10 * SIM_MS;
    /* within the round trip nothing can be said */
    r.now += 10 * SIM_MS - 1;
    reader_read(&r, s, 32 * KIB);
    g_assert_cmpuint(s->window, ==, 64 * KIB);
    /* 64 KiB in one: twice that in two, which is to be half of it */
    r.now += 1;
    reader_read(&r, s, 32 * KIB);
    g_assert_cmpuint(s->window, ==, 256 * KIB);
    /* half of it in two is what it should be */
    r.now += 20 * SIM_MS;
    reader_read(&r, s, 128 * KIB);
    g_assert_cmpuint(s->window, ==, 256 * KIB);
    r.now += 20 * SIM_MS;
    reader_read(&r, s, 128 * KIB + 4);
    g_assert_cmpuint(s->window, ==, 256 * KIB + 8);
    /* never less, and never more than allowed */
    r.now += SIM_S;
    reader_read(&r, s, 128 * KIB + 4);
    g_assert_cmpuint(s->window, ==, 256 * KIB + 8);
    for (int i = 0; i < 2; i++) {
        r.now += 10 * SIM_MS;
        reader_read(&r, s, s->window);
        g_assert_cmpuint(s->window, ==, MIB);
    }
    mux_engine_free(r.e);
}

static void test_first_grant_is_measured_from_the_opening(void)
{
    MuxConfig config;
    MuxStream *s;
    Reader r;

    reader_config(&config, 64 * KIB, 10 * MIB);
    reader_init(&r, &config);
    r.e->rtt_min = 10 * SIM_MS;
    s = reader_open(&r, MIB);
    r.now += 10 * SIM_MS;
    reader_read(&r, s, 32 * KIB);
    g_assert_cmpuint(s->window, ==, 128 * KIB);
    mux_engine_free(r.e);
}

static void test_window_is_due_at_half(void)
{
    MuxConfig config;
    MuxStream *s;
    Reader r;

    reader_config(&config, 64 * KIB, 0);
    reader_init(&r, &config);
    s = reader_open(&r, MIB);
    reader_receive(&r, s, 64 * KIB);
    mux_stream_rx_consume(s, 32 * KIB - 1);
    g_assert_cmpuint(reader_sends(&r, MUX_FRAME_WINDOW), ==, 0);
    mux_stream_rx_consume(s, 1);
    g_assert_cmpuint(reader_sends(&r, MUX_FRAME_WINDOW), ==, 1);
    mux_engine_free(r.e);
}

static void test_first_windows_leave_something(void)
{
    MuxConfig config;
    Reader r;

    reader_config(&config, MIB, 80 * KIB);
    reader_init(&r, &config);
    g_assert_cmpint(r.e->credit_free, ==, 80 * KIB);
    g_assert_cmpuint(reader_open(&r, MIB)->window, ==, 74 * KIB);
    g_assert_cmpint(r.e->credit_free, ==, 70 * KIB);
    g_assert_cmpuint(reader_open(&r, MIB)->window, ==,
                     64 * KIB + 70 * KIB / 8);
    mux_engine_free(r.e);

    config.window_sum = MUX_WINDOW_SHARE;
    reader_init(&r, &config);
    g_assert_cmpint(r.e->credit_free, ==, 0);
    g_assert_cmpuint(reader_open(&r, MIB)->window, ==, MUX_WINDOW_SHARE);
    mux_engine_free(r.e);
}

/* A stream gets a larger window at the expense of those with larger ones. */
static void test_pressure_to_the_byte(void)
{
    uint64_t fair = MUX_WINDOW_SHARE + 160 * KIB;
    MuxStream *big, *small;
    MuxConfig config;
    Reader r;

    reader_config(&config, 64 * KIB, 320 * KIB);
    reader_init(&r, &config);
    r.e->rtt_min = 10 * SIM_MS;
    big = reader_open(&r, 10 * MIB);
    small = reader_open(&r, 10 * MIB);
    r.now += 10 * SIM_MS;
    reader_read(&r, big, 64 * KIB);
    g_assert_cmpuint(big->window, ==, 256 * KIB);
    g_assert_false(r.e->credit_wanted);
    /* it needs 512 KiB, and gets the remainder */
    r.now += 20 * SIM_MS;
    reader_read(&r, big, 256 * KIB);
    g_assert_cmpuint(big->window, ==, 384 * KIB);
    g_assert_cmpint(r.e->credit_free, ==, 0);
    g_assert_true(r.e->credit_wanted);
    /* no other stream needs it: it keeps more than its share */
    r.e->credit_wanted = false;
    r.now += SIM_S;
    reader_read(&r, big, 192 * KIB);
    g_assert_cmpuint(big->window, ==, 384 * KIB);

    /* a stream that needs no more requests no more */
    reader_read(&r, small, 64 * KIB);
    g_assert_false(r.e->credit_wanted);
    r.now += 10 * SIM_MS;
    reader_read(&r, small, 64 * KIB);
    g_assert_cmpuint(small->window, ==, 64 * KIB);
    g_assert_true(r.e->credit_wanted);
    /* at its next grant the big one gives, once */
    reader_read(&r, big, 192 * KIB);
    g_assert_cmpuint(big->window, ==, fair);
    g_assert_false(r.e->credit_wanted);
    g_assert_cmpint(r.e->credit_free, ==, 384 * KIB - fair);
    r.now += 10 * SIM_MS;
    reader_read(&r, small, 64 * KIB);
    g_assert_cmpuint(small->window, ==, fair);
    /* no stream has more than its share: none changes */
    r.e->credit_wanted = true;
    r.now += SIM_S;
    reader_read(&r, big, fair / 2);
    reader_read(&r, small, fair / 2);
    g_assert_cmpuint(big->window, ==, fair);
    g_assert_cmpuint(small->window, ==, fair);
    g_assert_true(r.e->credit_wanted);
    mux_engine_free(r.e);
}

/* Giving back half leaves the limit where it is: there is nothing to say. */
static void test_giving_back_half_is_silent(void)
{
    MuxStream *big, *other;
    MuxConfig config;
    Reader r;

    reader_config(&config, 64 * KIB, 4 * MIB);
    config.max_streams = 10;
    config.window_sum = 20 * MUX_WINDOW_SHARE + 4 * MIB;
    reader_init(&r, &config);
    r.e->rtt_min = 10 * SIM_MS;
    big = reader_open(&r, 2 * MIB);
    for (int i = 0; i < 9; i++) {
        other = reader_open(&r, 2 * MIB);
    }
    while (big->window < 2 * MIB) {
        r.now += 10 * SIM_MS;
        reader_read(&r, big, big->window);
    }
    r.e->credit_wanted = true;
    reader_receive(&r, big, MIB);
    mux_stream_rx_consume(big, MIB);
    g_assert_cmpuint(reader_sends(&r, MUX_FRAME_WINDOW), ==, 0);
    g_assert_cmpuint(big->window, ==, MIB);
    g_assert_cmpuint(big->rx_limit, ==, big->rx_consumed + MIB);
    g_assert_cmpuint(other->window, ==, 64 * KIB);
    mux_engine_free(r.e);
}

/* Credit that data of ended streams hold is not granted again. */
static void test_unread_data_hold_credit(void)
{
    MuxStream *old, *s;
    struct iovec iov;
    MuxConfig config;
    Reader r;

    reader_config(&config, 64 * KIB, 10 * KIB);
    reader_init(&r, &config);
    r.e->rtt_min = 10 * SIM_MS;
    old = reader_open(&r, MIB);
    reader_receive(&r, old, 20 * KIB);
    mux_stream_rx_iov(old, &iov, 1);
    mux_stream_reset(old, 1, "");
    g_assert_cmpint(r.e->credit_free, ==, -10 * KIB);
    s = reader_open(&r, MIB);
    g_assert_cmpuint(s->window, ==, MUX_WINDOW_SHARE);
    r.now += 10 * SIM_MS;
    reader_read(&r, s, 64 * KIB);
    g_assert_cmpuint(s->window, ==, MUX_WINDOW_SHARE);
    g_assert_cmpint(r.e->credit_free, ==, -10 * KIB);
    mux_stream_release(old);
    g_assert_cmpint(r.e->credit_free, ==, 10 * KIB);
    r.now += 10 * SIM_MS;
    reader_read(&r, s, 64 * KIB);
    g_assert_cmpuint(s->window, ==, MUX_WINDOW_SHARE + 10 * KIB);
    /* a released stream needs no more */
    mux_stream_release(s);
    r.e->credit_free = MIB;
    r.now += 10 * SIM_MS;
    reader_receive(&r, s, 74 * KIB);
    g_assert_cmpuint(reader_sends(&r, MUX_FRAME_WINDOW), ==, 1);
    g_assert_cmpuint(s->window, ==, MUX_WINDOW_SHARE + 10 * KIB);
    mux_engine_free(r.e);
}

/* The connection ends while a WINDOW is queued and a stream needs credit. */
static void test_nothing_is_granted_after_the_end(void)
{
    MuxConfig config;
    MuxStream *s;
    Reader r;

    reader_config(&config, 64 * KIB, 320 * KIB);
    reader_init(&r, &config);
    s = reader_open(&r, MIB);
    reader_receive(&r, s, 64 * KIB);
    mux_stream_rx_consume(s, 64 * KIB);
    r.e->credit_wanted = true;
    mux_engine_goaway(r.e, MUX_CODE_ABORTED, "enough");
    g_assert_cmpuint(reader_sends(&r, MUX_FRAME_WINDOW), ==, 0);
    g_assert_cmpuint(s->rx_limit, ==, 64 * KIB);
    g_assert_cmpint(r.e->credit_free, ==, 320 * KIB);
    mux_engine_free(r.e);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);

#define ADD(path, func) g_test_add_func("/mux/credit/" path, func)
    ADD("short-link-is-filled", test_short_link_is_filled);
    ADD("regional-link-is-filled", test_regional_link_is_filled);
    ADD("long-link-is-filled", test_long_link_is_filled);
    ADD("window-grows-no-further-than-useful",
        test_window_grows_no_further_than_useful);
    ADD("slow-reader-gets-no-larger-window",
        test_slow_reader_gets_no_larger_window);
    ADD("capped-window-stays", test_capped_window_stays);
    ADD("cap-holds-for-first-window", test_cap_holds_for_first_window);
    ADD("pings-are-rare", test_pings_are_rare);
    ADD("memory-is-bounded-by-the-sum", test_memory_is_bounded_by_the_sum);
    ADD("new-stream-gets-its-part", test_new_stream_gets_its_part);
    ADD("every-possible-stream-has-a-share",
        test_every_possible_stream_has_a_share);
    ADD("credit-comes-back", test_credit_comes_back);
    ADD("growth-to-the-byte", test_growth_to_the_byte);
    ADD("first-grant-is-measured-from-the-opening",
        test_first_grant_is_measured_from_the_opening);
    ADD("window-is-due-at-half", test_window_is_due_at_half);
    ADD("first-windows-leave-something", test_first_windows_leave_something);
    ADD("pressure-to-the-byte", test_pressure_to_the_byte);
    ADD("giving-back-half-is-silent", test_giving_back_half_is_silent);
    ADD("unread-data-hold-credit", test_unread_data_hold_credit);
    ADD("nothing-is-granted-after-the-end",
        test_nothing_is_granted_after_the_end);
#undef ADD

    return g_test_run();
}
