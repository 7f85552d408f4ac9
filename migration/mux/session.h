/*
 * Migration multiplexer: what the parts of the session layer share
 *
 *   session.c     the session: life, callbacks, the end
 *   session-tx.c  the sender's role
 *   session-rx.c  the receiver's role
 *   session-settle.c what follows from a change to the engine
 *   session-lock.c the lock, and who is woken when it is released
 *   channel-mux.c QIOChannelMux: reading, writing, shutdown
 *   watch.c       waiting for a QIOChannelMux in an event loop
 *   transport.c   the connection beneath
 *
 * One lock, MuxSession.lock, protects the engine and the state of every
 * stream.  It is held for short computations only: never over a system call
 * that could block, never over a callback, and no lock is taken under it
 * (the main loop's list of bottom halves is lock-free).
 *
 * Sending is a role that one thread has at a time (MuxSession.sending): a
 * writer that finds it free takes it, and sends what there is, its own or
 * others', until its own is through.  Who waits for the role meanwhile is in
 * MuxSession.writers.  A reader that finds it free sends a batch, with the
 * credit that it gives back.  The send thread sends what no other thread is
 * sending.
 *
 * Receiving is a role, too (MuxSession.receiving): see session-rx.c.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef MIGRATION_MUX_SESSION_H
#define MIGRATION_MUX_SESSION_H

#include "qemu/event_notifier.h"
#include "qemu/queue.h"
#include "qemu/stats64.h"
#include "qemu/thread.h"
#include "channel-mux.h"
#include "transport.h"

#define MUX_IOV 64              /* elements of one system call */
/* Default time limit for sending the final frames */
#define MUX_LINGER_NS (2 * NANOSECONDS_PER_SECOND)

struct QIOChannelMux {
    QIOChannel parent;
    MuxSession *session;        /* a reference; NULL: never was a stream */
    MuxStream *stream;
    char *name;
    QTAILQ_ENTRY(QIOChannelMux) next;       /* in MuxSession.channels */

    Stat64 bytes_sent;
    Stat64 bytes_received;

    /* The rest under MuxSession.lock */
    bool blocking;
    bool read_shut;             /* readers see EOF, what comes is dropped */
    bool write_shut;            /* writers see an error */
    bool urgent;
    bool peer_reset;            /* the peer has aborted it */
    MuxFailure *failure;        /* why this side has */

    bool reading;               /* a reader is at work outside of the lock */
    unsigned reads_in_row;      /* without QIO_CHANNEL_ERR_BLOCK between them */
    size_t read_least;          /* so much, or an end, can be read; >= 1 */
    QemuCond read_cond;
    unsigned readers_waiting;   /* there */
    bool writing;               /* a writer's offer is with the engine */
    size_t write_size;          /* bytes of that offer */
    GByteArray *held_back;      /* else what is written goes here */
    QemuCond write_cond;
    unsigned writers_waiting;   /* there */
    QTAILQ_ENTRY(QIOChannelMux) next_writer; /* in MuxSession.writers */

    /*
     * Level-triggered: set while ready, and cleared only when a caller is
     * returned QIO_CHANNEL_ERR_BLOCK.  Created when needed.
     */
    bool notifiers;
    EventNotifier read_notifier, write_notifier;
    bool read_notified, write_notified;     /* or about to be */

    QIOChannelMuxChanged *changed;      /* with the BQL held */
    void *changed_opaque;
    /* Callbacks that are due; the stream is then in MuxSession.callbacks */
    bool call_opened, call_changed;
    QTAILQ_ENTRY(QIOChannelMux) next_callback;
};

/* Who is to be woken when the lock is released */
typedef struct MuxWake {
    QIOChannelMux *ioc;         /* a reference, once it is in MuxSession */
    bool readers, writers;
    bool read_notifier, write_notifier;
} MuxWake;

#define MUX_WAKES 8

struct MuxSession {
    int refs;                   /* atomic */
    QemuMutex lock;             /* session-lock.c alone uses it */
    MuxWake wakes[MUX_WAKES];   /* of different streams */
    unsigned nwakes;
    MuxEngine *engine;
    MuxTransport *transport;
    QTAILQ_HEAD(, QIOChannelMux) channels;
    unsigned urgent;            /* how many of them are */

