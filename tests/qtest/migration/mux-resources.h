/*
 * What a QEMU process holds, as it tells itself and as /proc tells of it
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef MUX_RESOURCES_H
#define MUX_RESOURCES_H

#include "libqtest.h"

typedef struct MuxResources {
    char *nodes;                /* names of the block nodes */
    unsigned num_jobs;
    bool yank;                  /* a migration or a block node can be yanked */
    unsigned num_fds;           /* open descriptors; 0: not to be found out */
    char *threads;              /* names, but of workers and RCU */
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

/*
 * Returns: bytes of memory that are no file's, the guest's RAM included; 0
 * where this cannot be found out or, because of a sanitizer, means nothing.
 */
uint64_t mux_resources_memory(QTestState *who);

#endif
