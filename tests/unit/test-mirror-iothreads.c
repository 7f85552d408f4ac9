/*
 * A mirror job while several IOThreads write to its source
 *
 * The job runs in the first IOThread, the guest's requests in both.  Nodes
 * hold writes until the test releases them, so that the order of events is the
 * same in each run.  Under ThreadSanitizer the last test detects unlocked
 * accesses to data that the job shares with the writes; overlapping requests
 * that are not serialized show as races on a node's data.
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

#define CHUNK (4 * KiB)
#define CHUNKS 16
#define DISK_SIZE (CHUNKS * CHUNK)
#define LIMIT_US (60 * G_USEC_PER_SEC)

#define poll_while(cond)                                        \
    for (int64_t end = g_get_monotonic_time() + LIMIT_US; (cond);) { \
        g_assert_cmpint(g_get_monotonic_time(), <, end);        \
        aio_poll(qemu_get_aio_context(), false);                \
    }

/* --- a node in memory that holds writes --- */

typedef struct BDRVHoldState {
    uint8_t data[DISK_SIZE];
    int hold_next_write;
    Coroutine *held;
    unsigned fail_every, writes;        /* every nth write fails; 0: none */
} BDRVHoldState;

static int coroutine_fn hold_co_preadv(BlockDriverState *bs, int64_t offset,
                                       int64_t bytes, QEMUIOVector *qiov,
                                       BdrvRequestFlags flags)
{
    BDRVHoldState *s = bs->opaque;

    qemu_iovec_from_buf(qiov, 0, s->data + offset, bytes);
    return 0;
}

/* A held write has not changed the data yet. */
static int coroutine_fn hold_co_pwritev(BlockDriverState *bs, int64_t offset,
                                        int64_t bytes, QEMUIOVector *qiov,
                                        BdrvRequestFlags flags)
{
    BDRVHoldState *s = bs->opaque;
    unsigned fail_every;

    if (qatomic_xchg(&s->hold_next_write, false)) {
        hold_request(&s->held);
    }
    fail_every = qatomic_read(&s->fail_every);
    if (fail_every && qatomic_fetch_inc(&s->writes) % fail_every == 0) {
        return -EIO;
    }
    qemu_iovec_to_buf(qiov, 0, s->data + offset, bytes);
    return 0;
}

static BlockDriver bdrv_hold = {
    .format_name            = "hold",
    .instance_size          = sizeof(BDRVHoldState),
    .bdrv_co_preadv         = hold_co_preadv,
    .bdrv_co_pwritev        = hold_co_pwritev,
};

static void hold_next_write(BDRVHoldState *s)
{
    qatomic_set(&s->hold_next_write, true);
}

static void wait_held(BDRVHoldState *s)
{
    poll_while(!qatomic_load_acquire(&s->held));
}

static void release(BDRVHoldState *s)
{
    hold_release(&s->held);
}

/* --- requests of the guest --- */

typedef struct Write {
    BlockBackend *blk;
    int64_t offset;
    size_t bytes;
    uint8_t value;
    unsigned count;             /* writes, to consecutive chunks */
    int done;
} Write;

static void coroutine_fn write_co(void *opaque)
{
    Write *w = opaque;
    g_autofree uint8_t *buf = g_malloc(w->bytes);

    for (unsigned i = 0; i < w->count; i++) {
        int64_t offset = (w->offset + i * CHUNK) % (DISK_SIZE - CHUNK);

        memset(buf, w->value + i, w->bytes);
        g_assert_cmpint(blk_co_pwrite(w->blk, offset, w->bytes, buf, 0), ==, 0);
    }
    qatomic_store_release(&w->done, true);
}

static void start_write(Write *w, IOThread *iothread)
{
    aio_co_enter(iothread_get_aio_context(iothread),
                 qemu_coroutine_create(write_co, w));
}

static void wait_done(Write *w)
{
    poll_while(!qatomic_load_acquire(&w->done));
}

/* --- the scene --- */

typedef struct Scene {
    IOThread *iothread[2];
    BlockBackend *blk;          /* the guest's disk */
    BlockDriverState *source_bs, *target_bs;
    BDRVHoldState *source, *target;
    Job *job;
} Scene;

