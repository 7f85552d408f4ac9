/*
 * Migration multiplexer: sessions and their streams as QIOChannels
 *
 * A MuxSession owns one transport channel (socket, TLS, command) and the
 * engine on it.  Each of its streams is a QIOChannelMux, which behaves like a
 * QIOChannelSocket to every caller.  Whether a call on a stream blocks
 * follows from qio_channel_set_blocking() on that stream alone; streams block
 * at first.
 *
 * Lifetime: a session lives while there is a reference to it or to one of its
 * streams, and in any case until its connection has ended.  Dropping
 * the references does not end the connection: close or yank the session.
 *
 * Threads: all functions may be called from any thread unless said otherwise.
 * Callbacks run in the main loop, with the BQL, never from within a call;
 * except MuxSessionOps.tick.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef MIGRATION_MUX_CHANNEL_MUX_H
#define MIGRATION_MUX_CHANNEL_MUX_H

#include "io/channel.h"
#include "qom/object.h"
#include "migration/mux/failure.h"

#define TYPE_QIO_CHANNEL_MUX "qio-channel-mux"
OBJECT_DECLARE_SIMPLE_TYPE(QIOChannelMux, QIO_CHANNEL_MUX)

typedef struct MuxSession MuxSession;

typedef struct MuxSessionOps {
    /* The peer's HELLO fits ours.  Optional. */
    void (*ready)(MuxSession *session, void *opaque);

    /*
     * The peer opened @ioc: call qio_channel_mux_accept() or _abort() on it,
     * now or later.  The callee takes a reference if it keeps @ioc; a stream
     * without a reference is refused.  Optional: without it all are refused.
     */
    void (*opened)(MuxSession *session, QIOChannelMux *ioc, void *opaque);

    /*
     * The connection has ended, once, after all else.  @failure is NULL if
     * all streams had ended before.  Optional.
     */
    void (*ended)(MuxSession *session, const MuxFailure *failure,
                  void *opaque);

    /*
     * Called every MUX_TICK_MS while the connection lasts, in the receive
     * thread, so that time limits are enforced even while the main loop is
     * blocked.  Must neither block nor take the BQL.  @now and @heard, the time
     * of the last byte from the peer, are get_clock() times.  Optional.
     */
    void (*tick)(MuxSession *session, int64_t now, int64_t heard,
                 void *opaque);
} MuxSessionOps;

#define MUX_TICK_MS 250

/*
 * The state of @ioc has changed: the peer has accepted it, or sent FIN, FIN_OK
 * or RESET.  Called once for several changes, not for the end of the
 * connection.
 */
typedef void QIOChannelMuxChanged(QIOChannelMux *ioc, void *opaque);

/**
 * mux_session_new:
 * @transport: the connection, its TLS handshake (if any) done
 * @role: which side of the migration this is
 * @ops: the callbacks, must stay valid
 * @opaque: passed to them
 *
 * Takes a reference to @transport, makes it non-blocking, starts the threads
 * and sends HELLO.  An error of @transport ends the session and is passed to
 * the callback.  The caller yanks @transport.
 *
 * Returns: the session, to be released with mux_session_unref()
 */
MuxSession *mux_session_new(QIOChannel *transport, MuxRole role,
                            const MuxSessionOps *ops, void *opaque);

MuxSession *mux_session_ref(MuxSession *session);
void mux_session_unref(MuxSession *session);

/*
 * Replace the callbacks.  None of them may have a tick.  Main loop
 * only, but not in a callback of @session.
 */
void mux_session_set_ops(MuxSession *session, const MuxSessionOps *ops,
                         void *opaque);

/*
 * No callback comes after this returns.  Main loop only, and without a lock
 * that MuxSessionOps.tick takes.
 */
void mux_session_detach(MuxSession *session);

/*
 * Cut the connection now: every stream and waiter sees an error.  Quick and
 * idempotent.  A YankFn: @opaque is the session.
 */
void mux_session_yank(void *opaque);

/*
 * End the connection when no byte has come from the peer for @timeout_ms, from
 * now on; 0, as at first: never.
 */
void mux_session_set_silence(MuxSession *session, uint32_t timeout_ms);

/* Send PING, unless one is still unanswered. */
void mux_session_ping(MuxSession *session);

/*
 * Close the connection: send what is queued, then GOAWAY (with the text of
 * @why; NULL: code 0), close the transport (TLS bye first) and end the threads;
 * after @timeout_ms at the latest.  Quick: a thread of the session does it.
 * With @why, streams that are released from now on are reset, not finished.
 * The session must have been detached or its opaque must outlive it.
 */
