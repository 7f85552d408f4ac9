/*
 * Migration multiplexer: the transports that it runs over
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "qemu/module.h"
#include "qemu/sockets.h"
#include "qemu/units.h"
#include "crypto/init.h"
#include "crypto/tlscredspsk.h"
#include "io/channel-command.h"
#include "io/channel-socket.h"
#include "io/channel-tls.h"
#include "crypto-tls-psk-helpers.h"
#include "mux-session-helpers.h"

static char *workdir;

/* --- TLS --- */

static QCryptoTLSCreds *creds_new(const char *endpoint)
{
    Object *creds = object_new_with_props(TYPE_QCRYPTO_TLS_CREDS_PSK,
                                          object_get_objects_root(),
                                          endpoint, &error_abort,
                                          "endpoint", endpoint,
                                          "dir", workdir,
                                          "priority", "NORMAL",
                                          NULL);

    return QCRYPTO_TLS_CREDS(creds);
}

static void handshake_done(QIOTask *task, gpointer opaque)
{
    g_assert(!qio_task_propagate_error(task, NULL));
    (*(int *)opaque)++;
}

static QIOChannelTLS *tls_new(int fd, bool server)
{
    g_autoptr(QIOChannelSocket) sioc = NULL;
    QCryptoTLSCreds *creds = creds_new(server ? "server" : "client");
    QIOChannelTLS *tls;

    sioc = qio_channel_socket_new_fd(fd, &error_abort);
    qio_channel_set_blocking(QIO_CHANNEL(sioc), false, &error_abort);
    if (server) {
        tls = qio_channel_tls_new_server(QIO_CHANNEL(sioc), creds, NULL,
                                         &error_abort);
    } else {
        tls = qio_channel_tls_new_client(QIO_CHANNEL(sioc), creds, "host",
                                         &error_abort);
    }
    object_unparent(OBJECT(creds));
    return tls;
}

static Pair *tls_pair_new(int sndbuf)
{
    QIOChannelTLS *tls[2];
    int done = 0;
    int fds[2];
    Pair *p;
    int i;

    socket_pair(fds, sndbuf);
    for (i = 0; i < 2; i++) {
        tls[i] = tls_new(fds[i], i);
        qio_channel_tls_handshake(tls[i], handshake_done, &done, NULL, NULL);
    }
    WAIT_FOR(done == 2);
    p = pair_new_transports(QIO_CHANNEL(tls[0]), QIO_CHANNEL(tls[1]));
    p->src.fd = fds[0];
    p->dst.fd = fds[1];
    object_unref(OBJECT(tls[0]));
    object_unref(OBJECT(tls[1]));
    return p;
}

static void test_tls(void)
{
    Pair *p = tls_pair_new(0);

    run_blocking(p, 3, 10 * MiB, 300 * KiB);
    pair_free(p);
}

/* Records are cut all the time, in both directions. */
static void test_tls_small_buffers(void)
{
    Pair *p = tls_pair_new(4096);

    run_blocking(p, 4, MiB, 9000);
    pair_free(p);
}

/* One byte at a time must not leave one waiting inside of GnuTLS. */
static void test_tls_ping_pong(void)
{
    Pair *p = tls_pair_new(0);
    QIOChannel *a, *b;
    char c;
    int i;

    a = open_stream(p, "main", &b);
    for (i = 0; i < 1000; i++) {
        c = i;
        qio_channel_write_all(a, &c, 1, &error_abort);
        qio_channel_read_all(b, &c, 1, &error_abort);
        qio_channel_write_all(b, &c, 1, &error_abort);
        qio_channel_read_all(a, &c, 1, &error_abort);
        g_assert_cmpint(c, ==, (char)i);
    }
    object_unref(OBJECT(a));
    object_unref(OBJECT(b));
    pair_free(p);
}

