/*
 * QTest helpers for migration over a multiplexed connection
 *
 * What a disk must contain is kept in a raw image of the test's own, which
 * mux_write() writes to as well: two empty images are identical, too.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "libqtest.h"
#include "migration/migration-qmp.h"
#include "migration/migration-util.h"
#include "migration/mux-util.h"
#include "qapi/error.h"
#include "qobject/qjson.h"
#include "qobject/qlist.h"
#include "qobject/qstring.h"
#include "qemu/units.h"

#define BARE_RAM_MB     32
#define BARE_FILLED_MB  8       /* from here on it is not zero */

static const char *const formats[MUX_NUM_DISKS] = { "raw", "qcow2" };
static MigrationTestEnv *mux_env;

void mux_init(MigrationTestEnv *env)
{
    mux_env = env;
}

/* --- images --- */

char *mux_image_path(const char *side, unsigned disk)
{
    return g_strdup_printf("%s/%s-disk%u", mux_env->tmpfs, side, disk);
}

static void create_image(const char *side, unsigned disk, const char *format,
                         unsigned size_mb)
{
    g_autofree char *path = mux_image_path(side, disk);

    g_assert(mkimg(path, format, size_mb));
}

static void create_images(const char *side, unsigned disk0_mb)
{
    create_image(side, 0, formats[0], disk0_mb);
    create_image(side, 1, formats[1], MUX_DISK_SIZE_MB);
}

static void remove_files(void)
{
    static const char *const sides[] = { "src", "dst", "expected" };
    static const char *const others[] = {
        "src_serial", "dest_serial", "migsocket", "relay"
    };

    for (unsigned i = 0; i < ARRAY_SIZE(sides) * MUX_NUM_DISKS; i++) {
        g_autofree char *path = mux_image_path(sides[i / MUX_NUM_DISKS],
                                           i % MUX_NUM_DISKS);

        unlink(path);
    }
    for (unsigned i = 0; i < ARRAY_SIZE(others); i++) {
        g_autofree char *path = g_strdup_printf("%s/%s", mux_env->tmpfs,
                                                others[i]);

        unlink(path);
    }
}

void mux_write_image(const char *side, unsigned disk, uint8_t pattern,
                     size_t offset, size_t len)
{
    g_autofree char *path = mux_image_path(side, disk);
    g_autofree char *data = g_malloc(len);
    int fd = open(path, O_WRONLY);

    memset(data, pattern, len);
    g_assert_cmpint(fd, >=, 0);
    g_assert_cmpint(pwrite(fd, data, len, offset), ==, len);
    close(fd);
}

static void assert_image_as_expected(const char *side, unsigned disk)
{
    g_autofree char *path = mux_image_path(side, disk);
    g_autofree char *expected = mux_image_path("expected", disk);
    const char *argv[] = {
        getenv("QTEST_QEMU_IMG"), "compare", "-f", "raw", "-F", formats[disk],
        expected, path, NULL
    };
    g_autofree char *out = NULL;
    g_autofree char *err = NULL;
    int status;

    g_assert(g_spawn_sync(NULL, (char **)argv, NULL, G_SPAWN_SEARCH_PATH, NULL,
                          NULL, &out, &err, &status, NULL));
    if (status) {
        g_test_message("%s-disk%u: %s%s", side, disk, out, err);
    }
    g_assert_cmpint(status, ==, 0);
}

/* --- both sides --- */

/* Flushes are not passed on: no test waits for the host's disk. */
#define FILE_PROTOCOL "driver=file,cache.no-flush=on,filename="

static char *disk_options(const char *side, unsigned disk, const char *node,
                          const char *protocol)
{
    g_autofree char *path = mux_image_path(side, disk);

    return g_strdup_printf("-blockdev %s%s,node-name=file%u "
                           "-blockdev driver=%s,file=file%u,node-name=%s%u "
                           "-device virtio-blk,id=vd%u,drive=%s%u ",
                           protocol, path, disk, formats[disk], disk, node,
                           disk, disk, node, disk);
}

static char *side_options(MuxTest *t, const char *side, const char *node,
                          const char *protocol0, const char *protocol1)
{
    g_autofree char *disk0 = disk_options(side, 0, node,
                                          protocol0 ?: FILE_PROTOCOL);
    g_autofree char *disk1 = disk_options(side, 1, node,
                                          protocol1 ?: FILE_PROTOCOL);
    /* The guest's program is in the framework's own disk. */
    const char *boot = mux_env->is_x86 && !t->bare ?
                       "-global ide-hd.bootindex=1" : "";

    return g_strconcat(MUX_WORKERS_OPTION, disk0, disk1, boot, NULL);
}

