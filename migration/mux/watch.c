/*
 * Migration multiplexer: waiting for a stream in an event loop
 *
 * A stream has no descriptor of its own, but two event notifiers, one for
 * each direction.  Both are waited for as readable.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "session.h"

bool mux_channel_init_notifiers(QIOChannelMux *ioc, Error **errp)
{
    int ret;

    if (ioc->notifiers) {
        return true;
    }
    ioc->read_notified = mux_channel_readable(ioc);
    ioc->write_notified = mux_channel_writable(ioc);
    ret = event_notifier_init(&ioc->read_notifier, ioc->read_notified);
    if (ret == 0) {
        ret = event_notifier_init(&ioc->write_notifier, ioc->write_notified);
        if (ret < 0) {
            event_notifier_cleanup(&ioc->read_notifier);
        }
    }
    if (ret < 0) {
        Error *err = NULL;

        error_setg_errno(&err, -ret, "cannot make an event notifier for "
                         "stream '%s'", ioc->name);
        mux_channel_fail(ioc, MUX_CODE_ABORTED, error_get_pretty(err));
        error_propagate(errp, err);
        return false;
    }
    ioc->notifiers = true;
    return true;
}

void mux_channel_cleanup_notifiers(QIOChannelMux *ioc)
{
    if (ioc->notifiers) {
        event_notifier_cleanup(&ioc->read_notifier);
        event_notifier_cleanup(&ioc->write_notifier);
    }
}

/* --- GSource --- */

typedef struct MuxWatch {
    GSource parent;
    QIOChannelMux *ioc;
    GIOCondition condition;
    bool failed;                /* there are no notifiers */
    GPollFD read;
    GPollFD write;
} MuxWatch;

static GIOCondition mux_watch_ready(MuxWatch *w)
{
    GIOCondition ready = 0;

    if (w->read.revents || w->failed) {
        ready |= G_IO_IN;
    }
    if (w->write.revents || w->failed) {
        ready |= G_IO_OUT;
    }
    if (ready && qatomic_read(&w->ioc->session->over)) {
        ready |= G_IO_HUP;
    }
    return ready & w->condition;
}

static gboolean mux_watch_prepare(GSource *source, gint *timeout)
{
    *timeout = -1;
    return ((MuxWatch *)source)->failed;
}

static gboolean mux_watch_check(GSource *source)
{
    return mux_watch_ready((MuxWatch *)source) != 0;
}

static gboolean mux_watch_dispatch(GSource *source, GSourceFunc callback,
                                   gpointer opaque)
{
    MuxWatch *w = (MuxWatch *)source;
    QIOChannelFunc func = (QIOChannelFunc)callback;

    return func(QIO_CHANNEL(w->ioc), mux_watch_ready(w), opaque);
}

static void mux_watch_finalize(GSource *source)
{
    object_unref(OBJECT(((MuxWatch *)source)->ioc));
}

static GSourceFuncs mux_watch_funcs = {
    .prepare = mux_watch_prepare,
    .check = mux_watch_check,
    .dispatch = mux_watch_dispatch,
    .finalize = mux_watch_finalize,
};

static void mux_watch_add(GSource *source, GPollFD *poll, EventNotifier *e)
{
    poll->fd = event_notifier_get_fd(e);
    poll->events = G_IO_IN;
    g_source_add_poll(source, poll);
}

GSource *mux_channel_create_watch(QIOChannel *base, GIOCondition condition)
{
    QIOChannelMux *ioc = QIO_CHANNEL_MUX(base);
    GSource *source = g_source_new(&mux_watch_funcs, sizeof(MuxWatch));
    MuxWatch *w = (MuxWatch *)source;

    w->ioc = QIO_CHANNEL_MUX(object_ref(OBJECT(ioc)));
    w->condition = condition;
    WITH_MUX_SESSION_LOCK_GUARD(ioc->session) {
        w->failed = !mux_channel_init_notifiers(ioc, NULL);
    }
    if (!w->failed && (condition & G_IO_IN)) {
        mux_watch_add(source, &w->read, &ioc->read_notifier);
    }
    if (!w->failed && (condition & G_IO_OUT)) {
        mux_watch_add(source, &w->write, &ioc->write_notifier);
    }
    return source;
}

/* --- AioContext --- */

void mux_channel_set_aio_fd_handler(QIOChannel *base,
                                    AioContext *read_ctx, IOHandler *io_read,
                                    AioContext *write_ctx, IOHandler *io_write,
                                    void *opaque)
{
    QIOChannelMux *ioc = QIO_CHANNEL_MUX(base);

    WITH_MUX_SESSION_LOCK_GUARD(ioc->session) {
        if (!mux_channel_init_notifiers(ioc, NULL)) {
            return;
        }
    }
    if (read_ctx) {
        aio_set_fd_handler(read_ctx,
                           event_notifier_get_fd(&ioc->read_notifier),
                           io_read, NULL, NULL, NULL, opaque);
    }
    if (write_ctx) {
        aio_set_fd_handler(write_ctx,
                           event_notifier_get_fd(&ioc->write_notifier),
                           io_write, NULL, NULL, NULL, opaque);
    }
}
