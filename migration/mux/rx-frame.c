/*
 * Migration multiplexer: what each received frame means
 *
 * A frame is about a stream that is live, or about an id that is done with
 * ("late": the peer sent it before it knew), or it is an error.  What a live
 * stream takes, by its state:
 *
 *            ours OPENING  theirs OPENING  OPEN  FIN came  our FIN sent
 *   OPEN_OK       yes             -          -       -          -
 *   DATA           -              -         yes      -         yes
 *   WINDOW         -              -         yes     yes        yes
 *   FIN            -              -         yes      -         yes
 *   FIN_OK         -              -          -       -       yes, once
 *   RESET         yes            yes        yes     yes        yes
 *
 * All else ends the connection.  Late frames are dropped, but DATA must stay
 * within the credit that was granted and a FIN must not contradict it.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/bswap.h"
#include "engine-int.h"

/* Returns "stream 'NAME' (id N)" or "stream id N"; the caller frees it. */
static char *describe(MuxEngine *e, uint32_t id)
{
    MuxStream *s = g_hash_table_lookup(e->live, GUINT_TO_POINTER(id));

    return s ? g_strdup_printf("stream '%s' (id %u)", s->name, id)
             : g_strdup_printf("stream id %u", id);
}

/* The current frame may not be there, or not like that: say @how. */
static void G_GNUC_PRINTF(3, 4)
fail_frame(MuxEngine *e, uint32_t code, const char *how, ...)
{
    const MuxHeader *h = &e->rx_header;
    g_autofree char *where = h->stream ? describe(e, h->stream) : NULL;
    g_autofree char *why = NULL;
    va_list ap;

    va_start(ap, how);
    why = g_strdup_vprintf(how, ap);
    va_end(ap);
    mux_engine_fail(e, code, "%s sent %s%s%s %s", mux_peer_name(e),
                    mux_frame_name(h->type), where ? " on " : "",
                    where ?: "", why);
}

static bool check_form(MuxEngine *e)
{
    const MuxHeader *h = &e->rx_header;

    if (h->flags || h->zero) {
        fail_frame(e, MUX_CODE_PROTOCOL,
                   "with unknown flags 0x%02x, reserved field 0x%04x",
                   h->flags, h->zero);
        return false;
    }
    if (mux_frame_has_stream(h->type) != (h->stream != 0)) {
        fail_frame(e, MUX_CODE_PROTOCOL, "%s", h->stream
                   ? "but it concerns the connection" : "without a stream id");
        return false;
    }
    if (!mux_frame_length_ok(h->type, h->length)) {
        fail_frame(e, MUX_CODE_PROTOCOL, "with a bad length of %u bytes",
                   h->length);
        return false;
    }
    return true;
}

/*
 * The live stream of the current frame.  NULL: the frame is late and to be
 * dropped, or the connection has failed because the id was never opened.
 */
static MuxStream *find_stream(MuxEngine *e)
{
    gpointer id = GUINT_TO_POINTER(e->rx_header.stream);
    MuxStream *s = g_hash_table_lookup(e->live, id);

    if (!s && !g_hash_table_contains(e->retired, id)) {
        fail_frame(e, MUX_CODE_PROTOCOL, "which was never opened");
    }
    return s;
}

/* As find_stream(), and the stream has to be accepted by both sides. */
static MuxStream *find_open(MuxEngine *e)
{
    MuxStream *s = find_stream(e);

    if (s && s->state == MUX_STREAM_OPENING) {
        fail_frame(e, MUX_CODE_PROTOCOL, "before its OPEN_OK");
        return NULL;
    }
    return s;
}

/* --- DATA --- */

