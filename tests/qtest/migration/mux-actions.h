/*
 * QTest helpers for migration over a multiplexed connection: the actions that
 * the catalogue of faults names
 *
 * Unless its name says otherwise, an action uses disk0 and its job nbd-disk0.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef MUX_ACTIONS_H
#define MUX_ACTIONS_H

#include "migration/mux-util.h"

typedef void MuxAction(MuxTest *t);

/* Returns: the action of that name; NULL if there is none */
MuxAction *mux_find_action(const char *name);

/* Reset what actions have set at the source, for its next migration. */
void mux_restore_source(MuxTest *t);

#endif
