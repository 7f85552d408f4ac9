/*
 * QTest helpers for migration over a multiplexed connection: what happens to
 * the two sides
 *
 * Where a disk is meant it is disk0, and its job nbd-disk0.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef MUX_ACTIONS_H
#define MUX_ACTIONS_H

#include "migration/mux-util.h"

/* --- the destination's process --- */

void kill_target(MuxTest *t);
/* Stop it, and go on after a while. */
void stop_target(MuxTest *t);
void continue_target(MuxTest *t);
void quit_target(MuxTest *t);
void yank_target(MuxTest *t);

/* --- the source --- */

void quit_source(MuxTest *t);
void yank_source(MuxTest *t);
void cancel_source(MuxTest *t);
/* Silence is a failure after 1.5 s. */
void limit_silence(MuxTest *t);
/* A step of the switchover may take 3 s. */
void limit_stop(MuxTest *t);

/* --- its mirror job --- */

void cancel_job(MuxTest *t);
void kill_job(MuxTest *t);
void pause_job(MuxTest *t);
void pause_job_and_write(MuxTest *t);
/* The migration must not have completed without it. */
void resume_job(MuxTest *t);
void resume_ending_job(MuxTest *t);
/* Both are refused; the second one is of a job that is ready. */
void complete_unready_job(MuxTest *t);
void complete_job(MuxTest *t);

/* --- the guest and its devices --- */

/* The migration goes on when one of those that follow is done. */
void keep_in_precopy(MuxTest *t);
void reset_guest(MuxTest *t);
/* Refused */
void move_disk_to_iothread(MuxTest *t);
void unplug_disk(MuxTest *t);

/* --- errors of the images: protocols for MuxTest --- */

#define BAD_OFFSET (10 * MiB)       /* sector 20480 */
#define BLKDEBUG \
    "driver=blkdebug,image.driver=file,image.cache.no-flush=on,inject-error.0."
#define AT_BAD_SECTOR "event=none,inject-error.0.sector=20480,"
#define IMAGE "image.filename="
#define FAILING_WRITE(error) \
    BLKDEBUG "errno=" error ",inject-error.0." AT_BAD_SECTOR \
    "inject-error.0.iotype=write," IMAGE
#define FAILING_READ \
    BLKDEBUG "once=on,inject-error.0." AT_BAD_SECTOR \
    "inject-error.0.iotype=read," IMAGE
#define FAILING_FLUSH \
    BLKDEBUG "once=on,inject-error.0.event=none,inject-error.0.iotype=flush," \
    IMAGE
/* The mirror flushes when it is in step; then comes the phase "converge". */
#define SECOND_FLUSH \
    "event=flush_to_disk,inject-error.0.state=2,inject-error.0.errno=5," \
    "set-state.0.event=flush_to_disk,set-state.0.state=1," \
    "set-state.0.new_state=2,"

void write_bad_sector(MuxTest *t);

/* --- descriptors --- */

/* Let @who open @spare descriptors more, or as many as it may. */
void limit_descriptors(QTestState *who, unsigned spare);
void unlimit_descriptors(QTestState *who);

#endif