static QTestState *start_bare(MuxTest *t, const char *name,
                              const char *options)
{
    g_autofree char *args = g_strdup_printf(
        "-machine pc -nodefaults -vga none -m %u "
        "-name %s,debug-threads=on %s%s%s", BARE_RAM_MB, name, options,
        g_str_equal(name, "target") ? "-incoming defer " : "",
        t->keep_target && !getenv("QTEST_LOG") ? "2>/dev/null" : "");
    g_autoptr(QList) capabilities = qlist_new();

    qlist_append_str(capabilities, "oob");
    return qtest_init_with_env_and_capabilities(NULL, args, capabilities,
                                                true);
}

/* RAM that is not zero, and that the destination must have */
static void fill_bare_ram(MuxTest *t)
{
    for (unsigned mb = BARE_FILLED_MB; mb < BARE_RAM_MB; mb++) {
        qtest_memset(t->from, mb * MiB, mb, MiB);
    }
}

static void assert_bare_ram(QTestState *who)
{
    for (unsigned mb = BARE_FILLED_MB; mb < BARE_RAM_MB; mb++) {
        for (unsigned page = 0; page < MiB; page += 64 * KiB) {
            g_assert_cmpuint(qtest_readb(who, mb * MiB + page), ==, mb);
        }
    }
}

static int start_processes(MuxTest *t, bool only_target)
{
    g_autofree char *from = side_options(t, "src", "disk", t->from_protocol,
                                         NULL);
    g_autofree char *to = side_options(t, "dst", t->to_node ?: "disk",
                                       t->to_protocol, t->to_protocol1);
    MigrateStart start = {
        .only_target = only_target,
        .hide_stderr = t->keep_target,
        .opts_source = from,
        .opts_target = to,
    };

    if (!t->bare) {
        return migrate_start(&t->from, &t->to, "defer", &start);
    }
    if (!only_target) {
        t->from = start_bare(t, "source", from);
        fill_bare_ram(t);
    }
    t->to = start_bare(t, "target", to);
    return 0;
}

static QDict *query(QTestState *who, const char *command)
{
    QDict *rsp = qtest_qmp(who, "{ 'execute': %s }", command);

    g_assert(qdict_haskey(rsp, "return"));
    return rsp;
}

bool mux_start(MuxTest *t)
{
    if (!have_qemu_img()) {
        g_test_skip("QTEST_QEMU_IMG not set or qemu-img missing");
        return false;
    }

    create_images("src", MUX_DISK_SIZE_MB);
    create_images("dst", t->to_size_mb ?: MUX_DISK_SIZE_MB);
    for (unsigned i = 0; i < MUX_NUM_DISKS; i++) {
        create_image("expected", i, "raw", MUX_DISK_SIZE_MB);
    }
    if (start_processes(t, false)) {
        remove_files();
        return false;
    }
    if (!t->bare) {
        wait_for_serial("src_serial");
    }

    mux_write(t, 0, 0x10, 0, MiB);
    mux_write(t, 1, 0x11, 3 * MiB + 512, MiB);
    mux_resources_wait_workers(t->from);
    mux_resources_get(&t->before, t->from);
    return true;
}

static void assert_resources(const MuxResources *now,
                             const MuxResources *before, bool given_up)
{
    g_assert_cmpstr(now->nodes, ==, before->nodes);
    g_assert_cmpstr(now->node_states, ==, before->node_states);
    g_assert_cmpstr(now->others, ==, before->others);
    g_assert_cmpuint(now->num_jobs, ==, before->num_jobs);
    g_test_message("threads: %s; before: %s", now->threads, before->threads);
    g_assert_cmpuint(now->num_threads, ==, before->num_threads);
    g_assert_cmpuint(now->num_fds, <=, before->num_fds);
    g_assert_cmpint(now->yank, ==, before->yank);
    if (!given_up) {
        g_assert_cmpuint(now->num_inactive, <=, before->num_inactive);
    }
}

