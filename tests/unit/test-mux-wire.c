/*
 * Tests of the migration multiplexer's engine against bytes written by hand
 *
 * Tables for how it takes what a peer may send; what it sends itself is held
 * against the specification in test-mux-vectors.c.  All types, states and
 * lengths are tried in test-mux-frame-states.c.  The engine under test is the
 * destination unless said otherwise; the bytes play the source.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "migration/mux/engine-limits.h"
#include "migration/mux/frame.h"
#include "mux-engine-helpers.h"

/* Fields of frames, in hexadecimal. */
#define HELLO_WITH(versions, length, required, max_frame, role) \
    "514d5558 " versions " " length " 0000000000000000 " required " " \
    max_frame " 00000200 " role " "
#define SESSION(connection) \
    "000102030405060708090a0b0c0d0e0f " connection " "
#define SOURCE_HELLO \
    HELLO_WITH("0002 0002", "0000003c", "0000000000000000", "00040000", \
               "00000001") SESSION("00000000")
/* Of version 1, which has ended there; as it was recorded */
#define HELLO_V1(role) \
    "514d5558 0001 0001 00000028 0000000000000000 0000000000000000 " \
    "00040000 00000200 " role " "
#define FRAME(type, id, length, arg) \
    type "00 0000 " id " " length " " arg " "
#define U64_FRAME(type, id, value) \
    FRAME(type, id, "00000008", "00000000") "00000000 " value " "
#define ID0     "00000000"
#define ID1     "00000001"
#define ID2     "00000002"
#define ID3     "00000003"
#define ID5     "00000005"
/* a stream with a name of one character and a credit of 100 bytes for us */
#define OPEN(id, name) \
    FRAME("01", id, "0000000d", "00000000") \
    "00000000 00000064 0001 0000 " name " "
#define OPEN1   OPEN(ID1, "61")
#define OPEN8(tens) \
    OPEN("000000" tens "1", "61") OPEN("000000" tens "3", "61") \
    OPEN("000000" tens "5", "61") OPEN("000000" tens "7", "61") \
    OPEN("000000" tens "9", "61") OPEN("000000" tens "b", "61") \
    OPEN("000000" tens "d", "61") OPEN("000000" tens "f", "61")
#define DATA1(id, offset) \
    FRAME("03", id, "00000001", offset) "ff "

enum {
    ACCEPT = 1 << 0,            /* accept the peer's streams */
    OURS = 1 << 1,              /* open stream 2 "ours" */
    RESET = 1 << 2,             /* then abort the peer's streams */
    FIN = 1 << 3,               /* then finish them */
    FIN_OK = 1 << 4,            /* then acknowledge the peer's FIN */
};

static void feed_hex(MuxEngine *e, const char *hex)
{
    g_autoptr(GByteArray) in = mux_unhex(hex);

    mux_feed(e, in->data, in->len, 0);
}

static MuxEngine *engine_new(MuxRole role)
{
    MuxConfig config;

    mux_config_default(&config, role);
    config.window = config.window_max = 100;
    return mux_engine_new(&config, 0);
}

/* --- what ends the connection --- */

typedef struct BadCase {
    const char *name;
    const char *before;         /* fed first, has to be well taken */
    int flags;                  /* what the application does then */
    const char *bytes;          /* fed next */
    uint32_t code;              /* of the GOAWAY that goes out */
    const char *text;           /* its text, and our own error */
} BadCase;

/* The last frame that @e sends has to be this GOAWAY. */
static void expect_goaway(MuxEngine *e, uint32_t code, const char *text)
{
    g_autoptr(GByteArray) out = g_byte_array_new();
    size_t len = strlen(text);
    MuxHeader h;

    mux_drain(e, out, 0);
    g_assert_cmpuint(out->len, >=, MUX_HEADER_SIZE + len);
    mux_header_decode(out->data + out->len - len - MUX_HEADER_SIZE, &h);
    g_assert_cmpuint(h.type, ==, MUX_FRAME_GOAWAY);
    g_assert_cmpuint(h.arg, ==, code);
    g_assert_cmpuint(h.length, ==, len);
    g_assert_cmpmem(out->data + out->len - len, len, text, len);
}

