/*
 * Migration multiplexer: streams as QIOChannels
 *
 * Two sessions in one process over a socket pair.  What the protocol does is
 * tested with the engine; here it is about threads, waiting and event loops.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "qemu/coroutine.h"
#include "qemu/iov.h"
#include "qemu/sockets.h"
#include "qemu/units.h"
#include "iothread.h"
#include "mux-session-helpers.h"

static QIOChannel *open_nonblocking(Pair *p, const char *name,
                                    QIOChannel **peer)
{
    QIOChannel *ioc = open_stream(p, name, peer);

    qio_channel_set_blocking(ioc, false, &error_abort);
    qio_channel_set_blocking(*peer, false, &error_abort);
    return ioc;
}

static void streams_free(QIOChannel *a, QIOChannel *b)
{
    object_unref(OBJECT(a));
    object_unref(OBJECT(b));
}

/* --- blocking threads --- */

static void test_blocking(void)
{
    Pair *p = pair_new(0);

    run_blocking(p, 3, 20 * MiB, 300 * KiB);
    pair_free(p);
}

static void test_small_buffers(void)
{
    Pair *p = pair_new(4096);

    run_blocking(p, 4, 2 * MiB, 5000);
    pair_free(p);
}

static void test_many_streams(void)
{
    Pair *p = pair_new(16384);

    run_blocking(p, 100, 64 * KiB, 4000);
    pair_free(p);
}

/* What a blocking write has taken is in the kernel, wherever it was cut. */
static void test_write_returns_when_sent(void)
{
    Pair *p = pair_new(0);
    QIOChannel *a, *b;
    char buf[1000] = "x";
    size_t got = 0;

    a = open_stream(p, "main", &b);
    g_assert_cmpint(qio_channel_write(a, buf, sizeof(buf), &error_abort), ==,
                    sizeof(buf));
    mux_session_yank(p->src.session);
    while (got < sizeof(buf)) {
        got += qio_channel_read(b, buf, sizeof(buf), &error_abort);
    }
    streams_free(a, b);
    pair_free(p);
}

/* A stream that is not read does not block the others. */
static void test_stalled_stream(void)
{
    Pair *p = pair_new(0);
    QIOChannel *stalled, *unread, *a, *b;
    Worker *blocked, *writer, *reader;
    g_autofree char *error = NULL;

    stalled = open_stream(p, "stalled", &unread);
    a = open_stream(p, "main", &b);
    blocked = writer_new(stalled, 1, 1 * GiB, 100 * KiB);
    writer = writer_new(a, 2, 30 * MiB, 100 * KiB);
    reader = reader_new(b, 2, 100 * KiB);
    worker_join_ok(writer, 30 * MiB);
    qio_channel_shutdown(a, QIO_CHANNEL_SHUTDOWN_WRITE, &error_abort);
    worker_join_ok(reader, 30 * MiB);
    g_assert(!worker_done(blocked));

    /* and a shutdown gets the writer out of it */
    qio_channel_shutdown(stalled, QIO_CHANNEL_SHUTDOWN_BOTH, &error_abort);
    error = worker_join(blocked);
    g_assert(strstr(error, "cannot write after shutdown"));
    streams_free(stalled, unread);
    streams_free(a, b);
    pair_free(p);
}

static void test_shutdown_unblocks_reader(void)
{
    Pair *p = pair_new(0);
    QIOChannel *a, *b;
    Worker *reader;
    int fin;

    a = open_stream(p, "main", &b);
    reader = reader_new(a, 0, 100);
    let_threads_wait();
    g_assert(!worker_done(reader));
    qio_channel_shutdown(a, QIO_CHANNEL_SHUTDOWN_READ, &error_abort);
    worker_join_ok(reader, 0);

    /* The other direction still works; what comes here is dropped. */
    fin = 10 * MiB;
    worker_join_ok(writer_new(b, 1, fin, 100 * KiB), fin);
    reader = reader_new(b, 2, 1000);
    worker_join_ok(writer_new(a, 2, 5000, 1000), 5000);
    qio_channel_shutdown(a, QIO_CHANNEL_SHUTDOWN_WRITE, &error_abort);
    worker_join_ok(reader, 5000);
    streams_free(a, b);
    pair_free(p);
}

