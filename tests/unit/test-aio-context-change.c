/*
 * Nodes move to another AioContext while a mirror job ends, or while the graph
 * changes for another reason
 *
 * The job runs in an IOThread.  The main loop is polled only where a test does
 * so, and a node holds a request until the test, or a bottom half of the main
 * loop, releases it: the order of events is the same in each run.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "block-hold-helpers.h"
#include "block/block.h"
#include "block/blockjob_int.h"
#include "qapi/error.h"
#include "qemu/coroutine_int.h"
#include "qemu/main-loop.h"
#include "qemu/units.h"
#include "system/block-backend.h"

#define DISK_SIZE (64 * KiB)
#define LIMIT_US (60 * G_USEC_PER_SEC)

/* --- a node that holds requests --- */

typedef struct BDRVHoldState {
    bool hold_writes, hold_flushes;
    int write_ret;
    Coroutine *held;
} BDRVHoldState;

static void release_bh(void *opaque)
{
    BDRVHoldState *s = opaque;

    hold_release(&s->held);
}

static int coroutine_fn hold_co_preadv(BlockDriverState *bs, int64_t offset,
                                       int64_t bytes, QEMUIOVector *qiov,
                                       BdrvRequestFlags flags)
{
    qemu_iovec_memset(qiov, 0, 0, bytes);
    return 0;
}

static int coroutine_fn hold_co_pwritev(BlockDriverState *bs, int64_t offset,
                                        int64_t bytes, QEMUIOVector *qiov,
                                        BdrvRequestFlags flags)
{
    BDRVHoldState *s = bs->opaque;

    if (qatomic_read(&s->hold_writes)) {
        hold_request(&s->held);
    }
    return s->write_ret;
}

static int coroutine_fn hold_co_flush(BlockDriverState *bs)
{
    BDRVHoldState *s = bs->opaque;

    if (qatomic_read(&s->hold_flushes)) {
        hold_request(&s->held);
    }
    return 0;
}

static BlockDriver bdrv_hold = {
    .format_name            = "hold",
    .instance_size          = sizeof(BDRVHoldState),
    .bdrv_co_preadv         = hold_co_preadv,
    .bdrv_co_pwritev        = hold_co_pwritev,
    .bdrv_co_flush_to_disk  = hold_co_flush,
};

/* --- the scene --- */

typedef struct Scene {
    IOThread *iothread;
    BlockBackend *blk;          /* the guest's disk */
    BlockDriverState *source, *target;
    BDRVHoldState *hold;        /* of the target */
    Job *job;
} Scene;

static void start(Scene *s)
{
    static unsigned number;
    g_autofree char *source = g_strdup_printf("source%u", number);
    g_autofree char *target = g_strdup_printf("target%u", number++);

    *s = (Scene) {
        .iothread = iothread_new(),
        .blk = blk_new(qemu_get_aio_context(),
                       BLK_PERM_CONSISTENT_READ | BLK_PERM_WRITE,
                       BLK_PERM_ALL),
        .source = hold_new_node(&bdrv_hold, source, DISK_SIZE),
        .target = hold_new_node(&bdrv_hold, target, DISK_SIZE),
    };
    s->hold = s->target->opaque;
    blk_insert_bs(s->blk, s->source, &error_abort);
    blk_set_aio_context(s->blk, iothread_get_aio_context(s->iothread),
                        &error_abort);
}

static void start_mirror(Scene *s, MirrorCopyMode copy_mode)
{
    g_autofree char *id = NULL;

    start(s);
    id = g_strdup_printf("mirror-of-%s", bdrv_get_node_name(s->source));
    mirror_start(id, s->source, s->target, NULL, JOB_DEFAULT, 0, 0, 0,
                 MIRROR_SYNC_MODE_FULL, MIRROR_LEAVE_BACKING_CHAIN, false,
                 BLOCKDEV_ON_ERROR_REPORT, BLOCKDEV_ON_ERROR_REPORT, false,
                 NULL, copy_mode, &error_abort);
    WITH_JOB_LOCK_GUARD() {
        s->job = job_get_locked(id);
        job_ref_locked(s->job);
        g_assert(s->job->aio_context == iothread_get_aio_context(s->iothread));
    }
}

static void poll_until_ready(Scene *s)
{
    while (!job_is_ready(s->job)) {
        aio_poll(qemu_get_aio_context(), false);
    }
}

static void poll_until_held(Scene *s)
{
    while (!qatomic_load_acquire(&s->hold->held)) {
        aio_poll(qemu_get_aio_context(), false);
    }
}

static void write_guest(Scene *s)
{
    char data[512] = "";

    g_assert_cmpint(blk_pwrite(s->blk, 0, sizeof(data), data, 0), ==, 0);
}

static void cancel(Scene *s, bool force)
{
    JOB_LOCK_GUARD();
    job_cancel_locked(s->job, force);
}

