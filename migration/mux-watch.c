/*
 * Migration over a multiplexed connection: time limits at the source
 *
 * A thread of the session checks, whatever the main loop does, how long the
 * step of the migration that is in progress has been taking, and each request
 * of a mirror.  A silent peer is detected below this, by
 * mux_session_set_silence().
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "block/aio.h"
#include "qemu/lockable.h"
#include "qemu/main-loop.h"
#include "qemu/timer.h"
#include "system/runstate.h"
#include "mux-limits.h"
#include "mux-source.h"
#include "options.h"

/*
 * A gap this long between ticks means that this process was stopped or starved;
 * one between received data, although PING is sent, that the peer or the
 * network was.
 */
#define MUX_WATCH_AWAY_NS (2 * NANOSECONDS_PER_SECOND)
/* The main loop has not responded for this time: it may wait for a disk */
#define MUX_WATCH_BLOCKED_NS NANOSECONDS_PER_SECOND

static bool mux_watch_switching(MuxSource *m)
{
    return mux_link_phase(m->link) >= MIGRATION_PHASE_SWITCHOVER;
}

/*
 * Time limits for the requests to a disk of the destination (@ms) and for its
 * flushes (@flush_ms); 0: none.  A flush may have much to write, and the guest
 * does not wait for it.  An unread reply is the source's delay, not the
 * destination's.  The steps of the switchover have limits of their own.
 */
static void mux_watch_disk_limits(MuxSource *m, const DiskWatchTime *t,
                                  const DiskWait *wait, uint32_t *ms,
                                  uint32_t *flush_ms)
{
    if (wait->unread || (mux_watch_switching(m) && !runstate_is_running())) {
        *ms = *flush_ms = 0;
    } else if (t->blocked) {
        *ms = *flush_ms = mux_limit_guest_waits_ms();
    } else {
        *ms = migrate_channel_mux_stop_timeout();
        *flush_ms = migrate_channel_mux_timeout();
    }
}

/*
 * How long does a request take?  While neither the guest nor the main loop
 * waits for it, replies to other requests show that the disk works.
 */
static int64_t mux_watch_request_ns(MuxSource *m, const DiskWatchTime *t,
                                    const DiskWait *wait)
{
    return mux_link_phase(m->link) < MIGRATION_PHASE_CONVERGE && !t->blocked ?
           MIN(wait->destination, wait->silent) : wait->destination;
}

static bool mux_watch_exceeds(int64_t ns, uint32_t ms)
{
    return ms && ns >= ms * (int64_t)SCALE_MS;
}

static MuxFailure *mux_watch_disk(DiskMirror *d, const DiskWatchTime *t,
                                  const DiskWait *wait, void *opaque)
{
    MuxSource *m = opaque;
    const char *name = disk_mirror_stream_name(d);
    uint32_t ms, flush_ms;

    mux_watch_disk_limits(m, t, wait, &ms, &flush_ms);
    if (mux_watch_exceeds(mux_watch_request_ns(m, t, wait), ms)) {
        return mux_failure_timeout(name, ms, "the destination to complete a "
                                   "disk request");
    }
    if (mux_watch_exceeds(wait->flush, flush_ms)) {
        return mux_failure_timeout(name, flush_ms,
                                   "the destination to flush the disk");
    }
    return NULL;
}

/* --- steps --- */

void mux_watch_begin_step(MuxSource *m, uint32_t ms, MuxStepLate *late)
{
    QEMU_LOCK_GUARD(&m->link->lock);
    m->step.late = ms ? late : NULL;
    m->step.ms = ms;
    m->step.expiry = get_clock() + ms * (int64_t)SCALE_MS;
}

void mux_watch_end_step(MuxSource *m)
{
    QEMU_LOCK_GUARD(&m->link->lock);
    m->step.late = NULL;
}

static MuxFailure *mux_watch_step(MuxSource *m, int64_t now)
{
    MuxStep step;

    WITH_QEMU_LOCK_GUARD(&m->link->lock) {
        if (mux_watch_switching(m) && runstate_is_running()) {
            /* Before it stops the guest, the migration thread needs the BQL */
            m->step.expiry = now + m->step.ms * (int64_t)SCALE_MS;
        }
        step = m->step;
    }
    /* Without a failure, it is the main loop that is late: ask again */
    return step.late && now >= step.expiry ? step.late(m, step.ms) : NULL;
}

/* --- the main loop --- */

static void mux_watch_respond_bh(void *opaque)
{
    MuxSource *m = opaque;

    qatomic_set(&m->asked, false);
    mux_source_unref(m);
}

/*
 * Returns: the end of the last interruption of the peer or of this process.
 * The times of requests restart then: an interruption is not a slow disk.
 */
static int64_t mux_watch_resumed_at(MuxSource *m, int64_t now, int64_t heard)
{
    m->away = now - m->ticked >= MUX_WATCH_AWAY_NS;
    if (m->away || heard - m->heard >= MUX_WATCH_AWAY_NS) {
        m->resumed = now;
    }
    m->ticked = now;
    m->heard = heard;
    return m->resumed;
}

/*
 * Returns: when the main loop last ran.  It does not while it waits in a nested
 * event loop, or for the BQL.  Thread of the session.
 */
static int64_t mux_watch_responsive(MuxSource *m, int64_t now)
{
    if (m->away || !qatomic_read(&m->asked)) {
        m->responsive = now;
    }
    if (!qatomic_xchg(&m->asked, true)) {
        aio_bh_schedule_oneshot(iohandler_get_aio_context(),
                                mux_watch_respond_bh, mux_source_ref(m));
    }
    return m->responsive;
}

void mux_watch_tick(MuxSession *session, int64_t now, int64_t heard,
                    void *opaque)
{
    MuxSource *m = opaque;
    DiskWatchTime t = { .now = now, .heard = heard };
    g_autoptr(MuxFailure) failure = NULL;
    bool ping = false;

    t.resumed = mux_watch_resumed_at(m, now, heard);
    t.responsive = mux_watch_responsive(m, now);
    t.blocked = now - t.responsive >= MUX_WATCH_BLOCKED_NS;
    failure = mux_watch_step(m, now) ?:
        disk_set_watch(m->disks, &t, mux_watch_disk, m, &ping);
    if (failure) {
        mux_source_fail(m, failure);
    } else if (ping) {
        mux_session_ping(session);
    }
}
