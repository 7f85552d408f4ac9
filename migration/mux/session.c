/*
 * Migration multiplexer: sessions
 *
 * Owns the life of a session: its start, the callbacks to the main loop, its
 * end.  Never reads or writes the transport.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "crypto/random.h"
#include "qemu/main-loop.h"
#include "qemu/timer.h"
#include "session.h"
#include "trace.h"

/* --- life --- */

static void mux_session_start_thread(MuxSession *s, const char *name,
                                     void *(*run)(void *))
{
    QemuThread thread;

    /* Detached: the last reference may be dropped by such a thread */
    qemu_thread_create(&thread, name, run, mux_session_ref(s),
                       QEMU_THREAD_DETACHED);
}

MuxSession *mux_session_new(QIOChannel *transport, MuxRole role,
                            const MuxSessionOps *ops, void *opaque)
{
    MuxSession *s = g_new0(MuxSession, 1);
    g_autoptr(Error) err = NULL;
    MuxConfig config;

    /* The receive thread makes such objects, the class has to be there */
    object_class_by_name(TYPE_QIO_CHANNEL_MUX);

    s->refs = 1;
    s->ops = ops;
    s->opaque = opaque;
    qemu_mutex_init(&s->lock);
    qemu_cond_init(&s->sender_moved);
    qemu_cond_init(&s->send_cond);
    qemu_cond_init(&s->receive_cond);
    qemu_cond_init(&s->closed_cond);
    qemu_cond_init(&s->ticked);
    QTAILQ_INIT(&s->channels);
    QTAILQ_INIT(&s->writers);
    QTAILQ_INIT(&s->callbacks);
    mux_config_default(&config, role);
    if (role == MUX_ROLE_SOURCE) {
        qcrypto_random_bytes(config.session, sizeof(config.session), &err);
    }
    s->engine = mux_engine_new(&config, get_clock());
    s->heard = get_clock();
    s->tick_due = ops && ops->tick ? s->heard : INT64_MAX;
    s->transport = mux_transport_new(transport, err ? NULL : &err);
    trace_mux_session_new(s, transport, role);

    if (err) {
        WITH_MUX_SESSION_LOCK_GUARD(s) {
            mux_session_cut(s, error_get_pretty(err));
        }
    }
    mux_session_start_thread(s, "mig/mux/recv", mux_session_receive_thread);
    mux_session_start_thread(s, "mig/mux/send", mux_session_send_thread);
    return s;
}

MuxSession *mux_session_ref(MuxSession *s)
{
    qatomic_inc(&s->refs);
    return s;
}

void mux_session_unref(MuxSession *s)
{
    if (!s || qatomic_fetch_dec(&s->refs) > 1) {
        return;
    }
    trace_mux_session_free(s);
    assert(QTAILQ_EMPTY(&s->channels));
    mux_engine_free(s->engine);
    mux_transport_free(s->transport);
    qemu_cond_destroy(&s->ticked);
    qemu_cond_destroy(&s->closed_cond);
    qemu_cond_destroy(&s->receive_cond);
    qemu_cond_destroy(&s->send_cond);
    qemu_cond_destroy(&s->sender_moved);
    qemu_mutex_destroy(&s->lock);
    mux_failure_free(s->why);
    g_free(s->tx_error);
    g_free(s);
}

MuxFailure *mux_session_failure(MuxSession *s)
{
    const char *text = mux_engine_error(s->engine);

    return text ? mux_failure_from_cause(NULL, mux_engine_cause(s->engine),
                                         text) : NULL;
}

/* Why can no stream be opened?  Returns NULL if one can. */
static MuxFailure *mux_session_refusal(MuxSession *s, const char *name)
{
    if (!s->over && !s->closing) {
        return NULL;
    }
    return mux_session_failure(s) ?:
        mux_failure_new(name, MUX_CODE_ABORTED, "%s", s->closing ?
                        "connection closed" :
                        "the peer has closed the connection");
}

QIOChannelMux *mux_session_open(MuxSession *s, const char *name,
                                MuxFailure **failp)
{
    const char *why = NULL;
    MuxFailure *refusal;
    MuxStream *stream;

    MUX_SESSION_LOCK_GUARD(s);
    refusal = mux_session_refusal(s, name);
    if (refusal) {
        mux_failure_propagate(failp, refusal);
        return NULL;
    }
    stream = mux_engine_open(s->engine, name, &why);
    if (!stream) {
        mux_failure_propagate(failp, mux_failure_new(name, MUX_CODE_ABORTED,
                                                     "%s", why));
        return NULL;
    }
    return mux_channel_new(s, stream);
}

