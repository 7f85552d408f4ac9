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

/* The rate is that of so long a time, up to the latest answer. */
#define DELIVERY_RATE_SPAN_NS   (1000 * 1000 * 1000LL)
/* Before there are so many nanoseconds to look at it is unknown. */
#define DELIVERY_RATE_LEAST_NS  (50 * 1000 * 1000LL)
#define DELIVERY_RATE_TRIPS     256

typedef struct DeliveryTrip {
    int64_t asked;              /* when */
    int64_t answered;
    uint64_t sent;              /* bytes in all, before it was asked */
} DeliveryTrip;

typedef struct DeliveryRate {
    DeliveryTrip trips[DELIVERY_RATE_TRIPS];    /* a ring */
    unsigned count;             /* trips ever */
    int64_t shortest;           /* round trip, ns */
} DeliveryRate;

void delivery_rate_init(DeliveryRate *r);

/* An answer came.  Answers may come out of order. */
void delivery_rate_add(DeliveryRate *r, const DeliveryTrip *trip);

/* Bytes per second; 0: not known yet. */
uint64_t delivery_rate_get(const DeliveryRate *r);

#endif
