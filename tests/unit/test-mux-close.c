/*
 * Tests of the migration multiplexer's engine: how streams and connections end
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "migration/mux/engine-int.h"
#include "mux-engine-helpers.h"

static void finish_both(MuxPair *p, MuxStream *a, MuxStream *b)
{
    mux_stream_fin(a);
    mux_stream_fin(b);
    mux_wire_run(&p->link);
    mux_stream_fin_ok(a);
    mux_stream_fin_ok(b);
    mux_wire_run(&p->link);
    g_assert_cmpint(mux_stream_state(a), ==, MUX_STREAM_FINISHED);
    g_assert_cmpint(mux_stream_state(b), ==, MUX_STREAM_FINISHED);
}

/* --- the end of a stream --- */

static void test_finish_round_trip(void)
{
    MuxStream *a, *b;
    MuxPair p;

    mux_pair_init(&p, 64 * KIB);
    mux_wire_open(&p.link, SRC, "nbd-disk0", &a, &b);
    g_assert_cmpuint(mux_copy_pattern(a, SRC, 0, 5000), ==, 5000);
    mux_stream_fin(a);
    mux_stream_fin(a);
    mux_wire_run(&p.link);
    g_assert_true(mux_stream_rx_fin(b));
    g_assert_true(mux_has_event(p.dst, MUX_EVENT_FIN, b));
    g_assert_false(mux_stream_fin_acked(a));
    /* the other direction still works */
    g_assert_cmpuint(mux_copy_pattern(b, DST, 0, 100), ==, 100);
    mux_wire_run(&p.link);
    g_assert_cmpuint(mux_read_pattern(a, DST, 0, 200), ==, 100);
    g_assert_cmpuint(mux_read_pattern(b, SRC, 0, 9000), ==, 5000);
    mux_stream_fin_ok(b);
    mux_wire_run(&p.link);
    g_assert_true(mux_stream_fin_acked(a));
    g_assert_true(mux_has_event(p.src, MUX_EVENT_FIN_OK, a));
    g_assert_cmpint(mux_stream_state(a), ==, MUX_STREAM_FINISHING);
    mux_stream_fin(b);
    mux_wire_run(&p.link);
    mux_stream_fin_ok(a);
    mux_wire_run(&p.link);
    g_assert_cmpint(mux_stream_state(a), ==, MUX_STREAM_FINISHED);
    g_assert_cmpint(mux_stream_state(b), ==, MUX_STREAM_FINISHED);
    g_assert_null(mux_stream_error(a));
    mux_pair_cleanup(&p);
}

static void test_fin_ok_needs_fin(void)
{
    MuxStream *a, *b;
    MuxPair p;

    mux_pair_init(&p, 64 * KIB);
    mux_wire_open(&p.link, SRC, "x", &a, &b);
    mux_stream_fin_ok(b);
    g_assert_true(mux_engine_tx_idle(p.dst));
    finish_both(&p, a, b);
    mux_pair_cleanup(&p);
}

static void test_fin_ok_may_be_decided_before_fin(void)
{
    MuxStream *a, *b;
    MuxPair p;

    mux_pair_init(&p, 64 * KIB);
    mux_wire_open(&p.link, SRC, "x", &a, &b);
    mux_stream_fin_ok(b);
    mux_stream_fin(a);
    mux_wire_run(&p.link);
    g_assert_true(mux_stream_fin_acked(a));
    mux_pair_cleanup(&p);
}

static void test_reset_carries_text(void)
{
    MuxStream *a, *b;
    MuxPair p;

    mux_pair_init(&p, 64 * KIB);
    mux_wire_open(&p.link, SRC, "nbd-disk0", &a, &b);
    mux_copy_pattern(a, SRC, 0, 1000);
    mux_wire_run(&p.link);
    mux_stream_reset(b, 28, "No space\nleft");
    g_assert_cmpuint(mux_stream_rx_pending(b), ==, 0);
    g_assert_false(mux_has_event(p.dst, MUX_EVENT_RESET, b));
    mux_wire_run(&p.link);
    g_assert_true(mux_has_event(p.src, MUX_EVENT_RESET, a));
    g_assert_cmpint(mux_stream_state(a), ==, MUX_STREAM_RESET);
    g_assert_cmpstr(mux_stream_error(a), ==, "aborted by the destination: "
                    "No space?left (code 28)");
    g_assert_cmpuint(mux_copy_pattern(a, SRC, 1000, 10), ==, 0);
    g_assert_false(mux_engine_ended(p.src));
    mux_pair_cleanup(&p);
}

