/*
 * Migration multiplexer: how streams and sessions end
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "qemu/lockable.h"
#include "qemu/sockets.h"
#include "qemu/units.h"
#include "io/channel-socket.h"
#include "migration/mux/engine-int.h"
#include "migration/mux/session.h"
#include "mux-session-helpers.h"

static void streams_free(QIOChannel *a, QIOChannel *b)
{
    object_unref(OBJECT(a));
    object_unref(OBJECT(b));
}

/* The next read has to fail like this. */
static void assert_read_fails(QIOChannel *ioc, const char *text)
{
    Error *err = NULL;
    char c;

    g_assert_cmpint(qio_channel_read(ioc, &c, 1, &err), ==, -1);
    if (!strstr(error_get_pretty(err), text)) {
        g_error("'%s' lacks '%s'", error_get_pretty(err), text);
    }
    error_free(err);
}

static void assert_write_fails(QIOChannel *ioc, const char *text)
{
    Error *err = NULL;

    g_assert_cmpint(qio_channel_write(ioc, "x", 1, &err), ==, -1);
    if (!strstr(error_get_pretty(err), text)) {
        g_error("'%s' lacks '%s'", error_get_pretty(err), text);
    }
    error_free(err);
}

static MuxFailure *make_failure(const char *text)
{
    return mux_failure_new(NULL, MUX_CODE_ABORTED, "%s", text);
}

static MuxStreamState state(QIOChannel *ioc)
{
    return qio_channel_mux_state(QIO_CHANNEL_MUX(ioc));
}

/* Writing has failed. */
static bool session_cannot_write(MuxSession *s)
{
    QEMU_LOCK_GUARD(&s->lock);
    return s->tx_error;
}

/* Data has been received since the clock was last advanced. */
static bool session_heard(MuxSession *s)
{
    QEMU_LOCK_GUARD(&s->lock);
    return !s->engine->silent_parts && s->engine->silent_due > get_clock();
}

/* --- streams --- */

static void test_fin_round_trip(void)
{
    Pair *p = pair_new(0);
    QIOChannel *a, *b;
    char buf[4];

    a = open_stream(p, "main", &b);
    WAIT_FOR(state(a) == MUX_STREAM_OPEN && p->src.changed);
    qio_channel_write_all(a, "last", 4, &error_abort);
    qio_channel_shutdown(a, QIO_CHANNEL_SHUTDOWN_WRITE, &error_abort);
    qio_channel_read_all(b, buf, 4, &error_abort);
    g_assert_cmpint(qio_channel_read(b, buf, 4, &error_abort), ==, 0);

    /* Reading to the end is no FIN_OK: the application must send it */
    let_threads_wait();
    g_assert(!qio_channel_mux_fin_acked(QIO_CHANNEL_MUX(a)));
    p->src.changed = 0;
    qio_channel_mux_fin_ok(QIO_CHANNEL_MUX(b));
    WAIT_FOR(qio_channel_mux_fin_acked(QIO_CHANNEL_MUX(a)));
    WAIT_FOR(p->src.changed == 1);

    qio_channel_shutdown(b, QIO_CHANNEL_SHUTDOWN_BOTH, &error_abort);
    qio_channel_shutdown(b, QIO_CHANNEL_SHUTDOWN_BOTH, &error_abort);
    qio_channel_close(b, &error_abort);
    g_assert_cmpint(qio_channel_read(a, buf, 4, &error_abort), ==, 0);
    qio_channel_mux_fin_ok(QIO_CHANNEL_MUX(a));
    WAIT_FOR(state(b) == MUX_STREAM_FINISHED);
    g_assert_null(stream_error(a));
    g_assert_null(stream_error(b));
    assert_write_fails(a, "cannot write after shutdown");
    streams_free(a, b);
    pair_free(p);
}

static void run_abort(bool from_source)
{
    Pair *p = pair_new(0);
    g_autoptr(MuxFailure) why = make_failure("the disk is full");
    QIOChannel *a, *b, *actor, *other;
    g_autofree char *text = NULL;
    g_autofree char *seen = NULL;
    Worker *reader;

    a = open_stream(p, "nbd-disk0", &b);
    actor = from_source ? a : b;
    other = from_source ? b : a;
    reader = reader_new(other, 0, 100);
    qio_channel_mux_abort(QIO_CHANNEL_MUX(actor), why);
    seen = worker_join(reader);
    g_assert(strstr(seen, "nbd-disk0"));
    g_assert(strstr(seen, "the disk is full"));
    text = stream_error(other);
    g_assert_cmpstr(text, ==, seen);
    assert_write_fails(other, "the disk is full");
    assert_read_fails(actor, "the disk is full");
    assert_write_fails(actor, "the disk is full");
    g_assert_cmpint(state(other), ==, MUX_STREAM_RESET);
    g_assert_cmpint(p->src.ended + p->dst.ended, ==, 0);
    streams_free(a, b);
    pair_free(p);
}

