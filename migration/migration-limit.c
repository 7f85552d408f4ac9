/*
 * Migration: the limit that RAM and disks share
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/units.h"
#include "migration-limit.h"

/*
 * In a round, each disk draws once, and RAM as much as all disks.  The quantum
 * is chosen so that a round takes this long, within the bounds below.  That
 * limits how long a user waits for its turn, and how long it takes until the
 * others get what a user does not need.
 */
#define MIGRATION_LIMIT_ROUND_MS 100
#define MIGRATION_LIMIT_QUANTUM_MIN (4 * KiB)
#define MIGRATION_LIMIT_QUANTUM_MAX (1 * MiB)

static struct {
    SharedLimit shared;
    unsigned disks;             /* 0: the limit is lifted */
    /* Migration thread */
    SharedLimitUser ram;
    uint64_t transferred;
} limit;

static void __attribute__((constructor)) migration_limit_init(void)
{
    shared_limit_init(&limit.shared);
}

SharedLimit *migration_limit(void)
{
    return &limit.shared;
}

static unsigned migration_limit_quantum(uint64_t rate)
{
    uint64_t round = rate / 1000 * MIGRATION_LIMIT_ROUND_MS;

    return CLAMP(round / (2 * limit.disks), MIGRATION_LIMIT_QUANTUM_MIN,
                 MIGRATION_LIMIT_QUANTUM_MAX);
}

void migration_limit_begin(uint64_t rate, unsigned disks)
{
    limit.disks = disks;
    limit.transferred = 0;
    shared_limit_user_init(&limit.ram, &limit.shared, disks);
    migration_limit_set(rate);
}

void migration_limit_set(uint64_t rate)
{
    if (limit.disks) {
        shared_limit_set(&limit.shared, rate, migration_limit_quantum(rate),
                         get_clock());
    }
}

void migration_limit_lift(void)
{
    migration_limit_set(0);
    limit.disks = 0;
}

bool migration_limit_ram(uint64_t transferred, bool *exceeded)
{
    shared_limit_spend(&limit.ram, transferred - limit.transferred);
    limit.transferred = transferred;
    if (!shared_limit_applies(&limit.ram)) {
        return false;
    }
    *exceeded = shared_limit_delay(&limit.ram, get_clock());
    return true;
}

int migration_limit_ram_wait_ms(int ms)
{
    int64_t delay;

    if (!shared_limit_applies(&limit.ram)) {
        return ms;
    }
    delay = shared_limit_delay(&limit.ram, get_clock());
    return MIN(ms, DIV_ROUND_UP(delay, SCALE_MS));
}
