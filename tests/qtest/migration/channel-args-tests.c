/*
 * QTest testcases for what migrate and migrate-incoming refuse
 *
 * Each refusal is checked for its message, and for having started nothing:
 * the same QEMU afterwards accepts a command that is right.
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
#include "qobject/qlist.h"

#define MACHINE "-machine none -nodefaults "

#define NODES \
    "-blockdev null-co,node-name=disk0,size=1048576,read-zeroes=on " \
    "-blockdev null-co,node-name=disk1,size=1048576,read-zeroes=on " \
    "-blockdev null-co,node-name=below0,size=1048576,read-zeroes=on " \
    "-blockdev raw,node-name=above0,file=below0 " \
    "-blockdev null-co,node-name=ro0,size=1048576,read-only=on " \
    "-drive if=none,id=drive0,driver=null-co,size=1048576 " \
    "-drive if=none,id=empty0,media=cdrom "

#define ADDR(path) \
    "{ 'transport': 'socket', 'type': 'unix', 'path': '" path "' }"
#define MAIN_TO(addr) "{ 'channel-type': 'main', 'addr': " addr " }"
#define MAIN MAIN_TO(ADDR("/nowhere"))
#define RDMA MAIN_TO("{ 'transport': 'rdma', 'host': 'h', 'port': '1' }")
#define TOFILE \
    MAIN_TO("{ 'transport': 'file', 'filename': '/nowhere', 'offset': 0 }")
#define CPR "{ 'channel-type': 'cpr', 'addr': " ADDR("/nowhere2") " }"
#define NBD(members) "{ 'channel-type': 'nbd', " members " }"
#define DISK(name) NBD("'disk': '" name "'")
#define CHANNELS(list) "{ 'channels': [ " list " ] }"

#define EXCLUDES_MUX \
    "cannot be combined with capability 'channel-mux' or channels of type " \
    "'nbd'"

typedef struct Refusal {
    const char *args;
    const char *error;
} Refusal;

static const Refusal refused_by_both[] = {
    { "{}", "exactly one of the arguments 'uri' and 'channels' is needed" },
    { "{ 'uri': 'unix:/nowhere', 'channels': [ " MAIN " ] }",
      "exactly one of the arguments 'uri' and 'channels' is needed" },
    { CHANNELS(""), "Channel list has no main entry" },
    { CHANNELS(DISK("disk0")), "Channel list has no main entry" },
    { CHANNELS(MAIN ", " MAIN), "Channel list has more than one main entry" },
    { CHANNELS(CPR ", " MAIN ", " CPR),
      "Channel list has more than one cpr entry" },
    { CHANNELS("{ 'channel-type': 'main' }"), "Channel 'main' has no 'addr'" },
    { CHANNELS(MAIN ", { 'channel-type': 'cpr' }"),
      "Channel 'cpr' has no 'addr'" },
    { CHANNELS(MAIN ", { 'channel-type': 'nbd' }"),
      "Parameter 'channels[1].disk' is missing" },
    { CHANNELS(MAIN ", " DISK("")), "Disk name is empty" },
    { CHANNELS(MAIN ", " DISK("0disk")),
      "Disk name '0disk' is not well-formed" },
    { CHANNELS(MAIN ", " DISK("#block123")),
      "Disk name '#block123' is not well-formed: it must start with a letter "
      "and have only letters, digits, '-', '.' and '_'; use 'node-name' for "
      "a node with another name" },
    { CHANNELS(MAIN ", " DISK("none")),
      "Disk 'none': no block node or device is called 'none'" },
    { CHANNELS(MAIN ", " NBD("'disk': 'disk0', 'node-name': 'none'")),
      "Disk 'disk0': no block node or device is called 'none'" },
    { CHANNELS(MAIN ", " NBD("'disk': 'disk0', 'node-name': ''")),
      "Disk 'disk0': no block node or device is called ''" },
    { CHANNELS(MAIN ", " NBD("'disk': 'disk0', 'node-name': '/machine'")),
      "Disk 'disk0': no block node or device is called '/machine'" },
    { CHANNELS(MAIN ", " DISK("empty0")),
      "Disk 'empty0': device 'empty0' has no medium" },
    { CHANNELS(MAIN ", " DISK("disk0") ", " DISK("disk1") ", " DISK("disk0")),
      "Channel list has more than one entry for disk 'disk0'" },
    { CHANNELS(MAIN ", " DISK("disk0") ", "
               NBD("'disk': 'other', 'node-name': 'disk0'")),
      "Disks 'disk0' and 'other' are the same node 'disk0'" },
    { CHANNELS(MAIN ", " NBD("'disk': 'disk0', 'addr': " ADDR("/other"))),
      "Disk 'disk0': a connection of its own is not supported" },
    { CHANNELS(MAIN ", " NBD("'disk': '*', 'node-name': 'disk0'")),
      "Disk '*': 'node-name' is not accepted" },
    { CHANNELS(MAIN ", " DISK("*") ", " DISK("disk0") ", " DISK("*")),
      "Channel list has more than one entry for disk '*'" },
    { CHANNELS(MAIN ", " NBD("'disk': '*', 'addr': " ADDR("/other"))),
      "Disk '*': a connection of its own is not supported" },
    { CHANNELS(TOFILE ", " DISK("*")), "Transport 'file' " EXCLUDES_MUX },
    { CHANNELS(RDMA ", " DISK("disk0")), "Transport 'rdma' " EXCLUDES_MUX },
    { CHANNELS(TOFILE ", " DISK("disk0")), "Transport 'file' " EXCLUDES_MUX },
    { "{ 'uri': 'rdma:nonsense' }", "error parsing address 'nonsense'" },
};

static const Refusal refused_by_migrate[] = {
    { CHANNELS(MAIN ", " CPR ", " DISK("disk0")),
      "Channel type 'cpr' " EXCLUDES_MUX },
    { CHANNELS(MAIN ", " NBD("'disk': 'disk0', 'sync': 'none'")),
      "Parameter 'sync' does not accept value 'none'" },
    { CHANNELS(MAIN ", " DISK("below0")),
      "Disk 'below0': node 'below0' is a child of node 'above0' (driver "
      "'raw'); use the topmost node of the disk" },
    { CHANNELS(MAIN ", " DISK("drive0")),
      "Disk 'drive0': node 'drive0' is in use by job" },
    { "{ 'resume': true, 'channels': [ " MAIN ", " DISK("disk0") " ] }",
      "Disk 'disk0': not accepted when resuming a migration" },
    { "{ 'resume': true, 'channels': [ " MAIN ", " DISK("*") " ] }",
      "Disk '*': not accepted when resuming a migration" },
};

static const Refusal refused_by_incoming[] = {
    { CHANNELS(MAIN ", " CPR),
      "Channel 'cpr' is only accepted by '-incoming'" },
    { CHANNELS(MAIN ", " NBD("'disk': 'disk0', 'sync': 'full'")),
      "Disk 'disk0': 'sync' is only accepted by 'migrate'" },
    { CHANNELS(MAIN ", " NBD("'disk': 'disk0', 'detect-zeroes': 'on'")),
      "Disk 'disk0': 'detect-zeroes' is only accepted by 'migrate'" },
    { CHANNELS(MAIN ", " DISK("ro0")), "Disk 'ro0': node 'ro0' is read-only" },
};

static char *tmpfs;

static void assert_refused(QTestState *qts, const char *command, QDict *args,
                           const char *error)
{
    QDict *err = qtest_qmp_assert_failure_ref(
        qts, "{ 'execute': %s, 'arguments': %p }", command, args);
    const char *desc = qdict_get_str(err, "desc");

    if (!strstr(desc, error)) {
        g_test_message("%s: expected '%s', got '%s'", command, error, desc);
        g_test_fail();
    }
    qobject_unref(err);
}

static void assert_nothing_started(QTestState *qts)
{
    QDict *info = migrate_query(qts);

    g_assert(!qdict_haskey(info, "status"));
    qobject_unref(info);
}

static void check_table(QTestState *qts, const char *command,
                        const Refusal *table, size_t len)
{
    for (size_t i = 0; i < len; i++) {
        QObject *args = qobject_from_json(table[i].args, &error_abort);

        assert_refused(qts, command, qobject_to(QDict, args), table[i].error);
        assert_nothing_started(qts);
    }
}

static QDict *channels_with_disk(const char *disk)
{
    return qdict_from_jsonf_nofail(
        "{ 'channels': [ { 'channel-type': 'main', 'addr': {"
        "      'transport': 'socket', 'type': 'unix', 'path': '/nowhere' } },"
        "    { 'channel-type': 'nbd', 'disk': %s } ] }", disk);
}

/* The longest name is looked for; one character more is too long */
static void check_name_length(QTestState *qts, const char *command)
{
    g_autofree char *longest = g_strnfill(200, 'x');
    g_autofree char *too_long = g_strnfill(201, 'x');

    assert_refused(qts, command, channels_with_disk(longest),
                   "no block node or device is called 'xxx");
    assert_refused(qts, command, channels_with_disk(too_long),
                   "Disk name 'xxxxxxxxxxxxxxxx...' is longer than 200 "
                   "characters");
    assert_nothing_started(qts);
}

