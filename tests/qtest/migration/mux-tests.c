/*
 * QTest testcases for migration over a multiplexed connection that succeeds
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "libqtest.h"
#include "migration/framework.h"
#include "migration/migration-qmp.h"
#include "migration/migration-util.h"
#include "migration/mux-util.h"
#include "qemu/units.h"

#define MULTIFD_CHANNELS 4

static char *tmpfs;

/* --- RAM alone --- */

static void *start_hook_mux(QTestState *from, QTestState *to)
{
    migrate_set_capability(from, "channel-mux", true);
    migrate_set_capability(to, "channel-mux", true);

    return NULL;
}

static void *start_hook_mux_inet(QTestState *from, QTestState *to)
{
    start_hook_mux(from, to);
    migrate_incoming_qmp(to, "tcp:127.0.0.1:0", NULL, "{}");

    return NULL;
}

static void *start_hook_mux_unix(QTestState *from, QTestState *to)
{
    g_autofree char *uri = g_strdup_printf("unix:%s/migsocket", tmpfs);

    start_hook_mux(from, to);
    migrate_incoming_qmp(to, uri, NULL, "{}");

    return NULL;
}

static void *start_hook_mux_return_path(QTestState *from, QTestState *to)
{
    migrate_set_capability(from, "return-path", true);
    migrate_set_capability(to, "return-path", true);

    return start_hook_mux_inet(from, to);
}

static void *start_hook_mux_multifd(QTestState *from, QTestState *to)
{
    migrate_set_parameter_int(from, "multifd-channels", MULTIFD_CHANNELS);
    migrate_set_parameter_int(to, "multifd-channels", MULTIFD_CHANNELS);
    migrate_set_capability(from, "multifd", true);
    migrate_set_capability(to, "multifd", true);

    return start_hook_mux_unix(from, to);
}

/* Only `main`, with RAM in one direction, the return path in the other */
static void assert_ram_stream(QTestState *who, const char *ram,
                              const char *return_path,
                              uint64_t min_return_path)
{
    QDict *stream = mux_query_stream(who, "main");

    g_assert_cmpuint(mux_num_streams(who), ==, 1);
    g_assert_cmpstr(qdict_get_str(stream, "state"), !=, "reset");
    g_assert_cmpuint(qdict_get_int(stream, ram), >, MiB);
    g_assert_cmpuint(qdict_get_int(stream, return_path), >=, min_return_path);
    qobject_unref(stream);
}

static void assert_ram_streams(QTestState *from, QTestState *to,
                               uint64_t min_return_path)
{
    assert_ram_stream(from, "sent", "received", min_return_path);
    assert_ram_stream(to, "received", "sent", min_return_path);
}

static void end_hook_mux(QTestState *from, QTestState *to, void *opaque)
{
    assert_ram_streams(from, to, 0);
}

static void end_hook_mux_return_path(QTestState *from, QTestState *to,
                                     void *opaque)
{
    assert_ram_streams(from, to, 1);
}

/* Every channel of multifd is a stream of its own. */
static void end_hook_mux_multifd(QTestState *from, QTestState *to,
                                 void *opaque)
{
    g_assert_cmpuint(mux_num_streams(from), ==, 1 + MULTIFD_CHANNELS);
    g_assert_cmpuint(mux_num_streams(to), ==, 1 + MULTIFD_CHANNELS);
}

static void test_ram_inet(void)
{
    MigrateCommon args = {
        .listen_uri = "defer",
        .start_hook = start_hook_mux_inet,
        .end_hook = end_hook_mux,
        /* The guest writes to memory that was sent already. */
        .live = true,
    };

    test_precopy_common(&args);
}

static void test_ram_unix(void)
{
    g_autofree char *uri = g_strdup_printf("unix:%s/migsocket", tmpfs);
    MigrateCommon args = {
        .listen_uri = "defer",
        .connect_uri = uri,
        .start_hook = start_hook_mux_unix,
        .end_hook = end_hook_mux,
    };

    test_precopy_common(&args);
}

static void test_ram_channels(void)
{
    MigrateCommon args = {
        .listen_uri = "defer",
        .connect_channels =
            "[ { 'channel-type': 'main',"
            "    'addr': { 'transport': 'socket', 'type': 'inet',"
            "              'host': '127.0.0.1', 'port': '0' } } ]",
        .start_hook = start_hook_mux_inet,
        .end_hook = end_hook_mux,
    };

    test_precopy_common(&args);
}

