/*
 * Migration over a multiplexed connection: may the guest be stopped?
 *
 * Decides it for migrations with disks, from values that other files measure.
 * Has no state.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef MIGRATION_SWITCHOVER_ESTIMATE_H
#define MIGRATION_SWITCHOVER_ESTIMATE_H

/**
 * SwitchoverInputs:
 * @running: the guest runs; one that does not has no downtime
 * @disks_synced: the destination lacks only writes in flight of each disk
 * @ram_dirty: bytes of RAM that are not sent yet
 * @ram_in_flight: bytes of RAM that were sent, and may not have arrived
 * @disks_dirty: bytes of disks that the destination has not confirmed
 * @rate: bytes per second that arrive, 0: unknown
 * @round_trip: the shortest that was measured, ns; INT64_MAX: none
 * @flush: the time of the slowest disk's last flush, round trip included, ns
 * @limit: the downtime limit, ns
 */
typedef struct SwitchoverInputs {
    bool running;
    bool disks_synced;
    uint64_t ram_dirty;
    uint64_t ram_in_flight;
    uint64_t disks_dirty;
    uint64_t rate;
    int64_t round_trip;
    int64_t flush;
    int64_t limit;
} SwitchoverInputs;

/*
 * RAM has nearly been copied, and switchover_fits() is to be asked, if less
 * than this is left, or nothing at all: @threshold, bytes that QEMU's own
 * measurement of RAM allows, and what RAM will get of @disk_rate, bytes per
 * second that are being sent to disks, within @limit, ns.
 */
uint64_t switchover_ram_limit(uint64_t threshold, uint64_t disk_rate,
                              int64_t limit);

/* Can the guest be stopped, and run at the destination within the limit? */
bool switchover_fits(const SwitchoverInputs *in);

#endif