static void test_abort(void)
{
    run_abort(true);
    run_abort(false);
}

/* A writer that waits for credit also gets the peer's error text. */
static void test_abort_blocked_writer(void)
{
    Pair *p = pair_new(0);
    g_autoptr(MuxFailure) why = make_failure("it is enough");
    g_autofree char *seen = NULL;
    QIOChannel *a, *b;
    Worker *writer;

    a = open_stream(p, "nbd-disk0", &b);
    writer = writer_new(a, 0, 1 * GiB, MiB);
    WAIT_FOR(stream_out_of_credit(a));
    g_assert(!worker_done(writer));
    qio_channel_mux_abort(QIO_CHANNEL_MUX(b), why);
    seen = worker_join(writer);
    g_assert(strstr(seen, "it is enough"));
    streams_free(a, b);
    pair_free(p);
}

static void test_refused(void)
{
    Pair *p = pair_new(0);
    g_autofree char *error = NULL;
    QIOChannel *a;

    p->dst.refuse = true;
    a = open_stream(p, "nbd-disk9", NULL);
    error = worker_join(reader_new(a, 0, 1));
    g_assert(strstr(error, "no room for nbd-disk9"));
    assert_write_fails(a, "no room for nbd-disk9");
    WAIT_FOR(p->src.changed > 0);
    object_unref(OBJECT(a));
    pair_free(p);
}

static void *accept_stream(void *opaque)
{
    qio_channel_mux_accept(opaque);
    return NULL;
}

/* I/O may start at once, and waits for OPEN_OK. */
static void test_accepted_later(void)
{
    Pair *p = pair_new(0);
    QIOChannel *a, *b;
    QemuThread thread;
    Worker *writer;

    p->dst.defer = true;
    a = open_stream(p, "main", &b);
    writer = writer_new(a, 0, MiB, 10 * KiB);
    let_threads_wait();
    g_assert(!worker_done(writer));
    g_assert_cmpint(state(a), ==, MUX_STREAM_OPENING);
    qemu_thread_create(&thread, "accept", accept_stream, b,
                       QEMU_THREAD_JOINABLE);
    worker_join_ok(writer, MiB);
    qemu_thread_join(&thread);
    streams_free(a, b);
    pair_free(p);
}

static void assert_failure(MuxFailure *f, const char *stream, uint32_t code,
                           bool by_peer, const char *text)
{
    g_assert_nonnull(f);
    g_assert_cmpstr(f->stream, ==, stream);
    g_assert_cmpuint(f->cause.code, ==, code);
    g_assert(f->cause.by_peer == by_peer);
    g_assert_cmpstr(f->text, ==, text);
    mux_failure_free(f);
}

static void test_failure_text(void)
{
    g_autoptr(MuxFailure) late = mux_failure_timeout("main", 2500, "the test");
    g_autoptr(MuxFailure) all = make_failure("no room");
    g_autofree char *all_text = mux_failure_text(all);
    g_autofree char *text = mux_failure_text(late);
    g_autofree char *within = mux_failure_text_within(late, "main");
    g_autofree char *elsewhere = mux_failure_text_within(late, "nbd-disk0");
    g_autofree char *connection = mux_failure_text_within(late, NULL);
    g_autofree char *all_within = mux_failure_text_within(all, "main");

    g_assert_cmpuint(late->cause.code, ==, MUX_CODE_TIMEOUT);
    g_assert_cmpstr(all_text, ==, "all streams: no room");
    g_assert_cmpstr(text, ==, "stream 'main': timed out after 2.5 s waiting "
                    "for the test");
    g_assert_cmpstr(within, ==, "timed out after 2.5 s waiting for the test");
    g_assert_cmpstr(elsewhere, ==, text);
    g_assert_cmpstr(connection, ==, text);
    g_assert_cmpstr(all_within, ==, "no room");
}