/* Threads that use one direction of a stream at once: none is forgotten. */
static void test_shared_stream(void)
{
    Pair *p = pair_new(8192);
    g_autofree char *buf = g_malloc(8 * MiB);
    QIOChannel *a, *b;
    Worker *writer[4], *reader[2];
    int i;

    a = open_stream(p, "main", &b);
    for (i = 0; i < 4; i++) {
        writer[i] = writer_new(a, i, 2 * MiB, 2000);
    }
    qio_channel_read_all(b, buf, 8 * MiB, &error_abort);
    for (i = 0; i < 4; i++) {
        worker_join_ok(writer[i], 2 * MiB);
    }

    reader[0] = reader_new(a, 0, 100);
    reader[1] = reader_new(a, 0, 100);
    let_threads_wait();
    qio_channel_shutdown(a, QIO_CHANNEL_SHUTDOWN_READ, &error_abort);
    worker_join_ok(reader[0], 0);
    worker_join_ok(reader[1], 0);
    streams_free(a, b);
    pair_free(p);
}

static void test_peek(void)
{
    Pair *p = pair_new(0);
    QIOChannel *a, *b;
    char buf[16] = "";
    struct iovec iov = { .iov_base = buf, .iov_len = sizeof(buf) };

    a = open_stream(p, "main", &b);
    qio_channel_write_all(a, "QEVM", 4, &error_abort);
    for (int i = 0; i < 2; i++) {
        g_assert_cmpint(qio_channel_readv_full(b, &iov, 1, NULL, NULL,
                                               QIO_CHANNEL_READ_FLAG_MSG_PEEK,
                                               &error_abort), ==, 4);
        g_assert_cmpstr(buf, ==, "QEVM");
        memset(buf, 0, sizeof(buf));
    }
    g_assert_cmpint(qio_channel_read(b, buf, 3, &error_abort), ==, 3);
    g_assert_cmpint(qio_channel_read(b, buf + 3, 3, &error_abort), ==, 1);
    g_assert_cmpstr(buf, ==, "QEVM");
    streams_free(a, b);
    pair_free(p);
}

/* --- non-blocking --- */

static void test_nonblocking(void)
{
    Pair *p = pair_new(0);
    g_autofree char *buf = g_malloc0(MiB);
    QIOChannel *a, *b;
    size_t sent = 0, got = 0;
    ssize_t len;

    a = open_nonblocking(p, "main", &b);
    g_assert_cmpint(qio_channel_read(b, buf, MiB, &error_abort), ==,
                    QIO_CHANNEL_ERR_BLOCK);

    /* The peer does not read, so the writer must run out of credit */
    qio_channel_wait(a, G_IO_OUT);
    for (int i = 0; i < 3; i++) {
        while ((len = qio_channel_write(a, buf, MiB, &error_abort)) > 0) {
            sent += len;
            g_assert_cmpuint(sent, <, 512 * MiB);
        }
        g_assert_cmpint(len, ==, QIO_CHANNEL_ERR_BLOCK);
        let_threads_wait();
    }

    while (got < sent) {
        len = qio_channel_read(b, buf, MiB, &error_abort);
        if (len == QIO_CHANNEL_ERR_BLOCK) {
            qio_channel_wait(b, G_IO_IN);
        } else {
            g_assert_cmpint(len, >, 0);
            got += len;
        }
    }
    g_assert_cmpuint(got, ==, sent);
    qio_channel_wait(a, G_IO_OUT);
    g_assert_cmpint(qio_channel_write(a, buf, 1, &error_abort), ==, 1);
    streams_free(a, b);
    pair_free(p);
}

/* Write as much as possible without blocking; returns the bytes written. */
static size_t write_all_that_goes(QIOChannel *ioc)
{
    g_autofree char *buf = g_malloc0(MiB);
    size_t sent = 0;
    ssize_t len;

    while ((len = qio_channel_write(ioc, buf, MiB, &error_abort)) > 0) {
        sent += len;
    }
    g_assert_cmpint(len, ==, QIO_CHANNEL_ERR_BLOCK);
    return sent;
}

