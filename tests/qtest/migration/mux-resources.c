/*
 * The resources of a QEMU process, as reported by QMP and by /proc
 *
 * Only lists them; the tests assert what they should be.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "migration/migration-util.h"
#include "migration/mux-resources.h"
#include "migration/mux-util.h"
#include "qobject/qdict.h"
#include "qobject/qlist.h"
#include "qobject/qstring.h"

/* Returns: the list that @command returns; to be freed */
static QList *query_list(QTestState *who, const char *command)
{
    QDict *rsp = qtest_qmp(who, "{ 'execute': %s }", command);
    QList *list = qobject_to(QList, qdict_get(rsp, "return"));

    g_assert(list);
    qobject_ref(list);
    qobject_unref(rsp);
    return list;
}

static char *list_nodes(QTestState *who)
{
    g_autoptr(QList) nodes = query_list(who, "query-named-block-nodes");
    GString *names = g_string_new(NULL);
    QListEntry *entry;

    QLIST_FOREACH_ENTRY(nodes, entry) {
        QDict *node = qobject_to(QDict, qlist_entry_obj(entry));

        g_string_append_printf(names, "%s ", qdict_get_str(node, "node-name"));
    }
    return g_string_free(names, false);
}

static char *list_node_states(QTestState *who, unsigned *num_inactive)
{
    g_autoptr(QList) nodes = query_list(who, "query-named-block-nodes");
    GString *text = g_string_new(NULL);
    QListEntry *entry;

    QLIST_FOREACH_ENTRY(nodes, entry) {
        QDict *node = qobject_to(QDict, qlist_entry_obj(entry));
        QList *bitmaps = qdict_get_qlist(node, "dirty-bitmaps");

        g_string_append_printf(text, "%s%s:%zu ",
                               qdict_get_str(node, "node-name"),
                               qdict_get_bool(node, "ro") ? "(ro)" : "",
                               bitmaps ? qlist_size(bitmaps) : 0);
        *num_inactive += !qdict_get_try_bool(node, "active", true);
    }
    return g_string_free(text, false);
}

static void add_exports(GString *text, QTestState *who)
{
    g_autoptr(QList) exports = query_list(who, "query-block-exports");
    QListEntry *entry;

    QLIST_FOREACH_ENTRY(exports, entry) {
        QDict *export = qobject_to(QDict, qlist_entry_obj(entry));

        g_string_append_printf(text, "export %s ", qdict_get_str(export, "id"));
    }
}

static void add_blockers(GString *text, QDict *info)
{
    QListEntry *entry;

    if (!qdict_haskey(info, "blocked-reasons")) {
        return;
    }
    QLIST_FOREACH_ENTRY(qdict_get_qlist(info, "blocked-reasons"), entry) {
        QString *reason = qobject_to(QString, qlist_entry_obj(entry));

        g_string_append_printf(text, "blocker '%s' ", qstring_get_str(reason));
    }
}

/* After success, query-migrate shows the states from shortly before the end. */
static void add_live_streams(GString *text, QDict *info)
{
    const char *status = qdict_get_try_str(info, "status");
    QListEntry *entry;

    if (!qdict_haskey(info, "streams") || !g_strcmp0(status, "completed")) {
        return;
    }
    QLIST_FOREACH_ENTRY(qdict_get_qlist(info, "streams"), entry) {
        QDict *stream = qobject_to(QDict, qlist_entry_obj(entry));
        const char *state = qdict_get_str(stream, "state");

        if (!g_str_equal(state, "reset") && !g_str_equal(state, "finished")) {
            g_string_append_printf(text, "%s stream %s ", state,
                                   qdict_get_str(stream, "name"));
        }
    }
}

static char *list_others(QTestState *who)
{
    GString *text = g_string_new(NULL);
    QDict *info = migrate_query(who);

    add_exports(text, who);
    add_blockers(text, info);
    add_live_streams(text, info);
    qobject_unref(info);
    return g_string_free(text, false);
}

