/*
 * A fuzzer of the migration multiplexer's engine: two of them wired together
 *
 * The input is a list of operations that the two applications and the two
 * transports do.  Once all are done everybody takes part again, and everything
 * must come to an end.
 *
 * Owns the transports.  What is right the model knows (mux-fuzz-model.h).
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "mux-fuzz.h"
#include "mux-fuzz-model.h"

#define NS_PER_MS       (1000 * 1000LL)
#define OPERATION_NS    1000LL
#define SILENCE         (5000 * NS_PER_MS)
#define ON_THE_WAY      (1024 * KIB)
#define REST_MAX        4096    /* of a named batch that is remembered */
#define WINDOWS_MAX     64      /* in one offer, or it would take too long */

/* The lower five bits of an operation; above are 2 of slot, 1 of side. */
enum {
    /* on one stream */
    OP_ACCEPT, OP_RESET, OP_FIN, OP_FIN_OK, OP_RELEASE, OP_OFFER, OP_WITHDRAW,
    OP_COPY, OP_CONSUME, OP_PEEK, OP_URGENT, OP_WRITABLE,
    /* on one connection */
    OP_OPEN, OP_PING, OP_EVENTS, OP_NAME_TX, OP_TAKE, OP_NAME_RX, OP_GIVE,
    OP_RUN, OP_TIME,
    /* that may end it */
    OP_CORRUPT, OP_CUT, OP_GOAWAY,
    /* on one stream; last, so that the corpora keep their meaning */
    OP_POST,
    OPS,
};

#define AT_SLOT(op, side, slot) ((op) | (slot) << 5 | (side) << 7)
#define AT(op, side)    AT_SLOT(op, side, 0)

typedef struct Run {
    const uint8_t *p, *end;     /* what is left of the input */
    unsigned set;               /* MUX_FUZZ_... */
    uint64_t window[2];
    MuxModel model;
    GByteArray *rest[2];        /* what has to be named next */
    uint8_t damage[2];          /* to the next byte that the side gets */
} Run;

static unsigned input_byte(Run *r)
{
    return r->p < r->end ? *r->p++ : 0;
}

/* A size from 0 on, small ones in steps of 1. */
static size_t input_size(Run *r)
{
    unsigned b = input_byte(r);

    return (size_t)(b & 31) << (b >> 5) * 2;
}

/* --- transports --- */

static void name_tx(Run *r, int side)
{
    MuxModel *m = &r->model;
    MuxNamed *tx = &m->tx[side];
    GByteArray *rest = r->rest[side];
    uint8_t again[REST_MAX];
    size_t len;

    if (tx->niov) {
        return;
    }
    tx->niov = mux_engine_tx_want(m->link.side[side].e, tx->iov, 64,
                                  m->link.now);
    len = mux_iov_total(tx->iov, tx->niov);
    if (tx->niov) {
        /* TLS wants the same bytes after a short write */
        g_assert_cmpuint(len, >=, rest->len);
        mux_iov_copy(tx->iov, again, rest->len, false);
        g_assert_cmpmem(again, rest->len, rest->data, rest->len);
    }
}

static size_t take(Run *r, int side, size_t max)
{
    MuxModel *m = &r->model;
    MuxWireSide *from = &m->link.side[side];
    size_t old = from->sent->len;
    size_t room = ON_THE_WAY - MIN(ON_THE_WAY, old - from->delivered);
    MuxNamed *tx = &m->tx[side];
    size_t named, len;

    name_tx(r, side);
    named = mux_iov_total(tx->iov, tx->niov);
    len = MIN(MIN(max, room), named);
    g_byte_array_set_size(from->sent, old + MIN(named, len + REST_MAX));
    mux_iov_copy(tx->iov, from->sent->data + old, from->sent->len - old,
                 false);
    g_byte_array_set_size(r->rest[side], 0);
    g_byte_array_append(r->rest[side], from->sent->data + old + len,
                        from->sent->len - old - len);
    g_byte_array_set_size(from->sent, old + len);
    tx->niov = 0;
    mux_engine_tx_done(from->e, len);
    /* A limit that was damaged on its way is not what the other granted */
    mux_wire_watch(from, m->corrupted ? NULL : &m->link.side[!side]);
    return len;
}

static void name_rx(Run *r, int side)
{
    MuxModel *m = &r->model;
    MuxNamed *rx = &m->rx[side];

    if (!rx->niov) {
        rx->niov = mux_engine_rx_want(m->link.side[side].e, rx->iov, 64);
    }
}

