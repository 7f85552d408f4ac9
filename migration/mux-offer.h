/*
 * Migration over a multiplexed connection: the offer
 *
 * What the source offers to migrate, and whether that is what the destination
 * was told to expect: `offer` and `rejected` in docs/interop/migration-mux.rst.
 * Main loop.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef MIGRATION_MUX_OFFER_H
#define MIGRATION_MUX_OFFER_H

#include "channel-args.h"
#include "qapi/qapi-types-migration-control.h"

#define MUX_OFFER_TOKEN_DIGITS  32

/* A new token for `accepted`, to be freed; NULL with @errp set */
char *mux_offer_token_new(Error **errp);
bool mux_offer_token_ok(const char *token);

/*
 * The offer of a source that was asked to migrate @channels.
 *
 * Returns: NULL with @errp set if a disk is gone
 */
MigrationControl *mux_offer_new(const MigrationChannels *channels,
                                Error **errp);

/*
 * Compare @offer with what a destination was told to expect.
 *
 * Returns: all reasons to reject it; NULL if it fits
 */
MigrationControlReasonList *mux_offer_check(const MigrationControlOffer *offer,
                                            const MigrationChannels *own);

/* The @reasons as one error, which names the streams; from either side. */
Error *mux_offer_error(const MigrationControlReasonList *reasons);

#endif
