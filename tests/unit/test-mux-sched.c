/*
 * Tests of the migration multiplexer's engine: which stream sends, and when
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "migration/mux/engine-int.h"
#include "mux-link-sim.h"

#define PAGE_REQUEST    20      /* bytes, as postcopy sends them */
#define STARVING        200     /* streams */

static SimFlow *flow(Sim *sim, unsigned i)
{
    return g_ptr_array_index(sim->flows, i);
}

/* @n streams, written to in pieces of @piece[] bytes; NULL: of 1 MiB. */
static void sim_with_bulk(Sim *sim, int n, const size_t *piece)
{
    sim_init(sim, SIM_GBIT, SIM_MS, NULL, NULL);
    for (int i = 0; i < n; i++) {
        sim_open(sim, SRC, "nbd-disk0")->piece = piece ? piece[i] : 1024 * KIB;
    }
    for (int i = 0; i < n; i++) {
        flow(sim, i)->writing = true;
    }
    sim_run(sim, 100 * SIM_MS);
}

/* What the next batch has, bytes; it goes out at once. */
static size_t next_batch(MuxEngine *e)
{
    struct iovec named[64];
    unsigned n = mux_engine_tx_want(e, named, 64, 0);
    size_t len = mux_iov_total(named, n);

    mux_engine_tx_done(e, len);
    return len;
}

/* --- shares --- */

/* What stream @i has got since @before, as a part of what all have. */
static double part_of(Sim *sim, const uint64_t *before, unsigned i)
{
    uint64_t sum = 0;

    for (unsigned k = 0; k < sim->flows->len; k++) {
        sum += flow(sim, k)->read - before[k];
    }
    return (flow(sim, i)->read - before[i]) / (double)sum;
}

static void shares_follow_weights(const unsigned *weight, unsigned n,
                                  const size_t *piece)
{
    g_autofree uint64_t *before = g_new0(uint64_t, n);
    unsigned sum = 0;
    Sim sim;

    sim_with_bulk(&sim, n, piece);
    for (unsigned i = 0; i < n; i++) {
        mux_stream_set_weight(flow(&sim, i)->from, weight[i]);
        sum += weight[i];
    }
    sim_run(&sim, SIM_S);
    for (unsigned i = 0; i < n; i++) {
        before[i] = flow(&sim, i)->read;
    }
    sim_run(&sim, 3 * SIM_S);
    for (unsigned i = 0; i < n; i++) {
        double want = weight[i] / (double)sum;

        g_test_message("pieces of %zu: weight %u has %.4f of all, not %.4f",
                       piece[i], weight[i], part_of(&sim, before, i), want);
        g_assert_cmpfloat(part_of(&sim, before, i), >, 0.95 * want);
        g_assert_cmpfloat(part_of(&sim, before, i), <, 1.05 * want);
    }
    sim_cleanup(&sim);
}

static void shares_with_pieces_of(size_t piece)
{
    static const unsigned equal[] = { 1, 1, 1, 1, 1, 1, 1, 1 };
    static const unsigned ram_and_disks[] = { 4, 1, 1, 1, 1 };
    static const unsigned rising[] = { 1, 2, 3, 5, 8 };
    static const unsigned most[] = { MUX_WEIGHT_MAX, 1 };
    const size_t pieces[] = {
        piece, piece, piece, piece, piece, piece, piece, piece,
    };

    shares_follow_weights(equal, 8, pieces);
    shares_follow_weights(ram_and_disks, 5, pieces);
    shares_follow_weights(rising, 5, pieces);
    shares_follow_weights(most, 2, pieces);
}

static void test_shares_follow_weights(void)
{
    shares_with_pieces_of(1024 * KIB);
    shares_with_pieces_of(300 * KIB);
}

static void test_short_pieces_do_not_lose_their_share(void)
{
    static const size_t length[] = { 4 * KIB, 16 * KIB, 32 * KIB, 64 * KIB };

    for (int i = 0; i < G_N_ELEMENTS(length); i++) {
        shares_with_pieces_of(length[i]);
    }
}

static void test_pieces_may_differ(void)
{
    static const unsigned weight[] = { 1, 4, 2, 1, 8, 1, 1, 3 };
    static const size_t falling[] = {
        1024 * KIB, 300 * KIB, 128 * KIB, 64 * KIB, 32 * KIB, 16 * KIB,
        4 * KIB, 1 * KIB,
    };
    static const size_t one_short[] = {
        1024 * KIB, 1024 * KIB, 1024 * KIB, 1024 * KIB, 4 * KIB,
    };

    shares_follow_weights(weight, 8, falling);
    shares_follow_weights(weight, 5, one_short);
}

