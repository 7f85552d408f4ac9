/*
 * Migration: the connection that the source is waiting for
 *
 * To connect takes time, as does a TLS handshake, and neither of them can be
 * called back.  So that a migration can be cancelled meanwhile, and another
 * one started, what comes of the attempt is then dropped.  A handshake can be
 * yanked; that of a multiplexed migration is given up after
 * migration_mux_setup_ms().
 *
 * All functions belong to the main loop.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef MIGRATION_OUTGOING_CONNECT_H
#define MIGRATION_OUTGOING_CONNECT_H

#include "io/channel.h"

typedef struct MigrationState MigrationState;

/* Wait for @ioc, which somebody else keeps alive until then. */
void outgoing_connect_begin(MigrationState *s, QIOChannel *ioc);

/*
 * @ioc is connected, or failed.
 *
 * Returns: false if nobody waits for it any more
 */
bool outgoing_connect_end(MigrationState *s, QIOChannel *ioc);

/*
 * Wait no longer: the migration, which is being cancelled, ends now.
 *
 * Returns: false if no connection is being waited for
 */
bool outgoing_connect_cancel(MigrationState *s);

#endif
