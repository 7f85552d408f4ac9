/*
 * Migration over a multiplexed connection: what QEMU's migration code calls,
 * whichever side this process is
 *
 * Every failure of a migration passes here when it is recorded, on both sides.
 * Its text for people then reads
 *
 *     migration failed in phase 'disks': stream 'nbd-disk0': ...
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/clone-visitor.h"
#include "qapi/error.h"
#include "qapi/qapi-visit-migration-stream.h"
#include "qemu/lockable.h"
#include "migration.h"
#include "mux-migration.h"
#include "migration/mux/channel-mux.h"

/* --- failure --- */

static MigrationFailureCode migration_mux_code(uint32_t code)
{
    static const MigrationFailureCode codes[] = {
        [MUX_CODE_OK] = MIGRATION_FAILURE_CODE_CONNECTION,
        [MUX_CODE_PROTOCOL] = MIGRATION_FAILURE_CODE_PROTOCOL,
        [MUX_CODE_INCOMPATIBLE] = MIGRATION_FAILURE_CODE_INCOMPATIBLE,
        [MUX_CODE_TIMEOUT] = MIGRATION_FAILURE_CODE_TIMEOUT,
        [MUX_CODE_LIMIT] = MIGRATION_FAILURE_CODE_LIMIT,
        [MUX_CODE_REFUSED] = MIGRATION_FAILURE_CODE_REFUSED,
        [MUX_CODE_ABORTED] = MIGRATION_FAILURE_CODE_ABORTED,
    };

    return code < G_N_ELEMENTS(codes) ? codes[code] :
                                        MIGRATION_FAILURE_CODE_ABORTED;
}

static MigrationFailure *migration_mux_qapi_failure(const MuxFailure *f,
                                                    MigrationPhase phase,
                                                    bool source)
{
    MigrationFailure *failure = g_new0(MigrationFailure, 1);

    failure->phase = phase;
    failure->side = source != f->cause.by_peer ? MIGRATION_SIDE_SOURCE :
                                                 MIGRATION_SIDE_DESTINATION;
    failure->stream = g_strdup(f->stream);
    failure->code = migration_mux_code(f->cause.code);
    failure->text = g_strdup(f->text);
    return failure;
}

/*
 * Keep @f as a value, with s->error_mutex held.
 *
 * Returns: its text for people; NULL if this is how the migration was cancelled
 */
static Error *migration_mux_record(MigrationState *s, const MuxFailure *f,
                                   MigrationPhase phase, bool source)
{
    g_autofree char *text = mux_failure_text(f);
    Error *err = NULL;

    if (qatomic_read(&s->state) == MIGRATION_STATUS_CANCELLING) {
        return NULL;
    }
    qapi_free_MigrationFailure(s->mux_failure);
    s->mux_failure = migration_mux_qapi_failure(f, phase, source);
    error_setg(&err, "migration failed in phase '%s': %s",
               MigrationPhase_str(phase), text);
    return err;
}

/* Is a multiplexed migration in progress?  If so, where, and which side? */
static bool migration_mux_phase(MigrationState *s, MigrationPhase *phase,
                                bool *source)
{
    *source = !migration_mux_destination_phase(migration_incoming_get_current(),
                                               phase);
    return !*source || migration_mux_source_phase(s, phase);
}

Error *migration_mux_failed(MigrationState *s, const Error *err)
{
    g_autoptr(MuxFailure) failure = NULL;
    MigrationPhase phase;
    bool source;

    if (!migration_mux_phase(s, &phase, &source)) {
        return error_copy(err);
    }
    failure = source ? mux_source_failed(s, err) :
        mux_destination_failed(migration_incoming_get_current(), err);
    return migration_mux_record(s, failure, phase, source);
}

void migration_mux_set_failure(MigrationState *s, const MuxFailure *f)
{
    MigrationPhase phase;
    bool source;

    QEMU_LOCK_GUARD(&s->error_mutex);
    if (!s->error && migration_mux_phase(s, &phase, &source)) {
        s->error = migration_mux_record(s, f, phase, source);
    }
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