static void test_weights_stay_within_bounds(void)
{
    static const unsigned beyond[] = { 0, 1, 1000, MUX_WEIGHT_MAX };
    static const double want[] = {
        1.0 / (2 + 2 * MUX_WEIGHT_MAX), 1.0 / (2 + 2 * MUX_WEIGHT_MAX),
        MUX_WEIGHT_MAX / (2.0 + 2 * MUX_WEIGHT_MAX),
        MUX_WEIGHT_MAX / (2.0 + 2 * MUX_WEIGHT_MAX),
    };
    uint64_t before[4];
    Sim sim;

    sim_with_bulk(&sim, 4, NULL);
    for (int i = 0; i < 4; i++) {
        mux_stream_set_weight(flow(&sim, i)->from, beyond[i]);
        before[i] = flow(&sim, i)->read;
    }
    sim_run(&sim, 30 * SIM_S);
    for (int i = 0; i < 4; i++) {
        g_assert_cmpfloat(part_of(&sim, before, i), >, 0.9 * want[i]);
        g_assert_cmpfloat(part_of(&sim, before, i), <, 1.1 * want[i]);
    }
    sim_cleanup(&sim);
}

static void test_no_stream_starves(void)
{
    uint64_t before[STARVING] = { 0 };
    Sim sim;

    sim_with_bulk(&sim, STARVING, NULL);
    mux_stream_set_weight(flow(&sim, 1)->from, MUX_WEIGHT_MAX);
    mux_stream_set_urgent(flow(&sim, 0)->from, true);
    sim_run(&sim, 3 * SIM_S);
    for (int round = 0; round < 2; round++) {
        sim_run(&sim, 3 * SIM_S);
        for (int i = 0; i < STARVING; i++) {
            g_assert_cmpuint(flow(&sim, i)->read, >, before[i]);
            before[i] = flow(&sim, i)->read;
        }
    }
    sim_cleanup(&sim);
}

static void test_urgent_leaves_bulk_its_part(void)
{
    uint64_t before[9];
    Sim sim;

    sim_with_bulk(&sim, 9, NULL);
    mux_stream_set_urgent(flow(&sim, 0)->from, true);
    sim_run(&sim, SIM_S);
    for (int i = 0; i < 9; i++) {
        before[i] = flow(&sim, i)->read;
    }
    sim_run(&sim, 10 * SIM_S);
    g_assert_cmpfloat(part_of(&sim, before, 0), >, 0.95 * 8 / 9);
    for (int i = 1; i < 9; i++) {
        g_assert_cmpfloat(part_of(&sim, before, i), >, 0.95 / 9 / 8);
        g_assert_cmpfloat(part_of(&sim, before, i), <, 1.05 / 9 / 8);
    }
    sim_cleanup(&sim);
}

/* A stream that was idle for a long time gets no credit for that time. */
static void test_idle_is_not_credited(void)
{
    uint64_t before[2];
    Sim sim;

    sim_with_bulk(&sim, 2, NULL);
    flow(&sim, 0)->writing = false;
    sim_run(&sim, 10 * SIM_S);
    for (int i = 0; i < 2; i++) {
        before[i] = flow(&sim, i)->read;
    }
    g_assert_cmpuint(before[1], >, 100 * before[0]);
    flow(&sim, 0)->writing = true;
    /* two frames, and from then on its half of 125 MB in a second */
    sim_run(&sim, SIM_S);
    g_assert_cmpfloat(part_of(&sim, before, 0), >, 0.49);
    g_assert_cmpfloat(part_of(&sim, before, 0), <, 0.51);
    sim_cleanup(&sim);
}

/* It may make up for two frames, which it missed while it prepared them. */
static void test_short_absence_is_made_up_for(void)
{
    static uint8_t data[1024 * KIB];
    struct iovec iov = { .iov_base = data, .iov_len = sizeof(data) };
    MuxStream *a[2], *b[2];
    MuxPair p;

    mux_pair_init(&p, 16 * 1024 * KIB);
    for (int i = 0; i < 2; i++) {
        mux_wire_open(&p.link, SRC, "x", &a[i], &b[i]);
    }
    for (int i = 0; i < 5; i++) {
        mux_stream_tx_offer(a[0], &iov, 1);
        mux_wire_run(&p.link);
    }
    g_assert_cmpuint(mux_stream_bytes_sent(a[0]), ==, 5 * sizeof(data));
    mux_stream_tx_offer(a[0], &iov, 1);
    mux_stream_tx_offer(a[1], &iov, 1);
    /* a batch is two frames: the other's turn comes after the third of ours */
    for (int i = 2; i <= 4; i += 2) {
        next_batch(p.src);
        g_assert_cmpuint(mux_stream_bytes_sent(a[1]), ==,
                         MIN(i, 3) * MUX_FRAME_BULK);
    }
    g_assert_cmpuint(mux_stream_bytes_sent(a[0]), ==,
                     5 * sizeof(data) + MUX_FRAME_BULK);
    mux_pair_cleanup(&p);
}

