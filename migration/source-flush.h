/*
 * Migration: flush the source's disks before the guest is stopped
 *
 * Stopping a guest flushes all nodes.  What the guest and the host have cached
 * until then would be written while the guest stands still.  So flush them
 * before, while the guest runs, and again until a flush is short or does not get
 * shorter.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef MIGRATION_SOURCE_FLUSH_H
#define MIGRATION_SOURCE_FLUSH_H

#include "block/block.h"

typedef struct SourceFlush SourceFlush;

/* Returns: whether @bs is not to be flushed.  Main loop. */
typedef bool SourceFlushSkip(BlockDriverState *bs, void *opaque);

/* Called when source_flush_done() may have changed.  Main loop. */
typedef void SourceFlushTold(void *opaque);

/*
 * Begin to flush all writable nodes but those that @skip tells, again and again,
 * until source_flush_stop().  @limit_ns is how long a flush may take that counts
 * as short.  Main loop.
 */
SourceFlush *source_flush_new(int64_t limit_ns, SourceFlushSkip *skip,
                              SourceFlushTold *told, void *opaque);

/*
 * No flush begins any more, and no callback follows; those in flight are not
 * waited for.  Idempotent; @f nullable.  With the BQL.
 */
void source_flush_stop(SourceFlush *f);

/* After source_flush_stop(); @f nullable.  Any thread. */
void source_flush_free(SourceFlush *f);

/* Is there little left to be flushed, or will there be no less?  Any thread. */
bool source_flush_done(SourceFlush *f);

#endif
