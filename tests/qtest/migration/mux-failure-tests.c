/*
 * QTest testcases for migration over a multiplexed connection that fails
 *
 * Whatever fails, the guest goes on at the source, nothing is left behind
 * there, both sides say why, and the next attempt succeeds.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "libqtest.h"
#include "migration/framework.h"
#include "migration/migration-qmp.h"
#include "migration/migration-util.h"
#include "migration/mux-util.h"
#include "qapi/error.h"
#include "qemu/units.h"

static bool start(MuxTest *t)
{
    t->keep_target = true;
    return mux_start(t);
}

static void migrate_both(MuxTest *t)
{
    mux_listen(t, MUX_BOTH_DISKS);
    mux_migrate(t, MUX_BOTH_DISKS);
}

/* Go on until some of disk0, but not all of it, is at the destination. */
static void migrate_into_disks(MuxTest *t)
{
    mux_write(t, 0, 0x40, 0, 8 * MiB);
    /* A mirror sends what is in one piece at once; this waits for 16 s then. */
    mux_write(t, 0, 0x41, 12 * MiB, 64 * KiB);
    migrate_set_parameter_int(t->from, "max-bandwidth", MiB);
    migrate_both(t);
    mux_wait_phase(t, "disks");
    mux_wait_jobs(t);
    mux_wait_sent(t->from, "nbd-disk0", 64 * KiB);
    mux_assert_jobs(t, "running");
    mux_assert_stream(t->from, "nbd-disk0", "open", 64 * KiB, 1);
}

/* Go on until the disks are copied and RAM is being sent. */
static void migrate_into_precopy(MuxTest *t)
{
    migrate_ensure_non_converge(t->from);
    migrate_both(t);
    mux_wait_phase(t, "precopy");
    mux_wait_status(t, "active");
    mux_wait_target_status(t, "active");
}

static void wait_for_failure(MuxTest *t)
{
    mux_wait_status(t, "failed");
    mux_wait_target_status(t, "failed");
}

/* --- cancelled --- */

static void test_cancel_disks(void)
{
    MuxTest t = {};

    if (!start(&t)) {
        return;
    }
    migrate_into_disks(&t);
    migrate_cancel(t.from);
    mux_wait_status(&t, "cancelled");
    mux_wait_target_status(&t, "failed");
    mux_assert_error(t.to, "migration failed in phase 'disks': stream 'main': "
                     "aborted by the source: the migration was cancelled at "
                     "the source");
    mux_end_after_failure(&t);
}

static void test_cancel_precopy(void)
{
    MuxTest t = {};

    if (!start(&t)) {
        return;
    }
    migrate_into_precopy(&t);
    migrate_cancel(t.from);
    mux_wait_status(&t, "cancelled");
    mux_wait_target_status(&t, "failed");
    mux_assert_error(t.to, "migration failed in phase 'precopy': stream "
                     "'main': aborted by the source: the migration was "
                     "cancelled at the source");
    mux_end_after_failure(&t);
}

/* Threads of multifd wait for a destination that reads nothing any more. */
static void test_cancel_multifd_mute(void)
{
    MuxTest t = {};

    if (!start(&t)) {
        return;
    }
    migrate_set_capability(t.from, "multifd", true);
    migrate_set_capability(t.to, "multifd", true);
    migrate_into_precopy(&t);
    kill(qtest_pid(t.to), SIGSTOP);
    migrate_set_parameter_int(t.from, "max-bandwidth", GiB);
    usleep(500 * 1000);
    migrate_cancel(t.from);
    wait_for_migration_status(t.from, "cancelled", NULL);
    kill(qtest_pid(t.to), SIGCONT);
    mux_wait_target_status(&t, "failed");
    migrate_set_capability(t.from, "multifd", false);
    mux_end_after_failure(&t);
}

/* --- multifd --- */

static void set_multifd(QTestState *who, bool on, int channels)
{
    migrate_set_capability(who, "multifd", on);
    migrate_set_parameter_int(who, "multifd-channels", channels);
}

/* The source opens more channels than the destination has. */
static void test_multifd_too_many(void)
{
    MuxTest t = {};

    if (!start(&t)) {
        return;
    }
    set_multifd(t.from, true, 3);
    set_multifd(t.to, true, 2);
    migrate_both(&t);
    wait_for_failure(&t);
    mux_assert_error(t.from, "migration failed in phase 'precopy': stream "
                     "'multifd-2': aborted by the destination: the "
                     "destination has 2 multifd channels");
    mux_assert_error(t.to, "migration failed in phase ", "stream 'multifd-2': "
                     "aborted by the destination: the destination has 2 "
                     "multifd channels");
    set_multifd(t.from, false, 2);
    mux_end_after_failure(&t);
}