/* A stream is aborted because of another one: both are named, each once. */
static void test_abort_streams(void)
{
    g_autoptr(MuxFailure) why =
        mux_failure_new("nbd-disk0", MUX_CODE_TIMEOUT, "the disk hangs");
    Pair *p = pair_new(0);
    QIOChannel *a[3], *b[3];

    a[0] = open_stream(p, "control", &b[0]);
    a[1] = open_stream(p, "main", &b[1]);
    a[2] = open_stream(p, "nbd-disk0", &b[2]);
    g_assert_null(mux_session_find_failure(p->src.session));
    mux_session_abort_streams(p->src.session, QIO_CHANNEL_MUX(a[0]), why);
    WAIT_FOR(state(b[1]) == MUX_STREAM_RESET &&
             state(b[2]) == MUX_STREAM_RESET);
    g_assert_cmpint(state(b[0]), ==, MUX_STREAM_OPEN);

    /* The first one that was opened, as each side knows it */
    assert_failure(mux_session_find_failure(p->src.session), "main",
                   MUX_CODE_TIMEOUT, false,
                   "aborted: stream 'nbd-disk0': the disk hangs");
    assert_failure(mux_session_find_failure(p->dst.session), "main",
                   MUX_CODE_ABORTED, true,
                   "aborted by the source: stream 'nbd-disk0': the disk hangs");
    assert_failure(qio_channel_mux_get_failure(QIO_CHANNEL_MUX(b[2])),
                   "nbd-disk0", MUX_CODE_ABORTED, true,
                   "aborted by the source: the disk hangs");

    /* The end of the connection concerns all streams. */
    mux_session_yank(p->src.session);
    WAIT_FOR(p->dst.ended);
    assert_failure(mux_session_find_failure(p->src.session), NULL,
                   MUX_CODE_OK, false, "connection with the destination "
                   "failed: the connection was yanked");
    for (int i = 0; i < 3; i++) {
        streams_free(a[i], b[i]);
    }
    pair_free(p);
}

static void test_open_error(void)
{
    Pair *p = pair_new(0);
    MuxFailure *failure = NULL;

    g_assert_null(mux_session_open(p->src.session, "", &failure));
    g_assert_cmpstr(failure->stream, ==, "");
    g_clear_pointer(&failure, mux_failure_free);
    mux_session_yank(p->src.session);
    g_assert_null(mux_session_open(p->src.session, "main", &failure));
    g_assert_null(failure->stream);
    g_assert_cmpint(failure->cause.code, ==, MUX_CODE_OK);
    g_assert_false(failure->cause.by_peer);
    g_assert_cmpstr(failure->text, ==, "connection with the destination "
                    "failed: the connection was yanked");
    mux_failure_free(failure);
    pair_free(p);
}

/* --- sessions --- */

/* The source has closed: after @b is released, both ends end without error. */
static void drop_and_assert_good_end(Pair *p, QIOChannel *b)
{
    object_unref(OBJECT(b));
    g_ptr_array_set_size(p->dst.streams, 0);
    WAIT_FOR(p->src.ended && p->dst.ended);
    g_assert_cmpstr(p->src.error, ==, NULL);
    g_assert_cmpstr(p->dst.error, ==, NULL);
}

/* Streams released with data in flight: the data arrives, without errors. */
static void test_release_delivers(void)
{
    Pair *p = pair_new(4096);
    QIOChannel *a, *b;
    Worker *writer, *reader;

    a = open_stream(p, "main", &b);
    writer = writer_new(a, 3, 100 * KiB, 10 * KiB);
    worker_join_ok(writer, 100 * KiB);
    object_unref(OBJECT(a));
    mux_session_close(p->src.session, NULL, CLOSE_MS);
    reader = reader_new(b, 3, 1000);
    worker_join_ok(reader, 100 * KiB);
    g_assert(!p->src.ended);
    drop_and_assert_good_end(p, b);
    pair_free(p);
}

/* Data of a non-blocking writer is flushed before the session closes. */
static void test_close_flushes(void)
{
    Pair *p = pair_new(4096);
    g_autofree uint8_t *buf = g_malloc(150 * KiB);
    QIOChannel *a, *b;
    Worker *reader;
    ssize_t len;

    a = open_stream(p, "main", &b);
    WAIT_FOR(state(a) == MUX_STREAM_OPEN);
    qio_channel_set_blocking(a, false, &error_abort);
    pattern_fill(buf, 150 * KiB, 1, 0);
    len = qio_channel_write(a, (char *)buf, 150 * KiB, &error_abort);
    g_assert_cmpint(len, >, 8192);
    reader = reader_new(b, 1, 1000);
    object_unref(OBJECT(a));
    mux_session_close(p->src.session, NULL, CLOSE_MS);
    worker_join_ok(reader, len);
    drop_and_assert_good_end(p, b);
    pair_free(p);
}

/*
 * While the session is being closed, a stream whose last message is still to be
 * read can be finished: its owner may keep it until the end.
 */
static void test_close_finishes_what_is_held(void)
{
    Pair *p = pair_new(0);
    QIOChannel *a, *b;
    char c;

    a = open_stream(p, "control", &b);
    WAIT_FOR(state(a) == MUX_STREAM_OPEN);
    mux_session_close(p->src.session, NULL, CLOSE_MS);
    qio_channel_shutdown(a, QIO_CHANNEL_SHUTDOWN_WRITE, &error_abort);
    qio_channel_mux_fin_ok(QIO_CHANNEL_MUX(a));
    qio_channel_write_all(b, "x", 1, &error_abort);
    drop_and_assert_good_end(p, b);
    WAIT_FOR(session_closed(p->src.session));
    g_assert_cmpint(qio_channel_read(a, &c, 1, &error_abort), ==, 1);
    object_unref(OBJECT(a));
    pair_free(p);
}

