/*
 * Migration: how fast what is sent arrives
 *
 * Owns the record of the latest round trips.  Never asks for one, and never
 * reads a clock.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/timer.h"
#include "delivery-rate.h"

void delivery_rate_init(DeliveryRate *r)
{
    *r = (DeliveryRate) { .shortest = INT64_MAX };
}

static DeliveryTrip *delivery_rate_trip(DeliveryRate *r, unsigned age)
{
    return &r->trips[(r->count - 1 - age) % DELIVERY_RATE_TRIPS];
}

/* The trips that are kept, and were answered in the time that is looked at */
static unsigned delivery_rate_recent(DeliveryRate *r)
{
    unsigned n = MIN(r->count, DELIVERY_RATE_TRIPS), age = 0;
    int64_t last = delivery_rate_trip(r, 0)->answered;

    while (age < n && last - delivery_rate_trip(r, age)->answered <=
                      DELIVERY_RATE_SPAN_NS) {
        age++;
    }
    return age;
}

/*
 * What was sent between two questions arrived between the first question and
 * the last answer.  That is less than the rate, as the link had nothing to do
 * for a part of that time, but what a burst shows is not averaged away.
 */
static uint64_t delivery_rate_least(DeliveryRate *r)
{
    const DeliveryTrip *last = delivery_rate_trip(r, 0);
    unsigned n = delivery_rate_recent(r);
    double best = 0;

    for (unsigned age = 1; age < n; age++) {
        const DeliveryTrip *first = delivery_rate_trip(r, age);

        if (last->sent > first->sent && last->answered > first->asked) {
            best = MAX(best, (double)(last->sent - first->sent) /
                             (last->answered - first->asked));
        }
    }
    return best * NANOSECONDS_PER_SECOND;
}

void delivery_rate_add(DeliveryRate *r, const DeliveryTrip *trip)
{
    r->trips[r->count++ % DELIVERY_RATE_TRIPS] = *trip;
    r->shortest = MIN(r->shortest, trip->answered - trip->asked);
    delivery_rate_trip(r, 0)->least = delivery_rate_least(r);
}

/* The rate over all of the time that is looked at; 0: unknown */
static uint64_t delivery_rate_mean(DeliveryRate *r)
{
    const DeliveryTrip *last, *first;
    int64_t elapsed;

    last = delivery_rate_trip(r, 0);
    first = delivery_rate_trip(r, delivery_rate_recent(r) - 1);
    if (last->sent < first->sent) {
        return 0;
    }
    /*
     * The first answer may have been late for reasons of its own, such as a
     * slow disk: then the time between the answers is too short.
     */
    elapsed = MAX(last->answered - first->answered,
                  last->asked - first->asked);
    if (elapsed < DELIVERY_RATE_LEAST_NS) {
        return 0;
    }
    return (double)(last->sent - first->sent) * NANOSECONDS_PER_SECOND /
           elapsed;
}

uint64_t delivery_rate_get(DeliveryRate *r)
{
    uint64_t rate;
    unsigned n;

    if (!r->count) {
        return 0;
    }
    rate = delivery_rate_mean(r);
    n = delivery_rate_recent(r);
    for (unsigned age = 0; age < n; age++) {
        rate = MAX(rate, delivery_rate_trip(r, age)->least);
    }
    return rate;
}
