/*
 * Migration: the connection that the source is waiting for
 *
 * Connecting and the TLS handshake take time, and cannot be interrupted.  When
 * the migration is cancelled meanwhile, the result of the attempt is dropped,
 * so that another migration can be started.  A handshake can be yanked; that of
 * a multiplexed migration has a time limit, mux_limit_setup_ms().
 *
 * All functions belong to the main loop.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef MIGRATION_OUTGOING_CONNECT_H
#define MIGRATION_OUTGOING_CONNECT_H

#include "io/channel.h"

typedef struct MigrationState MigrationState;

/* Wait for @ioc, which has to live until then. */
void outgoing_connect_begin(MigrationState *s, QIOChannel *ioc);

/*
 * @ioc is connected, or failed.
 *
 * Returns: false if it is no longer waited for
 */
bool outgoing_connect_end(MigrationState *s, QIOChannel *ioc);

/*
 * Wait no longer: the migration, which is being cancelled, ends now.
 *
 * Returns: false if no connection is being waited for
 */
bool outgoing_connect_cancel(MigrationState *s);

#endif
