/*
 * Migration: the mirror job of one disk
 *
 * A MirrorJob is a block job that the user sees but the migration controls:
 * it copies a node to the destination's NBD node, stays in step, and is ended
 * without switching the guest over to its target.
 *
 * All functions belong to the main loop (BQL held) unless said otherwise.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef MIGRATION_MIRROR_JOB_H
#define MIGRATION_MIRROR_JOB_H

#include "block/block.h"
#include "channel-disk.h"

typedef struct MirrorJob MirrorJob;

/*
 * The job is ready, is paused, has failed or has ended: query it later, not in
 * this callback.  Any thread, with the job lock held.
 */
typedef void MirrorJobNotify(void *opaque);

/*
 * Start the job, named after the stream of @def, subject to migration_limit().
 * The source must be drained.
 *
 * Returns: NULL with @errp set on error
 */
MirrorJob *mirror_job_start(const MigrationDiskChannel *def,
                            BlockDriverState *source, BlockDriverState *target,
                            MirrorJobNotify *notify, void *opaque,
                            Error **errp);

/* Release the job; it continues if it has not ended.  No more @notify. */
void mirror_job_free(MirrorJob *j);

/* migration_limit() has changed. */
void mirror_job_limit_changed(MirrorJob *j);

/* Make the guest's writes wait for the target. */
void mirror_job_block_writes(MirrorJob *j);

/*
 * Has mirror_job_block_writes() taken effect?  The mirror learns gradually what
 * was written before; until then its progress is not meaningful.
 */
bool mirror_job_writes_blocked(MirrorJob *j);

/* Drain, flush and end successfully: the guest is stopped. */
void mirror_job_complete(MirrorJob *j);

/* Pause the job, until mirror_job_cancel(); idempotent.  Any thread. */
void mirror_job_pause(MirrorJob *j);

/* End the job at once; idempotent. */
void mirror_job_cancel(MirrorJob *j);

/* Bytes still to be copied, and in all, as far as known.  Any thread. */
void mirror_job_progress(MirrorJob *j, uint64_t *remaining, uint64_t *total);

bool mirror_job_is_ready(MirrorJob *j);

/* Has it failed?  Then it waits for mirror_job_cancel(). */
bool mirror_job_has_failed(MirrorJob *j);

/* Has it begun to end, or failed?  Any thread. */
bool mirror_job_is_ending(MirrorJob *j);

/* Is it paused or ended, so that it has no requests? */
bool mirror_job_is_idle(MirrorJob *j);

/*
 * Has it ended?  Then it may be in the middle of its finalization, which polls,
 * and must be left alone until it is finalized.
 */
bool mirror_job_is_over(MirrorJob *j);
bool mirror_job_is_finalized(MirrorJob *j);

/*
 * Why has it ended?  @completing: mirror_job_complete() was called.  Any
 * thread.
 *
 * Returns: NULL if it was asked to end, and succeeded
 */
Error *mirror_job_error(MirrorJob *j, bool completing);

#endif
