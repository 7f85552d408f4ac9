/*
 * Benchmark of streams: threads that send as fast as they can
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "mux-bench.h"
#include "qapi/error.h"
#include "qemu/timer.h"
#include "qemu/units.h"

uint8_t *bench_alloc(size_t size)
{
    uint8_t *p = g_malloc(size);

    memset(p, 0x5a, size);
    return p;
}

static void sleep_until(int64_t ns)
{
    int64_t left = ns - get_clock();

    if (left > 0) {
        g_usleep(left / SCALE_US);
    }
}

static bool writer_over(BenchWriter *w)
{
    return w->stop ? qatomic_read(w->stop) :
           get_clock() - w->b->began >= w->b->opt.seconds * 1e9;
}

void bench_writer_prepare(BenchWriter *w)
{
    size_t size = w->b->opt.size;

    w->buf = bench_alloc(MAX(w->b->opt.memory * MiB / size, 1) * size);
}

void bench_writer_run(BenchWriter *w)
{
    size_t size = w->b->opt.size;
    size_t total = MAX(w->b->opt.memory * MiB / size, 1) * size;
    int64_t began = get_clock();
    bool over = false;

    while (!over) {
        uint8_t *message = w->buf + w->bytes % total;

        over = writer_over(w);
        message[0] = over;
        if (w->write) {
            w->write(w->b, w->ioc, message, size);
        } else {
            qio_channel_write_all(w->ioc, (char *)message, size, &error_fatal);
        }
        w->bytes += size;
        if (w->rate && !over) {
            sleep_until(began + w->bytes / w->rate * 1e9);
        }
    }
}

static void *writer_thread(void *opaque)
{
    bench_writer_run(opaque);
    return NULL;
}

void bench_writer_start(BenchWriter *w)
{
    qemu_thread_create(&w->thread, "writer", writer_thread, w,
                       QEMU_THREAD_JOINABLE);
}

uint64_t bench_writer_finish(BenchWriter *w)
{
    g_free(w->buf);
    return w->bytes;
}

uint64_t bench_writer_join(BenchWriter *w)
{
    qemu_thread_join(&w->thread);
    return bench_writer_finish(w);
}

void bench_reader_prepare(BenchReader *r, Bench *b, QIOChannel *ioc)
{
    *r = (BenchReader) {
        .b = b,
        .ioc = ioc,
        .buf = bench_alloc(b->opt.size),
    };
}

void bench_reader_run(BenchReader *r)
{
    do {
        qio_channel_read_all(r->ioc, (char *)r->buf, r->b->opt.size,
                             &error_fatal);
    } while (!r->buf[0]);
}

static void *reader_thread(void *opaque)
{
    bench_reader_run(opaque);
    return NULL;
}

void bench_reader_start(BenchReader *r)
{
    qemu_thread_create(&r->thread, "reader", reader_thread, r,
                       QEMU_THREAD_JOINABLE);
}

void bench_reader_finish(BenchReader *r)
{
    g_free(r->buf);
}

void bench_reader_join(BenchReader *r)
{
    qemu_thread_join(&r->thread);
    bench_reader_finish(r);
}

/* --- the case --- */

static void bulk_source(Bench *b)
{
    g_autofree BenchWriter *w = g_new0(BenchWriter, b->n);
    char done;

    for (int i = 0; i < b->n; i++) {
        w[i] = (BenchWriter) {
            .b = b,
            .ioc = b->ioc[i],
            .rate = b->opt.rate * 1e6 / b->n,
        };
        bench_writer_prepare(&w[i]);
    }
    bench_begin(b);
    for (int i = 0; i < b->n; i++) {
        bench_writer_start(&w[i]);
    }
    for (int i = 0; i < b->n; i++) {
        b->bytes += bench_writer_join(&w[i]);
    }
    /* All was read */
    qio_channel_read_all(b->ioc[0], &done, 1, &error_fatal);
    bench_end(b);
}

static void bulk_destination(Bench *b)
{
    g_autofree BenchReader *r = g_new0(BenchReader, b->n);

    for (int i = 0; i < b->n; i++) {
        bench_reader_prepare(&r[i], b, b->ioc[i]);
    }
    bench_begin(b);
    for (int i = 0; i < b->n; i++) {
        bench_reader_start(&r[i]);
    }
    for (int i = 0; i < b->n; i++) {
        bench_reader_join(&r[i]);
    }
    qio_channel_write_all(b->ioc[0], "", 1, &error_fatal);
    bench_end(b);
}

void bench_bulk(Bench *b)
{
    if (b->is_source) {
        bulk_source(b);
    } else {
        bulk_destination(b);
    }
}
