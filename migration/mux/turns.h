/*
 * Migration multiplexer: a lock whose holders take turns
 *
 * As a mutex, but who waits gets it before who comes later.  Both a mutex and
 * the lock of a socket in the kernel go to a thread that runs, again and again,
 * before one that has to wake up first.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef MIGRATION_MUX_TURNS_H
#define MIGRATION_MUX_TURNS_H

#include "qemu/lockable.h"
#include "qemu/thread.h"

typedef struct MuxTurns {
    QemuMutex lock;
    QemuCond moved;
    unsigned taken;
    unsigned over;
} MuxTurns;

static inline void mux_turns_init(MuxTurns *t)
{
    qemu_mutex_init(&t->lock);
    qemu_cond_init(&t->moved);
    t->taken = t->over = 0;
}

/* When no thread holds or wants it any more */
static inline void mux_turns_destroy(MuxTurns *t)
{
    qemu_cond_destroy(&t->moved);
    qemu_mutex_destroy(&t->lock);
}

/* Wait for the caller's turn, which lasts until mux_turns_over() */
static inline void mux_turns_take(MuxTurns *t)
{
    unsigned own;

    QEMU_LOCK_GUARD(&t->lock);
    own = t->taken++;
    while (t->over != own) {
        qemu_cond_wait(&t->moved, &t->lock);
    }
}

static inline void mux_turns_over(MuxTurns *t)
{
    QEMU_LOCK_GUARD(&t->lock);
    t->over++;
    qemu_cond_broadcast(&t->moved);
}

#endif