static void test_ram_return_path(void)
{
    MigrateCommon args = {
        .listen_uri = "defer",
        .start_hook = start_hook_mux_return_path,
        .end_hook = end_hook_mux_return_path,
        /* Requests and answers cross while RAM is being sent. */
        .live = true,
    };

    test_precopy_common(&args);
}

static void test_ram_multifd(void)
{
    g_autofree char *uri = g_strdup_printf("unix:%s/migsocket", tmpfs);
    MigrateCommon args = {
        .listen_uri = "defer",
        .connect_uri = uri,
        .start_hook = start_hook_mux_multifd,
        .end_hook = end_hook_mux_multifd,
        /* Pages that were sent by one channel come again by another. */
        .live = true,
    };

    test_precopy_common(&args);
}

/* --- RAM and disks --- */

static void assert_disk_streams(MuxTest *t, const char *state)
{
    g_assert_cmpuint(mux_num_streams(t->from), ==, 1 + MUX_NUM_DISKS);
    g_assert_cmpuint(mux_num_streams(t->to), ==, 1 + MUX_NUM_DISKS);
    mux_assert_stream(t->from, "nbd-disk0", state, MiB, 1);
    mux_assert_stream(t->from, "nbd-disk1", state, MiB, 1);
    mux_assert_stream(t->to, "nbd-disk0", state, 1, MiB);
    mux_assert_stream(t->to, "nbd-disk1", state, 1, MiB);
}

static void assert_done(MuxTest *t)
{
    /* What the source confirms may still be on its way. */
    mux_wait_stream(t->to, "nbd-disk0", "finished");
    mux_wait_stream(t->to, "nbd-disk1", "finished");
    assert_disk_streams(t, "finished");
    mux_assert_no_jobs(t);
    g_assert(!mux_is_running(t->from));
}

/* The guest writes to memory and disks that were sent already. */
static void migrate_live(MuxTest *t)
{
    migrate_ensure_non_converge(t->from);
    migrate_prepare_for_dirty_mem(t->from);
    mux_listen(t, MUX_BOTH_DISKS);
    mux_migrate(t, MUX_BOTH_DISKS);

    mux_wait_phase(t, "disks");
    mux_write(t, 0, 0x30, 12 * MiB, 64 * KiB);
    mux_wait_phase(t, "precopy");
    mux_wait_jobs_ready(t);
    assert_disk_streams(t, "open");

    mux_write(t, 0, 0x31, MiB / 2, MiB);
    mux_write(t, 1, 0x32, 8 * MiB, 64 * KiB);
    migrate_wait_for_dirty_mem(t->from, t->to);
    mux_write(t, 1, 0x33, 8 * MiB + 512, 512);
    mux_complete(t);
}

static void test_disks(bool inet)
{
    MuxTest t = { .inet = inet };

    if (!mux_start(&t)) {
        return;
    }
    migrate_live(&t);
    assert_done(&t);
    mux_wait_running(t.to);
    mux_end(&t, true);
}

static void test_disks_inet(void)
{
    test_disks(true);
}

static void test_disks_unix(void)
{
    test_disks(false);
}

static void test_disks_return_path(void)
{
    MuxTest t = { .inet = true };
    QDict *stream;

    if (!mux_start(&t)) {
        return;
    }
    migrate_set_capability(t.from, "return-path", true);
    migrate_set_capability(t.to, "return-path", true);
    migrate_live(&t);
    assert_done(&t);
    stream = mux_query_stream(t.to, "main");
    g_assert_cmpuint(qdict_get_int(stream, "sent"), >, 0);
    qobject_unref(stream);
    mux_wait_running(t.to);
    mux_end(&t, true);
}

/* After a migrate-incoming that could not listen, another one succeeds. */
static void test_disks_listen_again(void)
{
    MuxTest t = { .bare = true, .keep_target = true };

    if (!mux_start(&t)) {
        return;
    }
    qobject_unref(qtest_qmp_assert_failure_ref(
        t.to, "{ 'execute': 'migrate-incoming', 'arguments': { 'channels': ["
        "  { 'channel-type': 'main', 'addr': { 'transport': 'socket',"
        "    'type': 'unix', 'path': '/nonexistent/socket' } } ] } }"));
    mux_listen(&t, MUX_BOTH_DISKS);
    mux_migrate(&t, MUX_BOTH_DISKS);
    mux_complete(&t);
    assert_done(&t);
    mux_end(&t, true);
}

/*
 * The catalogue of faults has a guest without a program, on one machine type:
 * here one runs when the migration ends early.
 */
