/*
 * Tests of the migration multiplexer's engine: data between two of them
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "migration/mux/engine-int.h"
#include "mux-engine-helpers.h"

/* --- random conversations --- */

/* One direction of one stream. */
typedef struct Flow {
    MuxStream *from, *to;
    int side;                   /* of the sender */
    uint64_t size, written, read;
    uint8_t *offered;           /* NULL: no offer is out */
    size_t offer_len;
} Flow;

static void flow_offer(Flow *f, GRand *rand)
{
    size_t len = g_rand_int_range(rand, 1, 100 * KIB);
    struct iovec iov[70];
    size_t left;
    unsigned n = 0;

    len = left = MIN(len, f->size - f->written);
    f->offered = g_malloc(len);
    f->offer_len = len;
    for (size_t i = 0; i < len; i++) {
        f->offered[i] = mux_pattern(mux_stream_id(f->from), f->side,
                                    f->written + i);
    }
    while (left) {
        size_t piece = g_rand_int_range(rand, 0, 4096);

        if (piece > left || n == G_N_ELEMENTS(iov) - 1) {
            piece = left;
        }
        iov[n].iov_base = f->offered + len - left;
        iov[n++].iov_len = piece;
        left -= piece;
    }
    mux_stream_tx_offer(f->from, iov, n);
}

static void flow_end_offer(Flow *f)
{
    size_t taken = mux_stream_tx_withdraw(f->from);

    g_assert_cmpuint(taken, <=, f->offer_len);
    f->written += taken;
    /* what was taken must not be needed any more */
    memset(f->offered, 0xee, f->offer_len);
    g_clear_pointer(&f->offered, g_free);
}

static void flow_write(Flow *f, GRand *rand)
{
    if (f->offered) {
        if (mux_stream_tx_sent(f->from) == f->offer_len ||
            g_rand_int_range(rand, 0, 50) == 0) {
            flow_end_offer(f);
        }
        return;
    }
    if (f->written == f->size) {
        mux_stream_fin(f->from);
    } else if (g_rand_boolean(rand)) {
        flow_offer(f, rand);
    } else {
        size_t len = g_rand_int_range(rand, 1, 9000);

        len = MIN(len, f->size - f->written);
        f->written += mux_copy_pattern(f->from, f->side, f->written, len);
    }
}

static void flow_read(Flow *f, GRand *rand)
{
    f->read += mux_read_pattern(f->to, f->side, f->read,
                                g_rand_int_range(rand, 0, 60 * KIB));
    g_assert_cmpuint(f->read, <=, f->size);
    if (mux_stream_rx_fin(f->to) && !mux_stream_rx_pending(f->to)) {
        g_assert_cmpuint(f->read, ==, f->size);
        mux_stream_fin_ok(f->to);
    }
}

static bool flow_finished(Flow *f)
{
    return mux_stream_state(f->from) == MUX_STREAM_FINISHED &&
           mux_stream_state(f->to) == MUX_STREAM_FINISHED;
}

static void converse(uint32_t seed, size_t piece_max, uint64_t window,
                     int nstreams, int size_max)
{
    g_autofree Flow *flow = g_new0(Flow, 2 * nstreams);
    int left = 2 * nstreams;
    int idle = 0;
    MuxPair p;

    mux_pair_init(&p, window);
    g_rand_set_seed(p.link.rand, seed);
    for (int i = 0; i < nstreams; i++) {
        g_autofree char *name = g_strdup_printf("s%d", i);
        Flow *there = &flow[2 * i], *back = &flow[2 * i + 1];

        there->side = g_rand_boolean(p.link.rand) ? SRC : DST;
        back->side = !there->side;
        mux_wire_open(&p.link, there->side, name, &there->from, &there->to);
        back->from = there->to;
        back->to = there->from;
        there->size = g_rand_int_range(p.link.rand, 0, size_max);
        back->size = g_rand_int_range(p.link.rand, 0, size_max);
        mux_stream_set_urgent(there->from, i == 0);
    }
    p.link.piece_max = piece_max;
    while (left) {
        bool moved = mux_wire_step(&p.link);

        left = 2 * nstreams;
        for (int i = 0; i < 2 * nstreams; i++) {
            flow_write(&flow[i], p.link.rand);
            flow_read(&flow[i], p.link.rand);
            left -= flow_finished(&flow[i]);
        }
        idle = moved ? 0 : idle + 1;
        g_assert_cmpint(idle, <, 10000);
    }
    for (int i = 0; i < 2 * nstreams; i++) {
        g_assert_cmpuint(mux_stream_bytes_sent(flow[i].from), ==,
                         flow[i].size);
        g_assert_cmpuint(mux_stream_bytes_received(flow[i].to), ==,
                         flow[i].size);
    }
    for (int i = 0; i < 2 * nstreams; i++) {
        mux_stream_release(flow[i].from);
    }
    g_assert(!mux_engine_ended(p.src) && !mux_engine_ended(p.dst));
    mux_pair_cleanup(&p);
}

static void test_streams_arrive_whole(void)
{
    uint32_t seed = mux_test_seed(20);

    for (int i = 0; i < 6; i++) {
        g_test_message("seed %u", seed + i);
        converse(seed + i, 64 << (2 * i), 64 * KIB, 6, 100 * KIB);
    }
}

static void test_streams_arrive_byte_by_byte(void)
{
    converse(mux_test_seed(7), 1, 1000, 3, 10 * KIB);
}

static void test_one_byte_window(void)
{
    converse(mux_test_seed(8), 100, 1, 2, 300);
}

/* --- credit --- */