/* --- size of batches --- */

/* Streams with unlimited credit. */
static void pair_with_endless_credit(MuxPair *p, MuxStream **s, int n)
{
    MuxStream *theirs;

    mux_pair_init(p, 64 * KIB);
    for (int i = 0; i < n; i++) {
        mux_wire_open(&p->link, SRC, "x", &s[i], &theirs);
        s[i]->tx_limit = UINT64_MAX;
    }
}

/* Mean size of a batch while all have more to send at once, bytes. */
static size_t mean_batch(const unsigned *weight, int n, size_t piece)
{
    static uint8_t data[1024 * KIB];
    struct iovec iov = { .iov_base = data, .iov_len = piece };
    MuxStream *s[8];
    size_t sum = 0;
    MuxPair p;

    pair_with_endless_credit(&p, s, n);
    for (int i = 0; i < n; i++) {
        mux_stream_set_weight(s[i], weight[i]);
        mux_stream_tx_offer(s[i], &iov, 1);
    }
    for (int batch = 0; batch < 1000; batch++) {
        sum += next_batch(p.src);
        for (int i = 0; i < n; i++) {
            if (mux_stream_tx_sent(s[i]) == piece) {
                mux_stream_tx_offer(s[i], &iov, 1);
            }
        }
    }
    mux_pair_cleanup(&p);
    return sum / 1000;
}

/* Batches stay large unless another stream would lose its share. */
static void test_batches_are_whole_unless_one_is_behind(void)
{
    static const unsigned equal[] = { 1, 1, 1, 1, 1, 1, 1, 1 };
    static const unsigned ram_and_disks[] = { 4, 1, 1, 1, 1 };

    g_assert_cmpuint(mean_batch(equal, 1, 1024 * KIB), >=, MUX_BATCH_BYTES);
    g_assert_cmpuint(mean_batch(equal, 8, 1024 * KIB), >=, MUX_BATCH_BYTES);
    g_assert_cmpuint(mean_batch(equal, 8, 300 * KIB), >=,
                     0.9 * MUX_BATCH_BYTES);
    g_assert_cmpuint(mean_batch(equal, 8, 64 * KIB), >=, MUX_BATCH_BYTES);
    g_assert_cmpuint(mean_batch(equal, 8, 4 * KIB), >=, 8 * 4 * KIB);
    g_assert_cmpuint(mean_batch(ram_and_disks, 5, 300 * KIB), >=,
                     0.9 * MUX_BATCH_BYTES);
}

/*
 * One stream has sent a lot, the other sends @piece bytes, and the former has
 * more.  Returns what the batch has, bytes.
 */
static size_t batch_with_short_piece(size_t piece, bool last)
{
    static uint8_t data[5 * 1024 * KIB];
    struct iovec iov = { .iov_base = data };
    MuxStream *s[2];
    size_t len;
    MuxPair p;

    pair_with_endless_credit(&p, s, 2);
    for (size_t size = sizeof(data); size; size = size > 1000 ? 1000 : 0) {
        iov.iov_len = size;
        mux_stream_tx_offer(s[0], &iov, 1);
        while (!mux_engine_tx_idle(p.src)) {
            next_batch(p.src);
        }
    }
    iov.iov_len = sizeof(data);
    mux_stream_tx_offer(s[0], &iov, 1);
    iov.iov_len = piece;
    mux_stream_tx_offer(s[1], &iov, 1);
    if (last) {
        mux_stream_fin(s[1]);
    }
    len = next_batch(p.src);
    mux_pair_cleanup(&p);
    return len;
}

/* The former is as much ahead as it had last, and what may be made up for. */
static void test_batch_ends_for_who_is_behind(void)
{
    g_assert_cmpuint(batch_with_short_piece(999, false), ==, 16 + 999);
    g_assert_cmpuint(batch_with_short_piece(1000, false), ==,
                     2 * 16 + 1000 + MUX_FRAME_BULK);
    /* there is no more to wait for */
    g_assert_cmpuint(batch_with_short_piece(999, true), ==,
                     3 * 16 + 24 + MUX_BATCH_BYTES);
}

