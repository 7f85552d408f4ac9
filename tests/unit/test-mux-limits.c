/*
 * Tests of the migration multiplexer's engine: limits on what a peer may do
 *
 * Each limit is reached, which does nothing, and then exceeded by one.  The
 * engine under test is the destination, the test is its peer.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/bswap.h"
#include "migration/mux/engine-int.h"
#include "mux-engine-helpers.h"

#define NS_PER_S    (1000 * 1000 * 1000LL)
#define WINDOW      1000

typedef struct Peer {
    MuxEngine *e;
    int64_t now;                /* ns */
} Peer;

static const MuxHello good_hello = {
    .magic = MUX_MAGIC,
    .version_min = MUX_VERSION,
    .version_max = MUX_VERSION,
    .length = MUX_HELLO_V2_SIZE,
    .max_frame = MUX_FRAME_BULK,
    .max_streams = MUX_MAX_STREAMS,
    .role = MUX_ROLE_SOURCE,
};

static void say_hello(Peer *p, const MuxHello *hello)
{
    uint8_t buf[MUX_HELLO_V2_SIZE];

    mux_hello_encode(hello, buf);
    mux_feed(p->e, buf, sizeof(buf), p->now);
}

static void peer_connect(Peer *p)
{
    MuxConfig config;

    mux_config_default(&config, MUX_ROLE_DESTINATION);
    config.window = config.window_max = WINDOW;
    *p = (Peer) { .e = mux_engine_new(&config, 0) };
}

static void peer_init(Peer *p)
{
    peer_connect(p);
    say_hello(p, &good_hello);
}

static void peer_cleanup(Peer *p)
{
    mux_engine_free(p->e);
}

/* What the engine sends is thrown away. */
static void read_all(Peer *p)
{
    g_autoptr(GByteArray) out = g_byte_array_new();

    mux_drain(p->e, out, p->now);
}

static void say(Peer *p, uint8_t type, uint32_t id, uint32_t arg,
                const void *payload, size_t len)
{
    MuxHeader h = { .type = type, .stream = id, .length = len, .arg = arg };
    uint8_t buf[MUX_HEADER_SIZE];

    mux_header_encode(&h, buf);
    mux_feed(p->e, buf, sizeof(buf), p->now);
    mux_feed(p->e, payload, len, p->now);
}

static void say_u64(Peer *p, MuxFrameType type, uint32_t id, uint64_t value)
{
    uint8_t buf[8];

    stq_be_p(buf, value);
    say(p, type, id, 0, buf, sizeof(buf));
}

static void say_data(Peer *p, uint32_t id, uint64_t offset, size_t len)
{
    g_autofree uint8_t *data = g_malloc0(len);

    say(p, MUX_FRAME_DATA, id, offset, data, len);
}

static void say_open(Peer *p, uint32_t id, size_t name_len)
{
    uint8_t buf[MUX_OPEN_SIZE + MUX_NAME_MAX + 1] = { 0 };

    stq_be_p(buf, WINDOW);
    stw_be_p(buf + 8, name_len);
    memset(buf + MUX_OPEN_SIZE, 'x', name_len);
    say(p, MUX_FRAME_OPEN, id, 0, buf, MUX_OPEN_SIZE + name_len);
}

static void say_text(Peer *p, MuxFrameType type, uint32_t id, uint32_t code,
                     size_t len)
{
    g_autofree char *text = g_strnfill(len, 't');

    say(p, type, id, code, text, len);
}

/* The next stream that the peer opened, accepted. */
static MuxStream *accept_stream(Peer *p)
{
    MuxStream *s = mux_expect_event(p->e, MUX_EVENT_OPEN);

    mux_stream_accept(s);
    read_all(p);
    return s;
}

static MuxStream *open_stream(Peer *p, uint32_t id)
{
    say_open(p, id, 1);
    return accept_stream(p);
}

#define expect_fine(p)  g_assert_cmpstr(mux_engine_error((p)->e), ==, NULL)

