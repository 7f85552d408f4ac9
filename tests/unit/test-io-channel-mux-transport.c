/*
 * Migration multiplexer: transports other than plain sockets: commands, and a
 * socket with slow writes; turns of reader and writer
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "qemu/lockable.h"
#include "qemu/sockets.h"
#include "qemu/units.h"
#include "io/channel-command.h"
#include "io/channel-socket.h"
#include "migration/mux/frame.h"
#include "migration/mux/session.h"
#include "migration/mux/turns.h"
#include "mux-session-helpers.h"

static char *workdir;

/* --- commands --- */

static QIOChannel *command_new(const char *from, const char *to)
{
    g_autofree char *script = g_strdup_printf("cat %s & exec cat > %s",
                                              from, to);
    const char *argv[] = { "/bin/sh", "-c", script, NULL };

    return QIO_CHANNEL(qio_channel_command_new_spawn(argv, O_RDWR,
                                                     &error_abort));
}

static void test_command(void)
{
    g_autofree char *up = g_strdup_printf("%s/up", workdir);
    g_autofree char *down = g_strdup_printf("%s/down", workdir);
    QIOChannel *src, *dst;
    Pair *p;

    g_assert(mkfifo(up, 0600) == 0 && mkfifo(down, 0600) == 0);
    src = command_new(down, up);
    dst = command_new(up, down);
    p = pair_new_transports(src, dst);
    object_unref(OBJECT(src));
    object_unref(OBJECT(dst));
    run_blocking(p, 3, 4 * MiB, 100 * KiB);
    /* With pipes, neither side sees that the other has closed: wait briefly */
    mux_session_close(p->src.session, NULL, 100);
    mux_session_close(p->dst.session, NULL, 100);
    pair_free(p);
    unlink(up);
    unlink(down);
}

static QIOChannelClass *command_class;
static typeof(((QIOChannelClass *)NULL)->io_readv) command_readv;
static unsigned command_reads;  /* of all commands; atomic */

static ssize_t counted_readv(QIOChannel *ioc, const struct iovec *iov,
                             size_t niov, int **fds, size_t *nfds, int flags,
                             Error **errp)
{
    qatomic_inc(&command_reads);
    return command_readv(ioc, iov, niov, fds, nfds, flags, errp);
}

/* The command reads HELLO, closes its input and is silent: do not spin. */
static void test_command_input_closed(void)
{
    g_autofree char *closed = g_strdup_printf("%s/closed", workdir);
    g_autofree char *script = g_strdup_printf(
        "head -c 60 >/dev/null; exec <&-; : >%s; exec sleep 600 2>/dev/null",
        closed);
    const char *argv[] = { "/bin/sh", "-c", script, NULL };
    g_autofree char *end = NULL;
    QIOChannelCommand *cioc;
    MuxSession *session;
    unsigned before;
    pid_t pid;

    cioc = qio_channel_command_new_spawn(argv, O_RDWR, &error_abort);
    command_class = QIO_CHANNEL_GET_CLASS(cioc);
    command_readv = command_class->io_readv;
    command_class->io_readv = counted_readv;
    session = mux_session_new(QIO_CHANNEL(cioc), MUX_ROLE_SOURCE,
                              &note_end_ops, &end);
    WAIT_FOR(access(closed, F_OK) == 0);
    let_threads_wait();
    before = qatomic_read(&command_reads);
    g_assert_cmpuint(before, >, 0);
    /* A thread that spins would read thousands of times */
    let_threads_wait();
    let_threads_wait();
    g_assert_cmpuint(qatomic_read(&command_reads) - before, <, 10);
    g_assert_null(end);

    pid = cioc->pid;
    mux_session_yank(session);
    WAIT_FOR(end);
    /* It does not exit by itself, but does not outlive the session either */
    WAIT_FOR(kill(pid, 0) < 0);
    session_free(session, QIO_CHANNEL(cioc));
    command_class->io_readv = command_readv;
    unlink(closed);
}

