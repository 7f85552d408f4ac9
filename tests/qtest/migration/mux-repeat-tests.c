/*
 * QTest testcase for many failed migrations of one source
 *
 * No failure leaves resources behind that can be listed, and the last migration
 * succeeds.  With AddressSanitizer, leaks are detected when the source exits.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/sockets.h"
#include "qemu/units.h"
#include "libqtest.h"
#include "migration/framework.h"
#include "migration/migration-qmp.h"
#include "migration/mux-util.h"
#include "migration/mux/frame.h"


#define NUM_ATTEMPTS (2 * ARRAY_SIZE(attempts))

static char *tmpfs;

/* --- the test plays the destination --- */

/* Returns: the listening socket that mux_migrate() connects to */
static int listen_here(void)
{
    struct sockaddr_un addr = { .sun_family = AF_UNIX };
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);

    snprintf(addr.sun_path, sizeof(addr.sun_path), "%s/migsocket", tmpfs);
    unlink(addr.sun_path);
    g_assert_cmpint(fd, >=, 0);
    g_assert_cmpint(bind(fd, (struct sockaddr *)&addr, sizeof(addr)), ==, 0);
    g_assert_cmpint(listen(fd, 1), ==, 0);
    return fd;
}

/* Returns: the source's connection to the test */
static int migrate_to_here(MuxTest *t)
{
    int listener = listen_here();
    int fd;

    mux_migrate(t, MUX_BOTH_DISKS);
    fd = accept(listener, NULL, NULL);
    g_assert_cmpint(fd, >=, 0);
    close(listener);
    return fd;
}

static void fail_no_listener(MuxTest *t)
{
    close(listen_here());
    mux_migrate(t, MUX_BOTH_DISKS);
    mux_wait_status(t, "failed");
}

static void fail_closed(MuxTest *t)
{
    char hello[MUX_HELLO_V2_SIZE];
    int fd = migrate_to_here(t);

    g_assert_cmpint(recv(fd, hello, sizeof(hello), MSG_WAITALL), ==,
                    sizeof(hello));
    close(fd);
    mux_wait_status(t, "failed");
}

static void fail_stranger(MuxTest *t)
{
    static const char hello[] = "SSH-2.0-OpenSSH_9.2p1 Debian-2+deb12u3\r\n";
    int fd = migrate_to_here(t);

    g_assert_cmpint(write(fd, hello, strlen(hello)), ==, strlen(hello));
    mux_wait_status(t, "failed");
    close(fd);
}

static void cancel_connect(MuxTest *t)
{
    int fd = migrate_to_here(t);

    mux_wait_phase(t, "connect");
    migrate_cancel(t->from);
    mux_wait_status(t, "cancelled");
    close(fd);
}

/* --- with a destination --- */

static void migrate(MuxTest *t)
{
    mux_listen(t, MUX_BOTH_DISKS);
    mux_migrate(t, MUX_BOTH_DISKS);
}

static void migrate_into_disks(MuxTest *t)
{
    migrate_set_parameter_int(t->from, "max-bandwidth", MiB);
    migrate(t);
    mux_wait_jobs(t);
}

/*
 * RAM does not converge: within the downtime limit, less than a page can be
 * sent.
 */
static void migrate_into_precopy(MuxTest *t)
{
    migrate_set_parameter_int(t->from, "max-bandwidth", 256 * MiB);
    migrate_set_parameter_int(t->from, "downtime-limit", 1);
    migrate_set_parameter_int(t->from, "avail-switchover-bandwidth", MiB);
    migrate(t);
    mux_wait_phase(t, "precopy");
    mux_wait_status(t, "active");
}

static void fail_not_listed(MuxTest *t)
{
    mux_listen(t, MUX_DISK0);
    mux_migrate(t, MUX_BOTH_DISKS);
    mux_wait_status(t, "failed");
}

static void cancel_disks(MuxTest *t)
{
    migrate_into_disks(t);
    migrate_cancel(t->from);
    mux_wait_status(t, "cancelled");
}

static void fail_destination_quits(MuxTest *t)
{
    migrate_into_disks(t);
    qtest_quit(t->to);
    t->to = NULL;
    mux_wait_status(t, "failed");
}

static void cancel_precopy(MuxTest *t)
{
    migrate_into_precopy(t);
    migrate_cancel(t->from);
    mux_wait_status(t, "cancelled");
}

