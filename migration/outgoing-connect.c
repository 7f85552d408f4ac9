/*
 * Migration: the connection that the source is waiting for
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "qemu/timer.h"
#include "io/channel-tls.h"
#include "channel.h"
#include "outgoing-connect.h"
#include "migration.h"
#include "mux-limits.h"
#include "mux-migration.h"
#include "mux/channel-mux.h"
#include "trace.h"
#include "yank_functions.h"

static bool outgoing_connect_is_tls(QIOChannel *ioc)
{
    return object_dynamic_cast(OBJECT(ioc), TYPE_QIO_CHANNEL_TLS);
}

static QIOChannel *outgoing_connect_take(MigrationState *s)
{
    QIOChannel *ioc = g_steal_pointer(&s->connecting);

    g_clear_pointer(&s->connecting_timer, timer_free);
    if (ioc && outgoing_connect_is_tls(ioc)) {
        migration_ioc_unregister_yank(ioc);
    }
    return ioc;
}

static void outgoing_connect_timeout(void *opaque)
{
    MigrationState *s = opaque;
    QIOChannel *ioc = outgoing_connect_take(s);
    g_autoptr(MuxFailure) late =
        mux_failure_timeout(NULL, mux_limit_setup_ms(),
                            "the TLS handshake");
    Error *err = NULL;

    /* migration_mux_failed() names the streams */
    error_setg(&err, "%s", late->text);
    qio_channel_shutdown(ioc, QIO_CHANNEL_SHUTDOWN_BOTH, NULL);
    migration_channel_connect(s, ioc, NULL, err);
}

void outgoing_connect_begin(MigrationState *s, QIOChannel *ioc)
{
    s->connecting = ioc;
    if (!outgoing_connect_is_tls(ioc)) {
        /* The kernel limits how long it tries to connect */
        return;
    }
    migration_ioc_register_yank(ioc);
    if (migration_mux_source(s)) {
        s->connecting_timer = timer_new_ms(QEMU_CLOCK_REALTIME,
                                           outgoing_connect_timeout, s);
        timer_mod(s->connecting_timer,
                  qemu_clock_get_ms(QEMU_CLOCK_REALTIME) +
                  mux_limit_setup_ms());
    }
}

bool outgoing_connect_end(MigrationState *s, QIOChannel *ioc)
{
    if (s->connecting != ioc) {
        trace_outgoing_connect_dropped(ioc);
        return false;
    }
    outgoing_connect_take(s);
    return true;
}

bool outgoing_connect_cancel(MigrationState *s)
{
    QIOChannel *ioc = outgoing_connect_take(s);

    if (!ioc) {
        return false;
    }
    /* A socket that is not connected yet cannot be shut down */
    if (outgoing_connect_is_tls(ioc)) {
        qio_channel_shutdown(ioc, QIO_CHANNEL_SHUTDOWN_BOTH, NULL);
    }
    migration_cleanup(s);
    return true;
}
