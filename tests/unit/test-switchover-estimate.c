/*
 * Unit tests for the decision to stop the guest
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/timer.h"
#include "qemu/units.h"
#include "migration/switchover-estimate.h"

#define MS SCALE_MS
#define RATE (100 * MiB)        /* bytes per second: 1 MiB takes 10 ms */
/* Of 300 ms, 1 ms of round trip leaves 297 ms */
#define INPUTS \
    .running = true, .disks_synced = true, .rate = RATE, \
    .round_trip = MS, .flush = MS, .limit = 300 * MS

static const struct {
    const char *name;
    SwitchoverInputs in;
    bool fits;
} rows[] = {
    { "nothing-left", { INPUTS }, true },
    { "disks-not-synced", { INPUTS, .disks_synced = false }, false },
    { "guest-stopped", { .disks_synced = true, .ram_dirty = GiB,
                         .round_trip = INT64_MAX }, true },
    { "guest-stopped-disks-not-synced", { .round_trip = INT64_MAX }, false },
    { "nothing-measured", { INPUTS, .round_trip = INT64_MAX }, false },
    { "rate-unknown", { INPUTS, .rate = 0, .ram_dirty = 1 }, false },
    { "rate-unknown-nothing-left", { INPUTS, .rate = 0 }, true },
    { "ram-fits", { INPUTS, .ram_dirty = 29 * MiB }, true },
    { "ram-too-much", { INPUTS, .ram_dirty = 30 * MiB }, false },
    { "in-flight-fits", { INPUTS, .ram_in_flight = 29 * MiB }, true },
    { "in-flight-too-much", { INPUTS, .ram_in_flight = 30 * MiB }, false },
    { "disks-fit", { INPUTS, .disks_dirty = 29 * MiB }, true },
    { "disks-too-much", { INPUTS, .disks_dirty = 30 * MiB }, false },
    { "sum-fits", { INPUTS, .ram_dirty = 10 * MiB, .ram_in_flight = 10 * MiB,
                    .disks_dirty = 9 * MiB }, true },
    { "sum-too-much", { INPUTS, .ram_dirty = 10 * MiB,
                        .ram_in_flight = 10 * MiB, .disks_dirty = 10 * MiB },
      false },
    { "flush-at-limit", { INPUTS, .flush = 298 * MS }, true },
    { "flush-too-slow", { INPUTS, .flush = 298 * MS + 1 }, false },
    /* Three round trips leave 240 ms. */
    { "round-trips-fit", { INPUTS, .round_trip = 20 * MS, .flush = 20 * MS,
                           .ram_dirty = 24 * MiB }, true },
    { "round-trips-too-long", { INPUTS, .round_trip = 20 * MS,
                                .flush = 20 * MS, .ram_dirty = 25 * MiB },
      false },
    /* Three round trips are more than half of the limit: half remains. */
    { "long-round-trip", { INPUTS, .round_trip = 100 * MS, .flush = 250 * MS,
                           .ram_dirty = 15 * MiB }, true },
    { "long-round-trip-flush", { INPUTS, .round_trip = 100 * MS,
                                 .flush = 250 * MS + 1 }, false },
    { "long-round-trip-ram", { INPUTS, .round_trip = 100 * MS,
                               .flush = 100 * MS, .ram_dirty = 16 * MiB },
      false },
    { "no-limit-left", { INPUTS, .limit = 0, .flush = MS }, true },
    { "no-limit-left-data", { INPUTS, .limit = 0, .ram_dirty = MiB }, false },
    { "far-too-much", { INPUTS, .ram_dirty = UINT64_MAX / 2, .rate = 1 },
      false },
};

static void test_row(const void *opaque)
{
    unsigned i = GPOINTER_TO_UINT(opaque);

    g_assert(switchover_fits(&rows[i].in) == rows[i].fits);
}

static void test_ram_limit(void)
{
    static const struct {
        uint64_t threshold, disk_rate;
        int64_t limit;
        uint64_t bytes;
    } limits[] = {
        { 0, 0, 300 * MS, 0 },
        { 7 * MiB, 0, 300 * MS, 7 * MiB },
        { 0, RATE, 300 * MS, 30 * MiB },
        { 7 * MiB, RATE, 300 * MS, 37 * MiB },
        { 7 * MiB, RATE, 0, 7 * MiB },
        { UINT64_MAX, RATE, 300 * MS, UINT64_MAX },
        { 0, UINT64_MAX, INT64_MAX, UINT64_MAX },
    };

    for (unsigned i = 0; i < ARRAY_SIZE(limits); i++) {
        g_assert_cmpuint(switchover_ram_limit(limits[i].threshold,
                                              limits[i].disk_rate,
                                              limits[i].limit), ==,
                         limits[i].bytes);
    }
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/switchover-estimate/ram-limit", test_ram_limit);
    for (unsigned i = 0; i < ARRAY_SIZE(rows); i++) {
        g_autofree char *path = g_strconcat("/switchover-estimate/",
                                            rows[i].name, NULL);

        g_test_add_data_func(path, GUINT_TO_POINTER(i), test_row);
    }
    return g_test_run();
}
