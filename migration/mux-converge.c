/*
 * Migration over a multiplexed connection: may the guest be stopped?
 *
 * Owns the round trips that tell what has arrived at the destination.  Never
 * decides by itself; the migration thread asks (mux_converge_fits()).
 *
 * The question is a flush of a disk.  It goes behind all that was sent before,
 * whichever stream that was on, and so will the last bytes of the guest; and
 * what is flushed now need not be flushed while the guest is stopped.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/lockable.h"
#include "qemu/timer.h"
#include "delivery-rate.h"
#include "migration.h"
#include "mux-converge.h"
#include "options.h"
#include "trace.h"

/* A disk is flushed so often at most. */
#define MUX_CONVERGE_INTERVAL_NS (10 * SCALE_MS)

typedef struct MuxConvergeDisk {
    MuxConverge *c;
    DiskMirror *d;
    QEMUTimer *timer;
    uint64_t ram_sent;          /* before the trip that is under way */
    /* Protected by c->lock */
    DeliveryTrip trip;          /* the one under way, or the last one */
    bool asking;                /* it is under way */
    int64_t took;               /* ns: the last one that was answered */
} MuxConvergeDisk;

struct MuxConverge {
    MuxConvergeSentFunc *sent;
    void *opaque;
    QemuMutex lock;             /* protects what follows */
    GPtrArray *disks;           /* MuxConvergeDisk *; BQL held for changes */
    DeliveryRate rate;
    uint64_t ram_arrived;       /* bytes, at least */
    bool news;                  /* since mux_converge_wait() returned */
    QemuCond told;              /* there are news */
};

static void mux_converge_disk_free(MuxConvergeDisk *cd)
{
    timer_free(cd->timer);
    g_free(cd);
}

MuxConverge *mux_converge_new(MuxConvergeSentFunc *sent, void *opaque)
{
    MuxConverge *c = g_new0(MuxConverge, 1);

    c->sent = sent;
    c->opaque = opaque;
    c->disks = g_ptr_array_new_with_free_func(
        (GDestroyNotify)mux_converge_disk_free);
    qemu_mutex_init(&c->lock);
    qemu_cond_init(&c->told);
    delivery_rate_init(&c->rate);
    return c;
}

void mux_converge_free(MuxConverge *c)
{
    assert(!c->disks->len);
    g_ptr_array_unref(c->disks);
    qemu_cond_destroy(&c->told);
    qemu_mutex_destroy(&c->lock);
    g_free(c);
}

static void mux_converge_ask(void *opaque)
{
    MuxConvergeDisk *cd = opaque;
    MuxConvergeSent sent = cd->c->sent(cd->c->opaque);

    cd->ram_sent = sent.ram;
    WITH_QEMU_LOCK_GUARD(&cd->c->lock) {
        cd->trip.sent = sent.ram + sent.disks;
        cd->trip.asked = qemu_clock_get_ns(QEMU_CLOCK_REALTIME);
        cd->asking = true;
    }
    disk_mirror_flush(cd->d);
}

void mux_converge_start(MuxConverge *c, GPtrArray *disks)
{
    for (guint i = 0; i < disks->len; i++) {
        MuxConvergeDisk *cd = g_new0(MuxConvergeDisk, 1);

        cd->c = c;
        cd->d = g_ptr_array_index(disks, i);
        cd->timer = timer_new_ns(QEMU_CLOCK_REALTIME, mux_converge_ask, cd);
        WITH_QEMU_LOCK_GUARD(&c->lock) {
            g_ptr_array_add(c->disks, cd);
        }
        disk_mirror_converge(cd->d);
        mux_converge_ask(cd);
    }
}

static void mux_converge_tell(MuxConverge *c)
{
    c->news = true;
    qemu_cond_broadcast(&c->told);
}

void mux_converge_flushed(MuxConverge *c, DiskMirror *d)
{
    for (guint i = 0; i < c->disks->len; i++) {
        MuxConvergeDisk *cd = g_ptr_array_index(c->disks, i);

        if (cd->d != d) {
            continue;
        }
        WITH_QEMU_LOCK_GUARD(&c->lock) {
            cd->trip.answered = qemu_clock_get_ns(QEMU_CLOCK_REALTIME);
            cd->asking = false;
            cd->took = cd->trip.answered - cd->trip.asked;
            delivery_rate_add(&c->rate, &cd->trip);
            c->ram_arrived = MAX(c->ram_arrived, cd->ram_sent);
            trace_migration_mux_converge_trip(disk_mirror_name(d), cd->took,
                                              cd->trip.sent,
                                              delivery_rate_get(&c->rate));
            mux_converge_tell(c);
        }
        timer_mod(cd->timer, MAX(cd->trip.answered, cd->trip.asked +
                                 MUX_CONVERGE_INTERVAL_NS));
    }
}

void mux_converge_stop(MuxConverge *c)
{
    QEMU_LOCK_GUARD(&c->lock);
    g_ptr_array_set_size(c->disks, 0);
}

void mux_converge_wake(MuxConverge *c)
{
    QEMU_LOCK_GUARD(&c->lock);
    mux_converge_tell(c);
}

void mux_converge_wait(MuxConverge *c, int ms)
{
    QEMU_LOCK_GUARD(&c->lock);
    if (!c->news) {
        qemu_cond_timedwait(&c->told, &c->lock, ms);
    }
    c->news = false;
}

/* How long the slowest disk last took to answer, or is taking */
static int64_t mux_converge_slowest(MuxConverge *c)
{
    int64_t now = qemu_clock_get_ns(QEMU_CLOCK_REALTIME);
    int64_t slowest = 0;

    for (guint i = 0; i < c->disks->len; i++) {
        MuxConvergeDisk *cd = g_ptr_array_index(c->disks, i);

        slowest = MAX(slowest, cd->took);
        if (cd->asking) {
            slowest = MAX(slowest, now - cd->trip.asked);
        }
    }
    return slowest;
}

bool mux_converge_fits(MuxConverge *c, uint64_t ram, uint64_t disks)
{
    MuxConvergeSent sent = c->sent(c->opaque);
    int64_t limit = migrate_downtime_limit() * SCALE_MS;
    int64_t time, slowest;
    uint64_t under_way;

    QEMU_LOCK_GUARD(&c->lock);
    if (!c->rate.count) {
        return false;
    }
    under_way = sent.ram - MIN(c->ram_arrived, sent.ram);
    time = delivery_rate_time(&c->rate, under_way + ram + disks,
                              migrate_avail_switchover_bandwidth());
    /*
     * With the guest stopped there are round trips, one after the other: two
     * to complete a disk, one to agree on who runs the guest.  They are short
     * then, and there is no way around them.
     */
    limit -= MIN(3 * c->rate.shortest, limit / 2);
    slowest = mux_converge_slowest(c);
    trace_migration_mux_converge_fits(under_way, ram, disks, time, limit,
                                      slowest, c->rate.shortest);
    return time <= limit && slowest - c->rate.shortest <= limit;
}
