/*
 * Migration multiplexer: a stream as a QIOChannel
 *
 * Owns what a caller sees of one stream: reading, writing, shutdown, errors.
 * Never reads or writes the transport: session-tx.c and session-rx.c do.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "qemu/iov.h"
#include "qemu/main-loop.h"
#include "qemu/module.h"
#include "session.h"
#include "trace.h"

/* Of a caller that does not block: see mux_channel_read_pauses() */
#define MUX_READS_IN_ROW 64

/* --- what a stream is ready for; with the lock held --- */

/* Neither direction works any more, whatever else happened */
static bool mux_channel_aborted(QIOChannelMux *ioc)
{
    return ioc->failure || ioc->peer_reset;
}

bool mux_channel_readable(QIOChannelMux *ioc)
{
    return ioc->read_shut || mux_channel_aborted(ioc) || ioc->session->over ||
        mux_stream_rx_pending(ioc->stream) >= ioc->read_least ||
        mux_stream_rx_fin(ioc->stream);
}

bool mux_channel_write_over(QIOChannelMux *ioc)
{
    return ioc->write_shut || mux_channel_aborted(ioc) ||
        ioc->session->over || ioc->session->closing;
}

bool mux_channel_writable(QIOChannelMux *ioc)
{
    return mux_channel_write_over(ioc) || mux_stream_writable(ioc->stream);
}

bool mux_channel_write_done(QIOChannelMux *ioc)
{
    return mux_channel_write_over(ioc) ||
        mux_stream_tx_sent(ioc->stream) == ioc->write_size;
}

/* Data that will not be read is consumed, so that its credit returns. */
static void mux_channel_drop_unread(QIOChannelMux *ioc)
{
    if (ioc->read_shut && !ioc->reading) {
        size_t pending = mux_stream_rx_pending(ioc->stream);

        if (pending) {
            mux_stream_rx_consume(ioc->stream, pending);
        }
    }
}

void mux_channel_update(QIOChannelMux *ioc)
{
    MuxSession *s = ioc->session;
    bool readable, writable;
    MuxWake wake = { .ioc = ioc };

    mux_channel_drop_unread(ioc);
    readable = mux_channel_readable(ioc);
    writable = mux_channel_writable(ioc);
    wake.readers = readable && ioc->readers_waiting;
    wake.writers = writable && ioc->writers_waiting;
    wake.read_notifier = readable && ioc->notifiers && !ioc->read_notified;
    wake.write_notifier = writable && ioc->notifiers && !ioc->write_notified;
    ioc->read_notified |= wake.read_notifier;
    ioc->write_notified |= wake.write_notifier;
    if (readable && ioc == s->rx_reader && s->rx_in_call) {
        mux_transport_wake_in(s->transport);
    }
    /* A non-blocking reader is worth waiting for in the middle of a frame */
    s->rx_woke |= wake.readers ||
        (wake.read_notifier && mux_stream_rx_continues(ioc->stream));
    if (wake.readers || wake.writers || wake.read_notifier ||
        wake.write_notifier) {
        mux_session_wake(s, &wake);
    }
}

/*
 * The caller has to wait: re-arm the notifier.  It may be set late, when what
 * it was set for has been read, so it is cleared in any case.
 */
static ssize_t mux_channel_block_read(QIOChannelMux *ioc)
{
    ioc->reads_in_row = 0;
    ioc->read_notified = false;
    if (ioc->notifiers) {
        event_notifier_test_and_clear(&ioc->read_notifier);
    }
    mux_session_needs_receiver(ioc->session);
    return QIO_CHANNEL_ERR_BLOCK;
}

static ssize_t mux_channel_block_write(QIOChannelMux *ioc)
{
    ioc->write_notified = false;
    if (ioc->notifiers) {
        event_notifier_test_and_clear(&ioc->write_notifier);
    }
    mux_session_needs_receiver(ioc->session);
    return QIO_CHANNEL_ERR_BLOCK;
}

static void mux_channel_wait_read(QIOChannelMux *ioc)
{
    ioc->readers_waiting++;
    mux_session_wait(ioc->session, &ioc->read_cond);
    ioc->readers_waiting--;
}

static void mux_channel_wait_write(QIOChannelMux *ioc)
{
    mux_session_needs_receiver(ioc->session);
    ioc->writers_waiting++;
    mux_session_wait(ioc->session, &ioc->write_cond);
    ioc->writers_waiting--;
}

