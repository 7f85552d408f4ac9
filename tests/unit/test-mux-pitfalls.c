/*
 * Tests of the migration multiplexer's engine: failures of other multiplexers
 *
 * Each entry is a failure that another multiplexer had, with the tests that
 * would find it here.  Tests without a file name are in this file.
 *
 *  1 fixed window, slow on long links (yamux)
 *      test-mux-credit: short-, regional-, long-link-is-filled
 *  2 credit of the connection couples streams (HTTP/2)
 *      any-one-stream-finishes-alone; test-mux-model: one-stream-is-never-read
 *  3 a reader that stops blocks the connection (smux)
 *      control-passes-unread-streams
 *  4 deadlock of two sides that both write (yamux)
 *      both-sides-saturate-any-connection, echo-through-any-connection,
 *      test-mux-model: all
 *  5 a socket that is not drained loses credit
 *      receiver-never-waits
 *  6 a slow write is taken for a dead peer (yamux)
 *      saturated-link-stays-alive; test-mux-liveness: slow-write-is-not-silence
 *  7 data before the stream is open, or beyond its credit (CVE-2026-32314)
 *      test-mux-frame-states: all; test-mux-wire: bad/data-*
 *  8 credit arithmetic
 *      credit-at-the-edges-of-numbers
 *  9 credit read as relative where it is absolute
 *      test-mux-vectors: sent/window-and-fin-ok;
 *      test-mux-wire: lower-window-is-ignored
 * 10 replies are queued without limit for a peer that never reads
 *      floods-leave-nothing-behind; test-mux-limits: unanswered-pings
 * 11 rapid reset
 *      resets-leave-no-data-behind; test-mux-limits: streams-in-a-lifetime
 * 12 a message over endless frames (HTTP/2's CONTINUATION)
 *      there are none; test-mux-limits: name, reset-text, goaway-text
 * 13 empty data frames
 *      test-mux-wire: bad/data-empty
 * 14 unbounded queue for a slow reader (libvirt)
 *      test-mux-credit: slow-reader-gets-no-larger-window,
 *      memory-is-bounded-by-the-sum
 * 15 streams half open, frames lost when the connection ends
 *      test-mux-close: cut-at-every-byte
 * 16 urgent data waits in the queue
 *      test-mux-sched: urgent-waits-for-one-frame
 * 17 TLS: rekeying with two threads, frames that end within a record
 *      test-io-channel-mux-tls: rekeys, rekeys-small-buffers,
 *      frames-cross-records
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/bswap.h"
#include "migration/mux/engine-int.h"
#include "mux-link-sim.h"

/* Write as much of the pattern as @s takes; *@offset counts it. */
static void write_more(MuxStream *s, int side, uint64_t *offset, uint64_t size)
{
    size_t len = MIN(size - *offset, 8 * KIB);

    if (mux_stream_writable(s)) {
        *offset += mux_copy_pattern(s, side, *offset, len);
    }
    if (*offset == size) {
        mux_stream_fin(s);
    }
}

static void read_more(MuxStream *s, int side, uint64_t *offset)
{
    *offset += mux_read_pattern(s, side, *offset, SIZE_MAX);
    if (mux_stream_rx_fin(s) && !mux_stream_rx_pending(s)) {
        mux_stream_fin_ok(s);
    }
}

/* --- 2, 3: streams that are not read --- */

#define MANY    6

static void test_any_one_stream_finishes_alone(void)
{
    for (int alone = 0; alone < MANY; alone++) {
        uint64_t sent[MANY] = { 0 }, got = 0;
        MuxStream *a[MANY], *b[MANY];
        MuxPair p;

        mux_pair_init(&p, 16 * KIB);
        for (int i = 0; i < MANY; i++) {
            mux_wire_open(&p.link, i % 2, "x", &a[i], &b[i]);
        }
        while (!mux_stream_fin_acked(a[alone])) {
            for (int i = 0; i < MANY; i++) {
                write_more(a[i], i % 2, &sent[i], 300 * KIB);
            }
            mux_wire_step(&p.link);
            read_more(b[alone], alone % 2, &got);
            g_assert_cmpint(p.link.now, <, SIM_S);
        }
        g_assert_cmpuint(got, ==, 300 * KIB);
        for (int i = 0; i < MANY; i++) {
            if (i != alone) {
                g_assert_cmpuint(mux_stream_rx_pending(b[i]), ==, 16 * KIB);
            }
        }
        mux_pair_cleanup(&p);
    }
}

