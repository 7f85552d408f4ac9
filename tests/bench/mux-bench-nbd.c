/*
 * Benchmark of streams: NBD
 *
 * Both sides run NBD in the main loop, as the disks of a guest without
 * IOThreads do.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "block/block.h"
#include "block/nbd-channel.h"
#include "mux-bench.h"
#include "qapi/error.h"
#include "qemu/main-loop.h"
#include "qemu/timer.h"
#include "qemu/units.h"
#include "qobject/qdict.h"
#include "system/block-backend.h"

#define NULL_SIZE GiB           /* of the target "null" */

/* --- source: the client --- */

typedef struct Client {
    Bench *b;
    NBDExportInfo info;
    bool ready;
    BlockBackend *blk;
    uint64_t blocks;            /* of the disk, of opt.size bytes each */
    uint64_t next;
    GRand *rand;
    int in_flight;
} Client;

typedef struct Request {
    Client *c;
    QEMUIOVector qiov;
    uint8_t *buf;
    int64_t sent;
} Request;

static void client_ready(void *opaque, const NBDExportInfo *info,
                         const Error *err)
{
    Client *c = opaque;

    if (!info) {
        error_report_err(error_copy(err));
        exit(1);
    }
    c->info = *info;
    c->ready = true;
}

static int64_t next_offset(Client *c)
{
    uint64_t block = g_str_equal(c->b->opt.pattern, "random") ?
                     g_rand_double_range(c->rand, 0, c->blocks) :
                     c->next++ % c->blocks;

    return block * c->b->opt.size;
}

static void request_done(void *opaque, int ret);

static void request_send(Request *r)
{
    Client *c = r->c;
    int64_t offset = next_offset(c);

    c->in_flight++;
    r->sent = get_clock();
    if (c->b->opt.read) {
        blk_aio_preadv(c->blk, offset, &r->qiov, 0, request_done, r);
    } else {
        blk_aio_pwritev(c->blk, offset, &r->qiov, 0, request_done, r);
    }
}

static void request_done(void *opaque, int ret)
{
    Request *r = opaque;
    Bench *b = r->c->b;
    int64_t now = get_clock();

    g_assert(ret == 0);
    r->c->in_flight--;
    b->bytes += b->opt.size;
    bench_latency(b, now - r->sent);
    if (now - b->began < b->opt.seconds * 1e9) {
        request_send(r);
    }
}

static void client_open(Client *c)
{
    BlockDriverState *bs;

    nbd_channel_negotiate(c->b->ioc[0], "export", client_ready, c);
    while (!c->ready) {
        main_loop_wait(false);
    }
    bs = nbd_channel_open_node(c->b->ioc[0], &c->info, "client",
                               &error_fatal);
    c->blk = blk_new(qemu_get_aio_context(),
                     BLK_PERM_CONSISTENT_READ | BLK_PERM_WRITE, BLK_PERM_ALL);
    blk_insert_bs(c->blk, bs, &error_fatal);
    bdrv_unref(bs);
    c->blocks = c->info.size / c->b->opt.size;
    g_assert(c->blocks);
}

static void client_closed(void *opaque)
{
    *(bool *)opaque = true;
}

static void client_close(Client *c)
{
    BlockDriverState *bs = blk_bs(c->blk);
    bool closed = false;

    bdrv_ref(bs);
    blk_unref(c->blk);
    nbd_channel_close_node(bs, c->b->ioc[0], c->info.mode, client_closed,
                           &closed);
    while (!closed) {
        main_loop_wait(false);
    }
}

static void nbd_source(Bench *b)
{
    g_autofree Request *r = g_new0(Request, b->opt.depth);
    Client c = { .b = b, .rand = g_rand_new_with_seed(1) };

    client_open(&c);
    for (int i = 0; i < b->opt.depth; i++) {
        r[i] = (Request) { .c = &c, .buf = bench_alloc(b->opt.size) };
        qemu_iovec_init_buf(&r[i].qiov, r[i].buf, b->opt.size);
    }
    bench_begin(b);
    for (int i = 0; i < b->opt.depth; i++) {
        request_send(&r[i]);
    }
    while (c.in_flight) {
        main_loop_wait(false);
    }
    /* Tells the server, which waits for it in its main loop */
    client_close(&c);
    bench_end(b);
    for (int i = 0; i < b->opt.depth; i++) {
        g_free(r[i].buf);
    }
    g_rand_free(c.rand);
}

/* --- destination: the server --- */

static void server_closed(void *opaque, const Error *err)
{
    if (err) {
        error_report_err(error_copy(err));
        exit(1);
    }
    *(bool *)opaque = true;
}

static BlockDriverState *open_target(Bench *b)
{
    QDict *options = qdict_new();

    qdict_put_str(options, "node-name", "target");
    if (g_str_equal(b->opt.target, "null")) {
        qdict_put_str(options, "driver", "null-co");
        qdict_put_int(options, "size", NULL_SIZE);
        qdict_put_bool(options, "read-zeroes", false);
    } else {
        qdict_put_str(options, "driver", "file");
        qdict_put_str(options, "filename", b->opt.target);
    }
    return bdrv_open(NULL, NULL, options, BDRV_O_RDWR, &error_fatal);
}

static void nbd_destination(Bench *b)
{
    BlockDriverState *bs = open_target(b);
    bool closed = false, begun = false;

    nbd_export_private("target", "export", b->ioc[0], server_closed, &closed,
                       &error_fatal);
    /* Negotiate meanwhile: no bench_begin(), which does not run the loop */
    while (!begun) {
        GPollFD peer = { .fd = b->peer, .events = G_IO_IN };

        main_loop_wait(true);
        begun = g_poll(&peer, 1, 0) > 0;
    }
    bench_begin(b);
    while (!closed) {
        main_loop_wait(false);
    }
    bench_end(b);
    bdrv_unref(bs);
}

void bench_nbd(Bench *b)
{
    if (b->is_source) {
        nbd_source(b);
    } else {
        nbd_destination(b);
    }
}