/* The reader bounds what may wait for it, from the first window on. */
static void test_window_max(void)
{
    Pair *p = pair_new(0);
    QIOChannelMux *a, *b;
    size_t sent = 0;

    p->dst.defer = true;
    a = mux_session_open(p->src.session, "main", NULL);
    qio_channel_set_blocking(QIO_CHANNEL(a), false, &error_abort);
    WAIT_FOR(p->dst.streams->len == 1);
    b = g_ptr_array_index(p->dst.streams, 0);
    qio_channel_mux_set_window_max(b, 100 * KiB);
    qio_channel_mux_accept(b);
    qio_channel_wait(QIO_CHANNEL(a), G_IO_OUT);
    /* The transport may have to catch up */
    WAIT_FOR((sent += write_all_that_goes(QIO_CHANNEL(a))) >= 100 * KiB);
    for (int i = 0; i < 3; i++) {
        let_threads_wait();
        sent += write_all_that_goes(QIO_CHANNEL(a));
    }
    g_assert_cmpuint(sent, ==, 100 * KiB);
    object_unref(OBJECT(a));
    pair_free(p);
}

/* Threads that wait with qio_channel_wait(), that is, with a watch each */
/* Who does not block has to come back, although there is more to read. */
static void test_reads_in_row(void)
{
    Pair *p = pair_new(0);
    QIOChannel *a, *b;
    char buf[1000] = {}, byte;
    unsigned n = 0;

    a = open_nonblocking(p, "main", &b);
    qio_channel_wait(a, G_IO_OUT);
    g_assert_cmpint(qio_channel_write(a, buf, sizeof(buf), &error_abort), ==,
                    sizeof(buf));
    while (n < sizeof(buf)) {
        unsigned row = 0;

        qio_channel_wait(b, G_IO_IN);
        while (qio_channel_read(b, &byte, 1, &error_abort) == 1) {
            row++;
        }
        g_assert_cmpuint(row, >, 0);
        g_assert_cmpuint(row, <, sizeof(buf) / 2);
        n += row;
    }
    g_assert_cmpuint(n, ==, sizeof(buf));
    streams_free(a, b);
    pair_free(p);
}

static void test_read_least(void)
{
    Pair *p = pair_new(0);
    QIOChannel *a, *b;
    char buf[64] = {};

    a = open_nonblocking(p, "main", &b);
    qio_channel_mux_set_read_least(QIO_CHANNEL_MUX(b), sizeof(buf));
    qio_channel_wait(a, G_IO_OUT);
    g_assert_cmpint(qio_channel_write(a, buf, 63, &error_abort), ==, 63);
    let_threads_wait();
    g_assert_cmpint(qio_channel_read(b, buf, sizeof(buf), &error_abort), ==,
                    QIO_CHANNEL_ERR_BLOCK);
    g_assert_cmpint(qio_channel_write(a, buf, 1, &error_abort), ==, 1);
    qio_channel_wait(b, G_IO_IN);
    g_assert_cmpint(qio_channel_read(b, buf, sizeof(buf), &error_abort), ==,
                    sizeof(buf));

    /* Less comes before the end */
    g_assert_cmpint(qio_channel_write(a, buf, 10, &error_abort), ==, 10);
    let_threads_wait();
    g_assert_cmpint(qio_channel_read(b, buf, sizeof(buf), &error_abort), ==,
                    QIO_CHANNEL_ERR_BLOCK);
    qio_channel_shutdown(a, QIO_CHANNEL_SHUTDOWN_WRITE, &error_abort);
    qio_channel_wait(b, G_IO_IN);
    g_assert_cmpint(qio_channel_read(b, buf, sizeof(buf), &error_abort), ==,
                    10);
    streams_free(a, b);
    pair_free(p);
}

