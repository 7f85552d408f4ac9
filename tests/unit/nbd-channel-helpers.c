/*
 * Helpers for tests of NBD on a QIOChannel
 *
 * This work is licensed under the terms of the GNU GPL, version 2 or
 * later.  See the COPYING file in the top-level directory.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "block/block.h"
#include "io/channel-socket.h"
#include "nbd-channel-helpers.h"
#include "qapi/error.h"
#include "qemu/main-loop.h"
#include "qemu/memalign.h"
#include "qemu/module.h"
#include "qemu/sockets.h"
#include "qobject/qdict.h"
#include "system/runstate.h"

static char *disk_path;

/* Wanted by the signal handler that comes with the block layer */
void qemu_system_killed(int signal, pid_t pid)
{
    g_assert_not_reached();
}

void nbd_test_init(int *argc, char ***argv)
{
    int fd;

    module_call_init(MODULE_INIT_QOM);
    qemu_init_main_loop(&error_abort);
    bdrv_init();
    socket_init();
    signal(SIGPIPE, SIG_IGN);

    g_test_init(argc, argv, NULL);

    fd = g_file_open_tmp("nbd-channel-XXXXXX", &disk_path, NULL);
    g_assert(fd >= 0);
    close(fd);
}

int nbd_test_run(void)
{
    int ret = g_test_run();

    unlink(disk_path);
    g_free(disk_path);
    return ret;
}

void wait_for(bool *flag)
{
    while (!*flag) {
        main_loop_wait(false);
    }
}

void socket_pair(QIOChannel **a, QIOChannel **b)
{
    int fds[2];

    g_assert(qemu_socketpair(PF_UNIX, SOCK_STREAM, 0, fds) == 0);
    *a = QIO_CHANNEL(qio_channel_socket_new_fd(fds[0], &error_abort));
    *b = QIO_CHANNEL(qio_channel_socket_new_fd(fds[1], &error_abort));
}

BlockDriverState *open_disk(bool writable)
{
    QDict *options = qdict_new();
    int fd = open(disk_path, O_RDWR | O_TRUNC);

    g_assert(fd >= 0);
    g_assert(ftruncate(fd, DISK_SIZE) == 0);
    close(fd);

    qdict_put_str(options, "driver", "file");
    qdict_put_str(options, "node-name", "disk");
    qdict_put_str(options, "filename", disk_path);
    qdict_put_str(options, "locking", "off");
    qdict_put_str(options, "discard", "unmap");
    return bdrv_open(NULL, NULL, options, writable ? BDRV_O_RDWR : 0,
                     &error_abort);
}

void assert_disk(int64_t offset, size_t len, uint8_t byte)
{
    g_autofree uint8_t *buf = g_malloc(len);
    int fd = open(disk_path, O_RDONLY);
    size_t i;

    g_assert(fd >= 0);
    g_assert(pread(fd, buf, len, offset) == len);
    close(fd);
    for (i = 0; i < len; i++) {
        g_assert_cmphex(buf[i], ==, byte);
    }
}

static void connection_ready(void *opaque, const NBDExportInfo *info,
                             const Error *err)
{
    Connection *c = opaque;

    g_assert(!c->ready);
    g_assert(!info == !!err);
    c->ready = true;
    if (info) {
        c->info = *info;
    } else {
        c->ready_err = error_copy(err);
    }
}

static void connection_closed(void *opaque, const Error *err)
{
    Connection *c = opaque;

    g_assert(qemu_in_main_thread());
    c->closed++;
    bdrv_graph_rdlock_main_loop();
    c->released = !bdrv_has_blk(c->disk);
    bdrv_graph_rdunlock_main_loop();
    c->closed_err = err ? error_copy(err) : NULL;
}

void connection_export_node(Connection *c, const char *name)
{
    socket_pair(&c->client, &c->server);
    c->exp = nbd_export_private("disk", name, c->server, connection_closed, c,
                                &error_abort);
    g_assert(c->exp);
    g_assert_cmpint(c->closed, ==, 0);
}

void connection_export(Connection *c, const char *name)
{
    *c = (Connection) { .disk = open_disk(true) };
    connection_export_node(c, name);
}

void connection_negotiate_begin(Connection *c, const char *name)
{
    nbd_channel_negotiate(c->client, name, connection_ready, c);
    g_assert(!c->ready);
}

