/*
 * Migration over a multiplexed connection: the switchover, at the source
 *
 * What the migration thread calls: whether the guest may be stopped, the
 * completion of the disks, the handover.  Events of the disks and of the peer
 * come from the main loop.  mux-source.c begins the migration, mux-source-end.c
 * ends it.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "block/aio.h"
#include "qemu/lockable.h"
#include "qemu/main-loop.h"
#include "qemu/timer.h"
#include "system/runstate.h"
#include "mux-limits.h"
#include "mux-migration.h"
#include "mux-source.h"
#include "options.h"
#include "qemu-file.h"
#include "savevm.h"
#include "trace.h"

/* The disks' rate is measured over this time, as that of RAM is */
#define MUX_SWITCHOVER_SAMPLE_NS (100 * 1000 * 1000LL)

static DeliveryProbeSent mux_switchover_sent(void *opaque)
{
    MuxSource *m = opaque;
    DeliveryProbeSent sum = { .disks = disk_set_sent(m->disks) };
    uint64_t sent, received;

    qio_channel_mux_get_bytes(m->main, &sum.ram, &received);
    QEMU_LOCK_GUARD(&m->link->lock);
    for (guint i = 0; i < m->channels->len; i++) {
        qio_channel_mux_get_bytes(g_ptr_array_index(m->channels, i),
                                  &sent, &received);
        sum.ram += sent;
    }
    return sum;
}

void mux_switchover_init(MuxSource *m)
{
    m->switchover.probe = delivery_probe_new(mux_switchover_sent, m);
    qemu_sem_init(&m->switchover.completed, 0);
    qemu_event_init(&m->switchover.loaded, false);
}

void mux_switchover_destroy(MuxSource *m)
{
    delivery_probe_free(m->switchover.probe);
    source_flush_free(m->switchover.flush);
    qemu_sem_destroy(&m->switchover.completed);
    qemu_event_destroy(&m->switchover.loaded);
}

void mux_switchover_wake(MuxSource *m)
{
    qemu_sem_post(&m->switchover.completed);
    qemu_event_set(&m->switchover.loaded);
    delivery_probe_wake(m->switchover.probe);
    if (m->s->state == MIGRATION_STATUS_PRE_SWITCHOVER) {
        /* The guest is stopped: no use in waiting for migrate-continue */
        qemu_sem_post(&m->s->pause_sem);
    }
}

void mux_switchover_stop(MuxSource *m)
{
    delivery_probe_stop(m->switchover.probe);
    source_flush_stop(m->switchover.flush);
}

bool mux_switchover_quiescent(MuxSource *m)
{
    return source_flush_idle(m->switchover.flush);
}

/* --- before RAM --- */

static MuxFailure *mux_switchover_setup_late(MuxSource *m, uint32_t ms)
{
    return mux_failure_timeout("main", ms, "the destination to accept data");
}

void mux_switchover_begin_setup(MuxSource *m)
{
    qio_channel_mux_hold_back(m->main);
    mux_watch_begin_step(m, mux_limit_setup_ms(),
                         mux_switchover_setup_late);
}

void migration_mux_end_setup(MigrationState *s)
{
    MuxSource *m = s->mux;
    Error *err = NULL;

    if (!m) {
        return;
    }
    /* Restart the limit: so far, not only the peer has taken time */
    mux_watch_begin_step(m, mux_limit_setup_ms(),
                         mux_switchover_setup_late);
    if (qio_channel_mux_write_held_back(m->main, &err) < 0) {
        qemu_file_set_error_obj(s->to_dst_file, -EIO, err);
    }
    mux_watch_end_step(m);
}

/* --- may the guest be stopped --- */

/* The guest, or its writes, wait for the destination. */
static void mux_switchover_limit_silence(MuxSource *m)
{
    mux_session_set_silence(m->link->session, mux_limit_guest_waits_ms());
}

static void mux_switchover_usual_silence(MuxSource *m)
{
    mux_session_set_silence(m->link->session, migrate_channel_mux_timeout());
}

/* The targets of the mirrors are flushed by delivery_probe_start(). */
static bool mux_switchover_skips_flush(BlockDriverState *bs, void *opaque)
{
    MuxSource *m = opaque;

    return disk_set_has_target(m->disks, bs);
}

static void mux_switchover_flush_round_done(const Error *err, void *opaque)
{
    MuxSource *m = opaque;

    if (err) {
        g_autoptr(MuxFailure) failure = mux_failure_from_error(NULL, err);

        mux_source_fail(m, failure);
    }
    delivery_probe_wake(m->switchover.probe);
}

static void mux_switchover_flush_stopped(void *opaque)
{
    MuxSource *m = opaque;

    mux_source_continue_cleanup(m);
    mux_source_unref(m);
}

static void mux_switchover_flush_source_bh(void *opaque)
{
    MuxSource *m = opaque;

    if (!mux_link_over(m->link)) {
        qatomic_set(&m->switchover.flush,
                    source_flush_new(
                        migrate_downtime_limit() * (int64_t)SCALE_MS,
                        mux_switchover_skips_flush,
                        mux_switchover_flush_round_done,
                        mux_switchover_flush_stopped, mux_source_ref(m)));
    }
    mux_source_unref(m);
}

