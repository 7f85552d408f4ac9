/*
 * A link of a given speed and length between two engines, in virtual time
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "mux-link-sim.h"

#define IOV     64

/* Bytes that have left a transport. */
typedef struct Piece {
    int64_t arrival;            /* ns */
    size_t len, done;
    uint8_t *data;              /* NULL: payload, which is not checked */
} Piece;

static uint8_t payload[1024 * KIB];

static bool is_payload(const struct iovec *v)
{
    return (uint8_t *)v->iov_base >= payload &&
           (uint8_t *)v->iov_base < payload + sizeof(payload);
}

/* --- the transport --- */

static int64_t time_for(Sim *sim, size_t bytes)
{
    return (int64_t)bytes * SIM_S / sim->rate;
}

/* When the transport of @side has room again. */
static int64_t room_at(Sim *sim, int side)
{
    return sim->side[side].line_free - time_for(sim, sim->buffer);
}

static void put_on_line(Sim *sim, SimSide *from, const struct iovec *v,
                        size_t len)
{
    Piece *p = g_new0(Piece, 1);

    from->line_free = MAX(from->line_free, sim->now) + time_for(sim, len);
    p->arrival = from->line_free + sim->delay;
    p->len = len;
    p->data = is_payload(v) ? NULL : g_memdup2(v->iov_base, len);
    g_queue_push_tail(&from->pieces, p);
}

static bool take(Sim *sim, int side)
{
    SimSide *from = &sim->side[side];
    size_t left = sim->write_max;
    struct iovec iov[IOV];
    unsigned n;

    if (room_at(sim, side) > sim->now) {
        return false;
    }
    n = mux_engine_tx_want(from->e, iov, IOV, sim->now);
    for (unsigned i = 0; i < n && left; i++) {
        size_t len = MIN(left, iov[i].iov_len);

        put_on_line(sim, from, &iov[i], len);
        left -= len;
    }
    mux_engine_tx_done(from->e, sim->write_max - left);
    from->taken += sim->write_max - left;
    return left < sim->write_max;
}

static Piece *arrived(Sim *sim, SimSide *from)
{
    Piece *p = g_queue_peek_head(&from->pieces);

    return p && p->arrival <= sim->now ? p : NULL;
}

static void piece_free(gpointer opaque)
{
    Piece *p = opaque;

    g_free(p->data);
    g_free(p);
}

/* Fill @len bytes at @out with what has arrived; returns how many there were */
static size_t fill(Sim *sim, SimSide *from, uint8_t *out, size_t len)
{
    size_t done = 0;
    Piece *p;

    while (done < len && (p = arrived(sim, from))) {
        size_t n = MIN(len - done, p->len - p->done);

        if (p->data) {
            memcpy(out + done, p->data + p->done, n);
        }
        p->done += n;
        done += n;
        if (p->done == p->len) {
            piece_free(g_queue_pop_head(&from->pieces));
        }
    }
    return done;
}

static bool give(Sim *sim, int side)
{
    SimSide *from = &sim->side[side];
    MuxEngine *to = sim->side[!side].e;
    struct iovec iov[IOV];
    size_t done = 0;
    unsigned n;

    if (!arrived(sim, from)) {
        return false;
    }
    n = mux_engine_rx_want(to, iov, IOV);
    for (unsigned i = 0; i < n; i++) {
        done += fill(sim, from, iov[i].iov_base, iov[i].iov_len);
    }
    if (!done) {                /* has ended: reads no more */
        g_queue_clear_full(&from->pieces, piece_free);
        return false;
    }
    mux_engine_rx_done(to, done, sim->now);
    return true;
}

/* --- the applications --- */