static void test_close_tells_why(void)
{
    Pair *p = pair_new(0);
    g_autoptr(MuxFailure) why = make_failure("could not load device state");
    QIOChannel *a, *b;

    a = open_stream(p, "main", &b);
    mux_session_close_wait(p->dst.session, why, CLOSE_MS);
    assert_read_fails(a, "could not load device state");
    assert_write_fails(a, "could not load device state");
    assert_read_fails(b, "could not load device state");
    WAIT_FOR(p->src.ended && p->dst.ended);
    g_assert(strstr(p->src.error, "could not load device state"));
    g_assert_cmpint(p->src.ended, ==, 1);
    streams_free(a, b);
    pair_free(p);
}

/* --- time limits, with the clock stopped --- */

#define DESTINATION_HELLO \
    "QMUX" "\0\2" "\0\2" "\0\0\0\x3c" "\0\0\0\0\0\0\0\0" \
    "\0\0\0\0\0\0\0\0" "\0\4\0\0" "\0\0\0\1" "\0\0\0\2" \
    "\0\0\0\0\0\0\0\0" "\0\0\0\0\0\0\0\0" "\0\0\0\0"

/* A session whose peer is played by the test */
typedef struct Lone {
    MuxSession *session;
    QIOChannel *transport;
    int fd;                     /* the peer's end */
    char *end;                  /* the session's error; NULL: not ended */
} Lone;

static void lone_start(Lone *l, QIOChannel *transport)
{
    l->transport = transport;
    l->session = mux_session_new(transport, MUX_ROLE_SOURCE, &note_end_ops,
                                 &l->end);
}

/* @deaf: the peer has shut down its read side */
static void lone_start_socket(Lone *l, bool deaf)
{
    int fds[2];

    socket_pair(fds, 4096);
    l->fd = fds[1];
    if (deaf) {
        shutdown(l->fd, SHUT_RD);
    }
    lone_start(l, QIO_CHANNEL(qio_channel_socket_new_fd(fds[0],
                                                        &error_abort)));
}

/* Assert that the session closes in @ms from now, not earlier. */
static void assert_closes_in(Lone *l, int ms)
{
    clock_advance(ms - 1);
    let_threads_wait();
    g_assert(!session_closed(l->session));
    clock_advance(1);
    WAIT_FOR(session_closed(l->session) && l->end);
}

static void lone_free(Lone *l)
{
    session_free(l->session, l->transport);
    close(l->fd);
    g_free(l->end);
}

/* The peer neither reads nor writes: closing respects the time limit. */
static void test_close_bounded(void)
{
    Lone l = {};

    clock_stop();
    lone_start_socket(&l, false);
    mux_session_close(l.session, NULL, 300);
    assert_closes_in(&l, 300);
    g_assert_nonnull(l.end);
    clock_run();
    lone_free(&l);
}

/* So does mux_session_close_wait(). */
static void test_close_wait_bounded(void)
{
    Lone l = {};

    lone_start_socket(&l, false);
    mux_session_close_wait(l.session, NULL, 300);
    lone_free(&l);
}

static void *flood_thread(void *opaque)
{
    static const char hello[] = DESTINATION_HELLO;
    static const char zeroes[4096];
    int fd = *(int *)opaque;

    g_assert_cmpint(send(fd, hello, sizeof(hello) - 1, MSG_NOSIGNAL), ==,
                    sizeof(hello) - 1);
    while (send(fd, zeroes, sizeof(zeroes), MSG_NOSIGNAL) > 0) {
        continue;
    }
    return NULL;
}

/* The peer never stops sending: it is read only up to the time limit. */
static void test_close_flooded(void)
{
    Lone l = {};
    QemuThread thread;

    clock_stop();
    lone_start_socket(&l, false);
    qemu_thread_create(&thread, "flood", flood_thread, &l.fd,
                       QEMU_THREAD_JOINABLE);
    WAIT_FOR(l.end);
    mux_session_close(l.session, NULL, 300);
    assert_closes_in(&l, 300);
    clock_run();
    qemu_thread_join(&thread);
    lone_free(&l);
}

/*
 * A peer that speaks another protocol learns at once, by the bytes that are
 * left unread, that they are of no use.
 */
