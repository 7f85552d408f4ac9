/*
 * Migration multiplexer: calls of the transport per MiB and per round trip
 *
 * The transport is memory: a write takes everything, a read what is there.  The
 * counts therefore do not depend on the machine's speed, except that a slower
 * one may merge calls.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "qemu/iov.h"
#include "qemu/lockable.h"
#include "qemu/sockets.h"
#include "qemu/units.h"
#include "io/channel-watch.h"
#include "migration/mux/frame.h"
#include "mux-session-helpers.h"

#define TRIPS   200
#define BULK    (64 * MiB)

/* --- the transport --- */

#define TYPE_WIRE "test-mux-wire"
OBJECT_DECLARE_SIMPLE_TYPE(Wire, WIRE)

struct Wire {
    QIOChannel parent;
    Wire *peer;
    QemuMutex lock;             /* protects the rest */
    GByteArray *in;             /* what the peer has sent */
    bool eof;
    EventNotifier readable;     /* set while there is something, or @eof */
    unsigned reads, writes;     /* atomic; not reads that find nothing */
};

static ssize_t wire_readv(QIOChannel *ioc, const struct iovec *iov,
                          size_t niov, int **fds, size_t *nfds, int flags,
                          Error **errp)
{
    Wire *w = WIRE(ioc);
    size_t len;

    QEMU_LOCK_GUARD(&w->lock);
    if (!w->in->len) {
        return w->eof ? 0 : QIO_CHANNEL_ERR_BLOCK;
    }
    qatomic_inc(&w->reads);
    len = iov_from_buf(iov, niov, 0, w->in->data, w->in->len);
    g_byte_array_remove_range(w->in, 0, len);
    if (!w->in->len && !w->eof) {
        event_notifier_test_and_clear(&w->readable);
    }
    return len;
}

static ssize_t wire_writev(QIOChannel *ioc, const struct iovec *iov,
                           size_t niov, int *fds, size_t nfds, int flags,
                           Error **errp)
{
    Wire *w = WIRE(ioc);
    Wire *peer = w->peer;
    size_t len = iov_size(iov, niov);

    qatomic_inc(&w->writes);
    QEMU_LOCK_GUARD(&peer->lock);
    for (size_t i = 0; i < niov; i++) {
        g_byte_array_append(peer->in, iov[i].iov_base, iov[i].iov_len);
    }
    event_notifier_set(&peer->readable);
    return len;
}

static void wire_end(Wire *w)
{
    QEMU_LOCK_GUARD(&w->lock);
    w->eof = true;
    event_notifier_set(&w->readable);
}

static int wire_shutdown(QIOChannel *ioc, QIOChannelShutdown how, Error **errp)
{
    Wire *w = WIRE(ioc);

    wire_end(w->peer);
    if (how != QIO_CHANNEL_SHUTDOWN_WRITE) {
        wire_end(w);
    }
    return 0;
}

static int wire_close(QIOChannel *ioc, Error **errp)
{
    return wire_shutdown(ioc, QIO_CHANNEL_SHUTDOWN_BOTH, errp);
}

static int wire_set_blocking(QIOChannel *ioc, bool enabled, Error **errp)
{
    return 0;
}

/* Always writable: only readability is watched. */
static GSource *wire_create_watch(QIOChannel *ioc, GIOCondition condition)
{
    int fd = event_notifier_get_fd(&WIRE(ioc)->readable);

    return qio_channel_create_fd_watch(ioc, fd, condition);
}

static void wire_init(Object *obj)
{
    Wire *w = WIRE(obj);

    qemu_mutex_init(&w->lock);
    w->in = g_byte_array_new();
    g_assert(event_notifier_init(&w->readable, false) == 0);
    qio_channel_set_feature(QIO_CHANNEL(w), QIO_CHANNEL_FEATURE_SHUTDOWN);
}

static void wire_finalize(Object *obj)
{
    Wire *w = WIRE(obj);

    event_notifier_cleanup(&w->readable);
    g_byte_array_unref(w->in);
    qemu_mutex_destroy(&w->lock);
}

static void wire_class_init(ObjectClass *klass, void *data)
{
    QIOChannelClass *ioc_klass = QIO_CHANNEL_CLASS(klass);

    ioc_klass->io_readv = wire_readv;
    ioc_klass->io_writev = wire_writev;
    ioc_klass->io_shutdown = wire_shutdown;
    ioc_klass->io_close = wire_close;
    ioc_klass->io_set_blocking = wire_set_blocking;
    ioc_klass->io_create_watch = wire_create_watch;
}

static const TypeInfo wire_info = {
    .parent = TYPE_QIO_CHANNEL,
    .name = TYPE_WIRE,
    .instance_size = sizeof(Wire),
    .instance_init = wire_init,
    .instance_finalize = wire_finalize,
    .class_init = wire_class_init,
};

/* --- two sessions on it --- */