static void end_early(void (*end)(QTestState *who), const char *status)
{
    MuxTest t = { .keep_target = true };

    if (!mux_start(&t)) {
        return;
    }
    mux_write(&t, 0, 0x40, 0, 8 * MiB);
    migrate_set_parameter_int(t.from, "max-bandwidth", MiB);
    mux_listen(&t, MUX_BOTH_DISKS);
    mux_migrate(&t, MUX_BOTH_DISKS);
    mux_wait_phase(&t, "disks");
    mux_wait_jobs(&t);
    mux_wait_sent(t.from, "nbd-disk0", 64 * KiB);
    end(t.from);
    mux_wait_status(&t, status);
    mux_wait_target_status(&t, "failed");
    mux_end_after_failure(&t);
}

static void cancel_job(QTestState *who)
{
    qtest_qmp_assert_success(who, "{ 'execute': 'block-job-cancel',"
                             "  'arguments': { 'device': 'nbd-disk0' } }");
}

static void test_disks_cancel(void)
{
    end_early(migrate_cancel, "cancelled");
}

static void test_disks_job_cancel(void)
{
    end_early(cancel_job, "failed");
}

/* A parameter that is meant for the next migration */
static void cancel_with_other_mode(QTestState *who)
{
    migrate_set_parameter_str(who, "mode", "cpr-reboot");
    migrate_cancel(who);
    wait_for_migration_status(who, "cancelled", NULL);
    migrate_set_parameter_str(who, "mode", "normal");
}

static void test_disks_cancel_other_mode(void)
{
    end_early(cancel_with_other_mode, "cancelled");
}

static uint64_t bytes_sent(MuxTest *t, const char *stream)
{
    QDict *info = mux_query_stream(t->from, stream);
    uint64_t sent = qdict_get_int(info, "sent");

    qobject_unref(info);
    return sent;
}

/* With the same list on both sides */
static void migrate_with(MuxTest *t, const char *disks)
{
    mux_listen(t, disks);
    mux_migrate(t, disks);
    mux_complete(t);
}

/* By device id and by QOM path; the drives belong to parts of the devices. */
static void test_disks_device_id(void)
{
    const char *disks = MUX_DISK("'disk': 'vd0'")
                        MUX_DISK("'disk': 'second',"
                                 "'node-name': '/machine/peripheral/vd1'");
    MuxTest t = { .bare = true };

    if (!mux_start(&t)) {
        return;
    }
    migrate_with(&t, disks);
    mux_end(&t, true);
}

static void assert_stream_done(MuxTest *t, const char *stream)
{
    g_assert_cmpuint(bytes_sent(t, stream), >=, MiB);
}

/* vd1, by its node's name, has an entry of its own; '*' stands for the rest. */
static void test_disks_all(void)
{
    const char *disks = MUX_DISK("'disk': '*'") MUX_DISK1;
    MuxTest t = { .bare = true };

    if (!mux_start(&t)) {
        return;
    }
    migrate_with(&t, disks);
    assert_stream_done(&t, "nbd-vd0");
    assert_stream_done(&t, "nbd-disk1");
    mux_end(&t, true);
}

static void assert_next_phase(QTestState *who, const char *phase)
{
    QDict *event = qtest_qmp_eventwait_ref(who, "MIGRATION_PHASE");

    g_assert_cmpstr(qdict_get_str(qdict_get_qdict(event, "data"), "phase"), ==,
                    phase);
    qobject_unref(event);
}

static void test_disks_events(void)
{
    static const char *const phases[] = {
        "disks", "precopy", "converge", "switchover", "done"
    };
    MuxTest t = { .bare = true };

    if (!mux_start(&t)) {
        return;
    }
    migrate_set_capability(t.from, "events", true);
    migrate_set_capability(t.to, "events", true);
    migrate_with(&t, MUX_BOTH_DISKS);
    for (size_t i = 0; i < ARRAY_SIZE(phases); i++) {
        assert_next_phase(t.from, phases[i]);
        assert_next_phase(t.to, phases[i]);
    }
    mux_end(&t, true);
}

static void test_disks_hmp(void)
{
    MuxTest t = { .bare = true };
    g_autofree char *uri = NULL;

    if (!mux_start(&t)) {
        return;
    }
    g_free(qtest_hmp(t.to, "migrate_incoming -b tcp:127.0.0.1:0"));
    uri = migrate_get_connect_uri(t.to);
    g_free(qtest_hmp(t.from, "migrate -d -b %s", uri));
    mux_complete(&t);
    assert_stream_done(&t, "nbd-vd0");
    assert_stream_done(&t, "nbd-vd1");
    mux_end(&t, true);
}

