/*
 * Relay for tests of the migration multiplexer
 *
 * Stands between the two sides of one connection, in a thread of its own, and
 * commits the fault that it is given: see mux-relay-fault.h.  It owns both
 * sockets; it never looks into what streams carry, nor into TLS (faults at an
 * offset work there, those at a frame never happen).
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef MUX_RELAY_H
#define MUX_RELAY_H

typedef struct MuxRelay MuxRelay;

/*
 * Something happened, in the relay's thread:
 *   connected
 *   frame DIR OFFSET TYPE LENGTH [STREAM]   is about to be copied
 *   fired FAULT
 *   closed [CAUSE]
 */
typedef void MuxRelayEvent(void *opaque, const char *event);

/*
 * Listen at @listen.  When the one connection that is accepted there comes,
 * connect to @connect, and copy both ways.
 *
 * @listen, @connect: "unix:PATH" or "HOST:PORT"; listening to port 0 takes
 * any
 * @event: may be NULL
 *
 * Returns: the relay; NULL with an error
 */
MuxRelay *mux_relay_new(const char *listen, const char *connect,
                        MuxRelayEvent *event, void *opaque, Error **errp);

/* Close both connections, if they are still there, and end the thread. */
void mux_relay_free(MuxRelay *r);

/* Returns: where it listens, for socket_parse(); to be freed */
char *mux_relay_address(MuxRelay *r);

/* Returns whether @fault could be understood; it may be added at any time. */
bool mux_relay_add_fault(MuxRelay *r, const char *fault, Error **errp);

/* Returns whether @n faults have happened within @timeout_ms. */
bool mux_relay_wait_fired(MuxRelay *r, unsigned n, unsigned timeout_ms);

/* Wait until both connections are closed. */
void mux_relay_wait_closed(MuxRelay *r);

#endif