static void test_resets_cross(void)
{
    MuxStream *a, *b;
    MuxPair p;

    mux_pair_init(&p, 64 * KIB);
    mux_wire_open(&p.link, SRC, "x", &a, &b);
    mux_copy_pattern(a, SRC, 0, 1000);
    mux_copy_pattern(b, DST, 0, 1000);
    mux_stream_reset(a, 1, "one");
    mux_stream_reset(b, 2, "two");
    mux_wire_run(&p.link);
    g_assert_cmpstr(mux_stream_error(a), ==,
                    "aborted by the source: one");
    g_assert_cmpstr(mux_stream_error(b), ==,
                    "aborted by the destination: two");
    g_assert_false(mux_has_event(p.src, MUX_EVENT_RESET, a));
    g_assert_false(mux_has_event(p.dst, MUX_EVENT_RESET, b));
    g_assert_false(mux_engine_ended(p.src));
    g_assert_false(mux_engine_ended(p.dst));
    mux_pair_cleanup(&p);
}

static void test_late_data_is_dropped(void)
{
    MuxStream *a, *b, *c, *d;
    MuxPair p;

    mux_pair_init(&p, 256 * KIB);
    mux_wire_open(&p.link, SRC, "x", &a, &b);
    mux_copy_pattern(a, SRC, 0, 200 * KIB);
    p.link.piece_max = 100;
    for (int i = 0; i < 20; i++) {
        mux_wire_step(&p.link);
    }
    /* in the middle of a frame, and with more on the way */
    mux_stream_reset(b, 1, "enough");
    mux_stream_release(b);
    p.link.piece_max = 256 * KIB;
    mux_wire_run(&p.link);
    g_assert_cmpint(mux_stream_state(a), ==, MUX_STREAM_RESET);
    mux_stream_release(a);
    mux_wire_open(&p.link, SRC, "y", &c, &d);
    finish_both(&p, c, d);
    mux_pair_cleanup(&p);
}

static void test_named_memory_survives_reset(void)
{
    struct iovec iov[8];
    MuxStream *a, *b;
    uint8_t *wire;
    size_t len = 0;
    unsigned n;
    MuxPair p;

    mux_pair_init(&p, 256 * KIB);
    mux_wire_open(&p.link, SRC, "x", &a, &b);
    mux_copy_pattern(a, SRC, 0, 1000);
    n = mux_engine_tx_want(p.src, iov, 8, 0);
    g_assert_cmpuint(n, ==, 2);
    wire = g_malloc0(1000);
    /* the header arrives, then the receiver names room for the payload */
    mux_feed(p.dst, iov[0].iov_base, iov[0].iov_len, 0);
    n = mux_engine_rx_want(p.dst, iov, 8);
    mux_stream_reset(b, 1, "no");
    mux_stream_release(b);
    for (unsigned i = 0; i < n; i++) {
        memset(iov[i].iov_base, 1, iov[i].iov_len);
        len += iov[i].iov_len;
    }
    g_assert_cmpuint(len, ==, 1000 + MUX_READ_AHEAD);
    mux_engine_rx_done(p.dst, 500, 0);
    mux_feed(p.dst, wire, 500, 0);
    g_assert_false(mux_engine_ended(p.dst));
    g_free(wire);
    mux_pair_cleanup(&p);
}

static void test_release_with_copied_data_on_the_way(void)
{
    MuxStream *a, *b;
    MuxPair p;

    mux_pair_init(&p, 64 * KIB);
    mux_wire_open(&p.link, SRC, "x", &a, &b);
    mux_copy_pattern(a, SRC, 0, 2000);
    p.link.piece_max = 100;
    mux_stream_reset(b, 1, "no");
    /* the RESET comes in while a batch is half sent */
    while (mux_stream_state(a) != MUX_STREAM_RESET) {
        g_assert_true(mux_wire_step(&p.link));
    }
    g_assert_false(mux_engine_tx_idle(p.src));
    mux_stream_release(a);
    mux_wire_run(&p.link);
    mux_assert_nothing_held(p.src);
    g_assert_false(mux_engine_ended(p.dst));
    mux_pair_cleanup(&p);
}