    /* sending */
    bool sending;               /* a thread has the sender's role */
    bool in_write;              /* and the transport uses the batch */
    unsigned writes;            /* how often it has done that */
    QemuCond sender_moved;      /* they, @flushed or @linger have changed */
    QTAILQ_HEAD(, QIOChannelMux) writers;
    QemuCond send_cond;         /* the send thread waits here */
    struct iovec tx_iov[MUX_IOV];
    char *tx_error;             /* the transport takes no more */

    /* receiving */
    bool receiving;             /* a thread has the receiver's role */
    bool rx_in_call;            /* and is using the transport */
    QIOChannelMux *rx_reader;   /* of this stream; NULL: the receive thread */
    unsigned rx_turns;          /* how often readers have left it */
    bool rx_needed;             /* a thread that does not read waits */
    bool rx_woke;               /* a reader was woken, and may read next */
    int64_t rx_yield;           /* until then it is left to readers */
    bool rx_parked;             /* the receive thread sleeps until it is left */
    QemuCond receive_cond;      /* the receive thread waits here for readers */
    bool wake_receive_thread;   /* when the lock is released */
    int64_t rx_deadline;        /* until when the receive thread waits */
    int64_t heard;              /* when the last bytes came */
    int64_t tick_due;           /* INT64_MAX: no ops->tick */
    bool ticking;               /* ops->tick is being called */
    QemuCond ticked;            /* it has returned */

    /* the end, in this order */
    bool closing;               /* GOAWAY follows once all else is sent */
    MuxFailure *why;            /* with this reason; NULL: code 0 */
    bool over;                  /* the engine has ended */
    bool last_words;            /* and has left something to send */
    bool flushed;               /* the send thread is gone */
    bool closed;                /* and the transport must not be used */
    bool transport_closed;      /* and its command, if any, has exited */
    QemuCond closed_cond;       /* @transport_closed */
    int64_t linger;             /* time limit of a clean end, get_clock() */

    /* callbacks */
    const MuxSessionOps *ops;   /* NULL: detached */
    void *opaque;
    bool call_scheduled;
    bool call_ready, call_ended;
    QTAILQ_HEAD(, QIOChannelMux) callbacks;
};

/* --- session-lock.c --- */

/* The lock of the session; unlocking settles first, and then wakes. */
void mux_session_lock(MuxSession *s);
void mux_session_unlock(MuxSession *s);

typedef MuxSession MuxSessionGuard;

static inline MuxSessionGuard *mux_session_guard(MuxSession *s)
{
    mux_session_lock(s);
    return s;
}

G_DEFINE_AUTOPTR_CLEANUP_FUNC(MuxSessionGuard, mux_session_unlock)

/* Hold the lock until the end of the block (of the one that follows) */
#define MUX_SESSION_LOCK_GUARD(s) \
    g_autoptr(MuxSessionGuard) mux_session_guard_ G_GNUC_UNUSED = \
        mux_session_guard(s)
#define WITH_MUX_SESSION_LOCK_GUARD(s) \
    for (g_autoptr(MuxSessionGuard) mux_session_guard_ = mux_session_guard(s); \
         mux_session_guard_; \
         mux_session_unlock(g_steal_pointer(&mux_session_guard_)))

/*
 * Wait with the lock held, which is released meanwhile, until @deadline
 * (get_clock(); INT64_MAX: none).  The caller checks again what it waits for:
 * this may return early.
 */
void mux_session_wait(MuxSession *s, QemuCond *cond);
void mux_session_timedwait(MuxSession *s, QemuCond *cond, int64_t deadline);

/*
 * Do this when the lock is released: a thread that is woken with the lock held
 * waits for it next.  With the lock held.
 */
void mux_session_wake(MuxSession *s, const MuxWake *wake);

/*
 * A stream may lose its last reference in any thread; then it waits for the
 * lock before it goes away.  With the lock held.
 *
 * Returns: false if @ioc is about to go away
 */
bool mux_channel_try_ref(QIOChannelMux *ioc);

/* --- session.c; all with the lock held --- */

