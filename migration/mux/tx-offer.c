/*
 * Migration multiplexer: data that is offered by reference
 *
 * An offer is data that is sent from the writer's own memory.  Its bytes are
 * committed to batches, and sent, in order.  A stream has at most one, until
 * all of it was sent or it is withdrawn.  (The source's offer of what to
 * migrate is something else: mux-offer.c.)
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "engine-int.h"

void mux_tx_offer_set(MuxTxOffer *o, const struct iovec *iov, unsigned niov)
{
    g_assert(!mux_tx_offer_active(o));
    if (niov > o->max) {
        o->iov = g_renew(struct iovec, o->iov, niov);
        o->max = niov;
    }
    o->index = 0;
    o->skip = 0;
    o->size = 0;
    o->committed = 0;
    o->sent = 0;
    for (unsigned i = 0; i < niov; i++) {
        o->iov[i] = iov[i];
        o->size += iov[i].iov_len;
    }
}

size_t mux_tx_offer_withdraw(MuxTxOffer *o)
{
    size_t committed = o->committed;

    o->size = 0;
    o->committed = 0;
    o->sent = 0;
    return committed;
}

void mux_tx_offer_clear(MuxTxOffer *o)
{
    g_free(o->iov);
}

bool mux_tx_offer_active(const MuxTxOffer *o)
{
    return o->sent < o->size;
}

size_t mux_tx_offer_waiting(const MuxTxOffer *o)
{
    return o->size - o->committed;
}

size_t mux_tx_offer_commit(MuxTxOffer *o, size_t max, void **base)
{
    struct iovec *v;
    size_t n;

    if (!mux_tx_offer_waiting(o)) {
        return 0;
    }
    while (o->skip == o->iov[o->index].iov_len) {
        o->index++;
        o->skip = 0;
    }
    v = &o->iov[o->index];
    n = MIN(max, v->iov_len - o->skip);
    *base = v->iov_base + o->skip;
    o->skip += n;
    o->committed += n;
    return n;
}
