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
 * Assert that the error of @who contains one of @texts.
 *
 * Returns: its error-desc, to be freed
 */
char *mux_assert_has_one_of(QTestState *who, const char *const *texts);

/*
 * Assert that the error of @who names the phase, a stream, and a cause: one of
 * @texts.  @later: it may also name a later phase.
 */
void mux_assert_failure(QTestState *who, const char *phase, bool later,
                        const char *const *texts);

/* Assert that @who reports no error, because a user ended the migration. */
void mux_assert_no_error(QTestState *who);

#endif
