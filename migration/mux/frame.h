/*
 * Migration multiplexer: how frames look on the wire
 *
 * Pure encoding and decoding (docs/interop/migration-mux.rst); nothing here
 * knows of streams or connections.  All integers are big-endian, buffers need
 * no alignment.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef MIGRATION_MUX_FRAME_H
#define MIGRATION_MUX_FRAME_H

#include "engine-limits.h"

#define MUX_MAGIC           0x514d5558U     /* "QMUX" */
#define MUX_HELLO_SIZE      40              /* the part in every version */
#define MUX_HELLO_V2_SIZE   60              /* without the reserved tail */
#define MUX_HEADER_SIZE     16
#define MUX_OPEN_SIZE       12              /* without the name */

/* Types from here on may be skipped by a peer that does not know them. */
#define MUX_TYPE_SKIPPABLE  0x80

typedef enum MuxFrameType {
    MUX_FRAME_OPEN = 1,
    MUX_FRAME_OPEN_OK = 2,
    MUX_FRAME_DATA = 3,
    MUX_FRAME_WINDOW = 4,
    MUX_FRAME_FIN = 5,
    MUX_FRAME_FIN_OK = 6,
    MUX_FRAME_RESET = 7,
    MUX_FRAME_PING = 8,
    MUX_FRAME_PONG = 9,
    MUX_FRAME_GOAWAY = 10,
    MUX_FRAME__MAX,
} MuxFrameType;

/* HELLO's features: what we can do; we require nothing of the peer. */
#define MUX_FEATURES        UINT64_C(0)

typedef struct MuxHello {
    uint32_t magic;
    uint16_t version_min, version_max;
    uint32_t length;            /* of the whole HELLO, bytes */
    uint64_t features;          /* what the sender can do */
    uint64_t required;          /* what its peer has to be able to do */
    uint32_t max_frame;         /* largest DATA payload it accepts, bytes */
    uint32_t max_streams;       /* streams its peer may have open at once */
    uint32_t role;              /* MuxRole */
    /* from version 2 on */
    uint8_t session[MUX_SESSION_ID_SIZE];   /* the source's; else zeroes */
    uint32_t connection;        /* index within the session */
} MuxHello;

typedef struct MuxHeader {
    uint8_t type;               /* MuxFrameType, or unknown */
    uint8_t flags;              /* none defined */
    uint16_t zero;
    uint32_t stream;            /* id; 0 where the connection is meant */
    uint32_t length;            /* of the payload, bytes */
    uint32_t arg;               /* DATA: low offset; RESET, GOAWAY: code */
} MuxHeader;

void mux_hello_encode(const MuxHello *hello, uint8_t out[MUX_HELLO_V2_SIZE]);
void mux_hello_decode(const uint8_t in[MUX_HELLO_V2_SIZE], MuxHello *hello);
/* Sets only what every version has. */
void mux_hello_decode_common(const uint8_t in[MUX_HELLO_SIZE],
                             MuxHello *hello);
void mux_header_encode(const MuxHeader *header, uint8_t out[MUX_HEADER_SIZE]);
void mux_header_decode(const uint8_t in[MUX_HEADER_SIZE], MuxHeader *header);

/* Returns the field's term for @type, e.g. "FIN_OK"; NULL when unknown. */
const char *mux_frame_name(uint8_t type);

/* Returns whether @type is about one stream (its id must not be 0). */
bool mux_frame_has_stream(MuxFrameType type);

/* Returns whether @length is well-formed for the control frame @type. */
bool mux_frame_length_ok(MuxFrameType type, uint32_t length);

/* Returns whether the @len bytes at @name may name a stream. */
bool mux_name_ok(const char *name, size_t len);

/*
 * A text that came from the peer, made fit for a log or a terminal: what is
 * not a printable character becomes '?'.  The caller frees the result.
 */
char *mux_text_sanitize(const uint8_t *text, size_t len);

/* Returns how many bytes of @text go on the wire: whole characters only. */
size_t mux_text_length(const char *text);

#endif