static void test_stalled_stream_stalls_alone(void)
{
    MuxStream *a[5], *b[5];
    uint64_t sent[5] = { 0 }, got[5] = { 0 };
    MuxPair p;

    mux_pair_init(&p, 16 * KIB);
    for (int i = 0; i < 5; i++) {
        mux_wire_open(&p.link, SRC, "x", &a[i], &b[i]);
    }
    /* only the last one is ever read */
    while (got[4] < 1024 * KIB) {
        for (int i = 0; i < 5; i++) {
            sent[i] += mux_copy_pattern(a[i], SRC, sent[i], 8 * KIB);
        }
        mux_wire_run(&p.link);
        got[4] += mux_read_pattern(b[4], SRC, got[4], SIZE_MAX);
    }
    for (int i = 0; i < 4; i++) {
        g_assert_cmpuint(mux_stream_rx_pending(b[i]), ==, 16 * KIB);
        g_assert_cmpuint(mux_stream_bytes_sent(a[i]), ==, 16 * KIB);
        g_assert_false(mux_stream_writable(a[i]));
    }
    /* and control still goes through */
    mux_engine_ping(p.src);
    mux_wire_run(&p.link);
    g_assert_cmpint(mux_engine_rtt(p.src), >, 0);
    mux_pair_cleanup(&p);
}

static void test_writable_after_credit(void)
{
    MuxStream *a, *b;
    MuxPair p;

    mux_pair_init(&p, 4 * KIB);
    mux_wire_open(&p.link, SRC, "x", &a, &b);
    g_assert_true(mux_stream_writable(a));
    g_assert_cmpuint(mux_copy_pattern(a, SRC, 0, 6 * KIB), ==, 4 * KIB);
    mux_wire_run(&p.link);
    g_assert_false(mux_has_event(p.src, MUX_EVENT_WRITABLE, a));
    g_assert_cmpuint(mux_copy_pattern(a, SRC, 4 * KIB, 1), ==, 0);
    mux_read_pattern(b, SRC, 0, SIZE_MAX);
    mux_wire_run(&p.link);
    g_assert_true(mux_has_event(p.src, MUX_EVENT_WRITABLE, a));
    g_assert_true(mux_stream_writable(a));
    mux_pair_cleanup(&p);
}

static void test_copy_buffer_is_bounded(void)
{
    MuxStream *a, *b;
    MuxPair p;

    mux_pair_init(&p, 4096 * KIB);
    mux_wire_open(&p.link, SRC, "x", &a, &b);
    g_assert_cmpuint(mux_copy_pattern(a, SRC, 0, 1024 * KIB), ==,
                     256 * KIB);
    g_assert_cmpuint(mux_copy_pattern(a, SRC, 256 * KIB, 1), ==, 0);
    mux_wire_run(&p.link);
    g_assert_true(mux_has_event(p.src, MUX_EVENT_WRITABLE, a));
    mux_pair_cleanup(&p);
}

static void test_copy_of_several_pieces(void)
{
    uint8_t data[9000];
    struct iovec iov[3];
    MuxStream *a, *b;
    MuxPair p;

    mux_pair_init(&p, 4 * KIB);
    mux_wire_open(&p.link, SRC, "x", &a, &b);
    for (size_t i = 0; i < sizeof(data); i++) {
        data[i] = mux_pattern(mux_stream_id(a), SRC, i);
    }
    for (int i = 0; i < 3; i++) {
        iov[i].iov_base = data + 3000 * i;
        iov[i].iov_len = 3000;
    }
    g_assert_cmpuint(mux_stream_tx_copy(a, iov, 3), ==, 4 * KIB);
    mux_wire_run(&p.link);
    g_assert_cmpuint(mux_read_pattern(b, SRC, 0, SIZE_MAX), ==, 4 * KIB);
    mux_pair_cleanup(&p);
}

/* What was copied counts, whether it is in a batch by now or not. */
static void test_copies_stay_within_credit(void)
{
    struct iovec iov[8];
    MuxStream *a, *b;
    MuxPair p;

    mux_pair_init(&p, 4 * KIB);
    mux_wire_open(&p.link, SRC, "x", &a, &b);
    g_assert_cmpuint(mux_copy_pattern(a, SRC, 0, KIB), ==, KIB);
    g_assert_cmpuint(mux_engine_tx_want(p.src, iov, 8, 0), ==, 2);
    g_assert_cmpuint(mux_copy_pattern(a, SRC, KIB, 2 * KIB), ==, 2 * KIB);
    g_assert_cmpuint(mux_copy_pattern(a, SRC, 3 * KIB, 4 * KIB), ==, KIB);
    mux_wire_run(&p.link);
    g_assert_cmpuint(mux_read_pattern(b, SRC, 0, SIZE_MAX), ==, 4 * KIB);
    mux_pair_cleanup(&p);
}

static void test_copied_data_go_as_one_frame(void)
{
    struct iovec iov[8];
    MuxStream *a, *b;
    unsigned n;
    MuxPair p;

    mux_pair_init(&p, 4096 * KIB);
    mux_wire_open(&p.link, SRC, "x", &a, &b);
    mux_copy_pattern(a, SRC, 0, 200 * KIB);
    n = mux_engine_tx_want(p.src, iov, 8, 0);
    g_assert_cmpuint(mux_iov_total(iov, n), ==, MUX_HEADER_SIZE + 200 * KIB);
    mux_pair_cleanup(&p);
}

static void test_writable_is_reported_once(void)
{
    MuxStream *a, *b;
    MuxPair p;

    mux_pair_init(&p, 4 * KIB);
    mux_wire_open(&p.link, SRC, "x", &a, &b);
    mux_copy_pattern(a, SRC, 0, 6 * KIB);
    mux_wire_run(&p.link);
    mux_read_pattern(b, SRC, 0, 3 * KIB);
    mux_wire_run(&p.link);
    g_assert_true(mux_has_event(p.src, MUX_EVENT_WRITABLE, a));
    /* more credit comes, but no writer has been refused since */
    g_assert_cmpuint(mux_copy_pattern(a, SRC, 4 * KIB, KIB), ==, KIB);
    mux_wire_run(&p.link);
    mux_read_pattern(b, SRC, 3 * KIB, SIZE_MAX);
    mux_wire_run(&p.link);
    g_assert_false(mux_has_event(p.src, MUX_EVENT_WRITABLE, a));
    mux_pair_cleanup(&p);
}

