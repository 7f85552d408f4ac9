/*
 * Migration multiplexer: protocol engine
 *
 * Owns the wire protocol (docs/interop/migration-mux.rst): frames, the stream
 * table, credit, the order of sending, the handshake and the limits.  It never
 * reads a clock, a socket or a lock: bytes come in, bytes go out, the time is
 * an argument.
 *
 * Threads: none.  The caller serialises all calls on one engine and on its
 * streams (migration/mux/session-lock.c has one lock for that).  Memory that
 * mux_engine_rx_want() or mux_engine_tx_want() named stays valid without the
 * lock until the matching ..._done() call.
 *
 * Times are nanoseconds of a monotonic clock of the caller's choice.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef MIGRATION_MUX_ENGINE_H
#define MIGRATION_MUX_ENGINE_H

#include "engine-limits.h"

typedef struct MuxEngine MuxEngine;
typedef struct MuxStream MuxStream;

typedef enum MuxRole { MUX_ROLE_SOURCE = 1, MUX_ROLE_DESTINATION = 2 } MuxRole;

/* Why a stream or the connection was ended; any other code is allowed. */
typedef enum MuxCode {
    MUX_CODE_OK = 0,            /* GOAWAY only: a clean end */
    MUX_CODE_PROTOCOL = 1,      /* the peer broke the protocol */
    MUX_CODE_INCOMPATIBLE = 2,  /* the two HELLOs do not fit */
    MUX_CODE_TIMEOUT = 3,       /* the peer took too long */
    MUX_CODE_LIMIT = 4,         /* the peer exceeded a stated limit */
    MUX_CODE_REFUSED = 5,       /* RESET: this stream is not wanted */
    MUX_CODE_ABORTED = 6,       /* the application gave up */
} MuxCode;

#define MUX_WEIGHT_MAX  64

/* What one engine offers and allows; mux_config_default() fills it. */
typedef struct MuxConfig {
    MuxRole role;
    uint16_t version_min, version_max;
    uint32_t max_frame;         /* largest DATA payload accepted, bytes */
    uint32_t max_streams;       /* streams open at once */
    uint64_t window;            /* first receive window of a stream, bytes */
    uint64_t window_max;        /* to which it may grow */
    uint64_t window_sum;        /* all of them together */
    int64_t hello_timeout;      /* ns, 0: none */
    uint8_t session[MUX_SESSION_ID_SIZE];   /* a source's own; else zeroes */
} MuxConfig;

typedef enum MuxEventType {
    MUX_EVENT_HELLO,            /* the peer's HELLO fits ours */
    MUX_EVENT_OPEN,             /* peer opens @stream: accept or reset it */
    MUX_EVENT_OPEN_OK,          /* peer accepted @stream */
    MUX_EVENT_READABLE,         /* @stream has new data to read */
    MUX_EVENT_WRITABLE,         /* @stream takes data, or its offer went */
    MUX_EVENT_FIN,              /* peer sends no more on @stream */
    MUX_EVENT_FIN_OK,           /* peer has dealt with all we sent on @stream */
    MUX_EVENT_RESET,            /* peer aborted @stream: mux_stream_error() */
    MUX_EVENT_ENDED,            /* connection is over: mux_engine_error() */
} MuxEventType;

typedef struct MuxEvent { MuxEventType type; MuxStream *stream; } MuxEvent;

/* Fill @config with this implementation's offers for @role. */
void mux_config_default(MuxConfig *config, MuxRole role);

/*
 * A new engine; nothing goes out before the first mux_engine_tx_want().
 * @now starts the time that the peer has for its HELLO.
 */
MuxEngine *mux_engine_new(const MuxConfig *config, int64_t now);

/*
 * Frees the streams too, released or not.  No memory that the engine named
 * may still be in use.
 */
void mux_engine_free(MuxEngine *e);

/* --- bytes in: where the next ones go, how many arrived --- */

/*
 * Name the memory for the next bytes: payload goes straight to what its reader
 * has posted or into its stream's buffer, with the following header where
 * possible, so that a large DATA frame costs one readv, and many small frames
 * one for all of them.
 * @max is at least 3.
 *
 * Returns the number of elements filled; 0: wants none, the connection has
 * ended.  The memory stays valid until mux_engine_rx_done(), whatever is done
 * with the streams meanwhile.  When nothing could be read, call this again
 * without it: what was named before is void then.
 */
unsigned mux_engine_rx_want(MuxEngine *e, struct iovec *iov, unsigned max);

/*
 * @bytes were put there, in order; take in what they say.  What comes after
 * the connection's end is dropped.
 */
void mux_engine_rx_done(MuxEngine *e, size_t bytes, int64_t now);

/*
 * The transport has no more bytes.  A clean end if all streams are finished,
 * else an error.
 */
void mux_engine_rx_eof(MuxEngine *e);

/*
 * The transport failed with @text, in either direction: nothing more is sent
 * or received.  What streams have buffered stays readable.
 */
void mux_engine_transport_error(MuxEngine *e, const char *text);

