/*
 * QTest helpers for migration over a multiplexed connection: the actions that
 * the catalogue of faults names
 *
 * An action only acts, and checks that invalid commands are rejected; the
 * tests assert the outcome of the migration.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include <sys/wait.h>
#include "libqtest.h"
#include "migration/migration-qmp.h"
#include "migration/migration-util.h"
#include "migration/mux-actions.h"
#include "migration/mux-assert.h"
#include "qapi/error.h"
#include "qobject/qjson.h"
#include "qemu/units.h"

/* --- the destination's process --- */

/* libqtest reports death by a signal as a failure, so never quit these. */
static GPtrArray *killed;

static void kill_destination(MuxTest *t)
{
    qtest_remove_abrt_handler(t->to);
    kill(qtest_pid(t->to), SIGKILL);
    waitpid(qtest_pid(t->to), NULL, 0);
    if (!killed) {
        killed = g_ptr_array_new();
    }
    g_ptr_array_add(killed, t->to);
    t->to = NULL;
}

/* SIGSTOP is asynchronous: wait until the process has stopped. */
static void freeze_destination(MuxTest *t)
{
    int status;

    kill(qtest_pid(t->to), SIGSTOP);
    g_assert_cmpint(waitpid(qtest_pid(t->to), &status, WUNTRACED), ==,
                    qtest_pid(t->to));
    g_assert(WIFSTOPPED(status));
}

static void thaw_destination(MuxTest *t)
{
    usleep(200 * 1000);
    kill(qtest_pid(t->to), SIGCONT);
}

static void quit_destination(MuxTest *t)
{
    qtest_quit(t->to);
    t->to = NULL;
}

static void yank_destination(MuxTest *t)
{
    qtest_qmp_assert_success(t->to, "{ 'execute': 'yank', 'arguments': {"
                             "  'instances': [ { 'type': 'migration' } ] } }");
}

/* --- the source --- */

static void quit_source(MuxTest *t)
{
    qtest_quit(t->from);
    t->from = NULL;
}

static void yank_source(MuxTest *t)
{
    usleep(50 * 1000);
    qtest_qmp_assert_success(t->from,
                             "{ 'exec-oob': 'yank', 'arguments': {"
                             "  'instances': [ { 'type': 'migration' } ] } }");
}

static void cancel(MuxTest *t)
{
    usleep(50 * 1000);
    migrate_cancel(t->from);
}

static void limit_silence(MuxTest *t)
{
    migrate_set_parameter_int(t->from, "channel-mux-timeout", MUX_SILENCE_MS);
}

static void limit_silence_of_source(MuxTest *t)
{
    migrate_set_parameter_int(t->to, "channel-mux-timeout", MUX_SILENCE_MS);
}

/* Wait longer than MUX_SILENCE_MS, to show that the limit does not apply. */
static void wait_longer_than_silence(MuxTest *t)
{
    usleep((MUX_SILENCE_MS + 1000) * 1000);
}

/* Set a short limit for steps of the switchover and for disk requests. */
static void limit_stop(MuxTest *t)
{
    migrate_set_parameter_int(t->from, "channel-mux-stop-timeout", 3000);
}

/* Stop the guest, which waits for its writes, and resume it. */
static void stop_guest(MuxTest *t)
{
    QDict *rsp;

    qtest_qmp_assert_success(t->from, "{ 'execute': 'stop' }");
    rsp = qtest_qmp(t->from, "{ 'execute': 'cont' }");
    if (qdict_haskey(rsp, "error")) {
        /* The disks were up to date: the stopped guest was handed over */
        mux_wait_status(t, "completed");
        mux_wait_target_status(t, "completed");
        qtest_qmp_assert_success(t->to, "{ 'execute': 'cont' }");
    } else {
        migrate_ensure_converge(t->from);
    }
    qobject_unref(rsp);
}

/* The destination may not respond meanwhile. */
static void wait_failed(MuxTest *t)
{
    g_autofree char *status = mux_wait_end(t);

    g_assert_cmpstr(status, ==, "failed");
}

/* --- the source's mirror job --- */

static void cancel_job(MuxTest *t)
{
    qtest_qmp_assert_success(t->from, "{ 'execute': 'block-job-cancel',"
                             "  'arguments': { 'device': 'nbd-disk0' } }");
}

static void kill_job_of(MuxTest *t, const char *stream)
{
    qtest_qmp_assert_success(t->from, "{ 'execute': 'block-job-cancel',"
                             "  'arguments': { 'device': %s,"
                             "                 'force': true } }", stream);
}

static void kill_job(MuxTest *t)
{
    kill_job_of(t, "nbd-disk0");
}