/* --- size of frames --- */

/* The first frame that the source sends of 1 MiB on @s, bytes. */
static size_t bulk_frame(MuxPair *p, MuxStream *s)
{
    static uint8_t data[1024 * KIB];
    struct iovec iov = { .iov_base = data, .iov_len = sizeof(data) };
    size_t at = p->link.side[SRC].sent->len;
    MuxHeader h;

    mux_stream_tx_offer(s, &iov, 1);
    mux_wire_run(&p->link);
    mux_header_decode(p->link.side[SRC].sent->data + at, &h);
    g_assert_cmpuint(h.type, ==, MUX_FRAME_DATA);
    return h.length;
}

static void test_frames_are_short_while_urgent_streams_are_used(void)
{
    MuxStream *a[3], *b[3];
    MuxPair p;

    mux_pair_init(&p, 64 * 1024 * KIB);
    for (int i = 0; i < 3; i++) {
        mux_wire_open(&p.link, SRC, "x", &a[i], &b[i]);
    }
    mux_stream_set_urgent(a[1], true);
    mux_stream_set_urgent(a[2], true);
    /* not used yet */
    g_assert_cmpuint(bulk_frame(&p, a[0]), ==, MUX_FRAME_BULK);
    mux_copy_pattern(a[1], SRC, 0, 1);
    mux_copy_pattern(b[2], DST, 0, 1);
    mux_wire_run(&p.link);
    g_assert_cmpuint(bulk_frame(&p, a[0]), ==, MUX_FRAME_URGENT);
    mux_stream_set_urgent(a[1], false);
    g_assert_cmpuint(bulk_frame(&p, a[0]), ==, MUX_FRAME_URGENT);
    mux_stream_set_urgent(a[1], true);
    mux_stream_reset(b[2], 1, "");
    mux_wire_run(&p.link);
    g_assert_cmpuint(bulk_frame(&p, a[0]), ==, MUX_FRAME_URGENT);
    mux_stream_reset(a[1], 1, "");
    mux_wire_run(&p.link);
    g_assert_cmpuint(bulk_frame(&p, a[0]), ==, MUX_FRAME_BULK);
    mux_pair_cleanup(&p);
}

/*
 * An urgent stream begins in a batch that has more than is allowed from then
 * on.  It comes behind bulk because others have been urgent before.
 */
static void batch_ends(size_t offered)
{
    static uint8_t data[1024 * KIB];
    struct iovec iov = { .iov_base = data, .iov_len = offered };
    MuxStream *a[3], *b[3];
    struct iovec named[64];
    unsigned n;
    MuxPair p;

    mux_pair_init(&p, 64 * 1024 * KIB);
    for (int i = 0; i < 3; i++) {
        mux_wire_open(&p.link, SRC, "x", &a[i], &b[i]);
    }
    mux_stream_set_urgent(a[0], true);
    for (int i = 0; i < MUX_URGENT_RUN; i++) {
        mux_copy_pattern(a[0], SRC, i, 1);
        mux_wire_run(&p.link);
    }
    mux_stream_reset(a[0], 1, "");
    mux_wire_run(&p.link);
    mux_stream_set_urgent(a[2], true);
    mux_copy_pattern(a[1], SRC, 0, 100 * KIB);
    mux_stream_tx_offer(a[2], &iov, 1);
    n = mux_engine_tx_want(p.src, named, 64, 0);
    g_assert_cmpuint(mux_iov_total(named, n), ==,
                     2 * 16 + 100 * KIB + MUX_FRAME_BULK);
    mux_pair_cleanup(&p);
}

static void test_batch_ends_when_less_is_allowed(void)
{
    batch_ends(1024 * KIB);
    /* not even one byte more */
    batch_ends(MUX_FRAME_BULK + 1);
}

/* --- delay --- */

/*
 * Bytes that the engine hands out between the moment when @s offers a page
 * request and the request's last byte.
 */
static uint64_t bytes_ahead(Sim *sim, MuxStream *s)
{
    static uint8_t request[PAGE_REQUEST];
    struct iovec iov = { .iov_base = request, .iov_len = sizeof(request) };
    uint64_t start = sim->side[SRC].taken;

    sim->write_max = 100;       /* to see the moment when it goes */
    mux_stream_tx_offer(s, &iov, 1);
    while (mux_stream_tx_sent(s) < sizeof(request)) {
        sim_run(sim, SIM_US);
    }
    sim->write_max = 10000;
    return sim->side[SRC].taken - start;
}

