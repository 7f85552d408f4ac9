/*
 * What reaches the destination's image of a disk that is being copied
 *
 * The image is memory.  Each request that it gets is recorded; what it contains
 * at the end must be what was written.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "block-hold-helpers.h"
#include "migration/disk-target.h"
#include "qapi/error.h"
#include "qemu/iov.h"
#include "qemu/main-loop.h"
#include "qemu/units.h"
#include "system/block-backend.h"

#define CHUNK (64 * KiB)
#define SIZE (16 * MiB + 512)

/* --- the image --- */

typedef struct BDRVImageState {
    uint8_t *data;
    int64_t not_zero;           /* so many bytes at the start are data */
    int64_t zero_alignment;     /* fast only with this; 0: never */
    int64_t written, zeroed;    /* bytes */
    int64_t extent;             /* the most that a block status covers */
    unsigned writes, zeroings, unmaps, discards, statuses;
    bool fail;
} BDRVImageState;

static int coroutine_fn image_co_pwritev(BlockDriverState *bs, int64_t offset,
                                         int64_t bytes, QEMUIOVector *qiov,
                                         BdrvRequestFlags flags)
{
    BDRVImageState *s = bs->opaque;

    if (s->fail) {
        return -EIO;
    }
    s->writes++;
    s->written += bytes;
    qemu_iovec_to_buf(qiov, 0, s->data + offset, bytes);
    return 0;
}

static int coroutine_fn image_co_pwrite_zeroes(BlockDriverState *bs,
                                               int64_t offset, int64_t bytes,
                                               BdrvRequestFlags flags)
{
    BDRVImageState *s = bs->opaque;

    if ((flags & BDRV_REQ_NO_FALLBACK) &&
        (!s->zero_alignment ||
         !QEMU_IS_ALIGNED(offset | bytes, s->zero_alignment))) {
        return -ENOTSUP;
    }
    s->zeroings++;
    s->zeroed += bytes;
    s->unmaps += !!(flags & BDRV_REQ_MAY_UNMAP);
    memset(s->data + offset, 0, bytes);
    return 0;
}

static int coroutine_fn image_co_pdiscard(BlockDriverState *bs, int64_t offset,
                                          int64_t bytes)
{
    BDRVImageState *s = bs->opaque;

    s->discards++;
    memset(s->data + offset, 0xdd, bytes);
    return 0;
}

static int coroutine_fn image_co_block_status(BlockDriverState *bs,
                                              bool want_zero, int64_t offset,
                                              int64_t bytes, int64_t *pnum,
                                              int64_t *map,
                                              BlockDriverState **file)
{
    BDRVImageState *s = bs->opaque;

    s->statuses++;
    *pnum = MIN(bytes, s->extent);
    if (offset >= s->not_zero) {
        return BDRV_BLOCK_ZERO;
    }
    *pnum = MIN(*pnum, s->not_zero - offset);
    return BDRV_BLOCK_DATA;
}

static void image_close(BlockDriverState *bs)
{
    BDRVImageState *s = bs->opaque;

    g_free(s->data);
}

static BlockDriver bdrv_image = {
    .format_name            = "image",
    .instance_size          = sizeof(BDRVImageState),
    .bdrv_close             = image_close,
    .bdrv_co_pwritev        = image_co_pwritev,
    .bdrv_co_pwrite_zeroes  = image_co_pwrite_zeroes,
    .bdrv_co_pdiscard       = image_co_pdiscard,
    .bdrv_co_block_status   = image_co_block_status,
};

/* --- an image, the filter above it, and a mirror that uses it --- */

typedef struct Target {
    MigrationDiskChannel def;
    int64_t extent;             /* for @image; 0: all */
    BDRVImageState *image;
    BlockDriverState *filter;
    BlockBackend *blk;
    uint8_t *expected;
} Target;

static void done(void *opaque)
{
    *(bool *)opaque = true;
}