static void test_writable_after_asking(void)
{
    const char *why;
    MuxStream *s;
    MuxPair p;

    mux_pair_init(&p, 4 * KIB);
    s = mux_engine_open(p.src, "x", &why);
    g_assert_false(mux_stream_writable(s));
    mux_wire_run(&p.link);
    mux_stream_accept(mux_expect_event(p.dst, MUX_EVENT_OPEN));
    mux_wire_run(&p.link);
    g_assert_true(mux_has_event(p.src, MUX_EVENT_WRITABLE, s));
    mux_pair_cleanup(&p);
}

/* --- offers --- */

static void test_withdraw_copies_what_is_committed(void)
{
    g_autofree uint8_t *data = g_malloc(600 * KIB);
    struct iovec iov = { .iov_base = data, .iov_len = 600 * KIB };
    struct iovec named[64];
    MuxStream *a, *b;
    size_t taken;
    MuxPair p;

    mux_pair_init(&p, 4096 * KIB);
    mux_wire_open(&p.link, SRC, "x", &a, &b);
    for (size_t i = 0; i < iov.iov_len; i++) {
        data[i] = mux_pattern(1, SRC, i);
    }
    mux_stream_tx_offer(a, &iov, 1);
    g_assert_cmpuint(mux_engine_tx_want(p.src, named, 64, 0), ==, 4);
    g_assert(named[1].iov_base == data);        /* no copy on the way */
    p.link.piece_max = 1000;
    mux_wire_step(&p.link);
    taken = mux_stream_tx_withdraw(a);
    g_assert_cmpuint(taken, ==, MUX_BATCH_BYTES);
    memset(data, 0xee, iov.iov_len);
    p.link.piece_max = SIZE_MAX;
    mux_wire_run(&p.link);
    g_assert_cmpuint(mux_stream_rx_pending(b), ==, taken);
    for (size_t n = 0; n < taken; ) {
        n += mux_read_pattern(b, SRC, n, SIZE_MAX);
    }
    mux_stream_fin(a);
    mux_wire_run(&p.link);
    g_assert_true(mux_stream_rx_fin(b));
    mux_pair_cleanup(&p);
}

/* Its elements lie apart; a frame ends within one, and so does the credit. */
static void test_offer_of_large_elements(void)
{
    g_autofree uint8_t *data = g_malloc0(600 * KIB);
    struct iovec iov[2] = {
        { .iov_base = data, .iov_len = 300 * KIB },
        { .iov_base = data + 400 * KIB, .iov_len = 200 * KIB },
    };
    MuxStream *a, *b;
    size_t got = 0;
    MuxPair p;

    mux_pair_init(&p, 4096 * KIB);
    mux_wire_open(&p.link, SRC, "x", &a, &b);
    for (size_t i = 0; i < 500 * KIB; i++) {
        data[i < 300 * KIB ? i : i + 100 * KIB] = mux_pattern(1, SRC, i);
    }
    mux_stream_tx_offer(a, iov, 2);
    mux_wire_run(&p.link);
    while (mux_stream_rx_pending(b)) {
        got += mux_read_pattern(b, SRC, got, SIZE_MAX);
    }
    g_assert_cmpuint(got, ==, 500 * KIB);
    mux_pair_cleanup(&p);
}

static void test_writable_when_the_offer_is_sent(void)
{
    uint8_t data[100] = { 0 };
    struct iovec iov = { .iov_base = data, .iov_len = sizeof(data) };
    struct iovec named[8];
    MuxStream *a, *b;
    MuxPair p;

    mux_pair_init(&p, 64 * KIB);
    mux_wire_open(&p.link, SRC, "x", &a, &b);
    mux_stream_tx_offer(a, &iov, 1);
    g_assert_cmpuint(mux_engine_tx_want(p.src, named, 8, 0), ==, 2);
    mux_engine_tx_done(p.src, MUX_HEADER_SIZE + 99);
    g_assert_false(mux_has_event(p.src, MUX_EVENT_WRITABLE, a));
    mux_engine_tx_done(p.src, 1);
    g_assert_true(mux_has_event(p.src, MUX_EVENT_WRITABLE, a));
    mux_pair_cleanup(&p);
}

/* The offer that is taken back is not what was in an earlier batch. */
static void test_withdraw_after_a_longer_batch(void)
{
    uint8_t data[300] = { 0 };
    struct iovec iov[2] = {
        { .iov_base = data, .iov_len = 100 },
        { .iov_base = data + 200, .iov_len = 100 },
    };
    struct iovec named[8];
    MuxStream *a, *b;
    MuxPair p;

    mux_pair_init(&p, 64 * KIB);
    mux_wire_open(&p.link, SRC, "x", &a, &b);
    mux_stream_tx_offer(a, iov, 2);
    mux_wire_run(&p.link);
    mux_stream_tx_offer(a, iov, 1);
    g_assert_cmpuint(mux_engine_tx_want(p.src, named, 8, 0), ==, 2);
    g_assert_cmpuint(mux_stream_tx_withdraw(a), ==, 100);
    mux_stream_reset(a, 1, "");
    mux_stream_release(a);
    mux_wire_run(&p.link);
    mux_assert_nothing_held(p.src);
    mux_pair_cleanup(&p);
}

