/*
 * Helpers for tests of the migration multiplexer's engine
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/bswap.h"
#include "migration/mux/engine-int.h"
#include "mux-engine-helpers.h"

uint32_t mux_test_seed(uint32_t preset)
{
    const char *env = g_getenv("MUX_TEST_SEED");
    uint32_t seed = env ? g_ascii_strtoull(env, NULL, 0) : preset;

    g_test_message("MUX_TEST_SEED=%u", seed);
    return seed;
}

/* --- watching the wire --- */

static uint64_t *table_u64(GHashTable *t, uint32_t id)
{
    uint64_t *v = g_hash_table_lookup(t, GUINT_TO_POINTER(id));

    if (!v) {
        v = g_new0(uint64_t, 1);
        g_hash_table_insert(t, GUINT_TO_POINTER(id), v);
    }
    return v;
}

static void watch_frame(MuxWireSide *from, MuxWireSide *to,
                        const MuxHeader *h, const uint8_t *payload)
{
    uint64_t *offset = table_u64(from->offsets, h->stream);
    uint64_t *granted = table_u64(from->limits, h->stream);

    g_assert_nonnull(mux_frame_name(h->type));
    g_assert_cmpuint(h->flags, ==, 0);
    g_assert_cmpuint(h->zero, ==, 0);
    g_assert_cmpint(h->stream != 0, ==, mux_frame_has_stream(h->type));
    g_assert_true(mux_frame_length_ok(h->type, h->length));
    g_assert_false(from->goaway);
    g_assert_false(g_hash_table_contains(from->resets,
                                         GUINT_TO_POINTER(h->stream)));
    switch (h->type) {
    case MUX_FRAME_OPEN:
        g_assert_cmpuint(h->stream % 2, ==, from->role == MUX_ROLE_SOURCE);
        /* fall through */
    case MUX_FRAME_OPEN_OK:
    case MUX_FRAME_WINDOW:
        g_assert_cmpuint(ldq_be_p(payload), >, *granted);
        *granted = ldq_be_p(payload);
        break;
    case MUX_FRAME_DATA:
        g_assert_cmpuint(h->length, >, 0);
        g_assert_cmpuint(h->arg, ==, (uint32_t)*offset);
        *offset += h->length;
        g_assert(!to ||
                 *offset <= *table_u64(to->limits, h->stream));
        break;
    case MUX_FRAME_FIN:
        g_assert_cmpuint(ldq_be_p(payload), ==, *offset);
        break;
    case MUX_FRAME_FIN_OK:
        g_assert(!to || ldq_be_p(payload) ==
                 *table_u64(to->offsets, h->stream));
        break;
    case MUX_FRAME_RESET:
        g_hash_table_add(from->resets, GUINT_TO_POINTER(h->stream));
        break;
    case MUX_FRAME_GOAWAY:
        from->goaway = true;
        break;
    }
}

void mux_wire_watch(MuxWireSide *from, MuxWireSide *to)
{
    if (from->watched == 0 && from->sent->len >= MUX_HELLO_V2_SIZE) {
        from->watched = MUX_HELLO_V2_SIZE;
    }
    while (from->watched &&
           from->sent->len - from->watched >= MUX_HEADER_SIZE) {
        const uint8_t *p = from->sent->data + from->watched;
        MuxHeader h;

        mux_header_decode(p, &h);
        if (from->sent->len - from->watched < MUX_HEADER_SIZE + h.length) {
            return;
        }
        watch_frame(from, to, &h, p + MUX_HEADER_SIZE);
        from->watched += MUX_HEADER_SIZE + h.length;
    }
}

/* Bytes that all windows together may have. */
static uint64_t windows_bound(MuxEngine *e)
{
    uint64_t share = MIN(MUX_WINDOW_SHARE, e->config.window);

    return MAX(e->config.window_sum, share * 2 * e->config.max_streams);
}

/*
 * What the peer may send it has been granted, what the application copies is
 * limited; beyond that each queue may hold a chunk that is begun at each end.
 */
void mux_assert_memory_bounded(MuxEngine *e)
{
    size_t chunks = e->config.max_frame;        /* room may be named */
    uint64_t windows = 0;
    GHashTableIter iter;
    gpointer key;

    g_hash_table_iter_init(&iter, e->all);
    while (g_hash_table_iter_next(&iter, &key, NULL)) {
        MuxStream *s = key;

        g_assert_cmpuint(s->rx.size, <=, s->rx_limit - s->rx_consumed);
        g_assert(!s->aborted || s->rx_lent || !s->rx.size);
        g_assert_cmpuint(s->own.size, <=, MUX_OWN_BUFFER);
        chunks += s->rx.size + s->own.size + 4 * MUX_CHUNK_SIZE;
        windows += s->retired ? 0 : s->rx_limit - s->rx_consumed;
    }
    g_assert_cmpuint(windows, <=, windows_bound(e));
    g_assert_cmpuint(e->pool.nused * MUX_CHUNK_SIZE, <=, chunks);
    g_assert_cmpuint(e->pool.nspare, <=, MUX_CHUNKS_SPARE);
    g_assert_cmpuint(g_hash_table_size(e->retired), <=,
                     2 * MUX_LIFETIME_STREAMS);
}