/* Move @offset over the current frame, if the frame fits there. */
static bool charge_data(MuxEngine *e, uint64_t *offset, uint64_t limit)
{
    const MuxHeader *h = &e->rx_header;

    if (h->arg != (uint32_t)*offset) {
        fail_frame(e, MUX_CODE_PROTOCOL,
                   "with offset 0x%08x instead of 0x%08x",
                   h->arg, (uint32_t)*offset);
        return false;
    }
    if (h->length > limit - *offset) {
        fail_frame(e, MUX_CODE_LIMIT,
                   "beyond its credit: %u bytes at offset %" PRIu64
                   ", limit %" PRIu64, h->length, *offset, limit);
        return false;
    }
    *offset += h->length;
    e->control_earned += MUX_CONTROL_PER_DATA(h->length);
    return true;
}

static void data_begin(MuxEngine *e)
{
    const MuxHeader *h = &e->rx_header;
    MuxStream *s;
    MuxRetired *r;

    if (h->length > e->config.max_frame) {
        fail_frame(e, MUX_CODE_LIMIT, "with %u bytes, %s accepts %u",
                   h->length, mux_local_name(e), e->config.max_frame);
        return;
    }
    s = find_open(e);
    if (e->ended) {
        return;
    }
    if (!s) {
        r = g_hash_table_lookup(e->retired, GUINT_TO_POINTER(h->stream));
        charge_data(e, &r->offset, r->limit);
        e->rx_drop = true;
        return;
    }
    if (s->fin_received) {
        fail_frame(e, MUX_CODE_PROTOCOL, "after its FIN");
        return;
    }
    if (charge_data(e, &s->rx_offset, s->rx_limit)) {
        e->rx_stream = s;
    }
}

/*
 * Little data does not need many control frames.  The limit only grows, so
 * that frames which were held up on their way and come all at once are fine.
 */
static bool check_flood(MuxEngine *e, int64_t now)
{
    uint64_t most = MUX_CONTROL_BURST + e->control_earned +
                    (now - e->start) / MUX_CONTROL_INTERVAL;

    switch (e->rx_header.type) {
    case MUX_FRAME_DATA:
    case MUX_FRAME_PONG:                /* has to answer a PING of ours */
    case MUX_FRAME_GOAWAY:              /* the last one */
        return true;
    }
    if (++e->control_received > most) {
        mux_engine_fail(e, MUX_CODE_LIMIT, "%s sent more than %" PRIu64
                        " control frames, the limit by now",
                        mux_peer_name(e), most);
        return false;
    }
    return true;
}

void mux_frame_begin(MuxEngine *e, int64_t now)
{
    const MuxHeader *h = &e->rx_header;

    if (!check_flood(e, now)) {
        return;
    }
    if (!mux_frame_name(h->type)) {
        if (h->type < MUX_TYPE_SKIPPABLE) {
            mux_engine_fail(e, MUX_CODE_PROTOCOL,
                            "%s sent a frame of unknown type 0x%02x",
                            mux_peer_name(e), h->type);
        } else if (h->length > e->config.max_frame) {
            mux_engine_fail(e, MUX_CODE_LIMIT,
                            "%s sent a frame of type 0x%02x with %u bytes, "
                            "%s accepts %u", mux_peer_name(e), h->type,
                            h->length, mux_local_name(e),
                            e->config.max_frame);
        }
        e->rx_drop = true;
        return;
    }
    if (check_form(e) && h->type == MUX_FRAME_DATA) {
        data_begin(e);
    }
}

/* --- frames about a stream --- */

static bool open_allowed(MuxEngine *e)
{
    const MuxStreamCounts *remote = &e->remote;
    uint32_t id = e->rx_header.stream;
    uint32_t parity = e->config.role == MUX_ROLE_SOURCE ? 0 : 1;

    if (id % 2 != parity) {
        fail_frame(e, MUX_CODE_PROTOCOL, "which the other side assigns");
    } else if (id <= e->last_id) {
        fail_frame(e, MUX_CODE_PROTOCOL,
                   "but ids only grow, and %u was used", e->last_id);
    } else if (remote->announced >= e->config.max_streams) {
        fail_frame(e, MUX_CODE_LIMIT, "with %u open, %s accepts %u",
                   remote->announced, mux_local_name(e),
                   e->config.max_streams);
    } else if (remote->unanswered >= MUX_UNANSWERED_OPENS) {
        fail_frame(e, MUX_CODE_LIMIT, "with %u OPENs unanswered, the limit",
                   remote->unanswered);
    } else if (remote->lifetime >= MUX_LIFETIME_STREAMS) {
        fail_frame(e, MUX_CODE_LIMIT,
                   "after %u streams, the limit for a connection",
                   remote->lifetime);
    }
    return !e->ended;
}

