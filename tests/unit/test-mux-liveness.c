/*
 * Tests of the migration multiplexer's engine: time, silence, round trips
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "migration/mux/engine-int.h"
#include "mux-engine-helpers.h"

#define NS_PER_S    (1000 * 1000 * 1000LL)
#define SILENCE     (30 * NS_PER_S)

static void test_hello_timeout(void)
{
    g_autoptr(GByteArray) out = g_byte_array_new();
    MuxConfig config;
    MuxEngine *e;

    mux_config_default(&config, MUX_ROLE_SOURCE);
    e = mux_engine_new(&config, 5 * NS_PER_S);
    g_assert_cmpint(mux_engine_deadline(e), ==, 35 * NS_PER_S);
    mux_engine_timeout(e, 35 * NS_PER_S - 1);
    g_assert_false(mux_engine_ended(e));
    mux_engine_timeout(e, 35 * NS_PER_S);
    g_assert_cmpstr(mux_engine_error(e), ==, "destination sent no HELLO "
                    "within 30 s (does it support multiplexed migration?)");
    g_assert_cmpint(mux_engine_deadline(e), ==, INT64_MAX);
    mux_drain(e, out, 0);
    g_assert_cmpuint(out->data[60], ==, 10);
    g_assert_cmpuint(out->data[60 + 15], ==, MUX_CODE_TIMEOUT);
    mux_engine_free(e);
}

static void test_no_deadline_after_hello(void)
{
    MuxPair p;

    mux_pair_init(&p, 4 * KIB);
    g_assert_cmpint(mux_engine_deadline(p.src), ==, INT64_MAX);
    mux_engine_timeout(p.src, 1000 * NS_PER_S);
    g_assert_false(mux_engine_ended(p.src));
    mux_pair_cleanup(&p);
}

static void test_round_trip_minimum(void)
{
    g_autoptr(GByteArray) wire = g_byte_array_new();
    MuxPair p;

    mux_pair_init(&p, 4 * KIB);
    g_assert_cmpint(mux_engine_rtt(p.src), ==, -1);
    for (int i = 0; i < 3; i++) {
        int64_t rtt = 100 * (3 - i) * (i == 2 ? 9 : 1);

        mux_engine_ping(p.src);
        mux_engine_ping(p.src);                 /* no second one in flight */
        mux_drain(p.src, wire, 1000);
        g_assert_cmpuint(wire->len, ==, 24);
        mux_feed(p.dst, wire->data, wire->len, 0);
        g_byte_array_set_size(wire, 0);
        mux_drain(p.dst, wire, 0);
        mux_feed(p.src, wire->data, wire->len, 1000 + rtt);
        g_byte_array_set_size(wire, 0);
    }
    g_assert_cmpint(mux_engine_rtt(p.src), ==, 200);
    mux_pair_cleanup(&p);
}

static void test_round_trip_may_take_no_time(void)
{
    g_autoptr(GByteArray) wire = g_byte_array_new();
    MuxPair p;

    mux_pair_init(&p, 4 * KIB);
    for (int i = 0; i < 2; i++) {
        mux_engine_ping(p.src);
        mux_drain(p.src, wire, 1000);
        mux_feed(p.dst, wire->data, wire->len, 0);
        g_byte_array_set_size(wire, 0);
        mux_drain(p.dst, wire, 0);
        mux_feed(p.src, wire->data, wire->len, 1000 + 5 * i);
        g_byte_array_set_size(wire, 0);
        g_assert_cmpint(mux_engine_rtt(p.src), ==, 0);
    }
    mux_pair_cleanup(&p);
}

/* --- silence --- */

/* Frames that @e sends now; none may be a GOAWAY. */
static unsigned count_pings(MuxEngine *e, int64_t now)
{
    g_autoptr(GByteArray) out = g_byte_array_new();

    mux_drain(e, out, now);
    for (size_t i = 0; i < out->len; i += 24) {
        g_assert_cmpuint(out->data[i], ==, 8);
    }
    g_assert_cmpuint(out->len % 24, ==, 0);
    return out->len / 24;
}

