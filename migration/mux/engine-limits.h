/*
 * Migration multiplexer: limits and starting values
 *
 * The bounds that the wire protocol states are norms for both sides; the
 * rest is this implementation's own choice.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef MIGRATION_MUX_ENGINE_LIMITS_H
#define MIGRATION_MUX_ENGINE_LIMITS_H

/* --- norms of the wire protocol --- */

#define MUX_TEXT_MAX            1024    /* text of a RESET or GOAWAY, bytes */
#define MUX_NAME_MAX            255     /* name of a stream, bytes */
#define MUX_SESSION_ID_SIZE     16      /* id of the session, bytes */
#define MUX_HELLO_MAX           4096    /* HELLO with its tail, bytes */
#define MUX_FRAME_MIN           4096    /* least max_frame a peer may state */
#define MUX_FRAME_LIMIT         (1024 * 1024)   /* most that we may state */
#define MUX_UNANSWERED_OPENS    16      /* OPENs in flight, each direction */
#define MUX_UNANSWERED_PINGS    16      /* PINGs in flight, each direction */
#define MUX_LIFETIME_STREAMS    4096    /* streams that one side ever opens */

/*
 * Frames other than DATA, PONG and GOAWAY that one side has sent may be as many
 * as this, and one for each such time since the start, and for each DATA frame
 * of either direction two, and one for each so many bytes of it.  A stream
 * takes 4 from each side at most, besides WINDOW, so those of a connection take
 * half of the first.
 */
#define MUX_CONTROL_BURST       (16 * MUX_LIFETIME_STREAMS)
#define MUX_CONTROL_INTERVAL    (10 * 1000 * 1000LL)    /* ns */
#define MUX_CONTROL_PER_DATA(length)    (2 + (length) / 4096)

/* --- starting values --- */

#define MUX_VERSION             2
#define MUX_MAX_STREAMS         512     /* open at once, each opener */
#define MUX_FRAME_BULK          (256 * 1024)    /* largest frame we accept */
#define MUX_FRAME_URGENT        (64 * 1024)     /* sent beside urgent streams */
#define MUX_WINDOW              (4 * 1024 * 1024)
#define MUX_WINDOW_MAX          (128 * 1024 * 1024)
#define MUX_WINDOW_SUM          (256 * 1024 * 1024)
#define MUX_WINDOW_SHARE        (64 * 1024)     /* that every stream gets */
#define MUX_SILENCE_MIN         (100 * 1000 * 1000LL)   /* ns: PINGs cost */
#define MUX_MEASURE_INTERVAL    (100 * 1000 * 1000LL)   /* ns */
#define MUX_HELLO_TIMEOUT       (30 * 1000 * 1000 * 1000LL)     /* ns */
#define MUX_PINGS_OUT           4       /* of our PINGs without an answer */
#define MUX_URGENT_RUN          8       /* urgent frames before a bulk one */

/* --- memory --- */

#define MUX_BATCH_BYTES         (512 * 1024)    /* handed to one write */
#define MUX_BATCH_IOV           64
#define MUX_BATCH_CONTROL       (16 * 1024)     /* headers, control payload */
#define MUX_OWN_BUFFER          (256 * 1024)    /* per stream, for tx_copy */
#define MUX_CHUNK_SIZE          (64 * 1024)
#define MUX_CHUNKS_SPARE        64      /* unused chunks kept for reuse */
#define MUX_SCRATCH_SIZE        (16 * 1024)     /* where dropped data goes */
#define MUX_READ_AHEAD          (8 * 1024)      /* the next header included */

#endif
