/*
 * Relay for tests of the migration multiplexer: frames within a byte stream
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/bswap.h"
#include "migration/mux/frame.h"
#include "migration/mux-relay-frames.h"

/* Of a HELLO: up to the end of its length field */
#define HELLO_START 12

void mux_frames_init(MuxFrames *f, GHashTable *names)
{
    *f = (MuxFrames) { .names = names };
}

/* Returns whether it is known by now if this is a HELLO. */
static bool begin_hello(MuxFrames *f, const uint8_t *data, size_t len)
{
    if (len >= 4 && ldl_be_p(data) != MUX_MAGIC) {
        f->raw = true;
        return true;
    }
    if (len < HELLO_START) {
        return false;
    }
    f->hello_done = true;
    f->type = "HELLO";
    f->stream = NULL;
    f->length = ldl_be_p(data + 8);
    return true;
}

static void learn_name(MuxFrames *f, uint32_t id, const uint8_t *data)
{
    const char *name = (const char *)data + MUX_HEADER_SIZE + MUX_OPEN_SIZE;

    g_hash_table_insert(f->names, GUINT_TO_POINTER(id),
                        g_strndup(name, f->length - MUX_HEADER_SIZE -
                                        MUX_OPEN_SIZE));
}

/* Returns whether all of the frame is there that it takes to name it. */
static bool begin_frame(MuxFrames *f, const uint8_t *data, size_t len)
{
    MuxHeader h;

    if (len < MUX_HEADER_SIZE) {
        return false;
    }
    mux_header_decode(data, &h);
    f->length = MUX_HEADER_SIZE + (uint64_t)h.length;
    if (h.type == MUX_FRAME_OPEN && mux_frame_length_ok(h.type, h.length)) {
        if (len < f->length) {
            return false;
        }
        learn_name(f, h.stream, data);
    }
    f->type = mux_frame_name(h.type) ?: "unknown";
    f->stream = h.stream ? g_hash_table_lookup(f->names,
                                               GUINT_TO_POINTER(h.stream))
                         : NULL;
    return true;
}

size_t mux_frames_take(MuxFrames *f, const uint8_t *data, size_t len,
                       bool *begins)
{
    size_t n;

    *begins = false;
    if (!f->raw && !f->left) {
        if (!(f->hello_done ? begin_frame(f, data, len)
                            : begin_hello(f, data, len))) {
            return 0;
        }
        *begins = !f->raw;
        f->left = f->length;
    }
    if (f->raw) {
        return len;
    }
    n = MIN(len, f->left);
    f->left -= n;
    return n;
}
