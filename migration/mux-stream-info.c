/*
 * Migration over a multiplexed connection: a stream as QAPI shows it
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/clone-visitor.h"
#include "qapi/qapi-visit-migration-stream.h"
#include "qemu/timer.h"
#include "mux-stream-info.h"

static MigrationStreamState mux_stream_qapi_state(MuxStreamState state)
{
    static const MigrationStreamState states[] = {
        [MUX_STREAM_OPENING] = MIGRATION_STREAM_STATE_OPENING,
        [MUX_STREAM_OPEN] = MIGRATION_STREAM_STATE_OPEN,
        [MUX_STREAM_FINISHING] = MIGRATION_STREAM_STATE_FINISHING,
        [MUX_STREAM_FINISHED] = MIGRATION_STREAM_STATE_FINISHED,
        [MUX_STREAM_RESET] = MIGRATION_STREAM_STATE_RESET,
    };

    return states[state];
}

MigrationStreamInfo *mux_stream_info_new(QIOChannelMux *ioc)
{
    MigrationStreamInfo *info = g_new0(MigrationStreamInfo, 1);

    info->name = g_strdup(qio_channel_mux_name(ioc));
    info->state = mux_stream_qapi_state(qio_channel_mux_state(ioc));
    qio_channel_mux_get_bytes(ioc, &info->sent, &info->received);
    return info;
}

static void mux_stream_info_wait(MigrationStreamInfo *info,
                                 const DiskWait *wait)
{
    int64_t destination = MAX(wait->destination, wait->flush);
    int64_t longest = MAX(destination, wait->source);

    if (longest >= NANOSECONDS_PER_SECOND) {
        info->has_waiting_for = info->has_waiting_ms = true;
        info->waiting_for = longest == destination ?
                            MIGRATION_SIDE_DESTINATION : MIGRATION_SIDE_SOURCE;
        info->waiting_ms = longest / SCALE_MS;
    }
}

MigrationStreamInfo *mux_stream_info_disk(DiskMirror *d)
{
    MigrationStreamInfo *info = mux_stream_info_new(disk_mirror_stream(d));
    DiskWait wait = disk_mirror_wait(d);

    disk_mirror_progress(d, &info->remaining, &info->total);
    info->has_total = info->has_remaining = info->total > 0;
    mux_stream_info_wait(info, &wait);
    return info;
}

void mux_stream_info_report(MigrationInfo *info, MigrationPhase phase,
                            MigrationStreamInfoList *streams)
{
    QEMU_BUILD_BUG_ON(MUX_VERSION != 2);
    info->has_mux_version = true;
    info->mux_version = MIGRATION_MUX_VERSION_2;
    info->has_phase = true;
    info->phase = phase;
    info->has_streams = streams;
    info->streams = streams;
}

void mux_stream_info_report_done(MigrationInfo *info,
                                 MigrationStreamInfoList *streams)
{
    if (streams) {
        mux_stream_info_report(info, MIGRATION_PHASE_DONE,
                               QAPI_CLONE(MigrationStreamInfoList, streams));
    }
}