static void mux_channel_wake_writers(QIOChannelMux *ioc)
{
    if (ioc->writers_waiting) {
        mux_session_wake(ioc->session,
                         &(MuxWake) { .ioc = ioc, .writers = true });
    }
}

/*
 * A peer that keeps on sending must not keep the caller's event loop from other
 * work: after some reads the caller has to come back, too.
 */
static bool mux_channel_read_pauses(QIOChannelMux *ioc)
{
    if (ioc->blocking || ++ioc->reads_in_row <= MUX_READS_IN_ROW) {
        return false;
    }
    ioc->reads_in_row = 0;
    return true;
}

/* --- errors; with the lock held --- */

static MuxFailure *mux_channel_failure(QIOChannelMux *ioc)
{
    MuxFailure *f = NULL;

    if (ioc->failure) {
        f = mux_failure_copy(ioc->failure);
    } else if (ioc->peer_reset) {
        f = mux_failure_from_cause(ioc->name, mux_stream_cause(ioc->stream),
                                   mux_stream_error(ioc->stream));
    } else if (ioc->session->over &&
               mux_stream_state(ioc->stream) != MUX_STREAM_FINISHED) {
        f = mux_session_failure(ioc->session);
    }
    return f;
}

static MuxFailure *mux_channel_write_failure(QIOChannelMux *ioc)
{
    return mux_channel_failure(ioc) ?:
        mux_failure_new(ioc->name, MUX_CODE_ABORTED, "%s", ioc->write_shut ?
                        "cannot write after shutdown" : "connection closed");
}

static ssize_t mux_channel_write_failed(QIOChannelMux *ioc, Error **errp)
{
    g_autoptr(MuxFailure) f = mux_channel_write_failure(ioc);

    mux_failure_to_error(f, errp);
    return -1;
}

/* --- reading --- */

/* There is nothing to read: what does the caller get? */
static ssize_t mux_channel_read_end(QIOChannelMux *ioc, Error **errp)
{
    g_autoptr(MuxFailure) f = NULL;

    if (ioc->read_shut) {
        return 0;
    }
    if (mux_channel_aborted(ioc) || !mux_stream_rx_fin(ioc->stream)) {
        f = mux_channel_failure(ioc);
    }
    if (f) {
        mux_failure_to_error(f, errp);
        return -1;
    }
    return 0;
}

/* There is data that a caller may have. */
static bool mux_channel_has_data(QIOChannelMux *ioc)
{
    return !ioc->read_shut && !mux_channel_aborted(ioc) &&
        mux_stream_rx_pending(ioc->stream);
}

static size_t mux_channel_copy(const struct iovec *to, unsigned nto,
                               const struct iovec *from, unsigned nfrom)
{
    size_t done = 0;
    unsigned i;

    for (i = 0; i < nfrom; i++) {
        size_t len = iov_from_buf(to, nto, done, from[i].iov_base,
                                  from[i].iov_len);

        done += len;
        if (len < from[i].iov_len) {
            break;
        }
    }
    return done;
}

/* A reader has finished, with @len bytes. */
static void mux_channel_read_done(QIOChannelMux *ioc, size_t len)
{
    MuxSession *s = ioc->session;

    ioc->reading = false;
    stat64_add(&ioc->bytes_received, len);
    if (ioc->readers_waiting) {
        mux_session_wake(s, &(MuxWake) { .ioc = ioc, .readers = true });
    }
    mux_channel_update(ioc);
    /* Credit goes out from here: to wake the send thread takes longer */
    if (!s->sending && QTAILQ_EMPTY(&s->writers) &&
        !mux_engine_tx_idle(s->engine)) {
        mux_session_pump(s, NULL, false);
    }
}

/*
 * Nothing is pending, and no thread is receiving.  What comes in @iov is
 * consumed at once, so @iov cannot serve a peek or read_least.
 */
static size_t mux_channel_read_transport(QIOChannelMux *ioc,
                                         const struct iovec *iov,
                                         unsigned niov, bool peek)
{
    size_t len;

    if (peek || ioc->read_least > 1) {
        niov = 0;
    }
    ioc->reading = true;
    len = mux_session_read(ioc->session, ioc, iov, niov, ioc->blocking);
    mux_channel_read_done(ioc, len);
    return len;
}

