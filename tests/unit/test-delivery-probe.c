/*
 * Unit tests for DeliveryProbe, with disks and a clock that the test controls
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/thread.h"
#include "qemu/timer.h"
#include "migration/delivery-probe.h"

#define SLOW_NS (2000 * (int64_t)SCALE_MS)
/* Interval between the flushes of a disk */
#define INTERVAL_NS (10 * SCALE_MS)
#define FOREVER_MS 600000       /* only ends a hang */
#define DISKS 2

/* Stands in for disk-mirror.c. */
struct DiskMirror {
    unsigned asked;             /* flushes */
};

typedef struct Test {
    DeliveryProbe *c;
    DiskMirror disk[DISKS];
} Test;

const char *disk_mirror_stream_name(DiskMirror *d)
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

static DeliveryProbeSent nothing_sent(void *opaque)
{
    return (DeliveryProbeSent) {};
}

static void assert_measured(Test *t, int64_t round_trip, int64_t flush)
{
    SwitchoverInputs in = {};

    delivery_probe_get(t->c, &in);
    g_assert_cmpint(in.round_trip, ==, round_trip);
    g_assert_cmpint(in.flush, ==, flush);
}

static void start(Test *t)
{
    g_autoptr(GPtrArray) disks = g_ptr_array_new();

    for (int i = 0; i < DISKS; i++) {
        g_ptr_array_add(disks, &t->disk[i]);
    }
    t->c = delivery_probe_new(nothing_sent, NULL);
    assert_measured(t, INT64_MAX, 0);
    delivery_probe_start(t->c, disks);
    assert_measured(t, INT64_MAX, 0);
}

static void end(Test *t)
{
    delivery_probe_stop(t->c);
    delivery_probe_free(t->c);
}

static void answer(Test *t, int i)
{
    delivery_probe_flushed(t->c, &t->disk[i]);
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
        assert_measured(&t, 0, 0);

        now_ns += INTERVAL_NS - 1;
        assert_asked(&t, 0, n);
        assert_asked(&t, 1, n);
        now_ns++;
    }
    end(&t);
}

/* The slowest disk counts, with its last flush. */
static void test_slow_reply(void)
{
    Test t = {};

    start(&t);
    answer(&t, 1);
    now_ns += SLOW_NS;
    answer(&t, 0);
    assert_measured(&t, 0, SLOW_NS);
    assert_asked(&t, 1, 2);
    answer(&t, 1);
    assert_measured(&t, 0, SLOW_NS);
    assert_asked(&t, 0, 2);
    now_ns += SLOW_NS - 1;
    answer(&t, 0);
    assert_measured(&t, 0, SLOW_NS - 1);
    end(&t);
}

/* A flush that is pending counts before its reply arrives. */
static void test_slow_flush(void)
{
    Test t = {};

    start(&t);
    answer(&t, 0);
    answer(&t, 1);
    assert_measured(&t, 0, 0);
    now_ns += INTERVAL_NS;
    assert_asked(&t, 0, 2);
    assert_asked(&t, 1, 2);
    now_ns += SLOW_NS;
    assert_measured(&t, 0, SLOW_NS);
    answer(&t, 1);
    assert_asked(&t, 1, 3);
    answer(&t, 1);
    assert_measured(&t, 0, SLOW_NS);
    answer(&t, 0);
    assert_asked(&t, 0, 3);
    answer(&t, 0);
    assert_measured(&t, 0, 0);
    end(&t);
}

static DeliveryProbeSent some_sent(void *opaque)
{
    return *(DeliveryProbeSent *)opaque;
}

/* What was sent before a flush that was replied to has arrived. */
static void test_in_flight(void)
{
    g_autoptr(GPtrArray) disks = g_ptr_array_new();
    DeliveryProbeSent sent = { .ram = 1000, .disks = 10 };
    SwitchoverInputs in = {};
    Test t = {};

    g_ptr_array_add(disks, &t.disk[0]);
    t.c = delivery_probe_new(some_sent, &sent);
    delivery_probe_start(t.c, disks);
    sent.ram = 1500;
    delivery_probe_get(t.c, &in);
    g_assert_cmpuint(in.ram_in_flight, ==, 1500);
    answer(&t, 0);
    delivery_probe_get(t.c, &in);
    g_assert_cmpuint(in.ram_in_flight, ==, 500);
    end(&t);
}

/* --- delivery_probe_wait() --- */

typedef struct Waiter {
    QemuThread thread;
    DeliveryProbe *c;
    bool done;
} Waiter;

static void *wait_thread(void *opaque)
{
    Waiter *w = opaque;

    delivery_probe_wait(w->c, FOREVER_MS);
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

static void assert_woken(Waiter *w)
{
    for (unsigned rounds = 0; !qatomic_load_acquire(&w->done); rounds++) {
        g_assert_cmpuint(rounds, <, 1000000);
        g_usleep(100);
    }
    qemu_thread_join(&w->thread);
}

static void wake_by_answer(Test *t)
{
    answer(t, 0);
}

static void wake_by_call(Test *t)
{
    delivery_probe_wake(t->c);
}

static void test_wait(void)
{
    void (*const news[])(Test *) = { wake_by_answer, wake_by_call };
    Test t = {};
    Waiter w;

    start(&t);
    for (int i = 0; i < ARRAY_SIZE(news); i++) {
        waiter_start(&w, &t);
        assert_waits(&w);
        news[i](&t);
        assert_woken(&w);
    }
    /* Wake-ups before the wait end it, but only once. */
    delivery_probe_wake(t.c);
    delivery_probe_wake(t.c);
    waiter_start(&w, &t);
    assert_woken(&w);
    waiter_start(&w, &t);
    assert_waits(&w);
    delivery_probe_wake(t.c);
    assert_woken(&w);
    /* Without a wake-up, the wait times out */
    delivery_probe_wait(t.c, 1);
    end(&t);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    timers = g_ptr_array_new();
    g_test_add_func("/delivery-probe/asked-again", test_asked_again);
    g_test_add_func("/delivery-probe/slow-reply", test_slow_reply);
    g_test_add_func("/delivery-probe/slow-flush", test_slow_flush);
    g_test_add_func("/delivery-probe/in-flight", test_in_flight);
    g_test_add_func("/delivery-probe/wait", test_wait);
    return g_test_run();
}