static void test_multifd_lacking(void)
{
    MuxTest t = {};

    if (!start(&t)) {
        return;
    }
    set_multifd(t.from, true, 2);
    migrate_both(&t);
    wait_for_failure(&t);
    mux_assert_error(t.from, "migration failed in phase ", "stream "
                     "'multifd-", "aborted by the destination: the "
                     "destination lacks the capability 'multifd'");
    mux_assert_error(t.to, "migration failed in phase ", "aborted by the "
                     "destination: the destination lacks the capability "
                     "'multifd'");
    set_multifd(t.from, false, 2);
    mux_end_after_failure(&t);
}

/* --- ended by someone else --- */

static void yank(MuxTest *t)
{
    qtest_qmp_assert_success(t->from, "{ 'execute': 'yank', 'arguments': {"
                             "  'instances': [ { 'type': 'migration' } ] } }");
}

static void test_yank(void)
{
    MuxTest t = {};

    if (!start(&t)) {
        return;
    }
    migrate_into_disks(&t);
    yank(&t);
    wait_for_failure(&t);
    mux_assert_error(t.from, "migration failed in phase 'disks': all streams: "
                     "connection with the destination failed: the connection "
                     "was yanked");
    mux_end_after_failure(&t);
}

static void test_job_cancel(void)
{
    MuxTest t = {};

    if (!start(&t)) {
        return;
    }
    migrate_into_precopy(&t);
    mux_wait_jobs_ready(&t);
    /* The job itself succeeds: it is in step. */
    qtest_qmp_assert_success(t.from, "{ 'execute': 'block-job-cancel',"
                             "  'arguments': { 'device': 'nbd-disk0' } }");
    wait_for_failure(&t);
    mux_assert_error(t.from, "migration failed in phase 'precopy': stream "
                     "'nbd-disk0': job 'nbd-disk0' was ended by someone other "
                     "than the migration");
    mux_assert_error(t.to, "migration failed in phase 'precopy': ",
                     "stream 'nbd-disk0': ", "aborted by the source: ",
                     "job 'nbd-disk0' was ended by someone other than the "
                     "migration");
    mux_end_after_failure(&t);
}

/* --- with a return path --- */

#ifndef _WIN32
/*
 * What ends `main` is a RESET with the cause.  The return path's end must not
 * make it a FIN before, at which the relay cuts the connection.
 */
static MuxRelay *migrate_return_path(MuxTest *t)
{
    MuxRelay *relay;

    migrate_set_capability(t->from, "return-path", true);
    migrate_set_capability(t->to, "return-path", true);
    mux_listen(t, MUX_BOTH_DISKS);
    relay = mux_start_relay(t);
    mux_relay_add_fault(relay, "cut,frame=FIN:main", &error_abort);
    mux_migrate(t, MUX_BOTH_DISKS);
    return relay;
}

static void test_return_path_cancel(void)
{
    MuxTest t = { .inet = true };
    MuxRelay *relay;

    if (!start(&t)) {
        return;
    }
    migrate_ensure_non_converge(t.from);
    relay = migrate_return_path(&t);
    mux_wait_phase(&t, "precopy");
    mux_wait_status(&t, "active");
    mux_wait_target_status(&t, "active");
    migrate_cancel(t.from);
    mux_wait_status(&t, "cancelled");
    mux_wait_target_status(&t, "failed");
    mux_assert_error(t.to, "migration failed in phase 'precopy': stream "
                     "'main': aborted by the source: the migration was "
                     "cancelled at the source");
    mux_relay_free(relay);
    mux_end_after_failure(&t);
}

/* The guest cannot be stopped: its last flush fails. */
static void test_return_path_source_fails(void)
{
    MuxTest t = {
        .inet = true,
        .from_protocol = "driver=blkdebug,inject-error.0.event=none,"
                         "inject-error.0.iotype=flush,"
                         "inject-error.0.once=on,image.driver=file,"
                         "image.filename=",
    };
    MuxRelay *relay;

    if (!start(&t)) {
        return;
    }
    migrate_ensure_converge(t.from);
    relay = migrate_return_path(&t);
    wait_for_failure(&t);
    mux_assert_error(t.from, "migration failed in phase 'switchover': ",
                     "Input/output error");
    mux_assert_error(t.to, "migration failed in phase 'precopy': stream "
                     "'main': aborted by the source: ", "Input/output error");
    mux_relay_free(relay);
    mux_end_after_failure(&t);
}
#endif

/* --- the disks do not fit --- */