/* The lock is dropped while copying: what is not consumed stays in place. */
static size_t mux_channel_take(QIOChannelMux *ioc, const struct iovec *iov,
                               unsigned niov, bool peek)
{
    MuxSession *s = ioc->session;
    struct iovec piece[MUX_IOV];
    unsigned n = mux_stream_rx_iov(ioc->stream, piece, MUX_IOV);
    size_t len;

    ioc->reading = true;
    mux_session_unlock(s);
    len = mux_channel_copy(iov, niov, piece, n);
    mux_session_lock(s);
    mux_stream_rx_consume(ioc->stream, peek ? 0 : len);
    mux_channel_read_done(ioc, peek ? 0 : len);
    return len;
}

static ssize_t mux_channel_readv(QIOChannel *base, const struct iovec *iov,
                                 size_t niov, int **fds, size_t *nfds,
                                 int flags, Error **errp)
{
    QIOChannelMux *ioc = QIO_CHANNEL_MUX(base);
    bool peek = flags & QIO_CHANNEL_READ_FLAG_MSG_PEEK;
    MuxSession *s = ioc->session;

    if (!iov_size(iov, niov)) {
        return 0;
    }
    MUX_SESSION_LOCK_GUARD(s);
    while (ioc->reading || !mux_channel_readable(ioc)) {
        size_t len;

        if (!ioc->blocking && ioc == s->rx_reader) {
            /* The other reader may wait for long; the notifier will be set */
            return mux_channel_block_read(ioc);
        }
        if (ioc->reading || (s->receiving && ioc->blocking)) {
            mux_channel_wait_read(ioc);
            continue;
        }
        if (s->receiving || mux_channel_read_pauses(ioc)) {
            return mux_channel_block_read(ioc);
        }
        len = mux_channel_read_transport(ioc, iov, niov, peek);
        if (len) {
            return len;
        }
        if (!ioc->blocking && !mux_channel_readable(ioc)) {
            return mux_channel_block_read(ioc);
        }
    }
    if (!mux_channel_has_data(ioc)) {
        return mux_channel_read_end(ioc, errp);
    }
    if (mux_channel_read_pauses(ioc)) {
        return QIO_CHANNEL_ERR_BLOCK;
    }
    return mux_channel_take(ioc, iov, niov, peek);
}

/* --- writing; with the lock held --- */

/* Returns: how much of the offer the stream has taken */
static size_t mux_channel_withdraw(QIOChannelMux *ioc)
{
    MuxSession *s = ioc->session;
    size_t taken;

    /* What is all sent is in no batch, so the transport cannot use it */
    while (s->in_write && mux_stream_tx_sent(ioc->stream) < ioc->write_size) {
        mux_session_wait(s, &s->sender_moved);
    }
    taken = mux_stream_tx_withdraw(ioc->stream);
    ioc->writing = false;
    if (ioc->write_shut) {
        mux_stream_fin(ioc->stream);
    }
    mux_channel_wake_writers(ioc);
    return taken;
}

static size_t mux_channel_write_blocking(QIOChannelMux *ioc)
{
    MuxSession *s = ioc->session;

    while (!mux_channel_write_done(ioc)) {
        if (s->sending || !mux_session_pump(s, ioc, true)) {
            QTAILQ_INSERT_TAIL(&s->writers, ioc, next_writer);
            mux_channel_wait_write(ioc);
            QTAILQ_REMOVE(&s->writers, ioc, next_writer);
        }
    }
    return mux_channel_withdraw(ioc);
}

static size_t mux_channel_write_now(QIOChannelMux *ioc)
{
    MuxSession *s = ioc->session;

    if (!s->sending) {
        mux_session_pump(s, ioc, false);
    }
    return mux_channel_withdraw(ioc);
}

static void mux_channel_hold_back(QIOChannelMux *ioc, const struct iovec *iov,
                                  size_t niov)
{
    for (size_t i = 0; i < niov; i++) {
        g_byte_array_append(ioc->held_back, iov[i].iov_base, iov[i].iov_len);
    }
}