/* Returns whether @qts accepts @mode, which then is set */
static bool try_mode(QTestState *qts, const char *mode)
{
    QDict *rsp = qtest_qmp(qts, "{ 'execute': 'migrate-set-parameters',"
                           "  'arguments': { 'mode': %s } }", mode);
    bool ok = qdict_haskey(rsp, "return");

    qobject_unref(rsp);
    return ok;
}

static void check_modes(QTestState *qts, const char *command)
{
    static const char *const modes[] = { "cpr-reboot", "cpr-transfer" };

    for (size_t i = 0; i < ARRAY_SIZE(modes); i++) {
        g_autofree char *error = g_strdup_printf("Mode '%s' %s", modes[i],
                                                 EXCLUDES_MUX);

        if (try_mode(qts, modes[i])) {
            assert_refused(qts, command, channels_with_disk("disk0"), error);
        }
    }
    g_assert(try_mode(qts, "normal"));
    assert_nothing_started(qts);
}

/* Returns the error, to be freed, or NULL when @qts set the capability */
static char *try_capability(QTestState *qts, const char *name)
{
    QDict *rsp = qtest_qmp(qts, "{ 'execute': 'migrate-set-capabilities',"
                           "  'arguments': { 'capabilities': ["
                           "    { 'capability': %s, 'state': true } ] } }",
                           name);
    char *error = NULL;

    if (qdict_haskey(rsp, "error")) {
        error = g_strdup(qdict_get_str(qdict_get_qdict(rsp, "error"), "desc"));
    }
    qobject_unref(rsp);
    return error;
}