/* The command sends our own HELLO back. */
static void test_command_echo(void)
{
    const char *argv[] = { "/bin/cat", NULL };
    g_autofree char *end = NULL;
    QIOChannelCommand *cioc;
    MuxSession *session;
    QIOChannelMux *ioc;
    Error *err = NULL;
    char c;

    cioc = qio_channel_command_new_spawn(argv, O_RDWR, &error_abort);
    session = mux_session_new(QIO_CHANNEL(cioc), MUX_ROLE_SOURCE,
                              &note_end_ops, &end);
    ioc = mux_session_open(session, "main", NULL);
    if (ioc) {
        g_assert_cmpint(qio_channel_read(QIO_CHANNEL(ioc), &c, 1, &err), ==,
                        -1);
        g_assert(strstr(error_get_pretty(err), "both sides claim"));
        error_free(err);
        object_unref(OBJECT(ioc));
    }
    WAIT_FOR(end);
    g_assert(strstr(end, "both sides claim"));
    session_free(session, QIO_CHANNEL(cioc));
}

/* --- a socket whose writes wait until the test allows them --- */

#define TYPE_GATE "test-mux-gate"
OBJECT_DECLARE_SIMPLE_TYPE(Gate, GATE)

#define MUCH (3 * MiB)

struct Gate {
    QIOChannelSocket parent;
    unsigned begun;             /* writes; atomic */
    unsigned allowed;           /* number that may proceed; atomic */
    bool stuck;                 /* shutdown does not release them */
    bool read_stuck;            /* reads wait, too; atomic */
    bool reading;               /* one does; atomic */
};

static QIOChannelClass *socket_class;

static ssize_t gate_writev(QIOChannel *ioc, const struct iovec *iov,
                           size_t niov, int *fds, size_t nfds, int flags,
                           Error **errp)
{
    Gate *gate = GATE(ioc);
    unsigned number = qatomic_inc_fetch(&gate->begun);

    while (qatomic_read(&gate->allowed) < number) {
        g_usleep(100);
    }
    return socket_class->io_writev(ioc, iov, niov, fds, nfds, flags, errp);
}

static ssize_t gate_readv(QIOChannel *ioc, const struct iovec *iov,
                          size_t niov, int **fds, size_t *nfds, int flags,
                          Error **errp)
{
    Gate *gate = GATE(ioc);

    while (qatomic_read(&gate->read_stuck)) {
        qatomic_set(&gate->reading, true);
        g_usleep(10 * 1000);
    }
    return socket_class->io_readv(ioc, iov, niov, fds, nfds, flags, errp);
}

static int gate_shutdown(QIOChannel *ioc, QIOChannelShutdown how,
                         Error **errp)
{
    if (!GATE(ioc)->stuck) {
        qatomic_set(&GATE(ioc)->allowed, UINT_MAX);
    }
    return socket_class->io_shutdown(ioc, how, errp);
}

static void gate_class_init(ObjectClass *klass, void *data)
{
    socket_class = QIO_CHANNEL_CLASS(
        object_class_by_name(TYPE_QIO_CHANNEL_SOCKET));
    QIO_CHANNEL_CLASS(klass)->io_readv = gate_readv;
    QIO_CHANNEL_CLASS(klass)->io_writev = gate_writev;
    QIO_CHANNEL_CLASS(klass)->io_shutdown = gate_shutdown;
}

static const TypeInfo gate_info = {
    .parent = TYPE_QIO_CHANNEL_SOCKET,
    .name = TYPE_GATE,
    .instance_size = sizeof(Gate),
    .class_init = gate_class_init,
};

static Gate *gate_new(int fd, unsigned allowed)
{
    Gate *gate = GATE(object_new(TYPE_GATE));

    gate->parent.fd = fd;
    /* So that a read does not wait for a write that is held */
    gate->parent.localAddr.ss_family = AF_UNIX;
    gate->allowed = allowed;
    qio_channel_set_feature(QIO_CHANNEL(gate), QIO_CHANNEL_FEATURE_SHUTDOWN);
    return gate;
}

/* Make each write wait from now on; returns when one waits. */
static void gate_shut(Gate *gate)
{
    qatomic_set(&gate->allowed, qatomic_read(&gate->begun));
    WAIT_FOR(qatomic_read(&gate->begun) > qatomic_read(&gate->allowed));
}

/* A writer is blocked in @ioc while another one sends. */
static bool waits_to_send(QIOChannel *base)
{
    QIOChannelMux *ioc = QIO_CHANNEL_MUX(base);

    QEMU_LOCK_GUARD(&ioc->session->lock);
    return QTAILQ_IN_USE(ioc, next_writer);
}

/* A writer's data has not all been sent. */
static bool is_sending(QIOChannel *base)
{
    QIOChannelMux *ioc = QIO_CHANNEL_MUX(base);

    QEMU_LOCK_GUARD(&ioc->session->lock);
    return ioc->writing && mux_stream_tx_sent(ioc->stream) < ioc->write_size;
}