static ssize_t mux_channel_writev(QIOChannel *base, const struct iovec *iov,
                                  size_t niov, int *fds, size_t nfds,
                                  int flags, Error **errp)
{
    QIOChannelMux *ioc = QIO_CHANNEL_MUX(base);
    MuxSession *s = ioc->session;
    size_t size = iov_size(iov, niov);
    size_t taken = 0;

    if (!size) {
        return 0;
    }
    MUX_SESSION_LOCK_GUARD(s);
    while (ioc->writing) {
        mux_channel_wait_write(ioc);
    }
    if (mux_channel_write_over(ioc)) {
        return mux_channel_write_failed(ioc, errp);
    }
    if (ioc->held_back) {
        mux_channel_hold_back(ioc, iov, niov);
        return size;
    }
    if (ioc->blocking || !s->sending) {
        ioc->writing = true;
        ioc->write_size = size;
        mux_stream_tx_offer(ioc->stream, iov, niov);
        taken = ioc->blocking ? mux_channel_write_blocking(ioc)
                              : mux_channel_write_now(ioc);
    }
    if (!taken && mux_channel_write_over(ioc)) {
        return mux_channel_write_failed(ioc, errp);
    }
    if (!taken) {
        taken = mux_stream_tx_copy(ioc->stream, iov, niov);
    }
    if (!taken) {
        return mux_channel_block_write(ioc);
    }
    stat64_add(&ioc->bytes_sent, taken);
    return taken;
}

bool qio_channel_mux_write_whole(QIOChannelMux *ioc, const void *buf,
                                 size_t len, MuxFailure **failp)
{
    MuxSession *s = ioc->session;
    const struct iovec iov = { .iov_base = (void *)buf, .iov_len = len };
    size_t taken = 0;

    MUX_SESSION_LOCK_GUARD(s);
    if (s->tx_error) {
        mux_session_cut(s, s->tx_error);
    }
    mux_session_settle(s);
    if (mux_channel_write_over(ioc)) {
        mux_failure_propagate(failp, mux_channel_write_failure(ioc));
        return false;
    }
    if (!ioc->writing && mux_stream_writable(ioc->stream)) {
        taken = mux_stream_tx_copy(ioc->stream, &iov, 1);
        stat64_add(&ioc->bytes_sent, taken);
    }
    if (taken < len) {
        mux_failure_propagate(failp,
                              mux_failure_new(ioc->name, MUX_CODE_ABORTED,
                                              "the peer does not accept data"));
    }
    return taken == len;
}

void qio_channel_mux_hold_back(QIOChannelMux *ioc)
{
    MUX_SESSION_LOCK_GUARD(ioc->session);
    ioc->held_back = g_byte_array_new();
}

int qio_channel_mux_write_held_back(QIOChannelMux *ioc, Error **errp)
{
    g_autoptr(GByteArray) data = NULL;

    WITH_MUX_SESSION_LOCK_GUARD(ioc->session) {
        data = g_steal_pointer(&ioc->held_back);
    }
    return qio_channel_write_all(QIO_CHANNEL(ioc), (char *)data->data,
                                 data->len, errp);
}

/* --- the end of a stream --- */

static void mux_channel_shut(QIOChannelMux *ioc, bool read, bool write)
{
    MuxSession *s = ioc->session;

    MUX_SESSION_LOCK_GUARD(s);
    trace_mux_channel_shutdown(ioc, ioc->name, read, write);
    ioc->read_shut |= read;
    if (write && !ioc->write_shut) {
        ioc->write_shut = true;
        /* A writer in between queues the FIN when he has left */
        if (!ioc->writing) {
            mux_stream_fin(ioc->stream);
        }
        if (s->sending) {
            mux_transport_wake_out(s->transport);
        }
    }
    mux_channel_update(ioc);
}

static int mux_channel_shutdown(QIOChannel *base, QIOChannelShutdown how,
                                Error **errp)
{
    mux_channel_shut(QIO_CHANNEL_MUX(base), how & QIO_CHANNEL_SHUTDOWN_READ,
                     how & QIO_CHANNEL_SHUTDOWN_WRITE);
    return 0;
}

/* Other threads may still be in a call: what is held goes with the object. */
static int mux_channel_close(QIOChannel *base, Error **errp)
{
    mux_channel_shut(QIO_CHANNEL_MUX(base), true, true);
    return 0;
}

void mux_channel_fail(QIOChannelMux *ioc, uint32_t code, const char *why)
{
    MuxSession *s = ioc->session;
    g_autofree char *for_peer = NULL;

    if (mux_channel_aborted(ioc)) {
        return;
    }
    for_peer = mux_peer_text(why);
    ioc->failure = mux_failure_new(ioc->name, code, "aborted: %s", why);
    trace_mux_channel_abort(ioc, ioc->name, why);
    mux_stream_reset(ioc->stream,
                     mux_stream_asked(ioc->stream) ? MUX_CODE_REFUSED :
                     MUX_CODE_ABORTED, for_peer);
    if (s->sending) {
        mux_transport_wake_out(s->transport);
    }
    mux_channel_update(ioc);
}

