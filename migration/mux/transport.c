/*
 * Migration multiplexer: the connection beneath a session
 *
 * Owns the transport's QIOChannel and all that depends on its type.  Never
 * looks at the bytes, never takes the session's lock.
 *
 * GnuTLS must not be entered by a reader and a writer at the same time.  On a
 * TCP socket both compete for the kernel's socket lock, which is not fair: a
 * thread that writes continuously acquires it again before the reader that it
 * woke can run, which costs dozens of wake-ups per read.  So reader and writer
 * take turns, except on a UNIX socket, where they do not contend.  The I/O
 * calls themselves do not block.
 *
 * QIOChannelTLS makes a record of each iovec element, so what is written there
 * is gathered into full records first.  A record once offered stays in @record
 * until it is gone, because GnuTLS wants the same one again.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#ifndef _WIN32
#include <sys/wait.h>
#endif
#include "qapi/error.h"
#include "qemu/event_notifier.h"
#include "qemu/iov.h"
#include "qemu/sockets.h"
#include "qemu/timer.h"
#include "qemu/units.h"
#include "io/channel-command.h"
#include "io/channel-socket.h"
#include "io/channel-tls.h"
#include "io/channel-watch.h"
#include "transport.h"
#include "trace.h"
#include "turns.h"

#define MUX_TLS_RECORD (16 * KiB)
/* After a read of less, assume that the peer waits for a reply */
#define MUX_MESSAGE (8 * KiB)
/* Bytes that may wait in the kernel unsent while latency matters */
#define MUX_URGENT_UNSENT (128 * KiB)
/* Time for a command to exit after its pipes are closed, and after SIGTERM */
#define MUX_COMMAND_EXIT_MS 2000
#define MUX_COMMAND_TERM_MS 500
#define MUX_COMMAND_POLL_MS 10

/* The descriptor that GLib polls for a watch, and one that ends the wait */
typedef struct MuxPoll {
    GMainContext *context;
    GSource *watch;
    GPollFD fds[2];
} MuxPoll;

enum { MUX_POLL_WAKE, MUX_POLL_WATCH };

struct MuxTransport {
    QIOChannel *ioc;
    QIOChannelTLS *tls;     /* @ioc if it is one */
    MuxPoll in;
    MuxPoll out;
    bool drained;           /* skip a read, which would hardly find anything */
    bool take_turns;
    MuxTurns turns;         /* reader and writer, with @take_turns */
    char *record;           /* with @tls: bytes that were offered to it */
    size_t record_len;
};

/*
 * The pipes of a command are watched one by one: when the command has closed
 * its input only, a watch for both would always be ready.
 */
static GSource *mux_poll_watch(QIOChannel *ioc, GIOCondition condition)
{
    QIOChannelCommand *command = (QIOChannelCommand *)
        object_dynamic_cast(OBJECT(ioc), TYPE_QIO_CHANNEL_COMMAND);

    condition |= G_IO_HUP | G_IO_ERR;
    if (!command) {
        return qio_channel_create_watch(ioc, condition);
    }
    return qio_channel_create_fd_watch(ioc, condition & G_IO_IN ?
                                       command->readfd : command->writefd,
                                       condition);
}

/*
 * An iteration of the context would cost more than the system call that it
 * makes, so poll its descriptors directly.
 */
static void mux_poll_init(MuxPoll *p, QIOChannel *ioc, GIOCondition condition)
{
    GPollFD fds[2];
    int timeout, wake, n;

    p->context = g_main_context_new();
    g_main_context_acquire(p->context);
    n = g_main_context_query(p->context, G_MAXINT, &timeout, p->fds, 1);
    assert(n == 1);
    wake = p->fds[MUX_POLL_WAKE].fd;
    p->watch = mux_poll_watch(ioc, condition);
    g_source_attach(p->watch, p->context);
    n = g_main_context_query(p->context, G_MAXINT, &timeout, fds, 2);
    assert(n == 2);
    p->fds[MUX_POLL_WATCH] = fds[fds[0].fd == wake];
    g_main_context_release(p->context);
}

static void mux_poll_cleanup(MuxPoll *p)
{
    if (p->watch) {
        g_source_destroy(p->watch);
        g_clear_pointer(&p->watch, g_source_unref);
    }
    g_clear_pointer(&p->context, g_main_context_unref);
}

static void mux_poll_wake(MuxPoll *p)
{
    if (p->context) {
        g_main_context_wakeup(p->context);
    }
}

/*
 * GLib ends the process where it gets no descriptor for a context.  To look
 * first leaves a moment for others to take them, but not a guest that is lost
 * each time.
 */
