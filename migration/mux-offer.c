/*
 * Migration over a multiplexed connection: the offer
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "block/block.h"
#include "crypto/random.h"
#include "hw/boards.h"
#include "migration.h"
#include "migration/mux/frame.h"
#include "mux-offer.h"
#include "mux-streams.h"
#include "options.h"
#include "qapi/error.h"

/* Reasons to reject an offer that are sent and shown */
#define MUX_OFFER_REASONS_MAX   64
/* Longest text of the peer that is shown, in bytes */
#define MUX_OFFER_TEXT_MAX      256

static const char *mux_offer_machine_type(void)
{
    return migrate_get_current()->send_configuration ?
        MACHINE_GET_CLASS(current_machine)->name : NULL;
}

static int64_t mux_offer_disk_size(const MigrationDiskChannel *def,
                                   Error **errp)
{
    BlockDriverState *bs = bdrv_lookup_bs(def->node_name, def->node_name, errp);
    int64_t size = bs ? bdrv_getlength(bs) : -1;

    if (bs && size < 0) {
        error_setg_errno(errp, -size, "cannot get the size of node '%s'",
                         def->node_name);
    }
    return size;
}

/* --- the source --- */

static MigrationControlDisk *mux_offer_disk(const MigrationDiskChannel *def,
                                            MuxFailure **failp)
{
    g_autoptr(Error) err = NULL;
    int64_t size = mux_offer_disk_size(def, &err);
    MigrationControlDisk *disk;

    if (size < 0) {
        mux_failure_propagate(failp, mux_failure_from_error(def->stream, err));
        return NULL;
    }
    disk = g_new0(MigrationControlDisk, 1);
    disk->name = g_strdup(def->disk);
    disk->size = size;
    return disk;
}

static void mux_offer_add_channels(MigrationControlChannelsList **list,
                                   MuxStreamKind kind, uint32_t count)
{
    MigrationControlChannels *channels;

    if (count) {
        channels = g_new0(MigrationControlChannels, 1);
        channels->kind = g_strdup(mux_stream_kind_str(kind));
        channels->count = count;
        QAPI_LIST_PREPEND(*list, channels);
    }
}

MigrationControl *mux_offer_new(const MigrationChannels *channels,
                                MuxFailure **failp)
{
    g_autoptr(MigrationControl) message = g_new0(MigrationControl, 1);
    MigrationControlOffer *offer = &message->u.offer;
    MigrationControlDiskList **tail = &offer->disks;

    message->type = MIGRATION_CONTROL_TYPE_OFFER;
    for (guint i = 0; i < channels->disks->len; i++) {
        MigrationControlDisk *disk =
            mux_offer_disk(g_ptr_array_index(channels->disks, i), failp);

        if (!disk) {
            return NULL;
        }
        QAPI_LIST_APPEND(tail, disk);
    }
    mux_offer_add_channels(&offer->channels, MUX_STREAM_KIND_MULTIFD,
                           migrate_multifd() ? migrate_multifd_channels() : 0);
    mux_offer_add_channels(&offer->channels, MUX_STREAM_KIND_NBD,
                           channels->disks->len);
    mux_offer_add_channels(&offer->channels, MUX_STREAM_KIND_MAIN, 1);
    offer->machine_type = g_strdup(mux_offer_machine_type());
    return g_steal_pointer(&message);
}

/* --- the destination --- */

/* Add a reason, of MUX_OFFER_REASONS_MAX at most; @stream: NULL: all streams */
static void G_GNUC_PRINTF(3, 4)
mux_offer_object(MigrationControlReasonList **list, const char *stream,
                 const char *fmt, ...)
{
    MigrationControlReasonList **tail = list;
    MigrationControlReason *reason;
    unsigned n = 0;
    va_list ap;

    while (*tail) {
        tail = &(*tail)->next;
        n++;
    }
    if (n == MUX_OFFER_REASONS_MAX) {
        return;
    }
    reason = g_new0(MigrationControlReason, 1);
    reason->stream = g_strdup(stream);
    va_start(ap, fmt);
    reason->text = g_strdup_vprintf(fmt, ap);
    va_end(ap);
    QAPI_LIST_APPEND(tail, reason);
}

