/*
 * HMP: the streams of a multiplexed migration connection
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef QEMU_MIGRATION_STREAM_INFO_H
#define QEMU_MIGRATION_STREAM_INFO_H

#include "monitor/monitor.h"
#include "qapi/qapi-types-migration.h"

/**
 * migration_stream_info_print:
 * @mon: the monitor to print to
 * @info: what query-migrate returned
 *
 * Print the phase and the streams that @info has; nothing when it has none.
 */
void migration_stream_info_print(Monitor *mon, const MigrationInfo *info);

#endif