void mux_assert_nothing_held(MuxEngine *e)
{
    g_assert_cmpuint(g_hash_table_size(e->all), ==, 0);
    g_assert_cmpuint(g_hash_table_size(e->live), ==, 0);
    g_assert_cmpuint(e->pool.nused, ==, 0);
    g_assert_cmpuint(e->local_open, ==, 0);
    g_assert_cmpuint(e->local.announced + e->remote.announced, ==, 0);
    g_assert_cmpuint(e->local.unanswered + e->remote.unanswered, ==, 0);
    g_assert_cmpuint(e->urgent_active, ==, 0);
    g_assert_cmpint(e->credit_free, ==, e->credit_pool);
}

/* --- moving bytes --- */

static size_t random_piece(MuxWire *link, size_t most)
{
    size_t max = MIN(most, link->piece_max);

    return max > 1 ? g_rand_int_range(link->rand, 1, max + 1) : max;
}

size_t mux_iov_total(const struct iovec *iov, unsigned n)
{
    size_t total = 0;

    for (unsigned i = 0; i < n; i++) {
        total += iov[i].iov_len;
    }
    return total;
}

void mux_iov_copy(const struct iovec *iov, uint8_t *buf, size_t len,
                  bool to_iov)
{
    while (len) {
        size_t n = MIN(len, iov->iov_len);

        if (to_iov) {
            memcpy(iov->iov_base, buf, n);
        } else {
            memcpy(buf, iov->iov_base, n);
        }
        buf += n;
        len -= n;
        iov++;
    }
}

size_t mux_take(MuxEngine *e, GByteArray *out, size_t max, int64_t now,
                unsigned iov_max)
{
    struct iovec iov[64];
    unsigned n = mux_engine_tx_want(e, iov, iov_max, now);
    size_t len = MIN(max, mux_iov_total(iov, n));
    size_t old = out->len;

    g_assert_cmpuint(n, <=, iov_max);
    g_assert(mux_iov_total(iov, n) <= MUX_BATCH_BYTES + 64 * KIB);
    if (len) {
        g_byte_array_set_size(out, old + len);
        mux_iov_copy(iov, out->data + old, len, false);
        mux_engine_tx_done(e, len);
    }
    return len;
}

/* Give at most @max of the @len bytes at @data to @e; returns how many. */
static size_t give(MuxEngine *e, const uint8_t *data, size_t len, int64_t now,
                   unsigned iov_max)
{
    struct iovec iov[64];
    unsigned n = mux_engine_rx_want(e, iov, iov_max);

    g_assert_cmpuint(n, <=, iov_max);
    len = MIN(len, mux_iov_total(iov, n));
    if (len) {
        mux_iov_copy(iov, (uint8_t *)data, len, true);
        mux_engine_rx_done(e, len, now);
    }
    return len;
}

static bool move_one_way(MuxWire *link, int side)
{
    MuxWireSide *from = &link->side[side];
    MuxEngine *to = link->side[!side].e;
    size_t waiting = from->sent->len - from->delivered;
    size_t most = MIN(waiting, from->cut - from->delivered);
    size_t moved = 0;

    if (waiting < link->capacity) {
        moved = mux_take(from->e, from->sent,
                         random_piece(link, link->capacity - waiting),
                         link->now, g_rand_int_range(link->rand, 1, 65));
        mux_wire_watch(from, &link->side[!side]);
    }
    if (most) {
        size_t n = give(to, from->sent->data + from->delivered,
                        random_piece(link, most), link->now,
                        g_rand_int_range(link->rand, 3, 65));

        from->delivered += n;
        moved += n;
    }
    if (from->delivered == from->cut && !from->eof_told) {
        from->eof_told = true;
        mux_engine_rx_eof(to);
        mux_engine_transport_error(from->e, "Broken pipe");
        moved++;
    }
    return moved;
}

bool mux_wire_step(MuxWire *link)
{
    bool moved = move_one_way(link, SRC);

    link->now += 1000;
    return move_one_way(link, DST) || moved;
}

void mux_wire_run(MuxWire *link)
{
    while (mux_wire_step(link)) {
        /* more */
    }
    for (int i = 0; i < 2; i++) {
        g_assert(mux_engine_tx_idle(link->side[i].e) ||
                 link->side[i].cut != SIZE_MAX);
    }
}

void mux_wire_side_init(MuxWireSide *side, const MuxConfig *config,
                        MuxRole role)
{
    MuxConfig defaults;

    mux_config_default(&defaults, role);
    *side = (MuxWireSide) {
        .role = role,
        .e = mux_engine_new(config ?: &defaults, 0),
        .sent = g_byte_array_new(),
        .limits = g_hash_table_new_full(NULL, NULL, NULL, g_free),
        .offsets = g_hash_table_new_full(NULL, NULL, NULL, g_free),
        .resets = g_hash_table_new(NULL, NULL),
        .cut = SIZE_MAX,
    };
}

