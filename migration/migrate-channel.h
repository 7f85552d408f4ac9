/*
 * The argument 'channel' of 'migrate' and 'migrate-incoming'
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef QEMU_MIGRATION_MIGRATE_CHANNEL_H
#define QEMU_MIGRATION_MIGRATE_CHANNEL_H

#include "qapi/qapi-types-migration.h"

/**
 * migrate_channel_convert:
 * @channel: the command's argument 'channel'
 * @others: whether the command has 'uri' or 'channels', too
 * @list: set to what says the same as @channel in the form of the argument
 *     'channels'; to be freed with qapi_free_MigrationChannelList()
 * @errp: set to what is wrong
 *
 * Whether the list makes sense is not checked here.
 *
 * Returns: true on success, false on error
 */
bool migrate_channel_convert(MigrateChannelSpec *channel, bool others,
                             MigrationChannelList **list, Error **errp);

#endif