void qio_channel_mux_abort(QIOChannelMux *ioc, const MuxFailure *why)
{
    g_autofree char *text = mux_failure_text_within(why, ioc->name);

    MUX_SESSION_LOCK_GUARD(ioc->session);
    mux_channel_fail(ioc, why->cause.code, text);
}

void mux_session_abort_streams(MuxSession *s, QIOChannelMux *except,
                               const MuxFailure *why)
{
    QIOChannelMux *ioc;

    MUX_SESSION_LOCK_GUARD(s);
    QTAILQ_FOREACH(ioc, &s->channels, next) {
        if (ioc != except) {
            g_autofree char *text = mux_failure_text_within(why, ioc->name);

            mux_channel_fail(ioc, why->cause.code, text);
        }
    }
}

MuxFailure *mux_session_find_failure(MuxSession *s)
{
    MuxFailure *failure;
    QIOChannelMux *ioc;

    MUX_SESSION_LOCK_GUARD(s);
    failure = mux_session_failure(s);
    QTAILQ_FOREACH(ioc, &s->channels, next) {
        failure = failure ?: mux_channel_failure(ioc);
    }
    return failure;
}

/* --- queries and properties --- */

const char *qio_channel_mux_name(QIOChannelMux *ioc)
{
    return ioc->name;
}

MuxStreamState qio_channel_mux_state(QIOChannelMux *ioc)
{
    MUX_SESSION_LOCK_GUARD(ioc->session);
    return mux_stream_state(ioc->stream);
}

void qio_channel_mux_set_changed(QIOChannelMux *ioc,
                                 QIOChannelMuxChanged *changed, void *opaque)
{
    GLOBAL_STATE_CODE();
    ioc->changed = changed;
    ioc->changed_opaque = opaque;
}

void qio_channel_mux_accept(QIOChannelMux *ioc)
{
    MUX_SESSION_LOCK_GUARD(ioc->session);
    mux_stream_accept(ioc->stream);
}

void qio_channel_mux_fin_ok(QIOChannelMux *ioc)
{
    MuxSession *s = ioc->session;

    MUX_SESSION_LOCK_GUARD(s);
    /* When a failure is reported, FIN_OK would confirm success */
    if (!mux_channel_aborted(ioc) && !s->over && !s->why) {
        mux_stream_fin_ok(ioc->stream);
    }
}

bool qio_channel_mux_has_input(QIOChannelMux *ioc)
{
    MUX_SESSION_LOCK_GUARD(ioc->session);
    return mux_channel_readable(ioc);
}

bool qio_channel_mux_fin_acked(QIOChannelMux *ioc)
{
    MUX_SESSION_LOCK_GUARD(ioc->session);
    return mux_stream_fin_acked(ioc->stream);
}

MuxFailure *qio_channel_mux_get_failure(QIOChannelMux *ioc)
{
    MUX_SESSION_LOCK_GUARD(ioc->session);
    return mux_channel_failure(ioc);
}

void qio_channel_mux_set_window_max(QIOChannelMux *ioc, uint64_t bytes)
{
    MUX_SESSION_LOCK_GUARD(ioc->session);
    mux_stream_set_window_max(ioc->stream, bytes);
}

void qio_channel_mux_set_read_least(QIOChannelMux *ioc, size_t bytes)
{
    MUX_SESSION_LOCK_GUARD(ioc->session);
    ioc->read_least = bytes;
    mux_channel_update(ioc);
}

void qio_channel_mux_set_weight(QIOChannelMux *ioc, unsigned weight)
{
    MUX_SESSION_LOCK_GUARD(ioc->session);
    mux_stream_set_weight(ioc->stream, weight);
}

void qio_channel_mux_set_urgent(QIOChannelMux *ioc, bool urgent)
{
    MuxSession *s = ioc->session;

    MUX_SESSION_LOCK_GUARD(s);
    mux_stream_set_urgent(ioc->stream, urgent);
    if (ioc->urgent != urgent) {
        ioc->urgent = urgent;
        s->urgent += urgent ? 1 : -1;
        if (!s->closed && s->urgent == urgent) {
            mux_transport_set_urgent(s->transport, urgent);
        }
    }
}

void qio_channel_mux_get_bytes(QIOChannelMux *ioc, uint64_t *sent,
                               uint64_t *received)
{
    *sent = stat64_get(&ioc->bytes_sent);
    *received = stat64_get(&ioc->bytes_received);
}

