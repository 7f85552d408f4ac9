/*
 * Benchmark of streams over one connection, compared with sockets
 *
 *   mux-bench.c             options, two processes, the result as JSON
 *   mux-bench-link.c        the connections and their streams
 *   mux-bench-meter.c       what a run costs: time, CPU, switches, latencies
 *   mux-bench-bulk.c        threads that send as fast as they can
 *   mux-bench-request.c     requests and replies, also among bulk
 *   mux-bench-coroutine.c   coroutines in an IOThread that send
 *   mux-bench-nbd.c         NBD
 *   mux-bench-idle.c        streams that no thread reads
 *
 * The two sides are two processes, as in a migration.  The source sends; it is
 * the parent and reports.  Both run the same steps in the same order, so that
 * bench_barrier() keeps them together.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef TESTS_MUX_BENCH_H
#define TESTS_MUX_BENCH_H

#include "io/channel.h"
#include "qemu/thread.h"

typedef struct BenchOptions {
    char *what;                 /* the case */
    char *on;                   /* socket, mux or shared */
    bool tcp;                   /* else unix */
    bool tls;
    char *host;                 /* of the source, for TCP */
    char *peer_netns;           /* network namespace of the destination */
    int streams;                /* or sockets */
    int bulk;                   /* streams of bulk beside the requests */
    double seconds;
    int size;                   /* bytes of a bulk write */
    int memory;                 /* MiB that a bulk writer cycles through */
    int window;                 /* MiB, maximum of a stream; 0: default */
    int request, reply;         /* bytes */
    double rate;                /* MB/s of all bulk streams; 0: unlimited */
    char *target;               /* of NBD: null, or the name of a file */
    char *pattern;              /* of NBD: sequential or random */
    bool read;                  /* NBD: read, do not write */
    int depth;                  /* requests of NBD at a time */
    int tracepoint;             /* raw_syscalls/sys_enter, 0: do not count */
} BenchOptions;

/* What one process has used */
typedef struct BenchUsage {
    double cpu;                 /* seconds */
    int64_t switches;           /* voluntary context switches */
    int64_t syscalls;           /* -1: not counted */
    int64_t rss;                /* bytes */
    int64_t threads;
} BenchUsage;

typedef struct Bench {
    BenchOptions opt;
    bool is_source;
    int peer;                   /* socket to the other process */
    int (*pairs)[2];            /* connected unix sockets, made before fork */
    char *keys;                 /* folder with the key of TLS */
    int counter;                /* of system calls, -1: none */
    struct MuxSession *session;
    QIOChannel **ioc;           /* the streams, or sockets */
    unsigned n;                 /* of them */
    BenchUsage used;            /* between bench_begin() and bench_end() */
    int64_t began;              /* get_clock() */

    /* What the source reports */
    double seconds;
    uint64_t bytes;
    GArray *latencies;          /* int64_t, ns; NULL: none */
} Bench;

/* --- mux-bench.c --- */

/* Both processes have come here. */
void bench_barrier(Bench *b);

/* Exchange data with the other process. */
void bench_send(Bench *b, const void *data, size_t len);
void bench_receive(Bench *b, void *data, size_t len);

/* --- mux-bench-link.c --- */

/* Before fork() */
void bench_link_prepare(Bench *b);

/*
 * Connect, and open @opt.streams streams: @ioc.  Their order is the same on
 * both sides.  They block.
 */
void bench_link_open(Bench *b);
void bench_link_close(Bench *b);

/* --- mux-bench-meter.c --- */

/* Before there are other threads than the caller */
void bench_meter_open(Bench *b);

/* With the peer: begin and end what is measured. */
void bench_begin(Bench *b);
void bench_end(Bench *b);

/* Record the latency of a request; one thread does. */
void bench_latency(Bench *b, int64_t ns);

/* The result as one line of JSON */
void bench_report(Bench *b, const BenchUsage *destination);

/* --- the cases; each for both sides --- */

void bench_bulk(Bench *b);
void bench_request(Bench *b);
void bench_coroutine(Bench *b);
void bench_nbd(Bench *b);
void bench_idle(Bench *b);

/* --- mux-bench-bulk.c, for other cases, too --- */

typedef struct BenchWriter {
    Bench *b;
    QIOChannel *ioc;
    double rate;                /* bytes/s; 0: unlimited */
    bool *stop;                 /* atomic; NULL: after opt.seconds */
    /* Instead of qio_channel_write_all() */
    void (*write)(Bench *b, QIOChannel *ioc, const void *buf, size_t len);
    uint8_t *buf;               /* of bench_writer_prepare() */
    uint64_t bytes;
    QemuThread thread;
} BenchWriter;

/*
 * Send messages of opt.size bytes, the first of which tells whether the message
 * is the last one.  bench_writer_run() is also for coroutines.
 */
void bench_writer_prepare(BenchWriter *w);
void bench_writer_run(BenchWriter *w);
void bench_writer_start(BenchWriter *w);        /* in a thread */
/* Returns: the bytes sent; frees the buffer */
uint64_t bench_writer_finish(BenchWriter *w);
uint64_t bench_writer_join(BenchWriter *w);

typedef struct BenchReader {
    Bench *b;
    QIOChannel *ioc;
    uint8_t *buf;
    QemuThread thread;
} BenchReader;

/* Read messages until the last one */
void bench_reader_prepare(BenchReader *r, Bench *b, QIOChannel *ioc);
void bench_reader_run(BenchReader *r);
void bench_reader_start(BenchReader *r);
void bench_reader_finish(BenchReader *r);
void bench_reader_join(BenchReader *r);

/* Memory whose pages are present */
uint8_t *bench_alloc(size_t size);

#endif
