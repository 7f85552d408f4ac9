/*
 * Two multiplexer sessions in one process, for tests
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "qemu/lockable.h"
#include "qemu/module.h"
#include "qemu/sockets.h"
#include "crypto/random.h"
#include "io/channel-socket.h"
#include "migration/mux/engine-int.h"
#include "migration/mux/session.h"
#include "mux-session-helpers.h"
#include <dlfcn.h>

void session_test_init(int *argc, char ***argv)
{
    signal(SIGPIPE, SIG_IGN);
    module_call_init(MODULE_INIT_QOM);
    qemu_init_main_loop(&error_abort);
    socket_init();
    qcrypto_random_init(&error_abort);
    g_test_init(argc, argv, NULL);
}

/* --- time --- */

static int64_t stopped_at;      /* ns; 0: the clock runs.  Atomic */
static int64_t ahead;           /* ns ahead of the system's clock.  Atomic */

static int real_gettime(clockid_t id, struct timespec *ts)
{
    static int (*real)(clockid_t, struct timespec *);

    if (!qatomic_read(&real)) {
        qatomic_set(&real, dlsym(RTLD_NEXT, "clock_gettime"));
    }
    return qatomic_read(&real)(id, ts);
}

/* Replaces libc's in the whole program */
int clock_gettime(clockid_t id, struct timespec *ts)
{
    int ret = real_gettime(id, ts);
    int64_t ns;

    if (ret < 0 || id != CLOCK_MONOTONIC) {
        return ret;
    }
    ns = qatomic_read_i64(&stopped_at) ?:
         ts->tv_sec * NANOSECONDS_PER_SECOND + ts->tv_nsec +
         qatomic_read_i64(&ahead);
    ts->tv_sec = ns / NANOSECONDS_PER_SECOND;
    ts->tv_nsec = ns % NANOSECONDS_PER_SECOND;
    return 0;
}

void clock_stop(void)
{
    g_assert(!qatomic_read_i64(&stopped_at));
    qatomic_set_i64(&stopped_at, get_clock());
}

void clock_advance(int ms)
{
    g_assert(qatomic_read_i64(&stopped_at));
    qatomic_set_i64(&stopped_at, qatomic_read_i64(&stopped_at) +
                                 ms * (int64_t)SCALE_MS);
}

/* The clock is monotonic: it stays ahead if it was advanced. */
void clock_run(void)
{
    struct timespec ts;
    int64_t now;

    g_assert(real_gettime(CLOCK_MONOTONIC, &ts) == 0);
    now = ts.tv_sec * NANOSECONDS_PER_SECOND + ts.tv_nsec;
    qatomic_set_i64(&ahead, MAX(qatomic_read_i64(&stopped_at) - now, 0));
    qatomic_set_i64(&stopped_at, 0);
}

void let_threads_wait(void)
{
    for (int i = 0; i < 20; i++) {
        main_loop_wait(true);
        g_usleep(1000);
    }
}

int64_t processor_ms(void)
{
    struct timespec ts;

    g_assert(clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &ts) == 0);
    return ts.tv_sec * 1000 + ts.tv_nsec / SCALE_MS;
}

/* --- two sessions --- */

static void end_ready(MuxSession *session, void *opaque)
{
    End *end = opaque;

    g_assert(session == end->session && !end->ready);
    end->ready = true;
}

static void end_changed(QIOChannelMux *ioc, void *opaque)
{
    End *end = opaque;

    end->changed++;
}

static void end_opened(MuxSession *session, QIOChannelMux *ioc, void *opaque)
{
    End *end = opaque;

    g_assert(end->ready);
    if (end->refuse) {
        g_autoptr(MuxFailure) full =
            mux_failure_new(NULL, MUX_CODE_REFUSED, "no room for %s",
                            qio_channel_mux_name(ioc));

        qio_channel_mux_abort(ioc, full);
        return;
    }
    if (!end->defer) {
        qio_channel_mux_accept(ioc);
    }
    g_ptr_array_add(end->streams, object_ref(OBJECT(ioc)));
}

static void end_ended(MuxSession *session, const MuxFailure *failure,
                      void *opaque)
{
    End *end = opaque;

    end->ended++;
    end->error = failure ? mux_failure_text(failure) : NULL;
}

static const MuxSessionOps end_ops = {
    .ready = end_ready,
    .opened = end_opened,
    .ended = end_ended,
};

static void end_start(End *end, QIOChannel *transport, MuxRole role)
{
    end->streams = g_ptr_array_new_with_free_func(object_unref);
    end->session = mux_session_new(transport, role, &end_ops, end);
}

