/*
 * Tests of the migration multiplexer's engine: random operations, damaged
 * bytes
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "mux-engine-helpers.h"
#include "mux-fuzz.h"

#define INPUTS          200
#define OPERATIONS_MAX  200

static void random_operations(uint32_t seed, bool peaceful)
{
    for (int i = 0; i < INPUTS; i++) {
        g_autoptr(GRand) rand = g_rand_new_with_seed(seed + i);
        int count = g_rand_int_range(rand, 10, OPERATIONS_MAX);
        g_autoptr(GByteArray) input = mux_fuzz_random_operations(rand, count);

        g_test_message("seed %u", seed + i);
        input->data[1] &= ~(MUX_FUZZ_PEACEFUL | MUX_FUZZ_ABRUPT);
        input->data[1] |= peaceful ? MUX_FUZZ_PEACEFUL : 0;
        mux_fuzz_operations(input->data, input->len);
    }
}

/* Every byte arrives, every stream finishes. */
static void test_random_operations(void)
{
    random_operations(mux_test_seed(100), true);
}

/* Bytes are damaged, the connection is cut, time runs out. */
static void test_random_disturbances(void)
{
    random_operations(mux_test_seed(100), false);
}

/* What the source sends in a short session, after settings for the fuzzer. */
static GByteArray *record_session(void)
{
    static const uint8_t settings[] = { MUX_FUZZ_RAW, 1, 0 };
    GByteArray *input = g_byte_array_new();
    GByteArray *sent;
    MuxStream *a, *b;
    MuxPair p;

    mux_pair_init(&p, 4 * KIB);
    mux_wire_open(&p.link, SRC, "main", &a, &b);
    mux_copy_pattern(a, SRC, 0, 50);
    mux_engine_ping(p.src);
    mux_stream_fin(a);
    mux_wire_run(&p.link);
    mux_wire_open(&p.link, SRC, "nbd-disk0", &a, &b);
    mux_stream_reset(a, 1, "gone");
    mux_engine_goaway(p.src, MUX_CODE_OK, "bye");
    mux_wire_run(&p.link);
    sent = p.link.side[SRC].sent;
    g_byte_array_append(input, settings, sizeof(settings));
    g_byte_array_append(input, sent->data, sent->len);
    mux_pair_cleanup(&p);
    return input;
}

/* Damage a recorded session: nothing may happen but an error. */
static void test_damaged_bytes(void)
{
    g_autoptr(GByteArray) input = record_session();
    g_autoptr(GRand) rand = g_rand_new_with_seed(mux_test_seed(200));

    for (size_t i = 3; i < input->len; i++) {
        for (int bit = 0; bit < 8; bit++) {
            input->data[i] ^= 1 << bit;
            mux_fuzz_bytes(input->data, input->len);
            input->data[i] ^= 1 << bit;
        }
    }
    for (int i = 0; i < 300; i++) {
        g_autofree uint8_t *data = g_memdup2(input->data, input->len);

        for (int k = 0; k < 5; k++) {
            data[g_rand_int_range(rand, 43, input->len)] =
                g_rand_int_range(rand, 0, 256);
        }
        mux_fuzz_bytes(data, input->len);
    }
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);

    g_test_add_func("/mux/random/operations", test_random_operations);
    g_test_add_func("/mux/random/disturbances", test_random_disturbances);
    g_test_add_func("/mux/random/damaged-bytes", test_damaged_bytes);

    return g_test_run();
}