/* Writes do not wait for the peer, which has not even accepted the stream. */
static void test_hold_back(void)
{
    Pair *p = pair_new(0);
    QIOChannelMux *ioc;
    QIOChannel *a, *b;
    char buf[] = "1234567890", got[20] = {};

    p->dst.defer = true;
    ioc = mux_session_open(p->src.session, "main", NULL);
    a = QIO_CHANNEL(ioc);
    qio_channel_mux_hold_back(ioc);
    qio_channel_write_all(a, buf, 4, &error_abort);
    qio_channel_write_all(a, buf + 4, 3, &error_abort);
    WAIT_FOR(p->dst.streams->len);
    b = g_ptr_array_index(p->dst.streams, 0);
    object_ref(OBJECT(b));
    qio_channel_mux_accept(QIO_CHANNEL_MUX(b));
    g_assert_cmpint(qio_channel_mux_write_held_back(ioc, &error_abort), ==, 0);
    qio_channel_write_all(a, buf + 7, 3, &error_abort);
    qio_channel_read_all(b, got, 10, &error_abort);
    g_assert_cmpstr(got, ==, buf);
    streams_free(a, b);
    pair_free(p);
}

static void test_nonblocking_threads(void)
{
    Pair *p = pair_new(8192);
    QIOChannel *a, *b;
    Worker *writer[2];
    g_autofree uint8_t *buf = g_malloc(3 * MiB);

    a = open_nonblocking(p, "main", &b);
    writer[0] = writer_new(a, 0, 3 * MiB, 50 * KiB);
    writer[1] = writer_new(b, 1, 3 * MiB, 50 * KiB);
    qio_channel_read_all(b, (char *)buf, 3 * MiB, &error_abort);
    pattern_check(buf, 3 * MiB, 0, 0);
    qio_channel_read_all(a, (char *)buf, 3 * MiB, &error_abort);
    pattern_check(buf, 3 * MiB, 1, 0);
    worker_join_ok(writer[0], 3 * MiB);
    worker_join_ok(writer[1], 3 * MiB);
    streams_free(a, b);
    pair_free(p);
}

static gboolean watch_count(QIOChannel *ioc, GIOCondition condition,
                            gpointer opaque)
{
    g_assert_cmpint(condition, ==, G_IO_IN);
    (*(int *)opaque)++;
    return G_SOURCE_CONTINUE;
}

static void test_watch(void)
{
    Pair *p = pair_new(0);
    QIOChannel *a, *b;
    int calls = 0, seen;
    char buf[8];
    guint tag;

    a = open_nonblocking(p, "main", &b);
    g_assert_cmpint(qio_channel_read(b, buf, 8, &error_abort), ==,
                    QIO_CHANNEL_ERR_BLOCK);
    tag = qio_channel_add_watch(b, G_IO_IN, watch_count, &calls, NULL);
    let_threads_wait();
    g_assert_cmpint(calls, ==, 0);
    qio_channel_write_all(a, "12345678", 8, &error_abort);

    /* The watch is level-triggered: it fires until all data is read. */
    WAIT_FOR(calls > 2);
    g_assert_cmpint(qio_channel_read(b, buf, 5, &error_abort), ==, 5);
    seen = calls;
    WAIT_FOR(calls > seen + 2);
    g_assert_cmpint(qio_channel_read(b, buf, 5, &error_abort), ==, 3);
    g_assert_cmpint(qio_channel_read(b, buf, 5, &error_abort), ==,
                    QIO_CHANNEL_ERR_BLOCK);
    seen = calls;
    let_threads_wait();
    g_assert_cmpint(calls, ==, seen);
    qio_channel_shutdown(a, QIO_CHANNEL_SHUTDOWN_WRITE, &error_abort);
    WAIT_FOR(calls > seen);
    g_assert_cmpint(qio_channel_read(b, buf, 5, &error_abort), ==, 0);
    g_source_remove(tag);
    streams_free(a, b);
    pair_free(p);
}

/* --- coroutines in an IOThread --- */

typedef struct Echo {
    QIOChannel *ioc;
    uint64_t size;
    bool done;
} Echo;

