/*
 * Migration: one disk as it arrives, destination side
 *
 * A DiskReceive gives the stream nbd-<disk> a private export of one block node,
 * and answers the stream's end only when the export is gone and the node's
 * data is on stable storage.
 *
 * All functions belong to the main loop, BQL held; so do the callbacks.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef MIGRATION_DISK_RECEIVE_H
#define MIGRATION_DISK_RECEIVE_H

#include "disk-channel.h"
#include "migration/mux/channel-mux.h"

typedef struct DiskReceive DiskReceive;

/*
 * The disk is lost because of @err, which begins with the stream's name.  At
 * most once, never from within a call.
 */
typedef void DiskReceiveFailed(DiskReceive *d, const Error *err, void *opaque);

/* Expect the disk of @def, which must outlive the result. */
DiskReceive *disk_receive_new(const MigrationDiskChannel *def,
                              DiskReceiveFailed *failed, void *opaque);

const MigrationDiskChannel *disk_receive_def(DiskReceive *d);

/* The source opened the disk's stream: accept it, or refuse it with @errp. */
bool disk_receive_accept(DiskReceive *d, QIOChannelMux *ioc, Error **errp);

/* The stream, or NULL when the source did not open it. */
QIOChannelMux *disk_receive_stream(DiskReceive *d);

/*
 * The source has sent everything: the export and the node's last flush have
 * @ms for their end (0: no limit).
 */
void disk_receive_end(DiskReceive *d, uint32_t ms);

/* Is the disk complete, on stable storage, and its node in nobody's use? */
bool disk_receive_done(DiskReceive *d);

/* Let go; the stream is reset, with @why as the reason, if @d is not done. */
void disk_receive_free(DiskReceive *d, const Error *why);

#endif