/* @name and channel-mux exclude each other; @command refuses @name, too */
static void check_capability(QTestState *qts, const char *command,
                             const char *name)
{
    g_autofree char *unsupported = try_capability(qts, name);
    g_autofree char *expected = g_strdup_printf("Capability '%s' %s", name,
                                                EXCLUDES_MUX);
    g_autofree char *error = NULL;
    g_autofree char *reverse = NULL;

    if (unsupported) {
        g_test_message("skipped: %s", unsupported);
        return;
    }

    error = try_capability(qts, "channel-mux");
    g_assert_cmpstr(error, ==, expected);
    assert_refused(qts, command, channels_with_disk("disk0"), expected);

    migrate_set_capability(qts, name, false);
    migrate_set_capability(qts, "channel-mux", true);
    reverse = try_capability(qts, name);
    g_assert_cmpstr(reverse, ==, expected);
    migrate_set_capability(qts, "channel-mux", false);
}

static void check_capabilities(QTestState *qts, const char *command)
{
    check_capability(qts, command, "mapped-ram");
    check_capability(qts, command, "background-snapshot");
    check_capability(qts, command, "x-colo");

    migrate_set_capability(qts, "multifd", true);
    check_capability(qts, command, "zero-copy-send");
    migrate_set_capability(qts, "multifd", false);

    /* Without disks, too */
    migrate_set_capability(qts, "channel-mux", true);
    assert_refused(qts, command,
                   qdict_from_jsonf_nofail("{ 'uri': 'file:/nowhere' }"),
                   "Transport 'file' " EXCLUDES_MUX);
    migrate_set_capability(qts, "channel-mux", false);
    assert_nothing_started(qts);
}

