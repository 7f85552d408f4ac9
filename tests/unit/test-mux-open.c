/*
 * Tests of the migration multiplexer's engine: how streams begin
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "migration/mux/engine-int.h"
#include "mux-engine-helpers.h"

static void test_refused_stream(void)
{
    const char *why;
    MuxStream *a, *b;
    MuxPair p;

    mux_pair_init(&p, 64 * KIB);
    a = mux_engine_open(p.src, "nbd-unknown", &why);
    mux_wire_run(&p.link);
    b = mux_expect_event(p.dst, MUX_EVENT_OPEN);
    mux_stream_reset(b, MUX_CODE_REFUSED, "no such disk");
    mux_stream_release(b);
    mux_wire_run(&p.link);
    g_assert_cmpstr(mux_stream_error(a), ==,
                    "aborted by the destination: no such disk");
    mux_pair_cleanup(&p);
}

static void test_reset_before_open_is_silent(void)
{
    MuxConfig config;
    MuxEngine *e;
    const char *why;
    MuxStream *s;
    g_autoptr(GByteArray) out = g_byte_array_new();

    mux_config_default(&config, MUX_ROLE_SOURCE);
    e = mux_engine_new(&config, 0);
    s = mux_engine_open(e, "x", &why);
    mux_stream_reset(s, 1, "never mind");
    mux_stream_release(s);
    mux_drain(e, out, 0);
    g_assert_cmpuint(out->len, ==, 60);
    mux_engine_free(e);
}

static void test_data_waits_for_open_ok(void)
{
    uint8_t data[100] = { 0 };
    struct iovec iov = { .iov_base = data, .iov_len = sizeof(data) };
    const char *why;
    MuxStream *a, *b;
    MuxPair p;

    mux_pair_init(&p, 64 * KIB);
    a = mux_engine_open(p.src, "x", &why);
    g_assert_false(mux_stream_writable(a));
    g_assert_cmpuint(mux_stream_tx_copy(a, &iov, 1), ==, 0);
    mux_stream_tx_offer(a, &iov, 1);
    mux_stream_fin(a);
    mux_wire_run(&p.link);
    b = mux_expect_event(p.dst, MUX_EVENT_OPEN);
    g_assert_cmpuint(mux_stream_tx_sent(a), ==, 0);
    g_assert_cmpint(mux_stream_state(b), ==, MUX_STREAM_OPENING);
    mux_stream_accept(b);
    mux_wire_run(&p.link);
    g_assert_cmpuint(mux_stream_tx_sent(a), ==, 100);
    g_assert_cmpuint(mux_stream_rx_pending(b), ==, 100);
    g_assert_true(mux_stream_rx_fin(b));
    mux_pair_cleanup(&p);
}

static void test_what_was_done_before_accept_happens_after(void)
{
    uint8_t data[100] = { 0 };
    struct iovec iov = { .iov_base = data, .iov_len = sizeof(data) };
    MuxStream *a, *b;
    const char *why;
    MuxPair p;

    mux_pair_init(&p, 64 * KIB);
    a = mux_engine_open(p.src, "x", &why);
    mux_wire_run(&p.link);
    b = mux_expect_event(p.dst, MUX_EVENT_OPEN);
    mux_stream_tx_offer(b, &iov, 1);
    mux_stream_fin(b);
    mux_wire_run(&p.link);
    g_assert_cmpint(mux_stream_state(b), ==, MUX_STREAM_OPENING);
    g_assert_cmpuint(mux_stream_tx_sent(b), ==, 0);
    mux_stream_accept(b);
    g_assert_cmpint(mux_stream_state(b), ==, MUX_STREAM_FINISHING);
    mux_wire_run(&p.link);
    g_assert_cmpuint(mux_stream_rx_pending(a), ==, 100);
    g_assert_true(mux_stream_rx_fin(a));
    mux_pair_cleanup(&p);
}

static void test_opens_wait_for_answers(void)
{
    MuxStream *peer[40];
    const char *why;
    MuxEvent event;
    int n = 0;
    MuxPair p;

    mux_pair_init(&p, 64 * KIB);
    for (int i = 0; i < 40; i++) {
        g_assert_nonnull(mux_engine_open(p.src, "x", &why));
    }
    for (int round = 0; round < 3; round++) {
        mux_wire_run(&p.link);
        while (mux_engine_next_event(p.dst, &event)) {
            g_assert_cmpint(event.type, ==, MUX_EVENT_OPEN);
            g_assert_cmpuint(mux_stream_id(event.stream), ==, 2 * n + 1);
            peer[n++] = event.stream;
        }
        g_assert_cmpint(n, ==, MIN(16 * (round + 1), 40));
        for (int i = 16 * round; i < n; i++) {
            mux_stream_accept(peer[i]);
        }
    }
    mux_wire_run(&p.link);
    mux_pair_cleanup(&p);
}

static void test_open_limits(void)
{
    MuxConfig src, dst;
    const char *why = NULL;
    MuxStream *a, *b;
    MuxWire link;

    mux_config_default(&src, MUX_ROLE_SOURCE);
    mux_config_default(&dst, MUX_ROLE_DESTINATION);
    dst.max_streams = 2;
    mux_wire_init(&link, 1, &src, &dst);
    g_assert_null(mux_engine_open(link.side[SRC].e, "", &why));
    g_assert_nonnull(strstr(why, "1 to 255"));
    mux_wire_open(&link, SRC, "a", &a, &b);
    g_assert_nonnull(mux_engine_open(link.side[SRC].e, "b", &why));
    g_assert_null(mux_engine_open(link.side[SRC].e, "c", &why));
    g_assert_nonnull(strstr(why, "too many streams"));
    mux_stream_reset(a, 1, "");
    g_assert_nonnull(mux_engine_open(link.side[SRC].e, "c", &why));
    mux_wire_run(&link);
    g_assert_false(mux_engine_ended(link.side[DST].e));
    mux_wire_cleanup(&link);
}

/* @wanted: the other side has opened a stream before the HELLOs are there. */
static void accepts_none(int side, bool wanted)
{
    MuxConfig config[2];
    const char *why;
    MuxWire link;

    mux_config_default(&config[SRC], MUX_ROLE_SOURCE);
    mux_config_default(&config[DST], MUX_ROLE_DESTINATION);
    config[side].max_streams = 0;
    mux_wire_init(&link, 1, &config[SRC], &config[DST]);
    if (wanted) {
        mux_engine_open(link.side[!side].e, "x", &why);
    }
    mux_wire_run(&link);
    if (wanted || side == DST) {
        g_assert_cmpstr(mux_engine_error(link.side[!side].e), ==, side == SRC
                        ? "source accepts no streams"
                        : "destination accepts no streams");
        g_assert_true(mux_engine_ended(link.side[side].e));
        g_assert_cmpuint(link.side[!side].e->goaway_code, ==,
                         MUX_CODE_INCOMPATIBLE);
    } else {
        g_assert_false(mux_engine_ended(link.side[!side].e));
        g_assert_null(mux_engine_open(link.side[!side].e, "x", &why));
        g_assert_cmpstr(why, ==,
                        "too many streams are open on this connection");
    }
    mux_wire_cleanup(&link);
}