static void kill_job1(MuxTest *t)
{
    kill_job_of(t, "nbd-disk1");
}

static void pause_job(MuxTest *t)
{
    qtest_qmp_assert_success(t->from, "{ 'execute': 'block-job-pause',"
                             "  'arguments': { 'device': 'nbd-disk0' } }");
}

/* The disk is out of date until the job resumes. */
static void pause_job_and_write(MuxTest *t)
{
    pause_job(t);
    mux_write(t, 0, 0x70, 4 * MiB, MiB);
}

static void resume_job(MuxTest *t)
{
    g_autofree char *status = NULL;

    usleep(200 * 1000);
    status = migrate_query_status(t->from);
    g_assert_cmpstr(status, !=, "completed");
    qtest_qmp_assert_success(t->from, "{ 'execute': 'block-job-resume',"
                             "  'arguments': { 'device': 'nbd-disk0' } }");
}

/* Ignores an error: the migration may have ended the job, which resumes it. */
static void resume_ending_job(MuxTest *t)
{
    usleep(200 * 1000);
    qobject_unref(qtest_qmp(t->from, "{ 'execute': 'block-job-resume',"
                            "  'arguments': { 'device': 'nbd-disk0' } }"));
}

static void set_job_speed(MuxTest *t, uint64_t speed)
{
    qtest_qmp_assert_success(t->from, "{ 'execute': 'block-job-set-speed',"
                             "  'arguments': { 'device': 'nbd-disk0',"
                             "                 'speed': %" PRIu64 " } }",
                             speed);
}

static void limit_job(MuxTest *t)
{
    set_job_speed(t, MiB);
}

/* Ignores an error: the migration may have ended the job. */
static void unlimit_job(MuxTest *t)
{
    qobject_unref(qtest_qmp(t->from, "{ 'execute': 'block-job-set-speed',"
                            "  'arguments': { 'device': 'nbd-disk0',"
                            "                 'speed': 0 } }"));
}

static void assert_refused(QTestState *who, const char *command,
                           const char *arguments, const char *text)
{
    g_autofree char *json = g_strdup_printf("{ %s }", arguments);
    QDict *err = qtest_qmp_assert_failure_ref(
        who, "{ 'execute': %s, 'arguments': %p }", command,
        qobject_from_json(json, &error_abort));

    g_test_message("%s", qdict_get_str(err, "desc"));
    g_assert(strstr(qdict_get_str(err, "desc"), text));
    qobject_unref(err);
}

static void complete_unready_job(MuxTest *t)
{
    assert_refused(t->from, "block-job-complete", "'device': 'nbd-disk0'",
                   "cannot accept command verb 'complete'");
}

static void complete_job(MuxTest *t)
{
    assert_refused(t->from, "block-job-complete", "'device': 'nbd-disk0'",
                   "it is controlled by the running migration");
}

static void resize_disk(MuxTest *t)
{
    assert_refused(t->from, "block_resize",
                   "'node-name': 'disk0', 'size': 33554432",
                   "is busy: block device is in use by block job: mirror");
}

static void snapshot_disk(MuxTest *t)
{
    assert_refused(t->from, "blockdev-snapshot-sync",
                   "'node-name': 'disk0', 'snapshot-file': '/dev/null',"
                   "'mode': 'existing', 'snapshot-node-name': 'overlay'",
                   "is busy: block device is in use by block job: mirror");
}

static void unplug_disk(MuxTest *t)
{
    assert_refused(t->from, "device_del", "'id': 'vd0'",
                   "not allowed while migrating");
}

/* The actions for 'then' let it converge again. */
static void keep_in_precopy(MuxTest *t)
{
    migrate_ensure_non_converge(t->from);
}

static void reset_guest(MuxTest *t)
{
    qtest_qmp_assert_success(t->from, "{ 'execute': 'system_reset' }");
    migrate_ensure_converge(t->from);
}

/* The command is rejected: only the device can move its disk. */
static void move_disk_to_iothread(MuxTest *t)
{
    qtest_qmp_assert_success(t->from, "{ 'execute': 'object-add',"
                             "  'arguments': { 'qom-type': 'iothread',"
                             "                 'id': 'iothread0' } }");
    assert_refused(t->from, "x-blockdev-set-iothread",
                   "'node-name': 'disk0', 'iothread': 'iothread0'",
                   "Cannot change iothread of active block backend");
    qtest_qmp_assert_success(t->from, "{ 'execute': 'object-del',"
                             "  'arguments': { 'id': 'iothread0' } }");
    migrate_ensure_converge(t->from);
}

/* --- the images --- */

/* Where the catalogue injects errors below disk0 */
#define BAD_SECTOR 20480

