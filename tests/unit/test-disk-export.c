/*
 * Completion of a disk at the destination of a migration
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "block/block.h"
#include "block/nbd-channel.h"
#include "migration/disk-export.h"
#include "mux-session-helpers.h"
#include "qapi/error.h"
#include "qemu/sockets.h"
#include "qobject/qdict.h"
#include "system/block-backend.h"
#include "system/runstate.h"

#define LIMIT_MS 500

typedef struct Disk {
    Pair *pair;
    MigrationDiskChannel def;
    BlockDriverState *bs;       /* raw on blkdebug on nothing */
    QIOChannelMux *stream;      /* the source's end */
    DiskExport *receive;
    NBDExportInfo info;
    bool negotiated;
    bool disc_sent;
    char *error;                /* the destination's error */
} Disk;

static void disk_negotiated(void *opaque, const NBDExportInfo *info,
                            const Error *err)
{
    Disk *disk = opaque;

    g_assert_null(err);
    disk->info = *info;
    disk->negotiated = true;
}

static void disk_failed(DiskExport *d, const MuxFailure *failure, void *opaque)
{
    Disk *disk = opaque;

    g_assert_null(disk->error);
    disk->error = mux_failure_text(failure);
}

/* The test calls disk_export_end() itself. */
static void disk_finishing(DiskExport *d, void *opaque)
{
}

static const DiskExportOps disk_ops = {
    .finishing = disk_finishing,
    .failed = disk_failed,
};

static BlockDriverState *open_node(bool failing_flush)
{
    QDict *options = qdict_new();

    qdict_put_str(options, "driver", "raw");
    qdict_put_str(options, "node-name", "node");
    qdict_put_str(options, "file.driver", "blkdebug");
    qdict_put_str(options, "file.image.driver", "null-co");
    qdict_put_bool(options, "file.image.read-zeroes", true);
    if (failing_flush) {
        qdict_put_str(options, "file.inject-error.0.event", "flush_to_disk");
        qdict_put_int(options, "file.inject-error.0.errno", EIO);
    }
    return bdrv_open(NULL, NULL, options, BDRV_O_RDWR, &error_abort);
}

/* Wait until NBD is negotiated.  The clock is stopped from here on. */
static void disk_start_on(Disk *disk, BlockDriverState *bs)
{
    clock_stop();
    *disk = (Disk) {
        .pair = pair_new(0),
        .def = { .disk = (char *)"disk", .stream = (char *)"nbd-disk",
                 .node_name = (char *)"node" },
        .bs = bs,
    };
    disk->pair->dst.defer = true;
    disk->stream = mux_session_open(disk->pair->src.session, "nbd-disk",
                                    NULL);
    WAIT_FOR(disk->pair->dst.streams->len == 1);
    disk->receive = disk_export_new(&disk->def, &disk_ops, disk);
    disk_export_accept(disk->receive, disk->pair->dst.streams->pdata[0],
                       &error_abort);
    nbd_channel_negotiate(QIO_CHANNEL(disk->stream), "disk", disk_negotiated,
                          disk);
    WAIT_FOR(disk->negotiated);
}

static void disk_start(Disk *disk)
{
    disk_start_on(disk, open_node(false));
}

static void coroutine_fn disk_send_disc_co(void *opaque)
{
    Disk *disk = opaque;
    NBDRequest request = { .type = NBD_CMD_DISC, .mode = disk->info.mode };

    nbd_send_request(QIO_CHANNEL(disk->stream), &request);
    disk->disc_sent = true;
}

static void disk_send_disc(Disk *disk)
{
    qemu_coroutine_enter(qemu_coroutine_create(disk_send_disc_co, disk));
    WAIT_FOR(disk->disc_sent);
}

/* NBD_CMD_DISC and FIN, as after a mirror */
static void disk_disconnect(Disk *disk)
{
    disk_send_disc(disk);
    qio_channel_shutdown(QIO_CHANNEL(disk->stream), QIO_CHANNEL_SHUTDOWN_BOTH,
                         NULL);
}

static void disk_assert_lost(Disk *disk, const char *why)
{
    g_autofree char *error = NULL;
    g_autofree char *here = g_strdup_printf("stream 'nbd-disk': %s", why);
    g_autofree char *there = g_strdup_printf(
        "stream 'nbd-disk': aborted by the destination: %s", why);

    WAIT_FOR(disk->error);
    g_assert_cmpstr(disk->error, ==, here);
    WAIT_FOR((error = stream_error(QIO_CHANNEL(disk->stream))));
    g_assert_cmpstr(error, ==, there);
    g_assert(!disk_export_done(disk->receive));
}

