/*
 * Migration: the disks of a migration, destination side
 *
 * An ExportSet owns a DiskExport for each disk that migrate-incoming lists.
 * Whatever concerns all disks is here.
 *
 * All functions belong to the main loop, BQL held; so do the callbacks.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef MIGRATION_EXPORT_SET_H
#define MIGRATION_EXPORT_SET_H

#include "disk-export.h"
#include "qapi/qapi-types-migration.h"

typedef struct ExportSet ExportSet;

/* A disk has failed.  Called at most once for each, never from within a call */
typedef void ExportSetFailed(const MuxFailure *failure, void *opaque);

/* Expect the disks of @defs (MigrationDiskChannel *), which must outlive it. */
ExportSet *export_set_new(GPtrArray *defs, ExportSetFailed *failed,
                          void *opaque);

/* Must be empty: see export_set_release(). */
void export_set_free(ExportSet *set);

/* The source opened the stream @ioc: accept it, or refuse it with @errp. */
bool export_set_accept(ExportSet *set, QIOChannelMux *ioc, Error **errp);

/* Returns: a failure if the source has not opened the stream of each disk */
MuxFailure *export_set_unopened(ExportSet *set);

/* Returns: a failure if not all disks are disk_export_done() */
MuxFailure *export_set_unfinished(ExportSet *set);

/* Release all disks; those that are not done are reset, because of @why. */
void export_set_release(ExportSet *set, const MuxFailure *why);

/* Append the streams of the disks to a list for query-migrate. */
void export_set_info(ExportSet *set, MigrationStreamInfoList ***tail);

#endif
