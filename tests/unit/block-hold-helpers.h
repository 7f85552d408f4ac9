/*
 * Helpers of unit tests: nodes that hold requests, so that the order of events
 * is the same in each run
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef BLOCK_HOLD_HELPERS_H
#define BLOCK_HOLD_HELPERS_H

#include "block/block_int.h"
#include "iothread.h"

/* Returns: a node of @driver with @size bytes */
BlockDriverState *hold_new_node(BlockDriver *driver, const char *name,
                                int64_t size);

/*
 * Wait until hold_release().  *@held says that a request waits; read it with
 * qatomic_load_acquire().
 */
void coroutine_fn hold_request(Coroutine **held);

/* Let the request go on, in its AioContext. */
void hold_release(Coroutine **held);

/* Let @iothread run all that is scheduled so far, without polling here. */
void hold_run_iothread(IOThread *iothread);

#endif
