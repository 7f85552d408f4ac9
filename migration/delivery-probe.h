/*
 * Migration over a multiplexed connection: what has arrived?
 *
 * Once RAM is nearly copied, makes the destination flush the disks repeatedly,
 * and learns from the replies what is still in flight.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef MIGRATION_DELIVERY_PROBE_H
#define MIGRATION_DELIVERY_PROBE_H

#include "disk-mirror.h"
#include "switchover-estimate.h"

typedef struct DeliveryProbe DeliveryProbe;

typedef struct DeliveryProbeSent {
    uint64_t ram, disks;        /* bytes so far, on all streams of each kind */
} DeliveryProbeSent;

/* Any thread. */
typedef DeliveryProbeSent DeliveryProbeSentFunc(void *opaque);

DeliveryProbe *delivery_probe_new(DeliveryProbeSentFunc *sent, void *opaque);
/* delivery_probe_stop() must have been called if it was started. */
void delivery_probe_free(DeliveryProbe *p);

/*
 * Make the guest's writes to @disks (DiskMirror *) wait for the destination,
 * and start to flush.  Main loop.
 */
void delivery_probe_start(DeliveryProbe *p, GPtrArray *disks);

/* A DiskMirror's ops->flushed() was called.  Main loop. */
void delivery_probe_flushed(DeliveryProbe *p, DiskMirror *d);

/* Stop the periodic flushes; idempotent.  With the BQL. */
void delivery_probe_stop(DeliveryProbe *p);

/* End the wait below, for a reason of the caller's.  Any thread. */
void delivery_probe_wake(DeliveryProbe *p);

/*
 * Wait until the destination has replied since the last call, or
 * delivery_probe_wake() was called, but for @ms at most.  One thread.
 */
void delivery_probe_wait(DeliveryProbe *p, int ms);

/* Fill in what was measured.  Any thread. */
void delivery_probe_get(DeliveryProbe *p, SwitchoverInputs *in);

#endif