/* The peer's @text, fit to be shown; to be freed */
static char *mux_offer_text(const char *text)
{
    return mux_text_sanitize((const uint8_t *)text,
                             strnlen(text, MUX_OFFER_TEXT_MAX));
}

static const MigrationControlDisk *
mux_offer_find_disk(const MigrationControlOffer *offer, const char *name)
{
    for (MigrationControlDiskList *l = offer->disks; l; l = l->next) {
        if (g_str_equal(l->value->name, name)) {
            return l->value;
        }
    }
    return NULL;
}

static bool mux_offer_expects(const MigrationChannels *own, const char *name)
{
    for (guint i = 0; i < own->disks->len; i++) {
        const MigrationDiskChannel *def = g_ptr_array_index(own->disks, i);

        if (g_str_equal(def->disk, name)) {
            return true;
        }
    }
    return false;
}

static void mux_offer_check_size(const MigrationDiskChannel *def, uint64_t size,
                                 MigrationControlReasonList **reasons)
{
    g_autoptr(Error) err = NULL;
    int64_t own = mux_offer_disk_size(def, &err);

    if (err) {
        mux_offer_object(reasons, def->stream, "%s", error_get_pretty(err));
    } else if (own != size) {
        mux_offer_object(reasons, def->stream, "the destination's image has %"
                         PRId64 " bytes, the source's has %" PRIu64, own, size);
    }
}

static void mux_offer_check_disks(const MigrationControlOffer *offer,
                                  const MigrationChannels *own,
                                  MigrationControlReasonList **reasons)
{
    for (guint i = 0; i < own->disks->len; i++) {
        const MigrationDiskChannel *def = g_ptr_array_index(own->disks, i);
        const MigrationControlDisk *disk =
            mux_offer_find_disk(offer, def->disk);

        if (disk) {
            mux_offer_check_size(def, disk->size, reasons);
        } else {
            mux_offer_object(reasons, def->stream, "listed in the "
                             "destination's migrate-incoming, but not offered "
                             "by the source");
        }
    }
    for (MigrationControlDiskList *l = offer->disks; l; l = l->next) {
        g_autofree char *name = mux_offer_text(l->value->name);
        g_autofree char *stream = mux_stream_kind_name(MUX_STREAM_KIND_NBD,
                                                       name);

        if (!mux_offer_expects(own, l->value->name)) {
            mux_offer_object(reasons, stream, "not listed in the destination's "
                             "migrate-incoming");
        } else if (mux_offer_find_disk(offer, l->value->name) != l->value) {
            mux_offer_object(reasons, stream, "offered twice by the source");
        }
    }
}

static void mux_offer_check_multifd(uint64_t count,
                                    MigrationControlReasonList **reasons)
{
    int own = migrate_multifd() ? migrate_multifd_channels() : 0;
    g_autofree char *stream = g_strdup_printf("multifd-%d",
                                              (int)MIN(own, count));

    if (count && !own) {
        mux_offer_object(reasons, stream, "the destination lacks the "
                         "capability 'multifd'");
    } else if (count != own) {
        mux_offer_object(reasons, stream, "the destination has %d multifd "
                         "channels, the source has %" PRIu64, own, count);
    }
}

static void mux_offer_object_kind(const char *kind,
                                  MigrationControlReasonList **reasons)
{
    g_autofree char *text = mux_offer_text(kind);

    mux_offer_object(reasons, NULL, "the destination does not support channels "
                     "of kind '%s'", text);
}