static void fail_job_cancelled(MuxTest *t)
{
    migrate_into_precopy(t);
    qtest_qmp_assert_success(t->from, "{ 'execute': 'block-job-cancel',"
                             "  'arguments': { 'device': 'nbd-disk1' } }");
    mux_wait_status(t, "failed");
}

static void fail_yank(MuxTest *t)
{
    migrate_into_precopy(t);
    qtest_qmp_assert_success(t->from, "{ 'execute': 'yank', 'arguments': {"
                             "  'instances': [ { 'type': 'migration' } ] } }");
    mux_wait_status(t, "failed");
}

/* The disks are complete, and the guest has been stopped. */
static void cancel_switchover(MuxTest *t)
{
    migrate_set_capability(t->from, "pause-before-switchover", true);
    migrate_into_precopy(t);
    migrate_set_parameter_int(t->from, "avail-switchover-bandwidth", 0);
    migrate_ensure_converge(t->from);
    mux_wait_status(t, "pre-switchover");
    migrate_cancel(t->from);
    mux_wait_status(t, "cancelled");
    mux_wait_running(t->from);
    migrate_set_capability(t->from, "pause-before-switchover", false);
}

/* --- all of them --- */

typedef struct Attempt {
    const char *name;
    void (*run)(MuxTest *t);
    const char *error;          /* NULL: it is cancelled, not failed */
    bool target;                /* it needs a destination */
} Attempt;

static const Attempt attempts[] = {
    { "no listener", fail_no_listener, "Failed to connect" },
    { "closed", fail_closed, "closed the connection before its HELLO" },
    { "stranger", fail_stranger, "does not speak the migration multiplexer" },
    { "cancel in connect", cancel_connect },
    { "disk not listed", fail_not_listed, "not listed", true },
    { "cancel in disks", cancel_disks, NULL, true },
    { "destination quits", fail_destination_quits, "was shut down", true },
    { "cancel in precopy", cancel_precopy, NULL, true },
    { "job cancelled", fail_job_cancelled, "job 'nbd-disk1'", true },
    { "yank", fail_yank, "yanked", true },
    { "cancel in switchover", cancel_switchover, NULL, true },
};

/* Counted from the source's events */
typedef struct EventCounts {
    int jobs;                   /* existing ones */
    int ended;                  /* failed or cancelled migrations */
} EventCounts;

/* The end of a migration is reported when its jobs are gone. */
static bool on_event(QTestState *who, const char *name, QDict *event,
                     void *opaque)
{
    EventCounts *counts = opaque;
    QDict *data = qdict_get_qdict(event, "data");
    const char *status = data ? qdict_get_try_str(data, "status") : NULL;

    if (g_str_equal(name, "JOB_STATUS_CHANGE")) {
        counts->jobs += g_str_equal(status, "created");
        counts->jobs -= g_str_equal(status, "null");
    } else if (g_str_equal(name, "MIGRATION") &&
               (g_str_equal(status, "failed") ||
                g_str_equal(status, "cancelled"))) {
        g_assert_cmpint(counts->jobs, ==, 0);
        counts->ended++;
    }
    return false;
}

static void run_attempt(MuxTest *t, const Attempt *attempt)
{
    EventCounts counts = { };

    g_test_message("attempt: %s", attempt->name);
    if (attempt->target) {
        mux_replace_target(t);
    }
    qtest_qmp_set_event_callback(t->from, on_event, &counts);
    attempt->run(t);
    qtest_qmp_set_event_callback(t->from, NULL, NULL);
    g_assert_cmpint(counts.ended, ==, 1);
    mux_assert_no_jobs(t);
    if (attempt->error) {
        mux_assert_error(t->from, attempt->error);
    }
    migrate_set_parameter_int(t->from, "avail-switchover-bandwidth", 0);
    g_assert(mux_is_running(t->from));
    mux_assert_nothing_left(t);
}

static void test_fail_repeatedly(void)
{
    MuxTest t = { .keep_target = true };

    if (!mux_start(&t)) {
        return;
    }
    migrate_set_capability(t.from, "events", true);
    mux_write(&t, 0, 0x40, 0, 4 * MiB);
    for (unsigned i = 0; i < NUM_ATTEMPTS; i++) {
        run_attempt(&t, &attempts[i % ARRAY_SIZE(attempts)]);
    }
    mux_end_after_failure(&t);
}

void migration_test_add_mux_repeat(MigrationTestEnv *env)
{
    tmpfs = env->tmpfs;
    mux_init(env);
    migration_test_add("/migration/mux/repeat/failures", test_fail_repeatedly);
}