Pair *pair_new_transports(QIOChannel *src, QIOChannel *dst)
{
    Pair *p = g_new0(Pair, 1);

    end_start(&p->src, src, MUX_ROLE_SOURCE);
    end_start(&p->dst, dst, MUX_ROLE_DESTINATION);
    return p;
}

void socket_pair(int fds[2], int sndbuf)
{
    g_assert(socketpair(AF_UNIX, SOCK_STREAM, 0, fds) == 0);
    for (int i = 0; sndbuf && i < 2; i++) {
        setsockopt(fds[i], SOL_SOCKET, SO_SNDBUF, &sndbuf, sizeof(sndbuf));
    }
}

Pair *pair_new(int sndbuf)
{
    QIOChannelSocket *sioc[2];
    int fds[2];
    Pair *p;
    int i;

    socket_pair(fds, sndbuf);
    for (i = 0; i < 2; i++) {
        sioc[i] = qio_channel_socket_new_fd(fds[i], &error_abort);
    }
    p = pair_new_transports(QIO_CHANNEL(sioc[0]), QIO_CHANNEL(sioc[1]));
    p->src.fd = fds[0];
    p->dst.fd = fds[1];
    object_unref(OBJECT(sioc[0]));
    object_unref(OBJECT(sioc[1]));
    return p;
}

static void end_free(End *end)
{
    mux_session_close_wait(end->session, NULL, CLOSE_MS);
    mux_session_detach(end->session);
    g_ptr_array_unref(end->streams);
    mux_session_unref(end->session);
    g_free(end->error);
}

void pair_free(Pair *p)
{
    /* A session closes when its peer has finished with all streams */
    g_ptr_array_set_size(p->src.streams, 0);
    g_ptr_array_set_size(p->dst.streams, 0);
    mux_session_close(p->dst.session, NULL, CLOSE_MS);
    end_free(&p->src);
    end_free(&p->dst);
    g_free(p);
}

QIOChannel *open_stream(Pair *p, const char *name, QIOChannel **peer)
{
    unsigned n = p->dst.streams->len;
    QIOChannelMux *ioc = mux_session_open(p->src.session, name, NULL);

    qio_channel_mux_set_changed(ioc, end_changed, &p->src);

    if (peer) {
        WAIT_FOR(p->dst.streams->len > n);
        *peer = g_ptr_array_index(p->dst.streams, n);
        object_ref(OBJECT(*peer));
        g_assert_cmpstr(name, ==, qio_channel_mux_name(QIO_CHANNEL_MUX(*peer)));
    }
    return QIO_CHANNEL(ioc);
}

char *stream_error(QIOChannel *ioc)
{
    g_autoptr(MuxFailure) failure =
        qio_channel_mux_get_failure(QIO_CHANNEL_MUX(ioc));

    return failure ? mux_failure_text(failure) : NULL;
}

bool stream_out_of_credit(QIOChannel *base)
{
    QIOChannelMux *ioc = QIO_CHANNEL_MUX(base);
    MuxStream *s = ioc->stream;

    QEMU_LOCK_GUARD(&ioc->session->lock);
    return ioc->writing && s->state == MUX_STREAM_OPEN &&
           s->tx_offset == s->tx_limit && s->offer.sent == s->offer.committed;
}

bool session_closed(MuxSession *s)
{
    QEMU_LOCK_GUARD(&s->lock);
    return s->closed;
}

bool transport_released(QIOChannel *ioc)
{
    return qatomic_read(&OBJECT(ioc)->ref) == 1;
}

static void note_end(MuxSession *session, const MuxFailure *failure,
                     void *opaque)
{
    *(char **)opaque = failure ? mux_failure_text(failure) :
                                 g_strdup("no error");
}

const MuxSessionOps note_end_ops = { .ended = note_end };

void session_free(MuxSession *session, QIOChannel *transport)
{
    mux_session_detach(session);
    mux_session_close(session, NULL, 0);
    mux_session_unref(session);
    WAIT_FOR(transport_released(transport));
    object_unref(OBJECT(transport));
}

/* --- threads that write and read a pattern --- */

/* Byte @i of pattern @seed: no period that a frame or buffer could have */
static uint8_t pattern_byte(unsigned seed, uint64_t i)
{
    return (i * 2654435761u + seed * 40503u) >> 13;
}

void pattern_fill(uint8_t *buf, size_t len, unsigned seed, uint64_t at)
{
    for (size_t i = 0; i < len; i++) {
        buf[i] = pattern_byte(seed, at + i);
    }
}

