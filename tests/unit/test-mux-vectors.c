/*
 * Tests of the migration multiplexer's engine against its specification
 *
 * The byte vectors are read out of docs/interop/migration-mux.rst, so that
 * text and code cannot drift apart: the engine has to send them, and to take
 * them.  What else it may be sent is in test-mux-wire.c.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "migration/mux/frame.h"
#include "mux-engine-helpers.h"

/* All that are in the document */
static const char *const known[] = {
    "hello-source", "hello-destination", "hello-future", "open", "open-ok",
    "data", "data-next", "window", "fin", "fin-ok", "reset", "ping", "pong",
    "goaway", "skipped",
};

/* Of the vectors' source */
static const uint8_t session[MUX_SESSION_ID_SIZE] = {
    0x0f, 0x1e, 0x2d, 0x3c, 0x4b, 0x5a, 0x69, 0x78,
    0x87, 0x96, 0xa5, 0xb4, 0xc3, 0xd2, 0xe1, 0xf0,
};

/*
 * Not in the document, which leaves texts to the implementation: GOAWAY of a
 * source that speaks version 2 to a destination that speaks 3 to 4
 */
#define REFUSAL \
    "no common version of the migration multiplexer: " \
    "source offers 2 to 2, destination offers 3 to 4"
#define REFUSAL_HEADER  "0a 00 0000 00000000 0000005f 00000002"

static char *document;

/*
 * A vector is a name with a colon, indented by two blanks, and lines of
 * digits, indented by four.
 */
static GByteArray *vector(const char *name)
{
    g_autofree char *head = g_strdup_printf("\n  %s:\n", name);
    g_autoptr(GString) hex = g_string_new(NULL);
    const char *line = strstr(document, head);

    g_assert_nonnull(line);
    line += strlen(head);
    while (g_str_has_prefix(line, "    ")) {
        size_t len = strcspn(line, "\n");

        g_string_append_len(hex, line, len);
        line += len + 1;
    }
    g_assert_cmpuint(hex->len, >, 0);
    return mux_unhex(hex->str);
}

static GByteArray *refusal_of_versions(void)
{
    GByteArray *frame = mux_unhex(REFUSAL_HEADER);

    g_byte_array_append(frame, (const uint8_t *)REFUSAL, strlen(REFUSAL));
    return frame;
}

static void feed_vector(MuxEngine *e, const char *name)
{
    g_autoptr(GByteArray) in = vector(name);

    mux_feed(e, in->data, in->len, 0);
}

/* @e sends the vectors @names, up to a NULL, and no more. */
static void expect_vectors(MuxEngine *e, const char *const *names)
{
    g_autoptr(GByteArray) want = g_byte_array_new();
    g_autoptr(GByteArray) got = g_byte_array_new();

    for (; *names; names++) {
        g_autoptr(GByteArray) one = vector(*names);

        g_byte_array_append(want, one->data, one->len);
    }
    mux_drain(e, got, 0);
    g_assert_cmpmem(got->data, got->len, want->data, want->len);
}

#define expect(e, ...) \
    expect_vectors(e, (const char *const[]) { __VA_ARGS__, NULL })

static MuxEngine *engine_new(MuxRole role)
{
    MuxConfig config;

    mux_config_default(&config, role);
    config.window = config.window_max = 100;
    if (role == MUX_ROLE_SOURCE) {
        memcpy(config.session, session, sizeof(session));
    }
    return mux_engine_new(&config, 0);
}

/* A source whose stream "main" is open */
static MuxEngine *source_new(MuxStream **s)
{
    MuxEngine *e = engine_new(MUX_ROLE_SOURCE);
    const char *why;

    feed_vector(e, "hello-destination");
    *s = mux_engine_open(e, "main", &why);
    expect(e, "hello-source", "open");
    feed_vector(e, "open-ok");
    mux_expect_event(e, MUX_EVENT_OPEN_OK);
    return e;
}

/* A destination whose stream "main" is open */
static MuxEngine *destination_new(MuxStream **s)
{
    MuxEngine *e = engine_new(MUX_ROLE_DESTINATION);

    feed_vector(e, "hello-source");
    feed_vector(e, "open");
    *s = mux_expect_event(e, MUX_EVENT_OPEN);
    g_assert_cmpstr(mux_stream_name(*s), ==, "main");
    g_assert_cmpuint(mux_stream_id(*s), ==, 1);
    mux_stream_accept(*s);
    expect(e, "hello-destination", "open-ok");
    g_assert_cmpmem(mux_engine_session(e), MUX_SESSION_ID_SIZE,
                    session, sizeof(session));
    return e;
}