static void test_close_foreign(void)
{
    static const char stream[64 * KiB] = "QEVM";
    Lone l = {};

    clock_stop();
    lone_start_socket(&l, false);
    g_assert_cmpint(send(l.fd, stream, sizeof(stream),
                         MSG_NOSIGNAL | MSG_DONTWAIT), >, 0);
    WAIT_FOR(l.end && session_closed(l.session));
    clock_run();
    g_assert(strstr(l.end, "does not speak the migration multiplexer"));
    mux_session_close(l.session, NULL, 300);
    WAIT_FOR(send(l.fd, stream, 1, MSG_NOSIGNAL | MSG_DONTWAIT) < 0 &&
             errno != EAGAIN);
    lone_free(&l);
}

/*
 * The peer does not read: a session that was closed without error ends with an
 * error.  Returns its text, to be freed.
 */
static char *close_unsent(const uint8_t *answer, size_t len)
{
    Lone l = {};
    char *end;

    clock_stop();
    lone_start_socket(&l, true);
    WAIT_FOR(session_cannot_write(l.session));
    mux_session_close(l.session, NULL, 300);
    let_threads_wait();
    g_assert_null(l.end);
    if (len) {
        g_assert_cmpint(write(l.fd, answer, len), ==, len);
    } else {
        clock_advance(300);
    }
    WAIT_FOR(l.end);
    end = g_steal_pointer(&l.end);
    clock_run();
    lone_free(&l);
    return end;
}

static void test_close_unsent(void)
{
    static const uint8_t answer[] =
        DESTINATION_HELLO "\x0a\0\0\0" "\0\0\0\0" "\0\0\0\4" "\0\0\0\6" "full";
    g_autofree char *cut = close_unsent(NULL, 0);
    g_autofree char *text = close_unsent(answer, sizeof(answer) - 1);

    /* The rest is the error text of the transport */
    g_assert(g_str_has_prefix(cut, "all streams: connection with the "
                              "destination failed: "));
    g_assert_null(strstr(cut, "too long"));
    g_assert_cmpstr(text, ==,
                    "all streams: destination ended the connection: full");
}

/* Read until @text has come; returns all that came, to be freed. */
static GString *read_up_to(int fd, const char *text)
{
    GString *all = g_string_new(NULL);
    char buf[4096];
    ssize_t len;

    do {
        len = recv(fd, buf, sizeof(buf), 0);
        g_assert_cmpint(len, >, 0);
        g_string_append_len(all, buf, len);
    } while (!memmem(all->str, all->len, text, strlen(text)));
    return all;
}

/*
 * The peer opens a stream while an error cannot be sent yet: that error is the
 * reason to refuse it.
 */
static void test_close_refuses_with_why(void)
{
    static const char hello[] = DESTINATION_HELLO;
    static const char open_ok[] = "\x02\0\0\0" "\0\0\0\1" "\0\0\0\x8" "\0\0\0\0"
        "\0\0\0\0\x40\0\0\0";
    static const char open[] = "\x01\0\0\0" "\0\0\0\2" "\0\0\0\x0d" "\0\0\0\0"
        "\0\0\0\0\0\0\0\0" "\0\x01\0\0" "x";
    static const char data[64 * KiB];
    g_autoptr(MuxFailure) why = make_failure("shut down");
    QIOChannelMux *ioc;
    GString *got;
    Lone l = {};

    clock_stop();
    lone_start_socket(&l, false);
    ioc = mux_session_open(l.session, "main", NULL);
    qio_channel_set_blocking(QIO_CHANNEL(ioc), false, &error_abort);
    g_assert_cmpint(write(l.fd, hello, sizeof(hello) - 1), ==,
                    sizeof(hello) - 1);
    g_string_free(read_up_to(l.fd, "main"), true);
    g_assert_cmpint(write(l.fd, open_ok, sizeof(open_ok) - 1), ==,
                    sizeof(open_ok) - 1);
    WAIT_FOR(qio_channel_write(QIO_CHANNEL(ioc), data, sizeof(data),
                               &error_abort) > 0);

    mux_session_close(l.session, why, 300);
    g_assert_cmpint(write(l.fd, open, sizeof(open) - 1), ==, sizeof(open) - 1);
    let_threads_wait();
    got = read_up_to(l.fd, "shut down");
    g_assert_null(memmem(got->str, got->len, "does not accept", 15));
    clock_run();

    g_string_free(got, true);
    object_unref(OBJECT(ioc));
    close(l.fd);
    l.fd = -1;
    WAIT_FOR(l.end && session_closed(l.session));
    session_free(l.session, l.transport);
    g_free(l.end);
}