static void application(MuxEngine *e, int flags)
{
    g_autoptr(GByteArray) out = g_byte_array_new();
    const char *why;
    MuxEvent event;

    if (flags & OURS) {
        mux_engine_open(e, "ours", &why);
    }
    while (mux_engine_next_event(e, &event)) {
        if (event.type == MUX_EVENT_OPEN) {
            if (flags & ACCEPT) {
                mux_stream_accept(event.stream);
            }
            if (flags & RESET) {
                mux_stream_reset(event.stream, 1, "");
            }
            if (flags & FIN) {
                mux_stream_fin(event.stream);
            }
        } else if (event.type == MUX_EVENT_FIN && flags & FIN_OK) {
            mux_stream_fin_ok(event.stream);
        }
    }
    mux_drain(e, out, 0);
}

static void test_bad_case(const void *opaque)
{
    const BadCase *c = opaque;
    MuxEngine *e = engine_new(MUX_ROLE_DESTINATION);
    MuxEvent event;

    if (c->before) {
        feed_hex(e, c->before);
        g_assert_cmpstr(mux_engine_error(e), ==, NULL);
        application(e, c->flags);
    }
    feed_hex(e, c->bytes);
    g_assert_cmpstr(mux_engine_error(e), ==, c->text);
    g_assert_true(mux_engine_ended(e));
    expect_goaway(e, c->code, c->text);
    g_assert_cmpint(mux_engine_peer_is_foreign(e), ==,
                    g_str_equal(c->name, "not-a-mux-peer"));
    if (!c->before) {
        g_assert_true(mux_engine_next_event(e, &event));
        g_assert_cmpint(event.type, ==, MUX_EVENT_ENDED);
    }
    mux_engine_free(e);
}