static void test_every_vector_is_known(void)
{
    g_autoptr(GRegex) name = g_regex_new("^  [a-z0-9-]+:$", G_REGEX_MULTILINE,
                                         0, NULL);
    g_autoptr(GMatchInfo) match = NULL;
    unsigned found = 0;

    g_regex_match(name, document, 0, &match);
    while (g_match_info_matches(match)) {
        found++;
        g_match_info_next(match, NULL);
    }
    g_assert_cmpuint(found, ==, G_N_ELEMENTS(known));
    for (size_t i = 0; i < G_N_ELEMENTS(known); i++) {
        g_autoptr(GByteArray) bytes = vector(known[i]);

        g_assert_cmpuint(bytes->len, >, 0);
    }
}

static void test_sent_data_and_fin(void)
{
    struct iovec iov = { .iov_base = (char *)"hello", .iov_len = 5 };
    MuxStream *s;
    MuxEngine *e = source_new(&s);

    mux_stream_tx_offer(s, &iov, 1);
    expect(e, "data");
    mux_stream_tx_offer(s, &iov, 1);
    expect(e, "data-next");
    mux_stream_fin(s);
    expect(e, "fin");
    mux_engine_free(e);
}

static void test_sent_window_and_fin_ok(void)
{
    uint8_t data[MUX_HEADER_SIZE + 51] = { 0 };
    uint8_t fin[MUX_HEADER_SIZE + 8] = { 0 };
    MuxHeader h = { .type = MUX_FRAME_DATA, .stream = 1, .length = 51 };
    MuxStream *s;
    MuxEngine *e = source_new(&s);

    mux_header_encode(&h, data);
    mux_feed(e, data, sizeof(data), 0);
    mux_stream_rx_consume(s, 49);
    g_assert_true(mux_engine_tx_idle(e));
    mux_stream_rx_consume(s, 1);
    expect(e, "window");
    h.type = MUX_FRAME_FIN;
    h.length = 8;
    mux_header_encode(&h, fin);
    fin[sizeof(fin) - 1] = 51;
    mux_feed(e, fin, sizeof(fin), 0);
    g_assert_true(mux_engine_tx_idle(e));
    mux_stream_fin_ok(s);
    expect(e, "fin-ok");
    mux_engine_free(e);
}

static void test_sent_reset(void)
{
    MuxStream *s;
    MuxEngine *e = source_new(&s);

    mux_stream_reset(s, 0x1c, "full");
    expect(e, "reset");
    mux_engine_free(e);
}

static void test_sent_ping_and_pong(void)
{
    g_autoptr(GByteArray) question = vector("pong");
    MuxStream *s;
    MuxEngine *e = source_new(&s);

    mux_engine_ping(e);
    expect(e, "ping");
    question->data[0] = MUX_FRAME_PING;
    mux_feed(e, question->data, question->len, 0);
    expect(e, "pong");
    mux_engine_free(e);
}

static void test_sent_goaway(void)
{
    MuxStream *s;
    MuxEngine *e = source_new(&s);

    mux_engine_goaway(e, MUX_CODE_ABORTED, "bye");
    expect(e, "goaway");
    g_assert_true(mux_engine_tx_idle(e));
    mux_engine_free(e);
}

static void test_sent_refusal_of_versions(void)
{
    g_autoptr(GByteArray) hello = vector("hello-destination");
    g_autoptr(GByteArray) refusal = refusal_of_versions();
    g_autoptr(GByteArray) want = vector("hello-source");
    g_autoptr(GByteArray) got = g_byte_array_new();
    MuxEngine *e = engine_new(MUX_ROLE_SOURCE);

    hello->data[5] = 3;
    hello->data[7] = 4;
    mux_feed(e, hello->data, hello->len, 0);
    g_byte_array_append(want, refusal->data, refusal->len);
    mux_drain(e, got, 0);
    g_assert_cmpmem(got->data, got->len, want->data, want->len);
    mux_engine_free(e);
}

static void test_taken_data_and_fin(void)
{
    MuxStream *s;
    MuxEngine *e = destination_new(&s);

    feed_vector(e, "data");
    feed_vector(e, "skipped");
    feed_vector(e, "data-next");
    g_assert_true(mux_expect_event(e, MUX_EVENT_READABLE) == s);
    g_assert_cmpuint(mux_stream_bytes_received(s), ==, 10);
    feed_vector(e, "fin");
    g_assert_true(mux_expect_event(e, MUX_EVENT_FIN) == s);
    g_assert_null(mux_engine_error(e));
    mux_engine_free(e);
}