static void test_tls_close(void)
{
    Pair *p = tls_pair_new(4096);
    Worker *writer, *reader;
    QIOChannel *a, *b;

    a = open_stream(p, "main", &b);
    reader = reader_new(b, 1, 1000);
    writer = writer_new(a, 1, 50 * KiB, 1000);
    worker_join_ok(writer, 50 * KiB);
    object_unref(OBJECT(a));
    worker_join_ok(reader, 50 * KiB);
    object_unref(OBJECT(b));
    g_ptr_array_set_size(p->dst.streams, 0);
    mux_session_close_wait(p->src.session, NULL, CLOSE_MS);
    WAIT_FOR(p->src.ended && p->dst.ended);
    g_assert_cmpstr(p->src.error, ==, NULL);
    g_assert_cmpstr(p->dst.error, ==, NULL);
    pair_free(p);
}

static void test_tls_cut(void)
{
    Pair *p = tls_pair_new(0);
    g_autofree char *error = NULL;
    QIOChannel *a, *b;
    char buf[1000] = "";

    a = open_stream(p, "main", &b);
    qio_channel_write_all(a, buf, sizeof(buf), &error_abort);
    shutdown(p->src.fd, SHUT_RDWR);
    WAIT_FOR(p->src.ended && p->dst.ended);
    qio_channel_read_all(b, buf, sizeof(buf), &error_abort);
    error = worker_join(reader_new(b, 0, 1));
    g_assert(strstr(error, "connection lost"));
    object_unref(OBJECT(a));
    object_unref(OBJECT(b));
    pair_free(p);
}

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
    pair_free(p);
    unlink(up);
    unlink(down);
}

/* What comes back is our own HELLO. */
static void test_command_echo(void)
{
    const char *argv[] = { "/bin/cat", NULL };
    QIOChannelCommand *cioc;
    MuxSession *session;
    QIOChannelMux *ioc;
    Error *err = NULL;
    char c;

    cioc = qio_channel_command_new_spawn(argv, O_RDWR, &error_abort);
    session = mux_session_new(QIO_CHANNEL(cioc), MUX_ROLE_SOURCE, NULL, NULL);
    object_unref(OBJECT(cioc));
    ioc = mux_session_open(session, "main", NULL);
    if (ioc) {
        g_assert_cmpint(qio_channel_read(QIO_CHANNEL(ioc), &c, 1, &err), ==,
                        -1);
        g_assert(strstr(error_get_pretty(err), "both sides claim"));
        error_free(err);
        object_unref(OBJECT(ioc));
    }
    mux_session_close_wait(session, NULL, CLOSE_MS);
    mux_session_unref(session);
}

int main(int argc, char **argv)
{
    g_autofree char *keys = NULL;
    int ret;

    /* As in QEMU proper */
    signal(SIGPIPE, SIG_IGN);
    module_call_init(MODULE_INIT_QOM);
    qemu_init_main_loop(&error_abort);
    socket_init();
    g_assert(qcrypto_init(NULL) == 0);
    g_test_init(&argc, &argv, NULL);
    workdir = g_dir_make_tmp("test-io-channel-mux-XXXXXX", NULL);
    g_assert_nonnull(workdir);
    keys = g_strdup_printf("%s/keys.psk", workdir);
    test_tls_psk_init(keys);
    g_test_add_func("/io/channel/mux/tls", test_tls);
    g_test_add_func("/io/channel/mux/tls/small-buffers",
                    test_tls_small_buffers);
    g_test_add_func("/io/channel/mux/tls/ping-pong", test_tls_ping_pong);
    g_test_add_func("/io/channel/mux/tls/close", test_tls_close);
    g_test_add_func("/io/channel/mux/tls/cut", test_tls_cut);
    g_test_add_func("/io/channel/mux/command", test_command);
    g_test_add_func("/io/channel/mux/command/echo", test_command_echo);
    ret = g_test_run();
    test_tls_psk_cleanup(keys);
    rmdir(workdir);
    g_free(workdir);
    return ret;
}
