/*
 * Migration over a multiplexed connection: TLS handshakes at the destination
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/queue.h"
#include "qemu/timer.h"
#include "mux-handshakes.h"
#include "mux-migration.h"

#define MUX_HANDSHAKES_MAX 16

typedef struct MuxHandshake {
    QIOChannel *ioc;            /* its task keeps it alive */
    QEMUTimer *timer;
    QLIST_ENTRY(MuxHandshake) next;
} MuxHandshake;

static QLIST_HEAD(, MuxHandshake) handshakes =
    QLIST_HEAD_INITIALIZER(handshakes);

bool mux_handshakes_have_room(void)
{
    MuxHandshake *h;
    unsigned n = 0;

    QLIST_FOREACH(h, &handshakes, next) {
        n++;
    }
    return n < MUX_HANDSHAKES_MAX;
}

static void mux_handshake_shut_down(void *opaque)
{
    MuxHandshake *h = opaque;

    qio_channel_shutdown(h->ioc, QIO_CHANNEL_SHUTDOWN_BOTH, NULL);
}

void mux_handshake_begin(QIOChannel *ioc)
{
    MuxHandshake *h = g_new(MuxHandshake, 1);

    h->ioc = ioc;
    h->timer = timer_new_ms(QEMU_CLOCK_REALTIME, mux_handshake_shut_down, h);
    timer_mod(h->timer, qemu_clock_get_ms(QEMU_CLOCK_REALTIME) +
                        migration_mux_setup_ms());
    QLIST_INSERT_HEAD(&handshakes, h, next);
}

void mux_handshake_end(QIOChannel *ioc)
{
    MuxHandshake *h, *tmp;

    QLIST_FOREACH_SAFE(h, &handshakes, next, tmp) {
        if (h->ioc == ioc) {
            QLIST_REMOVE(h, next);
            timer_free(h->timer);
            g_free(h);
        }
    }
}

void mux_handshakes_shut_down(void)
{
    MuxHandshake *h;

    QLIST_FOREACH(h, &handshakes, next) {
        mux_handshake_shut_down(h);
    }
}
