/*
 * Unit tests for limits that several users share
 *
 * The time is simulated, in steps of a millisecond.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/shared-limit.h"
#include "qemu/units.h"

#define RATE (100 * MiB)
#define QUANTUM (1 * MiB)
#define BURST (RATE / 10)
#define USERS 8
#define SECONDS(n) ((n) * NANOSECONDS_PER_SECOND)

typedef struct {
    SharedLimitUser u;
    uint64_t request;           /* bytes that are sent at a time */
    uint64_t want;              /* bytes to send in all */
    uint64_t sent;
    int64_t end;                /* when the last of them were sent */
} Sender;

typedef struct {
    SharedLimit limit;
    Sender sender[USERS];
    int64_t now;
} Fixture;

static void set_up(Fixture *f, gconstpointer opaque)
{
    f->now = SECONDS(1000);
    shared_limit_init(&f->limit);
    shared_limit_set(&f->limit, RATE, QUANTUM, f->now);
    for (unsigned i = 0; i < USERS; i++) {
        f->sender[i] = (Sender) { .request = QUANTUM, .want = UINT64_MAX };
        shared_limit_user_init(&f->sender[i].u, &f->limit, 1);
    }
}

static void tear_down(Fixture *f, gconstpointer opaque)
{
    shared_limit_destroy(&f->limit);
}

static int64_t delay(Fixture *f, unsigned i)
{
    return shared_limit_delay(&f->sender[i].u, f->now);
}

/* To the nanosecond, rounded up */
static void check_delay(Fixture *f, unsigned i, int64_t ns)
{
    g_assert_cmpint(delay(f, i), >=, ns);
    g_assert_cmpint(delay(f, i), <=, ns + 1);
}

/* Send as much as is allowed now. */
static void send_all(Fixture *f, Sender *s)
{
    while (s->sent < s->want && !shared_limit_delay(&s->u, f->now)) {
        s->sent += s->request;
        shared_limit_spend(&s->u, s->request);
        s->end = f->now;
    }
}

static void run(Fixture *f, unsigned num, int64_t ns)
{
    int64_t end = f->now + ns;

    while (f->now < end) {
        for (unsigned i = 0; i < num; i++) {
            send_all(f, &f->sender[i]);
        }
        f->now += SCALE_MS;
    }
}

/* The bytes sent in 10 s; each user may still wait for its last draw */
static void check_sum(Fixture *f, unsigned num, uint64_t quanta)
{
    uint64_t sum = 0;

    for (unsigned i = 0; i < num; i++) {
        sum += f->sender[i].sent;
    }
    g_assert_cmpuint(sum, >=, 10 * (uint64_t)RATE - quanta * QUANTUM);
    g_assert_cmpuint(sum, <=, 10 * (uint64_t)RATE + BURST);
}

static void test_rate(Fixture *f, gconstpointer opaque)
{
    f->sender[0].request = 4 * KiB;
    run(f, 1, SECONDS(10));
    check_sum(f, 1, 1);
}

/* However small the requests of some of them are */
static void test_equal_shares(Fixture *f, gconstpointer opaque)
{
    uint64_t first;

    for (unsigned i = 0; i < USERS / 2; i++) {
        f->sender[i].request = 64 * KiB;
    }
    run(f, USERS, SECONDS(10));
    check_sum(f, USERS, USERS);
    first = f->sender[0].sent;
    for (unsigned i = 1; i < USERS; i++) {
        g_assert_cmpuint(f->sender[i].sent, >=, first - 2 * QUANTUM);
        g_assert_cmpuint(f->sender[i].sent, <=, first + 2 * QUANTUM);
    }
}

static void test_quanta(Fixture *f, gconstpointer opaque)
{
    f->sender[0].u.quanta = 3;
    run(f, 2, SECONDS(10));
    check_sum(f, 2, 4);
    g_assert_cmpuint(f->sender[0].sent, >=, 3 * f->sender[1].sent - BURST);
    g_assert_cmpuint(f->sender[0].sent, <=, 3 * f->sender[1].sent + BURST);
}

/* One that has much to send beside seven with little: as long as alone */
static void test_leftover(Fixture *f, gconstpointer opaque)
{
    Sender *s = &f->sender[0];
    int64_t begin = f->now;

    for (unsigned i = 1; i < USERS; i++) {
        f->sender[i].want = QUANTUM;
    }
    s->want = RATE;
    run(f, USERS, SECONDS(2));
    g_assert_cmpuint(s->sent, ==, RATE);
    g_assert_cmpint(s->end - begin, >=, SECONDS(1) - SHARED_LIMIT_BURST_NS);
    g_assert_cmpint(s->end - begin, <=,
                    SECONDS(1) + 2 * USERS * 10 * SCALE_MS);
}

static void test_idle_time(Fixture *f, gconstpointer opaque)
{
    f->now += SECONDS(60);
    send_all(f, &f->sender[0]);
    g_assert_cmpuint(f->sender[0].sent, ==, BURST);
}

static void test_turns(Fixture *f, gconstpointer opaque)
{
    f->sender[0].u.quanta = 10;
    check_delay(f, 0, SECONDS(1) / 10);
    check_delay(f, 1, SECONDS(11) / 100);
    /* It keeps its turn */
    check_delay(f, 0, SECONDS(1) / 10);
    f->now += SECONDS(1) / 10;
    g_assert_cmpint(delay(f, 0), ==, 0);
    check_delay(f, 1, SECONDS(1) / 100);
}

static void test_overspend(Fixture *f, gconstpointer opaque)
{
    shared_limit_spend(&f->sender[0].u, RATE);
    check_delay(f, 0, SECONDS(101) / 100);
    f->now += SECONDS(101) / 100;
    g_assert_cmpint(delay(f, 0), ==, 0);
    shared_limit_spend(&f->sender[0].u, QUANTUM);
    check_delay(f, 0, SECONDS(1) / 100);
}