static void expect_goaway(Peer *p, uint32_t code, const char *text)
{
    g_autoptr(GByteArray) out = g_byte_array_new();
    size_t len = strlen(text);
    MuxHeader h;

    g_assert_cmpstr(mux_engine_error(p->e), ==, text);
    mux_drain(p->e, out, p->now);
    g_assert_cmpuint(out->len, >=, MUX_HEADER_SIZE + len);
    mux_header_decode(out->data + out->len - len - MUX_HEADER_SIZE, &h);
    g_assert_cmpuint(h.type, ==, MUX_FRAME_GOAWAY);
    g_assert_cmpuint(h.stream, ==, 0);
    g_assert_cmpuint(h.arg, ==, code);
    g_assert_cmpuint(h.length, ==, len);
    g_assert_cmpmem(out->data + out->len - len, len, text, len);
    g_assert_true(mux_engine_tx_idle(p->e));
}

/* --- HELLO --- */

static void hello_with(size_t length, uint32_t max_frame, const char *text)
{
    MuxHello hello = good_hello;
    Peer p;

    hello.length = length;
    hello.max_frame = max_frame;
    peer_connect(&p);
    say_hello(&p, &hello);
    if (text) {
        expect_goaway(&p, MUX_CODE_PROTOCOL, text);
    } else {
        g_autofree uint8_t *tail = g_malloc0(length);

        mux_feed(p.e, tail, length - MUX_HELLO_V2_SIZE, 0);
        open_stream(&p, 1);
        expect_fine(&p);
    }
    peer_cleanup(&p);
}

static void test_hello_length(void)
{
    hello_with(60, 4096, NULL);
    hello_with(59, 4096, "source sent a HELLO with a bad length");
    hello_with(39, 4096, "source sent a HELLO with a bad length");
    hello_with(4096, 4096, NULL);
    hello_with(4097, 4096, "source sent a HELLO with a bad length");
}

static void test_hello_frame_limit(void)
{
    hello_with(60, 4096, NULL);
    hello_with(60, 4095, "source sent a HELLO with a bad frame limit");
    hello_with(60, UINT32_MAX, NULL);
}

/* What the first 40 bytes of a HELLO state holds at once. */
static void test_hello_streams(void)
{
    MuxHello hello = good_hello;
    uint8_t buf[MUX_HELLO_V2_SIZE];
    const char *why;
    Peer p;

    hello.max_streams = 0;
    mux_hello_encode(&hello, buf);
    peer_connect(&p);
    mux_feed(p.e, buf, 40, 0);
    g_assert_null(mux_engine_open(p.e, "x", &why));
    g_assert_cmpstr(why, ==, "too many streams are open on this connection");
    mux_feed(p.e, buf + 40, 20, 0);
    expect_fine(&p);
    peer_cleanup(&p);
}

static void test_hello_time(void)
{
    Peer p;

    peer_connect(&p);
    p.now = 30 * NS_PER_S - 1;
    mux_engine_timeout(p.e, p.now);
    expect_fine(&p);
    p.now++;
    mux_engine_timeout(p.e, p.now);
    expect_goaway(&p, MUX_CODE_TIMEOUT, "source sent no HELLO within 30 s "
                  "(does it support multiplexed migration?)");
    peer_cleanup(&p);
}

/* --- OPEN --- */

static void test_streams_at_once(void)
{
    MuxStream *first = NULL;
    Peer p;

    peer_init(&p);
    for (int i = 0; i < MUX_MAX_STREAMS; i++) {
        MuxStream *s = open_stream(&p, 2 * i + 1);

        first = first ?: s;
    }
    expect_fine(&p);
    /* one that has ended makes room for another */
    mux_stream_reset(first, 1, "");
    open_stream(&p, 1025);
    expect_fine(&p);
    say_open(&p, 1027, 1);
    expect_goaway(&p, MUX_CODE_LIMIT, "source sent OPEN on stream id 1027 "
                  "with 512 open, destination accepts 512");
    peer_cleanup(&p);
}

