/*
 * Benchmark of streams: coroutines in an IOThread that send, as NBD does
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "block/aio.h"
#include "mux-bench.h"
#include "qapi/error.h"
#include "qemu/coroutine.h"
#include "system/iothread.h"

typedef struct Task {
    BenchWriter writer;
    BenchReader reader;
    QemuEvent done;
} Task;

static void coroutine_fn write_co(void *opaque)
{
    Task *t = opaque;

    bench_writer_run(&t->writer);
    qemu_event_set(&t->done);
}

static void coroutine_fn read_co(void *opaque)
{
    Task *t = opaque;

    bench_reader_run(&t->reader);
    qemu_event_set(&t->done);
}

static void prepare(Bench *b, Task *t, QIOChannel *ioc)
{
    qio_channel_set_blocking(ioc, false, &error_fatal);
    qio_channel_set_follow_coroutine_ctx(ioc, true);
    qemu_event_init(&t->done, false);
    if (b->is_source) {
        t->writer = (BenchWriter) { .b = b, .ioc = ioc };
        bench_writer_prepare(&t->writer);
    } else {
        bench_reader_prepare(&t->reader, b, ioc);
    }
}

static void finish(Bench *b, Task *t)
{
    qemu_event_wait(&t->done);
    qemu_event_destroy(&t->done);
    if (b->is_source) {
        b->bytes += bench_writer_finish(&t->writer);
    } else {
        bench_reader_finish(&t->reader);
    }
}

void bench_coroutine(Bench *b)
{
    IOThread *iothread = iothread_create("io0", &error_fatal);
    AioContext *ctx = iothread_get_aio_context(iothread);
    g_autofree Task *t = g_new0(Task, b->n);

    for (int i = 0; i < b->n; i++) {
        prepare(b, &t[i], b->ioc[i]);
    }
    bench_begin(b);
    for (int i = 0; i < b->n; i++) {
        aio_co_schedule(ctx, qemu_coroutine_create(
            b->is_source ? write_co : read_co, &t[i]));
    }
    for (int i = 0; i < b->n; i++) {
        finish(b, &t[i]);
    }
    bench_barrier(b);           /* all was read */
    bench_end(b);
    iothread_destroy(iothread);
}