static void test_withdraw_of_untouched_offer(void)
{
    uint8_t byte = 1;
    struct iovec iov = { .iov_base = &byte, .iov_len = 1 };
    MuxStream *a, *b;
    MuxPair p;

    mux_pair_init(&p, 4 * KIB);
    mux_wire_open(&p.link, SRC, "x", &a, &b);
    mux_stream_tx_offer(a, &iov, 1);
    g_assert_false(mux_stream_writable(a));
    g_assert_cmpuint(mux_stream_tx_withdraw(a), ==, 0);
    g_assert_true(mux_engine_tx_idle(p.src));
    g_assert_true(mux_has_event(p.src, MUX_EVENT_WRITABLE, a));
    mux_pair_cleanup(&p);
}

static void test_batch_once_named_stays(void)
{
    uint8_t one[100], two[100];
    struct iovec iov = { .iov_base = one, .iov_len = 100 };
    struct iovec first[8], again[8];
    MuxStream *a, *b;
    unsigned n;
    MuxPair p;

    mux_pair_init(&p, 64 * KIB);
    mux_wire_open(&p.link, SRC, "x", &a, &b);
    memset(one, 1, 100);
    mux_stream_tx_offer(a, &iov, 1);
    n = mux_engine_tx_want(p.src, first, 8, 0);
    mux_stream_reset(a, 1, "gone");
    mux_engine_ping(p.src);
    g_assert_cmpuint(mux_engine_tx_want(p.src, again, 8, 0), ==, n);
    g_assert_cmpmem(first, n * sizeof(*first), again, n * sizeof(*again));
    g_assert_cmpuint(mux_stream_tx_withdraw(a), ==, 100);
    memset(one, 2, 100);
    g_assert_cmpuint(mux_engine_tx_want(p.src, again, 8, 0), ==, n);
    memset(two, 1, 100);
    g_assert_cmpmem(again[1].iov_base, again[1].iov_len, two, 100);
    mux_wire_run(&p.link);
    g_assert_cmpint(mux_stream_state(b), ==, MUX_STREAM_RESET);
    mux_pair_cleanup(&p);
}

/* --- reading ahead --- */

static void test_small_frames_take_one_read(void)
{
    g_autoptr(GByteArray) wire = g_byte_array_new();
    MuxStream *a, *b, *c, *d;
    struct iovec iov[8];
    unsigned n;
    MuxPair p;

    mux_pair_init(&p, 64 * KIB);
    mux_wire_open(&p.link, SRC, "x", &a, &b);
    mux_wire_open(&p.link, SRC, "y", &c, &d);
    for (unsigned i = 0; i < 100; i++) {
        g_assert_cmpuint(mux_copy_pattern(a, SRC, i * 10, 10), ==, 10);
        mux_drain(p.src, wire, 0);
        g_assert_cmpuint(mux_copy_pattern(c, SRC, i * 20, 20), ==, 20);
        mux_drain(p.src, wire, 0);
    }
    mux_stream_fin(a);
    mux_drain(p.src, wire, 0);
    n = mux_engine_rx_want(p.dst, iov, 8);
    g_assert_cmpuint(mux_iov_total(iov, n), >=, wire->len);
    mux_iov_copy(iov, wire->data, wire->len, true);
    mux_engine_rx_done(p.dst, wire->len, 0);
    g_assert_cmpuint(mux_read_pattern(b, SRC, 0, SIZE_MAX), ==, 1000);
    g_assert_true(mux_stream_rx_fin(b));
    g_assert_cmpuint(mux_read_pattern(d, SRC, 0, SIZE_MAX), ==, 2000);
    mux_pair_cleanup(&p);
}

/*
 * After a large payload, too, so that the stream of the next frame is known
 * when only 8 KiB of it have been copied.
 */
static void test_header_is_read_ahead(void)
{
    g_autoptr(GByteArray) wire = g_byte_array_new();
    MuxStream *a, *b;
    struct iovec iov[8];
    unsigned n;
    MuxPair p;

    mux_pair_init(&p, 64 * KIB);
    mux_wire_open(&p.link, SRC, "x", &a, &b);
    mux_copy_pattern(a, SRC, 0, 32 * KIB);
    mux_drain(p.src, wire, 0);
    mux_feed(p.dst, wire->data, MUX_HEADER_SIZE, 0);
    n = mux_engine_rx_want(p.dst, iov, 8);
    g_assert_cmpuint(mux_iov_total(iov, n), ==, 32 * KIB + MUX_READ_AHEAD);
    mux_feed(p.dst, wire->data + MUX_HEADER_SIZE, 32 * KIB, 0);
    g_assert_cmpuint(mux_read_pattern(b, SRC, 0, SIZE_MAX), ==, 32 * KIB);
    mux_pair_cleanup(&p);
}

/* --- memory that a reader posts --- */

typedef struct Posted {
    MuxPair p;
    MuxStream *a, *b;
    GByteArray *wire;           /* what has been sent to @b */
    uint8_t memory[64 * KIB];
    struct iovec iov[2];        /* @memory */
} Posted;

/* @copied bytes of data are on their way; @b has a window of @window. */
static void posted_init(Posted *t, uint64_t window, size_t copied)
{
    mux_pair_init(&t->p, window);
    mux_wire_open(&t->p.link, SRC, "x", &t->a, &t->b);
    t->wire = g_byte_array_new();
    g_assert_cmpuint(mux_copy_pattern(t->a, SRC, 0, copied), ==, copied);
    mux_drain(t->p.src, t->wire, 0);
}

/* The header of a frame of 32 KiB has arrived. */
static void posted_init_in_frame(Posted *t)
{
    posted_init(t, 64 * KIB, 32 * KIB);
    mux_feed(t->p.dst, t->wire->data, MUX_HEADER_SIZE, 0);
}

static void posted_cleanup(Posted *t)
{
    g_byte_array_unref(t->wire);
    mux_pair_cleanup(&t->p);
}

