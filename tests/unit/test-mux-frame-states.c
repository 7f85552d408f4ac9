/*
 * Tests of the migration multiplexer's engine: every type of frame, in every
 * state of a stream, with every kind of length, in both roles
 *
 * What has to come of it is the specification's table of received frames.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/bswap.h"
#include "migration/mux/engine-limits.h"
#include "migration/mux/frame.h"
#include "mux-engine-helpers.h"

#define CREDIT      100         /* bytes on an open stream */
#define PAYLOAD_MAX (512 * KIB) /* that is fed; more would be refused before */

typedef enum State {
    UNKNOWN,
    OFFERED,
    ASKED,
    OPEN,
    ENDED,                      /* the peer's FIN came */
    OUR_FIN,
    BOTH_FINS,                  /* none of them is answered */
    OUR_RESET,
    PEER_RESET,
    REFUSED,                    /* reset in the place of OPEN_OK */
    FINISHED,
    STATES,
} State;

#define IN(state)   (1 << (state))
#define RETIRED     (IN(OUR_RESET) | IN(PEER_RESET) | IN(REFUSED) | \
                     IN(FINISHED))
#define ACCEPTED    (IN(OPEN) | IN(ENDED) | IN(OUR_FIN) | IN(BOTH_FINS))
#define ANY         (IN(STATES) - 1)

/* Where a frame that is well-formed does not end the connection */
static const unsigned taken_in[] = {
    [MUX_FRAME_OPEN] = IN(UNKNOWN),
    [MUX_FRAME_OPEN_OK] = IN(OFFERED) | RETIRED,
    [MUX_FRAME_DATA] = IN(OPEN) | IN(OUR_FIN) | IN(OUR_RESET) | IN(PEER_RESET),
    [MUX_FRAME_WINDOW] = ACCEPTED | RETIRED,
    [MUX_FRAME_FIN] = IN(OPEN) | IN(OUR_FIN) | RETIRED,
    [MUX_FRAME_FIN_OK] = IN(OUR_FIN) | IN(BOTH_FINS) | RETIRED,
    [MUX_FRAME_RESET] = ANY & ~IN(UNKNOWN),
};

typedef struct Case {
    MuxRole role;               /* of the engine that gets the frame */
    bool ours;                  /* it has opened the stream */
    State state;
    uint8_t type;
    uint32_t length;
} Case;

/* --- what is right --- */

static bool allowed(const Case *c)
{
    uint32_t len = c->length;

    if (c->type >= MUX_TYPE_SKIPPABLE) {
        return len <= MUX_FRAME_BULK;
    }
    if (c->type >= G_N_ELEMENTS(taken_in) ||
        !(taken_in[c->type] & IN(c->state))) {
        return false;
    }
    switch (c->type) {
    case MUX_FRAME_OPEN:
        return !c->ours && len > MUX_OPEN_SIZE &&
               len <= MUX_OPEN_SIZE + MUX_NAME_MAX;
    case MUX_FRAME_DATA:
        return len >= 1 && len <= CREDIT;
    case MUX_FRAME_RESET:
        return len <= MUX_TEXT_MAX;
    default:
        return len == 8;
    }
}

/* The code of the GOAWAY if it is not allowed */
static uint32_t code(const Case *c)
{
    /* There is none on an id that is done with, and never was on others */
    bool beyond_credit =
        (taken_in[MUX_FRAME_DATA] & IN(c->state) && c->length > CREDIT) ||
        (IN(c->state) & (IN(REFUSED) | IN(FINISHED)) && c->length);

    if (c->type == MUX_FRAME_DATA) {
        return c->length > MUX_FRAME_BULK || beyond_credit
               ? MUX_CODE_LIMIT : MUX_CODE_PROTOCOL;
    }
    return c->type >= MUX_TYPE_SKIPPABLE ? MUX_CODE_LIMIT : MUX_CODE_PROTOCOL;
}

/* --- how to get there --- */

static void finish(MuxPair *p, MuxStream *a, MuxStream *b)
{
    mux_stream_fin_ok(a);
    mux_stream_fin_ok(b);
    mux_wire_run(&p->link);
    g_assert_cmpint(mux_stream_state(a), ==, MUX_STREAM_FINISHED);
}

/* @s is the stream here, @peer the same at the other side. */
static void go_on_from_open(MuxPair *p, State state, MuxStream *s,
                            MuxStream *peer)
{
    if (state == ENDED || state == BOTH_FINS || state == FINISHED) {
        mux_stream_fin(peer);
    }
    if (state == OUR_FIN || state == BOTH_FINS || state == FINISHED) {
        mux_stream_fin(s);
    }
    if (state == OUR_RESET || state == PEER_RESET) {
        mux_stream_reset(state == OUR_RESET ? s : peer, 1, "");
    }
    mux_wire_run(&p->link);
    if (state == FINISHED) {
        finish(p, s, peer);
    }
}

