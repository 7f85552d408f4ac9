/*
 * QTest helpers for migration over a multiplexed connection: what happens to
 * the two sides
 *
 * Only does it, and checks that what has to be refused is; what comes of it is
 * for the tests to say.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include <sys/resource.h>
#include <sys/wait.h>
#include "libqtest.h"
#include "migration/migration-qmp.h"
#include "migration/migration-util.h"
#include "migration/mux-actions.h"
#include "qapi/error.h"
#include "qobject/qjson.h"
#include "qemu/units.h"

/* --- the destination's process --- */

/* libqtest takes a signal for a failure: those killed are kept from it. */
static GPtrArray *killed;

void kill_target(MuxTest *t)
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

/* It goes on until its threads have been scheduled. */
void stop_target(MuxTest *t)
{
    int status;

    kill(qtest_pid(t->to), SIGSTOP);
    g_assert_cmpint(waitpid(qtest_pid(t->to), &status, WUNTRACED), ==,
                    qtest_pid(t->to));
    g_assert(WIFSTOPPED(status));
}

void continue_target(MuxTest *t)
{
    usleep(200 * 1000);
    kill(qtest_pid(t->to), SIGCONT);
}

void quit_target(MuxTest *t)
{
    qtest_quit(t->to);
    t->to = NULL;
}

void yank_target(MuxTest *t)
{
    qtest_qmp_assert_success(t->to, "{ 'execute': 'yank', 'arguments': {"
                             "  'instances': [ { 'type': 'migration' } ] } }");
}

/* --- the source --- */

void quit_source(MuxTest *t)
{
    qtest_quit(t->from);
    t->from = NULL;
}

void yank_source(MuxTest *t)
{
    usleep(50 * 1000);
    qtest_qmp_assert_success(t->from,
                             "{ 'exec-oob': 'yank', 'arguments': {"
                             "  'instances': [ { 'type': 'migration' } ] } }");
}

void cancel_source(MuxTest *t)
{
    usleep(50 * 1000);
    migrate_cancel(t->from);
}

void limit_silence(MuxTest *t)
{
    migrate_set_parameter_int(t->from, "channel-mux-timeout", 1500);
}

/* What the stopped guest waits for is given up soon. */
void limit_stop(MuxTest *t)
{
    migrate_set_parameter_int(t->from, "channel-mux-stop-timeout", 3000);
}

void cancel_job(MuxTest *t)
{
    qtest_qmp_assert_success(t->from, "{ 'execute': 'block-job-cancel',"
                             "  'arguments': { 'device': 'nbd-disk0' } }");
}

void kill_job(MuxTest *t)
{
    qtest_qmp_assert_success(t->from, "{ 'execute': 'block-job-cancel',"
                             "  'arguments': { 'device': 'nbd-disk0',"
                             "                 'force': true } }");
}

void pause_job(MuxTest *t)
{
    qtest_qmp_assert_success(t->from, "{ 'execute': 'block-job-pause',"
                             "  'arguments': { 'device': 'nbd-disk0' } }");
}

/* The disk is behind until the job goes on. */
void pause_job_and_write(MuxTest *t)
{
    pause_job(t);
    mux_write(t, 0, 0x70, 4 * MiB, MiB);
}

void resume_job(MuxTest *t)
{
    g_autofree char *status = NULL;

    usleep(200 * 1000);
    status = migrate_query_status(t->from);
    g_assert_cmpstr(status, !=, "completed");
    qtest_qmp_assert_success(t->from, "{ 'execute': 'block-job-resume',"
                             "  'arguments': { 'device': 'nbd-disk0' } }");
}

/* The migration may have ended the job, which makes it go on. */
void resume_ending_job(MuxTest *t)
{
    usleep(200 * 1000);
    qobject_unref(qtest_qmp(t->from, "{ 'execute': 'block-job-resume',"
                            "  'arguments': { 'device': 'nbd-disk0' } }"));
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

void complete_unready_job(MuxTest *t)
{
    assert_refused(t->from, "block-job-complete", "'device': 'nbd-disk0'",
                   "cannot accept command verb 'complete'");
}

void complete_job(MuxTest *t)
{
    assert_refused(t->from, "block-job-complete", "'device': 'nbd-disk0'",
                   "the migration that started it will end it");
}

void unplug_disk(MuxTest *t)
{
    assert_refused(t->from, "device_del", "'id': 'vd0'",
                   "not allowed while migrating");
}

/* What is done in then() lets it go on. */
void keep_in_precopy(MuxTest *t)
{
    migrate_ensure_non_converge(t->from);
}

void reset_guest(MuxTest *t)
{
    qtest_qmp_assert_success(t->from, "{ 'execute': 'system_reset' }");
    migrate_ensure_converge(t->from);
}

/* Only the device could do it. */
void move_disk_to_iothread(MuxTest *t)
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

/* --- errors of the images --- */

void write_bad_sector(MuxTest *t)
{
    mux_write(t, 0, 0x66, BAD_OFFSET, 64 * KiB);
}

/* --- descriptors --- */

/* Let @who open @spare descriptors more. */
void limit_descriptors(QTestState *who, unsigned spare)
{
    struct rlimit limit;
    unsigned n = 0;

    for (;; n++) {
        g_autofree char *path = g_strdup_printf("/proc/%d/fd/%u",
                                                (int)qtest_pid(who), n);
        struct stat st;

        if (lstat(path, &st) < 0) {
            break;
        }
    }
    g_assert(!prlimit(qtest_pid(who), RLIMIT_NOFILE, NULL, &limit));
    limit.rlim_cur = n + spare;
    g_assert(!prlimit(qtest_pid(who), RLIMIT_NOFILE, &limit, NULL));
}

void unlimit_descriptors(QTestState *who)
{
    struct rlimit limit;

    g_assert(!prlimit(qtest_pid(who), RLIMIT_NOFILE, NULL, &limit));
    limit.rlim_cur = limit.rlim_max;
    g_assert(!prlimit(qtest_pid(who), RLIMIT_NOFILE, &limit, NULL));
}
