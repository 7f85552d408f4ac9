/*
 * Migration multiplexer: a FIFO (ticket) lock
 *
 * Threads get the lock in the order in which they ask for it.  A mutex, and the
 * kernel's lock of a socket, can be acquired again and again by a running
 * thread before a waiting one has woken up.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef MIGRATION_MUX_TURNS_H
#define MIGRATION_MUX_TURNS_H

#include "qemu/lockable.h"
#include "qemu/thread.h"

typedef struct MuxTurns {
    QemuMutex lock;             /* protects the rest */
    QemuCond served;            /* @now_serving has changed */
    unsigned next_ticket;
    unsigned now_serving;
} MuxTurns;

static inline void mux_turns_init(MuxTurns *t)
{
    qemu_mutex_init(&t->lock);
    qemu_cond_init(&t->served);
    t->next_ticket = t->now_serving = 0;
}

/* No thread may hold the lock or wait for it. */
static inline void mux_turns_destroy(MuxTurns *t)
{
    qemu_cond_destroy(&t->served);
    qemu_mutex_destroy(&t->lock);
}

static inline void mux_turns_lock(MuxTurns *t)
{
    unsigned ticket;

    QEMU_LOCK_GUARD(&t->lock);
    ticket = t->next_ticket++;
    while (ticket != t->now_serving) {
        qemu_cond_wait(&t->served, &t->lock);
    }
}

static inline void mux_turns_unlock(MuxTurns *t)
{
    QEMU_LOCK_GUARD(&t->lock);
    t->now_serving++;
    qemu_cond_broadcast(&t->served);
}

#endif
