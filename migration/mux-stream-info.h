/*
 * Migration over a multiplexed connection: a stream as QAPI shows it
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef MIGRATION_MUX_STREAM_INFO_H
#define MIGRATION_MUX_STREAM_INFO_H

#include "disk-mirror.h"
#include "qapi/qapi-types-migration.h"

/*
 * Name, state and byte counts of @ioc.  Any thread.
 *
 * Returns: to be freed with qapi_free_MigrationStreamInfo()
 */
MigrationStreamInfo *mux_stream_info_new(QIOChannelMux *ioc);

/* The same for the stream of @d, with its progress.  Main loop. */
MigrationStreamInfo *mux_stream_info_disk(DiskMirror *d);

/* Fill in @phase and @streams, which @info owns from then on. */
void mux_stream_info_report(MigrationInfo *info, MigrationPhase phase,
                            MigrationStreamInfoList *streams);

/* The same when it is over, with what was kept of the @streams; may be NULL */
void mux_stream_info_report_done(MigrationInfo *info,
                                 MigrationStreamInfoList *streams);

#endif
