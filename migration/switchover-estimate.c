/*
 * Migration over a multiplexed connection: may the guest be stopped?
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/timer.h"
#include "switchover-estimate.h"
#include "trace.h"

/* Returns: the time until all data has arrived, ns; INT64_MAX: unknown */
static int64_t switchover_transfer_time(const SwitchoverInputs *in)
{
    uint64_t bytes = in->ram_in_flight + in->ram_dirty + in->disks_dirty;
    double ns;

    if (!bytes) {
        return 0;
    }
    if (!in->rate) {
        return INT64_MAX;
    }
    ns = (double)bytes * NANOSECONDS_PER_SECOND / in->rate;
    return ns < INT64_MAX ? ns : INT64_MAX;
}

uint64_t switchover_ram_limit(uint64_t threshold, uint64_t disk_rate,
                              int64_t limit)
{
    double bytes = threshold +
                   (double)disk_rate * limit / NANOSECONDS_PER_SECOND;

    return bytes < UINT64_MAX ? bytes : UINT64_MAX;
}

bool switchover_fits(const SwitchoverInputs *in)
{
    int64_t time = switchover_transfer_time(in);
    int64_t limit;

    trace_switchover_estimate(in->running, in->disks_synced, in->ram_dirty,
                              in->ram_in_flight, in->disks_dirty, in->rate,
                              in->round_trip, in->flush, time);
    if (!in->disks_synced) {
        return false;
    }
    if (!in->running) {
        return true;
    }
    if (in->round_trip == INT64_MAX) {
        return false;
    }
    /*
     * With the guest stopped there are three consecutive round trips: two to
     * complete a disk, one to agree on who runs the guest.  They cannot be
     * avoided, so they take half of the limit at most.
     */
    limit = in->limit - MIN(3 * in->round_trip, in->limit / 2);
    return time <= limit && in->flush - in->round_trip <= limit;
}
