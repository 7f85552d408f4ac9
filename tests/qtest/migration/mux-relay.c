/*
 * Relay for tests of the migration multiplexer
 *
 * Each direction is a parser and a queue.  What is read is cut at the places
 * of faults; a fault then waits in the queue until all before it was sent.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include <poll.h>
#include "qapi/error.h"
#include "qapi/qapi-types-sockets.h"
#include "qemu/atomic.h"
#include "qemu/event_notifier.h"
#include "qemu/sockets.h"
#include "qemu/units.h"
#include "migration/mux-relay.h"
#include "migration/mux-relay-fault.h"

#define READ_SIZE       (64 * KiB)
#define QUEUE_MAX       (256 * KiB)     /* without a delay */
#define QUEUE_DELAYED   (64 * MiB)      /* with one */
#define THROTTLED_RCVBUF (64 * KiB)     /* else the kernel holds seconds */
#define QUANTUM_US      10000           /* of throttled sending */

/* Bytes; or a fault, or the end of the direction, whose turn has come */
typedef struct Piece {
    int64_t due;                /* us */
    MuxFault *fault;
    bool end;
    size_t len, sent;
    uint8_t data[];
} Piece;

typedef struct Direction {
    unsigned bit;               /* MUX_DIR_TO or MUX_DIR_FROM */
    int in, out;                /* sockets */
    MuxFrames frames;
    GByteArray *held;           /* read, not yet taken by the parser */
    uint64_t offset;            /* of the next byte to be taken */
    GQueue queue;               /* of Piece */
    size_t queued;              /* bytes */
    bool ended;                 /* nothing comes any more */
    bool dead;                  /* nothing can be sent any more */
    bool discard;               /* half-closed by a fault */
    bool silent;
    int64_t delay;              /* us */
    uint64_t rate;              /* bytes per second; 0: no limit */
    int64_t next_send;          /* us */
} Direction;

struct MuxRelay {
    GThread *thread;
    EventNotifier wake;
    int listener, sockets[2];
    SocketAddress *address, *connect;
    MuxRelayEvent *event;
    void *opaque;
    GAsyncQueue *added;         /* faults that the thread has not seen */
    bool stop;

    GMutex lock;                /* for these: */
    GCond cond;
    unsigned fired;
    bool closed;

    /* The thread's own */
    GPtrArray *faults;          /* owns them all */
    GHashTable *names;
    Direction dirs[2];
    bool over;
    bool rst;
};

static void G_GNUC_PRINTF(2, 3) emit(MuxRelay *r, const char *fmt, ...)
{
    g_autofree char *event = NULL;
    va_list ap;

    if (!r->event) {
        return;
    }
    va_start(ap, fmt);
    event = g_strdup_vprintf(fmt, ap);
    va_end(ap);
    r->event(r->opaque, event);
}

/* --- faults that happen --- */

static void close_direction(Direction *d)
{
    g_queue_clear_full(&d->queue, g_free);
    d->queued = 0;
    shutdown(d->out, SHUT_WR);
    d->discard = true;
}

static void set_rate(Direction *d, uint64_t rate)
{
    int size = THROTTLED_RCVBUF;

    d->rate = rate;
    setsockopt(d->in, SOL_SOCKET, SO_RCVBUF, &size, sizeof(size));
}

static void happen_to(Direction *d, const MuxFault *f)
{
    switch (f->kind) {
    case MUX_FAULT_HALF_CLOSE:
        close_direction(d);
        break;
    case MUX_FAULT_SILENCE:
        d->silent = true;
        break;
    case MUX_FAULT_DELAY:
        d->delay = f->value * 1000;
        break;
    case MUX_FAULT_THROTTLE:
        set_rate(d, f->value);
        break;
    case MUX_FAULT_HEAL:
        d->silent = false;
        d->delay = 0;
        d->rate = 0;
        break;
    default:
        break;
    }
}

static void happen(MuxRelay *r, const MuxFault *f)
{
    r->over |= f->kind == MUX_FAULT_CUT || f->kind == MUX_FAULT_RESET;
    r->rst |= f->kind == MUX_FAULT_RESET;
    for (unsigned i = 0; i < ARRAY_SIZE(r->dirs); i++) {
        if (f->dir & r->dirs[i].bit) {
            happen_to(&r->dirs[i], f);
        }
    }

    emit(r, "fired %s", f->text);
    g_mutex_lock(&r->lock);
    r->fired++;
    g_cond_broadcast(&r->cond);
    g_mutex_unlock(&r->lock);
}