static bool mux_poll_possible(Error **errp)
{
    EventNotifier in, out;
    int ret = event_notifier_init(&in, false);

    if (ret == 0) {
        ret = event_notifier_init(&out, false);
        if (ret == 0) {
            event_notifier_cleanup(&out);
        }
        event_notifier_cleanup(&in);
    }
    if (ret < 0) {
        error_setg_errno(errp, -ret, "cannot create a notifier");
    }
    return ret == 0;
}

static void mux_poll_wait(MuxPoll *p, int64_t deadline)
{
    qemu_poll_ns(p->fds, 2, deadline == INT64_MAX ? -1 :
                            MAX(deadline - get_clock(), 0));
    if (p->fds[MUX_POLL_WAKE].revents) {
        /* Acknowledges the wake-up */
        g_main_context_acquire(p->context);
        g_main_context_check(p->context, G_MAXINT,
                             &p->fds[MUX_POLL_WAKE], 1);
        g_main_context_release(p->context);
    }
}

static bool mux_transport_is_unix(QIOChannel *ioc)
{
    QIOChannelSocket *sioc = (QIOChannelSocket *)
        object_dynamic_cast(OBJECT(ioc), TYPE_QIO_CHANNEL_SOCKET);

    return sioc && sioc->localAddr.ss_family == AF_UNIX;
}

MuxTransport *mux_transport_new(QIOChannel *ioc, Error **errp)
{
    MuxTransport *t = g_new0(MuxTransport, 1);
    QIOChannel *polled = ioc;

    t->ioc = QIO_CHANNEL(object_ref(OBJECT(ioc)));
    t->take_turns = !mux_transport_is_unix(ioc);
    mux_turns_init(&t->turns);
    if (object_dynamic_cast(OBJECT(ioc), TYPE_QIO_CHANNEL_TLS)) {
        t->tls = QIO_CHANNEL_TLS(ioc);
        t->record = g_malloc(MUX_TLS_RECORD);
        /* The reader empties GnuTLS before it polls: watch the socket only */
        polled = t->tls->master;
    }
    qio_channel_set_delay(ioc, false);
    if (qio_channel_set_blocking(ioc, false, errp) == 0 &&
        mux_poll_possible(errp)) {
        mux_poll_init(&t->in, polled, G_IO_IN);
        mux_poll_init(&t->out, polled, G_IO_OUT);
    }
    return t;
}

void mux_transport_free(MuxTransport *t)
{
    object_unref(OBJECT(t->ioc));
    mux_turns_destroy(&t->turns);
    g_free(t->record);
    g_free(t);
}

static void mux_transport_begin(MuxTransport *t)
{
    if (t->take_turns) {
        mux_turns_lock(&t->turns);
    }
}

static void mux_transport_end(MuxTransport *t)
{
    if (t->take_turns) {
        mux_turns_unlock(&t->turns);
    }
}

ssize_t mux_transport_readv(MuxTransport *t, const struct iovec *iov,
                            unsigned niov, Error **errp)
{
    ssize_t len;

    if (t->drained) {
        t->drained = false;
        return QIO_CHANNEL_ERR_BLOCK;
    }
    mux_transport_begin(t);
    /* An error in a later element would lose what QIOChannelTLS has read */
    len = qio_channel_readv(t->ioc, iov, t->tls ? 1 : niov, errp);
    mux_transport_end(t);
    t->drained = !t->tls && len > 0 && len < MUX_MESSAGE &&
        len < iov_size(iov, niov);
    return len;
}

static ssize_t mux_transport_write_record(MuxTransport *t, Error **errp)
{
    ssize_t len;

    mux_transport_begin(t);
    len = qio_channel_write(t->ioc, t->record, t->record_len, errp);
    mux_transport_end(t);
    if (len > 0) {
        t->record_len -= len;
        memmove(t->record, t->record + len, t->record_len);
    }
    return len;
}

static ssize_t mux_transport_write_tls(MuxTransport *t,
                                       const struct iovec *iov, unsigned niov,
                                       Error **errp)
{
    size_t size = iov_size(iov, niov);
    size_t done = 0;

    while (done < size) {
        ssize_t len;

        if (!t->record_len) {
            t->record_len = iov_to_buf(iov, niov, done, t->record,
                                       MIN(size - done, MUX_TLS_RECORD));
        }
        len = mux_transport_write_record(t, done ? NULL : errp);
        if (len <= 0) {
            return done ? done : len;
        }
        done += len;
    }
    return done;
}

ssize_t mux_transport_writev(MuxTransport *t, const struct iovec *iov,
                             unsigned niov, Error **errp)
{
    ssize_t len;

    if (t->tls) {
        return mux_transport_write_tls(t, iov, niov, errp);
    }
    mux_transport_begin(t);
    len = qio_channel_writev(t->ioc, iov, niov, errp);
    mux_transport_end(t);
    return len;
}

