/*
 * Migration over a multiplexed connection: how a failure reads
 *
 * Every error of a migration that is kept for query-migrate, or reported,
 * passes here on its way, on both sides.  It then reads
 *
 *     migration failed in phase 'disks': stream 'nbd-disk0': ...
 *
 * where the code that knows the stream makes the part from the stream on; a
 * failure that is not about one stream is about all of them.  The peer receives
 * only that part, and puts its own phase in front.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "qemu/cutils.h"
#include "migration.h"
#include "mux-migration.h"

#define EXPLAINED   "migration failed in phase '"
#define ALL_STREAMS "all streams: "

static bool migration_mux_names_stream(const char *text)
{
    return g_str_has_prefix(text, "stream '") ||
        g_str_has_prefix(text, ALL_STREAMS);
}

Error *migration_mux_explain(const Error *err)
{
    MigrationState *s = migrate_get_current();
    Error *explained = error_copy(err);
    MigrationPhase phase;

    if (migration_mux_destination_phase(migration_incoming_get_current(),
                                        &phase) ||
        migration_mux_source_phase(s, &phase)) {
        if (qatomic_read(&s->state) == MIGRATION_STATUS_CANCELLING) {
            error_free(explained);
            return NULL;
        }
        error_prepend(&explained, EXPLAINED "%s': %s",
                      MigrationPhase_str(phase),
                      migration_mux_names_stream(error_get_pretty(err)) ? "" :
                      ALL_STREAMS);
    }
    return explained;
}

Error *migration_mux_bare_cause(const Error *explained)
{
    const char *text = error_get_pretty(explained);
    const char *phase, *cause;
    Error *err = NULL;

    if (strstart(text, EXPLAINED, &phase)) {
        cause = strstr(phase, "': ");
        text = cause + strlen("': ");
    }
    /* The kind of frame says that already */
    strstart(text, ALL_STREAMS, &text);
    error_setg(&err, "%s", text);
    return err;
}
