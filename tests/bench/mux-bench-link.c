/*
 * Benchmark of streams: the connections and their streams
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "crypto/tlscredspsk.h"
#include "io/channel-socket.h"
#include "io/channel-tls.h"
#include "migration/mux/channel-mux.h"
#include "mux-bench.h"
#include "qapi/error.h"
#include "qemu/cutils.h"
#include "qemu/main-loop.h"
#include "qemu/units.h"

#define CLOSE_MS 10000

static bool on_mux(Bench *b)
{
    return g_str_equal(b->opt.on, "mux");
}

/* The number of connections */
static unsigned connections(Bench *b)
{
    return g_str_equal(b->opt.on, "socket") ? b->n : 1;
}

void bench_link_prepare(Bench *b)
{
    b->n = b->opt.streams + b->opt.bulk;
    b->ioc = g_new0(QIOChannel *, b->n);
    if (!b->opt.tcp) {
        b->pairs = g_malloc_n(b->n, sizeof(*b->pairs));
        for (int i = 0; i < connections(b); i++) {
            g_assert(socketpair(AF_UNIX, SOCK_STREAM, 0, b->pairs[i]) == 0);
        }
    }
    if (b->opt.tls) {
        g_autofree char *file = NULL;

        b->keys = g_dir_make_tmp("mux-bench-XXXXXX", NULL);
        g_assert(b->keys);
        file = g_build_filename(b->keys, QCRYPTO_TLS_CREDS_PSKFILE, NULL);
        g_assert(g_file_set_contents(file, "qemu:009d5638c40fde0c\n", -1,
                                     NULL));
    }
}

/* --- sockets --- */

static void unix_open(Bench *b, QIOChannel **to)
{
    for (int i = 0; i < connections(b); i++) {
        to[i] = QIO_CHANNEL(qio_channel_socket_new_fd(
            b->pairs[i][!b->is_source], &error_fatal));
        close(b->pairs[i][b->is_source]);
    }
}

static void tcp_accept(Bench *b, SocketAddress *addr, QIOChannel **to)
{
    g_autoptr(QIOChannelSocket) lioc = qio_channel_socket_new();
    SocketAddress *bound;
    char port[8];

    qio_channel_socket_listen_sync(lioc, addr, b->n, &error_fatal);
    bound = qio_channel_socket_get_local_address(lioc, &error_fatal);
    pstrcpy(port, sizeof(port), bound->u.inet.port);
    qapi_free_SocketAddress(bound);
    bench_send(b, port, sizeof(port));
    for (int i = 0; i < connections(b); i++) {
        to[i] = QIO_CHANNEL(qio_channel_socket_accept(lioc, &error_fatal));
    }
}

static void tcp_connect(Bench *b, SocketAddress *addr, QIOChannel **to)
{
    char port[8];

    bench_receive(b, port, sizeof(port));
    g_free(addr->u.inet.port);
    addr->u.inet.port = g_strdup(port);
    for (int i = 0; i < connections(b); i++) {
        QIOChannelSocket *sioc = qio_channel_socket_new();

        qio_channel_socket_connect_sync(sioc, addr, &error_fatal);
        to[i] = QIO_CHANNEL(sioc);
    }
}

static void tcp_open(Bench *b, QIOChannel **to)
{
    SocketAddress *addr = g_new0(SocketAddress, 1);

    addr->type = SOCKET_ADDRESS_TYPE_INET;
    addr->u.inet.host = g_strdup(b->opt.host);
    addr->u.inet.port = g_strdup("0");
    if (b->is_source) {
        tcp_accept(b, addr, to);
    } else {
        tcp_connect(b, addr, to);
    }
    qapi_free_SocketAddress(addr);
    for (int i = 0; i < connections(b); i++) {
        qio_channel_set_delay(to[i], false);
    }
}

/* --- TLS --- */

static void handshake_done(QIOTask *task, gpointer opaque)
{
    Error *err = NULL;

    if (qio_task_propagate_error(task, &err)) {
        error_report_err(err);
        exit(1);
    }
    *(bool *)opaque = true;
}