static void test_peer_that_accepts_no_streams(void)
{
    for (int side = 0; side < 2; side++) {
        accepts_none(side, true);
        accepts_none(side, false);
    }
}

static void test_streams_opened_before_hello_wait(void)
{
    MuxConfig dst;
    const char *why;
    MuxStream *s[3], *first;
    MuxWire link;

    mux_config_default(&dst, MUX_ROLE_DESTINATION);
    dst.max_streams = 2;
    mux_wire_init(&link, 1, NULL, &dst);
    for (int i = 0; i < 3; i++) {
        s[i] = mux_engine_open(link.side[SRC].e, "x", &why);
    }
    mux_wire_run(&link);
    first = mux_expect_event(link.side[DST].e, MUX_EVENT_OPEN);
    g_assert_nonnull(mux_expect_event(link.side[DST].e, MUX_EVENT_OPEN));
    g_assert_false(mux_has_event(link.side[DST].e, MUX_EVENT_OPEN, NULL));
    mux_stream_reset(first, 1, "");
    mux_wire_run(&link);
    g_assert_cmpuint(mux_stream_id(mux_expect_event(link.side[DST].e,
                                                    MUX_EVENT_OPEN)),
                     ==, mux_stream_id(s[2]));
    mux_wire_cleanup(&link);
}

/* One side counts a stream when it is wanted, the other when it comes. */
static void test_has_streams(void)
{
    const char *why;
    MuxStream *a;
    MuxPair p;

    mux_pair_init(&p, 64 * KIB);
    g_assert_false(mux_engine_has_streams(p.src));
    g_assert_false(mux_engine_has_streams(p.dst));
    a = mux_engine_open(p.src, "x", &why);
    g_assert_true(mux_engine_has_streams(p.src));
    g_assert_false(mux_engine_has_streams(p.dst));
    mux_wire_run(&p.link);
    g_assert_true(mux_engine_has_streams(p.dst));
    mux_stream_reset(a, 1, NULL);
    g_assert_false(mux_engine_has_streams(p.src));
    mux_wire_run(&p.link);
    g_assert_false(mux_engine_has_streams(p.dst));
    g_assert_cmpstr(mux_stream_error(a), ==,
                    "aborted by the source: ");
    mux_pair_cleanup(&p);
    mux_engine_free(NULL);
}

static void test_lifetime_limit(void)
{
    MuxStream *a, *b;
    const char *why;
    MuxPair p;

    mux_pair_init(&p, 64 * KIB);
    for (int i = 0; i < 4096; i++) {
        mux_wire_open(&p.link, SRC, "x", &a, &b);
        mux_stream_reset(i % 2 ? a : b, 1, "");
        mux_stream_release(a);
        mux_stream_release(b);
    }
    g_assert_null(mux_engine_open(p.src, "x", &why));
    g_assert_cmpstr(why, ==,
                    "too many streams have been opened on this connection");
    mux_wire_run(&p.link);
    g_assert_false(mux_engine_ended(p.dst));
    mux_pair_cleanup(&p);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);

#define ADD(path, func) g_test_add_func("/mux/open/" path, func)
    ADD("refused-stream", test_refused_stream);
    ADD("reset-before-open-is-silent", test_reset_before_open_is_silent);
    ADD("data-waits-for-open-ok", test_data_waits_for_open_ok);
    ADD("what-was-done-before-accept-happens-after",
        test_what_was_done_before_accept_happens_after);
    ADD("opens-wait-for-answers", test_opens_wait_for_answers);
    ADD("open-limits", test_open_limits);
    ADD("peer-that-accepts-no-streams", test_peer_that_accepts_no_streams);
    ADD("streams-opened-before-hello-wait",
        test_streams_opened_before_hello_wait);
    ADD("has-streams", test_has_streams);
    ADD("lifetime-limit", test_lifetime_limit);
#undef ADD

    return g_test_run();
}
