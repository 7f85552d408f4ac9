/*
 * Migration multiplexer: the lock of a session
 *
 * A change to the engine has consequences that must be handled
 * (mux_session_settle()), and other threads may have to be woken.  Both are
 * done when the lock is released: the former before, the latter afterwards,
 * because a thread that is woken needs the lock first.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/timer.h"
#include "session.h"

bool mux_channel_try_ref(QIOChannelMux *ioc)
{
    Object *obj = OBJECT(ioc);
    uint32_t ref = qatomic_read(&obj->ref);

    while (ref) {
        uint32_t old = qatomic_cmpxchg(&obj->ref, ref, ref + 1);

        if (old == ref) {
            return true;
        }
        ref = old;
    }
    return false;
}

static void mux_wake_do(const MuxWake *w)
{
    if (w->readers) {
        qemu_cond_broadcast(&w->ioc->read_cond);
    }
    if (w->writers) {
        qemu_cond_broadcast(&w->ioc->write_cond);
    }
    if (w->read_notifier) {
        event_notifier_set(&w->ioc->read_notifier);
    }
    if (w->write_notifier) {
        event_notifier_set(&w->ioc->write_notifier);
    }
}

static MuxWake *mux_session_find_wake(MuxSession *s, QIOChannelMux *ioc)
{
    for (unsigned i = 0; i < s->nwakes; i++) {
        if (s->wakes[i].ioc == ioc) {
            return &s->wakes[i];
        }
    }
    return NULL;
}

void mux_session_wake(MuxSession *s, const MuxWake *wake)
{
    MuxWake *w = mux_session_find_wake(s, wake->ioc);

    if (w) {
        w->readers |= wake->readers;
        w->writers |= wake->writers;
        w->read_notifier |= wake->read_notifier;
        w->write_notifier |= wake->write_notifier;
    } else if (s->nwakes == MUX_WAKES) {
        mux_wake_do(wake);
    } else if (mux_channel_try_ref(wake->ioc)) {
        s->wakes[s->nwakes++] = *wake;
    }
}

void mux_session_lock(MuxSession *s)
{
    qemu_mutex_lock(&s->lock);
}

void mux_session_unlock(MuxSession *s)
{
    MuxWake wakes[MUX_WAKES];
    bool receiver;
    unsigned n;

    mux_session_settle(s);
    receiver = s->wake_receive_thread;
    s->wake_receive_thread = false;
    n = s->nwakes;
    memcpy(wakes, s->wakes, n * sizeof(*wakes));
    s->nwakes = 0;
    qemu_mutex_unlock(&s->lock);
    if (receiver) {
        qemu_cond_signal(&s->receive_cond);
    }
    for (unsigned i = 0; i < n; i++) {
        mux_wake_do(&wakes[i]);
        object_unref(OBJECT(wakes[i].ioc));
    }
}

/* Returns: whether there were any, and the lock was released for them */
static bool mux_session_wake_others(MuxSession *s)
{
    if (!s->nwakes && !s->wake_receive_thread) {
        return false;
    }
    mux_session_unlock(s);
    mux_session_lock(s);
    return true;
}

void mux_session_wait(MuxSession *s, QemuCond *cond)
{
    if (!mux_session_wake_others(s)) {
        qemu_cond_wait(cond, &s->lock);
    }
}

void mux_session_timedwait(MuxSession *s, QemuCond *cond, int64_t deadline)
{
    int64_t left = MAX(deadline - get_clock(), 0);

    if (!mux_session_wake_others(s)) {
        qemu_cond_timedwait(cond, &s->lock, qemu_timeout_ns_to_ms(left));
    }
}
