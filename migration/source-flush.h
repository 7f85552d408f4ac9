/*
 * Migration: flush the source's disks before the guest is stopped
 *
 * Stopping a guest flushes all nodes: data cached by QEMU and the host is then
 * written while the guest is stopped.  So flush the nodes while it still runs,
 * until a round is short, or took at least half as long as the one before; from
 * then on, once a second.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef MIGRATION_SOURCE_FLUSH_H
#define MIGRATION_SOURCE_FLUSH_H

#include "block/block.h"

typedef struct SourceFlush SourceFlush;

/* Returns: whether @bs is not to be flushed.  Main loop. */
typedef bool SourceFlushSkip(BlockDriverState *bs, void *opaque);

/*
 * A round is over, unless another one follows immediately; @err: a flush of it
 * failed.  Main loop.
 */
typedef void SourceFlushRoundDone(const Error *err, void *opaque);

/*
 * Flush all writable nodes, except those for which @skip returns true; repeat
 * until source_flush_stop(), or until a flush fails.  A round of up to
 * @limit_ns counts as short.  @release is the last callback: after
 * source_flush_stop(), once no flush is in flight.  Main loop.
 */
SourceFlush *source_flush_new(int64_t limit_ns, SourceFlushSkip *skip,
                              SourceFlushRoundDone *round_done,
                              GDestroyNotify release, void *opaque);

/*
 * No flush begins any more; those in flight are not waited for.  Idempotent; @f
 * nullable.  With the BQL.
 */
void source_flush_stop(SourceFlush *f);

/* Is no flush in flight?  @f nullable.  With the BQL. */
bool source_flush_idle(SourceFlush *f);

/* After source_flush_stop(); @f nullable.  Any thread. */
void source_flush_free(SourceFlush *f);

/*
 * Has a round taken at most @limit_ns, or at least half as long as the one
 * before?  Any thread.
 */
bool source_flush_done(SourceFlush *f);

#endif