/* It is freed when the transport has let go, and no other stream with it. */
static void test_memory_is_named_for_one_stream(void)
{
    g_autoptr(GByteArray) out = g_byte_array_new();
    MuxStream *a, *b, *c, *d;
    struct iovec iov[8];
    MuxPair p;

    mux_pair_init(&p, 256 * KIB);
    mux_wire_open(&p.link, SRC, "x", &a, &b);
    mux_wire_open(&p.link, SRC, "y", &c, &d);
    mux_copy_pattern(a, SRC, 0, 1000);
    mux_engine_tx_want(p.src, iov, 8, 0);
    mux_feed(p.dst, iov[0].iov_base, iov[0].iov_len, 0);
    g_assert_cmpuint(mux_engine_rx_want(p.dst, iov, 8), ==, 2);
    mux_stream_reset(d, 1, "");
    mux_stream_release(d);
    mux_drain(p.dst, out, 0);
    g_assert_cmpuint(g_hash_table_size(p.dst->all), ==, 1);
    mux_stream_reset(b, 1, "");
    mux_stream_release(b);
    mux_drain(p.dst, out, 0);
    g_assert_cmpuint(g_hash_table_size(p.dst->all), ==, 1);
    memset(iov[0].iov_base, 0, 500);
    mux_engine_rx_done(p.dst, 500, 0);
    mux_assert_nothing_held(p.dst);
    mux_pair_cleanup(&p);
}

/* --- letting go --- */

static void test_release_lingers(void)
{
    MuxStream *a, *b;
    uint64_t got = 0;
    MuxPair p;

    mux_pair_init(&p, 4 * KIB);
    mux_wire_open(&p.link, SRC, "x", &a, &b);
    g_assert_cmpuint(mux_copy_pattern(a, SRC, 0, 3 * KIB), ==, 3 * KIB);
    mux_stream_release(a);
    mux_wire_run(&p.link);
    got += mux_read_pattern(b, SRC, 0, SIZE_MAX);
    g_assert_cmpuint(got, ==, 3 * KIB);
    g_assert_true(mux_stream_rx_fin(b));
    /* what comes for the one who let go is dropped, and credit granted on */
    for (int i = 0; i < 100; i++) {
        g_assert_cmpuint(mux_copy_pattern(b, DST, i * KIB, KIB), ==, KIB);
        mux_wire_run(&p.link);
    }
    mux_stream_fin(b);
    mux_stream_fin_ok(b);
    mux_wire_run(&p.link);
    g_assert_true(mux_stream_fin_acked(b));
    g_assert_cmpint(mux_stream_state(b), ==, MUX_STREAM_FINISHED);
    mux_stream_release(b);
    mux_pair_cleanup(&p);
}

static void test_release_of_unanswered_open_refuses(void)
{
    const char *why;
    GByteArray *sent;
    MuxStream *a;
    MuxHeader h;
    MuxPair p;

    mux_pair_init(&p, 4 * KIB);
    a = mux_engine_open(p.src, "x", &why);
    mux_wire_run(&p.link);
    mux_stream_release(mux_expect_event(p.dst, MUX_EVENT_OPEN));
    mux_wire_run(&p.link);
    g_assert_cmpstr(mux_stream_error(a), ==, "aborted by the "
                    "destination: stream was not accepted");
    sent = p.link.side[DST].sent;
    mux_header_decode(sent->data + sent->len - MUX_HEADER_SIZE -
                      strlen("stream was not accepted"), &h);
    g_assert_cmpuint(h.type, ==, MUX_FRAME_RESET);
    g_assert_cmpuint(h.arg, ==, MUX_CODE_REFUSED);
    mux_pair_cleanup(&p);
}

