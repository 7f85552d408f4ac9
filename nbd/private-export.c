/*
 * Private NBD exports
 *
 * Owns the lifetime of an export that has exactly one client: export and
 * client come together and go together, and the cause of their end is kept
 * until both are gone.  What the client can do with the export is the NBD
 * server's business.
 *
 * Until the client's end, one reference to the export is held for it here.
 * A client that negotiates cannot be closed by the export, which does not
 * know it yet; its channel is shut down and the reference keeps the export
 * alive until the negotiation has failed.
 *
 * This work is licensed under the terms of the GNU GPL, version 2 or
 * later.  See the COPYING file in the top-level directory.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "block/nbd-channel.h"
#include "nbd-internal.h"
#include "qapi/error.h"
#include "qemu/lockable.h"
#include "qemu/main-loop.h"
#include "qemu/thread.h"
#include "trace.h"

/* The client starts to talk at once; what can be late is the connection */
#define NBD_PRIVATE_HANDSHAKE_MAX_SECS 30

struct NBDPrivateExport {
    BlockExport *exp;
    QIOChannel *ioc;
    NBDPrivateClosed *closed;
    void *opaque;
    bool closing;   /* the export shuts down, main loop only */

    QemuMutex lock; /* protects the fields below */
    bool ended;     /* the cause of the end is known */
    Error *err;     /* that cause, unless the client said goodbye */
};

void nbd_private_client_end(BlockExport *exp, bool disc, Error *err)
{
    NBDPrivateExport *priv = exp->opaque;

    if (!disc && !err) {
        error_setg(&err, "NBD client left without NBD_CMD_DISC");
    }

    WITH_QEMU_LOCK_GUARD(&priv->lock) {
        if (!priv->ended) {
            priv->ended = true;
            priv->err = g_steal_pointer(&err);
        }
    }
    error_free(err);
}

void nbd_private_request_shutdown(BlockExport *exp)
{
    NBDPrivateExport *priv = exp->opaque;
    Error *err = NULL;

    priv->closing = true;
    error_setg(&err, "NBD export was closed");
    nbd_private_client_end(exp, false, err);

    qio_channel_shutdown(priv->ioc, QIO_CHANNEL_SHUTDOWN_BOTH, NULL);
    blk_exp_nbd.request_shutdown(exp);
}

void nbd_private_deleted(BlockExport *exp)
{
    NBDPrivateExport *priv = exp->opaque;

    trace_nbd_private_deleted(exp->id, priv->ioc,
                              priv->err ? error_get_pretty(priv->err) : "");
    priv->closed(priv->opaque, priv->err);

    error_free(priv->err);
    object_unref(OBJECT(priv->ioc));
    qemu_mutex_destroy(&priv->lock);
    g_free(priv);
}

static void nbd_private_client_closed(NBDClient *client, bool negotiated)
{
    BlockExport *exp = nbd_client_owner(client);
    NBDPrivateExport *priv = exp->opaque;

    assert(qemu_in_main_thread());
    trace_nbd_private_client_closed(exp->id, priv->ioc, negotiated);

    nbd_client_put(client);
    if (!priv->closing) {
        blk_exp_request_shutdown(exp);
    }
    blk_exp_unref(exp);
}

NBDPrivateExport *nbd_export_private(const char *node_name, const char *name,
                                     QIOChannel *ioc,
                                     NBDPrivateClosed *closed, void *opaque,
                                     Error **errp)
{
    NBDPrivateExport *priv;
    BlockExport *exp;
    BlockExportOptions options = {
        .type = BLOCK_EXPORT_TYPE_NBD,
        .id = (char *)name,
        .node_name = (char *)node_name,
        .has_writable = true,
        .writable = true,
        .u.nbd.name = (char *)name,
    };

    GLOBAL_STATE_CODE();

    exp = blk_exp_add_internal(&blk_exp_nbd_private, &options, errp);
    if (!exp) {
        return NULL;
    }
    trace_nbd_export_private(name, node_name, ioc);

    priv = g_new(NBDPrivateExport, 1);
    *priv = (NBDPrivateExport) {
        .exp = exp,
        .ioc = QIO_CHANNEL(object_ref(OBJECT(ioc))),
        .closed = closed,
        .opaque = opaque,
    };
    qemu_mutex_init(&priv->lock);
    exp->opaque = priv;

    blk_exp_ref(exp);
    nbd_client_new_private(ioc, exp, NBD_PRIVATE_HANDSHAKE_MAX_SECS,
                           nbd_private_client_closed);
    return priv;
}

void nbd_export_private_close(NBDPrivateExport *priv)
{
    GLOBAL_STATE_CODE();

    blk_exp_request_shutdown(priv->exp);
}
