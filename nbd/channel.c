/*
 * NBD client nodes on any QIOChannel
 *
 * Negotiates on a channel, and opens and closes nodes of the NBD block driver
 * on it.
 *
 * This work is licensed under the terms of the GNU GPL, version 2 or
 * later.  See the COPYING file in the top-level directory.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "block/block-global-state.h"
#include "block/block-io.h"
#include "block/nbd-channel.h"
#include "qapi/error.h"
#include "qemu/coroutine.h"
#include "qemu/main-loop.h"
#include "qobject/qdict.h"
#include "trace.h"

/* What the node that is being opened is to use */
typedef struct NBDChannel {
    QIOChannel *ioc;
    NBDExportInfo info;
} NBDChannel;

typedef struct NBDChannelNegotiation {
    QIOChannel *ioc;
    NBDExportInfo info;
    Error *err;
    NBDChannelReady *ready;
    void *opaque;
} NBDChannelNegotiation;

/* During nbd_channel_open_node(); NULL when the driver has taken it */
static const NBDChannel *opening;

/* The result of a negotiation without the strings it was made with */
static void nbd_channel_copy_info(NBDExportInfo *dst, const NBDExportInfo *src)
{
    *dst = *src;
    dst->x_dirty_bitmap = NULL;
    dst->name = NULL;
    dst->description = NULL;
    dst->n_contexts = 0;
    dst->contexts = NULL;
}

/* Outside the coroutine, where @ready may open nodes */
static void nbd_channel_negotiated_bh(void *opaque)
{
    NBDChannelNegotiation *neg = opaque;
    NBDExportInfo info;

    if (neg->err) {
        trace_nbd_channel_negotiate_fail(neg->ioc, neg->info.name,
                                         error_get_pretty(neg->err));
        neg->ready(neg->opaque, NULL, neg->err);
    } else {
        trace_nbd_channel_negotiate_done(neg->ioc, neg->info.name,
                                         neg->info.size);
        nbd_channel_copy_info(&info, &neg->info);
        neg->ready(neg->opaque, &info, NULL);
    }

    error_free(neg->err);
    object_unref(OBJECT(neg->ioc));
    g_free(neg->info.name);
    g_free(neg);
}

static void coroutine_fn nbd_channel_negotiate_co(void *opaque)
{
    NBDChannelNegotiation *neg = opaque;

    nbd_receive_negotiate(neg->ioc, NULL, NULL, NULL, &neg->info, &neg->err);
    aio_bh_schedule_oneshot(qemu_get_aio_context(), nbd_channel_negotiated_bh,
                            neg);
}

void nbd_channel_negotiate(QIOChannel *ioc, const char *export_name,
                           NBDChannelReady *ready, void *opaque)
{
    NBDChannelNegotiation *neg = g_new(NBDChannelNegotiation, 1);

    GLOBAL_STATE_CODE();

    *neg = (NBDChannelNegotiation) {
        .ioc = QIO_CHANNEL(object_ref(OBJECT(ioc))),
        .info = {
            .request_sizes = true,
            .name = g_strdup(export_name),
            .mode = NBD_MODE_EXTENDED,
            .base_allocation = true,
        },
        .ready = ready,
        .opaque = opaque,
    };

    trace_nbd_channel_negotiate(ioc, export_name);
    qio_channel_set_delay(ioc, false);
    qio_channel_set_blocking(ioc, false, NULL);
    qio_channel_set_follow_coroutine_ctx(ioc, true);

    aio_co_schedule(qemu_get_aio_context(),
                    qemu_coroutine_create(nbd_channel_negotiate_co, neg));
}

QIOChannel *nbd_channel_take(NBDExportInfo *info)
{
    const NBDChannel *channel = g_steal_pointer(&opening);

    GLOBAL_STATE_CODE();

    if (!channel) {
        return NULL;
    }
    *info = channel->info;
    return QIO_CHANNEL(object_ref(OBJECT(channel->ioc)));
}

BlockDriverState *nbd_channel_open_node(QIOChannel *ioc,
                                        const NBDExportInfo *info,
                                        const char *node_name, Error **errp)
{
    NBDChannel channel = { .ioc = ioc };
    QDict *options = qdict_new();
    BlockDriverState *bs;

    GLOBAL_STATE_CODE();

    nbd_channel_copy_info(&channel.info, info);
    qdict_put_str(options, "driver", "nbd");
    if (node_name) {
        qdict_put_str(options, "node-name", node_name);
    }
    qdict_put_str(options, "discard", "unmap");

    opening = &channel;
    bs = bdrv_open(NULL, NULL, options, BDRV_O_RDWR, errp);
    opening = NULL;
    return bs;
}

typedef struct NBDChannelClose {
    BlockDriverState *bs;
    QIOChannel *ioc;
    NBDMode mode;
    NBDChannelClosed *closed;
    void *opaque;
} NBDChannelClose;

static void nbd_channel_closed_bh(void *opaque)
{
    NBDChannelClose *c = opaque;

    trace_nbd_channel_closed(c->ioc);
    /* What the node still wants to send fails at once */
    bdrv_unref(c->bs);
    object_unref(OBJECT(c->ioc));
    c->closed(c->opaque);
    g_free(c);
}

static void coroutine_fn nbd_channel_close_co(void *opaque)
{
    NBDChannelClose *c = opaque;
    NBDRequest request = { .type = NBD_CMD_DISC, .mode = c->mode };

    nbd_send_request(c->ioc, &request);
    qio_channel_shutdown(c->ioc, QIO_CHANNEL_SHUTDOWN_BOTH, NULL);
    aio_bh_schedule_oneshot(qemu_get_aio_context(), nbd_channel_closed_bh, c);
}

void nbd_channel_close_node(BlockDriverState *bs, QIOChannel *ioc,
                            NBDMode mode, NBDChannelClosed *closed,
                            void *opaque)
{
    NBDChannelClose *c = g_new(NBDChannelClose, 1);

    GLOBAL_STATE_CODE();

    *c = (NBDChannelClose) {
        .bs = bs,
        .ioc = QIO_CHANNEL(object_ref(OBJECT(ioc))),
        .mode = mode,
        .closed = closed,
        .opaque = opaque,
    };
    qemu_aio_coroutine_enter(qemu_get_aio_context(),
                             qemu_coroutine_create(nbd_channel_close_co, c));
}
