/*
 * Migration over a multiplexed connection: what QEMU's migration code calls,
 * whichever side this process is
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "migration.h"
#include "mux-migration.h"
#include "migration/mux/channel-mux.h"

void migration_mux_info(MigrationInfo *info)
{
    MigrationState *s = migrate_get_current();

    if (s->state == MIGRATION_STATUS_NONE) {
        mux_destination_info(migration_incoming_get_current(), info);
    } else {
        mux_source_info(s, info);
    }
}

bool migration_mux_hold_failed(const MigrationStatus *status,
                               MigrationStatus now)
{
    return mux_source_hold_failed(status, now) ||
        mux_destination_hold_failed(status);
}

void migration_mux_shutdown(void)
{
    mux_source_shutdown(migrate_get_current());
    mux_destination_shutdown(migration_incoming_get_current());
}

bool migration_mux_is_stream(QIOChannel *ioc)
{
    return object_dynamic_cast(OBJECT(ioc), TYPE_QIO_CHANNEL_MUX);
}

bool migration_mux_find_channel(MigrationIncomingState *mis, QIOChannel *ioc,
                                bool *is_main)
{
    if (!migration_mux_is_stream(ioc)) {
        return false;
    }
    *is_main = mux_destination_is_main(mis, ioc);
    return true;
}