/* The status is set shortly before the resources are released. */
static void assert_nothing_left(MuxTest *t, bool given_up)
{
    MuxResources now;

    g_test_timer_start();
    mux_resources_get(&now, t->from);
    while (!mux_resources_match(&now, &t->before, given_up)) {
        if (g_test_timer_elapsed() > MUX_WAIT_TIMEOUT_S) {
            assert_resources(&now, &t->before, given_up);
        }
        usleep(10 * 1000);
        mux_resources_clear(&now);
        mux_resources_get(&now, t->from);
    }
    mux_resources_clear(&now);
}

static void end_processes(MuxTest *t, bool moved)
{
    if (moved) {
        mux_wait_running(t->to);
        assert_bare_ram(t->to);
    }
    for (unsigned i = 0; i < 2; i++) {
        QTestState *who = i ? t->from : t->to;

        if (who) {
            qtest_quit(who);
        }
    }
}

void mux_end(MuxTest *t, bool moved)
{
    if (moved && t->from) {
        g_assert(!mux_is_running(t->from));
        assert_nothing_left(t, true);
    }
    if (t->from && t->to && !t->bare) {
        migrate_end(t->from, t->to, moved);
    } else {
        end_processes(t, moved);
    }
    for (unsigned i = 0; moved && i < MUX_NUM_DISKS; i++) {
        assert_image_as_expected("dst", i);
    }
    remove_files();
    mux_resources_clear(&t->before);
    g_free(t->via_port);
}

void mux_replace_target(MuxTest *t)
{
    if (t->to) {
        qtest_quit(t->to);
    }
    t->to_protocol = t->to_protocol1 = NULL;
    create_images("dst", MUX_DISK_SIZE_MB);
    g_assert_cmpint(start_processes(t, true), ==, 0);
}

void mux_disk_io(QTestState *who, unsigned disk, const char *command)
{
    g_autofree char *out = qtest_hmp(
        who, "qemu-io -d /machine/peripheral/vd%u/virtio-backend \"%s\"",
        disk, command);

    g_assert_cmpstr(out, ==, "");
}

void mux_write(MuxTest *t, unsigned disk, uint8_t pattern, size_t offset,
               size_t len)
{
    g_autofree char *command = g_strdup_printf("write -q -P %u %zu %zu",
                                               pattern, offset, len);

    mux_disk_io(t->from, disk, command);
    mux_write_image("expected", disk, pattern, offset, len);
}

/* --- the commands --- */

/* @port: for inet; 0 is a new one, or that of the destination */
static QObject *channels(MuxTest *t, const char *port, const char *disks)
{
    g_autofree char *addr = t->inet ?
        g_strdup_printf("'type': 'inet', 'host': '127.0.0.1', 'port': '%s'",
                        port) :
        g_strdup_printf("'type': 'unix', 'path': '%s/migsocket'",
                        mux_env->tmpfs);
    g_autofree char *json = g_strdup_printf(
        "[ { 'channel-type': 'main',"
        "    'addr': { 'transport': 'socket', %s } }%s ]", addr, disks);

    return qobject_from_json(json, &error_abort);
}

void mux_listen(MuxTest *t, const char *disks)
{
    migrate_incoming_qmp(t->to, NULL, channels(t, "0", disks),
                         "{ 'exit-on-error': %i }", !t->keep_target);
}

#ifndef _WIN32
MuxRelay *mux_start_relay(MuxTest *t)
{
    g_autofree char *connect = migrate_get_connect_uri(t->to);
    MuxRelay *relay = mux_relay_new("127.0.0.1:0", connect, NULL, NULL,
                                    &error_abort);
    g_autofree char *address = mux_relay_address(relay);

    g_free(t->via_port);
    t->via_port = g_strdup(strrchr(address, ':') + 1);
    return relay;
}
#endif

void mux_migrate(MuxTest *t, const char *disks)
{
    migrate_qmp(t->from, t->to, NULL, channels(t, t->via_port ?: "0", disks),
                "{}");
}

/* --- waiting --- */

/* The exports of a migration are reached by its streams only. */
static void assert_no_export(QTestState *who)
{
    QDict *rsp = query(who, "query-block-exports");
    QDict *err;

    g_assert(qlist_empty(qdict_get_qlist(rsp, "return")));
    qobject_unref(rsp);

    err = qtest_qmp_assert_failure_ref(who,
                                       "{ 'execute': 'nbd-server-stop' }");
    g_assert_cmpstr(qdict_get_str(err, "desc"), ==, "NBD server not running");
    qobject_unref(err);
}