static const BadCase bad_case[] = {
    /* HELLO */
    { "not-a-mux-peer", NULL, 0, "5145564d", MUX_CODE_PROTOCOL,
      "peer does not speak the migration multiplexer "
      "(got 0x5145564d instead of 0x514d5558)" },
    { "hello-too-short", NULL, 0,
      HELLO_WITH("0002 0002", "00000027", "0000000000000000", "00040000",
                 "00000001"), MUX_CODE_PROTOCOL,
      "source sent a HELLO with a bad length" },
    { "hello-too-long", NULL, 0,
      HELLO_WITH("0002 0002", "00001001", "0000000000000000", "00040000",
                 "00000001"), MUX_CODE_PROTOCOL,
      "source sent a HELLO with a bad length" },
    { "hello-version-range", NULL, 0,
      HELLO_WITH("0003 0002", "0000003c", "0000000000000000", "00040000",
                 "00000001"), MUX_CODE_PROTOCOL,
      "source sent a HELLO with a bad version range" },
    { "hello-frame-limit", NULL, 0,
      HELLO_WITH("0002 0002", "0000003c", "0000000000000000", "00000fff",
                 "00000001"), MUX_CODE_PROTOCOL,
      "source sent a HELLO with a bad frame limit" },
    { "hello-role", NULL, 0,
      HELLO_WITH("0002 0002", "0000003c", "0000000000000000", "00040000",
                 "00000003"), MUX_CODE_PROTOCOL,
      "source sent a HELLO with a bad role" },
    { "hello-role-before-the-tail", NULL, 0,
      HELLO_WITH("0002 0002", "00000040", "0000000000000000", "00040000",
                 "00000003"), MUX_CODE_PROTOCOL,
      "source sent a HELLO with a bad role" },
    { "hello-same-role", NULL, 0,
      HELLO_WITH("0002 0002", "0000003c", "0000000000000000", "00040000",
                 "00000002"), MUX_CODE_INCOMPATIBLE,
      "both sides claim to be the destination of the migration" },
    { "hello-required-feature", NULL, 0,
      HELLO_WITH("0002 0002", "0000003c", "0000000000000005", "00040000",
                 "00000001"), MUX_CODE_INCOMPATIBLE,
      "source requires feature bits 0x5 of the migration multiplexer, "
      "destination offers 0x0" },
    { "hello-newer-version", NULL, 0,
      HELLO_WITH("0003 0004", "0000003c", "0000000000000000", "00040000",
                 "00000001"), MUX_CODE_INCOMPATIBLE,
      "no common version of the migration multiplexer: "
      "destination offers 2 to 2, source offers 3 to 4" },
    { "hello-too-short-for-its-version", NULL, 0,
      HELLO_WITH("0002 0002", "0000003b", "0000000000000005", "00040000",
                 "00000001"), MUX_CODE_PROTOCOL,
      "source sent a HELLO with a bad length" },
    { "hello-connection-before-the-tail", NULL, 0,
      HELLO_WITH("0002 0002", "00000040", "0000000000000000", "00040000",
                 "00000001") SESSION("80000000"), MUX_CODE_INCOMPATIBLE,
      "source opens connection 2147483648 of its session, destination takes "
      "only the first" },
    /* form of a frame */
    { "type-zero", SOURCE_HELLO, 0, FRAME("00", ID0, ID0, ID0),
      MUX_CODE_PROTOCOL, "source sent a frame of unknown type 0x00" },
    { "type-unknown", SOURCE_HELLO, 0, FRAME("0b", ID0, ID0, ID0),
      MUX_CODE_PROTOCOL, "source sent a frame of unknown type 0x0b" },
    { "type-skippable-too-long", SOURCE_HELLO, 0,
      FRAME("80", ID0, "00040001", ID0), MUX_CODE_LIMIT,
      "source sent a frame of type 0x80 with 262145 bytes, "
      "destination accepts 262144" },
    { "flags", SOURCE_HELLO, 0, "08 01 0000 00000000 00000008 00000000",
      MUX_CODE_PROTOCOL,
      "source sent PING with unknown flags 0x01, reserved field 0x0000" },
    { "reserved-field", SOURCE_HELLO, 0,
      "08 00 0001 00000000 00000008 00000000", MUX_CODE_PROTOCOL,
      "source sent PING with unknown flags 0x00, reserved field 0x0001" },
    { "stream-id-missing", SOURCE_HELLO, 0,
      FRAME("03", ID0, "00000001", ID0), MUX_CODE_PROTOCOL,
      "source sent DATA without a stream id" },
    { "stream-id-too-much", SOURCE_HELLO, 0,
      FRAME("08", ID1, "00000008", ID0), MUX_CODE_PROTOCOL,
      "source sent PING on stream id 1 but it concerns the connection" },
    { "window-length", SOURCE_HELLO OPEN1, ACCEPT,
      FRAME("04", ID1, "00000007", ID0), MUX_CODE_PROTOCOL,
      "source sent WINDOW on stream 'a' (id 1) with a bad length of 7 bytes" },
    { "reset-text-too-long", SOURCE_HELLO OPEN1, ACCEPT,
      FRAME("07", ID1, "00000401", ID0), MUX_CODE_PROTOCOL,
      "source sent RESET on stream 'a' (id 1) with a bad length of "
      "1025 bytes" },
    /* OPEN */
    { "open-of-our-id", SOURCE_HELLO, 0, OPEN(ID2, "61"), MUX_CODE_PROTOCOL,
      "source sent OPEN on stream id 2 which the other side assigns" },
    { "open-twice", SOURCE_HELLO OPEN1, ACCEPT, OPEN1, MUX_CODE_PROTOCOL,
      "source sent OPEN on stream 'a' (id 1) but ids only grow, "
      "and 1 was used" },
    { "open-of-retired-id", SOURCE_HELLO OPEN1, RESET, OPEN1,
      MUX_CODE_PROTOCOL,
      "source sent OPEN on stream id 1 but ids only grow, and 1 was used" },
    { "open-descending", SOURCE_HELLO OPEN(ID5, "61"), 0, OPEN(ID3, "62"),
      MUX_CODE_PROTOCOL,
      "source sent OPEN on stream id 3 but ids only grow, and 5 was used" },
    { "open-without-name", SOURCE_HELLO, 0,
      FRAME("01", ID1, "0000000c", ID0), MUX_CODE_PROTOCOL,
      "source sent OPEN on stream id 1 with a bad length of 12 bytes" },
    { "open-name-length", SOURCE_HELLO, 0,
      FRAME("01", ID1, "0000000d", ID0) "0000000000000064 0002 0000 61",
      MUX_CODE_PROTOCOL,
      "source sent OPEN on stream id 1 with a bad length of the name" },
    { "open-reserved-field", SOURCE_HELLO, 0,
      FRAME("01", ID1, "0000000d", ID0) "0000000000000064 0001 0100 61",
      MUX_CODE_PROTOCOL,
      "source sent OPEN on stream id 1 with a bad length of the name" },
    { "open-name-not-printable", SOURCE_HELLO, 0, OPEN(ID1, "0a"),
      MUX_CODE_PROTOCOL,
      "source sent OPEN on stream id 1 with a name that is not printable" },
    /* two faults: what has no good form is not counted */
    { "open-id-and-limit", SOURCE_HELLO OPEN8("0") OPEN8("1"), 0, OPEN1,
      MUX_CODE_PROTOCOL, "source sent OPEN on stream 'a' (id 1) but ids only "
      "grow, and 31 was used" },
    { "open-name-and-limit", SOURCE_HELLO OPEN8("0") OPEN8("1"), 0,
      OPEN("00000021", "0a"), MUX_CODE_PROTOCOL,
      "source sent OPEN on stream id 33 with a name that is not printable" },
    { "open-name-length-and-limit", SOURCE_HELLO OPEN8("0") OPEN8("1"), 0,
      FRAME("01", "00000021", "0000000d", ID0)
      "0000000000000064 0002 0000 61", MUX_CODE_PROTOCOL,
      "source sent OPEN on stream id 33 with a bad length of the name" },
    /* OPEN_OK */
    { "open-ok-unasked", SOURCE_HELLO OPEN1, 0,
      U64_FRAME("02", ID1, "00000001"), MUX_CODE_PROTOCOL,
      "source sent OPEN_OK on stream 'a' (id 1) that answers no OPEN" },
    { "open-ok-twice", SOURCE_HELLO, OURS,
      U64_FRAME("02", ID2, "00000001") U64_FRAME("02", ID2, "00000001"),
      MUX_CODE_PROTOCOL,
      "source sent OPEN_OK on stream 'ours' (id 2) that answers no OPEN" },
    { "open-ok-unknown", SOURCE_HELLO, 0, U64_FRAME("02", ID2, "00000001"),
      MUX_CODE_PROTOCOL,
      "source sent OPEN_OK on stream id 2 which was never opened" },
    /* DATA */
    { "data-unknown-id", SOURCE_HELLO, 0, DATA1(ID1, ID0), MUX_CODE_PROTOCOL,
      "source sent DATA on stream id 1 which was never opened" },
    { "data-before-our-open-ok", SOURCE_HELLO OPEN1, 0, DATA1(ID1, ID0),
      MUX_CODE_PROTOCOL,
      "source sent DATA on stream 'a' (id 1) before its OPEN_OK" },
    { "data-before-its-open-ok", SOURCE_HELLO, OURS, DATA1(ID2, ID0),
      MUX_CODE_PROTOCOL,
      "source sent DATA on stream 'ours' (id 2) before its OPEN_OK" },
    { "data-empty", SOURCE_HELLO OPEN1, ACCEPT, FRAME("03", ID1, ID0, ID0),
      MUX_CODE_PROTOCOL,
      "source sent DATA on stream 'a' (id 1) with a bad length of 0 bytes" },
    { "data-frame-too-long", SOURCE_HELLO OPEN1, ACCEPT,
      FRAME("03", ID1, "00040001", ID0), MUX_CODE_LIMIT,
      "source sent DATA on stream 'a' (id 1) with 262145 bytes, "
      "destination accepts 262144" },
    { "data-offset", SOURCE_HELLO OPEN1, ACCEPT, DATA1(ID1, ID1),
      MUX_CODE_PROTOCOL, "source sent DATA on stream 'a' (id 1) "
      "with offset 0x00000001 instead of 0x00000000" },
    { "data-beyond-credit", SOURCE_HELLO OPEN1, ACCEPT,
      DATA1(ID1, ID0) FRAME("03", ID1, "00000064", ID1), MUX_CODE_LIMIT,
      "source sent DATA on stream 'a' (id 1) beyond its credit: "
      "100 bytes at offset 1, limit 100" },
    { "data-after-fin", SOURCE_HELLO OPEN1, ACCEPT,
      U64_FRAME("05", ID1, "00000000") DATA1(ID1, ID0), MUX_CODE_PROTOCOL,
      "source sent DATA on stream 'a' (id 1) after its FIN" },
    { "late-data-offset", SOURCE_HELLO OPEN1, ACCEPT | RESET,
      DATA1(ID1, ID1), MUX_CODE_PROTOCOL, "source sent DATA on stream id 1 "
      "with offset 0x00000001 instead of 0x00000000" },
    { "late-data-beyond-credit", SOURCE_HELLO OPEN1, ACCEPT | RESET,
      DATA1(ID1, ID0), MUX_CODE_LIMIT,
      "source sent DATA on stream id 1 beyond its credit: "
      "1 bytes at offset 0, limit 0" },
    { "data-after-refusal", SOURCE_HELLO, OURS,
      FRAME("07", ID2, ID0, ID0) DATA1(ID2, ID0), MUX_CODE_LIMIT,
      "source sent DATA on stream id 2 beyond its credit: "
      "1 bytes at offset 0, limit 0" },
    /* the end of a stream */
    { "fin-size", SOURCE_HELLO OPEN1, ACCEPT,
      DATA1(ID1, ID0) U64_FRAME("05", ID1, "00000002"), MUX_CODE_PROTOCOL,
      "source sent FIN on stream 'a' (id 1) with final size 2 after 1 bytes" },
    { "fin-twice", SOURCE_HELLO OPEN1, ACCEPT,
      U64_FRAME("05", ID1, "00000000") U64_FRAME("05", ID1, "00000000"),
      MUX_CODE_PROTOCOL,
      "source sent FIN on stream 'a' (id 1) for the second time" },
    { "fin-before-open-ok", SOURCE_HELLO OPEN1, 0,
      U64_FRAME("05", ID1, "00000000"), MUX_CODE_PROTOCOL,
      "source sent FIN on stream 'a' (id 1) before its OPEN_OK" },
    { "fin-ok-unasked", SOURCE_HELLO OPEN1, ACCEPT,
      U64_FRAME("06", ID1, "00000000"), MUX_CODE_PROTOCOL,
      "source sent FIN_OK on stream 'a' (id 1) that answers no FIN" },
    { "fin-ok-size", SOURCE_HELLO OPEN1, ACCEPT | FIN,
      U64_FRAME("06", ID1, "00000007"), MUX_CODE_PROTOCOL,
      "source sent FIN_OK on stream 'a' (id 1) with final size 7, "
      "destination sent 0 bytes" },
    { "fin-ok-twice", SOURCE_HELLO OPEN1, ACCEPT | FIN,
      U64_FRAME("06", ID1, "00000000") U64_FRAME("06", ID1, "00000000"),
      MUX_CODE_PROTOCOL,
      "source sent FIN_OK on stream 'a' (id 1) that answers no FIN" },
    { "late-fin-size", SOURCE_HELLO OPEN1, ACCEPT | RESET,
      U64_FRAME("05", ID1, "00000001"), MUX_CODE_PROTOCOL,
      "source sent FIN on stream id 1 with final size 1 after 0 bytes" },
    { "reset-unknown-id", SOURCE_HELLO, 0, FRAME("07", ID1, ID0, ID0),
      MUX_CODE_PROTOCOL,
      "source sent RESET on stream id 1 which was never opened" },
    /* PONG */
    { "pong-unasked", SOURCE_HELLO, 0, U64_FRAME("09", ID0, "00000001"),
      MUX_CODE_PROTOCOL, "source sent PONG that answers no PING" },
};