void mux_session_close(MuxSession *session, const MuxFailure *why,
                       int timeout_ms);

/*
 * Like mux_session_close(), but wait until the transport is closed: at most
 * @timeout_ms, plus the time that a command may take to exit.  For a process
 * that is about to exit.
 */
void mux_session_close_wait(MuxSession *session, const MuxFailure *why,
                            int timeout_ms);

/* Is the transport closed, after mux_session_close() or mux_session_yank()? */
bool mux_session_closed(MuxSession *session);

/*
 * Opens a stream.  I/O may start at once (it waits for the peer's OPEN_OK).
 *
 * Returns: a new reference, or NULL with @failp set
 */
QIOChannelMux *mux_session_open(MuxSession *session, const char *name,
                                MuxFailure **failp);

/*
 * Write all @len bytes of @buf at once, or fail: then the peer does not receive
 * all of them.  Never blocks.  A write that has failed before on any stream of
 * the connection makes this one fail, too.
 */
bool qio_channel_mux_write_whole(QIOChannelMux *ioc, const void *buf,
                                 size_t len, MuxFailure **failp);

/* The stream's name, valid as long as @ioc */
const char *qio_channel_mux_name(QIOChannelMux *ioc);

MuxStreamState qio_channel_mux_state(QIOChannelMux *ioc);

/*
 * Call @changed from now on; NULL: no function.  Main loop only.  A change is
 * reported to the function that is set when the main loop handles it.
 */
void qio_channel_mux_set_changed(QIOChannelMux *ioc,
                                 QIOChannelMuxChanged *changed, void *opaque);

void qio_channel_mux_accept(QIOChannelMux *ioc);

/*
 * Abort both directions: the peer receives the text of @why (without the names
 * of files), local calls fail with it, unread data is dropped.
 */
void qio_channel_mux_abort(QIOChannelMux *ioc, const MuxFailure *why);

/* qio_channel_mux_abort() all streams of @session but @except (NULL: none). */
void mux_session_abort_streams(MuxSession *session, QIOChannelMux *except,
                               const MuxFailure *why);

/*
 * Returns: why the connection has ended, or else the failure of the stream that
 * was opened first of those that have one; to be freed; NULL: no failure
 */
MuxFailure *mux_session_find_failure(MuxSession *session);

/*
 * Answer the peer's FIN, now or when it comes: what it sent is dealt with.  Has
 * no effect once the stream was aborted, the connection has ended, or the
 * session is being closed with a failure.
 */
void qio_channel_mux_fin_ok(QIOChannelMux *ioc);

/* Whether the peer's FIN_OK came */
bool qio_channel_mux_fin_acked(QIOChannelMux *ioc);

/*
 * Returns: why the stream has failed, to be freed by the caller; NULL if it has
 * not
 */
MuxFailure *qio_channel_mux_get_failure(QIOChannelMux *ioc);

/*
 * Bound what may wait here to be read to @bytes.  Call it before
 * qio_channel_mux_accept() to bound the first window, too.
 */
void qio_channel_mux_set_window_max(QIOChannelMux *ioc, uint64_t bytes);

/*
 * Report the stream as readable only when @bytes (1 or more), or the end, have
 * arrived: for a caller that reads @bytes at once and must not wait.
 */
void qio_channel_mux_set_read_least(QIOChannelMux *ioc, size_t bytes);

/*
 * From now on writes do not wait: what is written is kept here, until
 * qio_channel_mux_write_held_back() writes it.  For a caller that must not wait
 * for the peer, and has little to write.
 */
void qio_channel_mux_hold_back(QIOChannelMux *ioc);

/* Returns: 0, or -1 with @errp set */
int qio_channel_mux_write_held_back(QIOChannelMux *ioc, Error **errp);

/* Urgent streams go before the others. */
void qio_channel_mux_set_urgent(QIOChannelMux *ioc, bool urgent);

/*
 * Streams that are not urgent share the connection by @weight: 1, as at first,
 * to MUX_WEIGHT_MAX, which stands for more, too.
 */
void qio_channel_mux_set_weight(QIOChannelMux *ioc, unsigned weight);

/* Is there something to be read?  Any thread. */
bool qio_channel_mux_has_input(QIOChannelMux *ioc);

/* Payload bytes written to and read from @ioc so far; takes no lock. */
void qio_channel_mux_get_bytes(QIOChannelMux *ioc, uint64_t *sent,
                               uint64_t *received);

#endif