static void check_refusals(QTestState *qts, const char *command)
{
    check_table(qts, command, refused_by_both, ARRAY_SIZE(refused_by_both));
    check_name_length(qts, command);
    check_modes(qts, command);
    check_capabilities(qts, command);
}

static void start_mirror(QTestState *qts, const char *device)
{
    qtest_qmp_assert_success(
        qts, "{ 'execute': 'blockdev-mirror', 'arguments': {"
        "    'job-id': 'mirror', 'device': %s, 'target': 'disk1',"
        "    'sync': 'none' } }", device);
}

static void test_outgoing(void)
{
    g_autofree char *path = g_strdup_printf("%s/migsocket", tmpfs);
    QTestState *from = qtest_init(MACHINE NODES);
    QTestState *to = qtest_initf(MACHINE "-incoming unix:%s", path);

    check_refusals(from, "migrate");
    start_mirror(from, "drive0");
    check_table(from, "migrate", refused_by_migrate,
                ARRAY_SIZE(refused_by_migrate));
    qtest_qmp_assert_success(
        from, "{ 'execute': 'block-job-cancel',"
        "  'arguments': { 'device': 'mirror', 'force': true } }");

    qtest_qmp_assert_success(
        from, "{ 'execute': 'migrate', 'arguments': { 'channels': ["
        "    { 'channel-type': 'main', 'addr': { 'transport': 'socket',"
        "      'type': 'unix', 'path': %s } } ] } }", path);
    wait_for_migration_complete(from);

    qtest_quit(from);
    qtest_quit(to);
}

static void test_incoming(void)
{
    g_autofree char *path = g_strdup_printf("%s/migsocket", tmpfs);
    QTestState *to = qtest_init(MACHINE NODES "-incoming defer");
    g_autofree char *status = NULL;

    check_refusals(to, "migrate-incoming");
    check_table(to, "migrate-incoming", refused_by_incoming,
                ARRAY_SIZE(refused_by_incoming));

    qtest_qmp_assert_success(
        to, "{ 'execute': 'migrate-incoming', 'arguments': { 'channels': ["
        "    { 'channel-type': 'nbd', 'disk': 'disk0' },"
        "    { 'channel-type': 'main', 'addr': { 'transport': 'socket',"
        "      'type': 'unix', 'path': %s } },"
        "    { 'channel-type': 'nbd', 'disk': 'other', 'node-name': 'disk1',"
        "      'addr': { 'transport': 'socket', 'type': 'unix',"
        "        'path': %s } },"
        "    { 'channel-type': 'nbd', 'disk': 'drive0' } ] } }", path, path);
    status = migrate_query_status(to);
    g_assert_cmpstr(status, ==, "setup");

    qtest_quit(to);
    unlink(path);
}

/* @before and @after stand around the path of the socket to listen on */
static void check_command_line(const char *before, const char *after)
{
    g_autofree char *path = g_strdup_printf("%s/migsocket", tmpfs);
    QTestState *to = qtest_initf(MACHINE NODES "%s%s%s", before, path, after);
    g_autofree char *status = migrate_query_status(to);

    g_assert_cmpstr(status, ==, "setup");
    qtest_quit(to);
    unlink(path);
}

static void test_command_line(void)
{
    check_command_line("-incoming unix:", " -incoming nbd,disk=disk0");
    check_command_line("-incoming nbd,disk=disk0 "
                       "-incoming nbd,disk=other,node-name=disk1 "
                       "-incoming main,addr.transport=socket,addr.type=unix,"
                       "addr.path=", "");
    check_command_line("-incoming '[ { \"channel-type\": \"main\","
                       "  \"addr\": { \"transport\": \"socket\","
                       "    \"type\": \"unix\", \"path\": \"",
                       "\" } }, { \"channel-type\": \"nbd\","
                       "    \"disk\": \"disk0\" } ]'");
}