static void test_image_size(unsigned size_mb)
{
    MuxTest t = { .to_size_mb = size_mb };
    g_autofree char *cause = g_strdup_printf(
        "the destination's image has %" PRIu64 " bytes, the source's has %"
        PRIu64, size_mb * MiB, MUX_DISK_SIZE_MB * MiB);

    if (!start(&t)) {
        return;
    }
    migrate_both(&t);
    wait_for_failure(&t);
    mux_assert_error(t.from, "migration failed in phase 'disks': stream "
                     "'nbd-disk0': ", cause);
    mux_assert_error(t.to, "migration failed in phase 'disks': ",
                     "stream 'nbd-disk0': ", "aborted by the source: ", cause);
    mux_end_after_failure(&t);
}

static void test_image_too_small(void)
{
    test_image_size(MUX_DISK_SIZE_MB / 2);
}

static void test_image_too_large(void)
{
    test_image_size(MUX_DISK_SIZE_MB + 1);
}

static void test_write_error(void)
{
    MuxTest t = {
        .to_protocol = "driver=blkdebug,inject-error.0.event=write_aio,"
                       "inject-error.0.errno=28,image.driver=file,"
                       "image.cache.no-flush=on,image.filename=",
    };

    if (!start(&t)) {
        return;
    }
    migrate_both(&t);
    wait_for_failure(&t);
    mux_assert_error(t.from, "migration failed in phase 'disks': stream "
                     "'nbd-disk0': mirror failed: No space left on device");
    mux_assert_error(t.to, "migration failed in phase 'disks': ",
                     "stream 'nbd-disk0': ", "aborted by the source: ",
                     "mirror failed: No space left on device");
    mux_end_after_failure(&t);
}

static void test_disk_not_listed(void)
{
    MuxTest t = {};

    if (!start(&t)) {
        return;
    }
    mux_listen(&t, MUX_DISK0);
    mux_migrate(&t, MUX_BOTH_DISKS);
    wait_for_failure(&t);
    mux_assert_error(t.from, "migration failed in phase 'disks': stream "
                     "'nbd-disk1': aborted by the destination: not listed in "
                     "the destination's migrate-incoming");
    mux_assert_error(t.to, "migration failed in phase 'disks': ",
                     "stream 'nbd-disk1': ", "aborted by the source: ",
                     "aborted by the destination: not listed");
    mux_end_after_failure(&t);
}

static void test_disk_not_sent(void)
{
    MuxTest t = {};

    if (!start(&t)) {
        return;
    }
    mux_listen(&t, MUX_BOTH_DISKS);
    mux_migrate(&t, MUX_DISK0);
    wait_for_failure(&t);
    mux_assert_error(t.from, "migration failed in phase ",
                     "all streams: destination ended the connection: ",
                     "stream 'nbd-disk1': listed in the destination's "
                     "migrate-incoming, but not opened by the source");
    mux_assert_error(t.to, "migration failed in phase 'disks': stream "
                     "'nbd-disk1': listed in the destination's "
                     "migrate-incoming, but not opened by the source");
    mux_end_after_failure(&t);
}

static void test_disk_written_when_complete(void)
{
    MuxTest t = {};

    if (!start(&t)) {
        return;
    }
    migrate_set_capability(t.from, "pause-before-switchover", true);
    migrate_ensure_converge(t.from);
    migrate_both(&t);
    mux_wait_status(&t, "pre-switchover");
    mux_write(&t, 1, 0x50, 5 * MiB, 512);
    migrate_continue(t.from, "pre-switchover");
    wait_for_failure(&t);
    mux_assert_error(t.from, "migration failed in phase 'switchover': stream "
                     "'nbd-disk1': node 'disk1' was written to after its copy "
                     "was completed");
    mux_assert_error(t.to, "migration failed in phase 'switchover': ",
                     "stream 'nbd-disk1': ", "aborted by the source: ",
                     "node 'disk1' was written to after");
    migrate_set_capability(t.from, "pause-before-switchover", false);
    mux_end_after_failure(&t);
}

/* The guest goes on at once, not when migrate-continue is told to. */
static void test_yank_pre_switchover(void)
{
    MuxTest t = {};

    if (!start(&t)) {
        return;
    }
    migrate_set_capability(t.from, "pause-before-switchover", true);
    migrate_ensure_converge(t.from);
    migrate_both(&t);
    mux_wait_status(&t, "pre-switchover");
    yank(&t);
    wait_for_failure(&t);
    mux_assert_error(t.from, "migration failed in phase 'switchover': all "
                     "streams: connection with the destination failed: the "
                     "connection was yanked");
    migrate_set_capability(t.from, "pause-before-switchover", false);
    mux_end_after_failure(&t);
}

/* --- the other side is gone, or is another one --- */

static void test_destination_quits(void)
{
    MuxTest t = {};

    if (!start(&t)) {
        return;
    }
    migrate_into_disks(&t);
    qtest_quit(t.to);
    t.to = NULL;
    mux_wait_status(&t, "failed");
    mux_assert_error(t.from, "migration failed in phase 'disks': ",
                     "the destination was shut down");
    mux_end_after_failure(&t);
}

