/*
 * Migration multiplexer: who reads the transport
 *
 * While the clock is stopped, the receive thread does not take over from a
 * reader that has left the role, unless another thread needs it.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "qemu/lockable.h"
#include "qemu/sockets.h"
#include "qemu/units.h"
#include "io/channel-socket.h"
#include "migration/mux/session.h"
#include "mux-session-helpers.h"

typedef struct Streams {
    Pair *p;
    QIOChannel *a[2];           /* of the source */
    QIOChannel *b[2];           /* of the destination */
} Streams;

static void streams_init(Streams *t)
{
    t->p = pair_new(0);
    t->a[0] = open_stream(t->p, "x", &t->b[0]);
    t->a[1] = open_stream(t->p, "y", &t->b[1]);
    WAIT_FOR(qio_channel_mux_state(QIO_CHANNEL_MUX(t->a[1])) ==
             MUX_STREAM_OPEN);
}

static void streams_cleanup(Streams *t)
{
    for (int i = 0; i < 2; i++) {
        object_unref(OBJECT(t->a[i]));
        object_unref(OBJECT(t->b[i]));
    }
    pair_free(t->p);
}

static bool has_role(QIOChannel *base)
{
    QIOChannelMux *ioc = QIO_CHANNEL_MUX(base);

    QEMU_LOCK_GUARD(&ioc->session->lock);
    return ioc->session->rx_reader == ioc;
}

/* A reader waits, and another thread has the role. */
static bool is_waiting(QIOChannel *base)
{
    QIOChannelMux *ioc = QIO_CHANNEL_MUX(base);

    QEMU_LOCK_GUARD(&ioc->session->lock);
    return ioc->readers_waiting;
}

static bool receive_thread_has_role(MuxSession *s)
{
    QEMU_LOCK_GUARD(&s->lock);
    return s->receiving && !s->rx_reader;
}

static bool role_is_free(MuxSession *s)
{
    QEMU_LOCK_GUARD(&s->lock);
    return !s->receiving;
}

static void send_byte(QIOChannel *ioc, char c)
{
    g_assert_cmpint(qio_channel_write(ioc, &c, 1, &error_abort), ==, 1);
}

/* A thread that reads one byte; returns it, 0 at the end, -1 with an error */
static void *read_byte(void *opaque)
{
    unsigned char c;
    ssize_t len = qio_channel_read(opaque, (char *)&c, 1, NULL);

    return (void *)(intptr_t)(len == 1 ? c : len);
}

static void reader_start(QemuThread *thread, QIOChannel *ioc)
{
    qemu_thread_create(thread, "reader", read_byte, ioc,
                       QEMU_THREAD_JOINABLE);
}

static int reader_join(QemuThread *thread)
{
    return (intptr_t)qemu_thread_join(thread);
}

/*
 * Stop the clock, and have a reader of the stream take the role: the receive
 * thread leaves it to a reader that it has just woken.
 */
static void reader_takes_role(Streams *t, QemuThread *thread)
{
    clock_stop();
    reader_start(thread, t->b[0]);
    /* It may have found the role free at once */
    WAIT_FOR(has_role(t->b[0]) || is_waiting(t->b[0]));
    send_byte(t->a[0], 'x');
    g_assert_cmpint(reader_join(thread), ==, 'x');
    WAIT_FOR(role_is_free(t->p->dst.session));
    reader_start(thread, t->b[0]);
    WAIT_FOR(has_role(t->b[0]));
}

/* Send so much that the next thread with the role does read the transport. */
static void reader_leaves_role(Streams *t, QemuThread *thread)
{
    static const char much[16 * KiB] = "y";

    qio_channel_write_all(t->a[0], much, sizeof(much), &error_abort);
    g_assert_cmpint(reader_join(thread), ==, 'y');
    g_assert_true(role_is_free(t->p->dst.session));
}

static void test_blocked_reader(void)
{
    QemuThread thread;
    Streams t;

    streams_init(&t);
    reader_takes_role(&t, &thread);
    send_byte(t.a[0], 'y');
    g_assert_cmpint(reader_join(&thread), ==, 'y');
    g_assert_true(role_is_free(t.p->dst.session));
    /* not for long: there may be something for others */
    clock_advance(2);
    WAIT_FOR(receive_thread_has_role(t.p->dst.session));
    clock_run();
    streams_cleanup(&t);
}

/* It delivers data for other streams, whether their readers wait or not. */
static void test_reader_serves_others(void)
{
    QemuThread thread, other;
    char c;
    Streams t;

    streams_init(&t);
    reader_takes_role(&t, &thread);
    reader_start(&other, t.b[1]);
    WAIT_FOR(is_waiting(t.b[1]));
    send_byte(t.a[1], 'o');
    g_assert_cmpint(reader_join(&other), ==, 'o');
    send_byte(t.a[1], 'p');
    WAIT_FOR(qio_channel_mux_has_input(QIO_CHANNEL_MUX(t.b[1])));
    g_assert_true(has_role(t.b[0]));
    g_assert_cmpint(qio_channel_read(t.b[1], &c, 1, &error_abort), ==, 1);
    g_assert_cmpint(c, ==, 'p');
    send_byte(t.a[0], 'y');
    g_assert_cmpint(reader_join(&thread), ==, 'y');
    clock_run();
    streams_cleanup(&t);
}

