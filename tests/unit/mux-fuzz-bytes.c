/*
 * A fuzzer of the migration multiplexer's engine: arbitrary input
 *
 * The input is what a peer sends.  The application's side is simple and
 * depends on the settings alone: for each stream it takes part, or sleeps, or
 * refuses, or lets go early.
 *
 * Owns the application.  Never looks at how the engine does it.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "migration/mux/frame.h"
#include "mux-engine-helpers.h"
#include "mux-fuzz.h"

#define STEP_NS     (10 * 1000 * 1000LL)    /* between pieces of the input */
#define TX_QUEUE    (64 * KIB)      /* what the peer reads in one step */

/* What the application does with a stream: 2 bits of the third byte each. */
typedef enum Manner { TAKE_PART, SLEEP, REFUSE, LET_GO } Manner;

typedef struct App {
    MuxWireSide side;
    uint8_t set, manners;
    int64_t now;
    bool hello, over;
    GPtrArray *held;            /* Held *, in the order of their OPENs */
} App;

/* A stream that the application has not released. */
typedef struct Held {
    MuxStream *s;
    unsigned reported;          /* events that came: 1 << MuxEventType */
    MuxStreamState state;       /* when it was last looked at */
} Held;

static Manner manner(App *app, MuxStream *s)
{
    return app->manners >> mux_stream_id(s) / 2 % 4 * 2 & 3;
}

static Held *hold(App *app, MuxStream *s)
{
    Held *held = g_new0(Held, 1);

    g_assert_null(mux_stream_opaque(s));
    held->s = s;
    mux_stream_set_opaque(s, held);
    g_ptr_array_add(app->held, held);
    return held;
}

static void let_go(App *app, Held *held)
{
    mux_stream_release(held->s);
    g_ptr_array_remove(app->held, held);
}

static void check_held(Held *held)
{
    MuxStreamState state = mux_stream_state(held->s);

    if (state != held->state) {
        /* states have an order, and the last two are final */
        g_assert_cmpint(state, >, held->state);
        g_assert_cmpint(held->state, <, MUX_STREAM_FINISHED);
        held->state = state;
    }
    g_assert_cmpint(state == MUX_STREAM_RESET, ==,
                    mux_stream_error(held->s) != NULL);
    g_assert_cmpuint(mux_stream_rx_pending(held->s), <=,
                     mux_stream_bytes_received(held->s));
}

static void check_all(App *app)
{
    for (unsigned i = 0; i < app->held->len; i++) {
        Held *held = g_ptr_array_index(app->held, i);

        check_held(held);
        g_assert(!app->over || held->state >= MUX_STREAM_FINISHED);
    }
    mux_assert_memory_bounded(app->side.e);
}

/* --- the application --- */

static void open_streams(App *app)
{
    if (app->set & MUX_FUZZ_OPENS) {
        const char *why;

        for (int i = 0; i < 4; i++) {
            MuxStream *s = mux_engine_open(app->side.e, "ours", &why);

            if (s) {
                hold(app, s);
            }
        }
        mux_engine_ping(app->side.e);
    }
}

static void on_open(App *app, Held *held)
{
    switch (manner(app, held->s)) {
    case REFUSE:
        mux_stream_reset(held->s, MUX_CODE_REFUSED, "not wanted");
        let_go(app, held);
        break;
    case SLEEP:
        break;
    default:
        mux_stream_accept(held->s);
        mux_copy_pattern(held->s, 0, 0, 5000);
        break;
    }
}

static void on_readable(App *app, Held *held)
{
    if (manner(app, held->s) == TAKE_PART) {
        mux_stream_rx_consume(held->s, mux_stream_rx_pending(held->s));
    } else if (manner(app, held->s) == LET_GO) {
        let_go(app, held);
    }
}

static void on_fin(App *app, Held *held)
{
    g_assert_true(mux_stream_rx_fin(held->s));
    if (manner(app, held->s) == TAKE_PART) {
        mux_stream_fin(held->s);
        mux_stream_fin_ok(held->s);
    }
}