/* The connection is cut: received data is read first, then the error. */
static void test_cut(void)
{
    Pair *p = pair_new(0);
    g_autofree uint8_t *buf = g_malloc(MiB);
    g_autofree char *error = NULL;
    QIOChannel *a, *b;
    Worker *reader;

    a = open_stream(p, "main", &b);
    pattern_fill(buf, MiB, 7, 0);
    qio_channel_write_all(a, (char *)buf, MiB, &error_abort);
    reader = reader_new(a, 0, 100);
    shutdown(p->src.fd, SHUT_RDWR);
    error = worker_join(reader);
    g_assert(strstr(error, "all streams: "));
    WAIT_FOR(p->src.ended && p->dst.ended);
    g_assert_nonnull(p->src.error);
    g_assert_nonnull(p->dst.error);

    memset(buf, 0, MiB);
    qio_channel_read_all(b, (char *)buf, MiB, &error_abort);
    pattern_check(buf, MiB, 7, 0);
    assert_read_fails(b, "all streams: ");
    assert_write_fails(a, "all streams: ");
    streams_free(a, b);
    pair_free(p);
}

/* All of it is written, or the caller knows that the peer lacks some. */
static void test_write_whole(void)
{
    Pair *p = pair_new(0);
    g_autofree uint8_t *buf = g_malloc0(MiB);
    g_autofree char *error = NULL;
    QIOChannel *a, *b;
    MuxFailure *failure = NULL;

    a = open_stream(p, "main", &b);
    qio_channel_set_blocking(a, false, &error_abort);
    pattern_fill(buf, 100, 7, 0);
    WAIT_FOR(qio_channel_mux_write_whole(QIO_CHANNEL_MUX(a), buf, 100, NULL));
    memset(buf, 0, 100);
    qio_channel_read_all(b, (char *)buf, 100, &error_abort);
    pattern_check(buf, 100, 7, 0);

    g_assert_false(qio_channel_mux_write_whole(QIO_CHANNEL_MUX(a), buf, MiB,
                                               &failure));
    assert_failure(failure, "main", MUX_CODE_ABORTED, false,
                   "the peer does not accept data");
    streams_free(a, b);
    pair_free(p);
}

/* An earlier write has failed, but the connection has not ended yet. */
static void test_write_whole_too_late(void)
{
    Pair *p = pair_new(0);
    g_autoptr(MuxFailure) failure = NULL;
    QIOChannel *a, *b;

    a = open_stream(p, "main", &b);
    qio_channel_set_blocking(a, false, &error_abort);
    shutdown(p->src.fd, SHUT_WR);
    qio_channel_write(a, "x", 1, NULL);
    /* The peer may end the connection before that write is tried. */
    WAIT_FOR(session_cannot_write(p->src.session) || p->src.ended);
    g_assert_false(qio_channel_mux_write_whole(QIO_CHANNEL_MUX(a), "y", 1,
                                               &failure));
    g_assert_null(failure->stream);
    streams_free(a, b);
    pair_free(p);
}

/* Sessions with idle streams ping each other within the limit. */
static void test_idle_is_not_silent(void)
{
    Pair *p = pair_new(0);
    QIOChannel *a, *b;
    char byte = 1;

    a = open_stream(p, "main", &b);
    clock_stop();
    mux_session_set_silence(p->src.session, 150);
    mux_session_set_silence(p->dst.session, 150);
    for (int i = 0; i < 7; i++) {
        clock_advance(50);
        WAIT_FOR(session_heard(p->src.session) &&
                 session_heard(p->dst.session));
    }
    clock_run();
    mux_session_set_silence(p->src.session, 0);
    mux_session_set_silence(p->dst.session, 0);
    qio_channel_write_all(b, &byte, 1, &error_abort);
    qio_channel_read_all(a, &byte, 1, &error_abort);
    streams_free(a, b);
    pair_free(p);
}

static void test_yank(void)
{
    Pair *p = pair_new(4096);
    QIOChannel *a, *b, *c, *d;
    Worker *reader, *writer, *stuck;
    char *error;

    a = open_stream(p, "main", &b);
    c = open_stream(p, "nbd-disk0", &d);
    reader = reader_new(a, 0, 100);
    writer = writer_new(a, 0, 1 * GiB, MiB);
    stuck = writer_new(c, 0, 1 * GiB, 100 * KiB);
    WAIT_FOR(stream_out_of_credit(a) && stream_out_of_credit(c));
    mux_session_yank(p->src.session);
    mux_session_yank(p->src.session);
    error = worker_join(reader);
    g_assert(strstr(error, "the connection was yanked"));
    g_free(error);
    error = worker_join(writer);
    g_assert(strstr(error, "the connection was yanked"));
    g_free(error);
    error = worker_join(stuck);
    g_assert(strstr(error, "the connection was yanked"));
    g_free(error);
    WAIT_FOR(p->src.ended && p->dst.ended);
    streams_free(a, b);
    streams_free(c, d);
    pair_free(p);
}