static void test_clip(Fixture *f, gconstpointer opaque)
{
    SharedLimitUser *u = &f->sender[0].u;
    SharedLimitUser free;

    g_assert_true(shared_limit_applies(u));
    g_assert_cmpuint(shared_limit_clip(u, QUANTUM + 1), ==, QUANTUM);
    g_assert_cmpuint(shared_limit_clip(u, 1), ==, 1);
    shared_limit_set(&f->limit, 0, QUANTUM, f->now);
    g_assert_false(shared_limit_applies(u));
    g_assert_cmpuint(shared_limit_clip(u, RATE), ==, RATE);

    shared_limit_user_init(&free, NULL, 1);
    shared_limit_spend(&free, RATE);
    g_assert_false(shared_limit_applies(&free));
    g_assert_cmpint(shared_limit_delay(&free, f->now), ==, 0);
    g_assert_cmpuint(shared_limit_clip(&free, RATE), ==, RATE);
}

static void test_change(Fixture *f, gconstpointer opaque)
{
    f->sender[0].u.quanta = RATE / QUANTUM;
    check_delay(f, 0, SECONDS(1));
    f->now += SECONDS(1) / 2;
    shared_limit_set(&f->limit, RATE / 4, QUANTUM, f->now);
    check_delay(f, 0, SECONDS(2));

    shared_limit_set(&f->limit, 0, QUANTUM, f->now);
    g_assert_cmpint(delay(f, 0), ==, 0);
    shared_limit_spend(&f->sender[0].u, 1000 * (uint64_t)RATE);
    g_assert_cmpint(delay(f, 0), ==, 0);

    /* What was spent without a limit is forgotten */
    shared_limit_set(&f->limit, RATE, QUANTUM, f->now);
    check_delay(f, 0, SECONDS(1));
}

static void test_extremes(Fixture *f, gconstpointer opaque)
{
    shared_limit_set(&f->limit, UINT64_MAX, QUANTUM, f->now);
    f->now += 1;
    g_assert_cmpint(delay(f, 0), ==, 0);

    shared_limit_set(&f->limit, 1, QUANTUM, f->now);
    g_assert_cmpint(delay(f, 1), ==, SECONDS(3600));
}

/* Bytes that do not wait take half of the limit, however many they are. */
static void test_charge(Fixture *f, gconstpointer opaque)
{
    int64_t end = f->now + SECONDS(10);

    while (f->now < end) {
        shared_limit_charge(&f->limit, RATE / 100, f->now);
        run(f, 1, SCALE_MS);
    }
    g_assert_cmpuint(f->sender[0].sent, >=, 5 * (uint64_t)RATE - QUANTUM);
    g_assert_cmpuint(f->sender[0].sent, <=, 5 * (uint64_t)RATE + BURST);
}

static void test_few_charges(Fixture *f, gconstpointer opaque)
{
    f->now += SECONDS(1);
    shared_limit_charge(&f->limit, BURST / 4, f->now);
    send_all(f, &f->sender[0]);
    g_assert_cmpuint(f->sender[0].sent, ==, BURST * 3 / 4 / QUANTUM * QUANTUM);
}

/* Two threads may read the clock in one order, and take the lock in another. */
static void test_time_order(Fixture *f, gconstpointer opaque)
{
    f->now += SECONDS(1);
    shared_limit_charge(&f->limit, RATE, f->now);
    shared_limit_charge(&f->limit, RATE, f->now - SCALE_US);
    shared_limit_charge(&f->limit, RATE, f->now);
    f->now += SECONDS(1);
    g_assert_cmpint(delay(f, 0), ==, 0);
}

/* What was not counted gives nothing back. */
static void test_give_back_charge(Fixture *f, gconstpointer opaque)
{
    f->sender[0].u.quanta = RATE / QUANTUM;
    check_delay(f, 0, SECONDS(1));
    shared_limit_charge(&f->limit, RATE, f->now);
    shared_limit_give_back(&f->limit, RATE);
    check_delay(f, 0, SECONDS(1));
    shared_limit_give_back(&f->limit, RATE / 2);
    check_delay(f, 0, SECONDS(1) / 2);
}

static void test_give_back(Fixture *f, gconstpointer opaque)
{
    f->sender[0].u.quanta = RATE / QUANTUM;
    check_delay(f, 0, SECONDS(1));
    shared_limit_give_back(&f->limit, RATE / 4);
    check_delay(f, 0, SECONDS(3) / 4);
    shared_limit_give_back(&f->limit, RATE);
    g_assert_cmpint(delay(f, 0), ==, 0);
    /* No more is kept than for idle time */
    f->sender[1].u.quanta = RATE / QUANTUM;
    check_delay(f, 1, SECONDS(9) / 10);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
#define ADD(name, func)                                                 \
    g_test_add("/shared-limit/" name, Fixture, NULL, set_up, func, tear_down)
    ADD("rate", test_rate);
    ADD("equal-shares", test_equal_shares);
    ADD("quanta", test_quanta);
    ADD("leftover", test_leftover);
    ADD("idle-time", test_idle_time);
    ADD("turns", test_turns);
    ADD("overspend", test_overspend);
    ADD("clip", test_clip);
    ADD("change", test_change);
    ADD("extremes", test_extremes);
    ADD("charge", test_charge);
    ADD("few-charges", test_few_charges);
    ADD("time-order", test_time_order);
    ADD("give-back", test_give_back);
    ADD("give-back-charge", test_give_back_charge);
    return g_test_run();
}
