/*
 * Migration multiplexer: memory that a reader posts
 *
 * A reader that reads the transport itself posts its memory, so that payload
 * goes straight there.  It is filled in order; while bytes of the stream wait
 * in its chunks, those come first, and nothing may be put here.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "engine-int.h"

void mux_rx_post_set(MuxRxPost *p, const struct iovec *iov, unsigned niov)
{
    *p = (MuxRxPost) { .iov = iov, .niov = niov };
}

unsigned mux_rx_post_name(MuxRxPost *p, size_t want,
                          struct iovec *iov, unsigned max)
{
    size_t skip = p->filled;
    unsigned n = 0;

    for (unsigned i = 0; i < p->niov && want && n < max; i++) {
        size_t len = p->iov[i].iov_len;

        if (skip >= len) {
            skip -= len;
            continue;
        }
        iov[n].iov_base = p->iov[i].iov_base + skip;
        iov[n].iov_len = MIN(want, len - skip);
        want -= iov[n].iov_len;
        skip = 0;
        n++;
    }
    return n;
}

void mux_rx_post_filled(MuxRxPost *p, size_t bytes)
{
    p->filled += bytes;
}

size_t mux_rx_post_copy(MuxRxPost *p, const uint8_t *data, size_t bytes)
{
    struct iovec room;
    size_t done = 0;

    while (mux_rx_post_name(p, bytes - done, &room, 1)) {
        memcpy(room.iov_base, data + done, room.iov_len);
        mux_rx_post_filled(p, room.iov_len);
        done += room.iov_len;
    }
    return done;
}
