/*
 * Migration: how long a disk has been taking for a request
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "block/block_int.h"
#include "block/nbd-channel.h"
#include "qemu/timer.h"
#include "disk-watch.h"

/* A request that is unanswered for this time has PING sent */
#define DISK_WATCH_PING_NS NANOSECONDS_PER_SECOND

void disk_watch_init(DiskWatch *w)
{
    *w = (DiskWatch) {};
    w->sent_at = w->received_at = w->idle_since = get_clock();
}

/* How long has a request from @since been waited for? */
static int64_t disk_watch_waited(int64_t since, const DiskWatchTime *t)
{
    if (since == INT64_MAX) {
        return 0;
    }
    since = MAX(since, t->resumed);
    if (t->blocked) {
        return t->now - MAX(since, t->responsive);
    }
    return MAX(t->heard - since, 0);
}

static void disk_watch_target(DiskWatch *w, const DiskWatchTime *t,
                              QIOChannelMux *ioc, BlockDriverState *target,
                              DiskWait *wait)
{
    NBDChannelRequests requests;
    uint64_t sent, received;
    int64_t oldest;
    bool unread;

    qio_channel_mux_get_bytes(ioc, &sent, &received);
    nbd_channel_get_requests(target, &requests);
    /* Input that is being read without an end does not answer a request */
    unread = w->received == received && qio_channel_mux_has_input(ioc);
    /* Reading may have begun, and not have reached the oldest reply yet */
    wait->unread = unread || w->unread;
    w->unread = unread;
    if (w->received != received) {
        w->received = received;
        w->received_at = t->now;
    }
    if (!requests.sending || w->sent != sent) {
        w->sent = sent;
        w->sent_at = t->now;
    }
    oldest = MIN(requests.oldest, requests.sending ? w->sent_at : INT64_MAX);
    wait->destination = disk_watch_waited(oldest, t);
    wait->flush = disk_watch_waited(requests.oldest_flush, t);
    wait->silent = t->now - w->received_at;
    wait->ping = t->now - MIN(MIN(oldest, requests.oldest_flush), t->now) >=
                 DISK_WATCH_PING_NS;
}

DiskWait disk_watch_look(DiskWatch *w, const DiskWatchTime *t,
                         QIOChannelMux *ioc, BlockDriverState *target,
                         bool source)
{
    DiskWait wait = {};

    disk_watch_target(w, t, ioc, target, &wait);
    /* A request to the destination is what the source's waits for, then */
    if (!source || qatomic_read(&target->in_flight)) {
        w->idle_since = t->now;
    }
    wait.source = t->now - w->idle_since;
    return wait;
}