/* An image of which this part is data; @zero_alignment as in BDRVImageState */
static void target_init(Target *t, int64_t not_zero, int64_t zero_alignment)
{
    BlockDriverState *bs = hold_new_node(&bdrv_image, "image", SIZE);
    bool probed = false;

    t->def.disk = (char *)"disk0";
    t->image = bs->opaque;
    t->image->data = g_malloc0(SIZE);
    memset(t->image->data, 0xff, not_zero);
    t->image->not_zero = not_zero;
    t->image->extent = t->extent ?: SIZE;
    t->image->zero_alignment = zero_alignment;
    t->expected = g_malloc0(SIZE);
    bs->open_flags |= BDRV_O_UNMAP;
    bs->supported_zero_flags = BDRV_REQ_MAY_UNMAP | BDRV_REQ_NO_FALLBACK;
    t->filter = disk_target_new(&t->def, bs, &error_abort);
    bdrv_unref(bs);
    disk_target_probe(t->filter, done, &probed);
    while (!probed) {
        aio_poll(qemu_get_aio_context(), true);
    }
    g_assert_cmpuint(t->image->writes + t->image->zeroings, ==, 0);
    t->blk = blk_new_with_bs(t->filter, BLK_PERM_WRITE, BLK_PERM_ALL,
                             &error_abort);
}

static void target_cleanup(Target *t)
{
    g_assert(!memcmp(t->image->data, t->expected, SIZE));
    blk_unref(t->blk);
    bdrv_unref(t->filter);
    g_free(t->expected);
}

static void forget(Target *t)
{
    t->image->writes = t->image->zeroings = t->image->unmaps = 0;
    t->image->written = t->image->zeroed = 0;
}

/* What has reached the image, since forget() */
static void assert_reached(Target *t, unsigned writes, int64_t written,
                           unsigned zeroings, int64_t zeroed)
{
    g_assert_cmpuint(t->image->writes, ==, writes);
    g_assert_cmpint(t->image->written, ==, written);
    g_assert_cmpuint(t->image->zeroings, ==, zeroings);
    g_assert_cmpint(t->image->zeroed, ==, zeroed);
    forget(t);
}

static void zero(Target *t, int64_t offset, int64_t bytes)
{
    memset(t->expected + offset, 0, bytes);
    g_assert_cmpint(blk_pwrite_zeroes(t->blk, offset, bytes,
                                      BDRV_REQ_MAY_UNMAP), ==, 0);
}

static void write_data(Target *t, int64_t offset, int64_t bytes)
{
    g_assert_cmpint(blk_pwrite(t->blk, offset, bytes, t->expected + offset, 0),
                    ==, 0);
}

static void write_pattern(Target *t, uint8_t pattern, int64_t offset,
                          int64_t bytes)
{
    memset(t->expected + offset, pattern, bytes);
    write_data(t, offset, bytes);
}

/* --- the tests --- */

static void test_fresh(void)
{
    Target t = {};

    target_init(&t, 0, 1);
    g_assert(bdrv_can_write_zeroes_with_unmap(t.filter));
    zero(&t, 0, SIZE);
    assert_reached(&t, 0, 0, 0, 0);

    /* Two runs of data between zeroes, in one write */
    memset(t.expected + 3 * CHUNK, 1, CHUNK);
    t.expected[7 * CHUNK - 1] = 1;
    write_data(&t, CHUNK, 8 * CHUNK);
    assert_reached(&t, 2, 2 * CHUNK, 0, 0);

    /* Only what was written is zeroed */
    zero(&t, 0, SIZE);
    assert_reached(&t, 0, 0, 2, 2 * CHUNK);
    zero(&t, 0, SIZE);
    assert_reached(&t, 0, 0, 0, 0);

    /* Zeroing half of a chunk does not make it known as zeroes */
    write_pattern(&t, 4, 0, CHUNK);
    zero(&t, 0, CHUNK / 2);
    assert_reached(&t, 1, CHUNK, 1, CHUNK / 2);
    zero(&t, 0, CHUNK);
    assert_reached(&t, 0, 0, 1, CHUNK);

    /* Zeroes found in data are written as zeroes, without unmapping */
    write_pattern(&t, 2, SIZE - CHUNK - 512, CHUNK + 512);
    assert_reached(&t, 1, CHUNK + 512, 0, 0);
    write_pattern(&t, 0, SIZE - CHUNK - 512, CHUNK + 512);
    g_assert_cmpuint(t.image->unmaps, ==, 0);
    assert_reached(&t, 0, 0, 2, CHUNK + 512);

    /* For a part of a chunk that may hold data, they are written as data */
    write_pattern(&t, 0, 5 * CHUNK + 512, 512);
    assert_reached(&t, 0, 0, 0, 0);
    write_pattern(&t, 3, 5 * CHUNK, 4096);
    assert_reached(&t, 1, 4096, 0, 0);
    write_pattern(&t, 0, 5 * CHUNK + 512, 512);
    assert_reached(&t, 1, 512, 0, 0);
    target_cleanup(&t);
}