void mux_transport_wait_in(MuxTransport *t, int64_t deadline)
{
    mux_poll_wait(&t->in, deadline);
}

void mux_transport_wait_out(MuxTransport *t, int64_t deadline)
{
    mux_poll_wait(&t->out, deadline);
}

void mux_transport_wake_in(MuxTransport *t)
{
    mux_poll_wake(&t->in);
}

void mux_transport_wake_out(MuxTransport *t)
{
    mux_poll_wake(&t->out);
}

void mux_transport_set_urgent(MuxTransport *t, bool urgent)
{
#ifdef TCP_NOTSENT_LOWAT
    QIOChannel *ioc = t->tls ? t->tls->master : t->ioc;

    if (object_dynamic_cast(OBJECT(ioc), TYPE_QIO_CHANNEL_SOCKET)) {
        unsigned unsent = urgent ? MUX_URGENT_UNSENT : UINT32_MAX;

        /* Fails where it has no meaning, as on a UNIX socket */
        setsockopt(QIO_CHANNEL_SOCKET(ioc)->fd, IPPROTO_TCP,
                   TCP_NOTSENT_LOWAT, &unsent, sizeof(unsent));
    }
#endif
}

static void mux_transport_tls_bye(MuxTransport *t, int64_t deadline)
{
    QCryptoTLSSession *session = qio_channel_tls_get_session(t->tls);
    g_autoptr(Error) err = NULL;
    int ret;

    do {
        mux_transport_begin(t);
        ret = qcrypto_tls_session_bye(session, &err);
        mux_transport_end(t);
        if (ret != QCRYPTO_TLS_BYE_SENDING) {
            break;
        }
        mux_transport_wait_out(t, deadline);
    } while (get_clock() < deadline);

    trace_mux_transport_tls_bye(t->ioc, ret);
}

void mux_transport_finish(MuxTransport *t, int64_t deadline)
{
    /* With a record half sent there is no place for a bye */
    if (t->tls && !t->record_len) {
        mux_transport_tls_bye(t, deadline);
    }
    if (qio_channel_has_feature(t->ioc, QIO_CHANNEL_FEATURE_SHUTDOWN)) {
        qio_channel_shutdown(t->ioc, QIO_CHANNEL_SHUTDOWN_WRITE, NULL);
    }
}

void mux_transport_shutdown(MuxTransport *t)
{
    if (qio_channel_has_feature(t->ioc, QIO_CHANNEL_FEATURE_SHUTDOWN)) {
        qio_channel_shutdown(t->ioc, QIO_CHANNEL_SHUTDOWN_BOTH, NULL);
    }
}

void mux_transport_end_waits(MuxTransport *t)
{
    mux_poll_cleanup(&t->in);
    mux_poll_cleanup(&t->out);
}

#ifndef _WIN32
/* Returns: whether the command exits within @ms; if so, it is reaped */
static bool mux_command_exits(QIOChannelCommand *command, int ms)
{
    for (; ms >= 0; ms -= MUX_COMMAND_POLL_MS) {
        pid_t pid = waitpid(command->pid, NULL, WNOHANG);

        if (pid == command->pid || (pid < 0 && errno != EINTR)) {
            command->pid = 0;
            return true;
        }
        g_usleep(MUX_COMMAND_POLL_MS * 1000);
    }
    return false;
}

/*
 * Unlike qio_channel_close(), do not wait indefinitely for the command to exit
 * after its pipes are closed: terminate it.
 */
static void mux_command_close(QIOChannelCommand *command)
{
    if (command->readfd != -1) {
        close(command->readfd);
    }
    if (command->writefd != -1 && command->writefd != command->readfd) {
        close(command->writefd);
    }
    command->readfd = command->writefd = -1;
    if (mux_command_exits(command, MUX_COMMAND_EXIT_MS)) {
        return;
    }
    trace_mux_transport_kill(command, command->pid);
    kill(command->pid, SIGTERM);
    if (!mux_command_exits(command, MUX_COMMAND_TERM_MS)) {
        kill(command->pid, SIGKILL);
        mux_command_exits(command, INT_MAX);
    }
}
#endif

void mux_transport_close(MuxTransport *t)
{
#ifndef _WIN32
    QIOChannelCommand *command = (QIOChannelCommand *)
        object_dynamic_cast(OBJECT(t->ioc), TYPE_QIO_CHANNEL_COMMAND);

    if (command) {
        mux_command_close(command);
        return;
    }
#endif
    qio_channel_close(t->ioc, NULL);
}