static void write_bad_sector(MuxTest *t)
{
    mux_write(t, 0, 0x66, BAD_SECTOR * 512, 64 * KiB);
}

/* The destination's qcow2 file grows from less to more than 4 MiB. */
static void grow_disk1(MuxTest *t)
{
    mux_write(t, 1, 0x67, 8 * MiB, 4 * MiB);
}

/* The guest's own write completes even if it cannot be copied. */
static void write_disk0(MuxTest *t)
{
    mux_write(t, 0, 0x5a, 5 * MiB, 512);
}

/* One write never completes; others do. */
static void hang_destination_storage(MuxTest *t)
{
    mux_disk_io(t->to, 0, "break pwritev hold");
}

/* Called after the copy of disk1 is complete */
static void write_disk1(MuxTest *t)
{
    mux_write(t, 1, 0x50, 5 * MiB, 512);
}

/* --- capabilities --- */

static void pause_before_switchover(MuxTest *t)
{
    migrate_set_capability(t->from, "pause-before-switchover", true);
}

static void continue_migration(MuxTest *t)
{
    migrate_continue(t->from, "pre-switchover");
}

static void use_return_path(MuxTest *t)
{
    migrate_set_capability(t->from, "return-path", true);
    migrate_set_capability(t->to, "return-path", true);
}

static void use_multifd_at_source(MuxTest *t)
{
    migrate_set_capability(t->from, "multifd", true);
    migrate_set_parameter_int(t->from, "multifd-channels", 2);
}

static void use_multifd(MuxTest *t)
{
    use_multifd_at_source(t);
    migrate_set_capability(t->to, "multifd", true);
    migrate_set_parameter_int(t->to, "multifd-channels", 2);
}

static void use_multifd_3_to_2(MuxTest *t)
{
    use_multifd(t);
    migrate_set_parameter_int(t->from, "multifd-channels", 3);
}

/* --- by name --- */

static const struct {
    const char *name;
    MuxAction *act;
} actions[] = {
    { "cancel", cancel },
    { "cancel-job", cancel_job },
    { "complete-job", complete_job },
    { "complete-unready-job", complete_unready_job },
    { "continue-migration", continue_migration },
    { "freeze-destination", freeze_destination },
    { "grow-disk1", grow_disk1 },
    { "hang-destination-storage", hang_destination_storage },
    { "keep-in-precopy", keep_in_precopy },
    { "kill-destination", kill_destination },
    { "kill-job", kill_job },
    { "kill-job1", kill_job1 },
    { "limit-job", limit_job },
    { "limit-silence", limit_silence },
    { "limit-silence-of-source", limit_silence_of_source },
    { "limit-stop", limit_stop },
    { "move-disk-to-iothread", move_disk_to_iothread },
    { "multifd", use_multifd },
    { "multifd-3-to-2", use_multifd_3_to_2 },
    { "multifd-of-source", use_multifd_at_source },
    { "pause-before-switchover", pause_before_switchover },
    { "pause-job", pause_job },
    { "pause-job-and-write", pause_job_and_write },
    { "quit-destination", quit_destination },
    { "quit-source", quit_source },
    { "reset-guest", reset_guest },
    { "resize-disk", resize_disk },
    { "resume-ending-job", resume_ending_job },
    { "resume-job", resume_job },
    { "return-path", use_return_path },
    { "snapshot-disk", snapshot_disk },
    { "stop-guest", stop_guest },
    { "thaw-destination", thaw_destination },
    { "unlimit-job", unlimit_job },
    { "unplug-disk", unplug_disk },
    { "wait-failed", wait_failed },
    { "wait-longer-than-silence", wait_longer_than_silence },
    { "write-bad-sector", write_bad_sector },
    { "write-disk0", write_disk0 },
    { "write-disk1", write_disk1 },
    { "yank-destination", yank_destination },
    { "yank-source", yank_source },
};

MuxAction *mux_find_action(const char *name)
{
    for (unsigned i = 0; i < ARRAY_SIZE(actions); i++) {
        if (g_str_equal(actions[i].name, name)) {
            return actions[i].act;
        }
    }
    return NULL;
}

void mux_restore_source(MuxTest *t)
{
    static const char *const capabilities[] = {
        "multifd", "pause-before-switchover", "return-path"
    };

    for (unsigned i = 0; i < ARRAY_SIZE(capabilities); i++) {
        migrate_set_capability(t->from, capabilities[i], false);
    }
    migrate_set_parameter_int(t->from, "channel-mux-timeout", 300000);
    migrate_set_parameter_int(t->from, "channel-mux-stop-timeout", 10000);
}