static void on_open(MuxEngine *e)
{
    const MuxHeader *h = &e->rx_header;
    const char *name = (const char *)e->rx_control + MUX_OPEN_SIZE;
    size_t len = h->length - MUX_OPEN_SIZE;
    MuxStream *s;

    if (lduw_be_p(e->rx_control + 8) != len || lduw_be_p(e->rx_control + 10)) {
        fail_frame(e, MUX_CODE_PROTOCOL, "with a bad length of the name");
        return;
    }
    if (!mux_name_ok(name, len)) {
        fail_frame(e, MUX_CODE_PROTOCOL, "with a name that is not printable");
        return;
    }
    if (!open_allowed(e)) {
        return;
    }
    s = mux_stream_new(e, g_strndup(name, len), h->stream, false);
    s->announced = true;
    s->tx_limit = ldq_be_p(e->rx_control);
    e->last_id = s->id;
    e->remote.announced++;
    e->remote.unanswered++;
    e->remote.lifetime++;
    g_hash_table_insert(e->live, GUINT_TO_POINTER(s->id), s);
    mux_stream_event(s, MUX_EVENT_OPEN);
}

static void on_open_ok(MuxEngine *e)
{
    MuxStream *s = find_stream(e);

    if (!s) {
        return;
    }
    if (!s->local || s->state != MUX_STREAM_OPENING) {
        fail_frame(e, MUX_CODE_PROTOCOL, "that answers no OPEN");
        return;
    }
    s->state = s->fin_wanted ? MUX_STREAM_FINISHING : MUX_STREAM_OPEN;
    s->tx_limit = ldq_be_p(e->rx_control);
    e->local.unanswered--;
    mux_stream_event(s, MUX_EVENT_OPEN_OK);
    mux_sched_update(s);
    mux_stream_tx_unblock(s);
}

static void on_window(MuxEngine *e)
{
    MuxStream *s = find_open(e);
    uint64_t limit = ldq_be_p(e->rx_control);

    if (s && limit > s->tx_limit) {
        s->tx_limit = limit;
        mux_sched_update(s);
        mux_stream_tx_unblock(s);
    }
}

static void late_fin(MuxEngine *e, uint64_t size)
{
    MuxRetired *r = g_hash_table_lookup(e->retired,
                                 GUINT_TO_POINTER(e->rx_header.stream));

    if (size != r->offset) {
        fail_frame(e, MUX_CODE_PROTOCOL, "with final size %" PRIu64
                   " after %" PRIu64 " bytes", size, r->offset);
        return;
    }
    r->limit = r->offset;
}

static void on_fin(MuxEngine *e)
{
    MuxStream *s = find_open(e);
    uint64_t size = ldq_be_p(e->rx_control);

    if (e->ended) {
        return;
    }
    if (!s) {
        late_fin(e, size);
    } else if (s->fin_received) {
        fail_frame(e, MUX_CODE_PROTOCOL, "for the second time");
    } else if (size != s->rx_offset) {
        fail_frame(e, MUX_CODE_PROTOCOL, "with final size %" PRIu64
                   " after %" PRIu64 " bytes", size, s->rx_offset);
    } else {
        s->fin_received = true;
        s->state = MUX_STREAM_FINISHING;
        mux_stream_event(s, MUX_EVENT_FIN);
        if (s->fin_ok_wanted) {
            mux_stream_answer_fin(s);
        }
    }
}