/*
 * Cancel the job while it sleeps.  If it ran, it could also take this for the
 * request to complete, and wait for the main loop to drain.
 */
static void cancel_asleep(Scene *s)
{
    for (;;) {
        WITH_JOB_LOCK_GUARD() {
            if (!s->job->busy) {
                job_cancel_locked(s->job, true);
                return;
            }
        }
        aio_poll(qemu_get_aio_context(), false);
    }
}

/* Wait, without polling, until job_exit() is all that is left to run. */
static void wait_deferred(Scene *s)
{
    int64_t end = g_get_monotonic_time() + LIMIT_US;

    for (;;) {
        WITH_JOB_LOCK_GUARD() {
            if (s->job->deferred_to_main_loop) {
                g_assert(!job_is_completed_locked(s->job));
                return;
            }
        }
        g_assert_cmpint(g_get_monotonic_time(), <, end);
        g_usleep(100);
    }
}

static void move_to_main_loop(Scene *s)
{
    blk_set_aio_context(s->blk, qemu_get_aio_context(), &error_abort);
}

/* The job has ended, and the disk is in the main loop, without the filter. */
static void assert_ended_and_moved(Scene *s, int ret)
{
    WITH_JOB_LOCK_GUARD() {
        g_assert(job_is_completed_locked(s->job));
        g_assert_cmpint(s->job->ret, ==, ret);
    }
    g_assert(blk_bs(s->blk) == s->source);
    g_assert(blk_get_aio_context(s->blk) == qemu_get_aio_context());
    g_assert(bdrv_get_aio_context(s->source) == qemu_get_aio_context());
    g_assert_cmpint(s->source->quiesce_counter, ==, 0);
    g_assert_cmpint(s->target->quiesce_counter, ==, 0);
}

static void end(Scene *s)
{
    if (s->job) {
        JOB_LOCK_GUARD();
        job_unref_locked(s->job);
    }
    bdrv_try_change_aio_context(s->target, qemu_get_aio_context(), NULL,
                                &error_abort);
    bdrv_unref(s->target);
    blk_unref(s->blk);
    bdrv_unref(s->source);
    iothread_join(s->iothread);
}

/* --- the tests --- */

/* The job is in its own drained section, waiting for the target's flush. */
static void test_last_flush(void)
{
    Scene s;

    start_mirror(&s, MIRROR_COPY_MODE_BACKGROUND);
    poll_until_ready(&s);
    /* Without a write since its last flush the target would have none to do */
    write_guest(&s);
    qatomic_set(&s.hold->hold_flushes, true);
    cancel(&s, false);
    poll_until_held(&s);
    aio_bh_schedule_oneshot(qemu_get_aio_context(), release_bh, s.hold);
    move_to_main_loop(&s);
    assert_ended_and_moved(&s, 0);
    end(&s);
}

static void set_event_bh(void *opaque)
{
    qemu_event_set(opaque);
}

/* The job waits for the main loop to drain; the main loop has not begun yet. */
static void test_before_drain(void)
{
    Scene s;

    start_mirror(&s, MIRROR_COPY_MODE_BACKGROUND);
    poll_until_ready(&s);
    cancel(&s, false);
    hold_run_iothread(s.iothread);
    move_to_main_loop(&s);
    assert_ended_and_moved(&s, 0);
    end(&s);
}

static void fail_mirror(Scene *s)
{
    qatomic_set(&s->hold->hold_writes, true);
    write_guest(s);
    poll_until_held(s);
    s->hold->write_ret = -EIO;
    hold_release(&s->hold->held);
    wait_deferred(s);
}

/* The job has failed, job_exit() runs while the disk is being moved. */
static void test_failed(void)
{
    Scene s;

    start_mirror(&s, MIRROR_COPY_MODE_BACKGROUND);
    poll_until_ready(&s);
    fail_mirror(&s);
    move_to_main_loop(&s);
    assert_ended_and_moved(&s, -EIO);
    end(&s);
}

typedef struct Block {
    QemuEvent blocked, unblock;
    unsigned rounds;
} Block;

static void block_bh(void *opaque)
{
    Block *block = opaque;

    qemu_event_set(&block->blocked);
    qemu_event_wait(&block->unblock);
}

static void block_iothread(Scene *s, Block *block)
{
    qemu_event_init(&block->blocked, false);
    qemu_event_init(&block->unblock, false);
    aio_bh_schedule_oneshot(iothread_get_aio_context(s->iothread), block_bh,
                            block);
    qemu_event_wait(&block->blocked);
}

static void block_destroy(Block *block)
{
    qemu_event_destroy(&block->blocked);
    qemu_event_destroy(&block->unblock);
}

