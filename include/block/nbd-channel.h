/*
 * NBD client nodes and private NBD exports on any QIOChannel
 *
 * Ordinary NBD nodes are opened by address, and ordinary NBD exports
 * are reached through the NBD server.  The functions here serve a user
 * that owns the connection already, such as live migration:
 *
 * - client: nbd_channel_negotiate(), nbd_channel_open_node(), and
 *   nbd_channel_close_node() in the end
 * - server: nbd_export_private()
 *
 * All functions are called, and all callbacks run, in the main loop
 * thread with the BQL held, unless noted otherwise.
 *
 * This work is licensed under the terms of the GNU GPL, version 2 or
 * later.  See the COPYING file in the top-level directory.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef BLOCK_NBD_CHANNEL_H
#define BLOCK_NBD_CHANNEL_H

#include "block/nbd.h"
#include "io/channel.h"

/* Client */

/**
 * NBDChannelReady:
 * @opaque: as given to nbd_channel_negotiate()
 * @info: what was negotiated, NULL on failure.  Lives until the callback
 *     returns; holds no pointers, so a plain assignment copies it.
 * @err: NULL, or why the negotiation failed.  Lives until the callback
 *     returns.
 */
typedef void NBDChannelReady(void *opaque, const NBDExportInfo *info,
                             const Error *err);

/**
 * nbd_channel_negotiate:
 * @ioc: channel to an NBD server that has not sent or received anything
 * @export_name: the export to open, at most NBD_MAX_STRING_SIZE bytes
 * @ready: called exactly once, never before this function has returned
 * @opaque: for @ready
 *
 * Run the client side of the NBD handshake on @ioc without blocking the
 * main loop.  The channel is made non-blocking; a reference is held
 * until @ready was called.  There is no time limit and nothing to
 * cancel: the caller shuts the channel down to end it early, and @ready
 * is then called with an error.  A failed handshake leaves closing @ioc
 * to the caller.
 */
void nbd_channel_negotiate(QIOChannel *ioc, const char *export_name,
                           NBDChannelReady *ready, void *opaque);

/**
 * nbd_channel_open_node:
 * @ioc: channel on which nbd_channel_negotiate() succeeded
 * @info: what it reported
 * @node_name: name of the new node, NULL to have one generated
 * @errp: pointer to a NULL-initialized error object
 *
 * Open a writable "nbd" protocol node that talks over @ioc.  Discards
 * are passed on.  The node takes its own reference to @ioc and uses it
 * from whatever AioContext the node is in.  It ends like any NBD node:
 * NBD_CMD_DISC, then a shutdown of @ioc in both directions.  After a
 * failure of this function @ioc can only be shut down and closed.
 *
 * The node never reconnects: the first error of the channel, or a yank
 * of the node, fails all its requests from then on with -EIO.
 *
 * Returns: the node with one reference that belongs to the caller, NULL
 *     on failure
 */
BlockDriverState *nbd_channel_open_node(QIOChannel *ioc,
                                        const NBDExportInfo *info,
                                        const char *node_name, Error **errp);

/**
 * NBDChannelRequests: the unanswered requests of a node
 * @oldest: get_clock() time at which the oldest request other than a flush
 *     was completely sent; INT64_MAX if there is none
 * @oldest_flush: the same for flushes
 * @sending: whether a request is still being sent
 */
typedef struct NBDChannelRequests {
    int64_t oldest;
    int64_t oldest_flush;
    bool sending;
} NBDChannelRequests;

/**
 * nbd_channel_get_requests:
 * @bs: node opened by nbd_channel_open_node()
 * @found: filled in
 *
 * Unlike the other functions, this may be called from any thread, as long
 * as the caller keeps @bs open.
 */
void nbd_channel_get_requests(BlockDriverState *bs, NBDChannelRequests *found);

/**
 * NBDChannelClosed:
 * @opaque: as given to nbd_channel_close_node()
 */
typedef void NBDChannelClosed(void *opaque);

/**
 * nbd_channel_close_node:
 * @bs: node opened by nbd_channel_open_node(), which has no other user, and
 *     which was flushed if that matters
 * @ioc: its channel
 * @mode: what was negotiated
 * @closed: called exactly once, never before this function has returned
 * @opaque: for @closed
 *
 * Send NBD_CMD_DISC, shut @ioc down in both directions, and drop the
 * caller's reference to @bs.  The main loop does not wait for
 * any of this.  There is no time limit: the caller shuts @ioc down to end
 * it early.
 *
 * bdrv_unref() alone shuts the channel down without NBD_CMD_DISC, and does
 * not wait for the peer either.
 */
void nbd_channel_close_node(BlockDriverState *bs, QIOChannel *ioc,
                            NBDMode mode, NBDChannelClosed *closed,
                            void *opaque);

/**
 * nbd_channel_take:
 * @info: filled with what was negotiated
 *
 * For the NBD block driver, when it opens a node.
 *
 * Returns: a new reference to the channel of the node, or NULL if
 *     nbd_channel_open_node() is not opening it
 */
QIOChannel *nbd_channel_take(NBDExportInfo *info);

/* Server: only where the NBD server is built in */

typedef struct NBDPrivateExport NBDPrivateExport;

/**
 * NBDPrivateClosed:
 * @opaque: as given to nbd_export_private()
 * @err: NULL if the client left with NBD_CMD_DISC, else why it is gone.
 *     Lives until the callback returns.
 */
typedef void NBDPrivateClosed(void *opaque, const Error *err);

/**
 * nbd_export_private:
 * @node_name: the node to export
 * @name: name of the export on the NBD connection
 * @ioc: channel to the one client
 * @closed: called exactly once if this function succeeded, never before
 *     it has returned
 * @opaque: for @closed
 * @errp: pointer to a NULL-initialized error object
 *
 * Export @node_name, activated and writable, to the one client at the
 * other end of @ioc, and start to serve it.  No NBD server needs to
 * run.  That client can reach only this export, no other client can
 * reach the export, and it is in no list: clients of the NBD server
 * do not see it, query-block-exports does not return it, and
 * block-export-del and nbd-server-stop leave it alone.  It follows its
 * node through AioContexts.
 *
 * The export ends with its client.  @closed runs when all requests have
 * finished, the export is deleted and its BlockBackend released.  The
 * node is not flushed: that is the caller's business.  The channel is
 * made non-blocking, referenced as long as needed, and shut down, not
 * closed, in the end.
 *
 * Returns: the export, valid until @closed is called, NULL on failure
 */
NBDPrivateExport *nbd_export_private(const char *node_name, const char *name,
                                     QIOChannel *ioc,
                                     NBDPrivateClosed *closed, void *opaque,
                                     Error **errp);

/**
 * nbd_export_private_close:
 * @exp: the export
 *
 * Cut the client off.  The callback given to nbd_export_private()
 * follows, after this function has returned, with an error unless the
 * client had left before.  May be called more than once.
 */
void nbd_export_private_close(NBDPrivateExport *exp);

#endif