/* --- what does not end it --- */

static void test_hello_tail_is_skipped(void)
{
    MuxEngine *e = engine_new(MUX_ROLE_DESTINATION);

    feed_hex(e, HELLO_WITH("0002 0002", "00000040", "0000000000000000",
                           "00040000", "00000001") SESSION("00000000")
             "deadbeef" OPEN1);
    mux_expect_event(e, MUX_EVENT_HELLO);
    g_assert_cmpstr(mux_stream_name(mux_expect_event(e, MUX_EVENT_OPEN)),
                    ==, "a");
    mux_engine_free(e);
}

/* The last byte of the tail is what completes a HELLO. */
static void test_hello_has_come_with_its_tail(void)
{
    g_autoptr(GByteArray) hello = mux_unhex(
        HELLO_WITH("0002 0002", "00000040", "0000000000000000", "00040000",
                   "00000001") SESSION("00000000") "deadbeef");
    g_autoptr(GByteArray) out = g_byte_array_new();
    MuxConfig config;
    const char *why;
    MuxEngine *e;

    for (size_t came = 40; came < 64; came++) {
        mux_config_default(&config, MUX_ROLE_DESTINATION);
        e = mux_engine_new(&config, 0);
        mux_engine_open(e, "x", &why);
        mux_feed(e, hello->data, came, 0);
        g_assert_false(mux_has_event(e, MUX_EVENT_HELLO, NULL));
        g_assert_cmpint(mux_engine_deadline(e), ==, config.hello_timeout);
        mux_drain(e, out, 0);
        g_assert_cmpuint(out->len, ==, 60);
        mux_feed(e, hello->data + came, 64 - came, 0);
        g_assert_true(mux_has_event(e, MUX_EVENT_HELLO, NULL));
        g_assert_cmpint(mux_engine_deadline(e), ==, INT64_MAX);
        mux_drain(e, out, 0);
        g_assert_cmpuint(out->len, ==, 60 + 24 + 16 + 13);
        g_byte_array_set_size(out, 0);
        mux_engine_free(e);
    }
}

