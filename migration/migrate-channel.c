/*
 * The argument 'channel' of 'migrate' and 'migrate-incoming'
 *
 * Turns it into the list that the argument 'channels' has, and nothing else:
 * everything behind knows only that list.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/clone-visitor.h"
#include "qapi/error.h"
#include "qapi/qapi-commands-migration.h"
#include "qapi/qapi-visit-migration.h"
#include "qapi/qapi-visit-sockets.h"
#include "qapi/util.h"
#include "qemu/cutils.h"
#include "migration/misc.h"
#include "migration.h"

static MigrationAddress *convert_uri(const char *scheme, const char *rest,
                                     Error **errp)
{
    g_autofree char *uri = g_strconcat(scheme, rest, NULL);
    g_autoptr(MigrationChannel) channel = NULL;

    if (!migrate_uri_parse(uri, &channel, errp)) {
        return NULL;
    }
    return g_steal_pointer(&channel->addr);
}

static MigrationAddress *convert_socket(const SocketAddress *socket)
{
    MigrationAddress *addr = g_new0(MigrationAddress, 1);

    addr->transport = MIGRATION_ADDRESS_TYPE_SOCKET;
    QAPI_CLONE_MEMBERS(SocketAddress, &addr->u.socket, socket);
    return addr;
}

static MigrationAddress *convert_addr(const MigrateAddress *addr, Error **errp)
{
    switch (addr->transport) {
    case MIGRATE_TRANSPORT_SOCKET:
        return convert_socket(addr->u.socket.socket_type);
    case MIGRATE_TRANSPORT_EXEC:
        return convert_uri("exec:", addr->u.exec.exec_str, errp);
    case MIGRATE_TRANSPORT_RDMA:
        return convert_uri("rdma:", addr->u.rdma.rdma_str, errp);
    default:
        g_assert_not_reached();
    }
}

static bool convert_type(const MigrateChannel *from, MigrationChannel *to,
                         Error **errp)
{
    const char *disk;

    if (strstart(from->channeltype, "nbd-", &disk)) {
        to->channel_type = MIGRATION_CHANNEL_TYPE_NBD;
        to->u.nbd.disk = g_strdup(disk);
        to->u.nbd.node_name = g_strdup(from->node_name);
        to->u.nbd.has_sync = from->has_sync;
        to->u.nbd.sync = from->sync;
        to->u.nbd.has_detect_zeroes = from->has_detect_zeroes;
        to->u.nbd.detect_zeroes = from->detect_zeroes;
        return true;
    }

    if (strcmp(from->channeltype, "main")) {
        error_setg(errp, "Channel type '%s' is neither 'main' nor 'nbd-' "
                   "followed by the name of a disk", from->channeltype);
        return false;
    }
    if (from->node_name || from->has_sync || from->has_detect_zeroes) {
        error_setg(errp, "Channel 'main' has no 'node-name', 'sync' or "
                   "'detect-zeroes'");
        return false;
    }
    to->channel_type = MIGRATION_CHANNEL_TYPE_MAIN;
    return true;
}

static MigrationChannel *convert_one(const MigrateChannel *from, Error **errp)
{
    g_autoptr(MigrationChannel) to = g_new0(MigrationChannel, 1);

    if (!convert_type(from, to, errp)) {
        return NULL;
    }
    if (from->addr) {
        to->addr = convert_addr(from->addr, errp);
        if (!to->addr) {
            return NULL;
        }
    }
    return g_steal_pointer(&to);
}

/*
 * Sets @converted to what says the same as @channel in the form of the argument
 * 'channels'.  @others: whether the command has 'uri' or 'channels', too.
 */
static bool convert(MigrateChannelSpec *channel, bool others,
                    MigrationChannelList **converted, Error **errp)
{
    g_autoptr(MigrationChannelList) list = NULL;
    MigrationChannelList **tail = &list;
    bool is_list = channel->type == QTYPE_QLIST;
    MigrateChannelList single = { .value = &channel->u.one };
    const MigrateChannelList *from = is_list ? channel->u.list : &single;

    if (others) {
        error_setg(errp, "exactly one of the arguments 'uri', 'channel' and "
                   "'channels' is needed");
        return false;
    }

    for (; from; from = from->next) {
        MigrationChannel *to = convert_one(from->value, errp);

        if (!to) {
            return false;
        }
        QAPI_LIST_APPEND(tail, to);
    }
    *converted = g_steal_pointer(&list);
    return true;
}

void qmp_migrate(const char *uri, MigrateChannelSpec *channel,
                 bool has_channels, MigrationChannelList *channels,
                 bool has_detach, bool detach, bool has_resume, bool resume,
                 Error **errp)
{
    g_autoptr(MigrationChannelList) converted = NULL;

    if (channel && !convert(channel, uri || has_channels, &converted, errp)) {
        return;
    }
    migration_begin_outgoing(uri, has_channels || channel,
                             channel ? converted : channels,
                             has_detach, detach, has_resume, resume, errp);
}

void qmp_migrate_incoming(const char *uri, MigrateChannelSpec *channel,
                          bool has_channels, MigrationChannelList *channels,
                          bool has_exit_on_error, bool exit_on_error,
                          Error **errp)
{
    g_autoptr(MigrationChannelList) converted = NULL;

    if (channel && !convert(channel, uri || has_channels, &converted, errp)) {
        return;
    }
    migration_begin_incoming(uri, has_channels || channel,
                             channel ? converted : channels,
                             has_exit_on_error, exit_on_error, errp);
}