/* The image may have a little data: the first block of a raw image, say. */
static void test_nearly_fresh(void)
{
    Target t = {};

    target_init(&t, 4096, 1);
    g_assert(bdrv_can_write_zeroes_with_unmap(t.filter));
    zero(&t, 0, SIZE);
    g_assert_cmpuint(t.image->unmaps, ==, 1);
    assert_reached(&t, 0, 0, 1, CHUNK);
    write_pattern(&t, 0, 0, MiB);
    assert_reached(&t, 0, 0, 0, 0);
    target_cleanup(&t);
}

static void test_not_fresh(void)
{
    Target t = {};

    target_init(&t, 2 * MiB, 1);
    /* The mirror shall not zero everything first */
    g_assert(!bdrv_can_write_zeroes_with_unmap(t.filter));
    zero(&t, CHUNK, SIZE - CHUNK);
    g_assert(bdrv_can_write_zeroes_with_unmap(t.filter));
    /* Up to a cluster's start, and from there on */
    assert_reached(&t, 0, 0, 3, SIZE - CHUNK);
    zero(&t, CHUNK, SIZE - CHUNK);
    assert_reached(&t, 0, 0, 0, 0);

    /* Zeroes in data are not looked for */
    write_pattern(&t, 0, 0, MiB);
    assert_reached(&t, 1, MiB, 0, 0);
    target_cleanup(&t);
}

static void test_no_fast_zeroes(void)
{
    Target t = {};

    target_init(&t, 2 * MiB, 0);
    zero(&t, 0, SIZE);
    /* In requests of 2 MiB */
    assert_reached(&t, 0, 0, 9, SIZE);
    /* From now on, zeroes cost as much as data */
    g_assert(!bdrv_can_write_zeroes_with_unmap(t.filter));
    zero(&t, 0, SIZE);
    assert_reached(&t, 0, 0, 0, 0);
    target_cleanup(&t);
}

/* Only whole clusters can be zeroed. */
static void test_clusters(void)
{
    Target t = {};

    target_init(&t, SIZE, 2 * MiB);
    zero(&t, 0, CHUNK);
    write_pattern(&t, 1, CHUNK, CHUNK);
    forget(&t);
    zero(&t, 2 * CHUNK, SIZE - 2 * CHUNK);
    assert_reached(&t, 0, 0, 3, SIZE - 2 * CHUNK);
    g_assert(bdrv_can_write_zeroes_with_unmap(t.filter));
    target_cleanup(&t);
}

static void test_sync_top(void)
{
    Target t = { .def.sync = MIGRATION_DISK_SYNC_TOP };

    target_init(&t, 0, 1);
    g_assert(!bdrv_can_write_zeroes_with_unmap(t.filter));
    zero(&t, 0, CHUNK);
    assert_reached(&t, 0, 0, 1, CHUNK);
    write_pattern(&t, 0, CHUNK, CHUNK);
    assert_reached(&t, 1, CHUNK, 0, 0);
    target_cleanup(&t);
}

/* A status that comes in too many pieces is not worth its time. */
static void test_many_extents(void)
{
    Target t = {};

    t.extent = 64 * KiB;
    target_init(&t, 0, 1);
    g_assert_cmpuint(t.image->statuses, ==, 128);
    g_assert(!bdrv_can_write_zeroes_with_unmap(t.filter));
    zero(&t, 0, CHUNK);
    assert_reached(&t, 0, 0, 1, CHUNK);
    target_cleanup(&t);
}

