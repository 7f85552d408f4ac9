/*
 * QTest testcases for multiplexed migration with a side that takes too long
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "libqtest.h"
#include "migration/framework.h"
#include "migration/migration-qmp.h"
#include "migration/migration-util.h"
#include "migration/mux-relay.h"
#include "migration/mux-util.h"
#include "qapi/error.h"
#include "qemu/sockets.h"
#include "qobject/qjson.h"

static char *tmpfs;

static bool start(MuxTest *t)
{
    t->keep_target = true;
    return mux_start(t);
}

/* --- no answer --- */

static void assert_hmp(MuxTest *t, const char *command, const char *output)
{
    g_autofree char *out = qtest_hmp(t->from, "%s", command);

    g_assert(strstr(out, output));
}

static void test_parameters(void)
{
    MuxTest t = {};

    if (!start(&t)) {
        return;
    }
    assert_hmp(&t, "info migrate_parameters", "channel-mux-timeout: 0 ms");
    assert_hmp(&t, "info migrate_parameters",
               "channel-mux-stop-timeout: 10000 ms");
    assert_hmp(&t, "migrate_set_parameter channel-mux-timeout 1500", "");
    assert_hmp(&t, "migrate_set_parameter channel-mux-stop-timeout 0", "");
    assert_hmp(&t, "info migrate_parameters", "channel-mux-timeout: 1500 ms");
    assert_hmp(&t, "info migrate_parameters",
               "channel-mux-stop-timeout: 0 ms");
    mux_end(&t, false);
}

static void test_no_hello_from_destination(void)
{
    g_autofree char *path = g_strdup_printf("%s/migsocket", tmpfs);
    MuxTest t = {};
    int fd;

    if (!start(&t)) {
        return;
    }
    fd = unix_listen(path, &error_abort);
    migrate_set_parameter_int(t.from, "channel-mux-timeout", 300);
    mux_migrate(&t, MUX_BOTH_DISKS);
    mux_wait_status(&t, "failed");
    mux_assert_error(t.from, "migration failed in phase 'connect': all "
                     "streams: no byte from the destination for 0.3 s");
    close(fd);
    migrate_set_parameter_int(t.from, "channel-mux-timeout", 0);
    mux_end_after_failure(&t);
}

static void test_no_hello_from_source(void)
{
    g_autofree char *path = g_strdup_printf("%s/migsocket", tmpfs);
    MuxTest t = {};
    int fd;

    if (!start(&t)) {
        return;
    }
    migrate_set_parameter_int(t.to, "channel-mux-timeout", 300);
    mux_listen(&t, MUX_BOTH_DISKS);
    fd = unix_connect(path, &error_abort);
    mux_wait_target_status(&t, "failed");
    mux_assert_error(t.to, "migration failed in phase 'connect': all streams: "
                     "no byte from the source for 0.3 s");
    close(fd);
    mux_end(&t, false);
}

/* A socket at @path that lets nobody else in; *@guest is who is in */
static int listen_full(const char *path, int *guest)
{
    struct sockaddr_un addr = { .sun_family = AF_UNIX };
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);

    g_assert_cmpint(strlen(path), <, sizeof(addr.sun_path));
    strcpy(addr.sun_path, path);
    g_assert(!bind(fd, (struct sockaddr *)&addr, sizeof(addr)));
    g_assert(!listen(fd, 0));
    *guest = unix_connect(path, &error_abort);
    return fd;
}

static void migrate_to(MuxTest *t, const char *path)
{
    g_autofree char *command = g_strdup_printf(
        "{ 'execute': 'migrate', 'arguments': { 'channels': ["
        "  { 'channel-type': 'main', 'addr': { 'transport': 'socket',"
        "    'type': 'unix', 'path': '%s' } }" MUX_BOTH_DISKS "] } }", path);

    qtest_qmp_assert_success(t->from, "%p",
                             qobject_from_json(command, &error_abort));
}