/* The job is paused by a drained section, cancelled, and has not run since. */
static void test_cancelled_while_paused(void)
{
    Scene s;
    Block block;

    start_mirror(&s, MIRROR_COPY_MODE_BACKGROUND);
    poll_until_ready(&s);
    bdrv_drained_begin(s.source);
    WITH_JOB_LOCK_GUARD() {
        g_assert(s.job->paused);
    }

    block_iothread(&s, &block);
    cancel(&s, true);
    aio_bh_schedule_oneshot(qemu_get_aio_context(), set_event_bh,
                            &block.unblock);
    move_to_main_loop(&s);
    bdrv_drained_end(s.source);

    assert_ended_and_moved(&s, -ECANCELED);
    end(&s);
    block_destroy(&block);
}

static void write_done(void *opaque, int ret)
{
    int *result = opaque;

    *result = ret;
}

/* The job is cancelled while a write of the guest waits for the target. */
static void test_active_write(void)
{
    Scene s;
    char data[512] = "";
    QEMUIOVector qiov = QEMU_IOVEC_INIT_BUF(qiov, data, sizeof(data));
    int ret = -EINPROGRESS;

    start_mirror(&s, MIRROR_COPY_MODE_WRITE_BLOCKING);
    poll_until_ready(&s);
    qatomic_set(&s.hold->hold_writes, true);
    blk_aio_pwritev(s.blk, 0, &qiov, 0, write_done, &ret);
    poll_until_held(&s);
    cancel_asleep(&s);
    wait_deferred(&s);
    g_assert_cmpint(ret, ==, -EINPROGRESS);
    aio_bh_schedule_oneshot(qemu_get_aio_context(), release_bh, s.hold);
    move_to_main_loop(&s);
    g_assert_cmpint(ret, ==, 0);
    assert_ended_and_moved(&s, -ECANCELED);
    end(&s);
}

/* Unblock the IOThread some rounds of the event loop later. */
static void unblock_later_bh(void *opaque)
{
    Block *block = opaque;

    if (block->rounds--) {
        aio_bh_schedule_oneshot(qemu_get_aio_context(), unblock_later_bh,
                                block);
    } else {
        qemu_event_set(&block->unblock);
    }
}

/*
 * While this disk waits for its job, the mirror of another disk ends, which
 * takes the graph lock: it must not wait for this disk.
 */
static void test_other_mirror_ends(void)
{
    Scene s, other;
    Block block = { .rounds = 10 };

    start_mirror(&s, MIRROR_COPY_MODE_BACKGROUND);
    poll_until_ready(&s);
    start_mirror(&other, MIRROR_COPY_MODE_BACKGROUND);
    poll_until_ready(&other);
    fail_mirror(&other);
    block_iothread(&s, &block);
    cancel(&s, true);
    aio_bh_schedule_oneshot(qemu_get_aio_context(), unblock_later_bh, &block);
    move_to_main_loop(&s);
    assert_ended_and_moved(&s, -ECANCELED);
    move_to_main_loop(&other);
    assert_ended_and_moved(&other, -EIO);
    end(&other);
    end(&s);
    block_destroy(&block);
}

static void replace_root_bh(void *opaque)
{
    Scene *s = opaque;

    release_bh(s->source->opaque);
    blk_replace_bs(s->blk, s->target, &error_abort);
}

/* The disk gets another root node while a request is waited for. */
static void test_root_replaced(void)
{
    Scene s;
    BDRVHoldState *source;
    char data[512] = "";
    QEMUIOVector qiov = QEMU_IOVEC_INIT_BUF(qiov, data, sizeof(data));
    int ret = -EINPROGRESS;

    start(&s);
    bdrv_try_change_aio_context(s.target, blk_get_aio_context(s.blk), NULL,
                                &error_abort);
    source = s.source->opaque;
    source->hold_writes = true;
    blk_aio_pwritev(s.blk, 0, &qiov, 0, write_done, &ret);
    aio_bh_schedule_oneshot(qemu_get_aio_context(), replace_root_bh, &s);
    move_to_main_loop(&s);
    g_assert_cmpint(ret, ==, 0);
    g_assert(blk_bs(s.blk) == s.target);
    g_assert(blk_get_aio_context(s.blk) == qemu_get_aio_context());
    g_assert(bdrv_get_aio_context(s.target) == qemu_get_aio_context());
    end(&s);
}

int main(int argc, char **argv)
{
    bdrv_init();
    qemu_init_main_loop(&error_abort);
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/aio-context-change/last-flush", test_last_flush);
    g_test_add_func("/aio-context-change/before-drain", test_before_drain);
    g_test_add_func("/aio-context-change/failed", test_failed);
    g_test_add_func("/aio-context-change/cancelled-while-paused",
                    test_cancelled_while_paused);
    g_test_add_func("/aio-context-change/active-write", test_active_write);
    g_test_add_func("/aio-context-change/other-mirror-ends",
                    test_other_mirror_ends);
    g_test_add_func("/aio-context-change/root-replaced", test_root_replaced);
    return g_test_run();
}
