/*
 * Unit tests for MuxConverge: disks that answer when the test says so
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "qemu/main-loop.h"
#include "qemu/thread.h"
#include "qemu/timer.h"
#include "migration/migration.h"
#include "migration/mux-converge.h"
#include "migration/options.h"

/* How long the guest may be stopped; longer than a busy machine stops us */
#define LIMIT_MS 2000
#define SLOW_MS (LIMIT_MS + 100)
#define FOREVER_MS 60000
#define DISKS 2

/* Stands in for disk-copy.c. */
struct DiskCopy {
    unsigned asked;             /* flushes */
};

typedef struct Test {
    MuxConverge *c;
    DiskCopy disk[DISKS];
} Test;

const char *disk_copy_name(DiskCopy *d)
{
    return "fake";
}

void disk_copy_converge(DiskCopy *d)
{
}

void disk_copy_flush(DiskCopy *d)
{
    d->asked++;
}

uint64_t migrate_downtime_limit(void)
{
    return LIMIT_MS;
}

uint64_t migrate_avail_switchover_bandwidth(void)
{
    return 0;
}

static MuxConvergeSent nothing_sent(void *opaque)
{
    return (MuxConvergeSent) {};
}

static void start(Test *t)
{
    g_autoptr(GPtrArray) disks = g_ptr_array_new();

    for (int i = 0; i < DISKS; i++) {
        g_ptr_array_add(disks, &t->disk[i]);
    }
    t->c = mux_converge_new(nothing_sent, NULL);
    g_assert(!mux_converge_fits(t->c, 0, 0));
    mux_converge_start(t->c, disks);
    g_assert(!mux_converge_fits(t->c, 0, 0));
}

static void end(Test *t)
{
    mux_converge_stop(t->c);
    mux_converge_free(t->c);
}

static void answer(Test *t, int i)
{
    mux_converge_flushed(t->c, &t->disk[i]);
}

static void wait_asked(Test *t, int i, unsigned times)
{
    while (t->disk[i].asked < times) {
        g_usleep(1000);
        qemu_clock_run_timers(QEMU_CLOCK_REALTIME);
    }
    g_assert_cmpuint(t->disk[i].asked, ==, times);
}

static void test_asked_again(void)
{
    Test t = {};

    start(&t);
    for (unsigned n = 1; n < 5; n++) {
        for (int i = 0; i < DISKS; i++) {
            wait_asked(&t, i, n);
            answer(&t, i);
        }
        g_assert(mux_converge_fits(t.c, 0, 0));
        /* How fast they would arrive is not known */
        g_assert(!mux_converge_fits(t.c, 1, 0));
        g_assert(!mux_converge_fits(t.c, 0, 1));
    }
    end(&t);
}

/* A disk was slow; that another one is quick does not make up for it. */
static void test_slow_answer(void)
{
    Test t = {};

    start(&t);
    answer(&t, 1);
    g_usleep(SLOW_MS * 1000);
    answer(&t, 0);
    g_assert(!mux_converge_fits(t.c, 0, 0));
    wait_asked(&t, 1, 2);
    answer(&t, 1);
    g_assert(!mux_converge_fits(t.c, 0, 0));
    wait_asked(&t, 0, 2);
    answer(&t, 0);
    g_assert(mux_converge_fits(t.c, 0, 0));
    end(&t);
}

/* A disk does not answer: it is slow long before it has. */
static void test_slow_question(void)
{
    Test t = {};

    start(&t);
    answer(&t, 0);
    answer(&t, 1);
    g_assert(mux_converge_fits(t.c, 0, 0));
    wait_asked(&t, 0, 2);
    wait_asked(&t, 1, 2);
    g_usleep(SLOW_MS * 1000);
    answer(&t, 1);
    wait_asked(&t, 1, 3);
    answer(&t, 1);
    g_assert(!mux_converge_fits(t.c, 0, 0));
    end(&t);
}

/* Threads that have news for mux_converge_wait() */
static void *answer_thread(void *opaque)
{
    g_usleep(20 * 1000);
    answer(opaque, 0);
    return NULL;
}

static void *wake_thread(void *opaque)
{
    Test *t = opaque;

    g_usleep(20 * 1000);
    mux_converge_wake(t->c);
    return NULL;
}

/* Milliseconds that it took */
static int64_t timed_wait(Test *t, int ms)
{
    int64_t begin = qemu_clock_get_ms(QEMU_CLOCK_REALTIME);

    mux_converge_wait(t->c, ms);
    return qemu_clock_get_ms(QEMU_CLOCK_REALTIME) - begin;
}

static void test_wait(void)
{
    void *(*const news[])(void *) = { answer_thread, wake_thread };
    Test t = {};

    start(&t);
    for (int i = 0; i < ARRAY_SIZE(news); i++) {
        QemuThread thread;

        qemu_thread_create(&thread, "news", news[i], &t, QEMU_THREAD_JOINABLE);
        g_assert_cmpint(timed_wait(&t, FOREVER_MS), <, FOREVER_MS);
        qemu_thread_join(&thread);
        /* No more news */
        g_assert_cmpint(timed_wait(&t, 20), >=, 19);
    }
    /* What came before the wait is news, too; once. */
    mux_converge_wake(t.c);
    mux_converge_wake(t.c);
    g_assert_cmpint(timed_wait(&t, FOREVER_MS), <, FOREVER_MS);
    g_assert_cmpint(timed_wait(&t, 20), >=, 19);
    end(&t);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    qemu_init_main_loop(&error_abort);
    g_test_add_func("/converge/asked-again", test_asked_again);
    g_test_add_func("/converge/slow-answer", test_slow_answer);
    g_test_add_func("/converge/slow-question", test_slow_question);
    g_test_add_func("/converge/wait", test_wait);
    return g_test_run();
}