static void test_no_event_after_release(void)
{
    MuxStream *a, *b;
    MuxEvent event;
    MuxPair p;

    mux_pair_init(&p, 4 * KIB);
    mux_wire_open(&p.link, SRC, "x", &a, &b);
    mux_copy_pattern(a, SRC, 0, 10);
    mux_wire_run(&p.link);
    mux_stream_release(b);
    g_assert_false(mux_engine_next_event(p.dst, &event));
    mux_copy_pattern(a, SRC, 10, 10);
    mux_stream_fin(a);
    mux_wire_run(&p.link);
    g_assert_false(mux_engine_next_event(p.dst, &event));
    mux_pair_cleanup(&p);
}

/* --- the end of the connection --- */

static void test_clean_goaway(void)
{
    MuxStream *a, *b;
    MuxPair p;

    mux_pair_init(&p, 4 * KIB);
    mux_wire_open(&p.link, SRC, "x", &a, &b);
    mux_stream_fin(a);
    mux_stream_fin(b);
    mux_wire_run(&p.link);
    mux_stream_fin_ok(b);
    mux_wire_run(&p.link);
    /* the last FIN_OK is queued, it goes out before the GOAWAY */
    mux_stream_fin_ok(a);
    mux_engine_goaway(p.src, MUX_CODE_OK, NULL);
    g_assert_false(mux_engine_tx_idle(p.src));
    mux_wire_run(&p.link);
    g_assert_cmpint(mux_stream_state(a), ==, MUX_STREAM_FINISHED);
    g_assert_cmpint(mux_stream_state(b), ==, MUX_STREAM_FINISHED);
    for (int i = 0; i < 2; i++) {
        MuxEngine *e = p.link.side[i].e;

        mux_expect_event(e, MUX_EVENT_ENDED);
        g_assert_true(mux_engine_ended(e));
        g_assert_null(mux_engine_error(e));
        g_assert_true(mux_engine_tx_idle(e));
    }
    mux_pair_cleanup(&p);
}

static void test_goaway_ends_every_stream(void)
{
    MuxStream *a, *b;
    const char *why;
    MuxPair p;

    mux_pair_init(&p, 4 * KIB);
    mux_wire_open(&p.link, SRC, "x", &a, &b);
    mux_copy_pattern(b, DST, 0, 100);
    mux_wire_run(&p.link);
    mux_engine_goaway(p.dst, MUX_CODE_ABORTED, "disk full");
    mux_wire_run(&p.link);
    g_assert_cmpstr(mux_engine_error(p.src), ==,
                    "destination ended the connection: disk full");
    g_assert_cmpstr(mux_stream_error(a), ==, mux_engine_error(p.src));
    g_assert_null(mux_engine_open(p.src, "y", &why));
    g_assert_cmpstr(why, ==, mux_engine_error(p.src));
    g_assert_cmpint(mux_stream_state(a), ==, MUX_STREAM_RESET);
    g_assert_cmpint(mux_stream_state(b), ==, MUX_STREAM_RESET);
    /* what came before is not lost */
    g_assert_cmpuint(mux_read_pattern(a, DST, 0, 1000), ==, 100);
    mux_pair_cleanup(&p);
}

static void test_reset_text_before_goaway(void)
{
    MuxStream *a, *b;
    MuxPair p;

    mux_pair_init(&p, 4 * KIB);
    mux_wire_open(&p.link, SRC, "x", &a, &b);
    mux_stream_reset(b, 28, "disk full");
    mux_stream_release(b);
    mux_engine_goaway(p.dst, MUX_CODE_ABORTED, "migration failed");
    mux_wire_run(&p.link);
    g_assert_cmpstr(mux_stream_error(a), ==,
                    "aborted by the destination: disk full (code 28)");
    g_assert_cmpstr(mux_engine_error(p.src), ==, "destination ended the "
                    "connection: migration failed");
    mux_pair_cleanup(&p);
}

static void test_control_before_goaway(void)
{
    MuxStream *a, *b;
    MuxPair p;

    mux_pair_init(&p, 64 * KIB);
    mux_wire_open(&p.link, SRC, "x", &a, &b);
    mux_stream_fin(a);
    mux_wire_run(&p.link);
    mux_stream_fin_ok(b);
    mux_engine_goaway(p.dst, MUX_CODE_ABORTED, "enough");
    g_assert_cmpstr(mux_engine_error(p.dst), ==,
                    "destination ended the connection: enough");
    mux_wire_run(&p.link);
    g_assert_true(mux_stream_fin_acked(a));
    g_assert_cmpint(mux_stream_state(a), ==, MUX_STREAM_RESET);
    mux_pair_cleanup(&p);
}

