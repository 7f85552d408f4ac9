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
#include "migration/mux/engine.h"

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
     * The state of @ioc has changed: accepted by the peer, FIN, FIN_OK,
     * reset.  Several changes may be told at once.  Optional.
     */
    void (*changed)(MuxSession *session, QIOChannelMux *ioc, void *opaque);

    /*
     * The connection is over, once, after all else.  @err is NULL when it
     * ended in good order.  Optional.
     */
    void (*ended)(MuxSession *session, const Error *err, void *opaque);

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

/**
 * mux_session_new:
 * @transport: the connection, its TLS handshake (if any) done
 * @role: which side of the migration this is
 * @ops: the callbacks, must stay valid
 * @opaque: passed to them
 *
 * Takes a reference to @transport, makes it non-blocking, starts the threads
 * and sends HELLO.  An error of @transport ends the session and is passed to
 * the callback.  @transport's yank stays the caller's business.
 *
 * Returns: the session, to be released with mux_session_unref()
 */
MuxSession *mux_session_new(QIOChannel *transport, MuxRole role,
                            const MuxSessionOps *ops, void *opaque);

MuxSession *mux_session_ref(MuxSession *session);
void mux_session_unref(MuxSession *session);

/*
 * Replace the callbacks.  Neither @ops nor those before have a tick.  Main loop
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
 * A time limit for a step: unless this is called again before that, end the
 * connection after @timeout_ms (0: no limit), with mux_timeout_text() of
 * @awaited as the reason for both sides.  A thread of the session does it, even
 * if the main loop is blocked or the BQL is held.
 */
void mux_session_set_deadline(MuxSession *session, uint32_t timeout_ms,
                              const char *awaited);

/* Returns: "timed out after N s waiting for @awaited", to be freed */
char *mux_timeout_text(uint32_t timeout_ms, const char *awaited);

/* Set @errp to that text, with the name of the stream before it. */
void mux_stream_timed_out(const char *stream, uint32_t timeout_ms,
                          const char *awaited, Error **errp);

/*
 * End in good order: what is queued is flushed, GOAWAY sent (@why nullable:
 * code 0, else its text), the transport closed (TLS bye first), threads ended;
 * after @timeout_ms at the latest.  Quick: a thread of the session does it.
 * With @why, streams that are let go of from now on are reset, not finished.
 * The session must have been detached or its opaque must outlive it.
 */
void mux_session_close(MuxSession *session, const Error *why, int timeout_ms);

/*
 * Like mux_session_close(), but wait until the transport is closed: at most
 * @timeout_ms, plus the time that a command may take to exit.  For a process
 * that is about to exit.
 */
void mux_session_close_wait(MuxSession *session, const Error *why,
                            int timeout_ms);

/* Is the transport closed, after mux_session_close() or mux_session_yank()? */
bool mux_session_closed(MuxSession *session);

/*
 * Opens a stream.  I/O may start at once (it waits for the peer's OPEN_OK).
 *
 * Returns: a new reference, or NULL with @errp set
 */
QIOChannelMux *mux_session_open(MuxSession *session, const char *name,
                                Error **errp);

/*
 * Write all @len bytes of @buf at once, or fail: then the peer does not receive
 * all of them.  Never blocks.  A write that has failed before on any stream of
 * the connection makes this one fail, too.
 */
bool qio_channel_mux_write_whole(QIOChannelMux *ioc, const void *buf,
                                 size_t len, Error **errp);

/* The stream's name, valid as long as @ioc */
const char *qio_channel_mux_name(QIOChannelMux *ioc);

/* The session, valid as long as @ioc */
MuxSession *qio_channel_mux_session(QIOChannelMux *ioc);
MuxStreamState qio_channel_mux_state(QIOChannelMux *ioc);
void qio_channel_mux_accept(QIOChannelMux *ioc);

/*
 * Abort both directions: the peer sees the text of @why (names of files are
 * left out), local waiters see it too, unread data is dropped.  Both sides put
 * the stream's name in front, so if @why begins with it, that is left out.
 */
void qio_channel_mux_abort(QIOChannelMux *ioc, const Error *why);

/* Answer the peer's FIN, now or when it comes: what it sent is dealt with. */
void qio_channel_mux_fin_ok(QIOChannelMux *ioc);

/* Whether the peer's FIN_OK came */
bool qio_channel_mux_fin_acked(QIOChannelMux *ioc);

/*
 * Returns: the error that the stream ended with (the peer's text included),
 * to be freed by the caller, or NULL
 */
Error *qio_channel_mux_get_error(QIOChannelMux *ioc);

/*
 * Bound what may wait here to be read to @bytes.  Call it before
 * qio_channel_mux_accept() to bound the first window, too.
 */
void qio_channel_mux_set_window_max(QIOChannelMux *ioc, uint64_t bytes);

/*
 * Until @bytes (1 or more) have arrived, or the end, there is nothing to read:
 * for a caller that reads so much at once, and must not wait for it.
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