static void expect_silence_goaway(MuxEngine *e, const char *text)
{
    g_autoptr(GByteArray) out = g_byte_array_new();
    size_t len = strlen(text);

    g_assert_true(mux_engine_ended(e));
    g_assert_cmpstr(mux_engine_error(e), ==, text);
    g_assert_cmpint(mux_engine_deadline(e), ==, INT64_MAX);
    mux_drain(e, out, 0);
    g_assert_cmpuint(out->len, >=, 16 + len);
    g_assert_cmpuint(out->data[out->len - len - 16], ==, 10);
    g_assert_cmpuint(out->data[out->len - len - 1], ==, MUX_CODE_TIMEOUT);
    g_assert_cmpmem(out->data + out->len - len, len, text, len);
}

static void test_silent_peer_is_asked_twice_then_dead(void)
{
    int64_t start = 7 * NS_PER_S;
    MuxPair p;

    mux_pair_init(&p, 4 * KIB);
    mux_engine_set_silence(p.src, SILENCE, start);
    for (int part = 1; part <= 2; part++) {
        int64_t due = start + part * SILENCE / 3;

        g_assert_cmpint(mux_engine_deadline(p.src), ==, due);
        mux_engine_timeout(p.src, due - 1);
        g_assert_cmpuint(count_pings(p.src, due - 1), ==, 0);
        mux_engine_timeout(p.src, due);
        g_assert_cmpuint(count_pings(p.src, due), ==, 1);
    }
    mux_engine_timeout(p.src, start + SILENCE - 1);
    g_assert_false(mux_engine_ended(p.src));
    g_assert_cmpint(mux_engine_deadline(p.src), ==, start + SILENCE);
    mux_engine_timeout(p.src, start + SILENCE);
    expect_silence_goaway(p.src,
                          "no data received from the destination for 30 s");
    mux_pair_cleanup(&p);
}

static void test_silence_counts_before_hello(void)
{
    MuxConfig config;
    MuxEngine *e;

    mux_config_default(&config, MUX_ROLE_DESTINATION);
    e = mux_engine_new(&config, 0);
    mux_engine_set_silence(e, 3 * NS_PER_S, 0);
    for (int i = 1; i <= 3; i++) {
        g_assert_cmpint(mux_engine_deadline(e), ==, i * NS_PER_S);
        g_assert_false(mux_engine_ended(e));
        mux_engine_timeout(e, i * NS_PER_S);
    }
    expect_silence_goaway(e, "no data received from the source for 3 s");
    mux_engine_free(e);
}

static void test_silence_ends_with_zero(void)
{
    MuxPair p;

    mux_pair_init(&p, 4 * KIB);
    mux_engine_set_silence(p.src, SILENCE, 0);
    mux_engine_timeout(p.src, SILENCE / 3);
    mux_engine_set_silence(p.src, 0, SILENCE / 2);
    g_assert_cmpint(mux_engine_deadline(p.src), ==, INT64_MAX);
    mux_pair_cleanup(&p);
}

static void test_any_byte_breaks_the_silence(void)
{
    static const uint8_t header[16] = { 8, [11] = 8 };
    int64_t now = 0;
    MuxPair p;

    mux_pair_init(&p, 4 * KIB);
    mux_engine_set_silence(p.src, SILENCE, now);
    for (int i = 0; i < 16; i++) {
        for (int part = 0; part < 2; part++) {
            now += SILENCE / 3;
            mux_engine_timeout(p.src, now);
        }
        now += SILENCE / 3 - 1;
        mux_feed(p.src, header + i, 1, now);
        mux_engine_timeout(p.src, now);
        g_assert_false(mux_engine_ended(p.src));
        g_assert_cmpint(mux_engine_deadline(p.src), ==, now + SILENCE / 3);
    }
    mux_pair_cleanup(&p);
}

