/*
 * Migration over a multiplexed connection: time limits
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "migration.h"
#include "mux-limits.h"
#include "options.h"

#define MUX_LIMIT_SETUP_MS      30000
#define MUX_LIMIT_OFFER_MS      35000

/* The smaller one of those that are not 0 */
static uint32_t mux_limit_min(uint32_t a, uint32_t b)
{
    return a && b ? MIN(a, b) : a ?: b;
}

uint32_t mux_limit_setup_ms(void)
{
    return mux_limit_min(migrate_channel_mux_timeout(), MUX_LIMIT_SETUP_MS);
}

uint32_t mux_limit_offer_ms(void)
{
    return mux_limit_min(migrate_channel_mux_timeout(), MUX_LIMIT_OFFER_MS);
}

uint32_t mux_limit_guest_waits_ms(void)
{
    return mux_limit_min(migrate_channel_mux_timeout(),
                         migrate_channel_mux_stop_timeout());
}

uint32_t mux_limit_stop_ms(uint64_t sending_ms)
{
    uint64_t ms = migrate_channel_mux_stop_timeout();

    return ms ? MIN(ms + sending_ms, UINT32_MAX) : 0;
}