static bool has_yank_instance(QTestState *who)
{
    g_autoptr(QList) instances = query_list(who, "query-yank");
    bool found = false;
    QListEntry *entry;

    QLIST_FOREACH_ENTRY(instances, entry) {
        QDict *instance = qobject_to(QDict, qlist_entry_obj(entry));
        const char *type = qdict_get_str(instance, "type");

        found |= g_str_equal(type, "migration") ||
                 g_str_equal(type, "block-node");
    }
    return found;
}

static char *proc_path(QTestState *who, const char *name)
{
    return g_strdup_printf("/proc/%d/%s", (int)qtest_pid(who), name);
}

static unsigned count_fds(QTestState *who)
{
    g_autofree char *path = proc_path(who, "fd");
    GDir *dir = g_dir_open(path, 0, NULL);
    unsigned n = 0;

    while (dir && g_dir_read_name(dir)) {
        n++;
    }
    g_clear_pointer(&dir, g_dir_close);
    return n;
}

/*
 * Returns: the number of threads, or of those named @name if that is not NULL;
 * *@names lists all names for the log, to be freed
 */
static unsigned count_threads(QTestState *who, const char *name, char **names)
{
    g_autofree char *path = proc_path(who, "task");
    GString *text = g_string_new(NULL);
    GDir *dir = g_dir_open(path, 0, NULL);
    const char *tid;
    unsigned n = 0;

    while (dir && (tid = g_dir_read_name(dir))) {
        g_autofree char *comm = g_strdup_printf("%s/%s/comm", path, tid);
        g_autofree char *own = NULL;

        if (g_file_get_contents(comm, &own, NULL, NULL)) {
            g_strchomp(own);
            n += !name || g_str_equal(name, own);
            g_string_append_printf(text, "%s ", own);
        }
    }
    g_clear_pointer(&dir, g_dir_close);
    *names = g_string_free(text, false);
    return n;
}

void mux_resources_wait_workers(QTestState *who)
{
    g_autofree char *path = proc_path(who, "task");
    unsigned n = 0;

    if (!g_file_test(path, G_FILE_TEST_IS_DIR)) {
        return;
    }
    g_test_timer_start();
    while (n != MUX_NUM_WORKERS) {
        g_autofree char *names = NULL;

        n = count_threads(who, "worker", &names);
        if (g_test_timer_elapsed() > MUX_WAIT_TIMEOUT_S) {
            g_test_message("threads: %s", names);
            g_assert_cmpuint(n, ==, MUX_NUM_WORKERS);
        }
        usleep(n == MUX_NUM_WORKERS ? 0 : 5000);
    }
}

void mux_resources_get(MuxResources *h, QTestState *who)
{
    g_autoptr(QList) jobs = query_list(who, "query-jobs");

    *h = (MuxResources) {
        .nodes = list_nodes(who),
        .num_jobs = qlist_size(jobs),
        .yank = has_yank_instance(who),
        .num_fds = count_fds(who),
        .others = list_others(who),
    };
    h->num_threads = count_threads(who, NULL, &h->threads);
    h->node_states = list_node_states(who, &h->num_inactive);
}

void mux_resources_clear(MuxResources *h)
{
    g_clear_pointer(&h->nodes, g_free);
    g_clear_pointer(&h->threads, g_free);
    g_clear_pointer(&h->node_states, g_free);
    g_clear_pointer(&h->others, g_free);
}

bool mux_resources_match(const MuxResources *h, const MuxResources *before,
                         bool given_up)
{
    return g_str_equal(h->nodes, before->nodes) &&
        h->num_jobs <= before->num_jobs && h->yank <= before->yank &&
        h->num_fds <= before->num_fds &&
        h->num_threads == before->num_threads &&
        g_str_equal(h->node_states, before->node_states) &&
        (given_up || h->num_inactive <= before->num_inactive) &&
        g_str_equal(h->others, before->others);
}