/* In two elements, the first of @first bytes, the other of @second */
static void post(Posted *t, size_t first, size_t second)
{
    t->iov[0] = (struct iovec) { t->memory, first };
    t->iov[1] = (struct iovec) { t->memory + first, second };
    mux_stream_rx_post(t->b, t->iov, 2);
}

/* @len bytes from @offset on have come there. */
static void check_posted(Posted *t, uint64_t offset, size_t len)
{
    g_assert_cmpuint(mux_stream_rx_posted(t->b), ==, len);
    g_assert_cmpuint(mux_stream_rx_unpost(t->b), ==, len);
    for (size_t i = 0; i < len; i++) {
        g_assert_cmphex(t->memory[i], ==,
                        mux_pattern(mux_stream_id(t->b), SRC, offset + i));
    }
}

static void test_post_takes_payload(void)
{
    g_autofree Posted *t = g_new(Posted, 1);
    struct iovec iov[8];
    unsigned n;

    posted_init_in_frame(t);
    g_assert_true(mux_stream_rx_continues(t->b));
    post(t, 10, 20 * KIB - 10);
    n = mux_engine_rx_want(t->p.dst, iov, 8);
    g_assert_cmpuint(n, ==, 2);         /* not what comes after that */
    g_assert(iov[0].iov_base == t->memory && iov[0].iov_len == 10);
    g_assert(iov[1].iov_base == t->memory + 10);
    g_assert_cmpuint(iov[1].iov_len, ==, 20 * KIB - 10);
    mux_feed(t->p.dst, t->wire->data + MUX_HEADER_SIZE, 20 * KIB, 0);
    check_posted(t, 0, 20 * KIB);
    g_assert_cmpuint(mux_stream_rx_pending(t->b), ==, 0);
    g_assert_cmpuint(mux_stream_bytes_received(t->b), ==, 20 * KIB);
    g_assert_false(mux_has_event(t->p.dst, MUX_EVENT_READABLE, t->b));

    post(t, 16 * KIB, 0);
    n = mux_engine_rx_want(t->p.dst, iov, 8);
    g_assert_cmpuint(mux_iov_total(iov, n), ==, 12 * KIB + MUX_HEADER_SIZE);
    mux_feed(t->p.dst, t->wire->data + MUX_HEADER_SIZE + 20 * KIB,
             12 * KIB, 0);
    check_posted(t, 20 * KIB, 12 * KIB);
    g_assert_false(mux_stream_rx_continues(t->b));
    posted_cleanup(t);
}

/* Data in posted memory counts as read: its credit returns. */
static void test_post_returns_credit(void)
{
    g_autofree Posted *t = g_new(Posted, 1);

    posted_init(t, 8 * KIB, 8 * KIB);
    post(t, 4 * KIB - 1, 0);
    mux_feed(t->p.dst, t->wire->data, MUX_HEADER_SIZE, 0);
    mux_feed(t->p.dst, t->wire->data + MUX_HEADER_SIZE, 4 * KIB - 1, 0);
    g_assert_true(mux_engine_tx_idle(t->p.dst));
    check_posted(t, 0, 4 * KIB - 1);
    post(t, 1, 0);
    mux_feed(t->p.dst, t->wire->data + MUX_HEADER_SIZE + 4 * KIB - 1, 1, 0);
    g_assert_false(mux_engine_tx_idle(t->p.dst));
    check_posted(t, 4 * KIB - 1, 1);
    posted_cleanup(t);
}

/* With little memory, some of the rest is read by the same system call. */
static void test_post_of_little_memory(void)
{
    g_autofree Posted *t = g_new(Posted, 1);
    struct iovec iov[8];
    unsigned n;

    posted_init_in_frame(t);
    post(t, 28, 0);
    n = mux_engine_rx_want(t->p.dst, iov, 8);
    g_assert_cmpuint(iov[0].iov_len, ==, 28);
    g_assert_cmpuint(mux_iov_total(iov, n), ==, MUX_READ_AHEAD);
    mux_feed(t->p.dst, t->wire->data + MUX_HEADER_SIZE, 100, 0);
    check_posted(t, 0, 28);
    g_assert_true(mux_has_event(t->p.dst, MUX_EVENT_READABLE, t->b));
    g_assert_cmpuint(mux_read_pattern(t->b, SRC, 28, SIZE_MAX), ==, 72);
    posted_cleanup(t);
}

/* What is pending comes first, and what came with a header is copied. */
static void test_post_keeps_the_order(void)
{
    g_autofree Posted *t = g_new(Posted, 1);

    posted_init(t, 64 * KIB, 100);
    mux_copy_pattern(t->a, SRC, 100, 200);
    mux_drain(t->p.src, t->wire, 0);
    post(t, 50, 100);
    /* two frames, one system call */
    mux_feed(t->p.dst, t->wire->data, t->wire->len, 0);
    check_posted(t, 0, 150);
    g_assert_cmpuint(mux_stream_rx_pending(t->b), ==, 150);

    g_byte_array_set_size(t->wire, 0);
    mux_copy_pattern(t->a, SRC, 300, 10);
    mux_drain(t->p.src, t->wire, 0);
    post(t, 1000, 0);
    mux_feed(t->p.dst, t->wire->data, t->wire->len, 0);
    check_posted(t, 0, 0);
    g_assert_cmpuint(mux_read_pattern(t->b, SRC, 150, SIZE_MAX), ==, 160);
    posted_cleanup(t);
}

