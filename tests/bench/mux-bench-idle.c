/*
 * Benchmark of streams: memory and threads of streams that no thread reads
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "mux-bench.h"
#include "qapi/error.h"

#define QUIET_MS 200            /* no more credit arrives */

/* Returns: the bytes that could be written without waiting */
static uint64_t fill(QIOChannel *ioc, const uint8_t *buf, size_t size)
{
    uint64_t bytes = 0;
    ssize_t len;

    while ((len = qio_channel_write(ioc, (char *)buf, size,
                                    &error_fatal)) > 0) {
        bytes += len;
    }
    return bytes;
}

void bench_idle(Bench *b)
{
    g_autofree uint8_t *buf = bench_alloc(b->opt.size);

    bench_begin(b);
    if (b->is_source) {
        uint64_t bytes;

        for (int i = 0; i < b->n; i++) {
            qio_channel_set_blocking(b->ioc[i], false, &error_fatal);
        }
        do {
            bytes = b->bytes;
            for (int i = 0; i < b->n; i++) {
                b->bytes += fill(b->ioc[i], buf, b->opt.size);
            }
            g_usleep(QUIET_MS * 1000);
        } while (b->bytes > bytes);
    }
    bench_end(b);
}