/* --- callbacks --- */

/* Takes the lock held, calls without it, returns with it. */
static void mux_session_call_channel(MuxSession *s, QIOChannelMux *ioc)
{
    const MuxSessionOps *ops = s->ops;
    bool opened = ioc->call_opened;
    bool changed = ioc->call_changed;

    QTAILQ_REMOVE(&s->callbacks, ioc, next_callback);
    ioc->call_opened = ioc->call_changed = false;
    /* The reference of a stream just opened is ours */
    if (!opened && !mux_channel_try_ref(ioc)) {
        return;
    }
    mux_session_unlock(s);
    if (opened) {
        ops->opened(s, ioc, s->opaque);
    }
    if (changed && s->ops && ioc->changed) {
        ioc->changed(ioc, ioc->changed_opaque);
    }
    object_unref(OBJECT(ioc));
    mux_session_lock(s);
}

static void mux_session_call_state(MuxSession *s)
{
    const MuxSessionOps *ops = s->ops;
    g_autoptr(MuxFailure) failure = mux_session_failure(s);
    bool ready = s->call_ready;

    if (ready) {
        s->call_ready = false;
    } else {
        s->call_ended = false;
    }
    mux_session_unlock(s);
    if (ready && ops->ready) {
        ops->ready(s, s->opaque);
    } else if (!ready && ops->ended) {
        ops->ended(s, failure, s->opaque);
    }
    mux_session_lock(s);
}

static void mux_session_call_bh(void *opaque)
{
    MuxSession *s = opaque;
    QIOChannelMux *ioc;

    mux_session_lock(s);
    s->call_scheduled = false;
    while (s->ops) {
        ioc = QTAILQ_FIRST(&s->callbacks);
        if (s->call_ready) {
            mux_session_call_state(s);
        } else if (ioc) {
            mux_session_call_channel(s, ioc);
        } else if (s->call_ended) {
            mux_session_call_state(s);
        } else {
            break;
        }
    }
    mux_session_unlock(s);
    mux_session_unref(s);
}

static void mux_session_schedule_call(MuxSession *s)
{
    if (s->ops && !s->call_scheduled) {
        s->call_scheduled = true;
        /* Like a socket's watch: not in a nested aio_poll() */
        aio_bh_schedule_oneshot(iohandler_get_aio_context(),
                                mux_session_call_bh, mux_session_ref(s));
    }
}

void mux_session_call_ready(MuxSession *s)
{
    s->call_ready = true;
    mux_session_schedule_call(s);
}

void mux_session_call_opened(MuxSession *s, MuxStream *stream)
{
    g_autofree char *why = mux_session_closing_text(s, mux_stream_name(stream));
    QIOChannelMux *ioc;

    if (why || !s->ops || !s->ops->opened) {
        mux_stream_reset(stream, MUX_CODE_REFUSED,
                         why ?: "this side does not accept streams");
        mux_stream_release(stream);
        return;
    }
    ioc = mux_channel_new(s, stream);
    ioc->call_opened = true;
    QTAILQ_INSERT_TAIL(&s->callbacks, ioc, next_callback);
    mux_session_schedule_call(s);
}

void mux_session_call_changed(QIOChannelMux *ioc)
{
    MuxSession *s = ioc->session;

    if (!s->ops) {
        return;
    }
    if (!ioc->call_opened && !ioc->call_changed) {
        QTAILQ_INSERT_TAIL(&s->callbacks, ioc, next_callback);
    }
    ioc->call_changed = true;
    mux_session_schedule_call(s);
}

void mux_session_set_ops(MuxSession *s, const MuxSessionOps *ops, void *opaque)
{
    GLOBAL_STATE_CODE();
    MUX_SESSION_LOCK_GUARD(s);
    if (s->ops) {
        s->ops = ops;
        s->opaque = opaque;
    }
}

void mux_session_detach(MuxSession *s)
{
    g_autoptr(GPtrArray) refused = g_ptr_array_new_with_free_func(object_unref);
    QIOChannelMux *ioc, *next;

    GLOBAL_STATE_CODE();
    MUX_SESSION_LOCK_GUARD(s);
    s->ops = NULL;
    s->tick_due = INT64_MAX;
    while (s->ticking) {
        mux_session_wait(s, &s->ticked);
    }
    QTAILQ_FOREACH_SAFE(ioc, &s->callbacks, next_callback, next) {
        QTAILQ_REMOVE(&s->callbacks, ioc, next_callback);
        if (ioc->call_opened) {
            g_ptr_array_add(refused, ioc);
        }
        ioc->call_opened = ioc->call_changed = false;
    }
    /* The lock is dropped before the array and its references are */
}

