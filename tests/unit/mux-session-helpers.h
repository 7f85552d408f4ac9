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

#define CLOSE_MS 60000          /* for a session to close cleanly */

/* What main() of a test of sessions does first, as in QEMU proper */
void session_test_init(int *argc, char ***argv);

/*
 * Run the main loop until @cond is true.  The limit only ends a hang.  It is a
 * number of rounds of at least 0.1 ms each, because the clock may be stopped.
 */
#define PATIENCE 1000000
#define WAIT_FOR(cond) do {                                             \
        for (unsigned rounds_ = 0; !(cond); rounds_++) {                \
            g_assert_cmpuint(rounds_, <, PATIENCE);                     \
            main_loop_wait(true);                                       \
            g_usleep(100);                                              \
        }                                                               \
    } while (0)

/*
 * Run the main loop for a while, so that threads reach the call in which they
 * block.  Use this only to check that something does not happen: a thread that
 * takes longer makes the test weaker, but does not make it fail.
 */
void let_threads_wait(void);

/* --- time --- */

/*
 * Stop CLOCK_MONOTONIC for the whole program, advance it by @ms, or let it run
 * again.  Tests of time limits then do not depend on the machine's speed.  A
 * thread that waits with a limit sleeps, in real time, for the time that was
 * left when the wait began, and then reads the clock.
 */
void clock_stop(void);
void clock_advance(int ms);
void clock_run(void);

/* --- no thread spins --- */

/* Processor time that is used within IDLE_MS only if a thread spins, ms */
#define IDLE_MS         300
#define BUSY_MS         150

/* Processor time that this process has used, ms */
int64_t processor_ms(void);

/* No thread spins during @call, which waits for IDLE_MS. */
#define ASSERT_IDLE(call) do {                                          \
        int64_t before_ = processor_ms();                               \
        call;                                                           \
        g_assert_cmpint(processor_ms() - before_, <, BUSY_MS);          \
    } while (0)

/* --- two sessions, whose callbacks record their arguments --- */

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
/* Closes both sessions cleanly if they are open */
void pair_free(Pair *p);

/* Open @name at the source; *@peer, if wanted, becomes a reference. */
QIOChannel *open_stream(Pair *p, const char *name, QIOChannel **peer);

/* The stream's error text or NULL, to be freed */
char *stream_error(QIOChannel *ioc);

/* A writer is blocked in @ioc because the peer's credit is used up. */
bool stream_out_of_credit(QIOChannel *ioc);

/* The connection has ended, and @s does not use the transport any more. */
bool session_closed(MuxSession *s);

/* Only the caller has a reference to @ioc: the session has been freed. */
bool transport_released(QIOChannel *ioc);

/* For a session whose opaque is a char **: receives how the session ended */
extern const MuxSessionOps note_end_ops;

/* Free @session, which has ended, without waiting for its peer to close. */
void session_free(MuxSession *session, QIOChannel *transport);

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