/* Only its streams and threads hold a reference to the session. */
static void test_last_reference(void)
{
    Pair *p = pair_new(0);
    QIOChannel *a, *b;

    a = open_stream(p, "main", &b);
    mux_session_detach(p->src.session);
    mux_session_close(p->src.session, NULL, 50);
    mux_session_unref(mux_session_ref(p->src.session));
    WAIT_FOR(p->dst.ended);
    g_assert_cmpint(p->src.ended, ==, 0);
    streams_free(a, b);
    pair_free(p);
}

static void test_detached_refuses(void)
{
    Pair *p = pair_new(0);
    QIOChannel *a;

    WAIT_FOR(p->dst.ready);
    mux_session_detach(p->dst.session);
    a = open_stream(p, "main", NULL);
    assert_read_fails(a, "this side does not accept streams");
    object_unref(OBJECT(a));
    pair_free(p);
}

/* --- all at once --- */

/* The same sequence in each run, unless MUX_TEST_SEED is set */
#define CHAOS_SEED 20217
static GRand *whims;

static void disturb(Pair *p, QIOChannel *ioc)
{
    g_autoptr(MuxFailure) why = make_failure("on a whim");

    switch (g_rand_int_range(whims, 0, 6)) {
    case 0:
        qio_channel_shutdown(ioc, QIO_CHANNEL_SHUTDOWN_READ, &error_abort);
        break;
    case 1:
        qio_channel_shutdown(ioc, QIO_CHANNEL_SHUTDOWN_WRITE, &error_abort);
        break;
    case 2:
        qio_channel_shutdown(ioc, QIO_CHANNEL_SHUTDOWN_BOTH, &error_abort);
        break;
    case 3:
        qio_channel_close(ioc, &error_abort);
        break;
    case 4:
        qio_channel_mux_abort(QIO_CHANNEL_MUX(ioc), why);
        break;
    case 5:
        qio_channel_mux_fin_ok(QIO_CHANNEL_MUX(ioc));
        break;
    }
    for (int i = g_rand_int_range(whims, 0, 10); i > 0; i--) {
        main_loop_wait(true);
        g_usleep(100);
    }
}

static void end_somehow(Pair *p)
{
    g_autoptr(MuxFailure) why = make_failure("enough");
    End *end = g_rand_boolean(whims) ? &p->src : &p->dst;

    switch (g_rand_int_range(whims, 0, 4)) {
    case 0:
        mux_session_yank(end->session);
        break;
    case 1:
        mux_session_close(end->session, why, 50);
        break;
    case 2:
        mux_session_close_wait(end->session, NULL, 50);
        break;
    case 3:
        shutdown(end->fd, SHUT_RDWR);
        break;
    }
}

static void run_chaos(bool nonblocking)
{
    enum { N = 12 };
    Pair *p = pair_new(g_rand_int_range(whims, 0, 2) * 8192);
    QIOChannel *ioc[N];
    Worker *workers[2 * N];
    int i;

    for (i = 0; i < N; i += 2) {
        ioc[i] = open_stream(p, "chaos", &ioc[i + 1]);
    }
    for (i = 0; i < N; i++) {
        if (nonblocking) {
            qio_channel_set_blocking(ioc[i], false, &error_abort);
            workers[2 * i] = writer_new(ioc[i], i, GiB, 100 * KiB);
            workers[2 * i + 1] = writer_new(ioc[i], i, GiB, 1000);
        } else {
            workers[2 * i] = writer_new(ioc[i], i, GiB, 100 * KiB);
            workers[2 * i + 1] = reader_new(ioc[i], i ^ 1, 10 * KiB);
        }
    }
    for (i = 0; i < N; i++) {
        disturb(p, ioc[g_rand_int_range(whims, 0, N)]);
    }
    end_somehow(p);
    for (i = 0; i < 2 * N; i++) {
        g_free(worker_join(workers[i]));
    }
    for (i = 0; i < N; i++) {
        object_unref(OBJECT(ioc[i]));
    }
    WAIT_FOR(p->src.ended && p->dst.ended);
    g_assert_cmpint(p->src.ended, ==, 1);
    g_assert_cmpint(p->dst.ended, ==, 1);
    pair_free(p);
}

static void test_chaos(void)
{
    const char *env = g_getenv("MUX_TEST_SEED");
    uint32_t seed = env ? g_ascii_strtoull(env, NULL, 0) : CHAOS_SEED;
    int rounds = g_test_slow() ? 200 : 10;

    g_test_message("MUX_TEST_SEED=%u", seed);
    whims = g_rand_new_with_seed(seed);
    while (rounds--) {
        run_chaos(rounds % 2);
    }
    g_rand_free(whims);
}

static unsigned count_entries(const char *path)
{
    GDir *dir = g_dir_open(path, 0, NULL);
    unsigned n = 0;

    while (dir && g_dir_read_name(dir)) {
        n++;
    }
    g_clear_pointer(&dir, g_dir_close);
    return n;
}