static void start(Scene *s)
{
    *s = (Scene) {
        .iothread = { iothread_new(), iothread_new() },
        .blk = blk_new(qemu_get_aio_context(),
                       BLK_PERM_CONSISTENT_READ | BLK_PERM_WRITE,
                       BLK_PERM_ALL),
        .source_bs = hold_new_node(&bdrv_hold, "source", DISK_SIZE),
        .target_bs = hold_new_node(&bdrv_hold, "target", DISK_SIZE),
    };
    s->source = s->source_bs->opaque;
    s->target = s->target_bs->opaque;
    memset(s->source->data, 'o', DISK_SIZE);
    blk_insert_bs(s->blk, s->source_bs, &error_abort);
    blk_set_aio_context(s->blk, iothread_get_aio_context(s->iothread[0]),
                        &error_abort);
}

static void start_mirror(Scene *s, BlockdevOnError on_target_error)
{
    mirror_start("mirror", s->source_bs, s->target_bs, NULL, JOB_DEFAULT, 0,
                 CHUNK, 0, MIRROR_SYNC_MODE_FULL, MIRROR_LEAVE_BACKING_CHAIN,
                 false, BLOCKDEV_ON_ERROR_REPORT, on_target_error,
                 false, NULL, MIRROR_COPY_MODE_WRITE_BLOCKING, &error_abort);
    WITH_JOB_LOCK_GUARD() {
        s->job = job_get_locked("mirror");
        job_ref_locked(s->job);
    }
}

static void poll_until_ready(Scene *s)
{
    poll_while(!job_is_ready(s->job));
}

static void pause_job(Scene *s)
{
    JOB_LOCK_GUARD();
    job_user_pause_locked(s->job, &error_abort);
}

static void resume_job(Scene *s)
{
    JOB_LOCK_GUARD();
    job_user_resume_locked(s->job, &error_abort);
}

static bool is_paused(Scene *s)
{
    JOB_LOCK_GUARD();
    return s->job->paused;
}

static bool is_completed(Scene *s)
{
    JOB_LOCK_GUARD();
    return job_is_completed_locked(s->job);
}

/* The job completes, and both sides have the same contents. */
static void end(Scene *s)
{
    WITH_JOB_LOCK_GUARD() {
        job_cancel_locked(s->job, false);
    }
    poll_while(!is_completed(s));
    WITH_JOB_LOCK_GUARD() {
        g_assert_cmpint(s->job->ret, ==, 0);
        job_unref_locked(s->job);
    }
    g_assert_cmpmem(s->target->data, DISK_SIZE, s->source->data, DISK_SIZE);

    blk_set_aio_context(s->blk, qemu_get_aio_context(), &error_abort);
    bdrv_try_change_aio_context(s->target_bs, qemu_get_aio_context(), NULL,
                                &error_abort);
    bdrv_unref(s->target_bs);
    blk_unref(s->blk);
    bdrv_unref(s->source_bs);
    iothread_join(s->iothread[0]);
    iothread_join(s->iothread[1]);
}

/* --- the tests --- */

static void assert_chunk(BDRVHoldState *s, unsigned chunk, uint8_t value)
{
    for (unsigned i = 0; i < CHUNK; i++) {
        g_assert_cmpuint(s->data[chunk * CHUNK + i], ==, value);
    }
}

/*
 * A write waits for an overlapping one of another IOThread that has not reached
 * the target.
 */
static void test_two_writes(void)
{
    Scene s;
    Write first, second;

    start(&s);
    start_mirror(&s, BLOCKDEV_ON_ERROR_REPORT);
    poll_until_ready(&s);
    first = (Write) { s.blk, 0, 2 * CHUNK, 'a', 1 };
    second = (Write) { s.blk, CHUNK, 2 * CHUNK, 'b', 1 };

    hold_next_write(s.target);
    start_write(&first, s.iothread[0]);
    wait_held(s.target);
    start_write(&second, s.iothread[1]);
    hold_run_iothread(s.iothread[1]);
    assert_chunk(s.source, 1, 'a');
    assert_chunk(s.source, 2, 'o');

    release(s.target);
    wait_done(&first);
    wait_done(&second);
    assert_chunk(s.source, 0, 'a');
    assert_chunk(s.source, 1, 'b');
    end(&s);
}

