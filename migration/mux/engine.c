/*
 * Migration multiplexer: the connection
 *
 * Start, events and the end.  Every way to end the connection leads to
 * mux_engine_end(), which ends all streams, too:
 *
 *   the peer broke the protocol  mux_engine_fail(): GOAWAY goes out last
 *   the caller ends it           mux_engine_goaway(): likewise
 *   the peer sent GOAWAY         nothing more is sent
 *   the transport ended, failed  nothing more is sent
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "engine-int.h"

static const char *role_name(uint32_t role)
{
    return role == MUX_ROLE_SOURCE ? "source" : "destination";
}

const char *mux_local_name(MuxEngine *e)
{
    return role_name(e->config.role);
}

const char *mux_peer_name(MuxEngine *e)
{
    return role_name(e->config.role == MUX_ROLE_SOURCE
                         ? MUX_ROLE_DESTINATION : MUX_ROLE_SOURCE);
}

void mux_config_default(MuxConfig *config, MuxRole role)
{
    *config = (MuxConfig) {
        .role = role,
        .version_min = MUX_VERSION,
        .version_max = MUX_VERSION,
        .max_frame = MUX_FRAME_BULK,
        .max_streams = MUX_MAX_STREAMS,
        .window = MUX_WINDOW,
        .window_max = MUX_WINDOW_MAX,
        .window_sum = MUX_WINDOW_SUM,
        .hello_timeout = MUX_HELLO_TIMEOUT,
    };
}

MuxEngine *mux_engine_new(const MuxConfig *config, int64_t now)
{
    MuxEngine *e = g_new0(MuxEngine, 1);

    g_assert(config->max_frame >= MUX_FRAME_MIN &&
             config->max_frame <= MUX_FRAME_LIMIT);
    e->config = *config;
    mux_credit_init(e);
    e->start = now;
    e->rtt_min = -1;
    e->silent_due = INT64_MAX;
    e->next_id = config->role == MUX_ROLE_SOURCE ? 1 : 2;
    e->live = g_hash_table_new(NULL, NULL);
    e->retired = g_hash_table_new_full(NULL, NULL, NULL, g_free);
    e->all = g_hash_table_new(NULL, NULL);
    return e;
}

void mux_engine_free(MuxEngine *e)
{
    GHashTableIter iter;
    gpointer s;

    if (!e) {
        return;
    }
    g_hash_table_iter_init(&iter, e->all);
    while (g_hash_table_iter_next(&iter, &s, NULL)) {
        mux_stream_destroy(s);
    }
    g_hash_table_unref(e->all);
    g_hash_table_unref(e->live);
    g_hash_table_unref(e->retired);
    mux_chunk_pool_clear(&e->pool);
    g_slist_free_full(e->batch.copies, g_free);
    g_free(e->goaway_text);
    g_free(e->error);
    g_free(e);
}

/* --- events --- */

void mux_stream_event(MuxStream *s, MuxEventType type)
{
    MuxEngine *e = s->engine;

    if (s->released || e->ended) {
        return;
    }
    s->events |= 1u << type;
    if (!s->event_queue) {
        s->event_queue = &e->events;
        g_queue_push_tail_link(&e->events, &s->event_link);
    }
}

bool mux_engine_next_event(MuxEngine *e, MuxEvent *event)
{
    GList *link = g_queue_peek_head_link(&e->events);

    *event = (MuxEvent) { 0 };
    if (e->hello_event) {
        e->hello_event = false;
        event->type = MUX_EVENT_HELLO;
        return true;
    }
    if (link) {
        MuxStream *s = link->data;

        event->stream = s;
        event->type = __builtin_ctz(s->events);
        s->events &= s->events - 1;
        if (!s->events) {
            s->event_queue = NULL;
            g_queue_unlink(&e->events, link);
        }
        return true;
    }
    if (e->ended_event) {
        e->ended_event = false;
        event->type = MUX_EVENT_ENDED;
        return true;
    }
    return false;
}