/*
 * Begin to flush the source's nodes, unless that was done before.  Returns true
 * when there is little left to be flushed.  Migration thread.
 */
static bool mux_switchover_flush_source(MuxSource *m)
{
    SourceFlush *flush = qatomic_read(&m->switchover.flush);

    if (!m->switchover.flushing) {
        m->switchover.flushing = true;
        aio_bh_schedule_oneshot(qemu_get_aio_context(),
                                mux_switchover_flush_source_bh,
                                mux_source_ref(m));
    }
    return flush && source_flush_done(flush);
}

static void mux_switchover_converge_bh(void *opaque)
{
    MuxSource *m = opaque;

    if (!mux_link_over(m->link)) {
        mux_source_say_phase(m);
        mux_switchover_limit_silence(m);
        /* Now that disks cannot fall behind, RAM may go first. */
        qio_channel_mux_set_urgent(m->main, true);
        delivery_probe_start(m->switchover.probe, disk_set_disks(m->disks));
    }
    mux_source_unref(m);
}

void mux_switchover_disk_flushed(DiskMirror *d, void *opaque)
{
    MuxSource *m = opaque;

    delivery_probe_flushed(m->switchover.probe, d);
}

static SwitchoverInputs mux_switchover_inputs(MuxSource *m, uint64_t ram_dirty)
{
    SwitchoverInputs in = {
        .running = runstate_is_running(),
        .ram_dirty = ram_dirty,
        .limit = migrate_downtime_limit() * SCALE_MS,
    };

    delivery_probe_get(m->switchover.probe, &in);
    /* The user may know the link better */
    in.rate = migrate_avail_switchover_bandwidth() ?: in.rate;
    in.disks_dirty = disk_set_remaining(m->disks, &in.disks_synced);
    return in;
}

/*
 * Right after a reply to a flush, the least data is in flight.  An iteration
 * without a new reply only rescans the dirty bitmap and sends hot pages again.
 */
static void mux_switchover_wait(MuxSource *m)
{
    delivery_probe_wait(m->switchover.probe,
                        CLAMP(migrate_downtime_limit() / 10, 1, 10));
}

/* Bytes per second that are being sent to disks */
static uint64_t mux_switchover_disk_rate(MuxSource *m)
{
    MuxSwitchover *sw = &m->switchover;
    int64_t now = get_clock();
    uint64_t sent;

    if (sw->disks_sent_at &&
        now - sw->disks_sent_at < MUX_SWITCHOVER_SAMPLE_NS) {
        return sw->disk_rate;
    }
    sent = disk_set_sent(m->disks);
    if (sw->disks_sent_at) {
        sw->disk_rate = (double)(sent - sw->disks_sent) *
                        NANOSECONDS_PER_SECOND / (now - sw->disks_sent_at);
    }
    sw->disks_sent = sent;
    sw->disks_sent_at = now;
    return sw->disk_rate;
}

/*
 * RAM is nearly copied as far as QEMU knows.  What is sent to disks now will be
 * free for RAM once the guest is stopped.
 */
static bool mux_switchover_ram_converged(MuxSource *m, uint64_t *ram_pending)
{
    MigrationState *s = m->s;
    /* The user may know the link better */
    uint64_t disk_rate = migrate_avail_switchover_bandwidth() ? 0 :
                         mux_switchover_disk_rate(m);
    uint64_t limit =
        switchover_ram_limit(s->threshold_size, disk_rate,
                             migrate_downtime_limit() * (int64_t)SCALE_MS);
    uint64_t must_precopy, can_postcopy;

    if (*ram_pending >= s->threshold_size && *ram_pending < limit) {
        /* Only an estimate, so far */
        qemu_savevm_state_pending_exact(&must_precopy, &can_postcopy);
        *ram_pending = must_precopy + can_postcopy;
    }
    return !*ram_pending || *ram_pending < limit;
}

/* From now on the guest's writes wait for the destination. */
static void mux_switchover_begin_converge(MuxSource *m)
{
    mux_source_set_phase(m, MIGRATION_PHASE_CONVERGE);
    aio_bh_schedule_oneshot(qemu_get_aio_context(), mux_switchover_converge_bh,
                            mux_source_ref(m));
}

/* RAM has converged: may the guest be stopped as far as disks are concerned? */
static bool mux_switchover_disks_converged(MuxSource *m, uint64_t ram_pending)
{
    SwitchoverInputs in;

    if (!m->s->channels->disks->len) {
        return true;
    }
    if (mux_link_phase(m->link) == MIGRATION_PHASE_PRECOPY) {
        /* Before the guest's writes wait for the destination */
        if (mux_switchover_flush_source(m)) {
            mux_switchover_begin_converge(m);
        } else {
            mux_switchover_wait(m);
        }
        return false;
    }
    in = mux_switchover_inputs(m, ram_pending);
    if (!switchover_fits(&in)) {
        mux_switchover_wait(m);
        return false;
    }
    return true;
}

/* --- the guest is stopped --- */