static void test_control_passes_unread_streams(void)
{
    uint64_t sent[2] = { 0 }, got = 0;
    MuxStream *a[2], *b[2], *c, *d;
    MuxPair p;

    mux_pair_init(&p, 16 * KIB);
    for (int i = 0; i < 2; i++) {
        mux_wire_open(&p.link, SRC, "x", &a[i], &b[i]);
    }
    for (int i = 0; i < 10; i++) {
        write_more(a[0], SRC, &sent[0], 300 * KIB);
        write_more(a[1], SRC, &sent[1], 300 * KIB);
        mux_wire_run(&p.link);
    }
    /* every kind of control frame gets through in both directions */
    mux_engine_ping(p.src);
    mux_engine_ping(p.dst);
    mux_wire_run(&p.link);
    g_assert_cmpint(mux_engine_rtt(p.src), >, 0);
    g_assert_cmpint(mux_engine_rtt(p.dst), >, 0);
    mux_wire_open(&p.link, SRC, "y", &c, &d);
    mux_wire_open(&p.link, DST, "z", &c, &d);
    read_more(b[1], SRC, &got);
    mux_wire_run(&p.link);
    g_assert_true(mux_stream_writable(a[1]));               /* WINDOW */
    g_assert_false(mux_stream_writable(a[0]));
    mux_stream_fin(b[0]);
    mux_wire_run(&p.link);
    g_assert_true(mux_stream_rx_fin(a[0]));
    mux_stream_fin_ok(a[0]);
    mux_wire_run(&p.link);
    g_assert_true(mux_stream_fin_acked(b[0]));
    mux_stream_reset(a[0], 1, "");
    mux_wire_run(&p.link);
    g_assert_cmpint(mux_stream_state(b[0]), ==, MUX_STREAM_RESET);
    mux_pair_cleanup(&p);
}

/* --- 4: both sides write --- */

static const size_t capacities[] = { 1, 2, 15, 16, 17, 100, 1000, 4096 };

static void test_both_sides_saturate_any_connection(void)
{
    uint32_t seed = mux_test_seed(40);

    for (int i = 0; i < G_N_ELEMENTS(capacities); i++) {
        uint64_t size = MIN(capacities[i] * 2000, 200 * KIB);
        uint64_t sent[2][2] = { 0 }, got[2][2] = { 0 };
        MuxStream *s[2][2];
        int stuck = 0;
        MuxPair p;

        mux_pair_init(&p, 4 * KIB);
        g_rand_set_seed(p.link.rand, seed + i);
        for (int k = 0; k < 2; k++) {
            mux_wire_open(&p.link, k, "x", &s[k][k], &s[!k][k]);
        }
        p.link.capacity = p.link.piece_max = capacities[i];
        while (mux_engine_has_streams(p.src) || mux_engine_has_streams(p.dst)) {
            bool moved = mux_wire_step(&p.link);

            for (int k = 0; k < 4; k++) {
                int side = k / 2, n = k % 2;

                write_more(s[side][n], side, &sent[side][n], size);
                /* who writes reads only now and then */
                if (g_rand_int_range(p.link.rand, 0, 20) == 0) {
                    read_more(s[!side][n], side, &got[side][n]);
                }
            }
            stuck = moved ? 0 : stuck + 1;
            g_assert_cmpint(stuck, <, 10000);
        }
        for (int k = 0; k < 4; k++) {
            g_assert_cmpuint(got[k / 2][k % 2], ==, size);
        }
        mux_pair_cleanup(&p);
    }
}