static void test_unanswered_opens(void)
{
    MuxStream *s;
    Peer p;

    peer_init(&p);
    for (int i = 0; i < MUX_UNANSWERED_OPENS; i++) {
        say_open(&p, 2 * i + 1, 1);
    }
    expect_fine(&p);
    s = mux_expect_event(p.e, MUX_EVENT_OPEN);
    mux_stream_reset(s, MUX_CODE_REFUSED, "");
    say_open(&p, 33, 1);
    expect_fine(&p);
    say_open(&p, 35, 1);
    expect_goaway(&p, MUX_CODE_LIMIT, "source sent OPEN on stream id 35 "
                  "with 16 OPENs unanswered, the limit");
    peer_cleanup(&p);
}

/* Rapid reset: by the peer itself, or provoked. */
static void open_and_reset(bool by_peer)
{
    Peer p;

    peer_init(&p);
    for (int i = 0; i < MUX_LIFETIME_STREAMS; i++) {
        MuxStream *s;

        say_open(&p, 2 * i + 1, 1);
        s = mux_expect_event(p.e, MUX_EVENT_OPEN);
        if (by_peer) {
            say_text(&p, MUX_FRAME_RESET, 2 * i + 1, 1, 0);
        } else {
            mux_stream_reset(s, MUX_CODE_REFUSED, "no");
        }
        mux_stream_release(s);
        read_all(&p);
    }
    expect_fine(&p);
    g_assert_cmpuint(g_hash_table_size(p.e->all), ==, 0);
    g_assert_cmpuint(p.e->pool.nused, ==, 0);
    say_open(&p, 8193, 1);
    expect_goaway(&p, MUX_CODE_LIMIT, "source sent OPEN on stream id 8193 "
                  "after 4096 streams, the limit for a connection");
    peer_cleanup(&p);
}

static void test_streams_in_a_lifetime(void)
{
    open_and_reset(true);
    open_and_reset(false);
}

static void test_name(void)
{
    MuxStream *s;
    Peer p;

    peer_init(&p);
    say_open(&p, 1, MUX_NAME_MAX);
    s = mux_expect_event(p.e, MUX_EVENT_OPEN);
    g_assert_cmpuint(strlen(mux_stream_name(s)), ==, MUX_NAME_MAX);
    say_open(&p, 3, 1);
    expect_fine(&p);
    say_open(&p, 5, MUX_NAME_MAX + 1);
    expect_goaway(&p, MUX_CODE_PROTOCOL, "source sent OPEN on stream id 5 "
                  "with a bad length of 268 bytes");
    peer_cleanup(&p);

    peer_init(&p);
    say_open(&p, 1, 0);
    expect_goaway(&p, MUX_CODE_PROTOCOL, "source sent OPEN on stream id 1 "
                  "with a bad length of 12 bytes");
    peer_cleanup(&p);
}

/* --- texts --- */

static void test_reset_text(void)
{
    g_autofree char *text = g_strnfill(MUX_TEXT_MAX, 't');
    g_autofree char *error =
        g_strdup_printf("aborted by the source: %s", text);
    MuxStream *s;
    Peer p;

    peer_init(&p);
    s = open_stream(&p, 1);
    say_text(&p, MUX_FRAME_RESET, 1, MUX_CODE_ABORTED, MUX_TEXT_MAX);
    expect_fine(&p);
    g_assert_cmpstr(mux_stream_error(s), ==, error);
    open_stream(&p, 3);
    say_text(&p, MUX_FRAME_RESET, 3, MUX_CODE_ABORTED, MUX_TEXT_MAX + 1);
    expect_goaway(&p, MUX_CODE_PROTOCOL, "source sent RESET on stream 'x' "
                  "(id 3) with a bad length of 1025 bytes");
    peer_cleanup(&p);
}