/* Give to @side what the other one has sent. */
static size_t give(Run *r, int side, size_t max)
{
    MuxModel *m = &r->model;
    MuxWireSide *from = &m->link.side[!side];
    size_t waiting = MIN(from->sent->len, from->cut) - from->delivered;
    MuxNamed *rx = &m->rx[side];
    size_t len;

    name_rx(r, side);
    len = MIN(MIN(max, waiting), mux_iov_total(rx->iov, rx->niov));
    if (len) {
        mux_iov_copy(rx->iov, from->sent->data + from->delivered, len, true);
        *(uint8_t *)rx->iov[0].iov_base ^= r->damage[side];
        r->damage[side] = 0;
        from->delivered += len;
        mux_engine_rx_done(m->link.side[side].e, len, m->link.now);
        rx->niov = 0;
    }
    return len;
}

static bool move_all(Run *r)
{
    bool any = false;
    size_t moved;

    do {
        moved = 0;
        for (int side = 0; side < 2; side++) {
            moved += take(r, side, SIZE_MAX);
            moved += give(r, !side, SIZE_MAX);
        }
        any |= moved > 0;
    } while (moved);
    return any;
}

static void pass_time(Run *r, size_t ms)
{
    MuxModel *m = &r->model;

    if (r->set & MUX_FUZZ_PEACEFUL && !(m->hello[SRC] && m->hello[DST])) {
        return;
    }
    m->link.now += ms * NS_PER_MS;
    for (int side = 0; side < 2; side++) {
        MuxEngine *e = m->link.side[side].e;

        if (m->link.now >= mux_engine_deadline(e)) {
            mux_engine_timeout(e, m->link.now);
            m->disturbed |= mux_engine_ended(e);
        }
    }
}

/* The next byte that @side gets is another one. */
static void corrupt(Run *r, int side, unsigned mask)
{
    MuxModel *m = &r->model;

    if (mask) {
        r->damage[side] = mask;
        m->corrupted = m->disturbed = true;
    }
}

/* Nothing more arrives from @side. */
static void cut(Run *r, int side)
{
    MuxModel *m = &r->model;
    MuxWireSide *from = &m->link.side[side];

    if (!from->eof_told) {
        from->cut = from->delivered;
        from->eof_told = m->disturbed = true;
        mux_engine_rx_eof(m->link.side[!side].e);
        mux_engine_transport_error(from->e, "Broken pipe");
    }
}

static void end_connection(Run *r, int side, uint32_t code)
{
    MuxModel *m = &r->model;

    mux_engine_goaway(m->link.side[side].e, code, code ? "enough" : NULL);
    m->disturbed = true;
}

/* --- operations --- */

static void operate_stream(Run *r, unsigned op, MuxModelEnd *end)
{
    MuxModel *m = &r->model;
    size_t size;

    switch (op) {
    case OP_ACCEPT:
        mux_stream_accept(end->s);
        break;
    case OP_RESET:
        mux_model_reset(end, input_byte(r));
        break;
    case OP_FIN:
        mux_model_fin(end);
        break;
    case OP_FIN_OK:
        mux_model_fin_ok(end);
        break;
    case OP_RELEASE:
        mux_model_release(m, end);
        break;
    case OP_OFFER:
        size = input_size(r) * 4;
        size = MIN(size, WINDOWS_MAX * r->window[!end->side]);
        mux_model_offer(m, end, size, input_size(r));
        break;
    case OP_WITHDRAW:
        mux_model_withdraw(m, end);
        break;
    case OP_COPY:
        mux_model_copy(m, end, input_size(r));
        break;
    case OP_CONSUME:
        mux_model_consume(m, end, input_size(r));
        break;
    case OP_PEEK:
        mux_model_peek(end);
        break;
    case OP_URGENT:
        size = input_byte(r);
        mux_stream_set_urgent(end->s, size & 1);
        mux_stream_set_weight(end->s, 1 + (size >> 1 & 7));
        break;
    case OP_WRITABLE:
        mux_model_writable(end);
        break;
    case OP_POST:
        mux_model_post(m, end, input_size(r));
        break;
    }
}

static void operate_connection(Run *r, unsigned op, int side)
{
    switch (op) {
    case OP_NAME_TX:
        name_tx(r, side);
        break;
    case OP_TAKE:
        take(r, side, input_size(r));
        break;
    case OP_NAME_RX:
        name_rx(r, side);
        break;
    case OP_GIVE:
        give(r, side, input_size(r));
        break;
    case OP_RUN:
        move_all(r);
        break;
    case OP_TIME:
        pass_time(r, input_size(r));
        break;
    case OP_PING:
        mux_engine_ping(r->model.link.side[side].e);
        break;
    case OP_EVENTS:
        mux_model_take_events(&r->model, side);
        break;
    case OP_OPEN:
        mux_model_open(&r->model, side);
        break;
    }
}

