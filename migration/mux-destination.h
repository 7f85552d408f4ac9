/*
 * Migration over a multiplexed connection: from the candidates to the
 * destination
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef MIGRATION_MUX_DESTINATION_H
#define MIGRATION_MUX_DESTINATION_H

#include "mux-control.h"

typedef struct MigrationIncomingState MigrationIncomingState;

/*
 * The offer that came on @control was accepted: go on with it.  Takes
 * over the three references; @main is the stream, not yet answered, or NULL if
 * the source has not opened it yet.  Main loop.
 */
void mux_destination_begin(MigrationIncomingState *mis, MuxSession *session,
                           MuxControl *control, QIOChannelMux *main);

/* The only possible connection has failed with @err.  Main loop. */
void mux_destination_no_source(MigrationIncomingState *mis, const Error *err);

#endif