/* Thirds are rounded up: @ns is the least. */
static void test_silence_is_not_cut_short(void)
{
    MuxPair p;

    mux_pair_init(&p, 4 * KIB);
    mux_engine_set_silence(p.src, 3 * NS_PER_S + 1, 0);
    g_assert_cmpint(mux_engine_deadline(p.src), ==, NS_PER_S + 1);
    mux_engine_set_silence(p.src, 3 * NS_PER_S + 2, 0);
    g_assert_cmpint(mux_engine_deadline(p.src), ==, NS_PER_S + 1);
    mux_engine_set_silence(p.src, 3 * NS_PER_S + 3, 0);
    g_assert_cmpint(mux_engine_deadline(p.src), ==, NS_PER_S + 1);
    /* there is a least time that makes sense */
    mux_engine_set_silence(p.src, 1, 0);
    g_assert_cmpint(mux_engine_deadline(p.src), ==, NS_PER_S / 30 + 1);
    mux_pair_cleanup(&p);
}

/* However often the clock starts again, few PINGs wait for their answer. */
static void test_unanswered_pings_are_few(void)
{
    unsigned pings = 0;
    MuxPair p;

    mux_pair_init(&p, 4 * KIB);
    for (int i = 0; i < 20; i++) {
        mux_engine_set_silence(p.src, 3 * NS_PER_S, i * NS_PER_S);
        mux_engine_timeout(p.src, (i + 1) * NS_PER_S);
        pings += count_pings(p.src, 0);
    }
    g_assert_cmpuint(pings, ==, 4);
    mux_pair_cleanup(&p);
}

/* Who did not run for an hour asks first. */
static void test_own_absence_is_not_the_peers(void)
{
    int64_t now = 3600 * NS_PER_S;
    MuxPair p;

    mux_pair_init(&p, 4 * KIB);
    mux_engine_set_silence(p.src, SILENCE, 0);
    mux_engine_timeout(p.src, now);
    g_assert_cmpuint(count_pings(p.src, now), ==, 1);
    g_assert_cmpint(mux_engine_deadline(p.src), ==, now + SILENCE / 3);
    mux_pair_cleanup(&p);
}

/* Both sides' deadlines as they come, all that moves delivered at once. */
static void run_until(MuxPair *p, int64_t end)
{
    while (p->link.now < end) {
        int64_t due = MIN(mux_engine_deadline(p->src),
                          mux_engine_deadline(p->dst));

        p->link.now = MIN(MAX(due, p->link.now), end);
        mux_engine_timeout(p->src, p->link.now);
        mux_engine_timeout(p->dst, p->link.now);
        mux_wire_run(&p->link);
    }
}

static void test_peer_that_reads_nothing_is_alive(void)
{
    g_autofree uint8_t *data = g_malloc0(1024 * KIB);
    struct iovec iov = { .iov_base = data, .iov_len = 1024 * KIB };
    MuxStream *a, *b;
    MuxPair p;

    mux_pair_init(&p, 64 * KIB);
    mux_wire_open(&p.link, SRC, "nbd-disk0", &a, &b);
    mux_engine_set_silence(p.src, SILENCE, p.link.now);
    mux_stream_tx_offer(a, &iov, 1);
    run_until(&p, 300 * NS_PER_S);
    g_assert_false(mux_engine_ended(p.src));
    g_assert_cmpuint(mux_stream_tx_sent(a), ==, 64 * KIB);
    mux_pair_cleanup(&p);
}

/* A batch takes minutes; what comes in, and only that, is what counts. */
static void test_slow_write_is_not_silence(void)
{
    g_autofree uint8_t *data = g_malloc0(200 * KIB);
    struct iovec iov = { .iov_base = data, .iov_len = 200 * KIB };
    g_autoptr(GByteArray) pong = mux_unhex("80000000 00000000 00000000 "
                                           "00000000");
    struct iovec named[8];
    MuxStream *a, *b;
    int64_t now;
    MuxPair p;

    mux_pair_init(&p, 1024 * KIB);
    mux_wire_open(&p.link, SRC, "nbd-disk0", &a, &b);
    mux_stream_tx_offer(a, &iov, 1);
    now = p.link.now;
    mux_engine_set_silence(p.src, SILENCE, now);
    for (int i = 0; i < 300; i++) {
        now += NS_PER_S;
        g_assert_cmpuint(mux_engine_tx_want(p.src, named, 8, now), >, 0);
        mux_engine_tx_done(p.src, 1);
        if (i % 29 == 28) {
            mux_feed(p.src, pong->data, pong->len, now);
        }
        mux_engine_timeout(p.src, now);
    }
    g_assert_false(mux_engine_ended(p.src));
    /* and progress of the write is no sign of life */
    while (!mux_engine_ended(p.src)) {
        now += NS_PER_S;
        g_assert_cmpuint(mux_engine_tx_want(p.src, named, 8, now), >, 0);
        mux_engine_tx_done(p.src, 1);
        mux_engine_timeout(p.src, now);
        g_assert_cmpint(now, <, 400 * NS_PER_S);
    }
    g_assert_cmpstr(mux_engine_error(p.src), ==,
                    "no data received from the destination for 30 s");
    mux_pair_cleanup(&p);
}

