/*
 * What the user asked of 'migrate' and 'migrate-incoming', checked
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef QEMU_MIGRATION_CHANNEL_ARGS_H
#define QEMU_MIGRATION_CHANNEL_ARGS_H

#include "qapi/qapi-types-migration.h"
#include "channel-disk.h"

typedef struct MigrationState MigrationState;
typedef struct MigrationIncomingState MigrationIncomingState;

/**
 * MigrationChannelsUse:
 * @MIGRATION_CHANNELS_OUTGOING: the source starts a migration
 * @MIGRATION_CHANNELS_RESUME: the source resumes a paused one, which is one
 *     with postcopy, and has no disks
 * @MIGRATION_CHANNELS_INCOMING: the destination waits for a source
 */
typedef enum MigrationChannelsUse {
    MIGRATION_CHANNELS_OUTGOING,
    MIGRATION_CHANNELS_RESUME,
    MIGRATION_CHANNELS_INCOMING,
} MigrationChannelsUse;

/**
 * MigrationChannels:
 * @main_addr: address of the connection
 * @cpr: the entry of type 'cpr', or NULL; only with mode cpr-transfer
 * @mux: whether the connection is multiplexed; always true with @disks
 * @disks: a MigrationDiskChannel for each disk to copy, in the order that
 *     the user gave; may be empty
 *
 * Everything in it belongs to it.
 */
typedef struct MigrationChannels {
    MigrationAddress *main_addr;
    MigrationChannel *cpr;
    bool mux;
    GPtrArray *disks;
} MigrationChannels;

/**
 * migration_channels_parse:
 * @uri: the command's argument 'uri', or NULL
 * @has_channels: whether the command has the argument 'channels'
 * @list: the command's argument 'channels'
 * @use: what the channels are for
 * @errp: set to what is wrong
 *
 * Check the arguments of a migration command, together with the
 * capabilities and the mode that are set.  Nothing is started or changed.
 * Must be called in the main thread, but a @uri can be checked in any.
 *
 * Returns: the channels, to be freed with migration_channels_free(), or
 *          NULL on error
 */
MigrationChannels *migration_channels_parse(const char *uri, bool has_channels,
                                            const MigrationChannelList *list,
                                            MigrationChannelsUse use,
                                            Error **errp);

/**
 * migration_channels_free:
 * @channels: the channels to free, may be NULL
 */
void migration_channels_free(MigrationChannels *channels);

G_DEFINE_AUTOPTR_CLEANUP_FUNC(MigrationChannels, migration_channels_free)

/**
 * migration_mux_check_caps:
 * @caps: whether each capability is set, indexed by MigrationCapability
 * @errp: set when one of them excludes a multiplexed connection
 *
 * Returns: true when a connection can be multiplexed with these
 *          capabilities, false with @errp set otherwise
 */
bool migration_mux_check_caps(const bool *caps, Error **errp);

/* Is the migration that is being started multiplexed? */
bool migration_mux_source(MigrationState *s);

/* Is the connection that the destination waits for multiplexed? */
bool migration_mux_expected(MigrationIncomingState *mis);

#endif