static void test_goaway_text(void)
{
    Peer p;

    peer_init(&p);
    say_text(&p, MUX_FRAME_GOAWAY, 0, MUX_CODE_OK, MUX_TEXT_MAX);
    g_assert_true(mux_engine_ended(p.e));
    expect_fine(&p);
    peer_cleanup(&p);

    peer_init(&p);
    say_text(&p, MUX_FRAME_GOAWAY, 0, MUX_CODE_OK, MUX_TEXT_MAX + 1);
    expect_goaway(&p, MUX_CODE_PROTOCOL,
                  "source sent GOAWAY with a bad length of 1025 bytes");
    peer_cleanup(&p);
}

static void test_own_texts_are_cut(void)
{
    g_autofree char *text = g_strnfill(MUX_TEXT_MAX + 1, 'u');
    g_autofree char *cut = g_strnfill(MUX_TEXT_MAX, 'u');
    MuxStream *a, *b;
    char *end;
    MuxPair p;

    mux_pair_init(&p, WINDOW);
    mux_wire_open(&p.link, SRC, "x", &a, &b);
    mux_stream_reset(a, MUX_CODE_ABORTED, text);
    mux_engine_goaway(p.src, MUX_CODE_ABORTED, text);
    mux_wire_run(&p.link);
    end = strrchr(mux_stream_error(b), ' ') + 1;
    g_assert_cmpstr(end, ==, cut);
    end = strrchr(mux_engine_error(p.dst), ' ') + 1;
    g_assert_cmpstr(end, ==, cut);
    mux_pair_cleanup(&p);
}

/* --- data --- */

static void test_frame_length(void)
{
    MuxConfig config;
    Peer p = { 0 };

    mux_config_default(&config, MUX_ROLE_DESTINATION);
    config.max_frame = 5000;
    p.e = mux_engine_new(&config, 0);
    say_hello(&p, &good_hello);
    open_stream(&p, 1);
    say_data(&p, 1, 0, 5000);
    expect_fine(&p);
    say_data(&p, 1, 5000, 5001);
    expect_goaway(&p, MUX_CODE_LIMIT, "source sent DATA on stream 'x' (id 1) "
                  "with 5001 bytes, destination accepts 5000");
    peer_cleanup(&p);
}

static void test_skipped_frame_length(void)
{
    static const uint8_t payload[MUX_FRAME_BULK + 1];
    Peer p;

    peer_init(&p);
    say(&p, 0x80, 0, 0, payload, MUX_FRAME_BULK);
    expect_fine(&p);
    say(&p, 0xff, 0, 0, payload, MUX_FRAME_BULK + 1);
    expect_goaway(&p, MUX_CODE_LIMIT, "source sent a frame of type 0xff with "
                  "262145 bytes, destination accepts 262144");
    peer_cleanup(&p);
}

static void test_credit(void)
{
    MuxStream *s;
    Peer p;

    peer_init(&p);
    s = open_stream(&p, 1);
    say_data(&p, 1, 0, WINDOW);
    expect_fine(&p);
    mux_stream_rx_consume(s, WINDOW / 2);
    read_all(&p);
    say_data(&p, 1, WINDOW, WINDOW / 2);
    expect_fine(&p);
    say_data(&p, 1, WINDOW + WINDOW / 2, 1);
    expect_goaway(&p, MUX_CODE_LIMIT, "source sent DATA on stream 'x' (id 1) "
                  "beyond its credit: 1 bytes at offset 1500, limit 1500");
    peer_cleanup(&p);
}

/* The end of a stream does not give its credit back. */
static void test_late_data_is_charged(void)
{
    MuxStream *s;
    Peer p;

    peer_init(&p);
    s = open_stream(&p, 1);
    say_data(&p, 1, 0, 300);
    mux_stream_reset(s, 1, "");
    mux_stream_release(s);
    read_all(&p);
    say_data(&p, 1, 300, WINDOW - 300);
    expect_fine(&p);
    say_data(&p, 1, WINDOW, 1);
    expect_goaway(&p, MUX_CODE_LIMIT, "source sent DATA on stream id 1 "
                  "beyond its credit: 1 bytes at offset 1000, limit 1000");
    peer_cleanup(&p);
}

