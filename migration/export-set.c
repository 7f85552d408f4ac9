/*
 * Migration: the disks of a migration, destination side
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "qapi/util.h"
#include "export-set.h"
#include "mux-stream-info.h"
#include "options.h"

struct ExportSet {
    ExportSetFailed *failed;
    void *opaque;
    GPtrArray *disks;           /* DiskExport * */
};

static DiskExport *export_set_get(ExportSet *set, guint i)
{
    return i < set->disks->len ? g_ptr_array_index(set->disks, i) : NULL;
}

#define FOR_EACH_EXPORT(d, set)                                         \
    for (guint d##_i = 0; (d = export_set_get(set, d##_i)); d##_i++)

/* The guest may be waiting at the source, for channel-mux-stop-timeout. */
static void export_set_finishing(DiskExport *d, void *opaque)
{
    disk_export_end(d, migrate_channel_mux_stop_timeout() / 2);
}

static void export_set_failed(DiskExport *d, const MuxFailure *failure,
                              void *opaque)
{
    ExportSet *set = opaque;

    set->failed(failure, set->opaque);
}

static const DiskExportOps export_set_ops = {
    .finishing = export_set_finishing,
    .failed = export_set_failed,
};

ExportSet *export_set_new(GPtrArray *defs, ExportSetFailed *failed,
                          void *opaque)
{
    ExportSet *set = g_new0(ExportSet, 1);

    set->failed = failed;
    set->opaque = opaque;
    set->disks = g_ptr_array_new();
    for (guint i = 0; i < defs->len; i++) {
        g_ptr_array_add(set->disks, disk_export_new(g_ptr_array_index(defs, i),
                                                    &export_set_ops, set));
    }
    return set;
}

void export_set_free(ExportSet *set)
{
    assert(!set->disks->len);
    g_ptr_array_unref(set->disks);
    g_free(set);
}

bool export_set_accept(ExportSet *set, QIOChannelMux *ioc, Error **errp)
{
    DiskExport *d;

    FOR_EACH_EXPORT(d, set) {
        if (g_str_equal(disk_export_def(d)->stream,
                        qio_channel_mux_name(ioc))) {
            return disk_export_accept(d, ioc, errp);
        }
    }
    error_setg(errp, "not listed in the destination's migrate-incoming");
    return false;
}

/* Returns: a failure with @text, of the first disk that @is not; else NULL */
static MuxFailure *export_set_check(ExportSet *set, bool (*is)(DiskExport *d),
                                    const char *text)
{
    DiskExport *d;

    FOR_EACH_EXPORT(d, set) {
        if (!is(d)) {
            return mux_failure_new(disk_export_def(d)->stream,
                                   MUX_CODE_PROTOCOL, "%s", text);
        }
    }
    return NULL;
}

static bool export_set_is_open(DiskExport *d)
{
    return disk_export_stream(d);
}

MuxFailure *export_set_unopened(ExportSet *set)
{
    return export_set_check(set, export_set_is_open, "listed in the "
                            "destination's migrate-incoming, but not opened "
                            "by the source");
}

MuxFailure *export_set_unfinished(ExportSet *set)
{
    return export_set_check(set, disk_export_done, "the device state arrived "
                            "before the disk was complete");
}

void export_set_release(ExportSet *set, const MuxFailure *why)
{
    DiskExport *d;

    /* To close an export polls: it must not be found then */
    while ((d = export_set_get(set, set->disks->len - 1))) {
        g_ptr_array_set_size(set->disks, set->disks->len - 1);
        disk_export_free(d, why);
    }
}

void export_set_info(ExportSet *set, MigrationStreamInfoList ***tail)
{
    DiskExport *d;

    FOR_EACH_EXPORT(d, set) {
        if (disk_export_stream(d)) {
            QAPI_LIST_APPEND(*tail,
                             mux_stream_info_new(disk_export_stream(d)));
        }
    }
}
