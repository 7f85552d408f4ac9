/*
 * Migration multiplexer: what follows from a change to the engine
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/bswap.h"
#include "session.h"
#include "trace.h"

static void mux_session_trace_id(MuxSession *s)
{
    const uint8_t *id = mux_engine_session(s->engine);

    trace_mux_session_id(s, ldq_be_p(id), ldq_be_p(id + 8));
}

static void mux_session_event(MuxSession *s, const MuxEvent *event)
{
    QIOChannelMux *ioc = event->stream ? mux_stream_opaque(event->stream)
                                       : NULL;

    switch (event->type) {
    case MUX_EVENT_HELLO:
        mux_session_trace_id(s);
        mux_session_call_ready(s);
        break;
    case MUX_EVENT_OPEN:
        mux_session_call_opened(s, event->stream);
        break;
    case MUX_EVENT_ENDED:
        mux_session_over(s);
        break;
    case MUX_EVENT_READABLE:
    case MUX_EVENT_WRITABLE:
        if (ioc) {
            mux_channel_update(ioc);
        }
        break;
    default:
        if (ioc) {
            trace_mux_stream_event(ioc, ioc->name, event->type);
            ioc->peer_reset |= event->type == MUX_EVENT_RESET;
            mux_channel_update(ioc);
            mux_session_call_changed(ioc);
        }
        break;
    }
}

/*
 * To report a failure, it is enough that what was queued has gone, or never
 * will.  In a clean end, all streams end first; if nothing can be
 * sent, the peer ends the connection.
 */
static bool mux_session_may_part(MuxSession *s)
{
    if (s->why) {
        return s->tx_error || mux_engine_tx_idle(s->engine);
    }
    return !s->tx_error && mux_engine_tx_idle(s->engine) &&
        !mux_engine_has_streams(s->engine);
}

void mux_session_settle(MuxSession *s)
{
    MuxEvent event;
    int64_t due;

    if (s->closing && !s->over && mux_session_may_part(s)) {
        g_autofree char *why = mux_session_closing_text(s, NULL);

        mux_engine_goaway(s->engine, why ? MUX_CODE_ABORTED : MUX_CODE_OK, why);
    }
    while (mux_engine_next_event(s->engine, &event)) {
        mux_session_event(s, &event);
    }
    due = mux_session_next_due(s);
    if (due < s->rx_deadline) {
        /* It may be slow to notice: wake it once for each change */
        s->rx_deadline = due;
        mux_session_wake_receiver(s);
    }
    mux_session_kick_sender(s);
}