/* Who has echoes to send takes no more until they are gone. */
static void echo(MuxStream *s)
{
    struct iovec iov;

    while (mux_stream_rx_iov(s, &iov, 1)) {
        size_t n = mux_stream_tx_copy(s, &iov, 1);

        mux_stream_rx_consume(s, n);
        if (!n) {
            break;
        }
    }
    if (mux_stream_rx_fin(s) && !mux_stream_rx_pending(s)) {
        mux_stream_fin_ok(s);
        mux_stream_fin(s);
    }
}

static void test_echo_through_any_connection(void)
{
    uint32_t seed = mux_test_seed(50);

    for (int i = 0; i < G_N_ELEMENTS(capacities); i++) {
        uint64_t size = MIN(capacities[i] * 2000, 200 * KIB);
        uint64_t sent = 0, got = 0;
        MuxStream *a, *b;
        int stuck = 0;
        MuxPair p;

        mux_pair_init(&p, 4 * KIB);
        g_rand_set_seed(p.link.rand, seed + i);
        mux_wire_open(&p.link, SRC, "x", &a, &b);
        p.link.capacity = p.link.piece_max = capacities[i];
        while (mux_engine_has_streams(p.src)) {
            bool moved = mux_wire_step(&p.link);

            write_more(a, SRC, &sent, size);
            echo(b);
            read_more(a, SRC, &got);
            stuck = moved ? 0 : stuck + 1;
            g_assert_cmpint(stuck, <, 100);
        }
        g_assert_cmpuint(got, ==, size);
        mux_pair_cleanup(&p);
    }
}

/* --- 5: the receive path --- */

/*
 * The application never reads, and nothing that the engine wants to say goes
 * out: it takes all that the peer may send all the same.
 */
static void test_receiver_never_waits(void)
{
    g_autoptr(GByteArray) out = g_byte_array_new();
    MuxStream *a[MANY], *b[MANY];
    struct iovec iov[8];
    MuxPair p;

    mux_pair_init(&p, 16 * KIB);
    for (int i = 0; i < MANY; i++) {
        mux_wire_open(&p.link, SRC, "x", &a[i], &b[i]);
    }
    for (int i = 0; i < MANY; i++) {
        mux_copy_pattern(a[i], SRC, 0, 16 * KIB);
        mux_engine_ping(p.src);
        mux_stream_fin(a[i]);
    }
    mux_drain(p.src, out, 0);
    g_assert_cmpuint(out->len, >, MANY * 16 * KIB);
    for (unsigned i = 0; i < out->len; i++) {
        g_assert_cmpuint(mux_engine_rx_want(p.dst, iov, 8), >, 0);
        g_assert_cmpuint(iov[0].iov_len, >, 0);
        *(uint8_t *)iov[0].iov_base = out->data[i];
        mux_engine_rx_done(p.dst, 1, 0);
    }
    for (int i = 0; i < MANY; i++) {
        g_assert_cmpuint(mux_stream_rx_pending(b[i]), ==, 16 * KIB);
        g_assert_true(mux_stream_rx_fin(b[i]));
    }
    g_assert_cmpuint(mux_engine_rx_want(p.dst, iov, 8), >, 0);
    mux_pair_cleanup(&p);
}

/* --- 6: slow is not dead --- */

static void test_saturated_link_stays_alive(void)
{
    SimFlow *there, *back;
    Sim sim;

    /* 1 Mb/s, and a transport that holds 8 seconds of that */
    sim_init(&sim, SIM_GBIT / 1000, 60 * SIM_MS, NULL, NULL);
    sim.buffer = 1024 * KIB;
    there = sim_open(&sim, SRC, "nbd-disk0");
    back = sim_open(&sim, DST, "back");
    for (int side = 0; side < 2; side++) {
        mux_engine_set_silence(sim.side[side].e, 30 * SIM_S, sim.now);
    }
    there->writing = true;
    sim_run(&sim, 300 * SIM_S);
    back->writing = true;
    there->reading = false;
    sim_run(&sim, 300 * SIM_S);
    for (int side = 0; side < 2; side++) {
        g_assert_null(mux_engine_error(sim.side[side].e));
        g_assert_false(mux_engine_ended(sim.side[side].e));
    }
    g_assert_cmpint(mux_stream_state(there->to), ==, MUX_STREAM_OPEN);
    g_assert_cmpuint(there->read, >, 30 * 1000 * 1000);
    g_assert_cmpuint(back->read, >, 30 * 1000 * 1000);
    sim_cleanup(&sim);
}

