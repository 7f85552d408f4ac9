/*
 * A limit on the bytes per second that several users share
 *
 * A user spends credit.  When it has none left, it draws the limit's quantum,
 * or a multiple of it, and what it has overspent, and continues when that is
 * paid for, at the rate of the limit, in the order in which users draw.  So
 * users get shares in proportion to what they draw at a time, however small
 * their requests are, and what one of them does not need is left to the others
 * at once.  Time in which nothing was drawn counts for the next
 * SHARED_LIMIT_BURST_NS at most.
 *
 * The time is an argument, in nanoseconds: that of get_clock().
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
    unsigned quantum;           /* bytes; atomic */
    uint64_t drawn;             /* bytes, since the beginning */
    double paid;                /* bytes, of @drawn and in advance */
    double chargeable;          /* bytes, for shared_limit_charge() */
    int64_t settled;            /* @paid includes the time until then */
} SharedLimit;

typedef struct SharedLimitUser {
    SharedLimit *limit;         /* NULL: the user is not limited */
    unsigned quanta;            /* that it draws at a time, at least */
    int64_t credit;             /* bytes; negative: it has spent more */
    uint64_t drawn;             /* bytes that it waits for */
    uint64_t turn;              /* while it does */
} SharedLimitUser;

/* Without a limit, so far. */
void shared_limit_init(SharedLimit *l);

void shared_limit_destroy(SharedLimit *l);

/*
 * From now on the limit is @rate bytes per second, 0: there is none.  What was
 * drawn and is not paid for yet is paid for at this rate.  Users that wait have
 * to be woken.  Any thread.
 *
 * @quantum: bytes
 */
void shared_limit_set(SharedLimit *l, uint64_t rate, unsigned quantum,
                      int64_t now);

/*
 * Count @bytes that have not waited.  Such bytes take up to half of the limit;
 * all above are not counted, so that the users get the other half.  Any thread.
 */
void shared_limit_charge(SharedLimit *l, uint64_t bytes, int64_t now);

/* Pay for @bytes that a user has spent but need not be sent.  Any thread. */
void shared_limit_give_back(SharedLimit *l, uint64_t bytes);

/*
 * The functions below belong to one thread at a time.
 */

/* @limit: NULL: @u is not limited */
void shared_limit_user_init(SharedLimitUser *u, SharedLimit *limit,
                            unsigned quanta);

/* @u has sent @bytes, or has begun to. */
void shared_limit_spend(SharedLimitUser *u, uint64_t bytes);

/*
 * Returns: nanoseconds until @u may send more, unless the limit changes; 0: it
 * may now
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