static void mux_offer_check_channels(const MigrationControlOffer *offer,
                                     MigrationControlReasonList **reasons)
{
    uint64_t main = 0, multifd = 0;

    for (MigrationControlChannelsList *l = offer->channels; l; l = l->next) {
        switch (mux_stream_kind_parse(l->value->kind)) {
        case MUX_STREAM_KIND_MAIN:
            main += l->value->count;
            break;
        case MUX_STREAM_KIND_MULTIFD:
            multifd += l->value->count;
            break;
        case MUX_STREAM_KIND_NBD:
            /* The disks tell how many */
            break;
        default:
            mux_offer_object_kind(l->value->kind, reasons);
        }
    }
    if (main != 1) {
        mux_offer_object(reasons, "main", "offered %" PRIu64 " times by the "
                         "source", main);
    }
    mux_offer_check_multifd(multifd, reasons);
}

static void mux_offer_check_machine(const MigrationControlOffer *offer,
                                    MigrationControlReasonList **reasons)
{
    const char *own = mux_offer_machine_type();
    g_autofree char *type = NULL;

    if (own && offer->machine_type && !g_str_equal(own, offer->machine_type)) {
        type = mux_offer_text(offer->machine_type);
        mux_offer_object(reasons, NULL, "the destination's machine type is "
                         "'%s', the source's is '%s'", own, type);
    }
}

MigrationControlReasonList *mux_offer_check(const MigrationControlOffer *offer,
                                            const MigrationChannels *own)
{
    MigrationControlReasonList *reasons = NULL;

    mux_offer_check_machine(offer, &reasons);
    mux_offer_check_channels(offer, &reasons);
    mux_offer_check_disks(offer, own, &reasons);
    return reasons;
}

char *mux_offer_token_new(MuxFailure **failp)
{
    g_autoptr(Error) err = NULL;
    uint8_t random[MUX_OFFER_TOKEN_DIGITS / 2];
    g_autoptr(GString) token = g_string_new(NULL);

    if (qcrypto_random_bytes(random, sizeof(random), &err) < 0) {
        mux_failure_propagate(failp, mux_failure_from_error(NULL, err));
        return NULL;
    }
    for (size_t i = 0; i < sizeof(random); i++) {
        g_string_append_printf(token, "%02x", random[i]);
    }
    return g_string_free(g_steal_pointer(&token), false);
}

/* --- both --- */

bool mux_offer_token_ok(const char *token)
{
    return strlen(token) == MUX_OFFER_TOKEN_DIGITS &&
        strspn(token, "0123456789abcdefABCDEF") == MUX_OFFER_TOKEN_DIGITS;
}

static MuxFailure *mux_offer_reason(const MigrationControlReason *reason)
{
    g_autofree char *text = mux_offer_text(reason->text);
    g_autofree char *stream = reason->stream ? mux_offer_text(reason->stream) :
                                               NULL;

    return mux_failure_new(stream, MUX_CODE_REFUSED,
                           "rejected by the destination: %s", text);
}

/* Append the text of @next to that of @f. */
static void mux_offer_append_reason(MuxFailure *f,
                                    const MigrationControlReason *next)
{
    g_autoptr(MuxFailure) other = mux_offer_reason(next);
    g_autofree char *text = mux_failure_text(other);
    char *both = g_strdup_printf("%s; %s", f->text, text);

    g_free(f->text);
    f->text = both;
}

MuxFailure *mux_offer_failure(const MigrationControlReasonList *reasons,
                              bool by_peer)
{
    MuxFailure *f;

    if (!reasons) {
        return mux_failure_new("control", MUX_CODE_PROTOCOL, "the destination "
                               "sent 'rejected' without a reason");
    }
    f = mux_offer_reason(reasons->value);
    f->cause.by_peer = by_peer;
    reasons = reasons->next;
    for (unsigned n = 1; reasons && n < MUX_OFFER_REASONS_MAX;
         reasons = reasons->next, n++) {
        mux_offer_append_reason(f, reasons->value);
    }
    return f;
}
