/*
 * Migration over a multiplexed connection: what QEMU's migration code calls,
 * whichever side this process is
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/clone-visitor.h"
#include "qapi/error.h"
#include "qapi/qapi-visit-migration-stream.h"
#include "qemu/lockable.h"
#include "migration.h"
#include "mux-failure.h"
#include "mux-migration.h"
#include "migration/mux/channel-mux.h"

Error *migration_mux_failed(MigrationState *s, const Error *err)
{
    MigrationIncomingState *mis = migration_incoming_get_current();
    g_autoptr(MuxFailure) failure = NULL;
    MigrationPhase phase;

    if (migration_mux_destination_phase(mis, &phase)) {
        failure = mux_destination_failed(mis, err);
        return mux_failure_record(s, failure, phase,
                                  MIGRATION_SIDE_DESTINATION);
    }
    if (migration_mux_source_phase(s, &phase)) {
        failure = mux_source_failed(s, err);
        return mux_failure_record(s, failure, phase, MIGRATION_SIDE_SOURCE);
    }
    return error_copy(err);
}

bool migration_mux_hold_failed(const MigrationStatus *status,
                               MigrationStatus now)
{
    return mux_source_hold_failed(status, now) ||
        mux_destination_hold_failed(status);
}

/* --- query --- */

void migration_mux_info(MigrationInfo *info)
{
    MigrationState *s = migrate_get_current();

    if (s->state == MIGRATION_STATUS_NONE) {
        mux_destination_info(migration_incoming_get_current(), info);
    } else {
        mux_source_info(s, info);
    }
    QEMU_LOCK_GUARD(&s->error_mutex);
    if (s->mux_failure) {
        info->failure = QAPI_CLONE(MigrationFailure, s->mux_failure);
    }
}

/* --- the end --- */

void migration_mux_shutdown(void)
{
    mux_source_shutdown(migrate_get_current());
    mux_destination_shutdown(migration_incoming_get_current());
}

bool migration_mux_is_stream(QIOChannel *ioc)
{
    return object_dynamic_cast(OBJECT(ioc), TYPE_QIO_CHANNEL_MUX);
}