void mux_wire_init(MuxWire *link, uint32_t seed, const MuxConfig *source,
                   const MuxConfig *destination)
{
    *link = (MuxWire) {
        .rand = g_rand_new_with_seed(seed),
        .piece_max = 256 * 1024,
        .capacity = 256 * 1024,
    };
    mux_wire_side_init(&link->side[SRC], source, MUX_ROLE_SOURCE);
    mux_wire_side_init(&link->side[DST], destination, MUX_ROLE_DESTINATION);
}

void mux_wire_side_cleanup(MuxWireSide *side)
{
    mux_engine_free(side->e);
    g_byte_array_unref(side->sent);
    g_hash_table_unref(side->limits);
    g_hash_table_unref(side->offsets);
    g_hash_table_unref(side->resets);
}

void mux_wire_cleanup(MuxWire *link)
{
    mux_wire_side_cleanup(&link->side[SRC]);
    mux_wire_side_cleanup(&link->side[DST]);
    g_rand_free(link->rand);
}

void mux_feed(MuxEngine *e, const uint8_t *data, size_t len, int64_t now)
{
    while (len) {
        size_t n = give(e, data, len, now, 8);

        if (!n) {
            return;             /* the connection has ended */
        }
        data += n;
        len -= n;
    }
}

void mux_drain(MuxEngine *e, GByteArray *out, int64_t now)
{
    while (mux_take(e, out, SIZE_MAX, now, 64)) {
        /* more */
    }
}

GByteArray *mux_unhex(const char *hex)
{
    GByteArray *out = g_byte_array_new();

    while (*hex) {
        uint8_t byte;

        if (*hex == ' ') {
            hex++;
            continue;
        }
        g_assert(g_ascii_isxdigit(hex[0]) && g_ascii_isxdigit(hex[1]));
        byte = g_ascii_xdigit_value(hex[0]) << 4 |
               g_ascii_xdigit_value(hex[1]);
        g_byte_array_append(out, &byte, 1);
        hex += 2;
    }
    return out;
}

MuxStream *mux_expect_event(MuxEngine *e, MuxEventType type)
{
    MuxEvent event;

    while (mux_engine_next_event(e, &event)) {
        if (event.type == type) {
            return event.stream;
        }
    }
    g_assert_not_reached();
}

void mux_wire_open(MuxWire *link, int opener, const char *name,
                   MuxStream **ours, MuxStream **theirs)
{
    const char *why = NULL;

    *ours = mux_engine_open(link->side[opener].e, name, &why);
    g_assert_cmpstr(why, ==, NULL);
    mux_wire_run(link);
    *theirs = mux_expect_event(link->side[!opener].e, MUX_EVENT_OPEN);
    g_assert_cmpstr(mux_stream_name(*theirs), ==, name);
    mux_stream_accept(*theirs);
    mux_wire_run(link);
    g_assert(mux_expect_event(link->side[opener].e, MUX_EVENT_OPEN_OK)
             == *ours);
}

/* --- pattern --- */

size_t mux_copy_pattern(MuxStream *s, int side, uint64_t offset, size_t len)
{
    g_autofree uint8_t *buf = g_malloc(len + 1);
    struct iovec iov = { .iov_base = buf, .iov_len = len };
    uint32_t id = mux_stream_id(s);

    for (size_t i = 0; i < len; i++) {
        buf[i] = mux_pattern(id, side, offset + i);
    }
    return mux_stream_tx_copy(s, &iov, 1);
}

size_t mux_read_pattern(MuxStream *s, int side, uint64_t offset, size_t max)
{
    struct iovec iov[3];
    unsigned n = mux_stream_rx_iov(s, iov, 3);
    uint32_t id = mux_stream_id(s);
    size_t done = 0;

    for (unsigned i = 0; i < n; i++) {
        const uint8_t *p = iov[i].iov_base;

        for (size_t k = 0; k < iov[i].iov_len && done < max; k++, done++) {
            g_assert_cmphex(p[k], ==, mux_pattern(id, side, offset + done));
        }
    }
    mux_stream_rx_consume(s, done);
    return done;
}

/* --- pair --- */

void mux_pair_init(MuxPair *p, uint64_t window)
{
    MuxConfig src, dst;

    mux_config_default(&src, MUX_ROLE_SOURCE);
    mux_config_default(&dst, MUX_ROLE_DESTINATION);
    src.window = dst.window = window;
    src.window_max = dst.window_max = window;
    mux_wire_init(&p->link, 1, &src, &dst);
    p->src = p->link.side[SRC].e;
    p->dst = p->link.side[DST].e;
    mux_wire_run(&p->link);
    mux_expect_event(p->src, MUX_EVENT_HELLO);
    mux_expect_event(p->dst, MUX_EVENT_HELLO);
}

void mux_pair_cleanup(MuxPair *p)
{
    mux_wire_cleanup(&p->link);
}

bool mux_has_event(MuxEngine *e, MuxEventType type, MuxStream *s)
{
    bool found = false;
    MuxEvent event;

    while (mux_engine_next_event(e, &event)) {
        found |= event.type == type && event.stream == s;
    }
    return found;
}
