/*
 * NBD client nodes on a QIOChannel
 *
 * This work is licensed under the terms of the GNU GPL, version 2 or
 * later.  See the COPYING file in the top-level directory.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include <glib-unix.h>
#include "block/block_int.h"
#include "io/channel-socket.h"
#include "io/channel-util.h"
#include "nbd-channel-helpers.h"
#include "qapi/error.h"
#include "qapi/qapi-commands-yank.h"
#include "qemu/main-loop.h"
#include "qemu/memalign.h"
#include "qemu/sockets.h"
#include "qobject/qdict.h"
#include "system/iothread.h"

static void test_open(void)
{
    NBDExportInfo info = { .flags = NBD_FLAG_HAS_FLAGS };
    QDict *options = qdict_new();
    QIOChannel *a, *b;
    Error *err = NULL;

    socket_pair(&a, &b);

    /* The block layer refuses before the node could take the channel */
    g_assert_null(nbd_channel_open_node(a, &info, "no good", &err));
    error_free_or_abort(&err);
    g_assert_cmpint(OBJECT(a)->ref, ==, 1);

    /* Read-only for the server, so the node cannot be writable */
    info.flags |= NBD_FLAG_READ_ONLY;
    g_assert_null(nbd_channel_open_node(a, &info, "client", &err));
    error_free_or_abort(&err);
    g_assert_cmpint(OBJECT(a)->ref, ==, 1);

    /* Another node does not get the channel of one that failed */
    g_assert_null(nbd_channel_take(&info));
    qdict_put_str(options, "driver", "nbd");
    g_assert_null(bdrv_open(NULL, NULL, options, BDRV_O_RDWR, &err));
    error_free_or_abort(&err);

    object_unref(OBJECT(a));
    object_unref(OBJECT(b));
}

/* A server that never answers does not hold up the main loop */
static void test_negotiate_mute(void)
{
    Connection c = { 0 };

    socket_pair(&c.client, &c.server);
    connection_negotiate_begin(&c, "export");
    main_loop_wait(true);
    main_loop_wait(true);
    g_assert(!c.ready);
    qio_channel_shutdown(c.client, QIO_CHANNEL_SHUTDOWN_BOTH, NULL);
    wait_for(&c.ready);
    g_assert_nonnull(c.ready_err);
    error_free(c.ready_err);
    g_assert_cmpint(OBJECT(c.client)->ref, ==, 1);
    object_unref(OBJECT(c.client));
    object_unref(OBJECT(c.server));
}

static void test_io(void)
{
    Connection c;
    BlockBackend *blk = connection_open(&c);

    g_assert_cmpint(c.info.size, ==, DISK_SIZE);
    g_assert_cmpint(c.info.mode, ==, NBD_MODE_EXTENDED);
    g_assert(c.info.base_allocation);
    g_assert(!(c.info.flags & NBD_FLAG_CAN_MULTI_CONN));
    g_assert(!(c.info.flags & NBD_FLAG_READ_ONLY));
    g_assert_cmpint(blk_getlength(blk), ==, DISK_SIZE);
    bdrv_graph_rdlock_main_loop();
    bdrv_refresh_filename(blk_bs(blk));
    bdrv_graph_rdunlock_main_loop();
    g_assert_nonnull(strstr(blk_bs(blk)->filename, "\"driver\": \"nbd\""));
    do_io(blk);

    connection_close(&c, blk);
    connection_end(&c, NULL);
}

static void test_io_iothreads(void)
{
    IOThread *a = iothread_create("a", &error_abort);
    IOThread *b = iothread_create("b", &error_abort);
    AioContext *main_ctx = qemu_get_aio_context();
    Connection c;
    BlockBackend *blk = connection_open(&c);

    bdrv_try_change_aio_context(c.disk, iothread_get_aio_context(a), NULL,
                                &error_abort);
    do_io(blk);
    blk_set_aio_context(blk, iothread_get_aio_context(b), &error_abort);
    do_io(blk);
    bdrv_try_change_aio_context(c.disk, main_ctx, NULL, &error_abort);
    do_io(blk);
    bdrv_try_change_aio_context(c.disk, iothread_get_aio_context(b), NULL,
                                &error_abort);
    do_io(blk);

    blk_set_aio_context(blk, main_ctx, &error_abort);
    connection_close(&c, blk);
    while (!c.closed) {
        main_loop_wait(false);
    }
    bdrv_try_change_aio_context(c.disk, main_ctx, NULL, &error_abort);
    connection_end(&c, NULL);
    iothread_destroy(a);
    iothread_destroy(b);
}