/* --- bytes out: which ones, how many went --- */

/*
 * Name the bytes to send now, headers and the callers' memory, as one batch of
 * about 512 KiB at most.
 *
 * Returns the number of elements filled; 0: nothing to send.  A batch once
 * named is committed: the same bytes are named again until
 * mux_engine_tx_done() has covered them (TLS needs that).  After the
 * connection's end this goes on until the GOAWAY is out.
 */
unsigned mux_engine_tx_want(MuxEngine *e, struct iovec *iov, unsigned max,
                            int64_t now);

/* The first @bytes of what was named have been sent. */
void mux_engine_tx_done(MuxEngine *e, size_t bytes);

/* Returns whether mux_engine_tx_want() would name nothing. */
bool mux_engine_tx_idle(MuxEngine *e);

/* Is any stream not yet finished, on both sides, nor reset? */
bool mux_engine_has_streams(MuxEngine *e);

/* --- time and events --- */

/* When mux_engine_timeout() is due; INT64_MAX: not at all. */
int64_t mux_engine_deadline(MuxEngine *e);
void mux_engine_timeout(MuxEngine *e, int64_t now);

/*
 * Limit the peer's silence to @ns, from @now on; 0, as at first: no limit.
 * After each third of it without a byte from the peer a PING goes out; after
 * all of it the connection ends, with MUX_CODE_TIMEOUT.  A peer that reads
 * nothing but answers is not silent, and a slow transport does not count, so
 * @ns has to exceed what the buffers below may hold back.  100 ms is the least.
 */
void mux_engine_set_silence(MuxEngine *e, int64_t ns, int64_t now);

/*
 * Fill *@event with the next one; returns whether there was one.  A stream's
 * events are not repeated: one READABLE stands for all that came since the
 * last.  ENDED comes last, and stands for the end of all streams that were
 * not finished and of what was still owed: an offer that goes out later has no
 * WRITABLE any more.
 */
bool mux_engine_next_event(MuxEngine *e, MuxEvent *event);

/*
 * The id of the session, MUX_SESSION_ID_SIZE bytes: a source's own, at a
 * destination the peer's, from MUX_EVENT_HELLO on.  Lives as long as the
 * engine.  It proves nothing about the peer.
 */
const uint8_t *mux_engine_session(MuxEngine *e);

/* Measure a round trip, unless a PING waits for its answer. */
void mux_engine_ping(MuxEngine *e);
/* The shortest round trip seen, ns; -1: none yet. */
int64_t mux_engine_rtt(MuxEngine *e);

/*
 * End the connection: GOAWAY(@code, @text) goes out after the control frames
 * that are queued; data that is in no batch is lost.  MUX_CODE_OK is a clean
 * end.  @text may be NULL, and is cut at 1 KiB.
 */
void mux_engine_goaway(MuxEngine *e, uint32_t code, const char *text);

/* True at once after a GOAWAY of either side, an error or an end of file. */
bool mux_engine_ended(MuxEngine *e);

/* The connection has ended because the peer speaks another protocol. */
bool mux_engine_peer_is_foreign(MuxEngine *e);

/* The cause of an error, as a value beside its text */
typedef struct MuxCause {
    uint32_t code;      /* MUX_CODE_*; MUX_CODE_OK: the transport failed */
    bool by_peer;       /* the peer has sent it, in GOAWAY or RESET */
} MuxCause;

/*
 * What ended the connection, naming the side that erred; NULL: it has not
 * ended, or cleanly.  Lives as long as the engine.
 */
const char *mux_engine_error(MuxEngine *e);
MuxCause mux_engine_cause(MuxEngine *e);

/* --- streams: opening and ending --- */

/*
 * Open a stream; its OPEN goes out when the peer's limits allow.  Data may be
 * offered at once and goes out after OPEN_OK.
 *
 * Returns NULL when the name is ill-formed, a limit is reached or the
 * connection has ended, with the reason in *@why, which the engine owns.
 */
MuxStream *mux_engine_open(MuxEngine *e, const char *name, const char **why);

/* Answer MUX_EVENT_OPEN with OPEN_OK. */
void mux_stream_accept(MuxStream *s);

/*
 * Abort both directions; the peer sees @code and @text (NULL: none; cut at
 * 1 KiB).  What is buffered in @s is neither sent nor readable any more, as
 * after a RESET of the peer.  No event follows.
 */
void mux_stream_reset(MuxStream *s, uint32_t code, const char *text);

/*
 * No more data after what is offered or copied now: FIN.  What is offered
 * later need not go out any more.  Idempotent.
 */
void mux_stream_fin(MuxStream *s);

/*
 * Answer the peer's FIN, now or when it comes: all that it sent, and will send
 * before it, has been dealt with.  Idempotent.
 */
void mux_stream_fin_ok(MuxStream *s);

/*
 * The application lets go: FIN is queued if missing, what still arrives is
 * dropped (credit is granted on), the peer's FIN is answered, an unanswered
 * OPEN of the peer is refused.  What was copied is still sent; an offer has
 * to be complete or taken back before.  The engine frees @s when the exchange
 * is over; it must not be used any more.
 */