static void test_disks_other_node_name(void)
{
    MuxTest t = { .to_node = "elsewhere" };

    if (!mux_start(&t)) {
        return;
    }
    mux_listen(&t, MUX_DISK("'disk': 'disk0', 'node-name': 'elsewhere0'")
                   MUX_DISK("'disk': 'disk1', 'node-name': 'elsewhere1'"));
    mux_migrate(&t, MUX_BOTH_DISKS);
    mux_complete(&t);
    assert_done(&t);
    mux_wait_running(t.to);
    mux_end(&t, true);
}

static void test_disks_pause_before_switchover(void)
{
    MuxTest t = {};

    if (!mux_start(&t)) {
        return;
    }
    migrate_set_capability(t.from, "pause-before-switchover", true);
    migrate_ensure_converge(t.from);
    mux_listen(&t, MUX_BOTH_DISKS);
    mux_migrate(&t, MUX_BOTH_DISKS);

    mux_wait_status(&t, "pre-switchover");
    assert_done(&t);
    mux_wait_phase(&t, "switchover");
    g_assert(!mux_is_running(t.to));

    migrate_continue(t.from, "pre-switchover");
    mux_complete(&t);
    assert_done(&t);
    mux_wait_running(t.to);
    mux_end(&t, true);
}

static void test_disks_paused_guest(void)
{
    MuxTest t = {};

    if (!mux_start(&t)) {
        return;
    }
    qtest_qmp_assert_success(t.from, "{ 'execute': 'stop' }");
    mux_listen(&t, MUX_BOTH_DISKS);
    mux_migrate(&t, MUX_BOTH_DISKS);
    mux_complete(&t);
    assert_done(&t);
    g_assert(!mux_is_running(t.to));
    qtest_qmp_assert_success(t.to, "{ 'execute': 'cont' }");
    mux_wait_running(t.to);
    mux_end(&t, true);
}

/* Check that no more than @most is sent, for 200 ms */
static void assert_held(MuxTest *t, const char *stream, uint64_t most)
{
    for (unsigned i = 0; i < 20; i++) {
        g_assert_cmpuint(bytes_sent(t, stream), <=, most);
        g_usleep(10 * 1000);
    }
}

/* The limit applies to RAM, and to disks before and after the first copy */
static void test_disks_bandwidth(void)
{
    MuxTest t = {};
    uint64_t ram, disk;

    if (!mux_start(&t)) {
        return;
    }
    mux_write(&t, 0, 0x20, 0, 8 * MiB);
    mux_write(&t, 1, 0x21, 0, 8 * MiB);
    migrate_ensure_non_converge(t.from);
    migrate_set_parameter_int(t.from, "max-bandwidth", 1);
    mux_listen(&t, MUX_BOTH_DISKS);
    mux_migrate(&t, MUX_BOTH_DISKS);
    mux_wait_phase(&t, "disks");
    mux_wait_jobs(&t);
    assert_held(&t, "nbd-disk0", MiB);
    assert_held(&t, "nbd-disk1", MiB);

    migrate_set_parameter_int(t.from, "max-bandwidth", 16 * MiB);
    mux_wait_phase(&t, "precopy");
    migrate_set_parameter_int(t.from, "max-bandwidth", 1);
    ram = bytes_sent(&t, "main");
    disk = bytes_sent(&t, "nbd-disk0");
    mux_write(&t, 0, 0x22, 8 * MiB, 8 * MiB);
    assert_held(&t, "nbd-disk0", disk + 4 * MiB);
    assert_held(&t, "main", ram + 8 * MiB);

    /* More than the speed of a job can be */
    qtest_qmp_assert_success(t.from, "{ 'execute': 'migrate-set-parameters',"
                             "  'arguments': {"
                             "    'max-bandwidth': 18446744073709551615 } }");
    mux_complete(&t);
    assert_done(&t);
    mux_end(&t, true);
}

static void test_disks_job_complete_refused(void)
{
    MuxTest t = {};
    QDict *err;

    if (!mux_start(&t)) {
        return;
    }
    migrate_ensure_non_converge(t.from);
    mux_listen(&t, MUX_BOTH_DISKS);
    mux_migrate(&t, MUX_BOTH_DISKS);
    mux_wait_phase(&t, "precopy");

    err = qtest_qmp_assert_failure_ref(
        t.from, "{ 'execute': 'block-job-complete',"
        "  'arguments': { 'device': 'nbd-disk0' } }");
    g_assert_cmpstr(qdict_get_str(err, "desc"), ==,
                    "Job 'nbd-disk0' cannot be completed: "
                    "it is controlled by the running migration");
    qobject_unref(err);
    mux_wait_jobs_ready(&t);

    mux_complete(&t);
    assert_done(&t);
    mux_end(&t, true);
}

