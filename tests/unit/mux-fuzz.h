/*
 * What fuzzers of the migration multiplexer's engine run on each input
 *
 * Every input is valid, and always does the same.  What must not happen
 * aborts.  Used by libFuzzer, by tests with random inputs, and to replay
 * inputs that were of interest once.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef TESTS_UNIT_MUX_FUZZ_H
#define TESTS_UNIT_MUX_FUZZ_H

/* The first byte for mux_fuzz_bytes() is a set of these. */
enum {
    MUX_FUZZ_SOURCE = 1,        /* the engine is the source's */
    MUX_FUZZ_SMALL_WINDOW = 2,
    MUX_FUZZ_FEW_STREAMS = 4,
    MUX_FUZZ_SMALL_FRAMES = 8,
    MUX_FUZZ_RAW = 16,          /* the peer's HELLO is part of the input */
    MUX_FUZZ_OPENS = 32,        /* the application opens streams too */
    MUX_FUZZ_MUTE = 64,         /* the peer never reads */
};

/*
 * One engine receives what anybody might send.  The second byte says how many
 * of them arrive at once, the third how the application deals with streams
 * (four times two bits); the rest comes over the wire.
 */
void mux_fuzz_bytes(const uint8_t *data, size_t size);

/* The second byte for mux_fuzz_operations() is a set of these. */
enum {
    MUX_FUZZ_SOURCE_SMALL_FRAMES = 1,   /* that it accepts */
    MUX_FUZZ_DESTINATION_SMALL_FRAMES = 2,
    MUX_FUZZ_TWO_STREAMS = 4,   /* that each side accepts at once */
    MUX_FUZZ_SMALL_SUM = 8,     /* of all windows */
    MUX_FUZZ_SILENCE = 16,      /* a silent peer is given up */
    MUX_FUZZ_PEACEFUL = 64,     /* nothing ends the connection */
    MUX_FUZZ_ABRUPT = 128,      /* nothing is finished at the end */
};

/*
 * Two engines wired together, and an application on each side.  The first byte
 * chooses the windows; after the second come operations, see
 * mux-fuzz-operations.c.
 */
void mux_fuzz_operations(const uint8_t *data, size_t size);

/*
 * An input for it that opens a stream on each side, accepts both, and goes on
 * with @count operations such as applications and transports do.  Settings are
 * random too.
 */
GByteArray *mux_fuzz_random_operations(GRand *rand, unsigned count);

#endif