/* --- the class --- */

static int mux_channel_set_blocking(QIOChannel *base, bool enabled,
                                    Error **errp)
{
    QIOChannelMux *ioc = QIO_CHANNEL_MUX(base);

    MUX_SESSION_LOCK_GUARD(ioc->session);
    ioc->blocking = enabled;
    if (!enabled && !mux_channel_init_notifiers(ioc, errp)) {
        return -1;
    }
    return 0;
}

QIOChannelMux *mux_channel_new(MuxSession *s, MuxStream *stream)
{
    QIOChannelMux *ioc = QIO_CHANNEL_MUX(object_new(TYPE_QIO_CHANNEL_MUX));

    ioc->session = mux_session_ref(s);
    ioc->stream = stream;
    ioc->name = g_strdup(mux_stream_name(stream));
    ioc->blocking = true;
    ioc->read_least = 1;
    qio_channel_set_name(QIO_CHANNEL(ioc), ioc->name);
    mux_stream_set_opaque(stream, ioc);
    QTAILQ_INSERT_TAIL(&s->channels, ioc, next);
    trace_mux_channel_new(s, ioc, ioc->name);
    return ioc;
}

static void mux_channel_release(QIOChannelMux *ioc)
{
    MuxSession *s = ioc->session;
    g_autofree char *why = NULL;

    MUX_SESSION_LOCK_GUARD(s);
    trace_mux_channel_release(ioc, ioc->name);
    assert(!ioc->reading && !ioc->writing);
    if (ioc->call_opened || ioc->call_changed) {
        QTAILQ_REMOVE(&s->callbacks, ioc, next_callback);
    }
    if (ioc->urgent && !--s->urgent && !s->closed) {
        mux_transport_set_urgent(s->transport, false);
    }
    QTAILQ_REMOVE(&s->channels, ioc, next);
    mux_stream_set_opaque(ioc->stream, NULL);
    why = mux_session_closing_text(s, ioc->name);
    if (why) {
        /* FIN and FIN_OK would say that all data was processed */
        mux_stream_reset(ioc->stream, MUX_CODE_ABORTED, why);
    }
    mux_stream_release(ioc->stream);
}

static void mux_channel_instance_init(Object *obj)
{
    QIOChannelMux *ioc = QIO_CHANNEL_MUX(obj);
    QIOChannel *base = QIO_CHANNEL(obj);

    qemu_cond_init(&ioc->read_cond);
    qemu_cond_init(&ioc->write_cond);
    qio_channel_set_feature(base, QIO_CHANNEL_FEATURE_SHUTDOWN);
    qio_channel_set_feature(base, QIO_CHANNEL_FEATURE_READ_MSG_PEEK);
}

static void mux_channel_instance_finalize(Object *obj)
{
    QIOChannelMux *ioc = QIO_CHANNEL_MUX(obj);

    if (ioc->session) {
        mux_channel_release(ioc);
        mux_session_unref(ioc->session);
    }
    mux_channel_cleanup_notifiers(ioc);
    qemu_cond_destroy(&ioc->read_cond);
    qemu_cond_destroy(&ioc->write_cond);
    if (ioc->held_back) {
        g_byte_array_unref(ioc->held_back);
    }
    mux_failure_free(ioc->failure);
    g_free(ioc->name);
}

static void mux_channel_class_init(ObjectClass *klass, void *data)
{
    QIOChannelClass *ioc_klass = QIO_CHANNEL_CLASS(klass);

    ioc_klass->io_readv = mux_channel_readv;
    ioc_klass->io_writev = mux_channel_writev;
    ioc_klass->io_close = mux_channel_close;
    ioc_klass->io_shutdown = mux_channel_shutdown;
    ioc_klass->io_set_blocking = mux_channel_set_blocking;
    ioc_klass->io_create_watch = mux_channel_create_watch;
    ioc_klass->io_set_aio_fd_handler = mux_channel_set_aio_fd_handler;
}

static const TypeInfo mux_channel_info = {
    .parent = TYPE_QIO_CHANNEL,
    .name = TYPE_QIO_CHANNEL_MUX,
    .instance_size = sizeof(QIOChannelMux),
    .instance_init = mux_channel_instance_init,
    .instance_finalize = mux_channel_instance_finalize,
    .class_init = mux_channel_class_init,
};

static void mux_channel_register_types(void)
{
    type_register_static(&mux_channel_info);
}

type_init(mux_channel_register_types);