static void aio_done(void *opaque, int ret)
{
    int *pending = opaque;

    g_assert_cmpint(ret, ==, 0);
    (*pending)--;
}

/* More requests than the client node sends at once */
static void test_io_parallel(void)
{
    Connection c;
    BlockBackend *blk = connection_open(&c);
    int pending = DISK_SIZE / CHUNK;
    g_autofree QEMUIOVector *qiov = g_new(QEMUIOVector, pending);
    uint8_t *buf = blk_blockalign(blk, DISK_SIZE);
    int i, n = pending;

    for (i = 0; i < n; i++) {
        memset(buf + i * CHUNK, i, CHUNK);
        qemu_iovec_init_buf(&qiov[i], buf + i * CHUNK, CHUNK);
        blk_aio_pwritev(blk, i * CHUNK, &qiov[i], 0, aio_done, &pending);
    }
    while (pending) {
        main_loop_wait(false);
    }
    for (i = 0; i < n; i++) {
        assert_disk(i * CHUNK, CHUNK, i);
    }

    qemu_vfree(buf);
    connection_close(&c, blk);
    connection_end(&c, NULL);
}

static void test_end_cut(void)
{
    Connection c;
    BlockBackend *blk = connection_open(&c);

    write_pattern(blk, 0, 0x77, 0);
    qio_channel_shutdown(c.client, QIO_CHANNEL_SHUTDOWN_BOTH, NULL);
    write_pattern(blk, 0, 0x77, -EIO);

    assert_dead(blk);
    connection_end(&c, "left without NBD_CMD_DISC");
}

static void test_end_yank(void)
{
    Connection c;
    BlockBackend *blk = connection_open(&c);
    YankInstance node = {
        .type = YANK_INSTANCE_TYPE_BLOCK_NODE,
        .u.block_node.node_name = (char *)"client",
    };
    YankInstanceList instances = { .value = &node };

    qmp_yank(&instances, &error_abort);
    assert_dead(blk);
    connection_end(&c, "left without NBD_CMD_DISC");
}

/* Cancelling requests is about reconnecting, which does not happen here */
static void test_end_cancel_in_flight(void)
{
    Connection c;
    BlockBackend *blk = connection_open(&c);

    bdrv_graph_rdlock_main_loop();
    bdrv_cancel_in_flight(blk_bs(blk));
    bdrv_graph_rdunlock_main_loop();
    do_io(blk);
    connection_close(&c, blk);
    connection_end(&c, NULL);
}

/* --- a socket that accepts no data until it is shut down --- */

#define TYPE_STUCK "test-nbd-stuck"
OBJECT_DECLARE_SIMPLE_TYPE(Stuck, STUCK)

struct Stuck {
    QIOChannelSocket parent;
    bool shut;
    /* A full pipe that writers poll until shutdown closes its read end */
    int pipe[2];
};

static QIOChannelClass *socket_class;

static ssize_t stuck_writev(QIOChannel *ioc, const struct iovec *iov,
                            size_t niov, int *fds, size_t nfds, int flags,
                            Error **errp)
{
    return STUCK(ioc)->shut ? socket_class->io_writev(ioc, iov, niov, fds,
                                                      nfds, flags, errp)
                            : QIO_CHANNEL_ERR_BLOCK;
}

static int stuck_shutdown(QIOChannel *ioc, QIOChannelShutdown how,
                          Error **errp)
{
    Stuck *stuck = STUCK(ioc);

    if (!stuck->shut) {
        stuck->shut = true;
        close(stuck->pipe[0]);
    }
    return socket_class->io_shutdown(ioc, how, errp);
}

static void stuck_set_aio_fd_handler(QIOChannel *ioc, AioContext *read_ctx,
                                     IOHandler *io_read,
                                     AioContext *write_ctx,
                                     IOHandler *io_write, void *opaque)
{
    qio_channel_util_set_aio_fd_handler(QIO_CHANNEL_SOCKET(ioc)->fd, read_ctx,
                                        io_read, STUCK(ioc)->pipe[1],
                                        write_ctx, io_write, opaque);
}

static void stuck_instance_finalize(Object *obj)
{
    g_assert(STUCK(obj)->shut);
    close(STUCK(obj)->pipe[1]);
}