static bool flow_move(SimFlow *f)
{
    struct iovec iov = { .iov_base = payload, .iov_len = f->piece };
    size_t pending = f->reading ? mux_stream_rx_pending(f->to) : 0;
    bool moved = false;

    if (f->offered && mux_stream_tx_sent(f->from) == f->piece) {
        f->offered = false;
    }
    if (f->writing && !f->offered) {
        mux_stream_tx_offer(f->from, &iov, 1);
        f->offered = true;
        moved = true;
    }
    if (pending) {
        mux_stream_rx_consume(f->to, pending);
        f->read += pending;
        moved = true;
    }
    return moved;
}

static bool flows_move(Sim *sim)
{
    bool moved = false;

    for (unsigned i = 0; i < sim->flows->len; i++) {
        moved |= flow_move(g_ptr_array_index(sim->flows, i));
    }
    return moved;
}

/* --- time --- */

static int64_t next_time(Sim *sim)
{
    int64_t next = INT64_MAX;

    for (int side = 0; side < 2; side++) {
        Piece *p = g_queue_peek_head(&sim->side[side].pieces);
        MuxEngine *e = sim->side[side].e;

        if (p) {
            next = MIN(next, p->arrival);
        }
        if (!mux_engine_tx_idle(e)) {
            next = MIN(next, room_at(sim, side));
        }
        next = MIN(next, mux_engine_deadline(e));
    }
    return next;
}

static bool move(Sim *sim)
{
    bool moved = flows_move(sim);

    for (int side = 0; side < 2; side++) {
        moved |= take(sim, side);
        moved |= give(sim, side);
    }
    return moved;
}

void sim_run(Sim *sim, int64_t ns)
{
    int64_t end = sim->now + ns;

    while (sim->now < end) {
        int64_t next;

        while (move(sim)) {
            /* more */
        }
        next = next_time(sim);
        g_assert_cmpint(next, >, sim->now);
        sim->now = MIN(next, end);
        for (int side = 0; side < 2; side++) {
            mux_engine_timeout(sim->side[side].e, sim->now);
        }
    }
}

/* --- set-up --- */

static MuxStream *sim_expect(Sim *sim, int side, MuxEventType type)
{
    MuxEvent event;

    for (int i = 0; i < 1000; i++) {
        while (mux_engine_next_event(sim->side[side].e, &event)) {
            if (event.type == type) {
                return event.stream;
            }
        }
        sim_run(sim, sim->delay + SIM_US);
    }
    g_assert_not_reached();
}

void sim_init(Sim *sim, int64_t rate, int64_t rtt, const MuxConfig *source,
              const MuxConfig *destination)
{
    const MuxConfig *given[2] = { source, destination };

    *sim = (Sim) {
        .rate = rate,
        .delay = rtt / 2,
        .buffer = 128 * KIB,
        .write_max = 64 * KIB,
        .flows = g_ptr_array_new_with_free_func(g_free),
    };
    for (int side = 0; side < 2; side++) {
        MuxConfig config;

        mux_config_default(&config, side == SRC ? MUX_ROLE_SOURCE
                                                : MUX_ROLE_DESTINATION);
        sim->side[side].e = mux_engine_new(given[side] ?: &config, 0);
    }
    sim_expect(sim, SRC, MUX_EVENT_HELLO);
    sim_expect(sim, DST, MUX_EVENT_HELLO);
}

void sim_cleanup(Sim *sim)
{
    for (int side = 0; side < 2; side++) {
        mux_engine_free(sim->side[side].e);
        g_queue_clear_full(&sim->side[side].pieces, piece_free);
    }
    g_ptr_array_unref(sim->flows);
}

SimFlow *sim_open(Sim *sim, int opener, const char *name)
{
    SimFlow *f = g_new0(SimFlow, 1);
    const char *why;

    f->side = opener;
    f->piece = sizeof(payload);
    f->reading = true;
    f->from = mux_engine_open(sim->side[opener].e, name, &why);
    f->to = sim_expect(sim, !opener, MUX_EVENT_OPEN);
    mux_stream_accept(f->to);
    sim_expect(sim, opener, MUX_EVENT_OPEN_OK);
    g_ptr_array_add(sim->flows, f);
    return f;
}