/* --- from a socket to the queue --- */

static Piece *put_piece(Direction *d, const uint8_t *data, size_t len)
{
    Piece *p = g_malloc0(sizeof(*p) + len);

    p->due = g_get_monotonic_time() + d->delay;
    p->len = len;
    memcpy(p->data, data, len);
    d->queued += len;
    g_queue_push_tail(&d->queue, p);
    return p;
}

/* Returns: the first fault placed in the next @n bytes; NULL if none is */
static MuxFault *next_fault(MuxRelay *r, Direction *d, size_t n)
{
    MuxFault *first = NULL;

    for (unsigned i = 0; i < r->faults->len; i++) {
        MuxFault *f = g_ptr_array_index(r->faults, i);

        if (f->in == d->bit && f->at >= d->offset && f->at - d->offset < n &&
            (!first || f->at < first->at)) {
            first = f;
        }
    }
    return first;
}

static void put_bytes(MuxRelay *r, Direction *d, uint8_t *data, size_t n)
{
    MuxFault *f;

    while ((f = next_fault(r, d, n))) {
        size_t before = f->at - d->offset;

        put_piece(d, data, before);
        put_piece(d, NULL, 0)->fault = f;
        if (f->kind == MUX_FAULT_FLIP) {
            data[before] ^= 1 << f->bit;
        }
        f->at = MUX_FAULT_NOWHERE;
        d->offset += before;
        data += before;
        n -= before;
    }
    put_piece(d, data, n);
    d->offset += n;
}

static void see_frame(MuxRelay *r, Direction *d)
{
    emit(r, "frame %s %" PRIu64 " %s %" PRIu64 " %s",
         d->bit == MUX_DIR_TO ? "to" : "from", d->offset, d->frames.type,
         d->frames.length, d->frames.stream ?: "");
    for (unsigned i = 0; i < r->faults->len; i++) {
        mux_fault_see_frame(g_ptr_array_index(r->faults, i), d->bit,
                            &d->frames, d->offset);
    }
}

static void take_held(MuxRelay *r, Direction *d)
{
    GByteArray *held = d->held;
    size_t taken = 0;
    size_t n;
    bool begins;

    while (taken < held->len &&
           (n = mux_frames_take(&d->frames, held->data + taken,
                                held->len - taken, &begins))) {
        if (begins) {
            see_frame(r, d);
        }
        put_bytes(r, d, held->data + taken, n);
        taken += n;
    }
    g_byte_array_remove_range(held, 0, taken);
}

/* @rst: it did not end, but fail */
static void direction_ended(MuxRelay *r, Direction *d, bool rst)
{
    if (d->held->len) {
        put_bytes(r, d, d->held->data, d->held->len);
        g_byte_array_set_size(d->held, 0);
    }
    r->rst |= rst;
    d->ended = true;
    put_piece(d, NULL, 0)->end = true;
}

static bool wants_to_read(const Direction *d)
{
    return !d->ended && !d->dead && !d->silent &&
           d->queued < (d->delay ? QUEUE_DELAYED : QUEUE_MAX);
}

static void direction_read(MuxRelay *r, Direction *d)
{
    uint8_t buf[READ_SIZE];
    ssize_t ret = recv(d->in, buf, sizeof(buf), 0);

    if (ret < 0 && (errno == EAGAIN || errno == EINTR)) {
        return;
    }
    if (ret <= 0) {
        direction_ended(r, d, ret < 0);
    } else if (!d->discard) {
        g_byte_array_append(d->held, buf, ret);
        take_held(r, d);
    }
}

/* --- from the queue to a socket --- */

/* Returns: when it may send again, us; INT64_MAX if it has nothing to send */
static int64_t next_time(Direction *d)
{
    Piece *p = g_queue_peek_head(&d->queue);

    if (!p || d->dead || d->silent) {
        return INT64_MAX;
    }
    return MAX(p->due, d->next_send);
}

/* Returns whether all of @p was sent. */
static bool send_piece(Direction *d, Piece *p, int64_t now)
{
    size_t n = p->len - p->sent;
    ssize_t ret;

    if (d->rate) {
        n = MIN(n, MAX(d->rate * QUANTUM_US / G_USEC_PER_SEC, 1));
    }
    ret = n ? send(d->out, p->data + p->sent, n, MSG_NOSIGNAL) : 0;
    if (ret < 0) {
        d->dead = errno != EAGAIN && errno != EINTR;
        return false;
    }
    if (d->rate) {
        d->next_send = MAX(d->next_send, now - QUANTUM_US) +
                       ret * G_USEC_PER_SEC / d->rate;
    }
    p->sent += ret;
    d->queued -= ret;
    return p->sent == p->len;
}