static int compare_u64(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

    return x < y ? -1 : x > y;
}

static void test_urgent_waits_for_one_frame(void)
{
    g_autoptr(GRand) rand = g_rand_new_with_seed(mux_test_seed(11));
    /* headers, what is asked, and what goes while the clock moves on */
    uint64_t slack = 2 * 16 + PAGE_REQUEST + 500;
    uint64_t ahead[300];
    SimFlow *urgent;
    Sim sim;

    sim_with_bulk(&sim, 8, NULL);
    /* a transport that takes part of a batch now and then */
    sim.write_max = 10000;
    urgent = sim_open(&sim, SRC, "postcopy");
    mux_stream_set_urgent(urgent->from, true);
    /* until now it was unknown that the stream would be used */
    g_assert_cmpuint(bytes_ahead(&sim, urgent->from), <=,
                     MUX_FRAME_BULK + slack);
    sim_run(&sim, 10 * SIM_MS);
    for (int i = 0; i < G_N_ELEMENTS(ahead); i++) {
        sim_run(&sim, g_rand_int_range(rand, 1, 5 * SIM_MS));
        ahead[i] = bytes_ahead(&sim, urgent->from);
    }
    qsort(ahead, G_N_ELEMENTS(ahead), sizeof(ahead[0]), compare_u64);
    g_test_message("delay by the engine at 1 Gb/s, us: median %.0f, "
                   "99 %% %.0f, most %.0f", ahead[150] / 125.0,
                   ahead[297] / 125.0, ahead[299] / 125.0);
    g_assert_cmpuint(ahead[299], <=, MUX_FRAME_URGENT + slack);
    g_assert_cmpuint(ahead[299], >, MUX_FRAME_URGENT / 2);
    sim_cleanup(&sim);
}

/* Control frames go before data, of their own stream, too. */
static void test_control_goes_first(void)
{
    g_autoptr(GByteArray) out = g_byte_array_new();
    uint8_t data[1000] = { 0 };
    struct iovec iov = { .iov_base = data, .iov_len = sizeof(data) };
    MuxStream *a[2], *b[2];
    const char *why;
    MuxPair p;

    mux_pair_init(&p, 64 * KIB);
    for (int i = 0; i < 2; i++) {
        mux_wire_open(&p.link, SRC, "x", &a[i], &b[i]);
        mux_stream_tx_offer(a[i], &iov, 1);
        mux_stream_tx_offer(b[i], &iov, 1);
    }
    mux_stream_set_urgent(a[1], true);
    mux_engine_ping(p.src);
    mux_engine_open(p.src, "y", &why);
    mux_stream_reset(a[0], 1, "");
    mux_drain(p.src, out, 0);
    g_assert_cmpuint(out->len, ==, 24 + 16 + 16 + 13 + 16 + 1000);
    g_assert_cmpuint(out->data[0], ==, 8);                  /* PING */
    g_assert_cmpuint(out->data[24], ==, 7);                 /* RESET */
    g_assert_cmpuint(out->data[24 + 16], ==, 1);            /* OPEN */
    g_assert_cmpuint(out->data[24 + 16 + 29], ==, 3);       /* DATA */
    mux_pair_cleanup(&p);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);

#define ADD(path, func) g_test_add_func("/mux/sched/" path, func)
    ADD("shares-follow-weights", test_shares_follow_weights);
    ADD("short-pieces-do-not-lose-their-share",
        test_short_pieces_do_not_lose_their_share);
    ADD("pieces-may-differ", test_pieces_may_differ);
    ADD("weights-stay-within-bounds", test_weights_stay_within_bounds);
    ADD("no-stream-starves", test_no_stream_starves);
    ADD("urgent-leaves-bulk-its-part", test_urgent_leaves_bulk_its_part);
    ADD("idle-is-not-credited", test_idle_is_not_credited);
    ADD("short-absence-is-made-up-for", test_short_absence_is_made_up_for);
    ADD("batches-are-whole-unless-one-is-behind",
        test_batches_are_whole_unless_one_is_behind);
    ADD("batch-ends-for-who-is-behind", test_batch_ends_for_who_is_behind);
    ADD("frames-are-short-while-urgent-streams-are-used",
        test_frames_are_short_while_urgent_streams_are_used);
    ADD("batch-ends-when-less-is-allowed",
        test_batch_ends_when_less_is_allowed);
    ADD("urgent-waits-for-one-frame", test_urgent_waits_for_one_frame);
    ADD("control-goes-first", test_control_goes_first);
#undef ADD

    return g_test_run();
}
