/*
 * The resources of a QEMU process, as reported by QMP and by /proc
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef MUX_RESOURCES_H
#define MUX_RESOURCES_H

#include "libqtest.h"

/*
 * A thread pool of a fixed size, so that threads can be counted.  The first
 * request creates it.
 */
#define MUX_NUM_WORKERS 4
#define MUX_WORKERS_OPTION \
    "-object main-loop,id=main-loop," \
    "thread-pool-min=" stringify(MUX_NUM_WORKERS) "," \
    "thread-pool-max=" stringify(MUX_NUM_WORKERS) " "

/* Wait until the pool is complete, where that can be found out. */
void mux_resources_wait_workers(QTestState *who);

typedef struct MuxResources {
    char *nodes;                /* names of the block nodes */
    unsigned num_jobs;
    bool yank;                  /* a migration or a block node can be yanked */
    unsigned num_fds;           /* open descriptors; 0: unknown */
    unsigned num_threads;       /* 0: not to be found out */
    char *threads;              /* their names, for the log */
    char *node_states;          /* read-only, number of dirty bitmaps */
    unsigned num_inactive;      /* nodes of a guest that runs elsewhere */
    char *others;               /* exports, live streams, blockers */
} MuxResources;

/* To be freed with mux_resources_clear() */
void mux_resources_get(MuxResources *h, QTestState *who);
void mux_resources_clear(MuxResources *h);

/*
 * Returns: whether @h has no resources that @before does not have.
 * @given_up: the guest has been handed over in between.
 */
bool mux_resources_match(const MuxResources *h, const MuxResources *before,
                         bool given_up);

#endif