/* The stream is aborted while the transport uses the memory. */
static void test_post_and_reset(void)
{
    g_autofree Posted *t = g_new(Posted, 1);
    struct iovec iov[8];

    posted_init_in_frame(t);
    post(t, 16 * KIB, 16 * KIB);
    mux_engine_rx_want(t->p.dst, iov, 8);
    mux_stream_reset(t->b, MUX_CODE_ABORTED, "");
    mux_iov_copy(iov, t->wire->data + MUX_HEADER_SIZE, 16 * KIB, true);
    mux_engine_rx_done(t->p.dst, 16 * KIB, 0);
    g_assert_cmpuint(mux_stream_rx_unpost(t->b), ==, 0);
    mux_feed(t->p.dst, t->wire->data + MUX_HEADER_SIZE + 16 * KIB,
             16 * KIB, 0);
    mux_stream_release(t->b);
    mux_drain(t->p.dst, t->wire, 0);
    mux_assert_nothing_held(t->p.dst);
    posted_cleanup(t);
}

/* --- the bounds of a batch --- */

/*
 * @offered bytes apart, each a piece, and behind them what @s2 copied, or FIN:
 * no piece too many, and none is missing.
 */
static void test_pieces_of_a_batch(void)
{
    static const struct {
        unsigned offered;
        size_t copied;
        bool fin;
        unsigned named;
    } cases[] = {
        { 61, 1, false, 64 },
        { 62, 1, false, 63 },           /* a header alone is of no use */
        { 60, 200 * KIB, false, 64 },   /* two of its chunks */
        { 61, 200 * KIB, false, 64 },
        { 62, 0, true, 64 },
        { 63, 0, true, 64 },
        { 100, 1, true, 64 },
    };
    static uint8_t data[200];

    for (int i = 0; i < G_N_ELEMENTS(cases); i++) {
        struct iovec iov[100], named[MUX_BATCH_IOV + 1];
        MuxStream *a[2], *b[2];
        MuxPair p;

        mux_pair_init(&p, 4096 * KIB);
        mux_wire_open(&p.link, SRC, "x", &a[0], &b[0]);
        mux_wire_open(&p.link, SRC, "y", &a[1], &b[1]);
        for (unsigned k = 0; k < cases[i].offered; k++) {
            iov[k].iov_base = data + 2 * k;
            iov[k].iov_len = 1;
        }
        mux_stream_tx_offer(a[0], iov, cases[i].offered);
        mux_copy_pattern(a[1], SRC, 0, cases[i].copied);
        if (cases[i].fin) {
            mux_stream_fin(a[0]);
        }
        g_assert_cmpuint(mux_engine_tx_want(p.src, named, MUX_BATCH_IOV + 1,
                                            0), ==, cases[i].named);
        mux_wire_run(&p.link);
        g_assert_cmpuint(mux_stream_rx_pending(b[0]), ==, cases[i].offered);
        g_assert_cmpuint(mux_stream_rx_pending(b[1]), ==, cases[i].copied);
        g_assert_cmpint(mux_stream_rx_fin(b[0]), ==, cases[i].fin);
        mux_pair_cleanup(&p);
    }
}

#define LONGEST     (MUX_HEADER_SIZE + MUX_TEXT_MAX)

static void reset_with(MuxStream *s, size_t frame)
{
    g_autofree char *text = g_strnfill(frame - MUX_HEADER_SIZE, 't');

    mux_stream_reset(s, 1, text);
}

/*
 * Queue RESETs of 16 streams of @s, @size bytes in all, behind @before bytes.
 * A batch takes the last one if there is room for one of any length.
 */
static void queue_resets(MuxStream **s, size_t size, size_t before)
{
    size_t most = MUX_BATCH_CONTROL - 15 * LONGEST - before;
    size_t rest = size - 14 * LONGEST;
    size_t last = MAX(rest - most, MUX_HEADER_SIZE);

    for (int i = 0; i < 14; i++) {
        reset_with(s[i], LONGEST);
    }
    reset_with(s[14], rest - last);
    reset_with(s[15], last);
}

/* What waits behind the control frames that nearly fill a batch */
typedef enum Behind {
    BEHIND_RESET,
    BEHIND_OPEN,                /* with the longest name, 283 bytes */
    BEHIND_DATA,
    BEHIND_PING,                /* 24 bytes, wanted by a WINDOW before */
} Behind;

/*
 * Control frames leave @left bytes of a batch.  What does not fit there waits
 * for the next batch, and so does all that comes after it: there are always two
 * streams with a byte of data each.
 */
static size_t control_named(Behind behind, size_t left)
{
    g_autofree char *name = g_strnfill(MUX_NAME_MAX, 'n');
    MuxStream *a[20], *b[20];
    struct iovec named[64];
    MuxConfig dst;
    const char *why;
    MuxWire link;
    MuxEngine *e;
    size_t before = 0;
    unsigned n;
    size_t size;

    mux_config_default(&dst, MUX_ROLE_DESTINATION);
    dst.window = MUX_WINDOW_SHARE;
    mux_wire_init(&link, 1, NULL, &dst);
    e = link.side[DST].e;
    for (int i = 0; i < 20; i++) {
        mux_wire_open(&link, SRC, "x", &a[i], &b[i]);
    }
    link.now += MUX_MEASURE_INTERVAL;
    if (behind == BEHIND_PING) {
        mux_copy_pattern(a[19], SRC, 0, MUX_WINDOW_SHARE / 2);
        mux_wire_run(&link);
        mux_stream_rx_consume(b[19], MUX_WINDOW_SHARE / 2);
        before = 24;                    /* WINDOW */
        left += MUX_HEADER_SIZE;        /* DATA goes first */
    }
    queue_resets(b, MUX_BATCH_CONTROL - left - before, before);
    if (behind == BEHIND_RESET) {
        reset_with(b[16], LONGEST);
    } else if (behind == BEHIND_OPEN) {
        mux_engine_open(e, name, &why);
    }
    mux_copy_pattern(b[17], DST, 0, 1);
    mux_copy_pattern(b[18], DST, 0, 1);
    n = mux_engine_tx_want(e, named, 64, link.now);
    g_assert_cmpuint(n, <=, 5);         /* what is adjacent is one piece */
    size = mux_iov_total(named, n);
    mux_wire_run(&link);
    g_assert_false(mux_engine_ended(link.side[SRC].e));
    g_assert_false(mux_engine_ended(e));
    for (int i = 17; i < 19; i++) {
        g_assert_cmpuint(mux_stream_rx_pending(a[i]), ==, 1);
    }
    mux_wire_cleanup(&link);
    return size;
}