/* Requests without bytes, and an image without any */
static void test_empty(void)
{
    BlockDriverState *bs = hold_new_node(&bdrv_image, "empty", 0);
    Target t = {};
    bool probed = false;

    t.filter = disk_target_new(&t.def, bs, &error_abort);
    bdrv_unref(bs);
    disk_target_probe(t.filter, done, &probed);
    while (!probed) {
        aio_poll(qemu_get_aio_context(), true);
    }
    bdrv_unref(t.filter);

    target_init(&t, 0, 1);
    g_assert_cmpint(blk_pwrite(t.blk, SIZE, 0, "", 0), ==, 0);
    g_assert_cmpint(blk_pwrite_zeroes(t.blk, SIZE, 0, 0), ==, 0);
    assert_reached(&t, 0, 0, 0, 0);
    target_cleanup(&t);
}

static void test_detect_off(void)
{
    Target t = {
        .def.has_detect_zeroes = true,
        .def.detect_zeroes = BLOCKDEV_DETECT_ZEROES_OPTIONS_OFF,
    };

    target_init(&t, 0, 1);
    write_pattern(&t, 0, 0, MiB);
    assert_reached(&t, 1, MiB, 0, 0);
    zero(&t, 0, SIZE);
    assert_reached(&t, 0, 0, 1, MiB);
    target_cleanup(&t);
}

static void test_detect_unmap(void)
{
    Target t = {
        .def.has_detect_zeroes = true,
        .def.detect_zeroes = BLOCKDEV_DETECT_ZEROES_OPTIONS_UNMAP,
    };

    target_init(&t, SIZE, 1);
    write_pattern(&t, 1, 0, SIZE);
    forget(&t);
    write_pattern(&t, 0, 0, MiB);
    g_assert_cmpuint(t.image->unmaps, ==, 1);
    assert_reached(&t, 0, 0, 1, MiB);
    target_cleanup(&t);
}

/* What a discard leaves may be anything. */
static void test_discard(void)
{
    Target t = {};

    target_init(&t, 0, 1);
    g_assert_cmpint(blk_pdiscard(t.blk, 0, MiB, 0), ==, 0);
    g_assert_cmpuint(t.image->discards, ==, 0);
    write_pattern(&t, 1, 0, CHUNK);
    forget(&t);
    g_assert_cmpint(blk_pdiscard(t.blk, 0, MiB, 0), ==, 0);
    g_assert_cmpuint(t.image->discards, ==, 1);
    zero(&t, 0, MiB);
    assert_reached(&t, 0, 0, 1, MiB);
    target_cleanup(&t);
}

/* A write that fails may have changed the image. */
static void test_failed_write(void)
{
    Target t = {};
    uint8_t data[CHUNK] = { 1 };

    target_init(&t, 0, 1);
    t.image->fail = true;
    g_assert_cmpint(blk_pwrite(t.blk, 0, CHUNK, data, 0), ==, -EIO);
    g_assert_cmpint(blk_pwrite(t.blk, 4 * CHUNK, 512, data, 0), ==, -EIO);
    t.image->fail = false;
    zero(&t, 0, SIZE);
    assert_reached(&t, 0, 0, 2, 2 * CHUNK);
    target_cleanup(&t);
}

int main(int argc, char **argv)
{
    bdrv_init();
    qemu_init_main_loop(&error_abort);
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/disk-target/fresh", test_fresh);
    g_test_add_func("/disk-target/nearly-fresh", test_nearly_fresh);
    g_test_add_func("/disk-target/not-fresh", test_not_fresh);
    g_test_add_func("/disk-target/no-fast-zeroes", test_no_fast_zeroes);
    g_test_add_func("/disk-target/clusters", test_clusters);
    g_test_add_func("/disk-target/sync-top", test_sync_top);
    g_test_add_func("/disk-target/many-extents", test_many_extents);
    g_test_add_func("/disk-target/empty", test_empty);
    g_test_add_func("/disk-target/detect-off", test_detect_off);
    g_test_add_func("/disk-target/detect-unmap", test_detect_unmap);
    g_test_add_func("/disk-target/discard", test_discard);
    g_test_add_func("/disk-target/failed-write", test_failed_write);
    return g_test_run();
}