static QIOChannel *tls_open(QIOChannel *ioc, QCryptoTLSCreds *creds,
                            bool server)
{
    QIOChannelTLS *tls;
    bool done = false;

    qio_channel_set_blocking(ioc, false, &error_fatal);
    tls = server ?
        qio_channel_tls_new_server(ioc, creds, NULL, &error_fatal) :
        qio_channel_tls_new_client(ioc, creds, "host", &error_fatal);
    object_unref(OBJECT(ioc));
    qio_channel_tls_handshake(tls, handshake_done, &done, NULL, NULL);
    while (!done) {
        main_loop_wait(false);
    }
    qio_channel_set_blocking(QIO_CHANNEL(tls), true, &error_fatal);
    return QIO_CHANNEL(tls);
}

static void tls_open_all(Bench *b, QIOChannel **to)
{
    const char *endpoint = b->is_source ? "client" : "server";
    Object *creds = object_new_with_props(TYPE_QCRYPTO_TLS_CREDS_PSK,
                                          object_get_objects_root(), "creds",
                                          &error_fatal, "endpoint", endpoint,
                                          "dir", b->keys, "priority", "NORMAL",
                                          NULL);

    for (int i = 0; i < connections(b); i++) {
        to[i] = tls_open(to[i], QCRYPTO_TLS_CREDS(creds), !b->is_source);
    }
    bench_barrier(b);
    if (b->is_source) {
        g_autofree char *file =
            g_build_filename(b->keys, QCRYPTO_TLS_CREDS_PSKFILE, NULL);

        unlink(file);
        rmdir(b->keys);
    }
}

/* --- streams --- */

static void stream_opened(MuxSession *session, QIOChannelMux *ioc,
                          void *opaque)
{
    Bench *b = opaque;
    unsigned i = atoi(qio_channel_mux_name(ioc) + strlen("stream-"));

    g_assert(i < b->n && !b->ioc[i]);
    if (b->opt.window) {
        qio_channel_mux_set_window_max(ioc, b->opt.window * MiB);
    }
    qio_channel_mux_accept(ioc);
    b->ioc[i] = QIO_CHANNEL(object_ref(OBJECT(ioc)));
}

static const MuxSessionOps ops = { .opened = stream_opened };

static bool all_open(Bench *b)
{
    for (int i = 0; i < b->n; i++) {
        if (!b->ioc[i] || qio_channel_mux_state(QIO_CHANNEL_MUX(b->ioc[i])) !=
                          MUX_STREAM_OPEN) {
            return false;
        }
    }
    return true;
}

static void mux_open(Bench *b, QIOChannel *transport)
{
    b->session = mux_session_new(transport, b->is_source ? MUX_ROLE_SOURCE :
                                 MUX_ROLE_DESTINATION, &ops, b);
    object_unref(OBJECT(transport));
    for (int i = 0; b->is_source && i < b->n; i++) {
        g_autofree char *name = g_strdup_printf("stream-%d", i);

        b->ioc[i] = QIO_CHANNEL(mux_session_open(b->session, name, NULL));
        g_assert(b->ioc[i]);
    }
    while (!all_open(b)) {
        main_loop_wait(false);
    }
}

void bench_link_open(Bench *b)
{
    g_autofree QIOChannel **to = g_new0(QIOChannel *, b->n);

    if (b->opt.tcp) {
        tcp_open(b, to);
    } else {
        unix_open(b, to);
    }
    if (b->opt.tls) {
        tls_open_all(b, to);
    }
    if (on_mux(b)) {
        mux_open(b, to[0]);
    } else {
        memcpy(b->ioc, to, b->n * sizeof(*to));
    }
    bench_barrier(b);
}

void bench_link_close(Bench *b)
{
    bench_barrier(b);
    for (int i = 0; i < b->n; i++) {
        object_unref(OBJECT(b->ioc[i]));
    }
    if (b->session) {
        mux_session_close_wait(b->session, NULL, CLOSE_MS);
        mux_session_detach(b->session);
        mux_session_unref(b->session);
    }
}
