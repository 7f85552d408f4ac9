/*
 * A limit on the bytes per second that several users send together
 *
 * Each user spends credit on what it sends.  A user without credit draws a
 * number of quanta, plus what it has overspent, and waits.  Draws are paid for
 * in their order, at the rate of the limit; then the user may continue.  So
 * users get shares in proportion to their quanta, however small their requests
 * are, and the others get at once what a user does not need.  Time in which
 * nothing is drawn is credited afterwards, SHARED_LIMIT_BURST_NS of it at most.
 *
 * @now is the time of get_clock(), in nanoseconds.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef QEMU_SHARED_LIMIT_H
#define QEMU_SHARED_LIMIT_H

#include "qemu/thread.h"
#include "qemu/timer.h"

#define SHARED_LIMIT_BURST_NS (100 * (int64_t)SCALE_MS)

typedef struct SharedLimit {
    QemuMutex lock;
    uint64_t rate;              /* bytes per second; 0: no limit */
    unsigned quantum;           /* bytes; 0: no limit; atomic */
    uint64_t drawn;             /* bytes, in all */
    double paid;                /* bytes; may exceed @drawn by a burst */
    double chargeable;          /* bytes that shared_limit_charge() may count */
    uint64_t uncounted;         /* bytes that it has not counted */
    int64_t settled;            /* time up to which @paid is computed */
} SharedLimit;

typedef struct SharedLimitUser {
    SharedLimit *limit;         /* NULL: the user is not limited */
    unsigned quanta;            /* to draw at a time, besides an overspend */
    int64_t credit;             /* bytes; negative: overspent */
    uint64_t drawn;             /* bytes of the pending draw; 0: none */
    uint64_t turn;              /* limit->paid at which that is paid for */
} SharedLimitUser;

/* No limit applies until shared_limit_set(). */
void shared_limit_init(SharedLimit *l);

void shared_limit_destroy(SharedLimit *l);

/*
 * Set the limit to @rate bytes per second; 0: no limit.  Draws that are not
 * paid for yet are paid for at the new rate.  The caller must wake the users
 * that wait.  Any thread.
 *
 * @quantum: bytes
 */
void shared_limit_set(SharedLimit *l, uint64_t rate, unsigned quantum,
                      int64_t now);

/*
 * Count @bytes that are sent without waiting.  They count as up to half of the
 * limit, so that the users get at least the other half.  Any thread.
 */
void shared_limit_charge(SharedLimit *l, uint64_t bytes, int64_t now);

/*
 * Give back @bytes that were spent or charged but are not sent, first those
 * that shared_limit_charge() has not counted.  Any thread.
 */
void shared_limit_give_back(SharedLimit *l, uint64_t bytes);

/* A user belongs to one thread at a time, which calls the functions below. */

/* @limit: NULL: @u is not limited */
void shared_limit_user_init(SharedLimitUser *u, SharedLimit *limit,
                            unsigned quanta);

/* @u has sent @bytes, or has begun to. */
void shared_limit_spend(SharedLimitUser *u, uint64_t bytes);

/*
 * Draw credit if @u has none.
 *
 * Returns: nanoseconds until @u may send, 3600 s at most; 0: it may send now.
 *     A change of the limit changes the result.
 */
int64_t shared_limit_delay(SharedLimitUser *u, int64_t now);

/*
 * Returns: how many of @bytes to send before asking again, so that others get
 * their turn; at least 1
 */
uint64_t shared_limit_clip(SharedLimitUser *u, uint64_t bytes);

/* Does a limit apply to @u? */
bool shared_limit_applies(SharedLimitUser *u);

#endif