void connection_negotiate(Connection *c, const char *name)
{
    connection_negotiate_begin(c, name);
    wait_for(&c->ready);
}

BlockBackend *connection_open(Connection *c)
{
    BlockBackend *blk;
    BlockDriverState *bs;

    connection_export(c, "export");
    connection_negotiate(c, "export");
    g_assert_null(c->ready_err);

    bs = nbd_channel_open_node(c->client, &c->info, "client", &error_abort);
    blk = blk_new(qemu_get_aio_context(),
                  BLK_PERM_CONSISTENT_READ | BLK_PERM_WRITE, BLK_PERM_ALL);
    blk_insert_bs(blk, bs, &error_abort);
    blk_set_allow_aio_context_change(blk, true);
    bdrv_unref(bs);
    return blk;
}

static void node_closed(void *opaque)
{
    *(bool *)opaque = true;
}

void connection_close(Connection *c, BlockBackend *blk)
{
    BlockDriverState *bs = blk_bs(blk);
    bool closed = false;

    bdrv_ref(bs);
    blk_unref(blk);
    nbd_channel_close_node(bs, c->client, c->info.mode, node_closed, &closed);
    wait_for(&closed);
}

void connection_end(Connection *c, const char *cause)
{
    while (!c->closed) {
        main_loop_wait(false);
    }

    g_assert(c->released);
    if (cause) {
        g_assert_nonnull(c->closed_err);
        g_assert_nonnull(strstr(error_get_pretty(c->closed_err), cause));
    } else {
        g_assert_null(c->closed_err);
    }

    bdrv_unref(c->disk);
    g_assert_null(bdrv_find_node("disk"));
    g_assert_null(bdrv_find_node("client"));
    g_assert_cmpint(c->closed, ==, 1);

    /* Nothing else may use the channels */
    g_assert_cmpint(OBJECT(c->client)->ref, ==, 1);
    g_assert_cmpint(OBJECT(c->server)->ref, ==, 1);
    object_unref(OBJECT(c->client));
    object_unref(OBJECT(c->server));
    error_free(c->closed_err);
    error_free(c->ready_err);
}

void write_pattern(BlockBackend *blk, int64_t offset, uint8_t byte,
                   int expect)
{
    uint8_t *buf = blk_blockalign(blk, CHUNK);

    memset(buf, byte, CHUNK);
    g_assert_cmpint(blk_pwrite(blk, offset, CHUNK, buf, 0), ==, expect);
    qemu_vfree(buf);
}

static void read_pattern(BlockBackend *blk, int64_t offset, uint8_t byte)
{
    uint8_t *buf = blk_blockalign(blk, CHUNK);
    int i;

    g_assert_cmpint(blk_pread(blk, offset, CHUNK, buf, 0), ==, 0);
    for (i = 0; i < CHUNK; i++) {
        g_assert_cmphex(buf[i], ==, byte);
    }
    qemu_vfree(buf);
}

void do_io(BlockBackend *blk)
{
    write_pattern(blk, 0, 0xa5, 0);
    write_pattern(blk, CHUNK, 0x5a, 0);
    write_pattern(blk, 2 * CHUNK, 0x11, 0);
    write_pattern(blk, DISK_SIZE - CHUNK, 0xee, 0);
    g_assert_cmpint(blk_pwrite_zeroes(blk, CHUNK, CHUNK, BDRV_REQ_MAY_UNMAP),
                    ==, 0);
    g_assert_cmpint(blk_pdiscard(blk, 2 * CHUNK, CHUNK, 0), ==, 0);
    g_assert_cmpint(blk_flush(blk), ==, 0);

    read_pattern(blk, 0, 0xa5);
    read_pattern(blk, CHUNK, 0);
    read_pattern(blk, DISK_SIZE - CHUNK, 0xee);

    assert_disk(0, CHUNK, 0xa5);
    assert_disk(CHUNK, CHUNK, 0);
    assert_disk(DISK_SIZE - CHUNK, CHUNK, 0xee);
}

void assert_dead(BlockBackend *blk)
{
    write_pattern(blk, 0, 0x77, -EIO);
    write_pattern(blk, 0, 0x77, -EIO);
    g_assert_cmpint(blk_flush(blk), ==, -EIO);
    g_assert_cmpint(blk_getlength(blk), ==, DISK_SIZE);
    blk_unref(blk);
}