static void *write_much(void *opaque)
{
    g_autofree char *buf = g_malloc0(MUCH);

    qio_channel_write_all(opaque, buf, MUCH, &error_abort);
    return NULL;
}

/* A writer whose data is sent does not wait for another writer's call. */
static void test_write_returns_while_others_send(void)
{
    QIOChannel *a, *b, *c, *d;
    QIOChannelSocket *sioc;
    QemuThread thread;
    Worker *writer;
    Gate *gate;
    int fds[2];
    Pair *p;

    socket_pair(fds, 0);
    gate = gate_new(fds[0], UINT_MAX);
    sioc = qio_channel_socket_new_fd(fds[1], &error_abort);
    p = pair_new_transports(QIO_CHANNEL(gate), QIO_CHANNEL(sioc));
    a = open_stream(p, "main", &b);
    c = open_stream(p, "nbd-disk0", &d);
    WAIT_FOR(qio_channel_mux_state(QIO_CHANNEL_MUX(c)) == MUX_STREAM_OPEN);

    qatomic_set(&gate->allowed, qatomic_read(&gate->begun));
    qemu_thread_create(&thread, "writer", write_much, c, QEMU_THREAD_JOINABLE);
    gate_shut(gate);
    writer = writer_new(a, 0, 1, 1);
    WAIT_FOR(waits_to_send(a));
    /* Allow those of the current batch, then those of the one with the byte */
    while (is_sending(a)) {
        gate_shut(gate);
    }
    worker_join_ok(writer, 1);
    /* The other writer is not done, and its next write is held */
    g_assert_cmpuint(qatomic_read(&gate->begun), >,
                     qatomic_read(&gate->allowed));

    qatomic_set(&gate->allowed, UINT_MAX);
    qemu_thread_join(&thread);
    object_unref(OBJECT(a));
    object_unref(OBJECT(b));
    object_unref(OBJECT(c));
    object_unref(OBJECT(d));
    pair_free(p);
    object_unref(OBJECT(gate));
    object_unref(OBJECT(sioc));
}

/* Closing with a shorter time limit shortens a wait that has begun. */
static void test_close_cuts_the_wait_short(void)
{
    MuxHello hello = {
        .magic = MUX_MAGIC,
        .version_min = MUX_VERSION, .version_max = MUX_VERSION,
        .length = MUX_HELLO_V2_SIZE, .max_frame = MiB, .max_streams = 1,
        .role = MUX_ROLE_DESTINATION,
    };
    MuxHeader goaway = { .type = MUX_FRAME_GOAWAY, .arg = MUX_CODE_OK };
    uint8_t buf[MUX_HELLO_V2_SIZE + MUX_HEADER_SIZE];
    g_autofree char *end = NULL;
    MuxSession *session;
    Gate *gate;
    int fds[2];

    clock_stop();
    socket_pair(fds, 0);
    gate = gate_new(fds[0], 0);
    session = mux_session_new(QIO_CHANNEL(gate), MUX_ROLE_SOURCE,
                              &note_end_ops, &end);
    WAIT_FOR(qatomic_read(&gate->begun));
    mux_hello_encode(&hello, buf);
    mux_header_encode(&goaway, buf + MUX_HELLO_V2_SIZE);
    g_assert_cmpint(write(fds[1], buf, sizeof(buf)), ==, sizeof(buf));
    /* The session has ended, and waits until the write is done */
    WAIT_FOR(end);
    let_threads_wait();
    mux_session_close(session, NULL, 100);
    clock_advance(99);
    let_threads_wait();
    g_assert(!session_closed(session));
    clock_advance(1);
    WAIT_FOR(session_closed(session));
    clock_run();
    session_free(session, QIO_CHANNEL(gate));
    close(fds[1]);
}

/* The connection has been cut, but a write does not return. */
static void test_idle_while_the_sender_is_stuck(void)
{
    MuxSession *session;
    Gate *gate;
    int fds[2];

    socket_pair(fds, 0);
    gate = gate_new(fds[0], 0);
    gate->stuck = true;
    session = mux_session_new(QIO_CHANNEL(gate), MUX_ROLE_SOURCE, NULL, NULL);
    WAIT_FOR(qatomic_read(&gate->begun));
    mux_session_yank(session);
    ASSERT_IDLE(g_usleep(IDLE_MS * 1000));
    g_assert(!session_closed(session));
    qatomic_set(&gate->allowed, UINT_MAX);
    session_free(session, QIO_CHANNEL(gate));
    close(fds[1]);
}

