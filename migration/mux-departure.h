/*
 * Migration over a multiplexed connection: the source after its success
 *
 * The guest has been handed over.  In the background, flush the data in flight,
 * and wait for the destination to confirm that it has taken over the guest.
 * Warn if the connection is lost before that.
 *
 * All functions belong to the main loop.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef MIGRATION_MUX_DEPARTURE_H
#define MIGRATION_MUX_DEPARTURE_H

#include "mux-control.h"

typedef struct MuxDeparture MuxDeparture;

/*
 * `committed` was sent on @control: close @session without an error.  Takes
 * over @control, and a reference to @session.
 */
MuxDeparture *mux_departure_new(MuxSession *session, MuxControl *control);

/* Let go of it, NULL is ignored; the connection is still closed well. */
void mux_departure_free(MuxDeparture *d);

/* The same, but wait until the connection is closed: the process exits. */
void mux_departure_wait(MuxDeparture *d);

#endif
