/*
 * Private NBD exports
 *
 * This work is licensed under the terms of the GNU GPL, version 2 or
 * later.  See the COPYING file in the top-level directory.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include <sys/ioctl.h>
#include "block/block.h"
#include "io/channel-socket.h"
#include "nbd-channel-helpers.h"
#include "qapi/error.h"
#include "qapi/qapi-commands-block-export.h"
#include "qemu/main-loop.h"
#include "qobject/qdict.h"

typedef struct ExportList {
    QIOChannel *ioc;
    NBDExportInfo *info;
    int count;
    bool done;
} ExportList;

static void not_reached(void *opaque, const Error *err)
{
    g_assert_not_reached();
}

static void test_export_refused(void)
{
    QIOChannel *client, *server;
    BlockDriverState *disk = open_disk(false);
    Error *err = NULL;

    socket_pair(&client, &server);
    g_assert_null(nbd_export_private("disk", "export", server, not_reached,
                                     NULL, &err));
    error_free_or_abort(&err);
    g_assert_null(nbd_export_private("none", "export", server, not_reached,
                                     NULL, &err));
    error_free_or_abort(&err);
    g_assert_cmpint(OBJECT(server)->ref, ==, 1);

    bdrv_unref(disk);
    object_unref(OBJECT(client));
    object_unref(OBJECT(server));
}

static void test_end_close(void)
{
    Connection c;
    BlockBackend *blk = connection_open(&c);

    write_pattern(blk, 0, 0x77, 0);
    nbd_export_private_close(c.exp);
    g_assert_cmpint(c.closed, ==, 0);
    nbd_export_private_close(c.exp);
    assert_dead(blk);
    connection_end(&c, "NBD export was closed");
}

/* Bytes that the export has not read yet */
static int unread_by_server(Connection *c)
{
    int n;

    g_assert(ioctl(QIO_CHANNEL_SOCKET(c->server)->fd, FIONREAD, &n) == 0);
    return n;
}

/* The export stays open while a request is in flight */
static void test_end_busy(void)
{
    static const char buf[512];
    Connection c = { 0 };
    QDict *options = qdict_new();
    NBDRequest request = {
        .type = NBD_CMD_WRITE, .cookie = 1, .mode = NBD_MODE_EXTENDED,
        .flags = NBD_CMD_FLAG_PAYLOAD_LEN, .len = sizeof(buf),
    };

    qdict_put_str(options, "driver", "raw");
    qdict_put_str(options, "node-name", "disk");
    qdict_put_str(options, "file.driver", "blkdebug");
    qdict_put_str(options, "file.image.driver", "null-co");
    c.disk = bdrv_open(NULL, NULL, options, BDRV_O_RDWR, &error_abort);
    connection_export_node(&c, "export");
    connection_negotiate(&c, "export");
    g_assert_null(c.ready_err);

    bdrv_debug_breakpoint(c.disk, "write_aio", "write");
    g_assert_cmpint(nbd_send_request(c.client, &request), ==, 0);
    qio_channel_write_all(c.client, buf, sizeof(buf), &error_abort);
    while (!bdrv_debug_is_suspended(c.disk, "write")) {
        main_loop_wait(false);
    }
    request = (NBDRequest) { .type = NBD_CMD_DISC, .mode = NBD_MODE_EXTENDED };
    g_assert_cmpint(nbd_send_request(c.client, &request), ==, 0);
    while (unread_by_server(&c)) {
        main_loop_wait(false);
    }
    for (int i = 0; i < 10; i++) {
        main_loop_wait(true);
    }
    g_assert_cmpint(c.closed, ==, 0);
    bdrv_debug_resume(c.disk, "write");
    connection_end(&c, NULL);
}

/* A request that is not complete is not executed */
static void test_end_half_request(void)
{
    Connection c;
    uint8_t buf[CHUNK / 2];
    NBDRequest request = {
        .type = NBD_CMD_WRITE, .cookie = 1, .mode = NBD_MODE_EXTENDED,
        .flags = NBD_CMD_FLAG_PAYLOAD_LEN, .len = CHUNK,
    };

    connection_export(&c, "export");
    connection_negotiate(&c, "export");
    g_assert_null(c.ready_err);

    memset(buf, 0x77, sizeof(buf));
    g_assert_cmpint(nbd_send_request(c.client, &request), ==, 0);
    qio_channel_write_all(c.client, (char *)buf, sizeof(buf), &error_abort);
    qio_channel_shutdown(c.client, QIO_CHANNEL_SHUTDOWN_BOTH, NULL);
    connection_end(&c, "end-of-file");
    assert_disk(0, CHUNK, 0);
}