static MuxFailure *mux_switchover_stop_late(MuxSource *m, uint32_t ms)
{
    return mux_failure_timeout(NULL, ms, "the guest's writes in flight");
}

/*
 * The guest is about to be stopped, which waits for its writes, and these for
 * the destination.
 */
static void mux_switchover_begin(MuxSource *m)
{
    BQL_LOCK_GUARD();
    mux_source_set_phase(m, MIGRATION_PHASE_SWITCHOVER);
    mux_source_say_phase(m);
    mux_source_lift_limit(m);
    /* Further flushes would only hold up those of the stop and the mirrors */
    mux_switchover_stop(m);
    /* The limits of the steps say what was awaited */
    mux_switchover_usual_silence(m);
    mux_watch_begin_step(m, mux_limit_stop_ms(0),
                         mux_switchover_stop_late);
}

bool migration_mux_can_switchover(MigrationState *s, uint64_t ram_pending)
{
    MuxSource *m = s->mux;

    if (!m) {
        return !ram_pending || ram_pending < s->threshold_size;
    }
    if (!mux_switchover_ram_converged(m, &ram_pending) ||
        !mux_switchover_disks_converged(m, ram_pending)) {
        return false;
    }
    mux_switchover_begin(m);
    return true;
}

static void mux_switchover_complete_bh(void *opaque)
{
    MuxSource *m = opaque;

    if (!mux_link_over(m->link)) {
        disk_set_complete(m->disks);
    }
    mux_source_unref(m);
}

void mux_switchover_disks_completed(void *opaque)
{
    MuxSource *m = opaque;

    qemu_sem_post(&m->switchover.completed);
}

static MuxFailure *mux_switchover_disks_late(MuxSource *m, uint32_t ms)
{
    return disk_set_late(m->disks, ms);
}

/*
 * Complete the disks, and wait until the destination has all data on stable
 * storage.  With the BQL, which is released meanwhile: the migration may have
 * been cancelled when this returns.
 */
static void mux_switchover_complete_disks(MuxSource *m)
{
    mux_watch_begin_step(m, mux_limit_stop_ms(0),
                         mux_switchover_disks_late);
    if (m->s->channels->disks->len && !mux_link_failure(m->link)) {
        aio_bh_schedule_oneshot(qemu_get_aio_context(),
                                mux_switchover_complete_bh,
                                mux_source_ref(m));
        bql_unlock();
        qemu_sem_wait(&m->switchover.completed);
        bql_lock();
    }
    mux_watch_end_step(m);
    /* In pre-switchover */
    mux_switchover_limit_silence(m);
}

static MuxFailure *mux_switchover_load_late(MuxSource *m, uint32_t ms)
{
    return mux_failure_timeout(NULL, ms,
                               "the destination to load the device state");
}

/* The rest of RAM follows, and the device state. */
static void mux_switchover_begin_load(MuxSource *m)
{
    mux_switchover_usual_silence(m);
    mux_watch_begin_step(m, mux_limit_stop_ms(migrate_downtime_limit()),
                         mux_switchover_load_late);
}

static bool mux_switchover_failed(MuxSource *m, Error **errp)
{
    const MuxFailure *failure = mux_link_failure(m->link);

    if (failure) {
        mux_failure_to_error(failure, errp);
    }
    return failure;
}

static void mux_switchover_check_unmodified(MuxSource *m)
{
    g_autoptr(MuxFailure) modified = disk_set_modified(m->disks);

    if (modified) {
        mux_source_fail(m, modified);
    }
}

bool migration_mux_switchover_prepare(MigrationState *s, Error **errp)
{
    MuxSource *m = s->mux;

    if (m) {
        mux_switchover_complete_disks(m);
        if (mux_switchover_failed(m, errp)) {
            return false;
        }
    }
    if (!migration_switchover_prepare(s)) {
        error_setg(errp, "Switchover is interrupted");
        return false;
    }
    if (m) {
        mux_switchover_check_unmodified(m);
        if (mux_switchover_failed(m, errp)) {
            return false;
        }
        mux_switchover_begin_load(m);
    }
    return true;
}

/* --- handover --- */

void mux_switchover_loaded(MuxSource *m)
{
    qemu_event_set(&m->switchover.loaded);
}

bool migration_mux_handover_commit(MigrationState *s)
{
    MuxSource *m = s->mux;
    g_autoptr(MuxFailure) failure = NULL;
    MuxLink *l;

    if (!m) {
        return true;
    }
    l = m->link;
    qio_channel_shutdown(QIO_CHANNEL(m->main), QIO_CHANNEL_SHUTDOWN_WRITE,
                         NULL);
    qemu_event_wait(&m->switchover.loaded);
    mux_watch_end_step(m);

    BQL_LOCK_GUARD();
    WITH_QEMU_LOCK_GUARD(&l->lock) {
        m->committed = !l->failure && mux_control_commit(l->control, &failure);
        l->settled = m->committed;
    }
    if (m->committed) {
        /* How `main` ends does not matter any more */
        qio_channel_mux_fin_ok(m->main);
    } else {
        /* The main loop may not have heard of it: the time may be over, too */
        mux_source_ended(m, failure);
    }
    return m->committed;
}
