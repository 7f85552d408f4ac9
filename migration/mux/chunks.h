/*
 * Migration multiplexer: a byte queue made of fixed-size chunks
 *
 * Bytes keep their address from the moment room for them was named until they
 * are consumed, so that a transport or a reader may use them without a lock.
 * Memory grows with what is stored and is given back as it is consumed.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef MIGRATION_MUX_CHUNKS_H
#define MIGRATION_MUX_CHUNKS_H

typedef struct MuxChunk MuxChunk;

/* Chunks at rest, shared by the queues of one engine. */
typedef struct MuxChunkPool {
    MuxChunk *spare;
    unsigned nspare;            /* at most MUX_CHUNKS_SPARE */
    unsigned nused;             /* chunks that the queues hold now */
} MuxChunkPool;

typedef struct MuxChunks {
    MuxChunkPool *pool;
    MuxChunk *head;             /* holds the oldest byte */
    MuxChunk *tail;             /* the last one allocated */
    MuxChunk *fill;             /* takes the next byte; NULL: none has room */
    size_t size;                /* bytes stored and not consumed */
    bool named;                 /* room is named: the tail must stay */
} MuxChunks;

void mux_chunk_pool_clear(MuxChunkPool *pool);

void mux_chunks_init(MuxChunks *q, MuxChunkPool *pool);
/* Gives all memory back, whatever refers to it; the queue is empty again. */
void mux_chunks_clear(MuxChunks *q);

/*
 * Name room for up to @want more bytes in at most @max elements of @iov.
 * Returns the number of elements.  The room stays valid until
 * mux_chunks_commit(), which says how many bytes have been put there
 * (perhaps 0).  A second call before that names the same room again.
 */
unsigned mux_chunks_reserve(MuxChunks *q, size_t want,
                            struct iovec *iov, unsigned max);
void mux_chunks_commit(MuxChunks *q, size_t bytes);

/* Append a copy of the @bytes at @data. */
void mux_chunks_append(MuxChunks *q, const void *data, size_t bytes);

/*
 * Up to @max pieces of what is stored, at most @bytes, leaving out the first
 * @skip bytes.  Returns the number of elements filled.
 */
unsigned mux_chunks_peek(MuxChunks *q, size_t skip, size_t bytes,
                         struct iovec *iov, unsigned max);

/* Forget the first @bytes. */
void mux_chunks_consume(MuxChunks *q, size_t bytes);

#endif
