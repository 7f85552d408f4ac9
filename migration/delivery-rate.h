/*
 * Migration: how fast what is sent arrives
 *
 * What was written is not what has arrived: kernel, proxies and routers hold
 * megabytes, which on a slow link are seconds.  A DeliveryRate learns from
 * round trips that go the same way as the bytes, behind them: when the answer
 * is there, all that was sent before the question has arrived.
 *
 * Times are nanoseconds of one monotonic clock.  Not thread-safe.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef MIGRATION_DELIVERY_RATE_H
#define MIGRATION_DELIVERY_RATE_H

/* Only answers of this period count, up to the latest one. */
#define DELIVERY_RATE_SPAN_NS   (1000 * 1000 * 1000LL)
/* A mean over less time is not used. */
#define DELIVERY_RATE_LEAST_NS  (50 * 1000 * 1000LL)
#define DELIVERY_RATE_TRIPS     256

typedef struct DeliveryTrip {
    int64_t asked;              /* when */
    int64_t answered;
    uint64_t sent;              /* bytes in all, before it was asked */
    uint64_t least;             /* lower bound of the rate, bytes per second */
} DeliveryTrip;

typedef struct DeliveryRate {
    DeliveryTrip trips[DELIVERY_RATE_TRIPS];    /* a ring */
    unsigned count;             /* trips ever */
    int64_t shortest;           /* round trip, ns */
} DeliveryRate;

void delivery_rate_init(DeliveryRate *r);

/* An answer came: @trip but for @least.  Answers may come out of order. */
void delivery_rate_add(DeliveryRate *r, const DeliveryTrip *trip);

/*
 * Bytes per second, 0: not known yet.  The mean, or more if a burst has shown
 * more: an idle link is not a slow one.
 */
uint64_t delivery_rate_get(DeliveryRate *r);

#endif