void mux_session_call_ready(MuxSession *s);
void mux_session_call_opened(MuxSession *s, MuxStream *stream);
void mux_session_call_changed(QIOChannelMux *ioc);

/* When the receive thread has to look at the time at the latest */
int64_t mux_session_next_due(MuxSession *s);

/* The engine has ended. */
void mux_session_over(MuxSession *s);

/* Give up on a good end at @deadline, if not before. */
void mux_session_hurry(MuxSession *s, int64_t deadline);

/*
 * Returns: why the session is being closed, for the peer, with the end of
 * @stream (NULL: of the connection); to be freed; NULL if for no failure
 */
char *mux_session_closing_text(MuxSession *s, const char *stream);

/* Returns: why the connection has ended; NULL: without a failure, or not yet */
MuxFailure *mux_session_failure(MuxSession *s);

/* The connection is of no use any more, @text says why. */
void mux_session_cut(MuxSession *s, const char *text);

/* --- session-settle.c; with the lock held --- */

/* What follows from changes to the engine; mux_session_unlock() does it. */
void mux_session_settle(MuxSession *s);

/* --- session-rx.c; all but the thread with the lock held --- */

void *mux_session_receive_thread(void *opaque);

/*
 * Take the receiver's role, which must be free, and read until @ioc is readable
 * or something has come in @iov (without elements: nothing will).  Without
 * @block, also returns when the transport has no more data, or after several
 * reads of data for others.  Drops the lock meanwhile.
 *
 * Returns: bytes that are in @iov and have been read thereby
 */
size_t mux_session_read(MuxSession *s, QIOChannelMux *ioc,
                        const struct iovec *iov, unsigned niov, bool block);

/* A thread that does not receive has to wait for the peer. */
void mux_session_needs_receiver(MuxSession *s);

/*
 * Wake the receive thread, and the thread that waits for the transport: a time
 * limit or the state of the session has changed.
 */
void mux_session_wake_receiver(MuxSession *s);

/* --- session-tx.c; all but the thread with the lock held --- */

void *mux_session_send_thread(void *opaque);

/* The sender's role is free: wake a thread that has something to send. */
void mux_session_kick_sender(MuxSession *s);

/*
 * Take the sender's role, which must be free, and send until the offer of
 * @ioc is through (NULL: until a writer waits for the role), or there is
 * nothing to send, or, unless @block, the transport takes no more or, with
 * NULL, one batch was sent.  Drops the lock meanwhile.
 *
 * Returns: whether there was something to send
 */
bool mux_session_pump(MuxSession *s, QIOChannelMux *ioc, bool block);

/* --- channel-mux.c; all with the lock held --- */

QIOChannelMux *mux_channel_new(MuxSession *s, MuxStream *stream);

/* Wake the threads that wait for what @ioc has become ready for. */
void mux_channel_update(QIOChannelMux *ioc);

bool mux_channel_readable(QIOChannelMux *ioc);
bool mux_channel_writable(QIOChannelMux *ioc);

/* No write on @ioc can succeed any more. */
bool mux_channel_write_over(QIOChannelMux *ioc);

/* What is offered for @ioc is sent, or will never be. */
bool mux_channel_write_done(QIOChannelMux *ioc);

/* Abort the stream in both directions; @why is sent to the peer. */
void mux_channel_fail(QIOChannelMux *ioc, uint32_t code, const char *why);

/* --- peer-text.c --- */

/* Returns: @text without the names of files; to be freed */
char *mux_peer_text(const char *text);

/* --- watch.c --- */

/*
 * Make the notifiers; with the lock held.  If that fails, so does the stream,
 * so that no caller waits for them.
 */
bool mux_channel_init_notifiers(QIOChannelMux *ioc, Error **errp);
void mux_channel_cleanup_notifiers(QIOChannelMux *ioc);
GSource *mux_channel_create_watch(QIOChannel *ioc, GIOCondition condition);
void mux_channel_set_aio_fd_handler(QIOChannel *ioc,
                                    AioContext *read_ctx, IOHandler *io_read,
                                    AioContext *write_ctx, IOHandler *io_write,
                                    void *opaque);

#endif
