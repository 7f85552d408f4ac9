/*
 * Two multiplexer sessions in one process, for tests
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef TESTS_MUX_SESSION_HELPERS_H
#define TESTS_MUX_SESSION_HELPERS_H

#include "qemu/main-loop.h"
#include "qemu/thread.h"
#include "qemu/timer.h"
#include "migration/mux/channel-mux.h"

#define PATIENCE_MS 120000      /* for what has to happen: bounds a hang */
#define CLOSE_MS 5000           /* for a session to close */
#define GOOD_END_MS 60000       /* ... when it must not be cut */

/* Run the main loop until @cond, which must come true in time. */
#define WAIT_FOR(cond) do {                                             \
        int64_t limit_ = get_clock() + PATIENCE_MS * (int64_t)SCALE_MS; \
        while (!(cond)) {                                               \
            g_assert_cmpint(get_clock(), <, limit_);                    \
            main_loop_wait(true);                                       \
            g_usleep(100);                                              \
        }                                                               \
    } while (0)

/* --- two sessions; the callbacks keep what they are told --- */

typedef struct End {
    MuxSession *session;
    int fd;                     /* of the transport */
    GPtrArray *streams;         /* opened by the peer, in this order */
    bool defer;                 /* do not accept them at once */
    bool refuse;                /* abort them */
    bool ready;
    int changed;
    int ended;
    char *error;
} End;

typedef struct Pair {
    End src;
    End dst;
} Pair;

/* A connected pair of sockets with this send buffer, 0: the system's */
void socket_pair(int fds[2], int sndbuf);
/* Connected by such a pair */
Pair *pair_new(int sndbuf);
/* Connected by these */
Pair *pair_new_transports(QIOChannel *src, QIOChannel *dst);
/* Closes what is not closed, in good order */
void pair_free(Pair *p);

/* Open @name at the source; *@peer, if wanted, becomes a reference. */
QIOChannel *open_stream(Pair *p, const char *name, QIOChannel **peer);

/* The stream's error text or NULL, to be freed */
char *stream_error(QIOChannel *ioc);

/* --- threads that write and read a pattern --- */

typedef struct Worker {
    QemuThread thread;
    QIOChannel *ioc;
    unsigned seed;
    uint64_t size;              /* bytes to write, or read */
    size_t chunk;               /* most bytes in one call */
    bool done;
    ssize_t ret;                /* of the last call */
    char *error;
} Worker;

void pattern_fill(uint8_t *buf, size_t len, unsigned seed, uint64_t at);
void pattern_check(const uint8_t *buf, size_t len, unsigned seed, uint64_t at);

/* Write @size bytes, in blocking mode or not */
Worker *writer_new(QIOChannel *ioc, unsigned seed, uint64_t size,
                   size_t chunk);
/* Read until the end, in blocking mode */
Worker *reader_new(QIOChannel *ioc, unsigned seed, size_t chunk);
bool worker_done(Worker *w);
/* Waits for it; returns its error's text, to be freed, or NULL */
char *worker_join(Worker *w);
/* It must have come to @size bytes without error. */
void worker_join_ok(Worker *w, uint64_t size);

/* Patterns both ways on @nstreams streams at once */
void run_blocking(Pair *p, unsigned nstreams, uint64_t size, size_t chunk);

#endif