/* --- 8: arithmetic --- */

static void set_number(GHashTable *table, uint32_t id, uint64_t value)
{
    g_hash_table_insert(table, GUINT_TO_POINTER(id),
                        g_memdup2(&value, sizeof(value)));
}

/* Make all believe that @from has sent @bytes to @to, and all was read. */
static void pretend_sent(MuxWire *link, MuxStream *from, MuxStream *to,
                         uint64_t bytes)
{
    uint64_t limit = bytes + to->rx_limit;

    from->tx_offset = bytes;
    to->rx_offset = to->rx_arrived = to->rx_consumed = bytes;
    from->tx_limit = to->rx_limit = limit;
    set_number(link->side[SRC].offsets, from->id, bytes);
    set_number(link->side[DST].limits, from->id, limit);
}

static void test_credit_at_the_edges_of_numbers(void)
{
    static const uint64_t start[] = {
        0, INT32_MAX, UINT32_MAX, 1ULL << 32, INT64_MAX, 1ULL << 63,
        UINT64_MAX - 100000,
    };
    uint32_t seed = mux_test_seed(60);

    for (int i = 0; i < G_N_ELEMENTS(start); i++) {
        for (int below = 0; below < 20; below++) {
            uint64_t first = start[i] - MIN(start[i], below);
            uint64_t sent = first, got = first;
            MuxStream *a, *b;
            MuxPair p;

            mux_pair_init(&p, 7);
            g_rand_set_seed(p.link.rand, seed++);
            p.link.piece_max = 50;
            mux_wire_open(&p.link, SRC, "x", &a, &b);
            pretend_sent(&p.link, a, b, first);
            while (!mux_stream_fin_acked(a)) {
                write_more(a, SRC, &sent, first + 100);
                mux_wire_step(&p.link);
                read_more(b, SRC, &got);
                g_assert_cmpuint(mux_stream_rx_pending(b), <=, 7);
                g_assert_null(mux_engine_error(p.src));
                g_assert_null(mux_engine_error(p.dst));
            }
            g_assert_cmpuint(got - first, ==, 100);
            mux_pair_cleanup(&p);
        }
    }
}

/* --- 10: floods --- */

static GByteArray *frame(uint8_t type, uint32_t id, uint32_t length)
{
    GByteArray *out = g_byte_array_new();
    MuxHeader h = { .type = type, .stream = id, .length = length };

    g_byte_array_set_size(out, MUX_HEADER_SIZE + length);
    memset(out->data, 0, out->len);
    mux_header_encode(&h, out->data);
    return out;
}

/* The number of entries in each table, list and queue of an engine */
typedef struct Held {
    unsigned ids, all;          /* ids: live or retired */
    unsigned control, opens, urgent, bulk, events;
    unsigned chunks, copies;
    unsigned announced, unanswered, local_open;
} Held;

static Held held_by(MuxEngine *e)
{
    return (Held) {
        .ids = g_hash_table_size(e->live) + g_hash_table_size(e->retired),
        .all = g_hash_table_size(e->all),
        .control = e->control.length,
        .opens = e->opens.length,
        .urgent = e->urgent.length,
        .bulk = e->bulk.length,
        .events = e->events.length,
        .chunks = e->pool.nused,
        .copies = g_slist_length(e->batch.copies),
        .announced = e->local.announced + e->remote.announced,
        .unanswered = e->local.unanswered + e->remote.unanswered,
        .local_open = e->local_open,
    };
}

