/*
 * A link of a given speed and length between two engines, in virtual time
 *
 * Each direction has a transport that takes a bounded number of bytes, sends
 * them at the link's rate, and delivers them half a round trip later.  What a
 * writer sends is one endless piece of memory, and is not copied on the way:
 * a simulated gigabyte costs next to nothing.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef TESTS_UNIT_MUX_LINK_SIM_H
#define TESTS_UNIT_MUX_LINK_SIM_H

#include "mux-engine-helpers.h"

#define SIM_US      1000LL
#define SIM_MS      (1000 * SIM_US)
#define SIM_S       (1000 * SIM_MS)
#define SIM_GBIT    125000000LL         /* bytes per second */

/* One direction of one stream, with an application at each end. */
typedef struct SimFlow {
    MuxStream *from, *to;
    int side;                   /* of the writer */
    bool writing;               /* always has more to send */
    bool reading;               /* takes all at once */
    size_t piece;               /* what it offers at once, bytes */
    bool offered;
    uint64_t read;              /* bytes that the reader took */
} SimFlow;

typedef struct SimSide {
    MuxEngine *e;
    GQueue pieces;              /* on the way to the other side */
    int64_t line_free;          /* when the line has sent what it has, ns */
    uint64_t taken;             /* bytes that the transport has taken */
} SimSide;

typedef struct Sim {
    SimSide side[2];
    int64_t now;                /* ns */
    int64_t rate;               /* of each direction, bytes per second */
    int64_t delay;              /* one way, ns */
    size_t buffer;              /* of each transport, bytes */
    size_t write_max;           /* that it takes at once, bytes */
    GPtrArray *flows;
} Sim;

/* HELLOs are exchanged.  @source, @destination: NULL for defaults. */
void sim_init(Sim *sim, int64_t rate, int64_t rtt, const MuxConfig *source,
              const MuxConfig *destination);
void sim_cleanup(Sim *sim);

/* A stream, accepted.  What its opener writes the other side reads at once. */
SimFlow *sim_open(Sim *sim, int opener, const char *name);

/* Let what happens in the next @ns happen. */
void sim_run(Sim *sim, int64_t ns);

#endif