/* With the default of exit-on-error, too, it has asked for that itself. */
static void test_destination_quits_precopy(void)
{
    MuxTest t = {};

    if (!mux_start(&t)) {
        return;
    }
    migrate_into_precopy(&t);
    /* Checks the exit status, too. */
    qtest_quit(t.to);
    t.to = NULL;
    mux_wait_status(&t, "failed");
    mux_assert_error(t.from, "migration failed in phase 'precopy': ",
                     "the destination was shut down");
    mux_end_after_failure(&t);
}

static void test_source_quits(void)
{
    MuxTest t = {};

    if (!start(&t)) {
        return;
    }
    migrate_into_disks(&t);
    /* Checks the exit status, too. */
    qtest_quit(t.from);
    t.from = NULL;
    mux_wait_target_status(&t, "failed");
    mux_assert_error(t.to, "migration failed in phase 'disks': stream 'main': "
                     "aborted by the source: the migration was cancelled at "
                     "the source");
    mux_end(&t, false);
}

/* The command can be tried again. */
static void test_listen(void)
{
    MuxTest t = {};

    if (!start(&t)) {
        return;
    }
    qobject_unref(qtest_qmp_assert_failure_ref(
        t.to, "{ 'execute': 'migrate-incoming', 'arguments': { 'channels': ["
        "  { 'channel-type': 'main', 'addr': { 'transport': 'socket',"
        "    'type': 'unix', 'path': '/nonexistent/socket' } } ] } }"));
    migrate_both(&t);
    mux_complete(&t);
    mux_end(&t, true);
}

/* The destination does not multiplex. */
static void test_plain_destination(void)
{
    MuxTest t = {};

    if (!start(&t)) {
        return;
    }
    mux_listen(&t, "");
    mux_migrate(&t, MUX_BOTH_DISKS);
    wait_for_failure(&t);
    mux_assert_error(t.from, "migration failed in phase 'connect': all "
                     "streams: peer closed the connection before its HELLO "
                     "(does it support multiplexed migration?)");
    mux_end_after_failure(&t);
}

/* The source does not multiplex. */
static void test_plain_source(void)
{
    MuxTest t = {};

    if (!start(&t)) {
        return;
    }
    mux_listen(&t, MUX_BOTH_DISKS);
    mux_migrate(&t, "");
    wait_for_failure(&t);
    mux_assert_error(t.to, "migration failed in phase 'connect': all streams: "
                     "peer does not speak the migration multiplexer");
    mux_end_after_failure(&t);
}

void migration_test_add_mux_failure(MigrationTestEnv *env)
{
    mux_init(env);
    migration_test_add("/migration/mux/fail-cancel-disks", test_cancel_disks);
    migration_test_add("/migration/mux/fail-cancel-precopy",
                       test_cancel_precopy);
    migration_test_add("/migration/mux/fail-cancel-multifd-mute",
                       test_cancel_multifd_mute);
    migration_test_add("/migration/mux/fail-multifd-too-many",
                       test_multifd_too_many);
    migration_test_add("/migration/mux/fail-multifd-lacking",
                       test_multifd_lacking);
    migration_test_add("/migration/mux/fail-yank", test_yank);
    migration_test_add("/migration/mux/fail-yank-pre-switchover",
                       test_yank_pre_switchover);
    migration_test_add("/migration/mux/fail-job-cancel", test_job_cancel);
#ifndef _WIN32
    migration_test_add("/migration/mux/fail-return-path-cancel",
                       test_return_path_cancel);
    migration_test_add("/migration/mux/fail-return-path-source",
                       test_return_path_source_fails);
#endif
    migration_test_add("/migration/mux/fail-image-too-small",
                       test_image_too_small);
    migration_test_add("/migration/mux/fail-image-too-large",
                       test_image_too_large);
    migration_test_add("/migration/mux/fail-write-error", test_write_error);
    migration_test_add("/migration/mux/fail-disk-not-listed",
                       test_disk_not_listed);
    migration_test_add("/migration/mux/fail-disk-not-sent",
                       test_disk_not_sent);
    migration_test_add("/migration/mux/fail-disk-written-when-complete",
                       test_disk_written_when_complete);
    migration_test_add("/migration/mux/fail-destination-quits",
                       test_destination_quits);
    migration_test_add("/migration/mux/fail-destination-quits-precopy",
                       test_destination_quits_precopy);
    migration_test_add("/migration/mux/fail-source-quits",
                       test_source_quits);
    migration_test_add("/migration/mux/fail-listen", test_listen);
    migration_test_add("/migration/mux/fail-plain-destination",
                       test_plain_destination);
    migration_test_add("/migration/mux/fail-plain-source",
                       test_plain_source);
}
