/*
 * Migration over a multiplexed connection: state common to both sides
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/qapi-events-migration-stream.h"
#include "qemu/lockable.h"
#include "qemu/yank.h"
#include "migration.h"
#include "mux-link.h"
#include "options.h"

MuxLink *mux_link_new(void)
{
    MuxLink *l = g_new0(MuxLink, 1);

    l->phase = MIGRATION_PHASE_CONNECT;
    qemu_mutex_init(&l->lock);
    return l;
}

void mux_link_begin(MuxLink *l, QIOChannel *ioc, MuxRole role,
                    const MuxSessionOps *ops, void *opaque)
{
    l->session = mux_session_new(ioc, role, ops, opaque);
}

void mux_link_free(MuxLink *l)
{
    if (l) {
        mux_link_unregister_yank(l);
        mux_control_free(l->control);
        mux_session_unref(l->session);
        mux_failure_free(l->failure);
        qemu_mutex_destroy(&l->lock);
        g_free(l);
    }
}

void mux_link_watch(MuxLink *l)
{
    mux_session_set_silence(l->session, migrate_channel_mux_timeout());
    yank_register_function(MIGRATION_YANK_INSTANCE, mux_session_yank,
                           l->session);
    l->yankable = true;
}

void mux_link_unregister_yank(MuxLink *l)
{
    if (l->yankable) {
        yank_unregister_function(MIGRATION_YANK_INSTANCE, mux_session_yank,
                                 l->session);
        l->yankable = false;
    }
}

bool mux_link_record(MuxLink *l, const MuxFailure *failure)
{
    QEMU_LOCK_GUARD(&l->lock);
    if (l->failure || l->settled) {
        return false;
    }
    l->failure = mux_failure_copy(failure);
    return true;
}

void mux_link_settle(MuxLink *l)
{
    QEMU_LOCK_GUARD(&l->lock);
    l->settled = true;
}

bool mux_link_over(MuxLink *l)
{
    QEMU_LOCK_GUARD(&l->lock);
    return l->failure || l->settled;
}

const MuxFailure *mux_link_failure(MuxLink *l)
{
    QEMU_LOCK_GUARD(&l->lock);
    return l->failure;
}

void mux_link_reset_streams(MuxLink *l, const MuxFailure *failure)
{
    mux_session_abort_streams(l->session, mux_control_stream(l->control),
                              failure);
}

MigrationPhase mux_link_phase(MuxLink *l)
{
    return qatomic_read(&l->phase);
}

void mux_link_set_phase(MuxLink *l, MigrationPhase phase)
{
    if (qatomic_xchg(&l->phase, phase) != phase && migrate_events()) {
        qapi_event_send_migration_phase(phase);
    }
}