static void on_stream_event(App *app, MuxStream *s, MuxEventType type)
{
    Held *held = type == MUX_EVENT_OPEN ? hold(app, s) : mux_stream_opaque(s);
    unsigned bit = 1u << type;

    g_assert(held && held->s == s);
    g_assert(type == MUX_EVENT_READABLE || type == MUX_EVENT_WRITABLE ||
             !(held->reported & bit));
    held->reported |= bit;
    switch (type) {
    case MUX_EVENT_OPEN:
        on_open(app, held);
        break;
    case MUX_EVENT_READABLE:
        on_readable(app, held);
        break;
    case MUX_EVENT_OPEN_OK:
    case MUX_EVENT_WRITABLE:
        mux_copy_pattern(s, 0, 0, 1000);
        break;
    case MUX_EVENT_FIN:
        on_fin(app, held);
        break;
    case MUX_EVENT_FIN_OK:
        g_assert_true(mux_stream_fin_acked(s));
        break;
    case MUX_EVENT_RESET:
        g_assert_cmpint(mux_stream_state(s), ==, MUX_STREAM_RESET);
        break;
    default:
        g_assert_not_reached();
    }
}

static void take_events(App *app)
{
    MuxEvent event;

    while (mux_engine_next_event(app->side.e, &event)) {
        g_assert_false(app->over);
        switch (event.type) {
        case MUX_EVENT_HELLO:
            g_assert_false(app->hello);
            app->hello = true;
            open_streams(app);
            break;
        case MUX_EVENT_ENDED:
            app->over = true;
            break;
        default:
            g_assert_true(app->hello);
            on_stream_event(app, event.stream, event.type);
            break;
        }
    }
    g_assert_cmpint(app->over, ==, mux_engine_ended(app->side.e));
    check_all(app);
}

/* --- the connection --- */

static void drain(App *app)
{
    size_t start = app->side.sent->len;

    while (app->side.sent->len - start < TX_QUEUE &&
           mux_take(app->side.e, app->side.sent, TX_QUEUE, app->now, 64)) {
        mux_wire_watch(&app->side, NULL);
    }
}

static void step(App *app)
{
    take_events(app);
    if (!(app->set & MUX_FUZZ_MUTE)) {
        drain(app);
    }
    app->now += STEP_NS;
    if (app->now >= mux_engine_deadline(app->side.e)) {
        mux_engine_timeout(app->side.e, app->now);
    }
}

static void feed_hello(App *app)
{
    MuxHello hello = {
        .magic = MUX_MAGIC,
        .version_min = MUX_VERSION, .version_max = MUX_VERSION,
        .length = MUX_HELLO_V2_SIZE,
        .max_frame = 64 * KIB, .max_streams = 3,
        .role = app->set & MUX_FUZZ_SOURCE ? MUX_ROLE_DESTINATION
                                           : MUX_ROLE_SOURCE,
    };
    uint8_t out[MUX_HELLO_V2_SIZE];

    mux_hello_encode(&hello, out);
    mux_feed(app->side.e, out, sizeof(out), app->now);
}

/* End the connection on both sides. */
static void finish(App *app)
{
    mux_engine_rx_eof(app->side.e);
    mux_engine_transport_error(app->side.e, "Broken pipe");
    take_events(app);
    g_assert_true(app->over);
    g_assert_true(mux_engine_tx_idle(app->side.e));
    for (unsigned i = 0; i < app->held->len; i++) {
        mux_stream_release(((Held *)g_ptr_array_index(app->held, i))->s);
    }
    g_assert_false(mux_engine_has_streams(app->side.e));
}

static void app_init(App *app, uint8_t set, uint8_t manners)
{
    MuxRole role = set & MUX_FUZZ_SOURCE ? MUX_ROLE_SOURCE
                                         : MUX_ROLE_DESTINATION;
    MuxConfig config;

    mux_config_default(&config, role);
    if (set & MUX_FUZZ_SMALL_WINDOW) {
        config.window = 1000;
    }
    if (set & MUX_FUZZ_FEW_STREAMS) {
        config.max_streams = 2;
    }
    if (set & MUX_FUZZ_SMALL_FRAMES) {
        config.max_frame = 4096;
    }
    *app = (App) {
        .set = set, .manners = manners,
        .held = g_ptr_array_new_with_free_func(g_free),
    };
    mux_wire_side_init(&app->side, &config, role);
    if (!(set & MUX_FUZZ_RAW)) {
        feed_hello(app);
    }
}

void mux_fuzz_bytes(const uint8_t *data, size_t size)
{
    size_t piece;
    App app;

    if (size < 3) {
        return;
    }
    app_init(&app, data[0], data[2]);
    piece = data[1] ?: 1024;
    for (size_t done = 3; done < size; done += piece) {
        step(&app);
        mux_feed(app.side.e, data + done, MIN(piece, size - done), app.now);
    }
    step(&app);
    finish(&app);
    mux_wire_side_cleanup(&app.side);
    g_ptr_array_unref(app.held);
}