static void test_negotiate_close(void)
{
    Connection c;

    connection_export(&c, "export");
    nbd_export_private_close(c.exp);
    g_assert_cmpint(c.closed, ==, 0);
    connection_end(&c, "NBD export was closed");
}

static void test_negotiate_cut(void)
{
    Connection c;

    connection_export(&c, "export");
    connection_negotiate_begin(&c, "export");
    qio_channel_shutdown(c.client, QIO_CHANNEL_SHUTDOWN_BOTH, NULL);
    wait_for(&c.ready);
    g_assert_nonnull(c.ready_err);
    connection_end(&c, "left without NBD_CMD_DISC");
}

static void test_negotiate_garbage(void)
{
    static const char garbage[] = "GET / HTTP/1.1\r\n\r\n";
    Connection c;

    connection_export(&c, "export");
    qio_channel_write_all(c.client, garbage, sizeof(garbage), &error_abort);
    connection_end(&c, "option negotiation failed");
}

static void coroutine_fn list_exports_co(void *opaque)
{
    ExportList *list = opaque;

    list->count = nbd_receive_export_list(list->ioc, NULL, NULL, &list->info,
                                          &error_abort);
    list->done = true;
}

static void list_exports(QIOChannel *ioc, ExportList *list)
{
    *list = (ExportList) { .ioc = ioc };
    qio_channel_set_blocking(ioc, false, &error_abort);
    qio_channel_set_follow_coroutine_ctx(ioc, true);
    aio_co_schedule(qemu_get_aio_context(),
                    qemu_coroutine_create(list_exports_co, list));
    wait_for(&list->done);
}

static void assert_list(QIOChannel *ioc, const char *name)
{
    ExportList list;

    list_exports(ioc, &list);
    g_assert_cmpint(list.count, ==, 1);
    g_assert_cmpstr(list.info[0].name, ==, name);
    nbd_free_export_list(list.info, list.count);
}

static void test_reach_other_name(void)
{
    Connection c;

    connection_export(&c, "export");
    connection_negotiate(&c, "expor");
    g_assert_nonnull(c.ready_err);
    g_assert_nonnull(strstr(error_get_pretty(c.ready_err), "not available"));
    qio_channel_shutdown(c.client, QIO_CHANNEL_SHUTDOWN_BOTH, NULL);
    connection_end(&c, "left without NBD_CMD_DISC");
}

static void test_reach_list(void)
{
    Connection c;

    connection_export(&c, "export");
    assert_list(c.client, "export");
    connection_end(&c, "left without NBD_CMD_DISC");
}

/* The NBD server of the process, with another node exported as "public" */
static SocketAddress *server_start(const char *dir)
{
    SocketAddress *addr = g_new0(SocketAddress, 1);
    QDict *other = qdict_new();
    BlockDriverState *bs;
    BlockExportOptions options = {
        .type = BLOCK_EXPORT_TYPE_NBD,
        .id = (char *)"export",
        .node_name = (char *)"other",
        .u.nbd.name = (char *)"public",
    };

    addr->type = SOCKET_ADDRESS_TYPE_UNIX;
    addr->u.q_unix.path = g_strdup_printf("%s/nbd.sock", dir);
    nbd_server_start(addr, 0, NULL, NULL, 0, &error_abort);

    qdict_put_str(other, "driver", "null-co");
    qdict_put_str(other, "node-name", "other");
    bs = bdrv_open(NULL, NULL, other, 0, &error_abort);
    qmp_block_export_add(&options, &error_abort);
    bdrv_unref(bs);
    return addr;
}

static void server_stop(SocketAddress *addr)
{
    qmp_nbd_server_stop(&error_abort);
    unlink(addr->u.q_unix.path);
    qapi_free_SocketAddress(addr);
}

static QIOChannel *server_connect(SocketAddress *addr)
{
    QIOChannelSocket *sioc = qio_channel_socket_new();

    qio_channel_socket_connect_sync(sioc, addr, &error_abort);
    return QIO_CHANNEL(sioc);
}

