/*
 * Migration: one disk as it arrives, destination side
 *
 * A DiskExport gives the stream nbd-<disk> a private export of one block node,
 * and answers the stream's end only when the export is gone and the node's
 * data is on stable storage.
 *
 * All functions belong to the main loop, BQL held; so do the callbacks.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef MIGRATION_DISK_EXPORT_H
#define MIGRATION_DISK_EXPORT_H

#include "channel-disk.h"
#include "migration/mux/channel-mux.h"

typedef struct DiskExport DiskExport;

/* Never called from within a function of this file */
typedef struct DiskExportOps {
    /* The source has sent FIN: call disk_export_end(). */
    void (*finishing)(DiskExport *d, void *opaque);

    /* The disk has failed.  Called at most once. */
    void (*failed)(DiskExport *d, const MuxFailure *failure, void *opaque);
} DiskExportOps;

/* Expect the disk of @def, which must outlive the result. */
DiskExport *disk_export_new(const MigrationDiskChannel *def,
                            const DiskExportOps *ops, void *opaque);

const MigrationDiskChannel *disk_export_def(DiskExport *d);

/* The source opened the disk's stream: accept it, or refuse it with @errp. */
bool disk_export_accept(DiskExport *d, QIOChannelMux *ioc, Error **errp);

/* The stream, or NULL when the source did not open it. */
QIOChannelMux *disk_export_stream(DiskExport *d);

/*
 * The source has sent everything: the export and the node's last flush have
 * @ms for their end (0: no limit).
 */
void disk_export_end(DiskExport *d, uint32_t ms);

/* Is the disk complete, on stable storage, and its node not in use? */
bool disk_export_done(DiskExport *d);

/* Release @d.  If it is not done, the stream is reset because of @why. */
void disk_export_free(DiskExport *d, const MuxFailure *why);

#endif