static void test_high_types_are_skipped(void)
{
    MuxEngine *e = engine_new(MUX_ROLE_DESTINATION);

    feed_hex(e, SOURCE_HELLO
             "80 ff ffff ffffffff 00000003 ffffffff aabbcc"
             "ff 00 0000 00000000 00000000 00000000" OPEN1);
    g_assert_null(mux_engine_error(e));
    mux_expect_event(e, MUX_EVENT_OPEN);
    mux_engine_free(e);
}

static void test_lower_window_is_ignored(void)
{
    uint8_t data[100] = { 0 };
    struct iovec iov = { .iov_base = data, .iov_len = sizeof(data) };
    MuxEngine *e = engine_new(MUX_ROLE_DESTINATION);
    MuxStream *s;

    feed_hex(e, SOURCE_HELLO OPEN1);
    s = mux_expect_event(e, MUX_EVENT_OPEN);
    mux_stream_accept(s);
    feed_hex(e, U64_FRAME("04", ID1, "00000001"));
    g_assert_null(mux_engine_error(e));
    g_assert_cmpuint(mux_stream_tx_copy(s, &iov, 1), ==, 100);
    mux_engine_free(e);
}

static void test_late_frames_are_dropped(void)
{
    MuxEngine *e = engine_new(MUX_ROLE_DESTINATION);

    feed_hex(e, SOURCE_HELLO OPEN1);
    application(e, ACCEPT);
    feed_hex(e, DATA1(ID1, ID0));
    mux_stream_reset(mux_expect_event(e, MUX_EVENT_READABLE), 1, "");
    feed_hex(e, DATA1(ID1, ID1) U64_FRAME("04", ID1, "00000900")
             DATA1(ID1, ID2) U64_FRAME("05", ID1, "00000003")
             U64_FRAME("06", ID1, "00000000") FRAME("07", ID1, ID0, ID0));
    g_assert_null(mux_engine_error(e));
    /* the FIN said that no more comes */
    feed_hex(e, DATA1(ID1, ID3));
    g_assert_cmpstr(mux_engine_error(e), ==, "source sent DATA on stream id 1 "
                    "beyond its credit: 1 bytes at offset 3, limit 3");
    mux_engine_free(e);
}