void pattern_check(const uint8_t *buf, size_t len, unsigned seed,
                          uint64_t at)
{
    for (size_t i = 0; i < len; i++) {
        if (buf[i] != pattern_byte(seed, at + i)) {
            g_error("stream %u differs at offset %" PRIu64, seed, at + i);
        }
    }
}

static void worker_result(Worker *w, ssize_t ret, Error *err)
{
    w->ret = ret;
    w->error = err ? g_strdup(error_get_pretty(err)) : NULL;
    error_free(err);
    qatomic_store_release(&w->done, true);
}

static void *write_pattern(void *opaque)
{
    Worker *w = opaque;
    g_autofree uint8_t *buf = g_malloc(w->chunk);
    GRand *rand = g_rand_new_with_seed(w->seed);
    uint64_t at = 0;
    Error *err = NULL;
    int ret = 0;

    while (at < w->size && ret == 0) {
        size_t len = MIN(w->size - at, g_rand_int_range(rand, 1, w->chunk + 1));
        struct iovec iov[2] = {
            { .iov_base = buf, .iov_len = len / 3 },
            { .iov_base = buf + len / 3, .iov_len = len - len / 3 },
        };

        pattern_fill(buf, len, w->seed, at);
        ret = qio_channel_writev_all(w->ioc, iov, 2, &err);
        at += len;
    }
    g_rand_free(rand);
    worker_result(w, ret, err);
    return NULL;
}

/* Read until the end. */
static void *read_pattern(void *opaque)
{
    Worker *w = opaque;
    g_autofree uint8_t *buf = g_malloc(w->chunk);
    uint64_t at = 0;
    Error *err = NULL;
    ssize_t len;

    while ((len = qio_channel_read(w->ioc, (char *)buf, w->chunk, &err)) > 0) {
        pattern_check(buf, len, w->seed, at);
        at += len;
    }
    w->size = at;
    worker_result(w, len, err);
    return NULL;
}

static Worker *worker_new(QIOChannel *ioc, void *(*run)(void *), unsigned seed,
                          uint64_t size, size_t chunk)
{
    Worker *w = g_new0(Worker, 1);

    w->ioc = ioc;
    w->seed = seed;
    w->size = size;
    w->chunk = chunk;
    qemu_thread_create(&w->thread, "worker", run, w, QEMU_THREAD_JOINABLE);
    return w;
}

bool worker_done(Worker *w)
{
    return qatomic_load_acquire(&w->done);
}

Worker *writer_new(QIOChannel *ioc, unsigned seed, uint64_t size, size_t chunk)
{
    return worker_new(ioc, write_pattern, seed, size, chunk);
}

Worker *reader_new(QIOChannel *ioc, unsigned seed, size_t chunk)
{
    return worker_new(ioc, read_pattern, seed, 0, chunk);
}

char *worker_join(Worker *w)
{
    char *error;

    WAIT_FOR(worker_done(w));
    qemu_thread_join(&w->thread);
    error = w->error;
    g_free(w);
    return error;
}

void worker_join_ok(Worker *w, uint64_t size)
{
    WAIT_FOR(worker_done(w));
    g_assert_cmpstr(w->error, ==, NULL);
    g_assert_cmpint(w->ret, ==, 0);
    g_assert_cmpuint(w->size, ==, size);
    worker_join(w);
}

void run_blocking(Pair *p, unsigned nstreams, uint64_t size, size_t chunk)
{
    unsigned i, n = 2 * nstreams;
    g_autofree QIOChannel **ioc = g_new(QIOChannel *, n);
    g_autofree Worker **writer = g_new(Worker *, n);
    g_autofree Worker **reader = g_new(Worker *, n);

    for (i = 0; i < n; i += 2) {
        g_autofree char *name = g_strdup_printf("stream-%u", i / 2);

        ioc[i] = open_stream(p, name, &ioc[i + 1]);
    }
    for (i = 0; i < n; i++) {
        writer[i] = writer_new(ioc[i], i, size, chunk);
        reader[i] = reader_new(ioc[i], i ^ 1, chunk);
    }
    for (i = 0; i < n; i++) {
        worker_join_ok(writer[i], size);
        qio_channel_shutdown(ioc[i], QIO_CHANNEL_SHUTDOWN_WRITE, &error_abort);
    }
    for (i = 0; i < n; i++) {
        uint64_t sent, received;

        worker_join_ok(reader[i], size);
        qio_channel_mux_get_bytes(QIO_CHANNEL_MUX(ioc[i]), &sent, &received);
        g_assert_cmpuint(sent, ==, size);
        g_assert_cmpuint(received, ==, size);
    }
    for (i = 0; i < n; i++) {
        object_unref(OBJECT(ioc[i]));
    }
}
