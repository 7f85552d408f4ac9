/*
 * Tests of the migration multiplexer's engine: random operations, damaged
 * bytes
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "mux-engine-helpers.h"

#define STREAMS     12          /* that the application of one side holds */

typedef struct App {
    MuxEngine *e;
    MuxStream *s[STREAMS];      /* NULL: free place */
} App;

static uint8_t memory[100 * KIB];

static MuxStream **free_place(App *app)
{
    for (int i = 0; i < STREAMS; i++) {
        if (!app->s[i]) {
            return &app->s[i];
        }
    }
    return NULL;
}

static void let_go(MuxStream **place)
{
    mux_stream_tx_withdraw(*place);
    mux_stream_release(*place);
    *place = NULL;
}

static void take_events(App *app, GRand *rand)
{
    MuxEvent event;

    while (mux_engine_next_event(app->e, &event)) {
        MuxStream **place = free_place(app);

        g_assert_cmpstr(mux_engine_error(app->e), ==, NULL);
        if (event.type != MUX_EVENT_OPEN) {
            continue;
        }
        if (!place || g_rand_int_range(rand, 0, 10) == 0) {
            mux_stream_release(event.stream);
            continue;
        }
        *place = event.stream;
        if (g_rand_int_range(rand, 0, 10)) {
            mux_stream_accept(event.stream);
        }
    }
}

static void offer_again(MuxStream *s, GRand *rand)
{
    struct iovec iov[5];

    mux_stream_tx_withdraw(s);
    for (int i = 0; i < 5; i++) {
        iov[i].iov_base = memory;
        iov[i].iov_len = g_rand_int_range(rand, 0, sizeof(memory));
    }
    mux_stream_tx_offer(s, iov, 5);
}

static void random_operation(App *app, GRand *rand)
{
    MuxStream **place = &app->s[g_rand_int_range(rand, 0, STREAMS)];
    struct iovec iov = { .iov_base = memory };
    const char *why;
    MuxStream *s = *place;

    if (!s) {
        *place = mux_engine_open(app->e, "x", &why);
        return;
    }
    switch (g_rand_int_range(rand, 0, 16)) {
    case 0:
        mux_stream_fin(s);
        break;
    case 1:
        mux_stream_reset(s, 1, "some reason");
        break;
    case 2:
        let_go(place);
        break;
    case 3:
        mux_stream_set_urgent(s, g_rand_boolean(rand));
        break;
    case 4:
        mux_engine_ping(app->e, 0);
        break;
    case 5:
        mux_stream_tx_withdraw(s);
        break;
    case 6:
    case 7:
        mux_stream_fin_ok(s);
        break;
    case 8:
    case 9:
        offer_again(s, rand);
        break;
    case 10:
    case 11:
        iov.iov_len = g_rand_int_range(rand, 0, sizeof(memory));
        mux_stream_tx_copy(s, &iov, 1);
        break;
    case 12:
        mux_stream_accept(s);
        break;
    default:
        mux_stream_rx_consume(s, mux_stream_rx_pending(s) / 2);
        break;
    }
}

static void random_operations(uint32_t seed, size_t piece_max, int steps)
{
    App app[2] = { 0 };
    MuxPair p;

    mux_pair_init(&p, 50 * KIB);
    g_rand_set_seed(p.link.rand, seed);
    p.link.piece_max = piece_max;
    for (int side = 0; side < 2; side++) {
        app[side].e = p.link.side[side].e;
    }
    for (int i = 0; i < steps; i++) {
        for (int side = 0; side < 2; side++) {
            random_operation(&app[side], p.link.rand);
            mux_link_step(&p.link);
            take_events(&app[side], p.link.rand);
        }
    }
    for (int side = 0; side < 2; side++) {
        for (int i = 0; i < STREAMS; i++) {
            if (app[side].s[i]) {
                let_go(&app[side].s[i]);
            }
        }
    }
    /* with both sides gone every stream comes to its end by itself */
    mux_link_run(&p.link);
    mux_engine_goaway(p.src, MUX_CODE_OK, NULL);
    mux_link_run(&p.link);
    g_assert_true(mux_engine_ended(p.dst));
    g_assert_cmpstr(mux_engine_error(p.dst), ==, NULL);
    mux_pair_cleanup(&p);
}

static void test_random_operations(void)
{
    uint32_t seed = mux_test_seed(100);

    for (int i = 0; i < 20; i++) {
        g_test_message("seed %u", seed + i);
        random_operations(seed + i, 10 << (i % 15), 2000);
    }
}

/* What the source sends in a short session. */
static GByteArray *record_session(void)
{
    GByteArray *sent;
    MuxStream *a, *b;
    MuxPair p;

    mux_pair_init(&p, 4 * KIB);
    mux_link_open(&p.link, SRC, "main", &a, &b);
    mux_copy_pattern(a, SRC, 0, 50);
    mux_engine_ping(p.src, 0);
    mux_stream_fin(a);
    mux_link_run(&p.link);
    mux_link_open(&p.link, SRC, "nbd-disk0", &a, &b);
    mux_stream_reset(a, 1, "gone");
    mux_engine_goaway(p.src, MUX_CODE_OK, "bye");
    mux_link_run(&p.link);
    sent = g_byte_array_ref(p.link.side[SRC].sent);
    mux_pair_cleanup(&p);
    return sent;
}

/* A destination whose application takes all that comes. */
static void replay(const uint8_t *data, size_t len)
{
    MuxConfig config;
    MuxEngine *e;
    MuxEvent event;
    GByteArray *out = g_byte_array_new();

    mux_config_default(&config, MUX_ROLE_DESTINATION);
    e = mux_engine_new(&config, 0);
    for (size_t i = 0; i < len; i++) {
        mux_feed(e, data + i, 1, 0);
        while (mux_engine_next_event(e, &event)) {
            if (event.type == MUX_EVENT_OPEN) {
                mux_stream_accept(event.stream);
            } else if (event.type == MUX_EVENT_READABLE) {
                mux_stream_rx_consume(event.stream,
                                      mux_stream_rx_pending(event.stream));
            }
        }
        mux_drain(e, out, 0);
    }
    mux_engine_rx_eof(e, 0);
    g_assert_true(mux_engine_ended(e));
    g_byte_array_unref(out);
    mux_engine_free(e);
}

static void test_damaged_bytes(void)
{
    g_autoptr(GByteArray) sent = record_session();
    g_autoptr(GRand) rand = g_rand_new_with_seed(mux_test_seed(5));

    for (size_t i = 0; i < sent->len; i++) {
        for (int bit = 0; bit < 8; bit++) {
            sent->data[i] ^= 1 << bit;
            replay(sent->data, sent->len);
            sent->data[i] ^= 1 << bit;
        }
    }
    for (int i = 0; i < 300; i++) {
        g_autofree uint8_t *data = g_memdup2(sent->data, sent->len);

        for (int k = 0; k < 5; k++) {
            data[g_rand_int_range(rand, 40, sent->len)] =
                g_rand_int_range(rand, 0, 256);
        }
        replay(data, sent->len);
    }
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);

    g_test_add_func("/mux/random/operations", test_random_operations);
    g_test_add_func("/mux/random/damaged-bytes", test_damaged_bytes);

    return g_test_run();
}