/* Each side has aborted the stream before it knew of the other's RESET. */
static void test_crossing_resets(void)
{
    g_autoptr(GByteArray) out = g_byte_array_new();
    MuxStream *s;
    MuxEvent event;
    Peer p;

    peer_init(&p);
    s = open_stream(&p, 1);
    mux_stream_reset(s, 7, "ours");
    mux_drain(p.e, out, 0);
    g_assert_cmpuint(out->len, ==, MUX_HEADER_SIZE + 4);
    g_assert_cmpuint(out->data[0], ==, MUX_FRAME_RESET);
    g_assert_cmpuint(out->data[15], ==, 7);
    say_text(&p, MUX_FRAME_RESET, 1, 8, 3);
    expect_fine(&p);
    /* neither is answered, and the first reason stands */
    g_assert_true(mux_engine_tx_idle(p.e));
    g_assert_false(mux_engine_next_event(p.e, &event));
    g_assert_cmpstr(mux_stream_error(s), ==,
                    "aborted by the destination: ours");
    say_text(&p, MUX_FRAME_RESET, 3, 8, 3);
    expect_goaway(&p, MUX_CODE_PROTOCOL, "source sent RESET on stream id 3 "
                  "which was never opened");
    peer_cleanup(&p);
}

/* --- PING --- */

static void test_unanswered_pings(void)
{
    g_autoptr(GByteArray) out = g_byte_array_new();
    Peer p;

    peer_init(&p);
    read_all(&p);
    /* a peer that asks and never reads */
    for (int i = 0; i < MUX_UNANSWERED_PINGS; i++) {
        say_u64(&p, MUX_FRAME_PING, 0, i);
    }
    expect_fine(&p);
    mux_drain(p.e, out, 0);
    g_assert_cmpuint(out->len, ==, MUX_UNANSWERED_PINGS * 24);
    for (int i = 0; i < MUX_UNANSWERED_PINGS; i++) {
        say_u64(&p, MUX_FRAME_PING, 0, i);
    }
    expect_fine(&p);
    say_u64(&p, MUX_FRAME_PING, 0, 16);
    expect_goaway(&p, MUX_CODE_LIMIT,
                  "source sent PING with 16 PINGs unanswered, the limit");
    peer_cleanup(&p);
}

/* --- control flood --- */

static void flood_ping(Peer *p)
{
    say_u64(p, MUX_FRAME_PING, 0, 1);
}

static void flood_window(Peer *p)
{
    say_u64(p, MUX_FRAME_WINDOW, 1, 1);
}

static void flood_unknown(Peer *p)
{
    say(p, 0x90, 0, 0, NULL, 0);
}

static void flood_retired(Peer *p)
{
    say_text(p, MUX_FRAME_RESET, 3, 1, 0);
}

/* Streams 1, open, and 3, retired: three control frames have come. */
static void flood_init(Peer *p)
{
    peer_init(p);
    open_stream(p, 1);
    mux_stream_reset(open_stream(p, 3), 1, "");
    read_all(p);
    flood_ping(p);
}

static void flood(Peer *p, void (*frame)(Peer *), unsigned n)
{
    for (unsigned i = 0; i < n; i++) {
        frame(p);
        read_all(p);
        expect_fine(p);
    }
}

static void test_control_flood(void)
{
    static void (*const frame[])(Peer *) = {
        flood_ping, flood_window, flood_unknown, flood_retired,
    };
    Peer p;

    for (int i = 0; i < G_N_ELEMENTS(frame); i++) {
        flood_init(&p);
        flood(&p, frame[i], 65536 - 3);
        frame[i](&p);
        expect_goaway(&p, MUX_CODE_LIMIT, "source sent more than 65536 "
                      "control frames, the limit by now");
        peer_cleanup(&p);
    }
}

static void test_control_flood_limit_grows_with_time(void)
{
    Peer p;

    flood_init(&p);
    flood(&p, flood_window, 65536 - 3);
    p.now = NS_PER_S - 1;
    flood(&p, flood_window, 99);
    p.now = NS_PER_S;
    flood(&p, flood_window, 1);
    flood_window(&p);
    expect_goaway(&p, MUX_CODE_LIMIT, "source sent more than 65636 "
                  "control frames, the limit by now");
    peer_cleanup(&p);
}

