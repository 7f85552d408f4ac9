/*
 * Helpers for tests of the migration multiplexer's engine
 *
 * A MuxWire wires two engines together in one thread and in virtual time.
 * It moves bytes in pieces of random size, keeps a record of what each side
 * sent, and watches the wire: whatever an engine sends has to be within the
 * protocol, credit included.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef TESTS_UNIT_MUX_ENGINE_HELPERS_H
#define TESTS_UNIT_MUX_ENGINE_HELPERS_H

#include "migration/mux/engine.h"

#define KIB 1024

enum { SRC, DST };              /* sides of a link */

typedef struct MuxWireSide {
    MuxRole role;
    MuxEngine *e;
    GByteArray *sent;           /* all that this side's engine sent */
    size_t delivered;           /* bytes of it that the other side got */
    size_t watched;             /* bytes of it that were looked at */
    GHashTable *limits;         /* stream id to what it lets the other send */
    GHashTable *offsets;        /* stream id to what it has sent */
    GHashTable *resets;         /* set of ids that it has reset */
    size_t cut;                 /* the transport ends after so many bytes */
    bool eof_told;
    bool goaway;                /* it sent one */
} MuxWireSide;

typedef struct MuxWire {
    MuxWireSide side[2];
    GRand *rand;
    int64_t now;                /* ns */
    size_t piece_max;           /* largest piece moved at once, bytes */
    size_t capacity;            /* bytes on the way in one direction */
} MuxWire;

/*
 * The seed of this run: MUX_TEST_SEED when it is set, else @preset.  Shown
 * with the test, to run it again.
 */
uint32_t mux_test_seed(uint32_t preset);

/* @source, @destination: NULL for defaults. */
void mux_wire_init(MuxWire *link, uint32_t seed, const MuxConfig *source,
                   const MuxConfig *destination);
void mux_wire_cleanup(MuxWire *link);

void mux_wire_side_init(MuxWireSide *side, const MuxConfig *config,
                        MuxRole role);
void mux_wire_side_cleanup(MuxWireSide *side);

/*
 * Look at what is new in @from's record: it has to be within the protocol.
 * What @to, the other side, has granted and sent is only known if it is being
 * watched too (else NULL).
 */
void mux_wire_watch(MuxWireSide *from, MuxWireSide *to);

/* Move one piece each way; returns whether anything moved. */
bool mux_wire_step(MuxWire *link);

/* Until nothing moves any more. */
void mux_wire_run(MuxWire *link);

/*
 * Take at most @max bytes of @e, @iov_max elements at once, and append them to
 * @out; returns how many.
 */
size_t mux_take(MuxEngine *e, GByteArray *out, size_t max, int64_t now,
                unsigned iov_max);

/* Move bytes between one engine and a buffer, all there are. */
void mux_feed(MuxEngine *e, const uint8_t *data, size_t len, int64_t now);
void mux_drain(MuxEngine *e, GByteArray *out, int64_t now);

/* @e holds no more than the limits that it has stated allow. */
void mux_assert_memory_bounded(MuxEngine *e);

/* @e, whose streams are finished and released, holds nothing. */
void mux_assert_nothing_held(MuxEngine *e);

/* Bytes in the @n elements at @iov. */
size_t mux_iov_total(const struct iovec *iov, unsigned n);

/* Copy the first @len bytes between @iov and @buf. */
void mux_iov_copy(const struct iovec *iov, uint8_t *buf, size_t len,
                  bool to_iov);

/* The bytes that @hex (digits and blanks) spells; the caller frees them. */
GByteArray *mux_unhex(const char *hex);

/* Drop the events of @e up to the first of @type; returns its stream. */
MuxStream *mux_expect_event(MuxEngine *e, MuxEventType type);

/* Open @name on @opener's side and accept it on the other. */
void mux_wire_open(MuxWire *link, int opener, const char *name,
                   MuxStream **ours, MuxStream **theirs);

/* The byte of the pattern at @offset, in direction @side of stream @id. */
static inline uint8_t mux_pattern(uint32_t id, int side, uint64_t offset)
{
    return offset * 131 + (offset >> 8) * 7 + (offset >> 16) + id * 29 + side;
}

/* Copy the next @len bytes of the pattern; returns how many were taken. */
size_t mux_copy_pattern(MuxStream *s, int side, uint64_t offset, size_t len);

/* Read and check at most @max bytes of the pattern; returns how many. */
size_t mux_read_pattern(MuxStream *s, int side, uint64_t offset, size_t max);

/* A link, with shorter names for its engines. */
typedef struct MuxPair {
    MuxWire link;
    MuxEngine *src, *dst;
} MuxPair;

/* Receive windows are @window bytes; the HELLOs have been exchanged. */
void mux_pair_init(MuxPair *p, uint64_t window);
void mux_pair_cleanup(MuxPair *p);

/* Drop all events of @e; returns whether one was @type of @s. */
bool mux_has_event(MuxEngine *e, MuxEventType type, MuxStream *s);

#endif