/* Clients of the NBD server do not reach the private export */
static void test_reach_by_server_clients(void)
{
    g_autofree char *dir = g_dir_make_tmp("nbd-channel-XXXXXX", NULL);
    Connection c, other = { 0 };
    BlockBackend *blk = connection_open(&c);
    SocketAddress *addr = server_start(dir);
    QIOChannel *ioc;

    ioc = server_connect(addr);
    assert_list(ioc, "public");
    object_unref(OBJECT(ioc));

    other.client = server_connect(addr);
    connection_negotiate(&other, "export");
    g_assert_nonnull(other.ready_err);
    error_free(other.ready_err);
    object_unref(OBJECT(other.client));

    server_stop(addr);
    rmdir(dir);
    do_io(blk);
    connection_close(&c, blk);
    connection_end(&c, NULL);
}

/* The private client does not reach the exports of the NBD server */
static void test_reach_server_exports(void)
{
    static const uint8_t open_public[] = {
        0, 0, 0, 0,                                 /* client flags */
        'I', 'H', 'A', 'V', 'E', 'O', 'P', 'T',
        0, 0, 0, NBD_OPT_EXPORT_NAME, 0, 0, 0, 6,
        'p', 'u', 'b', 'l', 'i', 'c',
    };
    g_autofree char *dir = g_dir_make_tmp("nbd-channel-XXXXXX", NULL);
    SocketAddress *addr;
    Connection c;

    connection_export(&c, "export");
    addr = server_start(dir);
    connection_negotiate(&c, "public");
    g_assert_nonnull(c.ready_err);
    server_stop(addr);
    qio_channel_shutdown(c.client, QIO_CHANNEL_SHUTDOWN_BOTH, NULL);
    connection_end(&c, "left without NBD_CMD_DISC");

    connection_export(&c, "export");
    addr = server_start(dir);
    qio_channel_write_all(c.client, (const char *)open_public,
                          sizeof(open_public), &error_abort);
    connection_end(&c, "export not found");
    server_stop(addr);
    rmdir(dir);
}

static void test_reach_qmp(void)
{
    Connection c;
    BlockBackend *blk = connection_open(&c);
    Error *err = NULL;

    g_assert_null(qmp_query_block_exports(&error_abort));
    qmp_block_export_del("export", true, BLOCK_EXPORT_REMOVE_MODE_HARD, &err);
    error_free_or_abort(&err);
    blk_exp_close_all_type(BLOCK_EXPORT_TYPE_NBD);
    do_io(blk);
    connection_close(&c, blk);
    connection_end(&c, NULL);
}

static void test_end_close_all(void)
{
    Connection c;
    BlockBackend *blk = connection_open(&c);

    blk_exp_close_all();
    g_assert_cmpint(c.closed, ==, 1);
    assert_dead(blk);
    connection_end(&c, "NBD export was closed");

    connection_export(&c, "export");
    blk_exp_close_all();
    g_assert_cmpint(c.closed, ==, 1);
    connection_end(&c, "NBD export was closed");
}

int main(int argc, char **argv)
{
    nbd_test_init(&argc, &argv);

    g_test_add_func("/nbd-private-export/refused", test_export_refused);
    g_test_add_func("/nbd-private-export/negotiate/close",
                    test_negotiate_close);
    g_test_add_func("/nbd-private-export/negotiate/cut", test_negotiate_cut);
    g_test_add_func("/nbd-private-export/negotiate/garbage",
                    test_negotiate_garbage);
    g_test_add_func("/nbd-private-export/reach/other-name",
                    test_reach_other_name);
    g_test_add_func("/nbd-private-export/reach/list", test_reach_list);
    g_test_add_func("/nbd-private-export/reach/by-server-clients",
                    test_reach_by_server_clients);
    g_test_add_func("/nbd-private-export/reach/server-exports",
                    test_reach_server_exports);
    g_test_add_func("/nbd-private-export/reach/qmp", test_reach_qmp);
    g_test_add_func("/nbd-private-export/end/close", test_end_close);
    g_test_add_func("/nbd-private-export/end/close-all", test_end_close_all);
    g_test_add_func("/nbd-private-export/end/busy", test_end_busy);
    g_test_add_func("/nbd-private-export/end/half-request",
                    test_end_half_request);

    return nbd_test_run();
}