static void test_end_frees_released_streams(void)
{
    MuxStream *a, *b, *c, *d;
    const char *why;
    MuxPair p;

    mux_pair_init(&p, 64 * KIB);
    mux_wire_open(&p.link, SRC, "x", &a, &b);
    mux_stream_set_urgent(a, true);
    mux_copy_pattern(a, SRC, 0, 100);
    mux_wire_run(&p.link);
    mux_stream_release(a);
    mux_wire_run(&p.link);
    mux_wire_open(&p.link, SRC, "y", &c, &d);
    mux_stream_reset(c, 1, "its RESET waits");
    mux_stream_release(c);
    mux_stream_release(mux_engine_open(p.src, "waits", &why));
    mux_engine_transport_error(p.src, "Broken pipe");
    mux_assert_nothing_held(p.src);
    mux_pair_cleanup(&p);
}

static void test_transport_error(void)
{
    MuxStream *a, *b;
    MuxPair p;

    mux_pair_init(&p, 4 * KIB);
    mux_wire_open(&p.link, SRC, "x", &a, &b);
    mux_copy_pattern(a, SRC, 0, 100);
    mux_wire_run(&p.link);
    mux_engine_transport_error(p.dst, "Connection reset by peer");
    g_assert_cmpstr(mux_engine_error(p.dst), ==, "connection with the source "
                    "failed: Connection reset by peer");
    g_assert_cmpuint(mux_read_pattern(b, SRC, 0, 1000), ==, 100);
    g_assert_true(mux_engine_tx_idle(p.dst));
    mux_stream_release(b);
    mux_pair_cleanup(&p);
}

/* Where the transport is gone, what would have been the last word is, too. */
static void test_no_goaway_without_transport(void)
{
    for (int eof = 0; eof < 2; eof++) {
        struct iovec iov[8];
        MuxStream *a, *b;
        MuxPair p;

        mux_pair_init(&p, 4 * KIB);
        mux_wire_open(&p.link, SRC, "x", &a, &b);
        mux_engine_goaway(p.dst, MUX_CODE_ABORTED, "enough");
        g_assert_false(mux_engine_tx_idle(p.dst));
        g_assert_cmpuint(mux_engine_rx_want(p.dst, iov, 8), ==, 0);
        if (eof) {
            mux_engine_rx_eof(p.dst);
        } else {
            mux_engine_transport_error(p.dst, "Broken pipe");
        }
        g_assert_true(mux_engine_tx_idle(p.dst));
        g_assert_cmpuint(mux_engine_tx_want(p.dst, iov, 8, 0), ==, 0);
        g_assert_cmpstr(mux_engine_error(p.dst), ==,
                        "destination ended the connection: enough");
        mux_pair_cleanup(&p);
    }
}

/* What was on its way in or out when the connection ended makes no event. */
static void test_ended_is_the_last_event(void)
{
    uint8_t data[1000] = { 0 };
    struct iovec iov[8] = { { .iov_base = data, .iov_len = sizeof(data) } };
    MuxStream *a, *b;
    MuxEvent event;
    MuxPair p;

    mux_pair_init(&p, 256 * KIB);
    mux_wire_open(&p.link, SRC, "x", &a, &b);
    mux_stream_tx_offer(a, iov, 1);
    mux_stream_tx_offer(b, iov, 1);
    g_assert_cmpuint(mux_engine_tx_want(p.dst, iov, 8, 0), ==, 2);
    g_assert_cmpuint(mux_engine_tx_want(p.src, iov, 8, 0), ==, 2);
    mux_feed(p.dst, iov[0].iov_base, MUX_HEADER_SIZE, 0);
    g_assert_cmpuint(mux_engine_rx_want(p.dst, iov, 8), ==, 2);
    mux_engine_goaway(p.dst, MUX_CODE_ABORTED, "enough");
    mux_expect_event(p.dst, MUX_EVENT_ENDED);
    memset(iov[0].iov_base, 0, 500);
    mux_engine_rx_done(p.dst, 500, 0);
    mux_engine_tx_done(p.dst, MUX_HEADER_SIZE + sizeof(data));
    g_assert_false(mux_engine_next_event(p.dst, &event));
    g_assert_cmpuint(mux_stream_rx_pending(b), ==, 0);
    g_assert_cmpuint(mux_stream_bytes_received(b), ==, 0);
    g_assert_cmpuint(mux_stream_tx_sent(b), ==, sizeof(data));
    mux_pair_cleanup(&p);
}

