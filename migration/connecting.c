/*
 * Migration: the connection that the source is waiting for
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "io/channel-tls.h"
#include "connecting.h"
#include "migration.h"
#include "trace.h"

void migration_connecting_begin(MigrationState *s, QIOChannel *ioc)
{
    s->connecting = ioc;
}

bool migration_connecting_end(MigrationState *s, QIOChannel *ioc)
{
    if (s->connecting != ioc) {
        trace_migration_connecting_dropped(ioc);
        return false;
    }
    s->connecting = NULL;
    return true;
}

bool migration_connecting_cancel(MigrationState *s)
{
    QIOChannel *ioc = g_steal_pointer(&s->connecting);

    if (!ioc) {
        return false;
    }
    /* A socket that is not connected yet cannot be shut down */
    if (object_dynamic_cast(OBJECT(ioc), TYPE_QIO_CHANNEL_TLS)) {
        qio_channel_shutdown(ioc, QIO_CHANNEL_SHUTDOWN_BOTH, NULL);
    }
    migration_cleanup(s);
    return true;
}
