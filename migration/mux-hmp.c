/*
 * HMP: disks and streams of a multiplexed migration connection
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/util.h"
#include "guest-disks.h"
#include "mux-hmp.h"

static void print_stream(Monitor *mon, const MigrationStreamInfo *stream)
{
    monitor_printf(mon, "stream %s: %s, sent %" PRIu64 " kbytes, "
                   "received %" PRIu64 " kbytes", stream->name,
                   MigrationStreamState_str(stream->state),
                   stream->sent >> 10, stream->received >> 10);
    if (stream->has_remaining) {
        monitor_printf(mon, ", remaining %" PRIu64 " kbytes",
                       stream->remaining >> 10);
    }
    if (stream->has_total) {
        monitor_printf(mon, ", total %" PRIu64 " kbytes",
                       stream->total >> 10);
    }
    if (stream->has_waiting_for) {
        monitor_printf(mon, ", waiting for the disk of the %s for %" PRIu64
                       " ms", MigrationSide_str(stream->waiting_for),
                       stream->waiting_ms);
    }
    monitor_printf(mon, "\n");
}

void migration_mux_info_print(Monitor *mon, const MigrationInfo *info)
{
    if (info->has_phase) {
        monitor_printf(mon, "phase: %s\n", MigrationPhase_str(info->phase));
    }
    if (info->has_streams) {
        for (MigrationStreamInfoList *entry = info->streams; entry;
             entry = entry->next) {
            print_stream(mon, entry->value);
        }
    }
}

void migration_mux_hmp_add_disks(MigrationChannelList **channels)
{
    MigrationChannel *all = g_new0(MigrationChannel, 1);

    all->channel_type = MIGRATION_CHANNEL_TYPE_NBD;
    all->u.nbd.disk = g_strdup(MIGRATION_GUEST_DISKS);
    QAPI_LIST_PREPEND(*channels, all);
}
