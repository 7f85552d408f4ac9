/*
 * Migration multiplexer: what the parts of the engine share
 *
 *   engine.c   the connection: start, events, the end
 *   hello.c    what both sides state first, and whether it fits
 *   liveness.c time: HELLO, silence, round trips
 *   rx.c       bytes in: where they go, what frames they are
 *   rx-frame.c what each frame means
 *   rx-post.c  payload that goes straight to the memory of a reader
 *   stream.c   one stream: its states and what the application does with it
 *   credit.c   how much the peer may send
 *   tx.c       bytes out: the batch, control frames
 *   tx-offer.c what a stream sends from the memory of the application
 *   sched.c    which stream sends next, and how much
 *
 * Every stream is, for the engine, in one of these conditions:
 *
 *   waiting    ours, OPEN not sent (in MuxEngine.opens)
 *   live       OPEN sent or received; in MuxEngine.live under its id
 *   retired    the id is done with: reset, or both directions finished and
 *              acknowledged.  MuxEngine.retired remembers what the peer may
 *              still send on it; what the stream itself still wants to send
 *              (a RESET, the last FIN_OK) goes out first.
 *
 * A stream is freed when it is retired, or the connection has ended, and the
 * application has released it, and no memory of it is in use by the transport.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef MIGRATION_MUX_ENGINE_INT_H
#define MIGRATION_MUX_ENGINE_INT_H

#include "engine.h"
#include "engine-limits.h"
#include "frame.h"
#include "chunks.h"

/* Control frames that a stream wants to send, in the order of sending. */
typedef enum MuxPending {
    MUX_PENDING_RESET = 1 << 0,
    MUX_PENDING_OPEN_OK = 1 << 1,
    MUX_PENDING_WINDOW = 1 << 2,
    MUX_PENDING_FIN = 1 << 3,
    MUX_PENDING_FIN_OK = 1 << 4,
} MuxPending;

/* Data that the application offers by reference. */
typedef struct MuxTxOffer {
    struct iovec *iov;          /* the application's memory */
    unsigned max;               /* elements allocated */
    unsigned index;             /* first element not wholly committed */
    size_t skip;                /* bytes of it that are committed */
    size_t size;                /* bytes of the whole offer; 0: none */
    size_t committed;           /* bytes that were put in a batch */
    size_t sent;                /* bytes that the transport took */
} MuxTxOffer;

/* Memory of a reader that payload goes to. */
typedef struct MuxRxPost {
    const struct iovec *iov;    /* the reader's */
    unsigned niov;
    size_t filled;              /* bytes that were put there */
} MuxRxPost;

struct MuxStream {
    MuxEngine *engine;
    char *name;
    uint32_t id;
    bool local;                 /* opened by this side */
    MuxStreamState state;
    bool announced;             /* OPEN sent or received */
    bool retired;
    bool released;              /* the application has let go */
    bool urgent;
    bool urgent_counted;        /* in MuxEngine.urgent_active */
    void *opaque;
    char *error;                /* why the stream was aborted */
    MuxCause cause;             /* of @error */

    /* sending */
    uint64_t tx_limit;          /* the peer accepts bytes below this offset */
    uint64_t tx_offset;         /* bytes committed to batches */
    MuxChunks own;              /* copied by mux_stream_tx_copy() */
    size_t own_committed;       /* bytes of @own that are in the batch */
    MuxTxOffer offer;           /* of mux_stream_tx_offer() */
    unsigned batch_refs;        /* pieces of the batch that are ours */
    bool tx_blocked;            /* a writer was refused: owes WRITABLE */
    bool fin_wanted, fin_sent, fin_acked;

    /* receiving */
    uint64_t rx_limit;          /* the peer may send below this */
    uint64_t rx_offset;         /* bytes that DATA headers have announced */
    uint64_t rx_arrived;        /* bytes that came */
    uint64_t rx_consumed;       /* bytes that the application is done with */
    MuxChunks rx;               /* what lies between the two */
    MuxRxPost post;             /* of mux_stream_rx_post() */
    bool rx_lent;               /* a reader may be using it */
    bool aborted;               /* by a RESET of either side: drop it */
    bool fin_received, fin_ok_wanted;