static void direction_write(MuxRelay *r, Direction *d)
{
    int64_t now = g_get_monotonic_time();

    while (!r->over && next_time(d) <= now) {
        Piece *p = g_queue_peek_head(&d->queue);

        if (!send_piece(d, p, now)) {
            break;
        }
        g_queue_pop_head(&d->queue);
        if (p->end) {
            shutdown(d->out, SHUT_WR);
            d->dead = true;
        }
        if (p->fault) {
            happen(r, p->fault);
        }
        g_free(p);
    }
}

/* --- the thread --- */

static void see_added(MuxRelay *r, bool connected)
{
    MuxFault *f;

    while ((f = g_async_queue_try_pop(r->added))) {
        g_ptr_array_add(r->faults, f);
        if (connected && mux_fault_is_immediate(f)) {
            happen(r, f);
        }
    }
}

/* Sleep until something can be done, and tell what.  [0] is the notifier. */
static void wait_for_work(MuxRelay *r, struct pollfd fds[5])
{
    int64_t now = g_get_monotonic_time();
    int64_t next = INT64_MAX;

    fds[0] = (struct pollfd) {
        .fd = event_notifier_get_fd(&r->wake), .events = POLLIN
    };
    for (unsigned i = 0; i < ARRAY_SIZE(r->dirs); i++) {
        Direction *d = &r->dirs[i];
        int64_t time = next_time(d);

        fds[1 + 2 * i] = (struct pollfd) {
            .fd = wants_to_read(d) ? d->in : -1, .events = POLLIN
        };
        fds[2 + 2 * i] = (struct pollfd) {
            .fd = time <= now ? d->out : -1, .events = POLLOUT
        };
        next = time > now ? MIN(next, time) : next;
    }
    poll(fds, 5, next == INT64_MAX ? -1 : DIV_ROUND_UP(next - now, 1000));
    if (fds[0].revents) {
        event_notifier_test_and_clear(&r->wake);
    }
}

static void relay_copy(MuxRelay *r)
{
    struct pollfd fds[5];

    for (unsigned i = 0; i < r->faults->len && !r->over; i++) {
        MuxFault *f = g_ptr_array_index(r->faults, i);

        if (mux_fault_is_immediate(f)) {
            happen(r, f);
        }
    }
    while (!r->over && !qatomic_read(&r->stop)) {
        wait_for_work(r, fds);
        see_added(r, true);
        for (unsigned i = 0; i < ARRAY_SIZE(r->dirs); i++) {
            if (fds[1 + 2 * i].revents) {
                direction_read(r, &r->dirs[i]);
            }
            direction_write(r, &r->dirs[i]);
        }
        r->over |= r->dirs[0].dead && r->dirs[1].dead;
    }
}

static bool relay_accept(MuxRelay *r)
{
    struct pollfd fds[] = {
        { .fd = event_notifier_get_fd(&r->wake), .events = POLLIN },
        { .fd = r->listener, .events = POLLIN },
    };

    while (!fds[1].revents && !qatomic_read(&r->stop)) {
        poll(fds, ARRAY_SIZE(fds), -1);
        if (fds[0].revents) {
            event_notifier_test_and_clear(&r->wake);
        }
    }
    if (qatomic_read(&r->stop)) {
        return false;
    }
    r->sockets[0] = accept(r->listener, NULL, NULL);
    close(r->listener);
    r->listener = -1;
    return r->sockets[0] >= 0;
}

static bool relay_connect(MuxRelay *r, Error **errp)
{
    r->sockets[1] = socket_connect(r->connect, errp);
    if (r->sockets[1] < 0) {
        return false;
    }
    for (unsigned i = 0; i < ARRAY_SIZE(r->dirs); i++) {
        Direction *d = &r->dirs[i];

        qemu_socket_set_nonblock(r->sockets[i]);
        socket_set_nodelay(r->sockets[i]);
        d->bit = 1 << i;
        d->in = r->sockets[i];
        d->out = r->sockets[!i];
        d->held = g_byte_array_new();
        g_queue_init(&d->queue);
        mux_frames_init(&d->frames, r->names);
    }
    emit(r, "connected");
    return true;
}