/* The rest of a HELLO is no news for who has ended the connection. */
static void test_end_before_the_hello_is_whole(void)
{
    MuxHello hello = {
        .magic = MUX_MAGIC,
        .version_min = MUX_VERSION, .version_max = MUX_VERSION,
        .length = MUX_HELLO_V2_SIZE + 10, .max_frame = MUX_FRAME_BULK,
        .max_streams = 1, .role = MUX_ROLE_SOURCE,
    };
    uint8_t buf[MUX_HELLO_V2_SIZE];
    struct iovec iov[3];
    MuxConfig config;
    MuxEvent event;
    MuxEngine *e;

    mux_config_default(&config, MUX_ROLE_DESTINATION);
    e = mux_engine_new(&config, 0);
    mux_hello_encode(&hello, buf);
    mux_feed(e, buf, sizeof(buf), 0);
    g_assert_cmpuint(mux_engine_rx_want(e, iov, 3), ==, 2);
    mux_engine_goaway(e, MUX_CODE_ABORTED, "enough");
    mux_engine_rx_done(e, 10, 0);
    g_assert_true(mux_engine_next_event(e, &event));
    g_assert_cmpint(event.type, ==, MUX_EVENT_ENDED);
    g_assert_false(mux_engine_next_event(e, &event));
    mux_engine_free(e);
}

static void test_eof_names_the_stream(void)
{
    MuxStream *a, *b;
    MuxPair p;

    mux_pair_init(&p, 4 * KIB);
    mux_wire_open(&p.link, SRC, "nbd-disk0", &a, &b);
    mux_engine_rx_eof(p.dst);
    g_assert_cmpstr(mux_engine_error(p.dst), ==, "source closed the "
                    "connection before stream 'nbd-disk0' was finished");
    g_assert_cmpstr(mux_stream_error(b), ==, mux_engine_error(p.dst));
    mux_pair_cleanup(&p);
}

static void test_eof_without_streams_is_clean(void)
{
    MuxStream *a, *b;
    MuxPair p;

    mux_pair_init(&p, 4 * KIB);
    mux_wire_open(&p.link, SRC, "x", &a, &b);
    finish_both(&p, a, b);
    mux_engine_rx_eof(p.dst);
    g_assert_true(mux_engine_ended(p.dst));
    g_assert_null(mux_engine_error(p.dst));
    mux_pair_cleanup(&p);
}

/* Nothing is left but what is in a batch that went out in part. */
static void assert_only_batch_held(MuxEngine *e)
{
    GHashTableIter iter;
    gpointer s;

    if (!g_hash_table_size(e->all)) {
        mux_assert_nothing_held(e);
        return;
    }
    g_hash_table_iter_init(&iter, e->all);
    while (g_hash_table_iter_next(&iter, &s, NULL)) {
        g_assert_cmpuint(((MuxStream *)s)->batch_refs, >, 0);
    }
    g_assert_cmpuint(e->batch.first, <, e->batch.niov);
}

