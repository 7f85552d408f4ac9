/*
 * Unit tests for DeliveryRate, on a link of known bandwidth in virtual time
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/timer.h"
#include "migration/delivery-rate.h"

#define LINK    6250000ULL      /* bytes per second: 50 Mbit/s */

/* Takes any number of bytes at once, and delivers them one after the other. */
typedef struct Link {
    uint64_t rate;
    uint64_t sent;
    int64_t idle_at;            /* when all has been delivered */
} Link;

static void link_send(Link *l, int64_t now, uint64_t bytes)
{
    l->sent += bytes;
    l->idle_at = MAX(l->idle_at, now) +
                 bytes * NANOSECONDS_PER_SECOND / l->rate;
}

/* A question that takes @work ns to answer. */
static DeliveryTrip link_ask(Link *l, int64_t now, int64_t work)
{
    return (DeliveryTrip) {
        .asked = now,
        .answered = MAX(l->idle_at, now) + work,
        .sent = l->sent,
    };
}

static void assert_about(uint64_t value, uint64_t wanted)
{
    g_assert_cmpuint(value, >=, wanted - wanted / 20);
    g_assert_cmpuint(value, <=, wanted + wanted / 20);
}

static void test_unknown_at_first(void)
{
    DeliveryTrip trip = { .asked = 5, .answered = 9, .sent = 100 };
    DeliveryRate r;

    delivery_rate_init(&r);
    g_assert_cmpuint(delivery_rate_get(&r), ==, 0);

    delivery_rate_add(&r, &trip);
    g_assert_cmpuint(delivery_rate_get(&r), ==, 0);

    /* Too soon to tell the mean, but 200 bytes arrived in 100 ns */
    trip.asked = 85;
    trip.answered = 105;
    trip.sent = 300;
    delivery_rate_add(&r, &trip);
    g_assert_cmpuint(delivery_rate_get(&r), ==, 2 * NANOSECONDS_PER_SECOND);
}

/* The mean is not used before DELIVERY_RATE_LEAST_NS, only the lower bound. */
static void test_mean_takes_time(void)
{
    const uint64_t bytes = 1000 * 1000 * 1000;
    const int64_t late = DELIVERY_RATE_LEAST_NS / 2;

    for (int early = 1; early >= 0; early--) {
        DeliveryTrip first = { .asked = 0, .answered = late, .sent = 0 };
        int64_t elapsed = DELIVERY_RATE_LEAST_NS - early;
        DeliveryTrip last = {
            .asked = late, .answered = late + elapsed, .sent = bytes,
        };
        DeliveryRate r;

        delivery_rate_init(&r);
        delivery_rate_add(&r, &first);
        delivery_rate_add(&r, &last);
        assert_about(delivery_rate_get(&r), bytes * NANOSECONDS_PER_SECOND /
                     (early ? late + elapsed : elapsed));
    }
}

/* The sender's view is of bytes that vanish at once. */
static void test_saturated_link(void)
{
    Link l = { .rate = LINK };
    DeliveryRate r;
    int64_t now = 0;

    delivery_rate_init(&r);
    for (int i = 0; i < 40; i++) {
        DeliveryTrip trip;

        link_send(&l, now, 4 * 1024 * 1024);
        trip = link_ask(&l, now, SCALE_MS);
        delivery_rate_add(&r, &trip);
        now = trip.answered;
    }
    assert_about(delivery_rate_get(&r), LINK);
    g_assert_cmpint(r.shortest, >=, 600 * SCALE_MS);
}

/*
 * The link carries little for most of the time.  Each burst shows what it could
 * carry, if the time is counted that it takes to send it and to be answered.
 */
static void test_idle_link(void)
{
    Link l = { .rate = 160 * LINK };    /* 1 GB/s */
    int64_t now = 0;
    DeliveryRate r;

    delivery_rate_init(&r);
    for (int i = 0; i < 200; i++) {
        bool burst = i % 20 == 19;
        DeliveryTrip trip;

        link_send(&l, now, burst ? 16 * 1000 * 1000 : 1000);
        trip = link_ask(&l, now, SCALE_MS);
        delivery_rate_add(&r, &trip);
        now = MAX(trip.answered, now + 10 * SCALE_MS);
    }
    g_assert_cmpuint(delivery_rate_get(&r), >, 500 * 1000 * 1000);
    g_assert_cmpuint(delivery_rate_get(&r), <, l.rate);
    /* Old bursts no longer count */
    for (int i = 0; i < 220; i++) {
        DeliveryTrip trip;

        link_send(&l, now, 1000);
        trip = link_ask(&l, now, SCALE_MS);
        delivery_rate_add(&r, &trip);
        now += 10 * SCALE_MS;
    }
    g_assert_cmpuint(delivery_rate_get(&r), <, 1000 * 1000);
}

/* A disk that is slow to flush once does not make the link faster. */
static void test_slow_answer(void)
{
    Link l = { .rate = LINK };
    DeliveryRate r;
    int64_t now = 0;

    delivery_rate_init(&r);
    for (int i = 0; i < 4; i++) {
        DeliveryTrip trip;

        link_send(&l, now, LINK / 10);
        trip = link_ask(&l, now, i == 0 ? 900 * SCALE_MS : 0);
        delivery_rate_add(&r, &trip);
        now += 300 * SCALE_MS;
        g_assert_cmpuint(delivery_rate_get(&r), <=, LINK);
    }
}

static void test_link_changes(void)
{
    Link l = { .rate = 8 * LINK };
    DeliveryRate r;

    delivery_rate_init(&r);
    for (int64_t now = 0; now < 5 * NANOSECONDS_PER_SECOND;
         now += 20 * SCALE_MS) {
        DeliveryTrip trip;

        if (now == 2 * NANOSECONDS_PER_SECOND) {
            assert_about(delivery_rate_get(&r), 8 * LINK);
            l.rate = LINK;
        }
        /* As much as it carries */
        link_send(&l, now, l.rate / 50);
        trip = link_ask(&l, now, 0);
        delivery_rate_add(&r, &trip);
    }
    assert_about(delivery_rate_get(&r), LINK);
}

/* More trips than are kept, in less than the time that is looked at */
static void test_many_trips(void)
{
    DeliveryRate r;

    delivery_rate_init(&r);
    for (uint64_t i = 1; i <= 4 * DELIVERY_RATE_TRIPS; i++) {
        DeliveryTrip trip = {
            .asked = i * SCALE_MS,
            .answered = (i + 1) * SCALE_MS,
            .sent = i * LINK / 1000,
        };

        delivery_rate_add(&r, &trip);
    }
    assert_about(delivery_rate_get(&r), LINK);
    g_assert_cmpint(r.shortest, ==, SCALE_MS);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/delivery-rate/unknown-at-first", test_unknown_at_first);
    g_test_add_func("/delivery-rate/mean-takes-time", test_mean_takes_time);
    g_test_add_func("/delivery-rate/saturated-link", test_saturated_link);
    g_test_add_func("/delivery-rate/idle-link", test_idle_link);
    g_test_add_func("/delivery-rate/slow-answer", test_slow_answer);
    g_test_add_func("/delivery-rate/link-changes", test_link_changes);
    g_test_add_func("/delivery-rate/many-trips", test_many_trips);
    return g_test_run();
}