static void test_control_of_a_batch(void)
{
    static const struct {
        Behind behind;
        size_t left;
        size_t used;            /* of it */
        size_t data;
    } cases[] = {
        { BEHIND_RESET, LONGEST, LONGEST, 0 },
        { BEHIND_RESET, LONGEST - 1, 0, 0 },
        { BEHIND_OPEN, 283, 283, 0 },
        { BEHIND_OPEN, 282, 0, 0 },
        { BEHIND_DATA, 16, 16, 1 },
        { BEHIND_DATA, 15, 0, 0 },
        /* a PING could come between the two */
        { BEHIND_DATA, 40, 32, 2 },
        { BEHIND_DATA, 39, 16, 1 },
        { BEHIND_PING, 24, 24, 1 },
        { BEHIND_PING, 23, 0, 1 },
    };

    for (int i = 0; i < G_N_ELEMENTS(cases); i++) {
        g_assert_cmpuint(control_named(cases[i].behind, cases[i].left), ==,
                         MUX_BATCH_CONTROL - cases[i].left + cases[i].used +
                         cases[i].data);
    }
}

/* --- room for what comes --- */

/* Nothing was read: then room is named for what was to come before. */
static void test_room_is_named_again(void)
{
    struct iovec iov[3], again[3], named[8];
    MuxStream *a, *b;
    MuxPair p;

    mux_pair_init(&p, 4096 * KIB);
    mux_wire_open(&p.link, SRC, "x", &a, &b);
    mux_copy_pattern(a, SRC, 0, 200 * KIB);
    mux_engine_tx_want(p.src, named, 8, 0);
    mux_feed(p.dst, named[0].iov_base, named[0].iov_len, 0);
    /* two chunks: there are more to come before the next header */
    g_assert_cmpuint(mux_engine_rx_want(p.dst, iov, 3), ==, 2);
    g_assert_cmpuint(mux_iov_total(iov, 2), ==, 2 * MUX_CHUNK_SIZE);
    g_assert_cmpuint(mux_engine_rx_want(p.dst, again, 3), ==, 2);
    g_assert_cmpuint(mux_iov_total(again, 2), ==, 2 * MUX_CHUNK_SIZE);
    g_assert_false(mux_has_event(p.dst, MUX_EVENT_READABLE, b));
    mux_pair_cleanup(&p);
}

/* --- order of sending --- */

/* The stream of each DATA frame that the source sends from @start on. */
static GArray *data_order(MuxPair *p, size_t start)
{
    GArray *order = g_array_new(false, false, sizeof(uint32_t));
    GByteArray *sent = p->link.side[SRC].sent;

    while (start < sent->len) {
        const uint8_t *h = sent->data + start;
        uint32_t id = h[4] << 24 | h[5] << 16 | h[6] << 8 | h[7];
        uint32_t len = h[8] << 24 | h[9] << 16 | h[10] << 8 | h[11];

        if (h[0] == 3) {
            g_array_append_val(order, id);
        }
        start += 16 + len;
    }
    return order;
}

static void offer_bulk(MuxStream *s, void *data, size_t len)
{
    struct iovec iov = { .iov_base = data, .iov_len = len };

    mux_stream_tx_offer(s, &iov, 1);
}

static void test_bulk_streams_take_turns(void)
{
    g_autofree uint8_t *data = g_malloc0(1024 * KIB);
    g_autoptr(GArray) order = NULL;
    MuxStream *a[3], *b[3];
    size_t start;
    MuxPair p;

    mux_pair_init(&p, 4096 * KIB);
    for (int i = 0; i < 3; i++) {
        mux_wire_open(&p.link, SRC, "x", &a[i], &b[i]);
    }
    start = p.link.side[SRC].sent->len;
    for (int i = 0; i < 3; i++) {
        offer_bulk(a[i], data, 1024 * KIB);
    }
    mux_wire_run(&p.link);
    order = data_order(&p, start);
    g_assert_cmpuint(order->len, ==, 12);
    for (int i = 0; i < 12; i++) {
        g_assert_cmpuint(g_array_index(order, uint32_t, i), ==,
                         2 * (i % 3) + 1);
    }
    mux_pair_cleanup(&p);
}

static void test_urgent_goes_first(void)
{
    g_autofree uint8_t *data = g_malloc0(1024 * KIB);
    g_autoptr(GArray) order = NULL;
    MuxStream *a[2], *b[2];
    size_t start;
    MuxPair p;

    mux_pair_init(&p, 4096 * KIB);
    for (int i = 0; i < 2; i++) {
        mux_wire_open(&p.link, SRC, "x", &a[i], &b[i]);
    }
    mux_stream_set_urgent(a[1], true);
    mux_copy_pattern(a[1], SRC, 0, 1);
    mux_wire_run(&p.link);
    start = p.link.side[SRC].sent->len;
    offer_bulk(a[0], data, 1024 * KIB);
    offer_bulk(a[1], data, 1024 * KIB);
    mux_wire_run(&p.link);
    order = data_order(&p, start);
    /* frames of 64 KiB, one of bulk after eight (one urgent went before) */
    g_assert_cmpuint(order->len, ==, 32);
    for (int i = 0; i < 18; i++) {
        g_assert_cmpuint(g_array_index(order, uint32_t, i), ==,
                         i % 9 == 7 ? 1 : 3);
    }
    for (int i = 18; i < 32; i++) {
        g_assert_cmpuint(g_array_index(order, uint32_t, i), ==, 1);
    }
    mux_pair_cleanup(&p);
}