static void test_finished_id_takes_no_data(void)
{
    MuxEngine *e = engine_new(MUX_ROLE_DESTINATION);

    feed_hex(e, SOURCE_HELLO OPEN1);
    application(e, ACCEPT | FIN);
    feed_hex(e, U64_FRAME("05", ID1, "00000000")
             U64_FRAME("06", ID1, "00000000"));
    application(e, FIN_OK);
    g_assert_null(mux_engine_error(e));
    feed_hex(e, DATA1(ID1, ID0));
    g_assert_cmpstr(mux_engine_error(e), ==, "source sent DATA on stream id 1 "
                    "beyond its credit: 1 bytes at offset 0, limit 0");
    mux_engine_free(e);
}

static void test_goaway_text_is_sanitized(void)
{
    MuxEngine *e = engine_new(MUX_ROLE_DESTINATION);
    g_autoptr(GByteArray) out = g_byte_array_new();

    feed_hex(e, SOURCE_HELLO FRAME("0a", ID0, "00000004", "00000006")
             "61 1b 0a 62");
    g_assert_cmpstr(mux_engine_error(e), ==,
                    "source ended the connection: a??b");
    mux_drain(e, out, 0);
    g_assert_cmpuint(out->len, ==, 0);
    mux_engine_free(e);
}

/* --- versions --- */