/* Reading and writing wait at once, as in the NBD client. */
static void coroutine_fn co_read(void *opaque)
{
    Echo *e = opaque;
    g_autofree char *buf = g_malloc(64 * KiB);
    uint64_t at;

    for (at = 0; at < e->size; at += 64 * KiB) {
        qio_channel_read_all(e->ioc, buf, 64 * KiB, &error_abort);
        pattern_check((uint8_t *)buf, 64 * KiB, 5, at);
    }
    qatomic_store_release(&e->done, true);
}

static void coroutine_fn co_write(void *opaque)
{
    Echo *e = opaque;
    g_autofree uint8_t *buf = g_malloc(64 * KiB);
    uint64_t at;

    for (at = 0; at < e->size; at += 64 * KiB) {
        struct iovec iov[2] = {
            { .iov_base = buf, .iov_len = 28 },
            { .iov_base = buf + 28, .iov_len = 64 * KiB - 28 },
        };

        pattern_fill(buf, 64 * KiB, 5, at);
        qio_channel_writev_all(e->ioc, iov, 2, &error_abort);
    }
    qatomic_store_release(&e->done, true);
}

static void test_coroutines(void)
{
    enum { N = 4, ROLES = 4 };
    Pair *p = pair_new(32 * KiB);
    IOThread *threads[2] = { iothread_new(), iothread_new() };
    Echo echo[N][ROLES];
    QIOChannel *ioc[N][2];
    int i, j;

    for (i = 0; i < N; i++) {
        g_autofree char *name = g_strdup_printf("nbd-disk%d", i);

        ioc[i][0] = open_nonblocking(p, name, &ioc[i][1]);
        qio_channel_set_follow_coroutine_ctx(ioc[i][0], true);
        qio_channel_set_follow_coroutine_ctx(ioc[i][1], true);
        for (j = 0; j < ROLES; j++) {
            CoroutineEntry *entry = j / 2 ? co_write : co_read;

            echo[i][j] = (Echo) { .ioc = ioc[i][j % 2], .size = 8 * MiB };
            aio_co_schedule(iothread_get_aio_context(threads[j % 2]),
                            qemu_coroutine_create(entry, &echo[i][j]));
        }
    }
    for (i = 0; i < N; i++) {
        for (j = 0; j < ROLES; j++) {
            WAIT_FOR(qatomic_load_acquire(&echo[i][j].done));
        }
    }
    iothread_join(threads[0]);
    iothread_join(threads[1]);
    for (i = 0; i < N; i++) {
        streams_free(ioc[i][0], ioc[i][1]);
    }
    pair_free(p);
}

int main(int argc, char **argv)
{
    session_test_init(&argc, &argv);
    g_test_add_func("/io/channel/mux/blocking", test_blocking);
    g_test_add_func("/io/channel/mux/small-buffers", test_small_buffers);
    g_test_add_func("/io/channel/mux/many-streams", test_many_streams);
    g_test_add_func("/io/channel/mux/write-returns-when-sent",
                    test_write_returns_when_sent);
    g_test_add_func("/io/channel/mux/stalled-stream", test_stalled_stream);
    g_test_add_func("/io/channel/mux/shutdown-unblocks-reader",
                    test_shutdown_unblocks_reader);
    g_test_add_func("/io/channel/mux/shared-stream", test_shared_stream);
    g_test_add_func("/io/channel/mux/peek", test_peek);
    g_test_add_func("/io/channel/mux/nonblocking", test_nonblocking);
    g_test_add_func("/io/channel/mux/reads-in-row", test_reads_in_row);
    g_test_add_func("/io/channel/mux/read-least", test_read_least);
    g_test_add_func("/io/channel/mux/hold-back", test_hold_back);
    g_test_add_func("/io/channel/mux/window-max", test_window_max);
    g_test_add_func("/io/channel/mux/nonblocking-threads",
                    test_nonblocking_threads);
    g_test_add_func("/io/channel/mux/watch", test_watch);
    g_test_add_func("/io/channel/mux/coroutines", test_coroutines);
    return g_test_run();
}
