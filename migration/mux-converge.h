/*
 * Migration over a multiplexed connection: may the guest be stopped?
 *
 * Keeps asking the destination, once disks and RAM are near to each other, to
 * flush the disks, and learns from the answers what is still under way.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef MIGRATION_MUX_CONVERGE_H
#define MIGRATION_MUX_CONVERGE_H

#include "disk-mirror.h"

typedef struct MuxConverge MuxConverge;

typedef struct MuxConvergeSent {
    uint64_t ram, disks;        /* bytes so far, on all streams of each kind */
} MuxConvergeSent;

/* Any thread. */
typedef MuxConvergeSent MuxConvergeSentFunc(void *opaque);

MuxConverge *mux_converge_new(MuxConvergeSentFunc *sent, void *opaque);
/* mux_converge_stop() must have been called if it was started. */
void mux_converge_free(MuxConverge *c);

/* Bring @disks (DiskMirror *) level, as far as that is possible.  Main loop. */
void mux_converge_start(MuxConverge *c, GPtrArray *disks);

/* A DiskMirror's ops->flushed() was called.  Main loop. */
void mux_converge_flushed(MuxConverge *c, DiskMirror *d);

/* Stop the periodic flushes; idempotent.  With the BQL. */
void mux_converge_stop(MuxConverge *c);

/* End the wait below, for a reason of the caller's.  Any thread. */
void mux_converge_wake(MuxConverge *c);

/*
 * Wait until the destination has answered once more since the last call, or
 * mux_converge_wake() was called, but for @ms at most.  One thread.
 */
void mux_converge_wait(MuxConverge *c, int ms);

/*
 * With @ram bytes not yet sent, and @disks bytes that the destination has not
 * confirmed, would the guest have to be stopped for no longer than the
 * downtime limit?  Any thread.
 */
bool mux_converge_fits(MuxConverge *c, uint64_t ram, uint64_t disks);

#endif