static void stuck_class_init(ObjectClass *klass, void *data)
{
    QIOChannelClass *ioc_class = QIO_CHANNEL_CLASS(klass);

    socket_class = QIO_CHANNEL_CLASS(
        object_class_by_name(TYPE_QIO_CHANNEL_SOCKET));
    ioc_class->io_writev = stuck_writev;
    ioc_class->io_shutdown = stuck_shutdown;
    ioc_class->io_set_aio_fd_handler = stuck_set_aio_fd_handler;
}

static const TypeInfo stuck_info = {
    .parent = TYPE_QIO_CHANNEL_SOCKET,
    .name = TYPE_STUCK,
    .instance_size = sizeof(Stuck),
    .instance_finalize = stuck_instance_finalize,
    .class_init = stuck_class_init,
};

static void stuck_socket_pair(QIOChannel **a, QIOChannel **b)
{
    static const char buf[4 * KiB];
    Stuck *stuck = STUCK(object_new(TYPE_STUCK));
    int fds[2];

    g_assert(g_unix_open_pipe(stuck->pipe, FD_CLOEXEC, NULL));
    g_assert(g_unix_set_fd_nonblocking(stuck->pipe[1], true, NULL));
    while (write(stuck->pipe[1], buf, sizeof(buf)) > 0) {
        /* until it is full */
    }
    g_assert(qemu_socketpair(PF_UNIX, SOCK_STREAM, 0, fds) == 0);
    stuck->parent.fd = fds[0];
    qio_channel_set_feature(QIO_CHANNEL(stuck), QIO_CHANNEL_FEATURE_SHUTDOWN);
    *a = QIO_CHANNEL(stuck);
    *b = QIO_CHANNEL(qio_channel_socket_new_fd(fds[1], &error_abort));
}

static void closed(void *opaque)
{
    bool *is_closed = opaque;

    *is_closed = true;
}

/*
 * Close a node whose server reads nothing from now on: the caller does not
 * block, and the node is closed when the channel is shut down.
 */
static void test_end_stalled_disc(void)
{
    NBDExportInfo info = {
        .flags = NBD_FLAG_HAS_FLAGS, .mode = NBD_MODE_EXTENDED,
    };
    QIOChannel *client, *server;
    BlockDriverState *bs;
    bool is_closed = false;

    stuck_socket_pair(&client, &server);
    bs = nbd_channel_open_node(client, &info, "client", &error_abort);
    nbd_channel_close_node(bs, client, info.mode, closed, &is_closed);
    for (unsigned i = 0; i < 10; i++) {
        main_loop_wait(true);
        g_usleep(1000);
    }
    g_assert(!is_closed);

    qio_channel_shutdown(client, QIO_CHANNEL_SHUTDOWN_BOTH, NULL);
    while (!is_closed) {
        main_loop_wait(false);
    }
    g_assert_null(bdrv_find_node("client"));
    g_assert_cmpint(OBJECT(client)->ref, ==, 1);
    object_unref(OBJECT(client));
    object_unref(OBJECT(server));
}

/* The same, without NBD_CMD_DISC: that waits for nothing. */
static void test_end_stalled_unref(void)
{
    NBDExportInfo info = {
        .flags = NBD_FLAG_HAS_FLAGS, .mode = NBD_MODE_EXTENDED,
    };
    QIOChannel *client, *server;

    stuck_socket_pair(&client, &server);
    bdrv_unref(nbd_channel_open_node(client, &info, "client", &error_abort));
    g_assert_null(bdrv_find_node("client"));
    g_assert_cmpint(OBJECT(client)->ref, ==, 1);
    object_unref(OBJECT(client));
    object_unref(OBJECT(server));
}

int main(int argc, char **argv)
{
    nbd_test_init(&argc, &argv);
    type_register_static(&stuck_info);

    g_test_add_func("/nbd-channel/open", test_open);
    g_test_add_func("/nbd-channel/negotiate/mute", test_negotiate_mute);
    g_test_add_func("/nbd-channel/io/basic", test_io);
    g_test_add_func("/nbd-channel/io/iothreads", test_io_iothreads);
    g_test_add_func("/nbd-channel/io/parallel", test_io_parallel);
    g_test_add_func("/nbd-channel/end/cut", test_end_cut);
    g_test_add_func("/nbd-channel/end/yank", test_end_yank);
    g_test_add_func("/nbd-channel/end/cancel-in-flight",
                    test_end_cancel_in_flight);
    g_test_add_func("/nbd-channel/end/stalled-disc", test_end_stalled_disc);
    g_test_add_func("/nbd-channel/end/stalled-unref", test_end_stalled_unref);

    return nbd_test_run();
}