/* However early it is asked for: the peer's HELLO comes first. */
static void test_no_ping_before_hello(void)
{
    g_autoptr(GByteArray) hello = g_byte_array_new();
    g_autoptr(GByteArray) out = g_byte_array_new();
    MuxConfig config;
    MuxEngine *e, *peer;

    mux_config_default(&config, MUX_ROLE_SOURCE);
    e = mux_engine_new(&config, 0);
    config.role = MUX_ROLE_DESTINATION;
    peer = mux_engine_new(&config, 0);
    g_assert_false(mux_engine_tx_idle(e));
    mux_engine_ping(e);
    mux_drain(e, out, 0);
    g_assert_cmpuint(out->len, ==, 60);
    g_assert_true(mux_engine_tx_idle(e));
    mux_drain(peer, hello, 0);
    mux_feed(e, hello->data, hello->len, 0);
    mux_drain(e, out, 0);
    g_assert_cmpuint(out->len, ==, 60 + 24);
    mux_engine_free(e);
    mux_engine_free(peer);
}

static void test_measured_once_in_an_interval(void)
{
    g_autoptr(GByteArray) ping = g_byte_array_new();
    g_autoptr(GByteArray) pong = g_byte_array_new();
    MuxPair p;

    mux_pair_init(&p, 4 * KIB);
    mux_liveness_measure(p.src, 0);
    mux_drain(p.src, ping, 1000);
    g_assert_cmpuint(ping->len, ==, 24);
    mux_feed(p.dst, ping->data, ping->len, 1000);
    mux_drain(p.dst, pong, 1000);
    mux_feed(p.src, pong->data, pong->len, 1000);
    mux_liveness_measure(p.src, 1000 + MUX_MEASURE_INTERVAL - 1);
    g_assert_cmpuint(count_pings(p.src, 0), ==, 0);
    mux_liveness_measure(p.src, 1000 + MUX_MEASURE_INTERVAL);
    g_assert_cmpuint(count_pings(p.src, 0), ==, 1);
    mux_pair_cleanup(&p);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);

#define ADD(path, func) g_test_add_func("/mux/liveness/" path, func)
    ADD("hello-timeout", test_hello_timeout);
    ADD("no-deadline-after-hello", test_no_deadline_after_hello);
    ADD("round-trip-minimum", test_round_trip_minimum);
    ADD("round-trip-may-take-no-time", test_round_trip_may_take_no_time);
    ADD("silence-is-not-cut-short", test_silence_is_not_cut_short);
    ADD("unanswered-pings-are-few", test_unanswered_pings_are_few);
    ADD("silent-peer-is-asked-twice-then-dead",
        test_silent_peer_is_asked_twice_then_dead);
    ADD("silence-counts-before-hello", test_silence_counts_before_hello);
    ADD("silence-ends-with-zero", test_silence_ends_with_zero);
    ADD("any-byte-breaks-the-silence", test_any_byte_breaks_the_silence);
    ADD("own-absence-is-not-the-peers", test_own_absence_is_not_the_peers);
    ADD("peer-that-reads-nothing-is-alive",
        test_peer_that_reads_nothing_is_alive);
    ADD("slow-write-is-not-silence", test_slow_write_is_not_silence);
    ADD("no-ping-before-hello", test_no_ping_before_hello);
    ADD("measured-once-in-an-interval", test_measured_once_in_an_interval);
#undef ADD

    return g_test_run();
}
