/*
 * Migration over a multiplexed connection: who may be the source
 *
 * Until the destination has accepted an offer, every connection is a candidate:
 * it completes the TLS handshake, if there is one, and sends an offer on stream
 * `control`.  The number of candidates and the time of each are limited.  The
 * first one whose offer matches becomes the source; all others are rejected
 * with a reason.  Where only one connection is
 * possible, as with 'fd' or 'exec', its failure fails the migration.
 *
 * All functions belong to the main loop.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef MIGRATION_MUX_CANDIDATES_H
#define MIGRATION_MUX_CANDIDATES_H

#include "io/channel.h"
#include "mux-link.h"

typedef struct MuxCandidatesOps {
    /*
     * The offer received on link->control was accepted, and the candidate
     * freed.  Takes ownership of @link and of the reference to @main: the
     * stream, not yet accepted, or NULL if the source has not opened it yet.
     */
    void (*accepted)(MuxLink *link, QIOChannelMux *main);

    /* The only possible connection has failed. */
    void (*failed)(const MuxFailure *failure);
} MuxCandidatesOps;

/* The TLS handshake on @ioc begins, or has failed because of @err. */
void mux_candidate_handshake(QIOChannel *ioc);
void mux_candidate_handshake_failed(QIOChannel *ioc, const Error *err);

/*
 * @ioc was accepted, or has completed the TLS handshake.  @ops are those of
 * all candidates.
 *
 * Returns: false, with @ioc closed, if there are too many already
 */
bool mux_candidates_admit(QIOChannel *ioc, const MuxCandidatesOps *ops);

/* Serve @ioc, of which a reference is taken; its handshake, if any, is done. */
void mux_candidate_serve(QIOChannel *ioc);

/* Reject all because of @why; @wait: until that has been sent. */
void mux_candidates_end(const MuxFailure *why, bool wait);

#endif