    /* credit for the peer */
    uint64_t window;            /* rx_limit - rx_consumed after a grant */
    uint64_t window_max;
    int64_t measured_at;        /* since then, ns, ... */
    uint64_t measured_from;     /* ... and this much of rx_consumed */
    uint64_t unread;            /* bytes in @rx when the stream retired */

    /* waiting to send; NULL: in no queue */
    unsigned pending;           /* MuxPending */
    uint32_t reset_code;
    char *reset_text;
    GQueue *control_queue;      /* MuxEngine.control or .opens */
    GList control_link;
    GQueue *data_queue;         /* MuxEngine.urgent or .bulk */
    GList data_link;
    unsigned weight;
    uint64_t had;               /* bytes it sent, * MUX_WEIGHT_MAX / weight */

    /* waiting to tell the application */
    unsigned events;            /* bits 1 << MuxEventType */
    GQueue *event_queue;
    GList event_link;
};

/* What the peer may still send on an id that is done with. */
typedef struct MuxRetired {
    uint64_t limit, offset;     /* as MuxStream.rx_limit, .rx_offset */
} MuxRetired;

/* Counters of the streams that one side has opened */
typedef struct MuxStreamCounts {
    unsigned announced;         /* OPEN sent or received, not retired */
    unsigned unanswered;        /* of those, without OPEN_OK or RESET */
    unsigned lifetime;          /* in total */
} MuxStreamCounts;

/* The bytes that go to the transport next; see tx.c. */
typedef struct MuxBatchPiece {
    MuxStream *stream;          /* whose memory; NULL: the batch's own */
    bool own;                   /* in MuxStream.own, else in the offer */
} MuxBatchPiece;

typedef struct MuxBatch {
    struct iovec iov[MUX_BATCH_IOV];
    MuxBatchPiece piece[MUX_BATCH_IOV];
    unsigned niov, first;       /* filled; first one not wholly sent */
    size_t skip;                /* bytes of the first that are sent */
    size_t size;                /* bytes put in, for the limit */
    uint8_t control[MUX_BATCH_CONTROL];
    size_t control_len;
    GSList *copies;             /* of offers that were taken back */
} MuxBatch;

struct MuxEngine {
    MuxConfig config;
    int64_t start;              /* when the engine was made, ns */

    /* the connection */
    bool hello_queued;          /* ours is in a batch or sent */
    bool foreign;               /* the peer speaks another protocol */
    bool hello_fits;            /* the peer's, its first 40 bytes */
    bool hello_done;            /* it is complete */
    MuxHello peer;
    bool ended;
    bool tx_closed;             /* nothing more can or needs to be sent */
    char *error;                /* NULL: none */
    MuxCause cause;             /* of @error */
    bool goaway_wanted;
    uint32_t goaway_code;
    char *goaway_text;

    /* streams */
    GHashTable *live;           /* id to MuxStream */
    GHashTable *retired;        /* id to MuxRetired */
    GHashTable *all;            /* set of MuxStream, to free them */
    uint32_t last_id;           /* of the peer's OPENs */
    MuxStreamCounts local;      /* streams that we opened */
    MuxStreamCounts remote;     /* streams that the peer opened */
    uint32_t next_id;           /* for the next stream of ours */
    unsigned local_open;        /* streams of ours, waiting or live */

    /* what the peer may send besides data */
    uint64_t control_received;  /* frames that count */
    uint64_t control_earned;    /* frames that DATA has allowed */

    /* credit for the peer, beyond the share of every stream */
    uint64_t credit_pool;       /* bytes in all */
    int64_t credit_free;        /* not granted; < 0: old streams are unread */
    bool credit_wanted;         /* a window did not get what it needs */

    /* receiving */
    uint8_t rx_buf[MUX_HELLO_V2_SIZE];  /* HELLO, then the next header */
    size_t rx_buf_len;
    MuxHeader rx_header;        /* of the frame whose payload comes now */
    uint64_t rx_left;           /* payload bytes still to come */
    MuxStream *rx_stream;       /* of that frame; NULL: control, or freed */
    size_t rx_named;            /* payload bytes that rx_want() named */
    size_t rx_named_post;       /* of those, in what its reader has posted */
    bool rx_named_stream;       /* for rx_stream; else rx_control, rx_scratch */
    bool rx_drop;               /* not interested in the payload */
    uint8_t rx_control[MUX_TEXT_MAX];   /* the longest payload but DATA's */
    uint8_t rx_scratch[MUX_SCRATCH_SIZE];
    uint8_t rx_ahead[MUX_READ_AHEAD];   /* HELLO; what follows the payload */