static void test_version_negotiation(void)
{
    static const struct {
        uint16_t min[2], max[2];        /* source, destination */
        bool fits;
    } t[] = {
        { { 2, 2 }, { 2, 2 }, true },
        { { 2, 2 }, { 4, 2 }, true },
        { { 2, 2 }, { 2, 4 }, true },
        { { 2, 3 }, { 3, 4 }, true },
        { { 3, 2 }, { 4, 3 }, true },
        { { 2, 3 }, { 2, 3 }, false },
        { { 4, 2 }, { 5, 3 }, false },
        { { 65535, 2 }, { 65535, 65535 }, true },
    };

    for (size_t i = 0; i < G_N_ELEMENTS(t); i++) {
        MuxConfig c[2];
        MuxWire link;

        for (int side = 0; side < 2; side++) {
            mux_config_default(&c[side], side == SRC ? MUX_ROLE_SOURCE
                                                     : MUX_ROLE_DESTINATION);
            c[side].version_min = t[i].min[side];
            c[side].version_max = t[i].max[side];
        }
        mux_wire_init(&link, 1, &c[SRC], &c[DST]);
        mux_wire_run(&link);
        for (int side = 0; side < 2; side++) {
            MuxEngine *e = link.side[side].e;

            g_assert_cmpint(mux_engine_ended(e), ==, !t[i].fits);
            mux_expect_event(e, t[i].fits ? MUX_EVENT_HELLO
                                          : MUX_EVENT_ENDED);
            if (!t[i].fits) {
                g_autofree char *theirs =
                    g_strdup_printf("%s offers %u to %u",
                                    side == SRC ? "destination" : "source",
                                    t[i].min[!side], t[i].max[!side]);

                g_assert_nonnull(strstr(mux_engine_error(e), theirs));
            }
        }
        mux_wire_cleanup(&link);
    }
}

/* @e takes all bytes of @hello but the last, and ends with that one. */
static void ends_with_the_last_byte(MuxEngine *e, const char *hello,
                                    const char *text)
{
    g_autoptr(GByteArray) in = mux_unhex(hello);

    mux_feed(e, in->data, in->len - 1, 0);
    g_assert_false(mux_engine_ended(e));
    mux_feed(e, in->data + in->len - 1, 1, 0);
    g_assert_cmpstr(mux_engine_error(e), ==, text);
    expect_goaway(e, MUX_CODE_INCOMPATIBLE, text);
    mux_expect_event(e, MUX_EVENT_ENDED);
    mux_engine_free(e);
}

static void test_version_1_is_refused(void)
{
    ends_with_the_last_byte(engine_new(MUX_ROLE_DESTINATION),
                            HELLO_V1("00000001"),
                            "no common version of the migration multiplexer: "
                            "destination offers 2 to 2, source offers 1 to 1");
    ends_with_the_last_byte(engine_new(MUX_ROLE_SOURCE), HELLO_V1("00000002"),
                            "no common version of the migration multiplexer: "
                            "source offers 2 to 2, destination offers 1 to 1");
}

/* --- the session --- */

static void test_second_connection_is_refused(void)
{
    ends_with_the_last_byte(engine_new(MUX_ROLE_DESTINATION),
                            HELLO_WITH("0002 0002", "0000003c",
                                       "0000000000000000", "00040000",
                                       "00000001") SESSION("00000003"),
                            "source opens connection 3 of its session, "
                            "destination takes only the first");
    ends_with_the_last_byte(engine_new(MUX_ROLE_SOURCE),
                            HELLO_WITH("0002 0002", "0000003c",
                                       "0000000000000000", "00040000",
                                       "00000002") SESSION("00000001"),
                            "destination opens connection 1 of its session, "
                            "source takes only the first");
}

/* Both sides know the source's id, whatever a destination says. */
static void test_session_is_the_sources(void)
{
    static const uint8_t none[MUX_SESSION_ID_SIZE];
    MuxConfig c[2];
    MuxWire link;

    for (unsigned wrong = 0; wrong < 2; wrong++) {
        mux_config_default(&c[SRC], MUX_ROLE_SOURCE);
        mux_config_default(&c[DST], MUX_ROLE_DESTINATION);
        g_assert_cmpmem(c[DST].session, MUX_SESSION_ID_SIZE,
                        none, sizeof(none));
        memset(c[SRC].session, 's', MUX_SESSION_ID_SIZE);
        memset(c[DST].session, wrong ? 'd' : 0, MUX_SESSION_ID_SIZE);
        mux_wire_init(&link, 1, &c[SRC], &c[DST]);
        mux_wire_run(&link);
        for (int side = 0; side < 2; side++) {
            MuxEngine *e = link.side[side].e;

            mux_expect_event(e, MUX_EVENT_HELLO);
            g_assert_cmpmem(mux_engine_session(e), MUX_SESSION_ID_SIZE,
                            c[SRC].session, MUX_SESSION_ID_SIZE);
            g_assert_cmpmem(link.side[side].sent->data + 40,
                            MUX_SESSION_ID_SIZE,
                            c[side].session, MUX_SESSION_ID_SIZE);
        }
        mux_wire_cleanup(&link);
    }
}

