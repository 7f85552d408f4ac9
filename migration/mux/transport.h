/*
 * Migration multiplexer: the connection beneath a session
 *
 * Wraps the QIOChannel (socket, TLS, command ...) that carries a session, so
 * that one thread may read while another one writes, each of them polls
 * outside of every lock and can be woken, and TLS gets whole records.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef MIGRATION_MUX_TRANSPORT_H
#define MIGRATION_MUX_TRANSPORT_H

#include "io/channel.h"

typedef struct MuxTransport MuxTransport;

/*
 * Takes a reference to @ioc and makes it non-blocking.
 *
 * Returns: the transport; when @ioc cannot be non-blocking or be waited for,
 * @errp is set too and the transport is only good for being closed.
 */
MuxTransport *mux_transport_new(QIOChannel *ioc, Error **errp);
/* After end_waits and close.  No other call may be in progress. */
void mux_transport_free(MuxTransport *t);

/*
 * One reader and one writer at a time.  Neither blocks.
 *
 * Returns: bytes, 0 at the end of a read, QIO_CHANNEL_ERR_BLOCK, or -1 with
 * @errp set.  After a write that took less than all, the same bytes have to be
 * offered again.
 */
ssize_t mux_transport_readv(MuxTransport *t, const struct iovec *iov,
                            unsigned niov, Error **errp);
ssize_t mux_transport_writev(MuxTransport *t, const struct iovec *iov,
                             unsigned niov, Error **errp);

/*
 * Wait until the transport can be read (written), is woken, or @deadline
 * (nanoseconds of get_clock(), INT64_MAX: none) has come.  May return early.
 * The reader (writer) only.
 */
void mux_transport_wait_in(MuxTransport *t, int64_t deadline);
void mux_transport_wait_out(MuxTransport *t, int64_t deadline);
/* Ends that wait, or the next one when there is none now.  Any thread. */
void mux_transport_wake_in(MuxTransport *t);
void mux_transport_wake_out(MuxTransport *t);

/* Prefer a short queue in the kernel to throughput.  Any thread. */
void mux_transport_set_urgent(MuxTransport *t, bool urgent);

/*
 * Tell the peer that no more bytes follow, by TLS and by the socket, waiting
 * for the former until @deadline.  The writer only.
 */
void mux_transport_finish(MuxTransport *t, int64_t deadline);
/* Cut both directions where the transport can.  Any thread, before close. */
void mux_transport_shutdown(MuxTransport *t);
/*
 * No thread waits any more: gives the descriptors for that back, and wake does
 * nothing from now on.  Not while wake is being called.
 */
void mux_transport_end_waits(MuxTransport *t);
/*
 * A command at the other end of a pipe has 2 s to exit, then it is terminated.
 * No other call may be in progress, only wake and free may follow.
 */
void mux_transport_close(MuxTransport *t);

/* Upper bound of mux_transport_close(), unless the command cannot be killed */
#define MUX_COMMAND_END_NS (3 * NANOSECONDS_PER_SECOND)

#endif
