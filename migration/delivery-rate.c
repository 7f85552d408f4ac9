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

void delivery_rate_add(DeliveryRate *r, const DeliveryTrip *trip)
{
    r->trips[r->count++ % DELIVERY_RATE_TRIPS] = *trip;
    r->shortest = MIN(r->shortest, trip->answered - trip->asked);
}

static const DeliveryTrip *delivery_rate_trip(const DeliveryRate *r,
                                              unsigned age)
{
    return &r->trips[(r->count - 1 - age) % DELIVERY_RATE_TRIPS];
}

uint64_t delivery_rate_get(const DeliveryRate *r)
{
    const DeliveryTrip *last, *first = NULL;
    int64_t elapsed;

    if (!r->count) {
        return 0;
    }
    last = delivery_rate_trip(r, 0);
    for (unsigned age = 1; age < MIN(r->count, DELIVERY_RATE_TRIPS); age++) {
        const DeliveryTrip *trip = delivery_rate_trip(r, age);

        if (last->answered - trip->answered > DELIVERY_RATE_SPAN_NS) {
            break;
        }
        first = trip;
    }
    if (!first || last->sent < first->sent) {
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