static void disturb(Run *r, unsigned op, int side)
{
    if (r->set & MUX_FUZZ_PEACEFUL) {
        return;
    }
    switch (op) {
    case OP_CORRUPT:
        corrupt(r, side, input_byte(r));
        break;
    case OP_CUT:
        cut(r, side);
        break;
    case OP_GOAWAY:
        end_connection(r, side, input_byte(r));
        break;
    }
}

static void operate(Run *r)
{
    unsigned b = input_byte(r);
    unsigned op = b & 31;
    int side = b >> 7;
    MuxModelEnd *end = r->model.slot[side][b >> 5 & (MUX_MODEL_SLOTS - 1)];

    r->model.link.now += OPERATION_NS;
    if (op < OP_OPEN || op == OP_POST) {
        if (end) {
            operate_stream(r, op, end);
        }
    } else if (op < OP_CORRUPT) {
        operate_connection(r, op, side);
    } else {
        disturb(r, op, side);
    }
}

/* --- the end --- */

/* Everybody takes part: nothing may be stuck. */
static bool take_part(Run *r, int side)
{
    MuxModel *m = &r->model;
    bool any = mux_model_take_events(m, side);

    for (int i = 0; i < MUX_MODEL_SLOTS; i++) {
        MuxModelEnd *end = m->slot[side][i];

        if (!end) {
            continue;
        }
        mux_stream_accept(end->s);
        any |= mux_model_consume(m, end, SIZE_MAX) > 0;
        mux_model_fin(end);
        mux_model_fin_ok(end);
    }
    return any;
}

static void settle(Run *r)
{
    MuxModel *m = &r->model;
    bool any;

    do {
        any = take_part(r, SRC);
        any |= take_part(r, DST);
        any |= move_all(r);
        mux_model_check(m, SRC);
        mux_model_check(m, DST);
    } while (any);
    for (int i = 0; i < 2 * MUX_MODEL_SLOTS; i++) {
        MuxModelEnd *end = m->slot[i / MUX_MODEL_SLOTS][i % MUX_MODEL_SLOTS];

        g_assert(!end ||
                 mux_stream_state(end->s) >= MUX_STREAM_FINISHED);
    }
}

static void release_all(Run *r)
{
    MuxModel *m = &r->model;

    for (int i = 0; i < 2 * MUX_MODEL_SLOTS; i++) {
        MuxModelEnd *end = m->slot[i / MUX_MODEL_SLOTS][i % MUX_MODEL_SLOTS];

        if (end) {
            mux_model_release(m, end);
        }
    }
}

/* Both engines are left with nothing, and part as friends. */
static void finish(Run *r)
{
    MuxModel *m = &r->model;

    settle(r);
    release_all(r);
    move_all(r);
    for (int side = 0; side < 2; side++) {
        g_assert_false(mux_engine_has_streams(m->link.side[side].e));
        mux_assert_nothing_held(m->link.side[side].e);
    }
    mux_engine_goaway(m->link.side[SRC].e, MUX_CODE_OK, NULL);
    m->disturbed = true;
    move_all(r);
    for (int side = 0; side < 2; side++) {
        mux_model_take_events(m, side);
        g_assert_true(m->over[side]);
        g_assert_null(mux_engine_error(m->link.side[side].e));
    }
}

/* Whatever was done to the connection: every stream has ended. */
static void finish_disturbed(Run *r)
{
    MuxModel *m = &r->model;

    move_all(r);
    cut(r, SRC);
    cut(r, DST);
    for (int side = 0; side < 2; side++) {
        mux_model_take_events(m, side);
        g_assert_true(m->over[side]);
        mux_model_check(m, side);
    }
    for (int i = 0; i < 2 * MUX_MODEL_SLOTS; i++) {
        MuxModelEnd *end = m->slot[i / MUX_MODEL_SLOTS][i % MUX_MODEL_SLOTS];

        g_assert(!end ||
                 mux_stream_state(end->s) >= MUX_STREAM_FINISHED);
    }
    release_all(r);
    for (int side = 0; side < 2; side++) {
        MuxEngine *e = m->link.side[side].e;

        g_assert_true(mux_engine_tx_idle(e));
        g_assert_false(mux_engine_has_streams(e));
    }
}

/* --- inputs --- */

/* How often each is chosen: data moves, and few inputs end early. */
static const uint8_t likelihood[OPS] = {
    [OP_ACCEPT] = 8, [OP_RESET] = 8, [OP_FIN] = 8, [OP_FIN_OK] = 8,
    [OP_RELEASE] = 8, [OP_OFFER] = 24, [OP_WITHDRAW] = 8, [OP_COPY] = 16,
    [OP_CONSUME] = 24, [OP_PEEK] = 8, [OP_URGENT] = 8, [OP_WRITABLE] = 8,
    [OP_OPEN] = 16, [OP_PING] = 8, [OP_EVENTS] = 24, [OP_NAME_TX] = 16,
    [OP_TAKE] = 24, [OP_NAME_RX] = 16, [OP_GIVE] = 24, [OP_RUN] = 8,
    [OP_TIME] = 8, [OP_CORRUPT] = 1, [OP_CUT] = 1, [OP_GOAWAY] = 2,
    [OP_POST] = 16,
};