/* Wait until member @key of @who's query-migrate is @value. */
static void wait_for(MuxTest *t, QTestState *who, const char *key,
                     const char *value)
{
    bool found = false;

    g_test_timer_start();
    while (!found) {
        QDict *info = migrate_query(who);
        const char *status = qdict_get_try_str(info, "status");

        found = !g_strcmp0(qdict_get_try_str(info, key), value);
        if (!found && !g_strcmp0(status, "failed")) {
            g_test_message("%s", qdict_get_try_str(info, "error-desc"));
            g_assert_cmpstr(status, ==, value);
        }
        if (g_test_timer_elapsed() > MUX_WAIT_TIMEOUT_S) {
            g_autoptr(GString) json = qobject_to_json(QOBJECT(info));

            g_test_message("%s is not '%s': %s", key, value, json->str);
            g_assert_not_reached();
        }
        qobject_unref(info);
        if (t->to) {
            assert_no_export(t->to);
        }
        usleep(5000);
    }
}

void mux_wait_status(MuxTest *t, const char *status)
{
    wait_for(t, t->from, "status", status);
}

void mux_wait_phase(MuxTest *t, const char *phase)
{
    wait_for(t, t->from, "phase", phase);
}

void mux_wait_target_status(MuxTest *t, const char *status)
{
    wait_for(t, t->to, "status", status);
}

void mux_complete(MuxTest *t)
{
    migrate_ensure_converge(t->from);
    mux_wait_status(t, "completed");
    mux_wait_target_status(t, "completed");
}

bool mux_is_running(QTestState *who)
{
    QDict *rsp = qtest_qmp_assert_success_ref(who,
                                              "{ 'execute': 'query-status' }");
    bool running = qdict_get_bool(rsp, "running");

    qobject_unref(rsp);
    return running;
}

void mux_wait_running(QTestState *who)
{
    g_test_timer_start();
    while (!mux_is_running(who)) {
        usleep(5000);
        g_assert(g_test_timer_elapsed() < MUX_WAIT_TIMEOUT_S);
    }
}

/* --- what the sides report --- */

void mux_assert_error_has(QTestState *who, const char *const *texts)
{
    QDict *info = migrate_query(who);
    const char *desc = qdict_get_try_str(info, "error-desc");

    g_test_message("error-desc: %s", desc);
    g_assert(desc);
    for (; *texts; texts++) {
        const char *found = strstr(desc, *texts);

        if (!found) {
            g_test_message("expected in it: %s", *texts);
        }
        g_assert(found);
        /* A cause must be in the error only once. */
        g_assert(!strstr(found + 1, *texts));
    }
    qobject_unref(info);
}

static QList *get_streams(QDict *info)
{
    g_assert(qdict_haskey(info, "phase"));
    g_assert_cmpstr(qdict_get_str(info, "mux-version"), ==, "2");
    g_assert(qdict_haskey(info, "streams"));
    return qdict_get_qlist(info, "streams");
}

QDict *mux_query_stream(QTestState *who, const char *name)
{
    QDict *info = migrate_query(who);
    QDict *found = NULL;
    QListEntry *entry;

    QLIST_FOREACH_ENTRY(get_streams(info), entry) {
        QDict *stream = qobject_to(QDict, qlist_entry_obj(entry));

        if (g_str_equal(qdict_get_str(stream, "name"), name)) {
            g_assert(!found);
            found = qobject_ref(stream);
        }
    }
    g_assert(found);
    qobject_unref(info);
    return found;
}

size_t mux_num_streams(QTestState *who)
{
    QDict *info = migrate_query(who);
    size_t n = qlist_size(get_streams(info));

    qobject_unref(info);
    return n;
}

void mux_wait_streams(QTestState *who)
{
    bool found = false;

    g_test_timer_start();
    while (!found) {
        QDict *info = migrate_query(who);

        found = qdict_haskey(info, "streams");
        qobject_unref(info);
        g_assert(g_test_timer_elapsed() < MUX_WAIT_TIMEOUT_S);
        usleep(found ? 0 : 5000);
    }
}

