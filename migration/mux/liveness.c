/*
 * Migration multiplexer: is the peer there, and how far away
 *
 * Owns what depends on time: how long the peer may take for its HELLO, how
 * long it may be silent, round trips.  It never looks at what is written: a
 * slow or blocked transport says nothing about the peer.
 *
 * Silence is counted in thirds of the time allowed, from one call of
 * mux_engine_timeout() to the next.  So a process that did not run for a while
 * does not take its own absence for the peer's: it asks before it judges.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "engine-int.h"

#define NS_PER_S        (1000 * 1000 * 1000LL)
#define SILENT_PARTS    3

/* --- round trips --- */

/* A PING goes out next, if the number that waits for an answer allows it. */
static void want_ping(MuxEngine *e)
{
    if (!e->ended && e->ping_id - e->pong_id < MUX_PINGS_OUT) {
        e->ping_wanted = true;
    }
}

void mux_engine_ping(MuxEngine *e)
{
    if (e->ping_id == e->pong_id) {
        want_ping(e);
    }
}

void mux_liveness_measure(MuxEngine *e, int64_t now)
{
    if (!e->ping_id || now - e->ping_sent[e->ping_id % MUX_PINGS_OUT] >=
                       MUX_MEASURE_INTERVAL) {
        mux_engine_ping(e);
    }
}

uint64_t mux_liveness_ping_sent(MuxEngine *e, int64_t now)
{
    e->ping_wanted = false;
    e->ping_id++;
    e->ping_sent[e->ping_id % MUX_PINGS_OUT] = now;
    return e->ping_id;
}

bool mux_liveness_pong(MuxEngine *e, uint64_t id, int64_t now)
{
    int64_t rtt;

    if (e->pong_id == e->ping_id || id != e->pong_id + 1) {
        return false;
    }
    e->pong_id = id;
    rtt = now - e->ping_sent[id % MUX_PINGS_OUT];
    if (e->rtt_min < 0 || rtt < e->rtt_min) {
        e->rtt_min = rtt;
    }
    return true;
}

int64_t mux_engine_rtt(MuxEngine *e)
{
    return e->rtt_min;
}

/* --- silence --- */

static int64_t silent_part(MuxEngine *e)
{
    return (e->silence + SILENT_PARTS - 1) / SILENT_PARTS;
}

void mux_liveness_heard(MuxEngine *e, int64_t now)
{
    e->silent_parts = 0;
    e->silent_due = e->silence ? now + silent_part(e) : INT64_MAX;
}

void mux_engine_set_silence(MuxEngine *e, int64_t ns, int64_t now)
{
    e->silence = ns ? MAX(ns, MUX_SILENCE_MIN) : 0;
    mux_liveness_heard(e, now);
}

static void silent_for_a_part(MuxEngine *e, int64_t now)
{
    if (++e->silent_parts == SILENT_PARTS) {
        mux_engine_fail(e, MUX_CODE_TIMEOUT, "no data received from the %s "
                        "for %g s", mux_peer_name(e),
                        (double)e->silence / NS_PER_S);
        return;
    }
    e->silent_due = now + silent_part(e);
    want_ping(e);
}

/* --- time --- */

static int64_t hello_due(MuxEngine *e)
{
    if (e->hello_done || !e->config.hello_timeout) {
        return INT64_MAX;
    }
    return e->start + e->config.hello_timeout;
}

int64_t mux_engine_deadline(MuxEngine *e)
{
    return e->ended ? INT64_MAX : MIN(hello_due(e), e->silent_due);
}

void mux_engine_timeout(MuxEngine *e, int64_t now)
{
    if (now < mux_engine_deadline(e)) {
        return;
    }
    if (now >= hello_due(e)) {
        mux_engine_fail(e, MUX_CODE_TIMEOUT,
                        "%s sent no HELLO within %g s "
                        "(does it support multiplexed migration?)",
                        mux_peer_name(e),
                        (double)e->config.hello_timeout / NS_PER_S);
        return;
    }
    silent_for_a_part(e, now);
}
