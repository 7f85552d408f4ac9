/*
 * Relay for tests of the migration multiplexer: frames within a byte stream
 *
 * Walks over one direction of a connection (docs/interop/migration-mux.rst)
 * and says where each frame begins, and of which stream it is.  It checks
 * nothing: what is not the multiplexer's protocol passes as bytes.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef MUX_RELAY_FRAMES_H
#define MUX_RELAY_FRAMES_H

typedef struct MuxFrames {
    GHashTable *names;          /* id to name, shared by both directions */
    bool hello_done;
    bool raw;                   /* not the multiplexer's protocol */
    uint64_t left;              /* bytes of the frame not yet taken */

    /* The frame that was begun last */
    const char *type;           /* "DATA", ...; "HELLO" is taken for one */
    const char *stream;         /* NULL if it is about the connection */
    uint64_t length;            /* header and payload, bytes */
} MuxFrames;

/* @names: g_direct_hash() table with values to be freed by it */
void mux_frames_init(MuxFrames *f, GHashTable *names);

/*
 * Look at @len bytes that follow those taken before, and take some.
 *
 * Returns: how many of them were taken, all of one frame; 0 if more bytes are
 * needed to tell what they are.  *@begins tells whether they begin a frame.
 */
size_t mux_frames_take(MuxFrames *f, const uint8_t *data, size_t len,
                       bool *begins);

#endif
