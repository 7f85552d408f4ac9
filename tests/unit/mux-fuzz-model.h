/*
 * A model of two applications that talk over two engines of the migration
 * multiplexer
 *
 * For each stream it knows what has to come of what was done: which bytes
 * arrive, how much may be on the way, how often each thing is reported, and how
 * the stream ends.  What must not happen aborts.
 *
 * Owns the streams of both sides.  Never moves bytes between the engines.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef TESTS_UNIT_MUX_FUZZ_MODEL_H
#define TESTS_UNIT_MUX_FUZZ_MODEL_H

#include "mux-engine-helpers.h"

#define MUX_MODEL_SLOTS 4       /* streams that one side's application holds */

/* One side of a stream, as its application knows it. */
typedef struct MuxModelEnd {
    MuxStream *s;               /* NULL: not announced yet, or released */
    struct MuxModelStream *stream;
    int side;
    int slot;
    MuxStreamState state;       /* when it was last looked at */
    unsigned reported;          /* events that came: 1 << MuxEventType */
    bool owed;                  /* WRITABLE, once it is */
    uint64_t readable;          /* bytes that READABLE reported */
    struct iovec post[2];       /* memory for what comes; NULL: none */
    uint64_t placed;            /* bytes that came in such memory before */
    bool fin, fin_ok, reset, refused, released;
    bool late_offer;            /* offered after fin: need not go out */
    uint64_t written;           /* bytes that the engine took for good */
    uint8_t *offer;             /* NULL: none is out */
    size_t offer_len;
    uint64_t read;
    struct iovec peeked;        /* the first bytes to read, when ... */
    uint8_t peeked_byte;        /* ... they were looked at */
} MuxModelEnd;

typedef struct MuxModelStream {
    uint32_t id;
    MuxModelEnd end[2];
} MuxModelStream;

/* What a transport is using of one engine; niov 0: nothing. */
typedef struct MuxNamed {
    struct iovec iov[64];
    unsigned niov;
} MuxNamed;

typedef struct MuxModel {
    MuxWire link;
    MuxNamed tx[2], rx[2];      /* owned by the code that moves the bytes */
    GHashTable *streams;        /* id to MuxModelStream */
    MuxModelEnd *slot[2][MUX_MODEL_SLOTS];
    bool hello[2], over[2];     /* that event was seen */
    bool corrupted;             /* the wrong bytes may arrive */
    bool disturbed;             /* the connection may have ended */
} MuxModel;

/* @config: of each side. */
void mux_model_init(MuxModel *m, const MuxConfig config[2]);
void mux_model_cleanup(MuxModel *m);

/* All that can be seen of one side's engine is as it should be. */
void mux_model_check(MuxModel *m, int side);

/* Open a stream, if the side has a slot for it. */
void mux_model_open(MuxModel *m, int side);

/* Take all events of one side; returns whether there were any. */
bool mux_model_take_events(MuxModel *m, int side);

/* mux_stream_...(), where it may be called. */
void mux_model_reset(MuxModelEnd *end, uint32_t code);
void mux_model_fin(MuxModelEnd *end);
void mux_model_fin_ok(MuxModelEnd *end);
void mux_model_release(MuxModel *m, MuxModelEnd *end);
void mux_model_withdraw(MuxModel *m, MuxModelEnd *end);

/* Offer @len bytes of the pattern, @piece of them per element. */
void mux_model_offer(MuxModel *m, MuxModelEnd *end, size_t len, size_t piece);

/* Copy up to @len bytes of it. */
void mux_model_copy(MuxModel *m, MuxModelEnd *end, size_t len);

/* Read up to @max bytes; returns how many there were. */
size_t mux_model_consume(MuxModel *m, MuxModelEnd *end, size_t max);

/*
 * Post memory for @len bytes, or take back what is posted.  This voids what was
 * named for the transport, as only the code that reads it may do.
 */
void mux_model_post(MuxModel *m, MuxModelEnd *end, size_t len);

/* Ask whether it takes data. */
void mux_model_writable(MuxModelEnd *end);

/* What is named for reading now stays, until it is consumed. */
void mux_model_peek(MuxModelEnd *end);

#endif