void mux_wait_stream(QTestState *who, const char *name, const char *state)
{
    bool found = false;

    g_test_timer_start();
    while (!found) {
        QDict *stream = mux_query_stream(who, name);

        found = g_str_equal(qdict_get_str(stream, "state"), state);
        qobject_unref(stream);
        g_assert(g_test_timer_elapsed() < MUX_WAIT_TIMEOUT_S);
        usleep(found ? 0 : 5000);
    }
}

void mux_wait_sent(QTestState *who, const char *name, uint64_t bytes)
{
    uint64_t sent = 0;

    g_test_timer_start();
    while (sent < bytes) {
        QDict *stream = mux_query_stream(who, name);

        sent = qdict_get_int(stream, "sent");
        qobject_unref(stream);
        g_assert(g_test_timer_elapsed() < MUX_WAIT_TIMEOUT_S);
        usleep(5000);
    }
}

void mux_assert_stream(QTestState *who, const char *name, const char *state,
                       uint64_t min_sent, uint64_t min_received)
{
    QDict *stream = mux_query_stream(who, name);

    g_test_message("%s: %s, sent %" PRId64 ", received %" PRId64,
                   name, qdict_get_str(stream, "state"),
                   qdict_get_int(stream, "sent"),
                   qdict_get_int(stream, "received"));
    g_assert_cmpstr(qdict_get_str(stream, "state"), ==, state);
    g_assert_cmpuint(qdict_get_int(stream, "sent"), >=, min_sent);
    g_assert_cmpuint(qdict_get_int(stream, "received"), >=, min_received);
    qobject_unref(stream);
}

void mux_wait_jobs(MuxTest *t)
{
    size_t n;

    g_test_timer_start();
    do {
        QDict *rsp = query(t->from, "query-jobs");

        n = qlist_size(qdict_get_qlist(rsp, "return"));
        qobject_unref(rsp);
        g_assert(g_test_timer_elapsed() < MUX_WAIT_TIMEOUT_S);
    } while (n < MUX_NUM_DISKS);
}

/* Returns: the number of jobs in this state; there is one for each disk */
static unsigned count_jobs(MuxTest *t, const char *status)
{
    QDict *rsp = query(t->from, "query-jobs");
    QList *jobs = qdict_get_qlist(rsp, "return");
    QListEntry *entry;
    unsigned n = 0;

    g_assert_cmpuint(qlist_size(jobs), ==, MUX_NUM_DISKS);
    QLIST_FOREACH_ENTRY(jobs, entry) {
        QDict *job = qobject_to(QDict, qlist_entry_obj(entry));
        const char *id = qdict_get_str(job, "id");

        g_assert(g_str_equal(id, "nbd-disk0") || g_str_equal(id, "nbd-disk1"));
        n += g_str_equal(qdict_get_str(job, "status"), status);
    }
    qobject_unref(rsp);
    return n;
}

void mux_assert_jobs(MuxTest *t, const char *status)
{
    g_assert_cmpuint(count_jobs(t, status), ==, MUX_NUM_DISKS);
}

void mux_wait_jobs_ready(MuxTest *t)
{
    g_test_timer_start();
    while (count_jobs(t, "ready") < MUX_NUM_DISKS) {
        g_assert(g_test_timer_elapsed() < MUX_WAIT_TIMEOUT_S);
        usleep(5000);
    }
}

void mux_assert_no_jobs(MuxTest *t)
{
    MuxResources now;

    mux_resources_get(&now, t->from);
    g_assert_cmpuint(now.num_jobs, ==, 0);
    g_assert_cmpstr(now.nodes, ==, t->before.nodes);
    mux_resources_clear(&now);
}

/* --- after a failure --- */

void mux_assert_nothing_left(MuxTest *t)
{
    assert_nothing_left(t, false);
}

void mux_end_after_failure(MuxTest *t)
{
    mux_assert_no_jobs(t);
    g_assert(mux_is_running(t->from));
    g_assert(!t->to || !mux_is_running(t->to));
    mux_assert_nothing_left(t);

    if (!t->target_waits) {
        mux_replace_target(t);
        mux_listen(t, MUX_BOTH_DISKS);
    }
    g_clear_pointer(&t->via_port, g_free);
    /* The guest really continues, including its disks. */
    mux_write(t, 0, 0x20, MiB / 2, MiB);
    mux_write(t, 1, 0x21, 0, 64 * KiB);
    migrate_ensure_converge(t->from);
    mux_migrate(t, MUX_BOTH_DISKS);
    mux_complete(t);
    mux_end(t, true);
}
