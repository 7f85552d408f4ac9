/*
 * Migration over a multiplexed connection: what has arrived?
 *
 * Owns the round trips that measure what has arrived at the destination.
 *
 * A round trip is a flush of a disk.  It follows all data that was sent before,
 * on any stream, as the last data of the guest will; and what is flushed now
 * need not be flushed while the guest is stopped.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/lockable.h"
#include "qemu/timer.h"
#include "delivery-rate.h"
#include "delivery-probe.h"
#include "trace.h"

/* Minimum interval between flushes of a disk */
#define DELIVERY_PROBE_INTERVAL_NS (10 * SCALE_MS)

typedef struct DeliveryProbeDisk {
    DeliveryProbe *p;
    DiskMirror *d;
    QEMUTimer *timer;
    uint64_t ram_sent;          /* before the trip that is under way */
    /* Protected by p->lock */
    DeliveryTrip trip;          /* the one under way, or the last one */
    bool asking;                /* it is under way */
    int64_t took;               /* ns: the last one that was answered */
} DeliveryProbeDisk;

struct DeliveryProbe {
    DeliveryProbeSentFunc *sent;
    void *opaque;
    QemuMutex lock;             /* protects what follows */
    GPtrArray *disks;           /* DeliveryProbeDisk *; BQL held for changes */
    DeliveryRate rate;
    uint64_t ram_arrived;       /* bytes, at least */
    bool replied;               /* since delivery_probe_wait() returned */
    QemuCond changed;           /* @replied is set */
};

static void delivery_probe_disk_free(DeliveryProbeDisk *cd)
{
    timer_free(cd->timer);
    g_free(cd);
}

DeliveryProbe *delivery_probe_new(DeliveryProbeSentFunc *sent, void *opaque)
{
    DeliveryProbe *p = g_new0(DeliveryProbe, 1);

    p->sent = sent;
    p->opaque = opaque;
    p->disks = g_ptr_array_new_with_free_func(
        (GDestroyNotify)delivery_probe_disk_free);
    qemu_mutex_init(&p->lock);
    qemu_cond_init(&p->changed);
    delivery_rate_init(&p->rate);
    return p;
}

void delivery_probe_free(DeliveryProbe *p)
{
    assert(!p->disks->len);
    g_ptr_array_unref(p->disks);
    qemu_cond_destroy(&p->changed);
    qemu_mutex_destroy(&p->lock);
    g_free(p);
}

static void delivery_probe_ask(void *opaque)
{
    DeliveryProbeDisk *cd = opaque;
    DeliveryProbeSent sent = cd->p->sent(cd->p->opaque);

    cd->ram_sent = sent.ram;
    WITH_QEMU_LOCK_GUARD(&cd->p->lock) {
        cd->trip.sent = sent.ram + sent.disks;
        cd->trip.asked = qemu_clock_get_ns(QEMU_CLOCK_REALTIME);
        cd->asking = true;
    }
    disk_mirror_flush(cd->d);
}

void delivery_probe_start(DeliveryProbe *p, GPtrArray *disks)
{
    for (guint i = 0; i < disks->len; i++) {
        DeliveryProbeDisk *cd = g_new0(DeliveryProbeDisk, 1);

        cd->p = p;
        cd->d = g_ptr_array_index(disks, i);
        cd->timer = timer_new_ns(QEMU_CLOCK_REALTIME, delivery_probe_ask, cd);
        WITH_QEMU_LOCK_GUARD(&p->lock) {
            g_ptr_array_add(p->disks, cd);
        }
        disk_mirror_converge(cd->d);
        delivery_probe_ask(cd);
    }
}

static void delivery_probe_notify(DeliveryProbe *p)
{
    p->replied = true;
    qemu_cond_broadcast(&p->changed);
}

void delivery_probe_flushed(DeliveryProbe *p, DiskMirror *d)
{
    for (guint i = 0; i < p->disks->len; i++) {
        DeliveryProbeDisk *cd = g_ptr_array_index(p->disks, i);

        if (cd->d != d) {
            continue;
        }
        WITH_QEMU_LOCK_GUARD(&p->lock) {
            cd->trip.answered = qemu_clock_get_ns(QEMU_CLOCK_REALTIME);
            cd->asking = false;
            cd->took = cd->trip.answered - cd->trip.asked;
            delivery_rate_add(&p->rate, &cd->trip);
            p->ram_arrived = MAX(p->ram_arrived, cd->ram_sent);
            trace_delivery_probe_trip(disk_mirror_stream_name(d), cd->took,
                                      cd->trip.sent,
                                      delivery_rate_get(&p->rate));
            delivery_probe_notify(p);
        }
        timer_mod(cd->timer, MAX(cd->trip.answered, cd->trip.asked +
                                 DELIVERY_PROBE_INTERVAL_NS));
    }
}

void delivery_probe_stop(DeliveryProbe *p)
{
    QEMU_LOCK_GUARD(&p->lock);
    g_ptr_array_set_size(p->disks, 0);
}

void delivery_probe_wake(DeliveryProbe *p)
{
    QEMU_LOCK_GUARD(&p->lock);
    delivery_probe_notify(p);
}

void delivery_probe_wait(DeliveryProbe *p, int ms)
{
    QEMU_LOCK_GUARD(&p->lock);
    if (!p->replied) {
        qemu_cond_timedwait(&p->changed, &p->lock, ms);
    }
    p->replied = false;
}

/* The time of the slowest disk's last flush, or of one that is pending */
static int64_t delivery_probe_slowest(DeliveryProbe *p)
{
    int64_t now = qemu_clock_get_ns(QEMU_CLOCK_REALTIME);
    int64_t slowest = 0;

    for (guint i = 0; i < p->disks->len; i++) {
        DeliveryProbeDisk *cd = g_ptr_array_index(p->disks, i);

        slowest = MAX(slowest, cd->took);
        if (cd->asking) {
            slowest = MAX(slowest, now - cd->trip.asked);
        }
    }
    return slowest;
}

void delivery_probe_get(DeliveryProbe *p, SwitchoverInputs *in)
{
    DeliveryProbeSent sent = p->sent(p->opaque);

    QEMU_LOCK_GUARD(&p->lock);
    in->ram_in_flight = sent.ram - MIN(p->ram_arrived, sent.ram);
    in->rate = delivery_rate_get(&p->rate);
    in->round_trip = p->rate.shortest;
    in->flush = delivery_probe_slowest(p);
}