static const uint8_t operands[OPS] = {
    [OP_RESET] = 1, [OP_OFFER] = 2, [OP_COPY] = 1, [OP_CONSUME] = 1,
    [OP_URGENT] = 1, [OP_TAKE] = 1, [OP_GIVE] = 1, [OP_TIME] = 1,
    [OP_CORRUPT] = 1, [OP_GOAWAY] = 1, [OP_POST] = 1,
};

static unsigned random_operation(GRand *rand)
{
    unsigned sum = 0;
    int chosen;

    for (unsigned op = 0; op < OPS; op++) {
        sum += likelihood[op];
    }
    chosen = g_rand_int_range(rand, 0, sum);
    for (unsigned op = 0; ; op++) {
        chosen -= likelihood[op];
        if (chosen < 0) {
            return op;
        }
    }
}

static void append_byte(GByteArray *input, uint8_t byte)
{
    g_byte_array_append(input, &byte, 1);
}

GByteArray *mux_fuzz_random_operations(GRand *rand, unsigned count)
{
    static const uint8_t open[] = {
        AT(OP_RUN, SRC), AT(OP_EVENTS, SRC), AT(OP_EVENTS, DST),
        AT(OP_OPEN, SRC), AT(OP_OPEN, DST),
        AT(OP_RUN, SRC), AT(OP_EVENTS, SRC), AT(OP_EVENTS, DST),
        AT_SLOT(OP_ACCEPT, SRC, 1), AT_SLOT(OP_ACCEPT, DST, 1),
        AT(OP_RUN, SRC), AT(OP_EVENTS, SRC), AT(OP_EVENTS, DST),
    };
    GByteArray *input = g_byte_array_new();

    append_byte(input, g_rand_int(rand));
    append_byte(input, g_rand_int(rand));
    g_byte_array_append(input, open, sizeof(open));
    while (count--) {
        unsigned op = random_operation(rand);

        append_byte(input, AT_SLOT(op, g_rand_int_range(rand, 0, 2),
                                   g_rand_int_range(rand, 0, 2)));
        for (unsigned i = 0; i < operands[op]; i++) {
            append_byte(input, g_rand_int(rand));
        }
    }
    return input;
}

/* --- */

static void run_init(Run *r, const uint8_t *data, size_t size)
{
    static const uint64_t windows[] = {
        1, 5, 1000, 4 * KIB, 16 * KIB, 64 * KIB, 300 * KIB, 4096 * KIB,
    };
    MuxConfig config[2];
    unsigned choice;

    *r = (Run) { .p = data, .end = data + size };
    choice = input_byte(r);
    r->set = input_byte(r);
    for (int side = 0; side < 2; side++) {
        mux_config_default(&config[side], side == SRC ? MUX_ROLE_SOURCE
                                                      : MUX_ROLE_DESTINATION);
        r->window[side] = windows[choice >> 3 * side & 7];
        config[side].window = r->window[side];
        if (r->set & MUX_FUZZ_SOURCE_SMALL_FRAMES << side) {
            config[side].max_frame = 4096;
        }
        if (r->set & MUX_FUZZ_TWO_STREAMS) {
            config[side].max_streams = 2;
        }
        if (r->set & MUX_FUZZ_SMALL_SUM) {
            config[side].window_sum = 1024 * KIB;
        }
        r->rest[side] = g_byte_array_new();
    }
    mux_model_init(&r->model, config);
    if (r->set & MUX_FUZZ_SILENCE && !(r->set & MUX_FUZZ_PEACEFUL)) {
        mux_engine_set_silence(r->model.link.side[SRC].e, SILENCE, 0);
        mux_engine_set_silence(r->model.link.side[DST].e, SILENCE, 0);
    }
}

static void run_cleanup(Run *r)
{
    mux_model_cleanup(&r->model);
    g_byte_array_unref(r->rest[SRC]);
    g_byte_array_unref(r->rest[DST]);
}

void mux_fuzz_operations(const uint8_t *data, size_t size)
{
    Run r;

    run_init(&r, data, size);
    while (r.p < r.end) {
        operate(&r);
        mux_model_check(&r.model, SRC);
        mux_model_check(&r.model, DST);
    }
    if (r.model.disturbed) {
        finish_disturbed(&r);
    } else if (!(r.set & MUX_FUZZ_ABRUPT)) {
        finish(&r);
    }
    run_cleanup(&r);
}