static void test_cancel_connect(void)
{
    g_autofree char *path = g_strdup_printf("%s/full", tmpfs);
    MuxTest t = {};
    int fd, guest;

    if (!start(&t)) {
        return;
    }
    fd = listen_full(path, &guest);
    migrate_to(&t, path);
    usleep(100 * 1000);
    mux_wait_status(&t, "setup");
    mux_wait_phase(&t, "connect");
    migrate_cancel(t.from);
    mux_wait_status(&t, "cancelled");

    migrate_ensure_non_converge(t.from);
    mux_listen(&t, MUX_BOTH_DISKS);
    mux_migrate(&t, MUX_BOTH_DISKS);
    mux_wait_phase(&t, "precopy");
    mux_wait_status(&t, "active");
    /* What comes of the first attempt does no harm to the second one. */
    close(guest);
    close(fd);
    unlink(path);
    usleep(100 * 1000);
    mux_complete(&t);
    mux_end(&t, true);
}

static void test_silence(void)
{
    MuxTest t = {};
    QTestState *stopped;

    if (!start(&t)) {
        return;
    }
    migrate_set_parameter_int(t.from, "channel-mux-timeout", 600);
    migrate_set_parameter_int(t.to, "channel-mux-timeout", 600);
    migrate_ensure_non_converge(t.from);
    mux_listen(&t, MUX_BOTH_DISKS);
    mux_migrate(&t, MUX_BOTH_DISKS);
    mux_wait_phase(&t, "precopy");
    /* With nothing to send, both sides are there all the same. */
    usleep(1500 * 1000);
    mux_wait_status(&t, "active");

    stopped = g_steal_pointer(&t.to);
    kill(qtest_pid(stopped), SIGSTOP);
    mux_wait_status(&t, "failed");
    mux_assert_error(t.from, "migration failed in phase 'precopy': all "
                     "streams: no byte from the destination for 0.6 s");
    kill(qtest_pid(stopped), SIGCONT);
    t.to = stopped;
    migrate_set_parameter_int(t.from, "channel-mux-timeout", 0);
    mux_end_after_failure(&t);
}

/* --- a stopped guest waits --- */

/* Migrate, but nothing passes any more from the last word about disk0 on. */
static void migrate_without_end_of_disk0(MuxTest *t, MuxRelay **relay)
{
    g_autofree char *listen = g_strdup_printf("unix:%s/relay", tmpfs);
    g_autofree char *connect = g_strdup_printf("unix:%s/migsocket", tmpfs);
    g_autofree char *path = g_strdup_printf("%s/relay", tmpfs);

    migrate_ensure_converge(t->from);
    mux_listen(t, MUX_BOTH_DISKS);
    *relay = mux_relay_new(listen, connect, NULL, NULL, &error_abort);
    mux_relay_add_fault(*relay, "silence,frame=FIN:nbd-disk0", &error_abort);
    migrate_to(t, path);
}

static void test_completion(void)
{
    MuxTest t = {};
    MuxRelay *relay;

    if (!start(&t)) {
        return;
    }
    migrate_set_parameter_int(t.from, "channel-mux-stop-timeout", 500);
    migrate_without_end_of_disk0(&t, &relay);
    mux_wait_status(&t, "failed");
    mux_assert_error(t.from, "migration failed in phase 'switchover': stream "
                     "'nbd-disk0': the destination's confirmation did not "
                     "come within 0.5 s");
    mux_relay_add_fault(relay, "heal", &error_abort);
    mux_wait_target_status(&t, "failed");
    mux_assert_error(t.to, "stream 'nbd-disk0': ", "aborted by the source: ",
                     "confirmation did not come within 0.5 s");
    mux_relay_free(relay);
    mux_end_after_failure(&t);
}

void migration_test_add_mux_timeout(MigrationTestEnv *env)
{
    tmpfs = env->tmpfs;
    mux_init(env);
    migration_test_add("/migration/mux/timeout-parameters", test_parameters);
    migration_test_add("/migration/mux/timeout-no-hello-from-destination",
                       test_no_hello_from_destination);
    migration_test_add("/migration/mux/timeout-no-hello-from-source",
                       test_no_hello_from_source);
    migration_test_add("/migration/mux/timeout-cancel-connect",
                       test_cancel_connect);
    migration_test_add("/migration/mux/timeout-silence", test_silence);
    migration_test_add("/migration/mux/timeout-completion", test_completion);
}
