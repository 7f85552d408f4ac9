/*
 * A limit on the bytes per second that several users send together
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/lockable.h"
#include "qemu/shared-limit.h"

/* The longest time that is reported */
#define SHARED_LIMIT_DELAY_MAX (3600 * NANOSECONDS_PER_SECOND)

void shared_limit_init(SharedLimit *l)
{
    *l = (SharedLimit) { };
    qemu_mutex_init(&l->lock);
}

void shared_limit_destroy(SharedLimit *l)
{
    qemu_mutex_destroy(&l->lock);
}

/* With the lock held */
static void shared_limit_settle(SharedLimit *l, int64_t now)
{
    double per_ns = (double)l->rate / NANOSECONDS_PER_SECOND;
    /* A thread may have read the clock before another one that was faster */
    int64_t ns = MAX(now - l->settled, 0);
    double elapsed = per_ns * ns;
    double burst = per_ns * SHARED_LIMIT_BURST_NS;

    l->settled += ns;
    l->paid = l->rate ? MIN(l->paid + elapsed, l->drawn + burst) : l->drawn;
    l->chargeable = MIN(l->chargeable + elapsed / 2, burst / 2);
}

void shared_limit_set(SharedLimit *l, uint64_t rate, unsigned quantum,
                      int64_t now)
{
    QEMU_LOCK_GUARD(&l->lock);
    shared_limit_settle(l, now);
    l->rate = rate;
    l->uncounted = 0;
    qatomic_set(&l->quantum, rate ? quantum : 0);
}

/* With the lock held.  Returns: the turn */
static uint64_t shared_limit_draw(SharedLimit *l, uint64_t bytes, int64_t now)
{
    shared_limit_settle(l, now);
    l->drawn += bytes;
    return l->drawn;
}

void shared_limit_charge(SharedLimit *l, uint64_t bytes, int64_t now)
{
    uint64_t counted;

    QEMU_LOCK_GUARD(&l->lock);
    shared_limit_settle(l, now);
    counted = MIN(bytes, (uint64_t)l->chargeable);
    l->chargeable -= counted;
    l->drawn += counted;
    l->uncounted += bytes - counted;
}

void shared_limit_give_back(SharedLimit *l, uint64_t bytes)
{
    uint64_t uncounted;

    QEMU_LOCK_GUARD(&l->lock);
    uncounted = MIN(bytes, l->uncounted);
    l->uncounted -= uncounted;
    l->paid += bytes - uncounted;
}

/* With the lock held.  Returns: nanoseconds until @turn is paid for */
static int64_t shared_limit_due(SharedLimit *l, uint64_t turn, int64_t now)
{
    double ns;

    shared_limit_settle(l, now);
    if (l->paid >= turn) {
        return 0;
    }
    ns = (turn - l->paid) * NANOSECONDS_PER_SECOND / l->rate;
    return ns < SHARED_LIMIT_DELAY_MAX ? (int64_t)ns + 1 :
                                         SHARED_LIMIT_DELAY_MAX;
}

/* --- a user --- */

void shared_limit_user_init(SharedLimitUser *u, SharedLimit *limit,
                            unsigned quanta)
{
    *u = (SharedLimitUser) { .limit = limit, .quanta = quanta };
}

/* Bytes that @u draws at a time; 0: there is no limit */
static uint64_t shared_limit_user_quantum(SharedLimitUser *u)
{
    return u->limit ?
           (uint64_t)u->quanta * qatomic_read(&u->limit->quantum) : 0;
}

bool shared_limit_applies(SharedLimitUser *u)
{
    return shared_limit_user_quantum(u);
}

void shared_limit_spend(SharedLimitUser *u, uint64_t bytes)
{
    u->credit = shared_limit_applies(u) ? u->credit - (int64_t)bytes : 0;
}

int64_t shared_limit_delay(SharedLimitUser *u, int64_t now)
{
    SharedLimit *l = u->limit;
    int64_t delay;

    if (!shared_limit_applies(u)) {
        u->drawn = 0;
        return 0;
    }
    if (u->credit > 0) {
        return 0;
    }
    QEMU_LOCK_GUARD(&l->lock);
    if (!l->rate) {
        return 0;
    }
    if (!u->drawn) {
        u->drawn = shared_limit_user_quantum(u) - u->credit;
        u->turn = shared_limit_draw(l, u->drawn, now);
    }
    delay = shared_limit_due(l, u->turn, now);
    if (!delay) {
        u->credit += u->drawn;
        u->drawn = 0;
    }
    return delay;
}

uint64_t shared_limit_clip(SharedLimitUser *u, uint64_t bytes)
{
    uint64_t quantum = shared_limit_user_quantum(u);

    return quantum ? MIN(bytes, quantum) : bytes;
}
