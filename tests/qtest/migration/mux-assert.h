/*
 * QTest helpers for migration over a multiplexed connection: how a migration
 * ends, and the error that a side reports
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef MUX_ASSERT_H
#define MUX_ASSERT_H

#include "migration/mux-util.h"

/* Returns: the status that the source's migration ends with, to be freed */
char *mux_wait_end(MuxTest *t);

/*
 * Returns: the error-desc of @who, which has one of @texts in it; to be freed
 */
char *mux_assert_has_one_of(QTestState *who, const char *const *texts);

/*
 * The error of @who names the phase, a stream, and a cause: one of @texts.
 * @later: the phase may be one that comes later than @phase.
 */
void mux_assert_failure(QTestState *who, const char *phase, bool later,
                        const char *const *texts);

/* @who reports no error: a user has asked for the end. */
void mux_assert_no_error(QTestState *who);

#endif