/* Assert that the destination times out after LIMIT_MS, not earlier. */
static void disk_assert_lost_in_time(Disk *disk, const char *why)
{
    disk_export_end(disk->receive, LIMIT_MS);
    clock_advance(LIMIT_MS - 1);
    let_threads_wait();
    g_assert_null(disk->error);
    clock_advance(1);
    disk_assert_lost(disk, why);
}

static void disk_end(Disk *disk)
{
    g_autoptr(MuxFailure) over =
        mux_failure_new(NULL, MUX_CODE_ABORTED, "the test is over");

    clock_run();
    disk_export_free(disk->receive, over);
    object_unref(OBJECT(disk->stream));
    bdrv_unref(disk->bs);
    WAIT_FOR(!bdrv_find_node("node"));
    pair_free(disk->pair);
    g_free(disk->error);
}

static void test_good_end(void)
{
    Disk disk;

    disk_start(&disk);
    disk_disconnect(&disk);
    disk_export_end(disk.receive, LIMIT_MS);
    WAIT_FOR(qio_channel_mux_fin_acked(disk.stream));
    g_assert(disk_export_done(disk.receive));
    g_assert_null(disk.error);
    disk_end(&disk);
}

/* There has to be something to flush. */
static void write_to(BlockDriverState *bs)
{
    static char buf[512];
    BlockBackend *blk = blk_new_with_bs(bs, BLK_PERM_WRITE, BLK_PERM_ALL,
                                        &error_abort);

    g_assert_cmpint(blk_pwrite(blk, 0, sizeof(buf), buf, 0), ==, 0);
    blk_unref(blk);
}

static void test_flush_fails(void)
{
    g_autofree char *why = g_strdup_printf("cannot flush node 'node': %s",
                                           strerror(EIO));
    BlockDriverState *bs = open_node(true);
    Disk disk;

    write_to(bs);
    disk_start_on(&disk, bs);
    disk_disconnect(&disk);
    disk_export_end(disk.receive, LIMIT_MS);
    disk_assert_lost(&disk, why);
    disk_end(&disk);
}

static void test_flush_hangs(void)
{
    Disk disk;

    disk_start(&disk);
    bdrv_debug_breakpoint(disk.bs, "flush_to_os", "flush");
    disk_disconnect(&disk);
    /* The limit applies to the flush only, not to closing the export */
    WAIT_FOR(bdrv_debug_is_suspended(disk.bs, "flush"));
    disk_assert_lost_in_time(&disk, "timed out after 0.5 s waiting for the "
                             "last flush of the disk");
    bdrv_debug_resume(disk.bs, "flush");
    disk_end(&disk);
}

static void written(void *opaque, int ret)
{
    bool *done = opaque;

    g_assert_cmpint(ret, <, 0);
    *done = true;
}

/* The source disconnects while a write is in flight */
static void test_request_hangs(void)
{
    static char buf[512];
    QEMUIOVector qiov = QEMU_IOVEC_INIT_BUF(qiov, buf, sizeof(buf));
    bool done = false;
    BlockBackend *blk;
    BlockDriverState *client;
    Disk disk;

    disk_start(&disk);
    bdrv_debug_breakpoint(disk.bs, "write_aio", "write");
    client = nbd_channel_open_node(QIO_CHANNEL(disk.stream), &disk.info, NULL,
                                   &error_abort);
    blk = blk_new_with_bs(client, BLK_PERM_WRITE, BLK_PERM_ALL, &error_abort);
    bdrv_unref(client);
    blk_aio_pwritev(blk, 0, &qiov, 0, written, &done);
    WAIT_FOR(bdrv_debug_is_suspended(disk.bs, "write"));
    disk_send_disc(&disk);

    disk_assert_lost_in_time(&disk, "timed out after 0.5 s waiting for the "
                             "source's requests in flight");
    WAIT_FOR(done);
    bdrv_debug_resume(disk.bs, "write");
    blk_unref(blk);
    disk_end(&disk);
}

/* The NBD server's library refers to it */
void qemu_system_killed(int signal, pid_t pid)
{
    g_assert_not_reached();
}

int main(int argc, char **argv)
{
    session_test_init(&argc, &argv);
    bdrv_init();
    g_test_add_func("/disk-export/good-end", test_good_end);
    g_test_add_func("/disk-export/flush-fails", test_flush_fails);
    g_test_add_func("/disk-export/flush-hangs", test_flush_hangs);
    g_test_add_func("/disk-export/request-hangs", test_request_hangs);
    return g_test_run();
}