/* --- time --- */

int64_t mux_session_next_due(MuxSession *s)
{
    int64_t due = MIN(mux_engine_deadline(s->engine), s->tick_due);

    if (s->linger) {
        due = MIN(due, s->linger);
    }
    return due;
}

void mux_session_set_silence(MuxSession *s, uint32_t timeout_ms)
{
    MUX_SESSION_LOCK_GUARD(s);
    mux_engine_set_silence(s->engine, timeout_ms * (int64_t)SCALE_MS,
                           get_clock());
}

void mux_session_ping(MuxSession *s)
{
    MUX_SESSION_LOCK_GUARD(s);
    mux_engine_ping(s->engine);
}

/* --- the end --- */

void mux_session_over(MuxSession *s)
{
    QIOChannelMux *ioc;

    if (s->over) {
        return;
    }
    trace_mux_session_over(s, mux_engine_error(s->engine) ?: "no error");
    qatomic_set(&s->over, true);        /* watches look without the lock */
    /*
     * Close at once if the peer speaks another protocol.  It cannot parse
     * GOAWAY, and if we went on reading, its migration might seem to succeed:
     * a source without return path hands its guest over without a reply.
     */
    s->last_words = !s->tx_error && !mux_engine_tx_idle(s->engine) &&
                    !mux_engine_peer_is_foreign(s->engine);
    if (!s->linger) {
        s->linger = get_clock() + MUX_LINGER_NS;
    }
    QTAILQ_FOREACH(ioc, &s->channels, next) {
        mux_channel_update(ioc);
    }
    qemu_cond_signal(&s->send_cond);
    mux_session_wake_receiver(s);
    mux_transport_wake_out(s->transport);
    s->call_ended = true;
    mux_session_schedule_call(s);
}

void mux_session_hurry(MuxSession *s, int64_t deadline)
{
    if (!s->linger || deadline < s->linger) {
        s->linger = deadline;
        qemu_cond_broadcast(&s->sender_moved);
        mux_session_wake_receiver(s);
    }
}

void mux_session_cut(MuxSession *s, const char *text)
{
    if (s->closed) {
        return;
    }
    mux_engine_transport_error(s->engine, text);
    if (!s->tx_error) {
        s->tx_error = g_strdup(text);
    }
    s->linger = get_clock();
    mux_transport_shutdown(s->transport);
    qemu_cond_signal(&s->send_cond);
    mux_session_wake_receiver(s);
    mux_transport_wake_out(s->transport);
}

void mux_session_yank(void *opaque)
{
    MuxSession *s = opaque;

    MUX_SESSION_LOCK_GUARD(s);
    trace_mux_session_yank(s);
    mux_session_cut(s, "the connection was yanked");
}

char *mux_session_closing_text(MuxSession *s, const char *stream)
{
    g_autofree char *text = NULL;

    if (!s->why) {
        return NULL;
    }
    text = mux_failure_text_within(s->why, stream);
    return mux_peer_text(text);
}

static void mux_session_close_locked(MuxSession *s, const MuxFailure *why,
                                     int64_t deadline)
{
    QIOChannelMux *ioc;

    trace_mux_session_close(s, why ? why->text : "");
    mux_session_hurry(s, deadline);
    if (!s->closing) {
        s->closing = true;
        s->why = why ? mux_failure_copy(why) : NULL;
        QTAILQ_FOREACH(ioc, &s->channels, next) {
            mux_channel_update(ioc);
        }
    }
    mux_transport_wake_out(s->transport);
    mux_session_settle(s);
}

void mux_session_close(MuxSession *s, const MuxFailure *why, int timeout_ms)
{
    int64_t deadline = get_clock() + timeout_ms * (int64_t)SCALE_MS;

    MUX_SESSION_LOCK_GUARD(s);
    mux_session_close_locked(s, why, deadline);
}

void mux_session_close_wait(MuxSession *s, const MuxFailure *why,
                            int timeout_ms)
{
    int64_t deadline = get_clock() + timeout_ms * (int64_t)SCALE_MS;

    MUX_SESSION_LOCK_GUARD(s);
    mux_session_close_locked(s, why, deadline);
    deadline += MUX_COMMAND_END_NS;
    while (!s->transport_closed && get_clock() < deadline) {
        mux_session_timedwait(s, &s->closed_cond, deadline);
    }
}

bool mux_session_closed(MuxSession *s)
{
    MUX_SESSION_LOCK_GUARD(s);
    return s->transport_closed;
}
