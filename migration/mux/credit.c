/*
 * Migration multiplexer: credit for the peer
 *
 * Owns how much the peer may send on each stream, and so how much memory it
 * can make us hold.  A stream's window is what lies between the bytes that
 * its application has consumed and the limit that was sent to the peer.
 *
 * A window grows when more than half of it is used in two round trips, because
 * it is then too small for the link, or in WINDOW_TIME / 2, because each WINDOW
 * frame wakes a thread of the peer.  Round trips are the shortest ones seen, as
 * a PING behind bulk data lies.  Use is measured over one of them at least, so
 * that the last grant had time to show, and over MEASURE_TIME, so that a burst
 * does not count.
 *
 * The sum of all windows is bounded.  A share of it is set aside for every
 * stream that could be open, the rest is for those that need more.  When that
 * is used up, streams with more than their part of it give some back as they
 * go on; what the peer was granted is never taken away.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "engine-int.h"

/* A first window takes no more than this part of what is free. */
#define FIRST_PART      8
/* Until it lasts this long at the consumer's speed, a window grows; ns */
#define WINDOW_TIME     (10 * 1000 * 1000LL)
/* The least time of a measurement, ns */
#define MEASURE_TIME    (WINDOW_TIME / 4)

static uint64_t share(MuxEngine *e)
{
    return MIN(MUX_WINDOW_SHARE, e->config.window);
}

void mux_credit_init(MuxEngine *e)
{
    const MuxConfig *c = &e->config;
    uint64_t reserve = share(e) * 2 * c->max_streams;

    g_assert(c->window > 0 && c->window <= c->window_max);
    e->credit_pool = c->window_sum > reserve ? c->window_sum - reserve : 0;
    e->credit_free = e->credit_pool;
}

/* What a window of @size takes from the pool, beyond the stream's share. */
static int64_t beyond_share(MuxEngine *e, uint64_t size)
{
    return size > share(e) ? size - share(e) : 0;
}

static void set_window(MuxStream *s, uint64_t size)
{
    MuxEngine *e = s->engine;

    e->credit_free += beyond_share(e, s->window) - beyond_share(e, size);
    s->window = size;
}

void mux_credit_first(MuxStream *s, int64_t now)
{
    MuxEngine *e = s->engine;
    uint64_t most = share(e) + MAX(e->credit_free, 0) / FIRST_PART;
    uint64_t size = MIN(e->config.window, s->window_max);

    set_window(s, MIN(size, most));
    s->rx_limit = s->window;
    s->measured_at = now;
}

bool mux_credit_due(MuxStream *s)
{
    return s->rx_limit - s->rx_consumed <= s->window / 2;
}

/*
 * The window that the link and the speed of the consumer call for, 0: cannot
 * tell yet.  Starts the next measurement.
 */
static uint64_t measure(MuxStream *s, int64_t now)
{
    int64_t rtt = s->engine->rtt_min;
    int64_t elapsed = now - s->measured_at;
    uint64_t used = s->rx_consumed - s->measured_from;

    if (rtt <= 0 || elapsed < MAX(rtt, MEASURE_TIME)) {
        return 0;
    }
    s->measured_at = now;
    s->measured_from = s->rx_consumed;
    return MIN((double)used * MAX(4 * rtt, WINDOW_TIME) / elapsed,
               (double)s->window_max);
}

/* The least that pays is the first window, if there was room for it. */
static uint64_t window_needed(MuxStream *s, int64_t now)
{
    uint64_t first = MIN(s->engine->config.window, s->window_max);
    uint64_t needed = measure(s, now);

    return MAX(first, needed);
}

/* What a stream gets if all that are open want more than there is. */
static uint64_t fair_window(MuxEngine *e)
{
    return share(e) + e->credit_pool / g_hash_table_size(e->live);
}

static void adapt_window(MuxStream *s, int64_t now)
{
    MuxEngine *e = s->engine;
    uint64_t needed = window_needed(s, now);

    if (e->credit_wanted && s->window > fair_window(e)) {
        e->credit_wanted = false;
        set_window(s, MAX(s->window / 2, fair_window(e)));
    } else if (needed > s->window && !s->released) {
        uint64_t more = MIN(needed - s->window, MAX(e->credit_free, 0));

        e->credit_wanted |= more < needed - s->window;
        set_window(s, s->window + more);
    }
}

bool mux_credit_grant(MuxStream *s, int64_t now)
{
    uint64_t limit;

    if (s->retired) {
        return false;
    }
    if (s->window < s->window_max) {
        mux_liveness_measure(s->engine, now);
    }
    adapt_window(s, now);
    limit = s->rx_consumed + s->window;
    if (limit <= s->rx_limit) {
        return false;
    }
    s->rx_limit = limit;
    return true;
}

void mux_credit_consumed(MuxStream *s, uint64_t bytes)
{
    uint64_t unread = MIN(s->unread, bytes);

    s->unread -= unread;
    s->engine->credit_free += unread;
}

void mux_credit_end(MuxStream *s)
{
    set_window(s, 0);
    s->unread = s->rx.size;
    s->engine->credit_free -= s->unread;
}

void mux_stream_set_window_max(MuxStream *s, uint64_t bytes)
{
    s->window_max = CLAMP(bytes, share(s->engine),
                          s->engine->config.window_max);
}
