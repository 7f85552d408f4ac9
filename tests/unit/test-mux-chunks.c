/*
 * Tests of the migration multiplexer: chunk queue
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "migration/mux/engine-limits.h"
#include "migration/mux/chunks.h"

static void test_chunks_keep_order(void)
{
    MuxChunkPool pool = { 0 };
    MuxChunks q;
    uint8_t buf[1000];
    uint64_t in = 0, out = 0;
    g_autoptr(GRand) rand = g_rand_new_with_seed(1);

    mux_chunks_init(&q, &pool);
    while (out < 4 * 1000 * 1000) {
        size_t n = g_rand_int_range(rand, 0, sizeof(buf));
        struct iovec iov[4];
        unsigned niov;

        for (size_t i = 0; i < n; i++) {
            buf[i] = (in + i) % 251;
        }
        mux_chunks_append(&q, buf, n);
        in += n;
        niov = mux_chunks_peek(&q, 0, g_rand_int_range(rand, 0, 1050),
                               iov, 4);
        for (unsigned i = 0; i < niov; i++) {
            for (size_t k = 0; k < iov[i].iov_len; k++, out++) {
                g_assert_cmpuint(((uint8_t *)iov[i].iov_base)[k], ==,
                                 out % 251);
            }
            mux_chunks_consume(&q, iov[i].iov_len);
        }
        g_assert_cmpuint(q.size, ==, in - out);
        g_assert_cmpuint(pool.nused, <=, q.size / MUX_CHUNK_SIZE + 2);
    }
    mux_chunks_clear(&q);
    mux_chunk_pool_clear(&pool);
}

static void test_chunks_room_survives_consuming(void)
{
    MuxChunkPool pool = { 0 };
    MuxChunks q;
    struct iovec room[8], iov[8];
    unsigned n;

    mux_chunks_init(&q, &pool);
    mux_chunks_append(&q, "abc", 3);
    n = mux_chunks_reserve(&q, 3 * MUX_CHUNK_SIZE, room, 8);
    g_assert_cmpuint(n, ==, 4);
    mux_chunks_consume(&q, 3);
    g_assert_cmpuint(pool.nused, ==, 4);
    for (unsigned i = 0; i < n; i++) {
        memset(room[i].iov_base, 'a' + i, room[i].iov_len);
    }
    mux_chunks_commit(&q, MUX_CHUNK_SIZE);
    g_assert_cmpuint(mux_chunks_peek(&q, 0, SIZE_MAX, iov, 8), ==, 2);
    g_assert_cmpint(*(char *)iov[0].iov_base, ==, 'a');
    g_assert_cmpint(*(char *)iov[1].iov_base, ==, 'b');
    g_assert_cmpuint(iov[1].iov_len, ==, 3);
    mux_chunks_consume(&q, MUX_CHUNK_SIZE);
    g_assert_cmpuint(pool.nused, ==, 0);
    mux_chunk_pool_clear(&pool);
}

static void test_chunks_peek_skips(void)
{
    MuxChunkPool pool = { 0 };
    g_autofree uint8_t *data = g_malloc0(2 * MUX_CHUNK_SIZE);
    MuxChunks q;
    struct iovec iov[4];

    mux_chunks_init(&q, &pool);
    mux_chunks_append(&q, data, 2 * MUX_CHUNK_SIZE);
    g_assert_cmpuint(mux_chunks_peek(&q, MUX_CHUNK_SIZE - 1, 5, iov, 4),
                     ==, 2);
    g_assert_cmpuint(iov[0].iov_len, ==, 1);
    g_assert_cmpuint(iov[1].iov_len, ==, 4);
    g_assert_cmpuint(mux_chunks_peek(&q, MUX_CHUNK_SIZE + 1, SIZE_MAX, iov, 4),
                     ==, 1);
    g_assert_cmpuint(iov[0].iov_len, ==, MUX_CHUNK_SIZE - 1);
    g_assert_cmpuint(mux_chunks_peek(&q, 2 * MUX_CHUNK_SIZE, 5, iov, 4),
                     ==, 0);
    g_assert_cmpuint(mux_chunks_peek(&q, 0, SIZE_MAX, iov, 1), ==, 1);
    mux_chunks_clear(&q);
    mux_chunk_pool_clear(&pool);
}

/* Room that was named and not used is given back, and some of it is kept. */
static void test_chunks_are_kept_for_reuse(void)
{
    struct iovec room[MUX_CHUNKS_SPARE + 4];
    MuxChunkPool pool = { 0 };
    MuxChunks q;

    mux_chunks_init(&q, &pool);
    g_assert_cmpuint(mux_chunks_reserve(&q, 0, room, 1), ==, 0);
    mux_chunks_consume(&q, 0);
    for (int i = 0; i < 2; i++) {
        g_assert_cmpuint(mux_chunks_reserve(&q, SIZE_MAX, room,
                                            MUX_CHUNKS_SPARE + 4),
                         ==, MUX_CHUNKS_SPARE + 4);
        g_assert_cmpuint(pool.nused, ==, MUX_CHUNKS_SPARE + 4);
        g_assert_cmpuint(pool.nspare, ==, 0);
        mux_chunks_commit(&q, 0);
        g_assert_cmpuint(pool.nused, ==, 0);
        g_assert_cmpuint(pool.nspare, ==, MUX_CHUNKS_SPARE);
    }
    mux_chunk_pool_clear(&pool);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);

    g_test_add_func("/mux/chunks/keep-order", test_chunks_keep_order);
    g_test_add_func("/mux/chunks/room-survives-consuming",
                    test_chunks_room_survives_consuming);
    g_test_add_func("/mux/chunks/peek-skips", test_chunks_peek_skips);
    g_test_add_func("/mux/chunks/are-kept-for-reuse",
                    test_chunks_are_kept_for_reuse);

    return g_test_run();
}