static unsigned threads_at_start;

/* Neither a descriptor nor a thread is left behind. */
static void test_nothing_left(void)
{
    unsigned fds;
    int i;

    /* Run what earlier tests have scheduled in the main loop */
    WAIT_FOR(count_entries("/proc/self/task") == threads_at_start);
    while (g_main_context_iteration(NULL, false)) {
        continue;
    }
    fds = count_entries("/proc/self/fd");
    for (i = 0; i < 5; i++) {
        Pair *p = pair_new(0);
        QIOChannel *a, *b;

        a = open_stream(p, "main", &b);
        qio_channel_set_blocking(a, false, &error_abort);
        qio_channel_wait(b, G_IO_OUT);
        if (i % 2) {
            mux_session_yank(p->src.session);
        }
        streams_free(a, b);
        pair_free(p);
    }
    WAIT_FOR(count_entries("/proc/self/task") == threads_at_start);
    WAIT_FOR(count_entries("/proc/self/fd") == fds);
}

/* The text for the peer names no files. */
static void test_peer_text(void)
{
    const struct {
        const char *text, *sent;
    } cases[] = {
        { "nothing", "nothing" },
        { "/dev/sda", "(file)" },
        { "Could not open '/a b/c': No such file",
          "Could not open '(file)': No such file" },
        { "json:{\"filename\":\"/a'b\"}",
          "json:{\"filename\":\"(file)\"}" },
        { "using the image [/x/y z]?", "using the image [(file)]?" },
        { "unix:/run/x, and (/y)", "unix:(file), and ((file))" },
        { "file=/x y", "file=(file) y" },
        { "device '0000:00:02.0/virtio-blk'",
          "device '0000:00:02.0/virtio-blk'" },
        { "read/write error", "read/write error" },
        { "'/never closed", "'(file)" },
    };

    for (unsigned i = 0; i < ARRAY_SIZE(cases); i++) {
        g_autofree char *sent = mux_peer_text(cases[i].text);

        g_assert_cmpstr(sent, ==, cases[i].sent);
    }
}

int main(int argc, char **argv)
{
    session_test_init(&argc, &argv);
    threads_at_start = count_entries("/proc/self/task");
    g_test_add_func("/io/channel/mux/fin-round-trip", test_fin_round_trip);
    g_test_add_func("/io/channel/mux/abort", test_abort);
    g_test_add_func("/io/channel/mux/abort-blocked-writer",
                    test_abort_blocked_writer);
    g_test_add_func("/io/channel/mux/refused", test_refused);
    g_test_add_func("/io/channel/mux/accepted-later", test_accepted_later);
    g_test_add_func("/io/channel/mux/open-error", test_open_error);
    g_test_add_func("/io/channel/mux/failure-text", test_failure_text);
    g_test_add_func("/io/channel/mux/abort-streams",
                    test_abort_streams);
    g_test_add_func("/io/channel/mux/release-delivers", test_release_delivers);
    g_test_add_func("/io/channel/mux/close-flushes", test_close_flushes);
    g_test_add_func("/io/channel/mux/close-finishes-what-is-held",
                    test_close_finishes_what_is_held);
    g_test_add_func("/io/channel/mux/close-tells-why", test_close_tells_why);
    g_test_add_func("/io/channel/mux/close-bounded", test_close_bounded);
    g_test_add_func("/io/channel/mux/close-wait-bounded",
                    test_close_wait_bounded);
    g_test_add_func("/io/channel/mux/close-flooded", test_close_flooded);
    g_test_add_func("/io/channel/mux/close-foreign", test_close_foreign);
    g_test_add_func("/io/channel/mux/close-unsent", test_close_unsent);
    g_test_add_func("/io/channel/mux/close-refuses-with-why",
                    test_close_refuses_with_why);
    g_test_add_func("/io/channel/mux/cut", test_cut);
    g_test_add_func("/io/channel/mux/write-whole", test_write_whole);
    g_test_add_func("/io/channel/mux/write-whole-too-late",
                    test_write_whole_too_late);
    g_test_add_func("/io/channel/mux/idle-is-not-silent",
                    test_idle_is_not_silent);
    g_test_add_func("/io/channel/mux/yank", test_yank);
    g_test_add_func("/io/channel/mux/last-reference", test_last_reference);
    g_test_add_func("/io/channel/mux/detached-refuses", test_detached_refuses);
    g_test_add_func("/io/channel/mux/chaos", test_chaos);
#ifdef CONFIG_LINUX
    g_test_add_func("/io/channel/mux/peer-text", test_peer_text);
    g_test_add_func("/io/channel/mux/nothing-left", test_nothing_left);
#endif
    return g_test_run();
}
