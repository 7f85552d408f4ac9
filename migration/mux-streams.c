/*
 * Migration over a multiplexed connection: the kinds of stream
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/units.h"
#include "control-message.h"
#include "multifd.h"
#include "mux-streams.h"

/*
 * What waits at the destination to be loaded is downtime that the source cannot
 * see.  At the 500 MB/s of a slow loader this much is 34 ms, a tenth of the
 * default limit; and RAM has the whole of a 10 Gb/s link up to a round trip of
 * 7 ms.
 */
#define MUX_STREAM_RAM_WINDOW   (16 * MiB)

static const struct {
    const char *name;
    bool several;               /* NAME-ID; else NAME is the stream's name */
    uint64_t window_max;        /* at the destination, bytes; 0: the default */
    size_t read_least;          /* its reader there reads so much at once */
} kinds[] = {
    [MUX_STREAM_KIND_CONTROL] = {
        "control", false, MUX_CONTROL_MESSAGE_MAX, 1 },
    [MUX_STREAM_KIND_MAIN] = { "main", false, MUX_STREAM_RAM_WINDOW, 1 },
    [MUX_STREAM_KIND_MULTIFD] = {
        "multifd", true, MUX_STREAM_RAM_WINDOW, MULTIFD_INIT_SIZE },
    [MUX_STREAM_KIND_NBD] = { "nbd", true, 0, 1 },
};

G_STATIC_ASSERT(G_N_ELEMENTS(kinds) == MUX_STREAM_KIND__MAX);

const char *mux_stream_kind_str(MuxStreamKind kind)
{
    return kinds[kind].name;
}

MuxStreamKind mux_stream_kind_parse(const char *kind)
{
    MuxStreamKind k = 0;

    while (k < MUX_STREAM_KIND__MAX && !g_str_equal(kinds[k].name, kind)) {
        k++;
    }
    return k;
}

MuxStreamKind mux_stream_kind_of(const char *stream)
{
    const char *dash = strchr(stream, '-');
    g_autofree char *kind = g_strndup(stream, dash ? dash - stream :
                                              strlen(stream));
    MuxStreamKind k = mux_stream_kind_parse(kind);

    return k < MUX_STREAM_KIND__MAX && kinds[k].several == !!dash ?
           k : MUX_STREAM_KIND__MAX;
}

char *mux_stream_kind_name(MuxStreamKind kind, const char *id)
{
    assert(kinds[kind].several);
    return g_strdup_printf("%s-%s", kinds[kind].name, id);
}

void mux_stream_kind_set_up(MuxStreamKind kind, QIOChannelMux *ioc)
{
    if (kinds[kind].window_max) {
        qio_channel_mux_set_window_max(ioc, kinds[kind].window_max);
    }
    qio_channel_mux_set_read_least(ioc, kinds[kind].read_least);
}