static void test_same_role_on_both_sides(void)
{
    g_autoptr(GByteArray) out = g_byte_array_new();
    MuxEngine *a = engine_new(MUX_ROLE_SOURCE);
    MuxEngine *b = engine_new(MUX_ROLE_SOURCE);

    mux_drain(a, out, 0);
    mux_feed(b, out->data, out->len, 0);
    g_assert_cmpstr(mux_engine_error(b), ==,
                    "both sides claim to be the source of the migration");
    mux_engine_free(a);
    mux_engine_free(b);
}

/* --- an early end --- */

static void test_eof_before_hello(void)
{
    MuxEngine *e = engine_new(MUX_ROLE_DESTINATION);

    mux_engine_rx_eof(e);
    g_assert_cmpstr(mux_engine_error(e), ==, "peer closed the connection "
                    "before its HELLO (does it support multiplexed "
                    "migration?)");
    mux_engine_free(e);
}

static void eof_inside_hello(const char *begun)
{
    MuxEngine *e = engine_new(MUX_ROLE_DESTINATION);

    feed_hex(e, begun);
    mux_engine_rx_eof(e);
    g_assert_cmpstr(mux_engine_error(e), ==, "peer closed the connection "
                    "in the middle of its HELLO (does it support "
                    "multiplexed migration?)");
    mux_engine_free(e);
}

static void test_eof_inside_hello(void)
{
    eof_inside_hello("514d5558 0001");
    eof_inside_hello(HELLO_WITH("0002 0002", "00000040", "0000000000000000",
                                "00040000", "00000001"));
    eof_inside_hello(HELLO_WITH("0002 0002", "00000040", "0000000000000000",
                                "00040000", "00000001") SESSION("00000000"));
    eof_inside_hello(HELLO_WITH("0002 0002", "00000040", "0000000000000000",
                                "00040000", "00000001") SESSION("00000000")
                     "de");
}

static void test_eof_inside_frame(void)
{
    MuxEngine *e = engine_new(MUX_ROLE_DESTINATION);

    feed_hex(e, SOURCE_HELLO "08 00");
    mux_engine_rx_eof(e);
    g_assert_cmpstr(mux_engine_error(e), ==, "source closed the connection "
                    "in the middle of a frame");
    mux_engine_free(e);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);

#define ADD(path, func) g_test_add_func("/mux/wire/" path, func)
    for (size_t i = 0; i < G_N_ELEMENTS(bad_case); i++) {
        g_autofree char *path = g_strdup_printf("/mux/wire/bad/%s",
                                                bad_case[i].name);

        g_test_add_data_func(path, &bad_case[i], test_bad_case);
    }
    ADD("hello-tail-is-skipped", test_hello_tail_is_skipped);
    ADD("hello-has-come-with-its-tail", test_hello_has_come_with_its_tail);
    ADD("high-types-are-skipped", test_high_types_are_skipped);
    ADD("lower-window-is-ignored", test_lower_window_is_ignored);
    ADD("late-frames-are-dropped", test_late_frames_are_dropped);
    ADD("finished-id-takes-no-data", test_finished_id_takes_no_data);
    ADD("goaway-text-is-sanitized", test_goaway_text_is_sanitized);
    ADD("version-negotiation", test_version_negotiation);
    ADD("version-1-is-refused", test_version_1_is_refused);
    ADD("second-connection-is-refused", test_second_connection_is_refused);
    ADD("session-is-the-sources", test_session_is_the_sources);
    ADD("same-role-on-both-sides", test_same_role_on_both_sides);
    ADD("eof-before-hello", test_eof_before_hello);
    ADD("eof-inside-hello", test_eof_inside_hello);
    ADD("eof-inside-frame", test_eof_inside_frame);
#undef ADD

    return g_test_run();
}
