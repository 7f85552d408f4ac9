/*
 * Tests of the migration multiplexer: frame codec
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "migration/mux/engine-limits.h"
#include "migration/mux/frame.h"

static void test_hello_layout(void)
{
    static const uint8_t wire[MUX_HELLO_V2_SIZE] = {
        'Q', 'M', 'U', 'X', 0x00, 0x01, 0x02, 0x03,
        0x00, 0x00, 0x00, 0x3c,
        0x10, 0x11, 0x12, 0x13, 0x14, 0x15, 0x16, 0x17,
        0x20, 0x21, 0x22, 0x23, 0x24, 0x25, 0x26, 0x27,
        0x00, 0x04, 0x00, 0x00, 0x00, 0x00, 0x02, 0x00,
        0x00, 0x00, 0x00, 0x01, 0x30, 0x31, 0x32, 0x33,
        0x34, 0x35, 0x36, 0x37, 0x38, 0x39, 0x3a, 0x3b,
        0x3c, 0x3d, 0x3e, 0x3f, 0x40, 0x41, 0x42, 0x43,
    };
    uint8_t out[MUX_HELLO_V2_SIZE];
    MuxHello h, common = { .connection = 1 };

    mux_hello_decode(wire, &h);
    g_assert_cmphex(h.magic, ==, MUX_MAGIC);
    g_assert_cmpuint(h.version_min, ==, 1);
    g_assert_cmpuint(h.version_max, ==, 0x203);
    g_assert_cmpuint(h.length, ==, 60);
    g_assert_cmphex(h.features, ==, 0x1011121314151617);
    g_assert_cmphex(h.required, ==, 0x2021222324252627);
    g_assert_cmpuint(h.max_frame, ==, 256 * 1024);
    g_assert_cmpuint(h.max_streams, ==, 512);
    g_assert_cmpuint(h.role, ==, 1);
    g_assert_cmpmem(h.session, sizeof(h.session), wire + 40, 16);
    g_assert_cmphex(h.connection, ==, 0x40414243);
    mux_hello_encode(&h, out);
    g_assert_cmpmem(out, sizeof(out), wire, sizeof(wire));
    mux_hello_decode_common(wire, &common);
    g_assert_cmpuint(common.role, ==, 1);
    g_assert_cmpuint(common.connection, ==, 1);
}

static void test_header_layout(void)
{
    static const uint8_t wire[MUX_HEADER_SIZE] = {
        0x03, 0x80, 0xa1, 0xa2, 0xb1, 0xb2, 0xb3, 0xb4,
        0xc1, 0xc2, 0xc3, 0xc4, 0xd1, 0xd2, 0xd3, 0xd4,
    };
    uint8_t out[MUX_HEADER_SIZE];
    MuxHeader h;

    mux_header_decode(wire, &h);
    g_assert_cmpuint(h.type, ==, MUX_FRAME_DATA);
    g_assert_cmphex(h.flags, ==, 0x80);
    g_assert_cmphex(h.zero, ==, 0xa1a2);
    g_assert_cmphex(h.stream, ==, 0xb1b2b3b4);
    g_assert_cmphex(h.length, ==, 0xc1c2c3c4);
    g_assert_cmphex(h.arg, ==, 0xd1d2d3d4);
    mux_header_encode(&h, out);
    g_assert_cmpmem(out, sizeof(out), wire, sizeof(wire));
}

static void test_frame_names(void)
{
    g_assert_cmpstr(mux_frame_name(MUX_FRAME_OPEN), ==, "OPEN");
    g_assert_cmpstr(mux_frame_name(MUX_FRAME_FIN_OK), ==, "FIN_OK");
    g_assert_cmpstr(mux_frame_name(MUX_FRAME_GOAWAY), ==, "GOAWAY");
    g_assert_null(mux_frame_name(0));
    g_assert_null(mux_frame_name(MUX_FRAME__MAX));
    g_assert_null(mux_frame_name(MUX_TYPE_SKIPPABLE));
}

static void test_frame_lengths(void)
{
    static const struct { MuxFrameType type; uint32_t min, max; } t[] = {
        { MUX_FRAME_OPEN, 13, 12 + 255 }, { MUX_FRAME_OPEN_OK, 8, 8 },
        { MUX_FRAME_WINDOW, 8, 8 }, { MUX_FRAME_FIN, 8, 8 },
        { MUX_FRAME_FIN_OK, 8, 8 }, { MUX_FRAME_RESET, 0, 1024 },
        { MUX_FRAME_PING, 8, 8 }, { MUX_FRAME_PONG, 8, 8 },
        { MUX_FRAME_GOAWAY, 0, 1024 },
    };

    for (size_t i = 0; i < G_N_ELEMENTS(t); i++) {
        g_assert_true(mux_frame_length_ok(t[i].type, t[i].min));
        g_assert_true(mux_frame_length_ok(t[i].type, t[i].max));
        g_assert_false(mux_frame_length_ok(t[i].type, t[i].max + 1));
        if (t[i].min) {
            g_assert_false(mux_frame_length_ok(t[i].type, t[i].min - 1));
        }
    }
    g_assert_false(mux_frame_length_ok(MUX_FRAME_DATA, 0));
}

static void test_stream_names(void)
{
    char name[257];

    memset(name, 'x', sizeof(name));
    g_assert_true(mux_name_ok("main", 4));
    g_assert_true(mux_name_ok("nbd-a b~", 8));
    g_assert_true(mux_name_ok(name, 255));
    g_assert_false(mux_name_ok(name, 256));
    g_assert_false(mux_name_ok("", 0));
    g_assert_false(mux_name_ok("a\nb", 3));
    g_assert_false(mux_name_ok("a\0b", 3));
    g_assert_false(mux_name_ok("\x7f", 1));
    g_assert_false(mux_name_ok("\xc3\xa4", 2));
}

static void test_text_sanitized(void)
{
    static const struct { const char *in; size_t len; const char *out; } t[] = {
        { "No space left", 13, "No space left" },
        { "a\nb\tc\x1b[2J", 9, "a?b?c?[2J" },
        { "nul\0in", 6, "nul?in" },
        { "\xc3\xa4", 2, "\xc3\xa4" },          /* a letter beyond ASCII */
        { "\xc3", 1, "?" },                     /* cut in two */
        { "\xff\xfe.", 3, "??." },
        { "\xc3.", 2, "?." },
        { "\xe2\x80", 2, "??" },
        { "\xe2\x80\xae" "x", 4, "?x" },        /* turns the text around */
        { "", 0, "" },
    };

    for (size_t i = 0; i < G_N_ELEMENTS(t); i++) {
        g_autofree char *out = mux_text_sanitize((const uint8_t *)t[i].in,
                                                 t[i].len);

        g_assert_cmpstr(out, ==, t[i].out);
    }
}

static void test_text_cut_between_characters(void)
{
    g_autofree char *text = g_strnfill(2000, 'x');

    g_assert_cmpuint(mux_text_length("short"), ==, 5);
    g_assert_cmpuint(mux_text_length(text), ==, 1024);
    memcpy(text + 1023, "\xc3\xa4", 2);
    g_assert_cmpuint(mux_text_length(text), ==, 1023);
    text[1024] = '\xa5';
    g_assert_cmpuint(mux_text_length(text), ==, 1023);
    text[1024] = '\0';
    g_assert_cmpuint(mux_text_length(text), ==, 1024);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);

    g_test_add_func("/mux/frame/hello-layout", test_hello_layout);
    g_test_add_func("/mux/frame/header-layout", test_header_layout);
    g_test_add_func("/mux/frame/names", test_frame_names);
    g_test_add_func("/mux/frame/lengths", test_frame_lengths);
    g_test_add_func("/mux/frame/stream-names", test_stream_names);
    g_test_add_func("/mux/frame/text-sanitized", test_text_sanitized);
    g_test_add_func("/mux/frame/text-cut-between-characters",
                    test_text_cut_between_characters);

    return g_test_run();
}