/* A write waits while the job copies the old data. */
static void test_write_meets_copy(void)
{
    Scene s;
    Write w;

    start(&s);
    hold_next_write(s.target);
    start_mirror(&s, BLOCKDEV_ON_ERROR_REPORT);
    wait_held(s.target);
    w = (Write) { s.blk, 0, CHUNK, 'a', 1 };
    start_write(&w, s.iothread[1]);
    hold_run_iothread(s.iothread[1]);
    assert_chunk(s.source, 0, 'o');

    release(s.target);
    wait_done(&w);
    assert_chunk(s.source, 0, 'a');
    poll_until_ready(&s);
    end(&s);
}

/*
 * The job waits for a write to a chunk before it copies the chunk, and is
 * paused when that write ends.  Another write to the chunk begins meanwhile.
 */
static void test_copy_after_pause(void)
{
    Scene s;
    Write first, second, third;

    start(&s);
    start_mirror(&s, BLOCKDEV_ON_ERROR_IGNORE);
    poll_until_ready(&s);
    first = (Write) { s.blk, 0, CHUNK, 'a', 1 };
    second = (Write) { s.blk, 0, 512, 'b', 1 };
    third = (Write) { s.blk, 0, CHUNK, 'c', 1 };

    /* The chunk becomes dirty while the job is paused */
    pause_job(&s);
    poll_while(!is_paused(&s));
    qatomic_set(&s.target->fail_every, 1);
    start_write(&first, s.iothread[1]);
    wait_done(&first);
    qatomic_set(&s.target->fail_every, 0);

    hold_next_write(s.source);
    start_write(&second, s.iothread[1]);
    wait_held(s.source);
    resume_job(&s);
    hold_run_iothread(s.iothread[0]);
    pause_job(&s);
    release(s.source);
    wait_done(&second);
    hold_run_iothread(s.iothread[0]);

    hold_next_write(s.source);
    start_write(&third, s.iothread[1]);
    wait_held(s.source);
    hold_next_write(s.target);
    resume_job(&s);
    hold_run_iothread(s.iothread[0]);
    release(s.source);
    hold_run_iothread(s.iothread[1]);
    wait_held(s.target);
    release(s.target);
    wait_done(&third);
    assert_chunk(s.source, 0, 'c');
    end(&s);
}

/*
 * Each IOThread writes to every chunk, many times.  Some writes fail at the
 * target, so that the job keeps copying.
 */
static void test_many_writes(void)
{
    enum { ROUNDS = 64, WRITERS = 4 };
    Scene s;
    Write w[2 * WRITERS];

    start(&s);
    hold_next_write(s.target);
    start_mirror(&s, BLOCKDEV_ON_ERROR_IGNORE);
    wait_held(s.target);
    qatomic_set(&s.target->fail_every, 5);
    for (unsigned i = 0; i < ARRAY_SIZE(w); i++) {
        /* Some cover whole chunks, some parts of two */
        w[i] = (Write) {
            .blk = s.blk,
            .offset = i * 2 * CHUNK + (i / 2 % 2 ? CHUNK / 2 : 0),
            .bytes = CHUNK,
            .value = i * 16,
            .count = ROUNDS * CHUNKS,
        };
    }
    for (unsigned i = 0; i < ARRAY_SIZE(w); i++) {
        start_write(&w[i], s.iothread[i % 2]);
    }
    release(s.target);
    for (unsigned i = 0; i < ARRAY_SIZE(w); i++) {
        wait_done(&w[i]);
    }
    qatomic_set(&s.target->fail_every, 0);
    poll_until_ready(&s);
    end(&s);
}

int main(int argc, char **argv)
{
    bdrv_init();
    qemu_init_main_loop(&error_abort);

    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/mirror-iothreads/two-writes", test_two_writes);
    g_test_add_func("/mirror-iothreads/write-meets-copy",
                    test_write_meets_copy);
    g_test_add_func("/mirror-iothreads/copy-after-pause",
                    test_copy_after_pause);
    g_test_add_func("/mirror-iothreads/many-writes", test_many_writes);
    return g_test_run();
}