/* Unread bytes would turn the end into a reset. */
static void close_socket(MuxRelay *r, int fd)
{
    static const struct linger at_once = { .l_onoff = 1 };
    char buf[4096];
    ssize_t ret;

    if (r->rst) {
        setsockopt(fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof(at_once));
    } else {
        shutdown(fd, SHUT_WR);
        do {
            ret = recv(fd, buf, sizeof(buf), MSG_DONTWAIT);
        } while (ret > 0);
    }
    close(fd);
}

static void relay_close(MuxRelay *r)
{
    for (unsigned i = 0; i < ARRAY_SIZE(r->dirs); i++) {
        if (r->sockets[i] >= 0) {
            close_socket(r, r->sockets[i]);
        }
        if (r->dirs[i].held) {
            g_byte_array_unref(r->dirs[i].held);
            g_queue_clear_full(&r->dirs[i].queue, g_free);
        }
    }
}

static void *relay_thread(void *opaque)
{
    MuxRelay *r = opaque;
    Error *err = NULL;

    if (relay_accept(r)) {
        see_added(r, false);
        if (relay_connect(r, &err)) {
            relay_copy(r);
        }
    }
    relay_close(r);
    emit(r, "closed%s%s", err ? " " : "", err ? error_get_pretty(err) : "");
    error_free(err);

    g_mutex_lock(&r->lock);
    r->closed = true;
    g_cond_broadcast(&r->cond);
    g_mutex_unlock(&r->lock);
    return NULL;
}

/* --- for the user --- */

static void free_fault(gpointer fault)
{
    mux_fault_free(fault);
}

MuxRelay *mux_relay_new(const char *listen, const char *connect,
                        MuxRelayEvent *event, void *opaque, Error **errp)
{
    g_autoptr(SocketAddress) listen_addr = socket_parse(listen, errp);
    g_autoptr(SocketAddress) connect_addr = NULL;
    MuxRelay *r;
    int fd;

    if (!listen_addr) {
        return NULL;
    }
    connect_addr = socket_parse(connect, errp);
    if (!connect_addr) {
        return NULL;
    }
    fd = socket_listen(listen_addr, 1, errp);
    if (fd < 0) {
        return NULL;
    }

    r = g_new0(MuxRelay, 1);
    event_notifier_init(&r->wake, false);
    r->listener = fd;
    r->address = socket_local_address(fd, &error_abort);
    r->sockets[0] = r->sockets[1] = -1;
    r->connect = g_steal_pointer(&connect_addr);
    r->event = event;
    r->opaque = opaque;
    r->added = g_async_queue_new_full(free_fault);
    g_mutex_init(&r->lock);
    g_cond_init(&r->cond);
    r->faults = g_ptr_array_new_with_free_func(free_fault);
    r->names = g_hash_table_new_full(NULL, NULL, NULL, g_free);
    r->thread = g_thread_new("mux-relay", relay_thread, r);
    return r;
}

void mux_relay_free(MuxRelay *r)
{
    qatomic_set(&r->stop, true);
    event_notifier_set(&r->wake);
    g_thread_join(r->thread);

    if (r->listener >= 0) {
        close(r->listener);
    }
    event_notifier_cleanup(&r->wake);
    qapi_free_SocketAddress(r->address);
    qapi_free_SocketAddress(r->connect);
    g_async_queue_unref(r->added);
    g_mutex_clear(&r->lock);
    g_cond_clear(&r->cond);
    g_ptr_array_unref(r->faults);
    g_hash_table_unref(r->names);
    g_free(r);
}

char *mux_relay_address(MuxRelay *r)
{
    return socket_uri(r->address);
}

bool mux_relay_add_fault(MuxRelay *r, const char *fault, Error **errp)
{
    MuxFault *f = mux_fault_parse(fault, errp);

    if (!f) {
        return false;
    }
    g_async_queue_push(r->added, f);
    event_notifier_set(&r->wake);
    return true;
}

bool mux_relay_wait_fired(MuxRelay *r, unsigned n, unsigned timeout_ms)
{
    int64_t end = g_get_monotonic_time() + timeout_ms * 1000LL;
    bool in_time = true;
    bool fired;

    g_mutex_lock(&r->lock);
    while (r->fired < n && in_time) {
        in_time = g_cond_wait_until(&r->cond, &r->lock, end);
    }
    fired = r->fired >= n;
    g_mutex_unlock(&r->lock);
    return fired;
}

void mux_relay_wait_closed(MuxRelay *r)
{
    g_mutex_lock(&r->lock);
    while (!r->closed) {
        g_cond_wait(&r->cond, &r->lock);
    }
    g_mutex_unlock(&r->lock);
}
