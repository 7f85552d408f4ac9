/*
 * Migration over a multiplexed connection: the offer
 *
 * What the source offers to migrate, and whether that is what the destination
 * expects: `offer` and `rejected` in docs/interop/migration-mux.rst.
 * Main loop.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef MIGRATION_MUX_OFFER_H
#define MIGRATION_MUX_OFFER_H

#include "channel-args.h"
#include "migration/mux/failure.h"
#include "qapi/qapi-types-migration-control.h"

#define MUX_OFFER_TOKEN_DIGITS  32

/* A new token for `accepted`, to be freed; NULL with @failp set */
char *mux_offer_token_new(MuxFailure **failp);
bool mux_offer_token_ok(const char *token);

/*
 * The offer of a source that was asked to migrate @channels.
 *
 * Returns: NULL with @failp set if a disk is gone
 */
MigrationControl *mux_offer_new(const MigrationChannels *channels,
                                MuxFailure **failp);

/*
 * Compare @offer with @own, which migrate-incoming lists.
 *
 * Returns: all reasons to reject it; NULL if it fits
 */
MigrationControlReasonList *mux_offer_check(const MigrationControlOffer *offer,
                                            const MigrationChannels *own);

/*
 * The failure because of @reasons, of the stream of the first one.
 * @by_peer: this side is the source.
 */
MuxFailure *mux_offer_failure(const MigrationControlReasonList *reasons,
                              bool by_peer);

#endif
