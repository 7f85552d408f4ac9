/*
 * HMP: disks and streams of a multiplexed migration connection
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef MIGRATION_MUX_HMP_H
#define MIGRATION_MUX_HMP_H

#include "monitor/monitor.h"
#include "qapi/qapi-types-migration.h"

/**
 * migration_mux_info_print:
 * @mon: the monitor to print to
 * @info: what query-migrate returned
 *
 * Print the phase and the streams that @info has; nothing when it has none.
 */
void migration_mux_info_print(Monitor *mon, const MigrationInfo *info);

/**
 * migration_mux_hmp_add_disks:
 * @channels: the channels of a migration, which get one for all disks
 *
 * Implements option -b of migrate and migrate_incoming.
 */
void migration_mux_hmp_add_disks(MigrationChannelList **channels);

#endif
