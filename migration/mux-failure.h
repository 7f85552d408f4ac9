/*
 * Migration over a multiplexed connection: the failure of a migration
 *
 * Every failure passes here when it is recorded, on both sides: as the value
 * that query-migrate reports, and as a text for people,
 *
 *     migration failed in phase 'disks': stream 'nbd-disk0': ...
 *
 * All functions may be called from any thread.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef MIGRATION_MUX_FAILURE_RECORD_H
#define MIGRATION_MUX_FAILURE_RECORD_H

#include "migration/mux/failure.h"
#include "qapi/qapi-types-migration.h"

typedef struct MigrationState MigrationState;

/*
 * Record @f, which @side (this one) has met in @phase; with s->error_mutex
 * held.
 *
 * Returns: the text; NULL if this is how the migration was cancelled
 */
Error *mux_failure_record(MigrationState *s, const MuxFailure *f,
                          MigrationPhase phase, MigrationSide side);

/* The same, unless an error has been recorded: like migrate_set_error() */
void mux_failure_set(MigrationState *s, const MuxFailure *f,
                     MigrationPhase phase, MigrationSide side);

#endif
