/*
 * Migration over a multiplexed connection: the failure of a migration
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "qemu/lockable.h"
#include "migration.h"
#include "mux-failure.h"

static MigrationFailureCode mux_failure_code(uint32_t code)
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

static MigrationFailure *mux_failure_to_qapi(const MuxFailure *f,
                                             MigrationPhase phase,
                                             MigrationSide side)
{
    MigrationFailure *failure = g_new0(MigrationFailure, 1);

    failure->phase = phase;
    failure->side = (side == MIGRATION_SIDE_SOURCE) != f->cause.by_peer ?
                    MIGRATION_SIDE_SOURCE : MIGRATION_SIDE_DESTINATION;
    failure->stream = g_strdup(f->stream);
    failure->code = mux_failure_code(f->cause.code);
    failure->text = g_strdup(f->text);
    return failure;
}

Error *mux_failure_record(MigrationState *s, const MuxFailure *f,
                          MigrationPhase phase, MigrationSide side)
{
    g_autofree char *text = mux_failure_text(f);
    Error *err = NULL;

    if (qatomic_read(&s->state) == MIGRATION_STATUS_CANCELLING) {
        return NULL;
    }
    qapi_free_MigrationFailure(s->mux_failure);
    s->mux_failure = mux_failure_to_qapi(f, phase, side);
    error_setg(&err, "migration failed in phase '%s': %s",
               MigrationPhase_str(phase), text);
    return err;
}

void mux_failure_set(MigrationState *s, const MuxFailure *f,
                     MigrationPhase phase, MigrationSide side)
{
    QEMU_LOCK_GUARD(&s->error_mutex);
    if (!s->error) {
        s->error = mux_failure_record(s, f, phase, side);
    }
}
