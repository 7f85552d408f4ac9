/*
 * The disk that a migration channel of type 'nbd' copies
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef QEMU_MIGRATION_CHANNEL_DISK_H
#define QEMU_MIGRATION_CHANNEL_DISK_H

#include "qapi/qapi-types-migration.h"

/* Longest name of a disk, in characters */
#define MIGRATION_DISK_NAME_MAX 200

/**
 * MigrationDiskChannel:
 * @disk: name of the disk, the same on both sides
 * @stream: name of its stream, "nbd-" followed by @disk
 * @node_name: name of the block node that holds the disk on this side
 * @sync: what to copy; MIGRATION_DISK_SYNC_FULL on the destination
 * @has_detect_zeroes: whether @detect_zeroes was given
 * @detect_zeroes: how to handle zeroes that are stored as data
 *
 * A checked entry of type 'nbd' of a list of migration channels.
 */
typedef struct MigrationDiskChannel {
    char *disk;
    char *stream;
    char *node_name;
    MigrationDiskSync sync;
    bool has_detect_zeroes;
    BlockdevDetectZeroesOptions detect_zeroes;
} MigrationDiskChannel;

/**
 * migration_disk_channel_new:
 * @def: what the user gave
 * @incoming: whether this is the destination, which writes the disk
 * @errp: set to what is wrong with @def, naming the disk
 *
 * Check the disk's name and look for its node.  Nothing is changed: the
 * node is neither referenced nor blocked, and may be gone later.  Must be
 * called in the main thread.
 *
 * Returns: the new channel, or NULL on error
 */
MigrationDiskChannel *migration_disk_channel_new(const MigrationChannelNbd *def,
                                                 bool incoming, Error **errp);

/**
 * migration_disk_channel_free:
 * @channel: the channel to free, may be NULL
 */
void migration_disk_channel_free(MigrationDiskChannel *channel);

G_DEFINE_AUTOPTR_CLEANUP_FUNC(MigrationDiskChannel,
                              migration_disk_channel_free)

#endif