/* Assert that @e has no more entries than @before. */
static void assert_holds_no_more(MuxEngine *e, const Held *before)
{
    Held now = held_by(e);

#define NO_MORE(what) g_assert_cmpuint(now.what, <=, before->what)
    NO_MORE(ids);
    NO_MORE(all);
    NO_MORE(control);
    NO_MORE(opens);
    NO_MORE(urgent);
    NO_MORE(bulk);
    NO_MORE(events);
    NO_MORE(chunks);
    NO_MORE(copies);
    NO_MORE(announced);
    NO_MORE(unanswered);
    NO_MORE(local_open);
#undef NO_MORE
    g_assert_cmpuint(e->npongs, <=, G_N_ELEMENTS(e->pongs));
    g_assert_cmpuint(e->rx_buf_len, <=, sizeof(e->rx_buf));
    g_assert_cmpuint(e->pool.nspare, <=, MUX_CHUNKS_SPARE);
    g_assert(!e->error || strlen(e->error) <= 2 * MUX_TEXT_MAX);
    g_assert(!e->goaway_text || strlen(e->goaway_text) <= MUX_TEXT_MAX);
}

/*
 * Frames that a peer can repeat without limit while it reads no replies: the
 * engine keeps nothing, whether the frame is allowed or ends the connection.
 * LeakSanitizer finds memory that no table refers to.
 */
static void test_floods_leave_nothing_behind(void)
{
    static const struct {
        uint8_t type;
        uint32_t id, length;
        bool fatal;
    } flood[] = {
        { MUX_FRAME_WINDOW, 1, 8, false },
        { MUX_FRAME_WINDOW, 3, 8, false },      /* a retired stream */
        { MUX_FRAME_OPEN_OK, 3, 8, false },
        { MUX_FRAME_FIN_OK, 3, 8, false },
        { MUX_FRAME_RESET, 3, 1024, false },
        { 0x80, 0, 0, false },
        { 0xff, 1, 4096, false },
        { MUX_FRAME_PING, 0, 8, true },
        { MUX_FRAME_PONG, 0, 8, true },
    };

    for (int i = 0; i < G_N_ELEMENTS(flood); i++) {
        g_autoptr(GByteArray) one = frame(flood[i].type, flood[i].id,
                                          flood[i].length);
        g_autoptr(GByteArray) out = g_byte_array_new();
        MuxStream *s[4];
        Held before;
        MuxPair p;

        mux_pair_init(&p, 64 * KIB);
        mux_wire_open(&p.link, SRC, "x", &s[0], &s[1]);
        mux_wire_open(&p.link, SRC, "y", &s[2], &s[3]);
        mux_stream_reset(s[2], 1, "");
        mux_stream_release(s[2]);
        mux_stream_release(s[3]);
        mux_wire_run(&p.link);
        while (mux_engine_next_event(p.dst, &(MuxEvent) {})) {
            /* count only events of the flood */
        }
        before = held_by(p.dst);
        for (int k = 0; k < 50000; k++) {
            mux_feed(p.dst, one->data, one->len, 0);
        }
        assert_holds_no_more(p.dst, &before);
        g_assert_cmpint(mux_engine_ended(p.dst), ==, flood[i].fatal);
        g_assert_cmpuint(p.dst->pool.nused, ==, 0);
        mux_assert_memory_bounded(p.dst);
        mux_drain(p.dst, out, 0);
        g_assert_cmpuint(out->len, <=, 16 * 24 + MUX_HEADER_SIZE +
                                       MUX_TEXT_MAX);
        mux_pair_cleanup(&p);
    }
}

/* --- 11: rapid reset --- */

/* @bytes of zeros on stream @id, whose direction has had none. */
static void feed_zeros(MuxEngine *e, uint32_t id, uint64_t bytes)
{
    for (uint64_t done = 0, n; done < bytes; done += n) {
        g_autoptr(GByteArray) data = NULL;

        n = MIN(bytes - done, MUX_FRAME_BULK);
        data = frame(MUX_FRAME_DATA, id, n);
        stl_be_p(data->data + 12, done);
        mux_feed(e, data->data, data->len, 0);
    }
}