static void test_urgency_counts_at_once(void)
{
    g_autofree uint8_t *data = g_malloc0(64 * KIB);
    g_autoptr(GArray) order = NULL;
    MuxStream *a[2], *b[2];
    size_t start;
    MuxPair p;

    mux_pair_init(&p, 4096 * KIB);
    for (int i = 0; i < 2; i++) {
        mux_wire_open(&p.link, SRC, "x", &a[i], &b[i]);
    }
    start = p.link.side[SRC].sent->len;
    offer_bulk(a[0], data, 64 * KIB);
    offer_bulk(a[1], data, 64 * KIB);
    mux_stream_set_urgent(a[1], true);
    mux_wire_run(&p.link);
    order = data_order(&p, start);
    g_assert_cmpuint(g_array_index(order, uint32_t, 0), ==, 3);
    mux_pair_cleanup(&p);
}

/* What the source names as one batch, bytes. */
static size_t batch_size(MuxPair *p)
{
    struct iovec iov[64];

    return mux_iov_total(iov, mux_engine_tx_want(p->src, iov, 64, 0));
}

static void test_batch_is_filled(void)
{
    static const struct { size_t first, second, batch; } cases[] = {
        /* a frame is cut to fill it ... */
        { 200 * KIB, 512 * KIB, 512 * KIB + 3 * 16 },
        { 252 * KIB, 264 * KIB, 512 * KIB + 3 * 16 },
        /* ... but not where less than 4 KiB is left */
        { 252 * KIB + 1, 264 * KIB, 508 * KIB + 1 + 2 * 16 },
        { 252 * KIB + 1, 260 * KIB - 1, 512 * KIB + 3 * 16 },
    };
    g_autofree uint8_t *data = g_malloc0(512 * KIB);

    for (int i = 0; i < G_N_ELEMENTS(cases); i++) {
        MuxStream *a[2], *b[2];
        MuxPair p;

        mux_pair_init(&p, 4096 * KIB);
        mux_wire_open(&p.link, SRC, "x", &a[0], &b[0]);
        mux_wire_open(&p.link, SRC, "y", &a[1], &b[1]);
        offer_bulk(a[0], data, cases[i].first);
        offer_bulk(a[1], data, cases[i].second);
        g_assert_cmpuint(batch_size(&p), ==, cases[i].batch);
        mux_pair_cleanup(&p);
    }
}

static void test_frames_respect_peer_limit(void)
{
    g_autofree uint8_t *data = g_malloc0(20000);
    g_autoptr(GArray) order = NULL;
    MuxConfig dst;
    MuxStream *a, *b;
    size_t start;
    MuxPair p;

    mux_config_default(&dst, MUX_ROLE_DESTINATION);
    dst.max_frame = 4096;
    mux_wire_init(&p.link, 1, NULL, &dst);
    mux_wire_open(&p.link, SRC, "x", &a, &b);
    start = p.link.side[SRC].sent->len;
    offer_bulk(a, data, 20000);
    mux_wire_run(&p.link);
    g_assert_cmpuint(mux_stream_rx_pending(b), ==, 20000);
    order = data_order(&p, start);
    g_assert_cmpuint(order->len, ==, 5);
    mux_pair_cleanup(&p);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);

#define ADD(path, func) g_test_add_func("/mux/engine/" path, func)
    ADD("streams-arrive-whole", test_streams_arrive_whole);
    ADD("streams-arrive-byte-by-byte", test_streams_arrive_byte_by_byte);
    ADD("one-byte-window", test_one_byte_window);
    ADD("stalled-stream-stalls-alone", test_stalled_stream_stalls_alone);
    ADD("writable-after-credit", test_writable_after_credit);
    ADD("copy-buffer-is-bounded", test_copy_buffer_is_bounded);
    ADD("copy-of-several-pieces", test_copy_of_several_pieces);
    ADD("copies-stay-within-credit", test_copies_stay_within_credit);
    ADD("copied-data-go-as-one-frame", test_copied_data_go_as_one_frame);
    ADD("writable-is-reported-once", test_writable_is_reported_once);
    ADD("writable-after-asking", test_writable_after_asking);
    ADD("withdraw-copies-what-is-committed",
        test_withdraw_copies_what_is_committed);
    ADD("withdraw-of-untouched-offer", test_withdraw_of_untouched_offer);
    ADD("withdraw-after-a-longer-batch", test_withdraw_after_a_longer_batch);
    ADD("offer-of-large-elements", test_offer_of_large_elements);
    ADD("writable-when-the-offer-is-sent",
        test_writable_when_the_offer_is_sent);
    ADD("small-frames-take-one-read", test_small_frames_take_one_read);
    ADD("header-is-read-ahead", test_header_is_read_ahead);
    ADD("post-takes-payload", test_post_takes_payload);
    ADD("post-returns-credit", test_post_returns_credit);
    ADD("post-of-little-memory", test_post_of_little_memory);
    ADD("post-keeps-the-order", test_post_keeps_the_order);
    ADD("post-and-reset", test_post_and_reset);
    ADD("batch-once-named-stays", test_batch_once_named_stays);
    ADD("pieces-of-a-batch", test_pieces_of_a_batch);
    ADD("control-of-a-batch", test_control_of_a_batch);
    ADD("room-is-named-again", test_room_is_named_again);
    ADD("bulk-streams-take-turns", test_bulk_streams_take_turns);
    ADD("urgent-goes-first", test_urgent_goes_first);
    ADD("urgency-counts-at-once", test_urgency_counts_at_once);
    ADD("batch-is-filled", test_batch_is_filled);
    ADD("frames-respect-peer-limit", test_frames_respect_peer_limit);
#undef ADD

    return g_test_run();
}