/* The disk's only name was that of a node, which a mirror has replaced. */
static void test_unnamed_disk(void)
{
    QTestState *qts;
    QDict *err;
    char **words;

    if (!g_str_equal(qtest_get_arch(), "x86_64")) {
        g_test_skip("needs the machine q35");
        return;
    }
    /* The size must be that of null-co:// */
    qts = qtest_init("-machine q35 -nodefaults -device virtio-blk,drive=disk0 "
                     "-blockdev null-co,node-name=disk0,size=1073741824,"
                     "read-zeroes=on");
    qtest_qmp_assert_success(qts, "{ 'execute': 'drive-mirror', 'arguments': {"
                             "  'job-id': 'job', 'device': 'disk0',"
                             "  'target': 'null-co://', 'format': 'raw',"
                             "  'mode': 'existing', 'sync': 'none' } }");
    qtest_qmp_eventwait(qts, "BLOCK_JOB_READY");
    qtest_qmp_assert_success(qts, "{ 'execute': 'block-job-complete',"
                             "  'arguments': { 'device': 'job' } }");
    qtest_qmp_eventwait(qts, "BLOCK_JOB_COMPLETED");
    err = qtest_qmp_assert_failure_ref(
        qts, "{ 'execute': 'migrate', 'arguments': "
        CHANNELS(MAIN ", " DISK("*")) " }");
    words = g_strsplit(qdict_get_str(err, "desc"), "'", -1);
    g_assert_cmpstr(words[2], ==, ": node ");
    g_assert_cmpstr(words[4], ==, " has a generated name, and neither its "
                    "drive nor its device has an id; list it with ");
    qobject_unref(err);
    assert_nothing_started(qts);
    qtest_qmp_assert_success(
        qts, "{ 'execute': 'migrate', 'arguments': "
        CHANNELS(MAIN ", " NBD("'disk': 'x', 'node-name': %s") ", " DISK("*"))
        " }", words[3]);
    g_strfreev(words);
    qtest_quit(qts);
}

static void check_command_line_refused(const char *incoming, const char *error)
{
    g_autofree char *command = g_strdup_printf(
        "%s -display none -accel qtest %s %s", getenv("QTEST_QEMU_BINARY"),
        MACHINE NODES, incoming);
    g_autofree char *output = NULL;
    int status;

    g_assert(g_spawn_command_line_sync(command, NULL, &output, &status, NULL));
    if (!WIFEXITED(status) || WEXITSTATUS(status) != 1 ||
        !strstr(output, error)) {
        g_test_message("%s: status %d, expected: %s, got: %s", incoming,
                       status, error, output);
        g_test_fail();
    }
}

static void test_command_line_refused(void)
{
    check_command_line_refused("-incoming nbd,disk=disk0",
                               "Channel list has no main entry");
    check_command_line_refused("-incoming defer -incoming nbd,disk=disk0",
                               "-incoming defer: list the disks in "
                               "migrate-incoming");
    check_command_line_refused("-incoming []",
                               "Channel list has no main entry");
    check_command_line_refused("-incoming main",
                               "Channel 'main' has no 'addr'");
    check_command_line_refused("-incoming unix:/nowhere "
                               "-incoming nbd,disk=disk0 "
                               "-incoming nbd,disk=disk0",
                               "Channel list has more than one entry for disk "
                               "'disk0'");
    check_command_line_refused("-incoming unix:/nowhere "
                               "-incoming nbd,disk=none",
                               "Disk 'none': no block node or device is "
                               "called 'none'");
}

void migration_test_add_channel_args(MigrationTestEnv *env)
{
    tmpfs = env->tmpfs;

    migration_test_add("/migration/channel-args/outgoing", test_outgoing);
    migration_test_add("/migration/channel-args/incoming", test_incoming);
    migration_test_add("/migration/channel-args/unnamed-disk",
                       test_unnamed_disk);
    migration_test_add("/migration/channel-args/command-line",
                       test_command_line);
    migration_test_add("/migration/channel-args/command-line-refused",
                       test_command_line_refused);
}
