/*
 * QTest helpers for migration over a multiplexed connection: how a migration
 * with a relay between the sides ends, and what they say of it
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef MUX_ASSERT_H
#define MUX_ASSERT_H

#include "migration/mux-util.h"

#define FIRE_TIMEOUT_MS 60000       /* for mux_relay_wait_fired() */

/* Texts: "A|B" is either of the two. */
#define RESET "Connection reset by peer|Broken pipe"
/* Who writes just then, or has not been read to the end, sees the latter. */
#define CLOSED "closed the connection|" RESET
#define NOT_HANDED_OVER \
    "everything was loaded, but the source did not hand the guest over: "
#define JOB_ENDED \
    "stream 'nbd-disk0': job 'nbd-disk0' was ended by someone other than the " \
    "migration"

/* The relay's fault of this kind at this place, which may be "" */
void add_fault(MuxRelay *relay, const char *kind, const char *place);

/* The first frame of disk0 in the phase "converge" */
#define PLACE_CONVERGE ",frame=DATA:nbd-disk0,after=DATA:main"

/*
 * Migrate until the guest is stopped.  From "converge" on everything takes long
 * enough to see that; this is the relay's first fault.
 */
void migrate_until_stopped(MuxTest *t, MuxRelay *relay);

/* Returns: the status that the source's migration ends with, to be freed */
char *wait_for_end(MuxTest *t);

/* Returns: the error-desc of @who, with one of @texts in it; to be freed */
char *assert_has_one_of(QTestState *who, const char *texts);

/*
 * One message, that names phase, stream and cause.  @late: the phase may be one
 * that comes later than @phase.
 */
void assert_says(QTestState *who, const char *phase, bool late,
                 const char *texts);

/* Somebody asked for it: no error. */
void assert_says_nothing(QTestState *who);

#endif
