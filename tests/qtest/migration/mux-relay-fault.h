/*
 * Relay for tests of the migration multiplexer: what it does wrong, and where
 *
 * A fault is written as KIND[=VALUE][,KEY=VALUE...].  The kinds:
 *
 *   cut             close both connections
 *   reset           close them so that TCP peers see ECONNRESET
 *   half-close      end one direction; the other one goes on
 *   silence         copy nothing any more, the connections stay
 *   delay=MS        hold back each byte for this time, at full throughput
 *   throttle=BYTES  copy no more than so many bytes per second
 *   heal            end silence, delay and throttle
 *   flip            invert one bit of one byte
 *
 * The keys:
 *
 *   dir=to|from|both    directions that are affected: "to" is that from the
 *                       side that connected to the relay (the source) to the
 *                       other one.  Default: both, for half-close "to"; flip
 *                       has only "in".
 *   in=to|from          direction in which the place is; default: "to"
 *   at=N                the place: byte N of the direction, 0 is the first
 *   frame=TYPE[:STREAM] the place: a frame of this type, HELLO being one, and
 *                       stream; "any" is every type, and "*" in the name of
 *                       the stream any characters
 *   after=TYPE[:STREAM] frames count only when such a one has come, in either
 *                       direction
 *   nth=N               not the first such frame, but the Nth
 *   byte=N|mid          byte N of that frame (the header has 16, HELLO 60), or
 *                       the one in its middle; default: 0
 *   bit=N               for flip; default: 0
 *
 * Everything before the place goes on unharmed.  Without a place the fault
 * happens at once, or as soon as there is a connection.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef MUX_RELAY_FAULT_H
#define MUX_RELAY_FAULT_H

#include "migration/mux-relay-frames.h"

typedef enum MuxFaultKind {
    MUX_FAULT_CUT,
    MUX_FAULT_RESET,
    MUX_FAULT_HALF_CLOSE,
    MUX_FAULT_SILENCE,
    MUX_FAULT_DELAY,
    MUX_FAULT_THROTTLE,
    MUX_FAULT_HEAL,
    MUX_FAULT_FLIP,
} MuxFaultKind;

/* Bits of MuxFault.dir; their positions are indexes, too. */
#define MUX_DIR_TO      1
#define MUX_DIR_FROM    2
#define MUX_DIR_BOTH    3

#define MUX_FAULT_NOWHERE   UINT64_MAX      /* MuxFault.at */
#define MUX_FAULT_MIDDLE    UINT64_MAX      /* MuxFault.byte */

typedef struct MuxFrameName {
    char *type;                 /* or NULL */
    char *stream;               /* or NULL: any or none */
} MuxFrameName;

typedef struct MuxFault {
    char *text;
    MuxFaultKind kind;
    uint64_t value;             /* delay, throttle */
    unsigned dir;               /* affected */
    unsigned in;                /* MUX_DIR_TO or MUX_DIR_FROM */
    uint64_t at;                /* offset; or MUX_FAULT_NOWHERE (yet) */
    MuxFrameName frame;         /* no type: not placed at a frame */
    MuxFrameName after;         /* no type: not waiting for one (any more) */
    unsigned nth;               /* how many such frames are still to come */
    uint64_t byte;
    unsigned bit;
} MuxFault;

/* Returns: the fault that @text describes; NULL with an error if it is none */
MuxFault *mux_fault_parse(const char *text, Error **errp);
void mux_fault_free(MuxFault *fault);

/* Does it happen at once? */
bool mux_fault_is_immediate(const MuxFault *fault);

/*
 * A frame begins at @offset of direction @in (MUX_DIR_TO or MUX_DIR_FROM): if
 * it is the one that @fault waits for, that gets its place.
 */
void mux_fault_see_frame(MuxFault *fault, unsigned in, const MuxFrames *frame,
                         uint64_t offset);

#endif