static void test_taken_window_and_fin_ok(void)
{
    uint8_t data[51] = { 0 };
    struct iovec iov = { .iov_base = data, .iov_len = 51 };
    g_autoptr(GByteArray) out = g_byte_array_new();
    MuxStream *s;
    MuxEngine *e = destination_new(&s);

    feed_vector(e, "window");
    g_assert_cmpuint(mux_stream_tx_copy(s, &iov, 1), ==, 51);
    mux_stream_fin(s);
    mux_drain(e, out, 0);
    feed_vector(e, "fin-ok");
    g_assert_null(mux_engine_error(e));
    g_assert_true(mux_stream_fin_acked(s));
    mux_engine_free(e);
}

static void test_taken_reset(void)
{
    MuxStream *s;
    MuxEngine *e = destination_new(&s);

    feed_vector(e, "reset");
    g_assert_true(mux_expect_event(e, MUX_EVENT_RESET) == s);
    g_assert_nonnull(strstr(mux_stream_error(s), "full (code 28)"));
    mux_engine_free(e);
}

static void test_taken_ping_and_pong(void)
{
    g_autoptr(GByteArray) out = g_byte_array_new();
    g_autoptr(GByteArray) answer = vector("ping");
    MuxStream *s;
    MuxEngine *e = destination_new(&s);

    answer->data[0] = MUX_FRAME_PONG;
    mux_engine_ping(e);
    expect(e, "ping");
    mux_feed(e, answer->data, answer->len, 0);
    g_assert_null(mux_engine_error(e));
    feed_vector(e, "ping");
    mux_drain(e, out, 0);
    g_assert_cmpmem(out->data, out->len, answer->data, answer->len);
    mux_engine_free(e);
}

static void take_goaway(const GByteArray *frame, const char *text)
{
    MuxStream *s;
    MuxEngine *e = destination_new(&s);

    mux_feed(e, frame->data, frame->len, 0);
    mux_expect_event(e, MUX_EVENT_ENDED);
    g_assert_nonnull(strstr(mux_engine_error(e), text));
    mux_engine_free(e);
}

static void test_taken_goaway(void)
{
    g_autoptr(GByteArray) goaway = vector("goaway");
    g_autoptr(GByteArray) refusal = refusal_of_versions();

    take_goaway(goaway, "bye");
    take_goaway(refusal, REFUSAL);
}

static void test_taken_hello_of_the_future(void)
{
    MuxEngine *e = engine_new(MUX_ROLE_SOURCE);

    feed_vector(e, "hello-future");
    mux_expect_event(e, MUX_EVENT_HELLO);
    g_assert_null(mux_engine_error(e));
    feed_vector(e, "ping");
    g_assert_null(mux_engine_error(e));
    mux_engine_free(e);
}

int main(int argc, char **argv)
{
    g_autofree char *path = NULL;
    g_autoptr(GError) err = NULL;
    int status;

    g_test_init(&argc, &argv, NULL);
    path = g_test_build_filename(G_TEST_DIST, "..", "..", "docs", "interop",
                                 "migration-mux.rst", NULL);
    if (!g_file_get_contents(path, &document, NULL, &err)) {
        g_error("%s", err->message);
    }

#define ADD(path, func) g_test_add_func("/mux/vectors/" path, func)
    ADD("every-vector-is-known", test_every_vector_is_known);
    ADD("sent/data-and-fin", test_sent_data_and_fin);
    ADD("sent/window-and-fin-ok", test_sent_window_and_fin_ok);
    ADD("sent/reset", test_sent_reset);
    ADD("sent/ping-and-pong", test_sent_ping_and_pong);
    ADD("sent/goaway", test_sent_goaway);
    ADD("sent/refusal-of-versions", test_sent_refusal_of_versions);
    ADD("taken/data-and-fin", test_taken_data_and_fin);
    ADD("taken/window-and-fin-ok", test_taken_window_and_fin_ok);
    ADD("taken/reset", test_taken_reset);
    ADD("taken/ping-and-pong", test_taken_ping_and_pong);
    ADD("taken/goaway", test_taken_goaway);
    ADD("taken/hello-of-the-future", test_taken_hello_of_the_future);
#undef ADD

    status = g_test_run();
    g_free(document);
    return status;
}