/*
 * Streams that the peer fills and resets, and that the application hardly
 * reads and never lets go: the credit of one serves the next, so its data must
 * go.
 */
static void test_resets_leave_no_data_behind(void)
{
    struct iovec iov;
    MuxStream *a, *b;
    MuxPair p;

    mux_pair_init(&p, MUX_WINDOW_SHARE);
    for (int i = 0; i < MUX_LIFETIME_STREAMS; i++) {
        mux_wire_open(&p.link, SRC, "x", &a, &b);
        feed_zeros(p.dst, a->id, a->tx_limit);
        g_assert_cmpuint(mux_stream_rx_pending(b), ==, MUX_WINDOW_SHARE);
        if (i % 2) {
            g_assert_cmpuint(mux_stream_rx_iov(b, &iov, 1), ==, 1);
            mux_stream_rx_consume(b, 1);
        }
        a->tx_offset = a->tx_limit;
        mux_stream_reset(a, MUX_CODE_ABORTED, "");
        mux_wire_run(&p.link);
        g_assert_cmpint(mux_stream_state(b), ==, MUX_STREAM_RESET);
        g_assert_cmpuint(p.dst->pool.nused, ==, 0);
    }
    g_assert_false(mux_engine_ended(p.dst));
    mux_pair_cleanup(&p);
}

/* Who is copying when a RESET comes finds all where it was. */
static void test_reset_leaves_a_reader_alone(void)
{
    for (int ours = 0; ours < 2; ours++) {
        MuxStream *a, *b, *c, *d;
        struct iovec iov;
        MuxPair p;

        mux_pair_init(&p, 64 * KIB);
        mux_wire_open(&p.link, SRC, "x", &a, &b);
        mux_wire_open(&p.link, SRC, "y", &c, &d);
        mux_copy_pattern(a, SRC, 0, 1000);
        mux_wire_run(&p.link);
        g_assert_cmpuint(mux_stream_rx_iov(b, &iov, 1), ==, 1);
        mux_stream_reset(ours ? b : a, MUX_CODE_ABORTED, "");
        mux_wire_run(&p.link);
        g_assert_cmpuint(mux_stream_rx_pending(b), ==, 0);
        /* others would use the same memory */
        mux_copy_pattern(c, SRC, 0, 1000);
        mux_wire_run(&p.link);
        for (int i = 0; i < 1000; i++) {
            g_assert_cmphex(((uint8_t *)iov.iov_base)[i], ==,
                            mux_pattern(a->id, SRC, i));
        }
        mux_stream_rx_consume(b, 1000);
        mux_stream_rx_consume(d, 1000);
        g_assert_cmpuint(p.dst->pool.nused, ==, 0);
        mux_pair_cleanup(&p);
    }
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);

#define ADD(path, func) g_test_add_func("/mux/pitfalls/" path, func)
    ADD("any-one-stream-finishes-alone", test_any_one_stream_finishes_alone);
    ADD("control-passes-unread-streams",
        test_control_passes_unread_streams);
    ADD("both-sides-saturate-any-connection",
        test_both_sides_saturate_any_connection);
    ADD("echo-through-any-connection", test_echo_through_any_connection);
    ADD("receiver-never-waits", test_receiver_never_waits);
    ADD("saturated-link-stays-alive", test_saturated_link_stays_alive);
    ADD("credit-at-the-edges-of-numbers",
        test_credit_at_the_edges_of_numbers);
    ADD("floods-leave-nothing-behind", test_floods_leave_nothing_behind);
    ADD("resets-leave-no-data-behind", test_resets_leave_no_data_behind);
    ADD("reset-leaves-a-reader-alone", test_reset_leaves_a_reader_alone);
#undef ADD

    return g_test_run();
}