/* --- the end --- */

void mux_engine_end(MuxEngine *e, char *error, MuxCause cause)
{
    g_autoptr(GList) streams = NULL;
    g_autofree char *why = NULL;

    if (e->ended) {
        g_free(error);
        return;
    }
    e->ended = true;
    e->ended_event = true;
    e->tx_closed = !e->goaway_wanted;
    e->error = error;
    e->cause = cause;
    why = error ? g_strdup(error)
                : g_strdup_printf("connection with the %s has ended",
                                  mux_peer_name(e));
    streams = g_hash_table_get_keys(e->all);
    for (GList *l = streams; l; l = l->next) {
        mux_stream_end(l->data, why);
    }
}

static void end_with_goaway(MuxEngine *e, uint32_t code, const char *text,
                            char *error)
{
    if (!e->ended) {
        e->goaway_wanted = true;
        e->goaway_code = code;
        e->goaway_text = g_strndup(text, mux_text_length(text));
    }
    mux_engine_end(e, error, (MuxCause) { .code = code });
}

void mux_engine_fail(MuxEngine *e, uint32_t code, const char *fmt, ...)
{
    va_list ap;
    char *text;

    va_start(ap, fmt);
    text = g_strdup_vprintf(fmt, ap);
    va_end(ap);
    end_with_goaway(e, code, text, text);
}

void mux_engine_goaway(MuxEngine *e, uint32_t code, const char *text)
{
    char *error = NULL;

    text = text ?: "";
    if (code != MUX_CODE_OK) {
        error = g_strdup_printf("%s ended the connection: %s",
                                mux_local_name(e), text);
    }
    end_with_goaway(e, code, text, error);
}

void mux_engine_transport_error(MuxEngine *e, const char *text)
{
    e->tx_closed = true;
    mux_engine_end(e, g_strdup_printf("connection with the %s failed: %s",
                                      mux_peer_name(e), text),
                   (MuxCause) {});
}

/* Returns the first opened of the streams that are not finished, or NULL. */
static MuxStream *first_unfinished(MuxEngine *e)
{
    MuxStream *found = NULL;
    GHashTableIter iter;
    gpointer key;

    g_hash_table_iter_init(&iter, e->all);
    while (g_hash_table_iter_next(&iter, &key, NULL)) {
        MuxStream *s = key;

        if (!s->retired && (!found || s->id < found->id)) {
            found = s;
        }
    }
    return found;
}

/* Returns what is wrong with an end of the peer's bytes here, NULL: nothing. */
static char *eof_error(MuxEngine *e)
{
    const char *peer = mux_peer_name(e);
    MuxStream *s = first_unfinished(e);

    if (!e->hello_fits && !e->rx_buf_len) {
        return g_strdup("peer closed the connection before its HELLO "
                        "(does it support multiplexed migration?)");
    }
    if (!e->hello_done) {
        return g_strdup("peer closed the connection in the middle of its "
                        "HELLO (does it support multiplexed migration?)");
    }
    if (e->rx_left || e->rx_buf_len) {
        return g_strdup_printf("%s closed the connection in the middle of "
                               "a frame", peer);
    }
    if (s) {
        return g_strdup_printf("%s closed the connection before stream '%s' "
                               "was finished", peer, s->name);
    }
    return NULL;
}

void mux_engine_rx_eof(MuxEngine *e)
{
    e->tx_closed = true;
    mux_engine_end(e, eof_error(e), (MuxCause) {});
}

bool mux_engine_has_streams(MuxEngine *e)
{
    return g_hash_table_size(e->live) || e->local_open;
}

bool mux_engine_ended(MuxEngine *e)
{
    return e->ended;
}

const char *mux_engine_error(MuxEngine *e)
{
    return e->error;
}

MuxCause mux_engine_cause(MuxEngine *e)
{
    return e->cause;
}
