/*
 * Unit tests for MuxConverge, with disks and a clock that the test controls
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/thread.h"
#include "qemu/timer.h"
#include "migration/migration.h"
#include "migration/mux-converge.h"
#include "migration/options.h"

/* The downtime limit, and a nanosecond more */
#define LIMIT_MS 2000
#define LIMIT_NS (LIMIT_MS * (int64_t)SCALE_MS)
#define SLOW_NS (LIMIT_NS + 1)
/* Interval between the flushes of a disk */
#define INTERVAL_NS (10 * SCALE_MS)
#define FOREVER_MS 600000       /* only ends a hang */
#define DISKS 2

/* Stands in for disk-mirror.c. */
struct DiskMirror {
    unsigned asked;             /* flushes */
};

typedef struct Test {
    MuxConverge *c;
    DiskMirror disk[DISKS];
} Test;

const char *disk_mirror_name(DiskMirror *d)
{
    return "fake";
}

void disk_mirror_converge(DiskMirror *d)
{
}

void disk_mirror_flush(DiskMirror *d)
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

/* --- stands in for qemu-timer.c --- */

static int64_t now_ns = 1;
static GPtrArray *timers;       /* QEMUTimer *, those that are armed */

int64_t qemu_clock_get_ns(QEMUClockType type)
{
    g_assert_cmpint(type, ==, QEMU_CLOCK_REALTIME);
    return now_ns;
}

void timer_init_full(QEMUTimer *ts, QEMUTimerListGroup *timer_list_group,
                     QEMUClockType type, int scale, int attributes,
                     QEMUTimerCB *cb, void *opaque)
{
    g_assert_cmpint(type, ==, QEMU_CLOCK_REALTIME);
    ts->cb = cb;
    ts->opaque = opaque;
    ts->scale = scale;
}

void timer_del(QEMUTimer *ts)
{
    g_ptr_array_remove(timers, ts);
}

void timer_mod(QEMUTimer *ts, int64_t expire_time)
{
    timer_del(ts);
    ts->expire_time = expire_time * ts->scale;
    g_ptr_array_add(timers, ts);
}

static void run_timers(void)
{
    for (unsigned i = 0; i < timers->len; ) {
        QEMUTimer *ts = g_ptr_array_index(timers, i);

        if (ts->expire_time <= now_ns) {
            g_ptr_array_remove_index(timers, i);
            ts->cb(ts->opaque);
            i = 0;
        } else {
            i++;
        }
    }
}

/* --- the test --- */

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

/* Assert that disk @i has been requested to flush @times times. */
static void assert_asked(Test *t, int i, unsigned times)
{
    run_timers();
    g_assert_cmpuint(t->disk[i].asked, ==, times);
}

static void test_asked_again(void)
{
    Test t = {};

    start(&t);
    for (unsigned n = 1; n < 5; n++) {
        for (int i = 0; i < DISKS; i++) {
            assert_asked(&t, i, n);
            answer(&t, i);
        }
        g_assert(mux_converge_fits(t.c, 0, 0));
        /* The delivery rate is unknown */
        g_assert(!mux_converge_fits(t.c, 1, 0));
        g_assert(!mux_converge_fits(t.c, 0, 1));

        now_ns += INTERVAL_NS - 1;
        assert_asked(&t, 0, n);
        assert_asked(&t, 1, n);
        now_ns++;
    }
    end(&t);
}

/* A disk is slow; a fast one does not compensate for it. */
static void test_slow_answer(void)
{
    Test t = {};

    start(&t);
    answer(&t, 1);
    now_ns += SLOW_NS;
    answer(&t, 0);
    g_assert(!mux_converge_fits(t.c, 0, 0));
    assert_asked(&t, 1, 2);
    answer(&t, 1);
    g_assert(!mux_converge_fits(t.c, 0, 0));
    /* Exactly at the limit */
    assert_asked(&t, 0, 2);
    now_ns += LIMIT_NS;
    answer(&t, 0);
    g_assert(mux_converge_fits(t.c, 0, 0));
    end(&t);
}

/* A disk that does not reply counts as slow before its reply arrives. */
static void test_slow_question(void)
{
    Test t = {};

    start(&t);
    answer(&t, 0);
    answer(&t, 1);
    g_assert(mux_converge_fits(t.c, 0, 0));
    now_ns += INTERVAL_NS;
    assert_asked(&t, 0, 2);
    assert_asked(&t, 1, 2);
    now_ns += LIMIT_NS;
    g_assert(mux_converge_fits(t.c, 0, 0));
    now_ns++;
    g_assert(!mux_converge_fits(t.c, 0, 0));
    answer(&t, 1);
    assert_asked(&t, 1, 3);
    answer(&t, 1);
    g_assert(!mux_converge_fits(t.c, 0, 0));
    answer(&t, 0);
    assert_asked(&t, 0, 3);
    answer(&t, 0);
    g_assert(mux_converge_fits(t.c, 0, 0));
    end(&t);
}

/* --- mux_converge_wait() --- */

typedef struct Waiter {
    QemuThread thread;
    MuxConverge *c;
    bool done;
} Waiter;

static void *wait_thread(void *opaque)
{
    Waiter *w = opaque;

    mux_converge_wait(w->c, FOREVER_MS);
    qatomic_store_release(&w->done, true);
    return NULL;
}

static void waiter_start(Waiter *w, Test *t)
{
    *w = (Waiter) { .c = t->c };
    qemu_thread_create(&w->thread, "waiter", wait_thread, w,
                       QEMU_THREAD_JOINABLE);
}

/*
 * Assert that it has not been woken.  A thread that has not begun to wait yet
 * makes the test weaker, but does not make it fail.
 */
static void assert_waits(Waiter *w)
{
    g_usleep(20 * 1000);
    g_assert(!qatomic_load_acquire(&w->done));
}

static void assert_told(Waiter *w)
{
    for (unsigned rounds = 0; !qatomic_load_acquire(&w->done); rounds++) {
        g_assert_cmpuint(rounds, <, 1000000);
        g_usleep(100);
    }
    qemu_thread_join(&w->thread);
}

static void tell_answer(Test *t)
{
    answer(t, 0);
}

static void tell_wake(Test *t)
{
    mux_converge_wake(t->c);
}

static void test_wait(void)
{
    void (*const news[])(Test *) = { tell_answer, tell_wake };
    Test t = {};
    Waiter w;

    start(&t);
    for (int i = 0; i < ARRAY_SIZE(news); i++) {
        waiter_start(&w, &t);
        assert_waits(&w);
        news[i](&t);
        assert_told(&w);
    }
    /* Wake-ups before the wait end it, but only once. */
    mux_converge_wake(t.c);
    mux_converge_wake(t.c);
    waiter_start(&w, &t);
    assert_told(&w);
    waiter_start(&w, &t);
    assert_waits(&w);
    mux_converge_wake(t.c);
    assert_told(&w);
    /* Without a wake-up, the wait times out */
    mux_converge_wait(t.c, 1);
    end(&t);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    timers = g_ptr_array_new();
    g_test_add_func("/converge/asked-again", test_asked_again);
    g_test_add_func("/converge/slow-answer", test_slow_answer);
    g_test_add_func("/converge/slow-question", test_slow_question);
    g_test_add_func("/converge/wait", test_wait);
    return g_test_run();
}
