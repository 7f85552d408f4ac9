/*
 * What the user asked of 'migrate' and 'migrate-incoming', checked
 *
 * Everything that can be refused without talking to the peer is refused
 * here, before anything was started: after an error from here, the same
 * command with better arguments works.  Opens no connection and touches no
 * disk.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "migration/misc.h"
#include "qapi/clone-visitor.h"
#include "qapi/error.h"
#include "qapi/qapi-visit-migration.h"
#include "qapi/qobject-output-visitor.h"
#include "qobject/qobject.h"
#include "channel-args.h"
#include "guest-disks.h"
#include "migration.h"
#include "options.h"

static const MigrationCapability mux_conflicts[] = {
    MIGRATION_CAPABILITY_MAPPED_RAM,
    MIGRATION_CAPABILITY_BACKGROUND_SNAPSHOT,
    MIGRATION_CAPABILITY_X_COLO,
    MIGRATION_CAPABILITY_ZERO_COPY_SEND,
    MIGRATION_CAPABILITY_POSTCOPY_RAM,
};

static bool mux_refuse(const char *what, const char *name, Error **errp)
{
    error_setg(errp, "%s '%s' cannot be combined with capability "
               "'channel-mux' or channels of type 'nbd'", what, name);
    return false;
}

bool migration_mux_check_caps(const bool *caps, Error **errp)
{
    for (size_t i = 0; i < ARRAY_SIZE(mux_conflicts); i++) {
        MigrationCapability cap = mux_conflicts[i];

        if (caps[cap]) {
            return mux_refuse("Capability", MigrationCapability_str(cap),
                              errp);
        }
    }
    return true;
}

/* Can the connection be multiplexed, with everything that is set by now? */
static bool check_mux(const MigrationChannels *channels, Error **errp)
{
    MigrationAddressType transport = channels->main_addr->transport;

    if (!migration_mux_check_caps(migrate_get_current()->capabilities, errp)) {
        return false;
    }
    if (migrate_mode() != MIG_MODE_NORMAL) {
        return mux_refuse("Mode", MigMode_str(migrate_mode()), errp);
    }
    if (channels->cpr) {
        return mux_refuse("Channel type", "cpr", errp);
    }
    if (transport != MIGRATION_ADDRESS_TYPE_SOCKET &&
        transport != MIGRATION_ADDRESS_TYPE_EXEC) {
        return mux_refuse("Transport", MigrationAddressType_str(transport),
                          errp);
    }
    return true;
}

static QObject *addr_to_qobject(MigrationAddress *addr)
{
    QObject *obj = NULL;
    Visitor *v = qobject_output_visitor_new(&obj);

    visit_type_MigrationAddress(v, NULL, &addr, &error_abort);
    visit_complete(v, &obj);
    visit_free(v);
    return obj;
}

static bool addr_is_equal(MigrationAddress *a, MigrationAddress *b)
{
    QObject *x = addr_to_qobject(a);
    QObject *y = addr_to_qobject(b);
    bool equal = qobject_is_equal(x, y);

    qobject_unref(x);
    qobject_unref(y);
    return equal;
}

/* Check that @disk is not yet in the list, under this or another name */
static bool check_unique(const MigrationChannels *channels,
                         const MigrationDiskChannel *disk, Error **errp)
{
    for (guint i = 0; i < channels->disks->len; i++) {
        const MigrationDiskChannel *other = channels->disks->pdata[i];

        if (!strcmp(disk->disk, other->disk)) {
            error_setg(errp, "Channel list has more than one entry for "
                       "disk '%s'", disk->disk);
            return false;
        }
        if (!strcmp(disk->node_name, other->node_name)) {
            error_setg(errp, "Disks '%s' and '%s' are the same node '%s'",
                       other->disk, disk->disk, disk->node_name);
            return false;
        }
    }
    return true;
}

static bool check_disk_addr(MigrationChannels *channels,
                            const MigrationChannel *entry, Error **errp)
{
    if (entry->addr && !addr_is_equal(entry->addr, channels->main_addr)) {
        error_setg(errp, "Disk '%s': a connection of its own is not "
                   "supported; leave out 'addr'", entry->u.nbd.disk);
        return false;
    }
    return true;
}

static bool add_disk(MigrationChannels *channels,
                     const MigrationChannelNbd *def, MigrationChannelsUse use,
                     Error **errp)
{
    bool incoming = use == MIGRATION_CHANNELS_INCOMING;
    g_autoptr(MigrationDiskChannel) disk = NULL;

    disk = migration_disk_channel_new(def, incoming, errp);
    if (!disk || !check_unique(channels, disk, errp)) {
        return false;
    }

    g_ptr_array_add(channels->disks, g_steal_pointer(&disk));
    return true;
}

static bool has_node(const MigrationChannels *channels, const char *node_name)
{
    for (guint i = 0; i < channels->disks->len; i++) {
        const MigrationDiskChannel *disk = channels->disks->pdata[i];

        if (!strcmp(disk->node_name, node_name)) {
            return true;
        }
    }
    return false;
}

