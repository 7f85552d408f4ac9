/*
 * Migration multiplexer: how frames look on the wire
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/bswap.h"
#include "frame.h"

typedef struct MuxFrameInfo {
    const char *name;
    bool has_stream;
    uint32_t length_min, length_max;    /* DATA: checked against max_frame */
} MuxFrameInfo;

static const MuxFrameInfo frame_info[] = {
    [MUX_FRAME_OPEN] = { "OPEN", true,
                         MUX_OPEN_SIZE + 1, MUX_OPEN_SIZE + MUX_NAME_MAX },
    [MUX_FRAME_OPEN_OK] = { "OPEN_OK", true, 8, 8 },
    [MUX_FRAME_DATA] = { "DATA", true, 1, UINT32_MAX },
    [MUX_FRAME_WINDOW] = { "WINDOW", true, 8, 8 },
    [MUX_FRAME_FIN] = { "FIN", true, 8, 8 },
    [MUX_FRAME_FIN_OK] = { "FIN_OK", true, 8, 8 },
    [MUX_FRAME_RESET] = { "RESET", true, 0, MUX_TEXT_MAX },
    [MUX_FRAME_PING] = { "PING", false, 8, 8 },
    [MUX_FRAME_PONG] = { "PONG", false, 8, 8 },
    [MUX_FRAME_GOAWAY] = { "GOAWAY", false, 0, MUX_TEXT_MAX },
};

G_STATIC_ASSERT(G_N_ELEMENTS(frame_info) == MUX_FRAME__MAX);
G_STATIC_ASSERT(MUX_OPEN_SIZE + MUX_NAME_MAX <= MUX_TEXT_MAX);
G_STATIC_ASSERT(MUX_HELLO_SIZE + MUX_SESSION_ID_SIZE + 4 ==
                MUX_HELLO_V2_SIZE);

void mux_hello_encode(const MuxHello *hello, uint8_t out[MUX_HELLO_V2_SIZE])
{
    stl_be_p(out, hello->magic);
    stw_be_p(out + 4, hello->version_min);
    stw_be_p(out + 6, hello->version_max);
    stl_be_p(out + 8, hello->length);
    stq_be_p(out + 12, hello->features);
    stq_be_p(out + 20, hello->required);
    stl_be_p(out + 28, hello->max_frame);
    stl_be_p(out + 32, hello->max_streams);
    stl_be_p(out + 36, hello->role);
    memcpy(out + 40, hello->session, MUX_SESSION_ID_SIZE);
    stl_be_p(out + 56, hello->connection);
}

void mux_hello_decode_common(const uint8_t in[MUX_HELLO_SIZE],
                             MuxHello *hello)
{
    hello->magic = ldl_be_p(in);
    hello->version_min = lduw_be_p(in + 4);
    hello->version_max = lduw_be_p(in + 6);
    hello->length = ldl_be_p(in + 8);
    hello->features = ldq_be_p(in + 12);
    hello->required = ldq_be_p(in + 20);
    hello->max_frame = ldl_be_p(in + 28);
    hello->max_streams = ldl_be_p(in + 32);
    hello->role = ldl_be_p(in + 36);
}

void mux_hello_decode(const uint8_t in[MUX_HELLO_V2_SIZE], MuxHello *hello)
{
    mux_hello_decode_common(in, hello);
    memcpy(hello->session, in + 40, MUX_SESSION_ID_SIZE);
    hello->connection = ldl_be_p(in + 56);
}

void mux_header_encode(const MuxHeader *header, uint8_t out[MUX_HEADER_SIZE])
{
    out[0] = header->type;
    out[1] = header->flags;
    stw_be_p(out + 2, header->zero);
    stl_be_p(out + 4, header->stream);
    stl_be_p(out + 8, header->length);
    stl_be_p(out + 12, header->arg);
}

void mux_header_decode(const uint8_t in[MUX_HEADER_SIZE], MuxHeader *header)
{
    header->type = in[0];
    header->flags = in[1];
    header->zero = lduw_be_p(in + 2);
    header->stream = ldl_be_p(in + 4);
    header->length = ldl_be_p(in + 8);
    header->arg = ldl_be_p(in + 12);
}

const char *mux_frame_name(uint8_t type)
{
    return type < MUX_FRAME__MAX ? frame_info[type].name : NULL;
}

bool mux_frame_has_stream(MuxFrameType type)
{
    return frame_info[type].has_stream;
}

bool mux_frame_length_ok(MuxFrameType type, uint32_t length)
{
    return length >= frame_info[type].length_min &&
           length <= frame_info[type].length_max;
}

bool mux_name_ok(const char *name, size_t len)
{
    if (len < 1 || len > MUX_NAME_MAX) {
        return false;
    }
    for (size_t i = 0; i < len; i++) {
        if (!g_ascii_isprint(name[i])) {
            return false;
        }
    }
    return true;
}

char *mux_text_sanitize(const uint8_t *text, size_t len)
{
    GString *out = g_string_sized_new(len);
    const char *p = (const char *)text;
    const char *end = p + len;

    while (p < end) {
        gunichar c = g_utf8_get_char_validated(p, end - p);

        if (c == (gunichar)-1 || c == (gunichar)-2) {   /* not UTF-8 */
            g_string_append_c(out, '?');
            p++;
        } else {
            g_string_append_unichar(out, g_unichar_isprint(c) ? c : '?');
            p = g_utf8_next_char(p);
        }
    }
    return g_string_free(out, FALSE);
}

size_t mux_text_length(const char *text)
{
    size_t len = strlen(text);

    if (len <= MUX_TEXT_MAX) {
        return len;
    }
    len = MUX_TEXT_MAX;
    /* step back over the tail of a character that would be cut in two */
    while (len && ((uint8_t)text[len] & 0xc0) == 0x80) {
        len--;
    }
    return len;
}