typedef struct Cost {
    Wire *src, *dst;
    Pair *p;
    QIOChannel *ioc, *peer;     /* one stream */
} Cost;

static unsigned take_count(unsigned *count)
{
    return qatomic_xchg(count, 0);
}

/* Afterwards both sides have read all that the other one sent at first. */
static void exchange_byte(QIOChannel *from, QIOChannel *to)
{
    char byte = 0;

    qio_channel_write_all(from, &byte, 1, &error_abort);
    qio_channel_read_all(to, &byte, 1, &error_abort);
}

static void cost_init(Cost *c)
{
    c->src = WIRE(object_new(TYPE_WIRE));
    c->dst = WIRE(object_new(TYPE_WIRE));
    c->src->peer = c->dst;
    c->dst->peer = c->src;
    c->p = pair_new_transports(QIO_CHANNEL(c->src), QIO_CHANNEL(c->dst));
    c->ioc = open_stream(c->p, "x", &c->peer);
    WAIT_FOR(qio_channel_mux_state(QIO_CHANNEL_MUX(c->ioc)) ==
             MUX_STREAM_OPEN);
    exchange_byte(c->ioc, c->peer);
    exchange_byte(c->peer, c->ioc);
    /* from now on they count */
    for (int i = 0; i < 2; i++) {
        Wire *w = i ? c->dst : c->src;

        take_count(&w->reads);
        take_count(&w->writes);
    }
}

static void cost_cleanup(Cost *c)
{
    object_unref(OBJECT(c->ioc));
    object_unref(OBJECT(c->peer));
    pair_free(c->p);
    WAIT_FOR(transport_released(QIO_CHANNEL(c->src)) &&
             transport_released(QIO_CHANNEL(c->dst)));
    object_unref(OBJECT(c->src));
    object_unref(OBJECT(c->dst));
}

static void *answer(void *opaque)
{
    static char request[64], reply[4 * KiB];

    for (int i = 0; i < TRIPS; i++) {
        qio_channel_read_all(opaque, request, sizeof(request), &error_abort);
        qio_channel_write_all(opaque, reply, sizeof(reply), &error_abort);
    }
    return NULL;
}

/* A message is one write and one read, in both directions. */
static void test_round_trips(void)
{
    static char request[64], reply[4 * KiB];
    QemuThread thread;
    Cost c;

    cost_init(&c);
    qemu_thread_create(&thread, "answer", answer, c.peer,
                       QEMU_THREAD_JOINABLE);
    for (int i = 0; i < TRIPS; i++) {
        qio_channel_write_all(c.ioc, request, sizeof(request), &error_abort);
        qio_channel_read_all(c.ioc, reply, sizeof(reply), &error_abort);
    }
    qemu_thread_join(&thread);
    g_assert_cmpuint(take_count(&c.src->writes), ==, TRIPS);
    g_assert_cmpuint(take_count(&c.dst->writes), ==, TRIPS);
    g_assert_cmpuint(take_count(&c.src->reads), ==, TRIPS);
    g_assert_cmpuint(take_count(&c.dst->reads), ==, TRIPS);
    cost_cleanup(&c);
}

static void *read_bulk(void *opaque)
{
    g_autofree char *buf = g_malloc(256 * KiB);

    for (size_t left = BULK; left; ) {
        ssize_t len = qio_channel_read(opaque, buf, MIN(left, 256 * KiB),
                                       &error_abort);

        g_assert_cmpint(len, >, 0);
        left -= len;
    }
    return NULL;
}

/* Two writes for each MiB, and two reads for a frame; little goes back. */
static void test_bulk(void)
{
    enum { MIBS = BULK / MiB, FRAMES = BULK / (256 * KiB) };
    g_autofree char *buf = g_malloc0(MiB);
    QemuThread thread;
    unsigned reads, writes, returned;
    Cost c;

    cost_init(&c);
    qemu_thread_create(&thread, "read", read_bulk, c.peer,
                       QEMU_THREAD_JOINABLE);
    for (int i = 0; i < MIBS; i++) {
        qio_channel_write_all(c.ioc, buf, MiB, &error_abort);
    }
    qemu_thread_join(&thread);
    writes = take_count(&c.src->writes);
    reads = take_count(&c.dst->reads);
    returned = take_count(&c.dst->writes);
    g_test_message("%d MiB: %u writes, %u reads, %u writes by the reader",
                   MIBS, writes, reads, returned);
    /* In addition: replies to PING, and batches that the credit cuts short */
    g_assert_cmpuint(writes, <=, 3 * MIBS);
    g_assert_cmpuint(returned, <=, MIBS);
    g_assert_cmpuint(reads, <=, 2 * FRAMES);
    cost_cleanup(&c);
}

int main(int argc, char **argv)
{
    session_test_init(&argc, &argv);
    type_register_static(&wire_info);
    g_test_add_func("/io/channel/mux/cost/round-trips", test_round_trips);
    g_test_add_func("/io/channel/mux/cost/bulk", test_bulk);
    return g_test_run();
}