/* Add the disks of the guest that are not in the list, with @def's options */
static bool add_guest_disks(MigrationChannels *channels,
                            const MigrationChannelNbd *def,
                            MigrationChannelsUse use, Error **errp)
{
    g_autoptr(GPtrArray) disks = NULL;

    if (def->node_name) {
        error_setg(errp, "Disk '%s': 'node-name' is not accepted", def->disk);
        return false;
    }
    disks = migration_guest_disks();
    for (guint i = 0; i < disks->len; i++) {
        const MigrationChannelNbd *found = disks->pdata[i];
        MigrationChannelNbd disk = *def;

        if (has_node(channels, found->node_name)) {
            continue;
        }
        if (!found->disk) {
            error_setg(errp, "Disk '%s': node '%s' has a generated name, and "
                       "neither its drive nor its device has an id; list it "
                       "with 'node-name'", def->disk, found->node_name);
            return false;
        }
        disk.disk = found->disk;
        disk.node_name = found->node_name;
        if (!add_disk(channels, &disk, use, errp)) {
            return false;
        }
    }
    return true;
}

/* '*' stands for the disks without an entry of their own: handle it last */
static bool add_disks(MigrationChannels *channels,
                      const MigrationChannelList *list,
                      MigrationChannelsUse use, Error **errp)
{
    const MigrationChannelNbd *all = NULL;

    for (; list; list = list->next) {
        const MigrationChannelNbd *def = &list->value->u.nbd;

        if (list->value->channel_type != MIGRATION_CHANNEL_TYPE_NBD) {
            continue;
        }
        channels->mux = true;
        if (use == MIGRATION_CHANNELS_RESUME) {
            error_setg(errp, "Disk '%s': not accepted when resuming a "
                       "migration", def->disk);
            return false;
        }
        if (!check_disk_addr(channels, list->value, errp)) {
            return false;
        }
        if (!strcmp(def->disk, MIGRATION_GUEST_DISKS)) {
            if (all) {
                error_setg(errp, "Channel list has more than one entry for "
                           "disk '%s'", def->disk);
                return false;
            }
            all = def;
        } else if (!add_disk(channels, def, use, errp)) {
            return false;
        }
    }
    return !all || add_guest_disks(channels, all, use, errp);
}

/* Take the only entry of type @type into @entry; there may be none */
static bool find_single(const MigrationChannelList *list,
                        MigrationChannelType type, MigrationChannel **entry,
                        Error **errp)
{
    const char *name = MigrationChannelType_str(type);

    *entry = NULL;
    for (; list; list = list->next) {
        if (list->value->channel_type != type) {
            continue;
        }
        if (*entry) {
            error_setg(errp, "Channel list has more than one %s entry", name);
            return false;
        }
        if (!list->value->addr) {
            error_setg(errp, "Channel '%s' has no 'addr'", name);
            return false;
        }
        *entry = list->value;
    }
    return true;
}

static bool parse_list(MigrationChannels *channels,
                       const MigrationChannelList *list,
                       MigrationChannelsUse use, Error **errp)
{
    MigrationChannel *main_entry, *cpr_entry;

    if (!find_single(list, MIGRATION_CHANNEL_TYPE_MAIN, &main_entry, errp) ||
        !find_single(list, MIGRATION_CHANNEL_TYPE_CPR, &cpr_entry, errp)) {
        return false;
    }
    if (!main_entry) {
        error_setg(errp, "Channel list has no main entry");
        return false;
    }
    if (cpr_entry && use == MIGRATION_CHANNELS_INCOMING) {
        error_setg(errp, "Channel 'cpr' is only accepted by '-incoming'");
        return false;
    }

    channels->main_addr = QAPI_CLONE(MigrationAddress, main_entry->addr);
    if (cpr_entry) {
        channels->cpr = QAPI_CLONE(MigrationChannel, cpr_entry);
    }

    return add_disks(channels, list, use, errp);
}

static bool parse_uri(MigrationChannels *channels, const char *uri,
                      Error **errp)
{
    g_autoptr(MigrationChannel) entry = NULL;

    if (!migrate_uri_parse(uri, &entry, errp)) {
        return false;
    }
    channels->main_addr = g_steal_pointer(&entry->addr);
    return true;
}

MigrationChannels *migration_channels_parse(const char *uri, bool has_channels,
                                            const MigrationChannelList *list,
                                            MigrationChannelsUse use,
                                            Error **errp)
{
    g_autoptr(MigrationChannels) channels = g_new0(MigrationChannels, 1);

    channels->disks = g_ptr_array_new_with_free_func(
        (GDestroyNotify)migration_disk_channel_free);

    if (!uri == !has_channels) {
        error_setg(errp, "exactly one of the arguments 'uri' and 'channels' "
                   "is needed");
        return NULL;
    }
    if (uri ? !parse_uri(channels, uri, errp)
            : !parse_list(channels, list, use, errp)) {
        return NULL;
    }

    channels->mux |= migrate_channel_mux();
    if (channels->mux && !check_mux(channels, errp)) {
        return NULL;
    }
    return g_steal_pointer(&channels);
}

void migration_channels_free(MigrationChannels *channels)
{
    if (!channels) {
        return;
    }
    qapi_free_MigrationAddress(channels->main_addr);
    qapi_free_MigrationChannel(channels->cpr);
    g_ptr_array_unref(channels->disks);
    g_free(channels);
}

bool migration_mux_source(MigrationState *s)
{
    return s->channels && s->channels->mux;
}

bool migration_mux_expected(MigrationIncomingState *mis)
{
    return mis->channels && mis->channels->mux;
}
