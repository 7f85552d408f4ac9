/*
 * QTest testcases for the argument 'channel' of migrate and migrate-incoming
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "libqtest.h"
#include "migration/framework.h"
#include "migration/migration-qmp.h"
#include "migration/migration-util.h"
#include "qapi/error.h"
#include "qobject/qdict.h"
#include "qobject/qjson.h"

#define MACHINE \
    "-machine none -nodefaults " \
    "-blockdev null-co,node-name=disk0,size=1048576,read-zeroes=on " \
    "-blockdev null-co,node-name=disk1,size=1048576,read-zeroes=on "

#define ADDR(path) \
    "{ 'transport': 'socket', 'socket-type': {" \
    "  'type': 'unix', 'path': '" path "' } }"
#define EXEC(command) \
    "{ 'transport': 'exec', 'exec-str': '" command "' }"
#define RDMA(addr) "{ 'transport': 'rdma', 'rdma-str': '" addr "' }"
#define MAIN_TO(addr) "{ 'channeltype': 'main', 'addr': " addr " }"
#define MAIN MAIN_TO(ADDR("/nowhere"))
#define DISK(name) "{ 'channeltype': 'nbd-" name "' }"
#define CHANNEL(channel) "{ 'channel': " channel " }"

#define ONE_OF_THREE \
    "exactly one of the arguments 'uri', 'channel' and 'channels' is needed"

static const struct {
    const char *args;
    const char *error;
} refused[] = {
    { "{ 'uri': 'unix:/nowhere', 'channel': " MAIN " }", ONE_OF_THREE },
    { "{ 'channel': " MAIN ", 'channels': [] }", ONE_OF_THREE },
    { CHANNEL("[]"), "Channel list has no main entry" },
    { CHANNEL("'main'"), "Invalid parameter type for 'channel'" },
    { CHANNEL(DISK("disk0")), "Channel list has no main entry" },
    { CHANNEL("[ " MAIN ", " MAIN " ]"),
      "Channel list has more than one main entry" },
    { CHANNEL("{ 'channeltype': 'main' }"), "Channel 'main' has no 'addr'" },
    { CHANNEL("{ 'channeltype': 'nbd' }"),
      "Channel type 'nbd' is neither 'main' nor 'nbd-' followed by the name "
      "of a disk" },
    { CHANNEL("{ 'channeltype': 'main', 'sync': 'full', 'addr': "
              ADDR("/nowhere") " }"),
      "Channel 'main' has no 'node-name', 'sync' or 'detect-zeroes'" },
    { CHANNEL("{ 'channeltype': 'main', 'detect-zeroes': 'on', 'addr': "
              ADDR("/nowhere") " }"),
      "Channel 'main' has no 'node-name', 'sync' or 'detect-zeroes'" },
    { CHANNEL("[ " MAIN ", " DISK("") " ]"), "Disk name is empty" },
    { CHANNEL("[ " MAIN ", " DISK("none") " ]"),
      "Disk 'none': no block node or device is called 'none'" },
    { CHANNEL("[ " MAIN ", " DISK("disk0") ", " DISK("disk0") " ]"),
      "Channel list has more than one entry for disk 'disk0'" },
    { CHANNEL("[ " MAIN ", { 'channeltype': 'nbd-disk0', 'addr': "
              EXEC("false") " } ]"),
      "Disk 'disk0': a connection of its own is not supported" },
    { CHANNEL("[ " MAIN_TO(RDMA("host:1")) ", " DISK("disk0") " ]"),
      "Transport 'rdma' cannot be combined with" },
    { CHANNEL(MAIN_TO(RDMA("nonsense"))),
      "error parsing address 'nonsense'" },
};

static char *tmpfs;

static void check_refusals(QTestState *qts, const char *command)
{
    for (size_t i = 0; i < ARRAY_SIZE(refused); i++) {
        QObject *args = qobject_from_json(refused[i].args, &error_abort);
        QDict *err = qtest_qmp_assert_failure_ref(
            qts, "{ 'execute': %s, 'arguments': %p }", command, args);
        const char *desc = qdict_get_str(err, "desc");
        QDict *info = migrate_query(qts);

        if (!strstr(desc, refused[i].error)) {
            g_test_message("%s: expected '%s', got '%s'", command,
                           refused[i].error, desc);
            g_test_fail();
        }
        g_assert(!qdict_haskey(info, "status"));
        qobject_unref(info);
        qobject_unref(err);
    }
}

/* One object: the state goes through a command, and comes from another */
static void test_outgoing(void)
{
    g_autofree char *file = g_strdup_printf("%s/migfile", tmpfs);
    g_autofree char *store = g_strdup_printf("cat > %s.part && mv %s.part %s",
                                             file, file, file);
    g_autofree char *load = g_strdup_printf("cat %s", file);
    QTestState *from = qtest_init(MACHINE);
    QTestState *to = qtest_init(MACHINE "-incoming defer");

    check_refusals(from, "migrate");
    qtest_qmp_assert_success(
        from, "{ 'execute': 'migrate', 'arguments': { 'channel': {"
        "    'channeltype': 'main', 'addr': {"
        "      'transport': 'exec', 'exec-str': %s } } } }", store);
    wait_for_migration_complete(from);
    /* The command may not have ended yet. */
    g_test_timer_start();
    while (access(file, F_OK)) {
        g_assert(g_test_timer_elapsed() < 120);
        usleep(1000);
    }

    qtest_qmp_assert_success(
        to, "{ 'execute': 'migrate-incoming', 'arguments': { 'channel': {"
        "    'channeltype': 'main', 'addr': {"
        "      'transport': 'exec', 'exec-str': %s } } } }", load);
    wait_for_migration_complete(to);

    qtest_quit(from);
    qtest_quit(to);
    unlink(file);
}

/* A list, with one disk that has another name on this side */
static void test_incoming(void)
{
    g_autofree char *path = g_strdup_printf("%s/migsocket", tmpfs);
    QTestState *to = qtest_init(MACHINE "-incoming defer");
    g_autofree char *status = NULL;

    check_refusals(to, "migrate-incoming");
    qtest_qmp_assert_success(
        to, "{ 'execute': 'migrate-incoming', 'arguments': { 'channel': ["
        "    { 'channeltype': 'main', 'addr': { 'transport': 'socket',"
        "      'socket-type': { 'type': 'unix', 'path': %s } } },"
        "    { 'channeltype': 'nbd-disk0' },"
        "    { 'channeltype': 'nbd-other', 'node-name': 'disk1' } ] } }",
        path);
    status = migrate_query_status(to);
    g_assert_cmpstr(status, ==, "setup");

    qtest_quit(to);
    unlink(path);
}

void migration_test_add_migrate_channel(MigrationTestEnv *env)
{
    tmpfs = env->tmpfs;

    migration_test_add("/migration/migrate-channel/outgoing", test_outgoing);
    migration_test_add("/migration/migrate-channel/incoming", test_incoming);
}