/* --- what query-migrate keeps --- */

static void assert_not_multiplexed(QTestState *who, const char *status)
{
    QDict *info = migrate_query(who);

    g_assert_cmpstr(qdict_get_try_str(info, "status"), ==, status);
    g_assert(!qdict_haskey(info, "phase"));
    g_assert(!qdict_haskey(info, "streams"));
    qobject_unref(info);
}

static void migrate_plain_unconnected(QTestState *who)
{
    g_autofree char *uri = g_strdup_printf("unix:%s/unconnected", tmpfs);

    migrate_qmp(who, NULL, uri, NULL, "{}");
    wait_for_migration_status(who, "failed",
                              (const char * []) { "completed", NULL });
    assert_not_multiplexed(who, "failed");
}

/* Nothing of the last migration is left when the next one is another kind. */
static void test_query_plain_migration(void)
{
    MuxTest t = { .bare = true, .keep_target = true };

    if (!mux_start(&t)) {
        return;
    }
    migrate_ensure_non_converge(t.from);
    mux_listen(&t, MUX_BOTH_DISKS);
    mux_migrate(&t, MUX_BOTH_DISKS);
    mux_wait_phase(&t, "precopy");
    migrate_cancel(t.from);
    mux_wait_status(&t, "cancelled");
    g_assert_cmpuint(mux_num_streams(t.from), ==, 1 + MUX_NUM_DISKS);
    migrate_plain_unconnected(t.from);

    mux_replace_target(&t);
    mux_listen(&t, "");
    mux_migrate(&t, "");
    mux_wait_status(&t, "active");
    assert_not_multiplexed(t.from, "active");
    migrate_cancel(t.from);
    mux_wait_status(&t, "cancelled");
    assert_not_multiplexed(t.from, "cancelled");
    mux_end(&t, false);
}

/* The guest came with streams, and leaves without. */
static void test_query_plain_onward(void)
{
    MuxTest t = { .bare = true };

    if (!mux_start(&t)) {
        return;
    }
    mux_listen(&t, MUX_BOTH_DISKS);
    mux_migrate(&t, MUX_BOTH_DISKS);
    mux_complete(&t);
    mux_wait_running(t.to);
    g_assert_cmpuint(mux_num_streams(t.to), ==, 1 + MUX_NUM_DISKS);
    migrate_plain_unconnected(t.to);
    mux_end(&t, true);
}

void migration_test_add_mux(MigrationTestEnv *env)
{
    tmpfs = env->tmpfs;

    mux_init(env);
    migration_test_add("/migration/mux/ram-inet", test_ram_inet);
    migration_test_add("/migration/mux/ram-unix", test_ram_unix);
    migration_test_add("/migration/mux/ram-channels", test_ram_channels);
    migration_test_add("/migration/mux/ram-return-path",
                       test_ram_return_path);
    migration_test_add("/migration/mux/ram-multifd", test_ram_multifd);
    migration_test_add("/migration/mux/disks-inet", test_disks_inet);
    migration_test_add("/migration/mux/disks-unix", test_disks_unix);
    migration_test_add("/migration/mux/disks-return-path",
                       test_disks_return_path);
    migration_test_add("/migration/mux/disks-cancel", test_disks_cancel);
    migration_test_add("/migration/mux/disks-job-cancel",
                       test_disks_job_cancel);
    migration_test_add("/migration/mux/disks-cancel-other-mode",
                       test_disks_cancel_other_mode);
    migration_test_add("/migration/mux/disks-listen-again",
                       test_disks_listen_again);
    migration_test_add("/migration/mux/disks-device-id", test_disks_device_id);
    migration_test_add("/migration/mux/disks-all", test_disks_all);
    migration_test_add("/migration/mux/disks-events", test_disks_events);
    migration_test_add("/migration/mux/disks-hmp", test_disks_hmp);
    migration_test_add("/migration/mux/disks-other-node-name",
                       test_disks_other_node_name);
    migration_test_add("/migration/mux/disks-pause-before-switchover",
                       test_disks_pause_before_switchover);
    migration_test_add("/migration/mux/disks-paused-guest",
                       test_disks_paused_guest);
    migration_test_add("/migration/mux/disks-bandwidth", test_disks_bandwidth);
    migration_test_add("/migration/mux/disks-job-complete-refused",
                       test_disks_job_complete_refused);
    migration_test_add("/migration/mux/query-plain-migration",
                       test_query_plain_migration);
    migration_test_add("/migration/mux/query-plain-onward",
                       test_query_plain_onward);
}