/* Only the connection's own time counts, whatever the clock shows. */
static void test_control_flood_limit_starts_with_connection(void)
{
    MuxConfig config;
    Peer p = { .now = 1000 * NS_PER_S };

    mux_config_default(&config, MUX_ROLE_DESTINATION);
    p.e = mux_engine_new(&config, p.now);
    say_hello(&p, &good_hello);
    flood(&p, flood_unknown, 65536);
    flood_unknown(&p);
    expect_goaway(&p, MUX_CODE_LIMIT, "source sent more than 65536 "
                  "control frames, the limit by now");
    peer_cleanup(&p);
}

static void test_control_flood_limit_grows_with_data(void)
{
    static const uint8_t data[100];
    struct iovec iov = { .iov_base = (void *)data, .iov_len = 100 };
    MuxConfig config;
    MuxStream *s;
    Peer p = { 0 };

    mux_config_default(&config, MUX_ROLE_DESTINATION);
    config.window_max = config.window;
    p.e = mux_engine_new(&config, 0);
    say_hello(&p, &good_hello);
    s = open_stream(&p, 1);
    flood(&p, flood_unknown, 65536 - 1);
    /* two for a frame of either direction, one for each 4 KiB in it */
    say_data(&p, 1, 0, 4095);
    flood(&p, flood_unknown, 2);
    say_data(&p, 1, 4095, 4096);
    flood(&p, flood_unknown, 3);
    mux_stream_tx_offer(s, &iov, 1);
    read_all(&p);
    flood(&p, flood_unknown, 2);
    flood_unknown(&p);
    expect_goaway(&p, MUX_CODE_LIMIT, "source sent more than 65543 "
                  "control frames, the limit by now");
    mux_stream_tx_withdraw(s);
    peer_cleanup(&p);
}

/* The last frame tells why, whatever was before. */
static void test_control_flood_takes_goaway(void)
{
    Peer p;

    flood_init(&p);
    flood(&p, flood_window, 65536 - 3);
    say_text(&p, MUX_FRAME_GOAWAY, 0, MUX_CODE_ABORTED, 3);
    g_assert_cmpstr(mux_engine_error(p.e), ==,
                    "source ended the connection: ttt");
    peer_cleanup(&p);
}

/* --- we keep to them ourselves --- */

/* Frames that one side has sent, as far as they matter for the limit */
typedef struct Sent {
    unsigned windows;
    unsigned others;            /* that count, PINGs left out */
    uint64_t earned;            /* by DATA */
} Sent;

static Sent count_sent(MuxPair *p, int side)
{
    GByteArray *sent = p->link.side[side].sent;
    Sent n = { 0 };

    for (size_t i = MUX_HELLO_V2_SIZE; i < sent->len; ) {
        MuxHeader h;

        mux_header_decode(sent->data + i, &h);
        switch (h.type) {
        case MUX_FRAME_DATA:
            n.earned += MUX_CONTROL_PER_DATA(h.length);
            break;
        case MUX_FRAME_WINDOW:
            n.windows++;
            break;
        case MUX_FRAME_PING:
        case MUX_FRAME_PONG:
            break;
        default:
            n.others++;
        }
        i += MUX_HEADER_SIZE + h.length;
    }
    return n;
}

