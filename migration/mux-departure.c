/*
 * Migration over a multiplexed connection: the source after its success
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/error-report.h"
#include "mux-departure.h"
#include "mux-limits.h"
#include "mux-migration.h"
#include "trace.h"

#define MUX_DEPARTURE_PIECES 16

struct MuxDeparture {
    MuxSession *session;
    MuxControl *control;        /* NULL: nothing is awaited any more */
};

/* Let go of `control`, whose end lets the connection be closed. */
static void mux_departure_done(MuxDeparture *d)
{
    g_clear_pointer(&d->control, mux_control_free);
}

static void mux_departure_lost(MuxDeparture *d)
{
    const MuxFailure *f = mux_control_failure(d->control);
    g_autofree char *text = f ? mux_failure_text(f) :
        g_strdup("the destination ended the connection");

    warn_report("migration: the destination did not confirm that it runs the "
                "guest: %s.  Check the destination before ending this process",
                text);
    mux_departure_done(d);
}

/* Has what is awaited happened? */
static void mux_departure_check(MuxDeparture *d)
{
    if (mux_control_received(d->control, MIGRATION_CONTROL_TYPE_RUNNING)) {
        trace_migration_mux_departure_running();
        mux_departure_done(d);
    } else if (mux_control_over(d->control)) {
        mux_departure_lost(d);
    }
}

static void mux_departure_message(const MigrationControl *message, void *opaque)
{
    mux_departure_check(opaque);
}

static void mux_departure_ended(const MuxFailure *failure, void *opaque)
{
    mux_departure_check(opaque);
}

static const MuxControlOps mux_departure_ops = {
    .message = mux_departure_message,
    .broken = mux_departure_ended,
    .ended = mux_departure_ended,
};

MuxDeparture *mux_departure_new(MuxSession *session, MuxControl *control)
{
    MuxDeparture *d = g_new0(MuxDeparture, 1);

    d->session = mux_session_ref(session);
    d->control = control;
    mux_control_set_ops(control, &mux_departure_ops, d);
    mux_session_close(session, NULL, MIGRATION_MUX_DONE_MS);
    mux_departure_check(d);
    return d;
}

void mux_departure_free(MuxDeparture *d)
{
    if (d) {
        mux_departure_done(d);
        mux_session_unref(d->session);
        g_free(d);
    }
}

void mux_departure_wait(MuxDeparture *d)
{
    if (!d) {
        return;
    }
    if (d->control) {
        mux_control_finish(d->control);
    }
    mux_session_close_wait(d->session, NULL, MIGRATION_MUX_DONE_MS);
    /* A few pieces at most: `running`, and the end of the stream */
    for (unsigned i = 0; d->control && i < MUX_DEPARTURE_PIECES; i++) {
        mux_control_receive(d->control);
    }
    mux_departure_free(d);
}