    /* sending */
    MuxBatch batch;
    GQueue control;             /* streams with MuxStream.pending */
    GQueue opens;               /* streams waiting for their OPEN */
    GQueue urgent, bulk;        /* streams with data that credit allows */
    uint64_t bulk_had;          /* MuxStream.had of the last bulk stream */
    uint64_t dry_had;           /* and the least that ran dry in this batch */
    unsigned urgent_run;        /* urgent frames since the last bulk one */
    unsigned urgent_active;     /* live urgent streams that have carried data */
    uint64_t pongs[MUX_UNANSWERED_PINGS];
    unsigned npongs;

    /* round trips */
    bool ping_wanted;
    uint64_t ping_id, pong_id;  /* the last PING sent, the last one answered */
    int64_t ping_sent[MUX_PINGS_OUT];   /* ns, of those between the two */
    int64_t rtt_min;            /* ns; -1: none yet */

    /* the peer's silence */
    int64_t silence;            /* its time limit, ns; 0: none */
    int64_t silent_due;         /* when the next part of it is over, ns */
    unsigned silent_parts;      /* parts that are over */

    /* waiting to tell the application */
    GQueue events;              /* streams with MuxStream.events */
    bool hello_event, ended_event;

    MuxChunkPool pool;
};

/* --- engine.c --- */

const char *mux_local_name(MuxEngine *e);       /* "source", "destination" */
const char *mux_peer_name(MuxEngine *e);

/*
 * The peer broke the protocol or a limit: end the connection with a GOAWAY
 * that carries the same @code and text as our own error.
 */
void G_GNUC_PRINTF(3, 4)
mux_engine_fail(MuxEngine *e, uint32_t code, const char *fmt, ...);

/* End everything now; takes @error, NULL is a clean end.  Sends nothing. */
void mux_engine_end(MuxEngine *e, char *error, MuxCause cause);

/*
 * A MUX_EVENT_... for the application, unless it has let go of @s or the
 * connection is over.
 */
void mux_stream_event(MuxStream *s, MuxEventType type);

/* --- hello.c --- */

/* Encode our HELLO at @out, in the first batch. */
void mux_hello_put(MuxEngine *e, uint8_t out[MUX_HELLO_V2_SIZE]);

/* Bytes of the peer's HELLO that rx_buf must hold for the next check */
size_t mux_hello_want(MuxEngine *e);

/*
 * rx_buf holds more of the peer's HELLO: check it, and end the connection if it
 * is rejected.  Once all of it is accepted, rx_left is the length of the tail.
 */
void mux_hello_arrived(MuxEngine *e, int64_t now);

/* The tail has arrived: the exchange of frames begins. */
void mux_hello_complete(MuxEngine *e, int64_t now);

/* --- liveness.c --- */

/* Something came from the peer. */
void mux_liveness_heard(MuxEngine *e, int64_t now);

/* The PING that was wanted is in a batch; returns what it says. */
uint64_t mux_liveness_ping_sent(MuxEngine *e, int64_t now);

/* PONG(@id) came.  Returns false if it answers no PING. */
bool mux_liveness_pong(MuxEngine *e, uint64_t id, int64_t now);

/* Measure a round trip if the last was a while ago. */
void mux_liveness_measure(MuxEngine *e, int64_t now);

/* --- credit.c --- */

void mux_credit_init(MuxEngine *e);

/* Set the first limit of @s. */
void mux_credit_first(MuxStream *s, int64_t now);

/* Half of the window was used up: worth a WINDOW frame. */
bool mux_credit_due(MuxStream *s);

/* Raise the limit of @s.  Returns false if it is high enough, or final. */
bool mux_credit_grant(MuxStream *s, int64_t now);

/* @s is retired: its credit is free again, what is unread is not. */
void mux_credit_end(MuxStream *s);