static void prepare(MuxPair *p, const Case *c, int opener)
{
    MuxStream *opened, *asked;
    const char *why;

    if (c->state == UNKNOWN) {
        return;
    }
    if (c->state == OFFERED || c->state == ASKED || c->state == REFUSED) {
        mux_engine_open(p->link.side[opener].e, "x", &why);
        mux_wire_run(&p->link);
        asked = mux_expect_event(p->link.side[!opener].e, MUX_EVENT_OPEN);
        if (c->state == REFUSED) {
            mux_stream_reset(asked, MUX_CODE_REFUSED, "");
            mux_wire_run(&p->link);
        }
        return;
    }
    mux_wire_open(&p->link, opener, "x", &opened, &asked);
    go_on_from_open(p, c->state, c->ours ? opened : asked,
                    c->ours ? asked : opened);
}

/* --- the frame --- */

static void feed_frame(MuxEngine *e, const Case *c, uint32_t id)
{
    static uint8_t payload[PAYLOAD_MAX];
    MuxHeader h = { .type = c->type, .stream = id, .length = c->length };
    size_t len = MIN(c->length, PAYLOAD_MAX);
    uint8_t header[MUX_HEADER_SIZE];

    memset(payload, 0, len);
    if (c->type == MUX_FRAME_OPEN && len > MUX_OPEN_SIZE) {
        stw_be_p(payload + 8, len - MUX_OPEN_SIZE);
        memset(payload + MUX_OPEN_SIZE, 'a', len - MUX_OPEN_SIZE);
    }
    mux_header_encode(&h, header);
    mux_feed(e, header, sizeof(header), 0);
    mux_feed(e, payload, len, 0);
}

/* The last frame that @e sends has to be a GOAWAY with its error. */
static void expect_goaway(MuxEngine *e, const Case *c)
{
    g_autoptr(GByteArray) out = g_byte_array_new();
    const char *text = mux_engine_error(e);
    size_t size = MUX_HEADER_SIZE + strlen(text);
    MuxHeader h;

    g_assert_true(g_str_has_prefix(text, c->role == MUX_ROLE_SOURCE
                                   ? "destination sent " : "source sent "));
    mux_drain(e, out, 0);
    g_assert_cmpuint(out->len, >=, size);
    mux_header_decode(out->data + out->len - size, &h);
    g_assert_cmpuint(h.type, ==, MUX_FRAME_GOAWAY);
    g_assert_cmpuint(h.length, ==, strlen(text));
    g_assert_cmpuint(h.arg, ==, code(c));
}

static void try(const Case *c)
{
    int side = c->role == MUX_ROLE_SOURCE ? SRC : DST;
    int opener = c->ours ? side : !side;
    MuxEngine *e;
    MuxPair p;

    mux_pair_init(&p, CREDIT);
    e = p.link.side[side].e;
    prepare(&p, c, opener);
    g_assert_null(mux_engine_error(e));
    feed_frame(e, c, opener == SRC ? 1 : 2);
    if (mux_engine_ended(e) == allowed(c)) {
        g_test_message("state %d, ours %d, type 0x%02x, length %u: %s",
                       c->state, c->ours, c->type, c->length,
                       mux_engine_error(e) ?: "taken");
        g_test_fail();
    } else if (mux_engine_ended(e)) {
        expect_goaway(e, c);
    }
    mux_pair_cleanup(&p);
}

static void try_types_and_lengths(Case c)
{
    static const uint8_t type[] = {
        0, MUX_FRAME_OPEN, MUX_FRAME_OPEN_OK, MUX_FRAME_DATA, MUX_FRAME_WINDOW,
        MUX_FRAME_FIN, MUX_FRAME_FIN_OK, MUX_FRAME_RESET, MUX_FRAME_PING,
        MUX_FRAME_PONG, MUX_FRAME_GOAWAY, 0x7f, 0x80, 0xff,
    };
    static const uint32_t length[] = {
        0, 1, 7, 8, 9, 12, 13, CREDIT, CREDIT + 1, 267, 268, 1024, 1025, 4096,
        4097, MUX_FRAME_BULK, MUX_FRAME_BULK + 1, INT32_MAX, UINT32_MAX,
    };

    for (size_t t = 0; t < G_N_ELEMENTS(type); t++) {
        for (size_t l = 0; l < G_N_ELEMENTS(length); l++) {
            c.type = type[t];
            c.length = length[l];
            try(&c);
        }
    }
}

static void every_state(MuxRole role)
{
    for (State state = 0; state < STATES; state++) {
        if (state != OFFERED) {
            try_types_and_lengths((Case) { .role = role, .state = state });
        }
        if (state != ASKED) {
            try_types_and_lengths((Case) { .role = role, .state = state,
                                           .ours = true });
        }
    }
}

static void test_source(void)
{
    every_state(MUX_ROLE_SOURCE);
}

static void test_destination(void)
{
    every_state(MUX_ROLE_DESTINATION);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);

    g_test_add_func("/mux/frame-states/source", test_source);
    g_test_add_func("/mux/frame-states/destination", test_destination);

    return g_test_run();
}
