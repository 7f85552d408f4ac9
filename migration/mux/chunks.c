/*
 * Migration multiplexer: a byte queue made of fixed-size chunks
 *
 * Chunks form a list, oldest first.  Those before @fill are full, those after
 * it are empty: they were allocated for room that has been named and not yet
 * been used.  A chunk goes back to the pool when all of it was consumed, the
 * one being filled also when the queue runs empty and no room is named.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "engine-limits.h"
#include "chunks.h"

struct MuxChunk {
    MuxChunk *next;
    size_t start;               /* first byte that is not consumed */
    size_t end;                 /* first byte that is not stored */
    uint8_t data[MUX_CHUNK_SIZE];
};

static MuxChunk *chunk_get(MuxChunkPool *pool)
{
    MuxChunk *c = pool->spare;

    if (c) {
        pool->spare = c->next;
        pool->nspare--;
    } else {
        c = g_new(MuxChunk, 1);
    }
    c->next = NULL;
    c->start = c->end = 0;
    pool->nused++;
    return c;
}

static void chunk_put(MuxChunkPool *pool, MuxChunk *c)
{
    pool->nused--;
    if (pool->nspare >= MUX_CHUNKS_SPARE) {
        g_free(c);
        return;
    }
    c->next = pool->spare;
    pool->spare = c;
    pool->nspare++;
}

void mux_chunk_pool_clear(MuxChunkPool *pool)
{
    while (pool->spare) {
        MuxChunk *c = pool->spare;

        pool->spare = c->next;
        g_free(c);
    }
    pool->nspare = 0;
}

void mux_chunks_init(MuxChunks *q, MuxChunkPool *pool)
{
    *q = (MuxChunks) { .pool = pool };
}

void mux_chunks_clear(MuxChunks *q)
{
    while (q->head) {
        MuxChunk *c = q->head;

        q->head = c->next;
        chunk_put(q->pool, c);
    }
    mux_chunks_init(q, q->pool);
}

static void chunks_grow(MuxChunks *q)
{
    MuxChunk *c = chunk_get(q->pool);

    if (q->tail) {
        q->tail->next = c;
    } else {
        q->head = c;
    }
    q->tail = c;
    if (!q->fill) {
        q->fill = c;
    }
}

unsigned mux_chunks_reserve(MuxChunks *q, size_t want,
                            struct iovec *iov, unsigned max)
{
    MuxChunk *c = q->fill;
    unsigned n = 0;

    while (want && n < max) {
        size_t room;

        if (!c) {
            chunks_grow(q);
            c = q->tail;
        }
        room = MIN(want, MUX_CHUNK_SIZE - c->end);
        iov[n].iov_base = c->data + c->end;
        iov[n].iov_len = room;
        n++;
        want -= room;
        c = c->next;
    }
    q->named = n > 0;
    return n;
}

/* Give back what holds nothing, unless room in it is named. */
static void chunks_trim(MuxChunks *q)
{
    if (q->size == 0 && !q->named) {
        mux_chunks_clear(q);
        return;
    }
    /* ends: a chunk with bytes or with room is left */
    while (q->head->start == MUX_CHUNK_SIZE) {
        MuxChunk *c = q->head;

        q->head = c->next;
        chunk_put(q->pool, c);
    }
}

void mux_chunks_commit(MuxChunks *q, size_t bytes)
{
    q->named = false;
    q->size += bytes;
    while (bytes) {
        size_t n = MIN(bytes, MUX_CHUNK_SIZE - q->fill->end);

        q->fill->end += n;
        bytes -= n;
        if (q->fill->end == MUX_CHUNK_SIZE) {
            q->fill = q->fill->next;
        }
    }
    chunks_trim(q);
}

void mux_chunks_append(MuxChunks *q, const void *data, size_t bytes)
{
    const uint8_t *p = data;

    while (bytes) {
        struct iovec room;

        mux_chunks_reserve(q, bytes, &room, 1);
        memcpy(room.iov_base, p, room.iov_len);
        mux_chunks_commit(q, room.iov_len);
        p += room.iov_len;
        bytes -= room.iov_len;
    }
}

unsigned mux_chunks_peek(MuxChunks *q, size_t skip, size_t bytes,
                         struct iovec *iov, unsigned max)
{
    unsigned n = 0;

    for (MuxChunk *c = q->head; c && bytes && n < max; c = c->next) {
        size_t have = c->end - c->start;
        size_t len;

        if (skip >= have) {
            skip -= have;
            continue;
        }
        len = MIN(bytes, have - skip);
        iov[n].iov_base = c->data + c->start + skip;
        iov[n].iov_len = len;
        n++;
        bytes -= len;
        skip = 0;
    }
    return n;
}

void mux_chunks_consume(MuxChunks *q, size_t bytes)
{
    g_assert(bytes <= q->size);
    q->size -= bytes;
    for (MuxChunk *c = q->head; bytes; c = c->next) {
        size_t n = MIN(bytes, c->end - c->start);

        c->start += n;
        bytes -= n;
    }
    chunks_trim(q);
}