/* @bytes of what was received are gone. */
void mux_credit_consumed(MuxStream *s, uint64_t bytes);

/* --- rx-frame.c --- */

/*
 * A frame's header came.  Checks it against the state of its stream; leaves
 * in rx_left, rx_stream and rx_drop where its payload goes.
 */
void mux_frame_begin(MuxEngine *e, int64_t now);

/* The payload of a control frame is in rx_control. */
void mux_frame_complete(MuxEngine *e, int64_t now);

/* --- rx-post.c --- */

/* What comes next goes to @iov, which stays the reader's; @niov 0: nothing */
void mux_rx_post_set(MuxRxPost *p, const struct iovec *iov, unsigned niov);

/* Name memory for the next @want bytes at most.  Returns the elements. */
unsigned mux_rx_post_name(MuxRxPost *p, size_t want,
                          struct iovec *iov, unsigned max);

/* So many bytes are there now. */
void mux_rx_post_filled(MuxRxPost *p, size_t bytes);

/* Put a copy of @data there.  Returns how many bytes there was room for. */
size_t mux_rx_post_copy(MuxRxPost *p, const uint8_t *data, size_t bytes);

/* --- stream.c --- */

MuxStream *mux_stream_new(MuxEngine *e, char *name, uint32_t id, bool local);
void mux_stream_destroy(MuxStream *s);

/* Free @s if nothing needs it any more. */
void mux_stream_maybe_free(MuxStream *s);

/* The exchange on this id is over: @state is FINISHED or RESET. */
void mux_stream_retire(MuxStream *s, MuxStreamState state);

/* Send FIN_OK; @s stays until that is in a batch. */
void mux_stream_answer_fin(MuxStream *s);

/* Retire @s if both directions are finished and acknowledged. */
void mux_stream_check_finished(MuxStream *s);

/* The connection is over, with @why (for streams that were not finished). */
void mux_stream_end(MuxStream *s, const char *why);

/* Payload has been put in @s's memory. */
void mux_stream_rx_arrived(MuxStream *s, size_t bytes);

/* Payload has been put in the memory that its reader has posted. */
void mux_stream_rx_placed(MuxStream *s, size_t bytes);

/* The transport took @bytes of @s's memory. */
void mux_stream_tx_taken(MuxStream *s, bool own, size_t bytes);

/* Tell a writer that waits, if @s takes data now. */
void mux_stream_tx_unblock(MuxStream *s);

/* --- tx.c --- */

/* Queue a MUX_PENDING_... control frame of @s. */
void mux_stream_want_control(MuxStream *s, MuxPending what);

/* Drop @s from every queue of things to send. */
void mux_stream_unqueue(MuxStream *s);

/* --- tx-offer.c --- */

/* Begin an offer; none may be active. */
void mux_tx_offer_set(MuxTxOffer *o, const struct iovec *iov, unsigned niov);

/* End it.  Returns how many bytes are committed. */
size_t mux_tx_offer_withdraw(MuxTxOffer *o);

/* Free what @o has allocated. */
void mux_tx_offer_clear(MuxTxOffer *o);

/* Not all of it was sent. */
bool mux_tx_offer_active(const MuxTxOffer *o);

/* Bytes that are not committed. */
size_t mux_tx_offer_waiting(const MuxTxOffer *o);

/*
 * Commit up to @max of the bytes that wait, from one element.  Returns how
 * many, and in *@base where they are; 0: none wait.
 */
size_t mux_tx_offer_commit(MuxTxOffer *o, size_t max, void **base);

/* --- sched.c --- */

/* What @s has to send or may send has changed. */
void mux_sched_update(MuxStream *s);

/* Bytes that @s has to send and that are not in a batch. */
size_t mux_stream_tx_waiting(MuxStream *s);

/* A new batch is being put together. */
void mux_sched_batch_begin(MuxEngine *e);

/* How much data a batch may have now, bytes. */
size_t mux_sched_batch_max(MuxEngine *e);

/*
 * The stream that sends next, NULL: none in this batch; *@max becomes its
 * share, bytes.
 */
MuxStream *mux_sched_pick(MuxEngine *e, size_t *max);

/* @s has put a frame with @bytes of payload in the batch. */
void mux_sched_sent(MuxStream *s, size_t bytes);

#endif