/* A reader has the role, and gets @result when @act has been called. */
static void reader_returns(void (*act)(Streams *t), int result)
{
    QemuThread thread;
    Streams t;

    streams_init(&t);
    reader_takes_role(&t, &thread);
    clock_run();
    act(&t);
    g_assert_cmpint(reader_join(&thread), ==, result);
    streams_cleanup(&t);
}

static MuxFailure *enough(void)
{
    return mux_failure_new(NULL, MUX_CODE_ABORTED, "enough");
}

static void shut_down(Streams *t)
{
    qio_channel_shutdown(t->b[0], QIO_CHANNEL_SHUTDOWN_READ, &error_abort);
}

static void abort_stream(QIOChannel *ioc)
{
    g_autoptr(MuxFailure) why = enough();

    qio_channel_mux_abort(QIO_CHANNEL_MUX(ioc), why);
}

static void abort_here(Streams *t)
{
    abort_stream(t->b[0]);
}

static void abort_at_peer(Streams *t)
{
    abort_stream(t->a[0]);
}

static void close_at_peer(Streams *t)
{
    g_autoptr(MuxFailure) why = enough();

    mux_session_close(t->p->src.session, why, CLOSE_MS);
}

static void yank(Streams *t)
{
    mux_session_yank(t->p->dst.session);
}

static void test_shutdown_of_reader(void)
{
    reader_returns(shut_down, 0);
}

static void test_abort_of_reader(void)
{
    reader_returns(abort_here, -1);
}

static void test_peer_ends(void)
{
    reader_returns(abort_at_peer, -1);
    reader_returns(close_at_peer, -1);
}

static void test_yank_of_reader(void)
{
    reader_returns(yank, -1);
}

static int64_t heard(MuxSession *s)
{
    QEMU_LOCK_GUARD(&s->lock);
    return s->heard;
}

/* The receive thread still applies time limits: it sends PING. */
static void test_time_is_kept(void)
{
    QemuThread thread;
    Streams t;

    streams_init(&t);
    reader_takes_role(&t, &thread);
    mux_session_set_silence(t.p->dst.session, 3000);
    clock_advance(1001);
    WAIT_FOR(heard(t.p->dst.session) == get_clock());
    g_assert_true(has_role(t.b[0]));
    send_byte(t.a[0], 'y');
    g_assert_cmpint(reader_join(&thread), ==, 'y');
    clock_run();
    streams_cleanup(&t);
}

/*
 * A non-blocking reader also receives, but never waits: once there is nothing,
 * the receive thread waits in its place.
 */
static void test_nonblocking_reader(void)
{
    QemuThread thread;
    char buf[2];
    Streams t;

    streams_init(&t);
    qio_channel_set_blocking(t.b[1], false, &error_abort);
    reader_takes_role(&t, &thread);
    reader_leaves_role(&t, &thread);
    send_byte(t.a[1], 'o');
    g_assert_cmpint(qio_channel_read(t.b[1], buf, 2, &error_abort), ==, 1);
    g_assert_cmpint(buf[0], ==, 'o');
    g_assert_true(role_is_free(t.p->dst.session));
    g_assert_true(qio_channel_mux_has_input(QIO_CHANNEL_MUX(t.b[0])));

    g_assert_cmpint(qio_channel_read(t.b[1], buf, 2, &error_abort), ==,
                    QIO_CHANNEL_ERR_BLOCK);
    WAIT_FOR(receive_thread_has_role(t.p->dst.session));
    clock_run();
    streams_cleanup(&t);
}

/*
 * A non-blocking reader has to wait while another reader has the role: when
 * that one leaves, the receive thread takes over at once.
 */
static void test_waiter_gets_receive_thread(void)
{
    QemuThread thread;
    char buf[2];
    Streams t;

    streams_init(&t);
    qio_channel_set_blocking(t.b[1], false, &error_abort);
    reader_takes_role(&t, &thread);
    g_assert_cmpint(qio_channel_read(t.b[1], buf, 2, &error_abort), ==,
                    QIO_CHANNEL_ERR_BLOCK);
    send_byte(t.a[0], 'y');
    g_assert_cmpint(reader_join(&thread), ==, 'y');
    WAIT_FOR(receive_thread_has_role(t.p->dst.session));
    clock_run();
    streams_cleanup(&t);
}