static void on_fin_ok(MuxEngine *e)
{
    MuxStream *s = find_open(e);
    uint64_t size = ldq_be_p(e->rx_control);

    if (!s) {
        return;
    }
    if (!s->fin_sent || s->fin_acked) {
        fail_frame(e, MUX_CODE_PROTOCOL, "that answers no FIN");
    } else if (size != s->tx_offset) {
        fail_frame(e, MUX_CODE_PROTOCOL, "with final size %" PRIu64
                   ", %s sent %" PRIu64 " bytes", size, mux_local_name(e),
                   s->tx_offset);
    } else {
        s->fin_acked = true;
        mux_stream_event(s, MUX_EVENT_FIN_OK);
        mux_stream_check_finished(s);
    }
}

/*
 * The peer's reason in a RESET or GOAWAY.  Where the peer's application has
 * decided, its text says it all; else the code tells what went wrong.
 */
static char *peer_reason(MuxEngine *e)
{
    g_autofree char *text = mux_text_sanitize(e->rx_control,
                                              e->rx_header.length);
    uint32_t code = e->rx_header.arg;

    if (*text && (code == MUX_CODE_REFUSED || code == MUX_CODE_ABORTED)) {
        return g_steal_pointer(&text);
    }
    return g_strdup_printf("%s (code %u)", *text ? text : "no reason given",
                           code);
}

static MuxCause peer_cause(MuxEngine *e)
{
    return (MuxCause) { .code = e->rx_header.arg, .by_peer = true };
}

static void on_reset(MuxEngine *e)
{
    MuxStream *s = find_stream(e);
    g_autofree char *reason = NULL;

    if (!s) {
        return;
    }
    reason = peer_reason(e);
    s->error = g_strdup_printf("aborted by the %s: %s", mux_peer_name(e),
                               reason);
    s->cause = peer_cause(e);
    if (s->state == MUX_STREAM_OPENING) {
        s->rx_limit = 0;                /* never accepted: no data either */
    }
    mux_stream_event(s, MUX_EVENT_RESET);
    mux_stream_retire(s, MUX_STREAM_RESET);
}

/* --- frames about the connection --- */

static void on_ping(MuxEngine *e)
{
    if (e->npongs == MUX_UNANSWERED_PINGS) {
        fail_frame(e, MUX_CODE_LIMIT, "with %u PINGs unanswered, the limit",
                   e->npongs);
        return;
    }
    e->pongs[e->npongs++] = ldq_be_p(e->rx_control);
}

static void on_pong(MuxEngine *e, int64_t now)
{
    if (!mux_liveness_pong(e, ldq_be_p(e->rx_control), now)) {
        fail_frame(e, MUX_CODE_PROTOCOL, "that answers no PING");
    }
}

static void on_goaway(MuxEngine *e)
{
    g_autofree char *reason = NULL;

    if (e->rx_header.arg == MUX_CODE_OK) {
        mux_engine_end(e, NULL, peer_cause(e));
        return;
    }
    reason = peer_reason(e);
    mux_engine_end(e, g_strdup_printf("%s ended the connection: %s",
                                      mux_peer_name(e), reason),
                   peer_cause(e));
}

void mux_frame_complete(MuxEngine *e, int64_t now)
{
    switch ((MuxFrameType)e->rx_header.type) {
    case MUX_FRAME_OPEN:
        on_open(e);
        break;
    case MUX_FRAME_OPEN_OK:
        on_open_ok(e);
        break;
    case MUX_FRAME_WINDOW:
        on_window(e);
        break;
    case MUX_FRAME_FIN:
        on_fin(e);
        break;
    case MUX_FRAME_FIN_OK:
        on_fin_ok(e);
        break;
    case MUX_FRAME_RESET:
        on_reset(e);
        break;
    case MUX_FRAME_PING:
        on_ping(e);
        break;
    case MUX_FRAME_PONG:
        on_pong(e, now);
        break;
    case MUX_FRAME_GOAWAY:
        on_goaway(e);
        break;
    case MUX_FRAME_DATA:
    case MUX_FRAME__MAX:
        g_assert_not_reached();
    }
}
