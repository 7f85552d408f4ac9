/*
 * Migration over a multiplexed connection: time limits
 *
 * Milliseconds, as the parameters have them; 0: no limit.  See section "Time
 * limits" of docs/interop/migration-mux.rst.
 *
 * All functions may be called from any thread.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef MIGRATION_MUX_LIMITS_H
#define MIGRATION_MUX_LIMITS_H

/* Time to send what is queued when a side ends the connection */
#define MIGRATION_MUX_LINGER_MS 5000
/*
 * The same after success, in the background: what a slow network still holds
 * is the guest at the source, and the confirmation at the destination.
 */
#define MIGRATION_MUX_DONE_MS 60000

/*
 * The source: for each step of the set-up, the TLS handshake, the offer and
 * `main`, the NBD handshakes of all disks, credit for the first data on `main`.
 * Never 0.
 */
uint32_t mux_limit_setup_ms(void);

/*
 * The destination: until a connection has been accepted, TLS included.  Longer
 * than that of HELLO, whose error is more specific.  Never 0.
 */
uint32_t mux_limit_offer_ms(void);

/* While the guest, its writes or the main loop wait for the destination */
uint32_t mux_limit_guest_waits_ms(void);

/* For a step with the guest stopped, in which data is sent for @sending_ms */
uint32_t mux_limit_stop_ms(uint64_t sending_ms);

#endif
