/*
 * Migration over a multiplexed connection: the switchover, at the source
 *
 * What the migration thread asks for and waits for: may the guest be stopped,
 * are its disks complete, who has it in the end.  What the disks and the peer
 * have to say about that comes from the main loop.  Never sets up or ends
 * anything; mux-source.c does.
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
#include "mux-migration.h"
#include "mux-source.h"
#include "options.h"
#include "qemu-file.h"
#include "trace.h"

static DeliveryProbeSent mux_switchover_sent(void *opaque)
{
    MuxSource *m = opaque;
    DeliveryProbeSent sum = { .disks = disk_set_sent(m->disks) };
    uint64_t sent, received;

    qio_channel_mux_get_bytes(m->main, &sum.ram, &received);
    QEMU_LOCK_GUARD(&m->lock);
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

/* --- steps that end in time, although the BQL is held meanwhile --- */

static void mux_switchover_end_step(MuxSource *m)
{
    mux_session_set_deadline(m->session, 0, NULL);
}

/* --- before RAM --- */

static void mux_switchover_limit_setup(MuxSource *m)
{
    mux_session_set_deadline(m->session, migration_mux_setup_ms(),
                             "the destination to accept data on 'main'");
}

void mux_switchover_begin_setup(MuxSource *m)
{
    qio_channel_mux_hold_back(m->main);
    mux_switchover_limit_setup(m);
}

void migration_mux_end_setup(MigrationState *s)
{
    MuxSource *m = s->mux;
    Error *err = NULL;

    if (!m) {
        return;
    }
    /* Restart the limit: so far, not only the peer has taken time */
    mux_switchover_limit_setup(m);
    if (qio_channel_mux_write_held_back(m->main, &err) < 0) {
        qemu_file_set_error_obj(s->to_dst_file, -EIO, err);
    }
    mux_switchover_end_step(m);
    /* The main loop may not have heard of a failure meanwhile */
    migration_mux_find_cause(s);
}

/* --- may the guest be stopped --- */

double migration_mux_disk_bandwidth(MigrationState *s)
{
    int64_t now = qemu_clock_get_ns(QEMU_CLOCK_REALTIME);
    MuxSwitchover *sw;
    double bandwidth = 0;
    uint64_t sent;

    if (!s->mux) {
        return 0;
    }
    sw = &s->mux->switchover;
    sent = disk_set_sent(s->mux->disks);
    if (sw->disks_sent_at) {
        bandwidth = (double)(sent - sw->disks_sent) * SCALE_MS /
                    MAX(now - sw->disks_sent_at, 1);
    }
    sw->disks_sent = sent;
    sw->disks_sent_at = now;
    return bandwidth;
}

uint32_t migration_mux_guest_waits_ms(void)
{
    uint32_t silence = migrate_channel_mux_timeout();
    uint32_t step = migrate_channel_mux_stop_timeout();

    return silence && step ? MIN(silence, step) : silence ?: step;
}

/* The guest, or its writes, wait for the destination. */
static void mux_switchover_limit_silence(MuxSource *m)
{
    mux_session_set_silence(m->session, migration_mux_guest_waits_ms());
}