/* Two readers of one stream, of which the second must not wait for the first */
static void test_second_reader_does_not_block(void)
{
    QemuThread thread;
    char buf[2];
    Streams t;

    streams_init(&t);
    reader_takes_role(&t, &thread);
    qio_channel_set_blocking(t.b[0], false, &error_abort);
    g_assert_cmpint(qio_channel_read(t.b[0], buf, 2, &error_abort), ==,
                    QIO_CHANNEL_ERR_BLOCK);
    g_assert_true(has_role(t.b[0]));
    send_byte(t.a[0], 'y');
    g_assert_cmpint(reader_join(&thread), ==, 'y');
    clock_run();
    streams_cleanup(&t);
}

/* A writer needs credit, and does not read the transport for it. */
static void test_writer_without_credit(void)
{
    QemuThread thread;
    Worker *writer;
    Streams t;

    streams_init(&t);
    reader_takes_role(&t, &thread);
    reader_leaves_role(&t, &thread);
    writer = writer_new(t.b[1], 0, 64 * MiB, MiB);
    WAIT_FOR(receive_thread_has_role(t.p->dst.session));
    g_assert_false(worker_done(writer));
    clock_run();
    qio_channel_shutdown(t.b[1], QIO_CHANNEL_SHUTDOWN_WRITE, &error_abort);
    g_free(worker_join(writer));
    streams_cleanup(&t);
}

/* With a peek or read_least, nothing goes to the caller's memory. */
static void test_peek_and_read_least(void)
{
    QemuThread thread;
    char buf[4];
    Streams t;

    streams_init(&t);
    qio_channel_set_blocking(t.b[1], false, &error_abort);
    reader_takes_role(&t, &thread);
    reader_leaves_role(&t, &thread);
    send_byte(t.a[1], 'o');
    for (int i = 0; i < 2; i++) {
        struct iovec iov = { buf, sizeof(buf) };

        g_assert_cmpint(qio_channel_readv_full(t.b[1], &iov, 1, NULL, NULL,
                                               QIO_CHANNEL_READ_FLAG_MSG_PEEK,
                                               &error_abort), ==, 1);
        g_assert_cmpint(buf[0], ==, 'o');
    }
    g_assert_cmpint(qio_channel_read(t.b[1], buf, 4, &error_abort), ==, 1);
    qio_channel_mux_set_read_least(QIO_CHANNEL_MUX(t.b[1]), 2);
    send_byte(t.a[1], '1');
    g_assert_cmpint(qio_channel_read(t.b[1], buf, 4, &error_abort), ==,
                    QIO_CHANNEL_ERR_BLOCK);
    send_byte(t.a[1], '2');
    WAIT_FOR(qio_channel_mux_has_input(QIO_CHANNEL_MUX(t.b[1])));
    g_assert_cmpint(qio_channel_read(t.b[1], buf, 4, &error_abort), ==, 2);
    g_assert_cmpmem(buf, 2, "12", 2);
    clock_run();
    streams_cleanup(&t);
}

/* --- no thread spins --- */

static void test_idle_reader(void)
{
    QemuThread thread;
    Streams t;

    streams_init(&t);
    reader_start(&thread, t.b[0]);
    ASSERT_IDLE(g_usleep(IDLE_MS * 1000));
    send_byte(t.a[0], 'x');
    g_assert_cmpint(reader_join(&thread), ==, 'x');
    ASSERT_IDLE(g_usleep(IDLE_MS * 1000));
    streams_cleanup(&t);
}

/* The peer neither sends nor closes. */
static void test_idle_while_closing(void)
{
    g_autoptr(MuxFailure) why = enough();
    QIOChannelSocket *sioc;
    MuxSession *s;
    int fds[2];

    socket_pair(fds, 0);
    sioc = qio_channel_socket_new_fd(fds[0], &error_abort);
    s = mux_session_new(QIO_CHANNEL(sioc), MUX_ROLE_SOURCE, NULL, NULL);
    ASSERT_IDLE(mux_session_close_wait(s, why, IDLE_MS));
    session_free(s, QIO_CHANNEL(sioc));
    close(fds[1]);
}

int main(int argc, char **argv)
{
    session_test_init(&argc, &argv);
#define ADD(name, func) g_test_add_func("/io/channel/mux/reader/" name, func)
    ADD("blocked", test_blocked_reader);
    ADD("serves-others", test_reader_serves_others);
    ADD("shutdown", test_shutdown_of_reader);
    ADD("abort", test_abort_of_reader);
    ADD("peer-ends", test_peer_ends);
    ADD("yank", test_yank_of_reader);
    ADD("time-is-kept", test_time_is_kept);
    ADD("nonblocking", test_nonblocking_reader);
    ADD("waiter-gets-receive-thread", test_waiter_gets_receive_thread);
    ADD("second-does-not-block", test_second_reader_does_not_block);
    ADD("writer-without-credit", test_writer_without_credit);
    ADD("peek-and-read-least", test_peek_and_read_least);
    ADD("idle", test_idle_reader);
    ADD("idle-while-closing", test_idle_while_closing);
#undef ADD
    return g_test_run();
}