/* Both sides have their say; the transport ends wherever @link says. */
static void cut_conversation(MuxWire *link)
{
    static const char *const name[] = { "main", "nbd-disk0", "nbd-disk1" };
    MuxStream *s[2][3] = { 0 };
    int ended[2] = { 0 };
    const char *why;
    MuxEvent event;
    bool active = true;

    for (int i = 0; i < 3; i++) {
        s[SRC][i] = mux_engine_open(link->side[SRC].e, name[i], &why);
    }
    while (active) {
        active = mux_wire_step(link);
        for (int side = 0; side < 2; side++) {
            while (mux_engine_next_event(link->side[side].e, &event)) {
                MuxStream *t = event.stream;

                active = true;
                switch (event.type) {
                case MUX_EVENT_OPEN:
                    s[side][mux_stream_id(t) / 2] = t;
                    mux_stream_accept(t);
                    mux_copy_pattern(t, side, 0, 30);
                    mux_stream_fin(t);
                    break;
                case MUX_EVENT_OPEN_OK:
                    mux_copy_pattern(t, side, 0, 30);
                    if (t == s[SRC][2]) {
                        mux_stream_reset(t, 1, "stop");
                    }
                    mux_stream_fin(t);
                    break;
                case MUX_EVENT_FIN:
                    mux_stream_fin_ok(t);
                    break;
                case MUX_EVENT_ENDED:
                    ended[side]++;
                    break;
                default:
                    break;
                }
            }
        }
        if (!active && !mux_engine_ended(link->side[SRC].e)) {
            mux_engine_goaway(link->side[SRC].e, MUX_CODE_OK, NULL);
            active = true;
        }
    }
    for (int side = 0; side < 2; side++) {
        g_assert_cmpint(ended[side], ==, 1);
        for (int i = 0; i < 3 && s[side][i]; i++) {
            MuxStreamState state = mux_stream_state(s[side][i]);

            g_assert_true(state == MUX_STREAM_FINISHED ||
                          state == MUX_STREAM_RESET);
            g_assert_cmpint(state == MUX_STREAM_RESET, ==,
                            mux_stream_error(s[side][i]) != NULL);
            mux_stream_release(s[side][i]);
        }
        assert_only_batch_held(link->side[side].e);
    }
}

static void test_cut_at_every_byte(void)
{
    size_t total[2];
    MuxWire link;

    mux_wire_init(&link, 3, NULL, NULL);
    cut_conversation(&link);
    total[SRC] = link.side[SRC].sent->len;
    total[DST] = link.side[DST].sent->len;
    mux_wire_cleanup(&link);
    g_assert_cmpuint(total[SRC], >, 300);
    for (int side = 0; side < 2; side++) {
        for (size_t cut = 0; cut < total[side]; cut++) {
            mux_wire_init(&link, 3 + cut, NULL, NULL);
            link.piece_max = 50;
            link.side[side].cut = cut;
            cut_conversation(&link);
            mux_wire_cleanup(&link);
        }
    }
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);

#define ADD(path, func) g_test_add_func("/mux/close/" path, func)
    ADD("finish-round-trip", test_finish_round_trip);
    ADD("fin-ok-needs-fin", test_fin_ok_needs_fin);
    ADD("fin-ok-may-be-decided-before-fin",
        test_fin_ok_may_be_decided_before_fin);
    ADD("reset-carries-text", test_reset_carries_text);
    ADD("resets-cross", test_resets_cross);
    ADD("late-data-is-dropped", test_late_data_is_dropped);
    ADD("named-memory-survives-reset", test_named_memory_survives_reset);
    ADD("release-with-copied-data-on-the-way",
        test_release_with_copied_data_on_the_way);
    ADD("memory-is-named-for-one-stream",
        test_memory_is_named_for_one_stream);
    ADD("release-lingers", test_release_lingers);
    ADD("release-of-unanswered-open-refuses",
        test_release_of_unanswered_open_refuses);
    ADD("no-event-after-release", test_no_event_after_release);
    ADD("clean-goaway", test_clean_goaway);
    ADD("goaway-ends-every-stream", test_goaway_ends_every_stream);
    ADD("reset-text-before-goaway", test_reset_text_before_goaway);
    ADD("control-before-goaway", test_control_before_goaway);
    ADD("end-frees-released-streams", test_end_frees_released_streams);
    ADD("transport-error", test_transport_error);
    ADD("no-goaway-without-transport", test_no_goaway_without_transport);
    ADD("ended-is-the-last-event", test_ended_is_the_last_event);
    ADD("end-before-the-hello-is-whole", test_end_before_the_hello_is_whole);
    ADD("eof-names-the-stream", test_eof_names_the_stream);
    ADD("eof-without-streams-is-clean", test_eof_without_streams_is_clean);
    ADD("cut-at-every-byte", test_cut_at_every_byte);
#undef ADD

    return g_test_run();
}
