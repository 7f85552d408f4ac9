/*
 * Benchmark of streams: requests and replies, also among bulk
 *
 * Stream 0 carries the requests, and is urgent if there are bulk streams; these
 * are the others.  "--on shared" sends everything through one socket without
 * priorities: each message has a header, and a mutex serializes the writers.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "migration/mux/channel-mux.h"
#include "mux-bench.h"
#include "qapi/error.h"
#include "qemu/lockable.h"
#include "qemu/timer.h"

#define WARM_UP_NS (100 * SCALE_MS)     /* after which latencies count */

typedef struct SharedHeader {
    uint32_t is_request;
    uint32_t len;               /* 0: the end */
} SharedHeader;

static QemuMutex shared_lock;

static bool on_shared(Bench *b)
{
    return g_str_equal(b->opt.on, "shared");
}

static void shared_write(QIOChannel *ioc, bool is_request, const void *buf,
                         size_t len)
{
    SharedHeader header = { .is_request = is_request, .len = len };
    struct iovec iov[] = {
        { .iov_base = &header, .iov_len = sizeof(header) },
        { .iov_base = (void *)buf, .iov_len = len },
    };

    QEMU_LOCK_GUARD(&shared_lock);
    qio_channel_writev_all(ioc, iov, len ? 2 : 1, &error_fatal);
}

static void shared_write_bulk(Bench *b, QIOChannel *ioc, const void *buf,
                              size_t len)
{
    shared_write(ioc, false, buf, len);
}

/* --- source --- */

static void send_request(Bench *b, const char *buf, size_t len)
{
    if (on_shared(b)) {
        shared_write(b->ioc[0], true, buf, len);
    } else {
        qio_channel_write_all(b->ioc[0], buf, len, &error_fatal);
    }
}

static void send_requests(Bench *b)
{
    g_autofree char *request = (char *)bench_alloc(b->opt.request);
    g_autofree char *reply = (char *)bench_alloc(b->opt.reply);
    int64_t now = get_clock(), end = b->began + b->opt.seconds * 1e9;

    while (now < end) {
        int64_t before = now;

        request[0] = 1;
        send_request(b, request, b->opt.request);
        qio_channel_read_all(b->ioc[0], reply, b->opt.reply, &error_fatal);
        now = get_clock();
        if (before >= b->began + WARM_UP_NS || now >= end) {
            bench_latency(b, now - before);
        }
    }
    request[0] = 0;             /* no reply to this one */
    send_request(b, request, b->opt.request);
}

static void request_source(Bench *b)
{
    g_autofree BenchWriter *w = g_new0(BenchWriter, b->n);
    bool stop = false;

    for (int i = 1; i < b->n; i++) {
        w[i] = (BenchWriter) {
            .b = b,
            .ioc = b->ioc[on_shared(b) ? 0 : i],
            .rate = b->opt.rate * 1e6 / b->opt.bulk,
            .stop = &stop,
            .write = on_shared(b) ? shared_write_bulk : NULL,
        };
        bench_writer_prepare(&w[i]);
    }
    bench_begin(b);
    for (int i = 1; i < b->n; i++) {
        bench_writer_start(&w[i]);
    }
    send_requests(b);
    qatomic_set(&stop, true);
    for (int i = 1; i < b->n; i++) {
        b->bytes += bench_writer_join(&w[i]);
    }
    if (on_shared(b)) {
        shared_write(b->ioc[0], false, NULL, 0);
    }
    bench_end(b);
}

/* --- destination --- */

/* Returns: whether more requests follow */
static bool answer(Bench *b, const char *request, const char *reply)
{
    if (request[0]) {
        qio_channel_write_all(b->ioc[0], reply, b->opt.reply, &error_fatal);
    }
    return request[0];
}

static void answer_requests(Bench *b)
{
    g_autofree char *request = (char *)bench_alloc(b->opt.request);
    g_autofree char *reply = (char *)bench_alloc(b->opt.reply);

    do {
        qio_channel_read_all(b->ioc[0], request, b->opt.request, &error_fatal);
    } while (answer(b, request, reply));
}

static void answer_shared(Bench *b)
{
    size_t size = MAX(b->opt.size, b->opt.request);
    g_autofree char *buf = (char *)bench_alloc(size);
    g_autofree char *reply = (char *)bench_alloc(b->opt.reply);
    SharedHeader header;

    for (;;) {
        qio_channel_read_all(b->ioc[0], (char *)&header, sizeof(header),
                             &error_fatal);
        if (!header.len) {
            return;
        }
        g_assert(header.len <= size);
        qio_channel_read_all(b->ioc[0], buf, header.len, &error_fatal);
        if (header.is_request) {
            answer(b, buf, reply);
        }
    }
}

static void request_destination(Bench *b)
{
    g_autofree BenchReader *r = g_new0(BenchReader, b->n);

    if (on_shared(b)) {
        bench_begin(b);
        answer_shared(b);
        bench_end(b);
        return;
    }
    for (int i = 1; i < b->n; i++) {
        bench_reader_prepare(&r[i], b, b->ioc[i]);
    }
    bench_begin(b);
    for (int i = 1; i < b->n; i++) {
        bench_reader_start(&r[i]);
    }
    answer_requests(b);
    for (int i = 1; i < b->n; i++) {
        bench_reader_join(&r[i]);
    }
    bench_end(b);
}

void bench_request(Bench *b)
{
    qemu_mutex_init(&shared_lock);
    if (b->session && b->opt.bulk) {
        qio_channel_mux_set_urgent(QIO_CHANNEL_MUX(b->ioc[0]), true);
    }
    if (b->is_source) {
        request_source(b);
    } else {
        request_destination(b);
    }
    qemu_mutex_destroy(&shared_lock);
}