void mux_stream_release(MuxStream *s);

/* --- streams: received data --- */

/*
 * Up to @max pieces of what can be read.  Returns how many.  Their memory
 * stays as it is until the next mux_stream_rx_consume() or the release, even if
 * @s is reset or the connection ends.  One reader at a time.
 */
unsigned mux_stream_rx_iov(MuxStream *s, struct iovec *iov, unsigned max);
/*
 * The first @bytes are done with: their credit goes back to the peer.  0 after
 * a look that takes nothing.
 */
void mux_stream_rx_consume(MuxStream *s, size_t bytes);
/*
 * Post memory for what comes next: while nothing is pending on @s, payload goes
 * straight there, and counts as read.  @iov and the memory that it refers to
 * must stay valid until mux_stream_rx_unpost(), which must not be called while
 * the transport uses what mux_engine_rx_want() named.  Only the thread that
 * reads the transport may call either.  No READABLE event follows for such
 * payload.
 */
void mux_stream_rx_post(MuxStream *s, const struct iovec *iov, unsigned niov);
size_t mux_stream_rx_posted(MuxStream *s);      /* bytes that are there */
/*
 * Returns how many bytes have come there; 0 if @s was aborted meanwhile.
 */
size_t mux_stream_rx_unpost(MuxStream *s);
/* Part of a frame's payload has come, and the rest comes next. */
bool mux_stream_rx_continues(MuxStream *s);
/*
 * The window grows to @bytes at most, or 64 KiB if that is more: where
 * data that waits here delays the reader.  Before mux_stream_accept() it
 * limits the first window, too.
 */
void mux_stream_set_window_max(MuxStream *s, uint64_t bytes);
size_t mux_stream_rx_pending(MuxStream *s);     /* bytes to read */
bool mux_stream_rx_fin(MuxStream *s);   /* FIN came (data may be pending) */

/* --- streams: data to send --- */

/*
 * Offer data by reference: @iov is copied, the memory behind it is not and
 * has to stay until all was sent (a WRITABLE event) or the offer is taken
 * back.  One offer at a time.
 */
void mux_stream_tx_offer(MuxStream *s, const struct iovec *iov, unsigned niov);

/* Returns how many bytes of the offer the transport has taken. */
size_t mux_stream_tx_sent(MuxStream *s);

/*
 * Take the offer back; bytes of it that are committed to a batch are copied.
 * Unless all of it was sent, not while the transport is using what
 * mux_engine_tx_want() named.
 *
 * Returns how many bytes of the offer are taken: gone, or copied.
 */
size_t mux_stream_tx_withdraw(MuxStream *s);

/*
 * Copy what fits in the stream's own bounded buffer and its credit (a
 * non-blocking writer's way).  Returns how many bytes; when that is not all,
 * a WRITABLE event follows.  0 while an offer is out.
 */
size_t mux_stream_tx_copy(MuxStream *s, const struct iovec *iov,
                          unsigned niov);

/*
 * Returns whether @s is open, with credit, its own buffer empty and no offer
 * out.  When not, a WRITABLE event follows once it is.
 */
bool mux_stream_writable(MuxStream *s);

/* Urgent streams go before the others (bulk keeps 1 quantum in 9). */
void mux_stream_set_urgent(MuxStream *s, bool urgent);

/*
 * Streams that are not urgent share what there is by @weight, from 1, as at
 * first, to MUX_WEIGHT_MAX.
 */
void mux_stream_set_weight(MuxStream *s, unsigned weight);

/* --- streams: queries --- */

/* What is allowed in each: see stream.c.  The last two are final. */
typedef enum MuxStreamState {
    MUX_STREAM_OPENING,         /* the OPEN is not answered */
    MUX_STREAM_OPEN,
    MUX_STREAM_FINISHING,       /* FIN wanted here, or received */
    MUX_STREAM_FINISHED,        /* both directions finished and dealt with */
    MUX_STREAM_RESET,           /* aborted, or the connection ended first */
} MuxStreamState;

MuxStreamState mux_stream_state(MuxStream *s);
bool mux_stream_asked(MuxStream *s);    /* the peer's OPEN has no answer */
bool mux_stream_fin_acked(MuxStream *s);        /* FIN_OK came */
const char *mux_stream_name(MuxStream *s);
/* Why @s is in MUX_STREAM_RESET, else NULL.  Lives as long as @s. */
const char *mux_stream_error(MuxStream *s);
MuxCause mux_stream_cause(MuxStream *s);
uint32_t mux_stream_id(MuxStream *s);
uint64_t mux_stream_bytes_sent(MuxStream *s);   /* payload handed out */
uint64_t mux_stream_bytes_received(MuxStream *s);       /* payload arrived */
void mux_stream_set_opaque(MuxStream *s, void *opaque);
void *mux_stream_opaque(MuxStream *s);

#endif
