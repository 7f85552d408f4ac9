/*
 * A mirror job whose target is slow to write zeroes
 *
 * A drained section waits for requests in flight, so their size has to follow
 * the time that they take.  The target holds them for longer than the job
 * accepts; that they take even longer on a busy machine makes no difference.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "block-hold-helpers.h"
#include "block/block.h"
#include "block/blockjob_int.h"
#include "qapi/error.h"
#include "qemu/main-loop.h"
#include "qemu/units.h"
#include "qobject/qdict.h"

#define DISK_SIZE (1 * GiB)
#define SLOW_US (600 * 1000)
#define LIMIT_US (60 * G_USEC_PER_SEC)

/* --- the target --- */

typedef struct BDRVZeroState {
    Coroutine *held[16];
    unsigned num_held;
    bool hold;
    int64_t in_flight, largest;         /* bytes */
} BDRVZeroState;

static int coroutine_fn zero_co_pwrite_zeroes(BlockDriverState *bs,
                                              int64_t offset, int64_t bytes,
                                              BdrvRequestFlags flags)
{
    BDRVZeroState *s = bs->opaque;

    s->in_flight += bytes;
    s->largest = MAX(s->largest, bytes);
    if (s->hold) {
        g_assert_cmpuint(s->num_held, <, ARRAY_SIZE(s->held));
        hold_request(&s->held[s->num_held++]);
    }
    s->in_flight -= bytes;
    return 0;
}

static BlockDriver bdrv_zero = {
    .format_name            = "zero",
    .instance_size          = sizeof(BDRVZeroState),
    .bdrv_co_pwrite_zeroes  = zero_co_pwrite_zeroes,
};

static void release_all(BDRVZeroState *s)
{
    unsigned num = s->num_held;

    s->num_held = 0;
    for (unsigned i = 0; i < num; i++) {
        hold_release(&s->held[i]);
    }
}

/* --- the test --- */

static void poll_until_idle(void)
{
    bool progress;

    do {
        progress = aio_poll(qemu_get_aio_context(), false);
    } while (progress);
}

static Job *start_mirror(BlockDriverState *source, BlockDriverState *target)
{
    mirror_start("mirror", source, target, NULL, JOB_DEFAULT, 0, 0, 0,
                 MIRROR_SYNC_MODE_FULL, MIRROR_LEAVE_BACKING_CHAIN, true,
                 BLOCKDEV_ON_ERROR_REPORT, BLOCKDEV_ON_ERROR_REPORT, true, NULL,
                 MIRROR_COPY_MODE_BACKGROUND, &error_abort);
    JOB_LOCK_GUARD();
    return job_get_locked("mirror");
}

static BlockDriverState *new_source(void)
{
    QDict *options = qdict_new();

    qdict_put_str(options, "driver", "null-co");
    qdict_put_int(options, "size", DISK_SIZE);
    qdict_put_bool(options, "read-zeroes", true);
    return bdrv_open(NULL, NULL, options, BDRV_O_RDWR, &error_abort);
}

static void finish(Job *job, BDRVZeroState *s)
{
    int64_t end = g_get_monotonic_time() + LIMIT_US;

    s->hold = false;
    release_all(s);
    while (!job_is_ready(job)) {
        g_assert_cmpint(g_get_monotonic_time(), <, end);
        aio_poll(qemu_get_aio_context(), true);
    }
    WITH_JOB_LOCK_GUARD() {
        g_assert_cmpint(job_cancel_sync_locked(job, true), ==, -ECANCELED);
    }
}

typedef struct Fixture {
    BlockDriverState *source, *target;
} Fixture;

/* The target holds requests until finish(). */
static void set_up(Fixture *f, gconstpointer opaque)
{
    BDRVZeroState *s;

    f->source = new_source();
    f->target = hold_new_node(&bdrv_zero, "target", DISK_SIZE);
    s = f->target->opaque;
    s->hold = true;
}

static void tear_down(Fixture *f, gconstpointer opaque)
{
    bdrv_unref(f->target);
    bdrv_unref(f->source);
}

static void test_slow(Fixture *f, gconstpointer opaque)
{
    BDRVZeroState *s = f->target->opaque;
    Job *job;

    f->target->open_flags |= BDRV_O_UNMAP;
    f->target->supported_zero_flags = BDRV_REQ_MAY_UNMAP;
    job = start_mirror(f->source, f->target);
    poll_until_idle();

    /* Each of two slow requests halves the request size, down to the minimum */
    for (int64_t size = 64 * MiB; size >= MiB; size /= 4) {
        g_assert_cmpint(s->largest, ==, size);
        g_assert_cmpint(s->in_flight, ==, 2 * size);
        g_usleep(SLOW_US);
        s->largest = 0;
        release_all(s);
        poll_until_idle();
    }
    g_assert_cmpint(s->largest, ==, MiB);
    g_assert_cmpint(s->in_flight, ==, 2 * MiB);

    finish(job, s);
}

/* Requests that are shorter than the limit, but slow nevertheless */
static void test_short(Fixture *f, gconstpointer opaque)
{
    BDRVZeroState *s = f->target->opaque;
    Job *job;

    job = start_mirror(f->source, f->target);
    poll_until_idle();
    g_assert_cmpint(s->largest, ==, 16 * MiB);
    g_assert_cmpint(s->in_flight, ==, 128 * MiB);
    g_usleep(SLOW_US);
    s->largest = 0;
    release_all(s);
    poll_until_idle();
    g_assert_cmpint(s->largest, ==, MiB);
    g_assert_cmpint(s->in_flight, ==, 2 * MiB);

    finish(job, s);
}

/* A limit that is shared with others clips data, but not holes. */
static void test_shared_limit(Fixture *f, gconstpointer opaque)
{
    BDRVZeroState *s = f->target->opaque;
    SharedLimit limit;
    Job *job;

    shared_limit_init(&limit);
    shared_limit_set(&limit, INT64_MAX, 4 * KiB, get_clock());
    bdrv_drain_all_begin();
    job = start_mirror(f->source, f->target);
    shared_limit_user_init(&container_of(job, BlockJob, job)->share, &limit, 1);
    bdrv_drain_all_end();
    poll_until_idle();
    g_assert_cmpint(s->largest, ==, 16 * MiB);

    finish(job, s);
    shared_limit_destroy(&limit);
}

int main(int argc, char **argv)
{
    bdrv_init();
    qemu_init_main_loop(&error_abort);
    g_test_init(&argc, &argv, NULL);
#define ADD(name, func)                                                 \
    g_test_add("/mirror-zeroes/" name, Fixture, NULL, set_up, func, tear_down)
    ADD("slow", test_slow);
    ADD("short", test_short);
    ADD("shared-limit", test_shared_limit);
    return g_test_run();
}