static void random_life(MuxPair *p)
{
    GRand *rand = p->link.rand;
    int opener = g_rand_int_range(rand, 0, 2);
    MuxStream *s[2];

    mux_wire_open(&p->link, opener, "x", &s[opener], &s[!opener]);
    for (int i = 0; i < 12; i++) {
        int side = g_rand_int_range(rand, 0, 2);
        static const uint8_t data[200 * KIB];
        struct iovec iov = {
            .iov_base = (void *)data,
            .iov_len = g_rand_int_range(rand, 0, sizeof(data)),
        };

        switch (g_rand_int_range(rand, 0, 8)) {
        case 0:
            mux_stream_fin(s[side]);
            break;
        case 1:
            mux_stream_fin_ok(s[side]);
            break;
        case 2:
            mux_stream_reset(s[side], 1, "");
            break;
        case 3:
            mux_engine_ping(p->link.side[side].e);
            break;
        default:
            mux_stream_tx_copy(s[side], &iov, 1);
            mux_stream_rx_consume(s[!side],
                                  mux_stream_rx_pending(s[!side]) / 2);
            break;
        }
        if (g_rand_boolean(rand)) {
            mux_wire_run(&p->link);
        }
    }
    mux_stream_release(s[SRC]);
    mux_stream_release(s[DST]);
}

/*
 * All the streams that a connection may have in its lifetime, and all the while
 * the clock all but stands still.
 */
static void own_control_frames(uint32_t seed, uint64_t window)
{
    MuxPair p;

    mux_pair_init(&p, window);
    g_rand_set_seed(p.link.rand, seed);
    p.link.piece_max = SIZE_MAX;
    while (p.src->local.lifetime < MUX_LIFETIME_STREAMS &&
           p.dst->local.lifetime < MUX_LIFETIME_STREAMS) {
        random_life(&p);
    }
    mux_wire_run(&p.link);
    g_assert_null(mux_engine_error(p.src));
    g_assert_null(mux_engine_error(p.dst));
    for (int side = 0; side < 2; side++) {
        Sent ours = count_sent(&p, side), theirs = count_sent(&p, !side);

        g_test_message("side %d: %u WINDOW, %" PRIu64 " earned, %u others",
                       side, ours.windows, theirs.earned, ours.others);
        g_assert_cmpuint(ours.windows, >, 100);
        g_assert_cmpuint(ours.windows, <=, theirs.earned);
        g_assert_cmpuint(ours.others, >, MUX_CONTROL_BURST / 8);
        g_assert_cmpuint(ours.others, <=, MUX_CONTROL_BURST / 2);
    }
    mux_pair_cleanup(&p);
}

static void test_own_control_frames_stay_below_the_limit(void)
{
    uint32_t seed = mux_test_seed(30);

    own_control_frames(seed, 5);
    own_control_frames(seed + 1, 1000);
    own_control_frames(seed + 2, MUX_WINDOW_SHARE);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);

#define ADD(path, func) g_test_add_func("/mux/limits/" path, func)
    ADD("hello-length", test_hello_length);
    ADD("hello-frame-limit", test_hello_frame_limit);
    ADD("hello-streams", test_hello_streams);
    ADD("hello-time", test_hello_time);
    ADD("streams-at-once", test_streams_at_once);
    ADD("unanswered-opens", test_unanswered_opens);
    ADD("streams-in-a-lifetime", test_streams_in_a_lifetime);
    ADD("name", test_name);
    ADD("reset-text", test_reset_text);
    ADD("goaway-text", test_goaway_text);
    ADD("own-texts-are-cut", test_own_texts_are_cut);
    ADD("frame-length", test_frame_length);
    ADD("skipped-frame-length", test_skipped_frame_length);
    ADD("credit", test_credit);
    ADD("late-data-is-charged", test_late_data_is_charged);
    ADD("crossing-resets", test_crossing_resets);
    ADD("unanswered-pings", test_unanswered_pings);
    ADD("control-flood", test_control_flood);
    ADD("control-flood-limit-grows-with-time",
        test_control_flood_limit_grows_with_time);
    ADD("control-flood-limit-starts-with-connection",
        test_control_flood_limit_starts_with_connection);
    ADD("control-flood-limit-grows-with-data",
        test_control_flood_limit_grows_with_data);
    ADD("control-flood-takes-goaway", test_control_flood_takes_goaway);
    ADD("own-control-frames-stay-below-the-limit",
        test_own_control_frames_stay_below_the_limit);
#undef ADD

    return g_test_run();
}
