/*
 * Migration over a multiplexed connection: TLS handshakes at the destination
 *
 * Anyone who reaches the port can begin one.  So their number and their time
 * are limited, and when the source has come, all others end.
 *
 * All functions belong to the main loop.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef MIGRATION_MUX_HANDSHAKES_H
#define MIGRATION_MUX_HANDSHAKES_H

#include "io/channel.h"

/* May one more begin? */
bool mux_handshakes_have_room(void);

/*
 * The handshake on @ioc begins, or has ended.  If it takes longer than
 * migration_mux_setup_ms(), @ioc is shut down, which ends it.
 */
void mux_handshake_begin(QIOChannel *ioc);
void mux_handshake_end(QIOChannel *ioc);

/* Shut down all that have begun. */
void mux_handshakes_shut_down(void);

#endif
