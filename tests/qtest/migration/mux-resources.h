/*
 * What a QEMU process holds, as it tells itself and as /proc tells of it
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef MUX_RESOURCES_H
#define MUX_RESOURCES_H

#include "libqtest.h"

/*
 * A pool of threads that neither grows nor shrinks, so that threads can be
 * counted.  It is there from the first request on.
 */
#define MUX_NUM_WORKERS 4
#define MUX_WORKERS_OPTION \
    "-object main-loop,id=main-loop,thread-pool-min=4,thread-pool-max=4 "

/* Wait until the pool is complete. */
void mux_resources_wait_workers(QTestState *who);

typedef struct MuxResources {
    char *nodes;                /* names of the block nodes */
    unsigned num_jobs;
    bool yank;                  /* a migration or a block node can be yanked */
    unsigned num_fds;           /* open descriptors; 0: not to be found out */
    unsigned num_threads;
    char *threads;              /* their names, for people to read */
    char *node_states;          /* and numbers of dirty bitmaps */
    unsigned num_inactive;      /* nodes of a guest that runs elsewhere */
    char *others;               /* exports, live streams, blockers */
} MuxResources;

/* To be freed with mux_resources_clear() */
void mux_resources_get(MuxResources *h, QTestState *who);
void mux_resources_clear(MuxResources *h);

/*
 * Returns: whether @h has nothing that @before has not.  @given_up: the guest
 * went elsewhere meanwhile.
 */
bool mux_resources_match(const MuxResources *h, const MuxResources *before,
                        bool given_up);

#endif