static void mux_switchover_usual_silence(MuxSource *m)
{
    mux_session_set_silence(m->session, migrate_channel_mux_timeout());
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
        g_autoptr(Error) cause = error_copy(err);

        error_prepend(&cause, "all streams: ");
        mux_source_fail(m, cause);
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

    if (!mux_source_over(m)) {
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

    if (!mux_source_over(m)) {
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

bool migration_mux_can_switchover(MigrationState *s, uint64_t ram_pending)
{
    MuxSource *m = s->mux;
    SwitchoverInputs in;

    if (!m || !s->channels->disks->len ||
        qatomic_read(&m->phase) >= MIGRATION_PHASE_SWITCHOVER) {
        return true;
    }
    if (qatomic_read(&m->phase) == MIGRATION_PHASE_PRECOPY) {
        /* Before the guest's writes wait for the destination */
        if (!mux_switchover_flush_source(m)) {
            mux_switchover_wait(m);
            return false;
        }
        mux_source_set_phase(m, MIGRATION_PHASE_CONVERGE);
        aio_bh_schedule_oneshot(qemu_get_aio_context(),
                                mux_switchover_converge_bh,
                                mux_source_ref(m));
        return false;
    }
    in = mux_switchover_inputs(m, ram_pending);
    if (switchover_fits(&in)) {
        return true;
    }
    mux_switchover_wait(m);
    return false;
}

/* --- the guest is stopped --- */

/* What has to be sent first may take @sending_ms on top of the limit. */
static uint32_t mux_switchover_stop_ms(uint64_t sending_ms)
{
    uint64_t ms = migrate_channel_mux_stop_timeout();

    return ms ? MIN(ms + sending_ms, UINT32_MAX) : 0;
}

void migration_mux_stopping(MigrationState *s)
{
    if (s->mux) {
        mux_source_set_phase(s->mux, MIGRATION_PHASE_SWITCHOVER);
        mux_source_say_phase(s->mux);
        /* The limits of the steps say what was awaited */
        mux_switchover_usual_silence(s->mux);
        mux_session_set_deadline(s->mux->session, mux_switchover_stop_ms(0),
                                 "the guest's writes in flight");
    }
}

static void mux_switchover_complete_bh(void *opaque)
{
    MuxSource *m = opaque;

    if (!mux_source_over(m)) {
        disk_set_complete(m->disks);
    }
    mux_source_unref(m);
}

void mux_switchover_disks_completed(void *opaque)
{
    MuxSource *m = opaque;

    qemu_sem_post(&m->switchover.completed);
}

/* Without the BQL */
static void mux_switchover_fail_late_disk(MuxSource *m, uint32_t ms)
{
    g_autoptr(Error) err = NULL;

    if (!disk_set_in_time(m->disks, ms, &err)) {
        mux_source_fail(m, err);
    }
}

static void mux_switchover_wait_disks(MuxSource *m)
{
    int ms = MIN(migrate_channel_mux_stop_timeout(), INT_MAX);

    if (!ms) {
        qemu_sem_wait(&m->switchover.completed);
        return;
    }
    while (qemu_sem_timedwait(&m->switchover.completed, ms) != 0) {
        /* If no disk is late, the main loop was busy: wait again */
        mux_switchover_fail_late_disk(m, ms);
    }
}

bool migration_mux_complete_disks(MigrationState *s, Error **errp)
{
    MuxSource *m = s->mux;

    if (!m) {
        return true;
    }
    mux_switchover_end_step(m);
    /* Further flushes would only hold up those of the mirrors */
    mux_switchover_stop(m);
    if (s->channels->disks->len && !mux_source_cause(m)) {
        aio_bh_schedule_oneshot(qemu_get_aio_context(),
                                mux_switchover_complete_bh,
                                mux_source_ref(m));
        bql_unlock();
        mux_switchover_wait_disks(m);
        bql_lock();
    }
    if (mux_source_cause(m)) {
        error_propagate(errp, error_copy(mux_source_cause(m)));
        return false;
    }
    /* In pre-switchover */
    mux_switchover_limit_silence(m);
    return true;
}

bool migration_mux_disks_unmodified(MigrationState *s, Error **errp)
{
    MuxSource *m = s->mux;
    Error *err = NULL;

    if (m && mux_source_cause(m)) {
        error_propagate(errp, error_copy(mux_source_cause(m)));
        return false;
    }
    if (m && !disk_set_unmodified(m->disks, &err)) {
        mux_source_fail(m, err);
        error_propagate(errp, err);
        return false;
    }
    if (m) {
        /* The rest of RAM goes with it */
        mux_switchover_usual_silence(m);
        mux_session_set_deadline(
            m->session, mux_switchover_stop_ms(migrate_downtime_limit()),
            "the destination to load the device state");
    }
    return true;
}

/* --- whose is the guest --- */

void mux_switchover_loaded(MuxSource *m)
{
    qemu_event_set(&m->switchover.loaded);
}

bool migration_mux_handover_commit(MigrationState *s)
{
    MuxSource *m = s->mux;
    g_autoptr(Error) err = NULL;

    if (!m) {
        return true;
    }
    qio_channel_shutdown(QIO_CHANNEL(m->main), QIO_CHANNEL_SHUTDOWN_WRITE,
                         NULL);
    qemu_event_wait(&m->switchover.loaded);
    mux_switchover_end_step(m);

    BQL_LOCK_GUARD();
    WITH_QEMU_LOCK_GUARD(&m->lock) {
        m->committed = !m->cause && mux_control_commit(m->control, &err);
    }
    if (m->committed) {
        /* Its end says nothing any more */
        qio_channel_mux_fin_ok(m->main);
    } else {
        /* The main loop may not have heard of it: the time may be over, too */
        mux_source_ended(m, err);
    }
    return m->committed;
}

void migration_mux_find_cause(MigrationState *s)
{
    MuxSource *m = s->mux;
    g_autoptr(Error) err = NULL;

    if (!m) {
        return;
    }
    err = qio_channel_mux_get_error(m->main) ?: disk_set_get_error(m->disks);
    if (err) {
        migrate_set_error(s, err);
    }
}