/*
 * The receive thread cannot apply a new time limit yet: it is told once, not by
 * each thread that has something to do meanwhile.
 */
static void test_idle_while_the_receiver_is_stuck(void)
{
    QIOChannelSocket *sioc;
    QIOChannel *a, *b;
    Gate *gate;
    int fds[2];
    Pair *p;

    socket_pair(fds, 0);
    gate = gate_new(fds[0], UINT_MAX);
    sioc = qio_channel_socket_new_fd(fds[1], &error_abort);
    p = pair_new_transports(QIO_CHANNEL(gate), QIO_CHANNEL(sioc));
    a = open_stream(p, "main", &b);
    WAIT_FOR(qio_channel_mux_state(QIO_CHANNEL_MUX(a)) == MUX_STREAM_OPEN);

    qatomic_set(&gate->read_stuck, true);
    mux_session_ping(p->dst.session);
    WAIT_FOR(qatomic_read(&gate->reading));
    mux_session_close(p->src.session, NULL, CLOSE_MS);
    mux_session_ping(p->src.session);
    ASSERT_IDLE(g_usleep(IDLE_MS * 1000));

    qatomic_set(&gate->read_stuck, false);
    object_unref(OBJECT(a));
    object_unref(OBJECT(b));
    pair_free(p);
    object_unref(OBJECT(gate));
    object_unref(OBJECT(sioc));
}

/* --- turns --- */

typedef struct Waiter {
    MuxTurns *turns;
    QemuThread thread;
    unsigned *had;              /* how many have had their turn */
    unsigned place;             /* of this one among them */
} Waiter;

static void *waiter_thread(void *opaque)
{
    Waiter *w = opaque;

    mux_turns_lock(w->turns);
    w->place = ++*w->had;
    mux_turns_unlock(w->turns);
    return NULL;
}

static unsigned turns_taken(MuxTurns *t)
{
    QEMU_LOCK_GUARD(&t->lock);
    return t->next_ticket;
}

/* A waiting thread precedes one that has just released the lock. */
static void test_turns(void)
{
    MuxTurns turns;
    Waiter w[3];
    unsigned had = 0;

    mux_turns_init(&turns);
    mux_turns_lock(&turns);
    for (int i = 0; i < ARRAY_SIZE(w); i++) {
        w[i] = (Waiter) { .turns = &turns, .had = &had };
        qemu_thread_create(&w[i].thread, "waiter", waiter_thread, &w[i],
                           QEMU_THREAD_JOINABLE);
        WAIT_FOR(turns_taken(&turns) == i + 2);
    }
    mux_turns_unlock(&turns);
    mux_turns_lock(&turns);
    g_assert_cmpuint(had, ==, ARRAY_SIZE(w));
    mux_turns_unlock(&turns);
    for (int i = 0; i < ARRAY_SIZE(w); i++) {
        qemu_thread_join(&w[i].thread);
        g_assert_cmpuint(w[i].place, ==, i + 1);
    }
    mux_turns_destroy(&turns);
}

int main(int argc, char **argv)
{
    int ret;

    session_test_init(&argc, &argv);
    type_register_static(&gate_info);
    workdir = g_dir_make_tmp("test-io-channel-mux-XXXXXX", NULL);
    g_assert_nonnull(workdir);
    g_test_add_func("/io/channel/mux/command", test_command);
    g_test_add_func("/io/channel/mux/command/echo", test_command_echo);
    g_test_add_func("/io/channel/mux/command/input-closed",
                    test_command_input_closed);
    g_test_add_func("/io/channel/mux/write-returns-while-others-send",
                    test_write_returns_while_others_send);
    g_test_add_func("/io/channel/mux/close-cuts-the-wait-short",
                    test_close_cuts_the_wait_short);
    g_test_add_func("/io/channel/mux/turns", test_turns);
    g_test_add_func("/io/channel/mux/idle-while-the-sender-is-stuck",
                    test_idle_while_the_sender_is_stuck);
    g_test_add_func("/io/channel/mux/idle-while-the-receiver-is-stuck",
                    test_idle_while_the_receiver_is_stuck);
    ret = g_test_run();
    rmdir(workdir);
    g_free(workdir);
    return ret;
}
