/*
 * QTest helpers for migration over a multiplexed connection: how a migration
 * ends, and the error that a side reports
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "libqtest.h"
#include "migration/migration-qmp.h"
#include "migration/migration-util.h"
#include "migration/mux-assert.h"

/* Returns: whether @phase is @expected or, if @later, a later phase */
static bool phase_fits(const char *phase, const char *expected, bool later)
{
    static const char *const order[] = {
        "connect", "disks", "precopy", "converge", "switchover"
    };
    unsigned i = 0;

    while (!g_str_equal(order[i], expected)) {
        i++;
        g_assert_cmpuint(i, <, ARRAY_SIZE(order));
    }
    for (; !g_str_equal(order[i], phase); i++) {
        if (!later || i + 1 == ARRAY_SIZE(order)) {
            return false;
        }
    }
    return true;
}

char *mux_assert_has_one_of(QTestState *who, const char *const *texts)
{
    QDict *info = migrate_query(who);
    char *desc = g_strdup(qdict_get_try_str(info, "error-desc"));
    bool found = false;
    const char *at;

    g_test_message("error-desc: %s", desc);
    g_assert(desc);
    for (; *texts; texts++) {
        g_test_message("expected: %s", *texts);
        at = strstr(desc, *texts);
        found |= at != NULL;
        /* A cause that occurs twice was reported by two. */
        g_assert(!at || !strstr(at + 1, *texts));
    }
    g_assert(found);
    qobject_unref(info);
    return desc;
}

/* 'failure' has the same as @desc, the whole 'error-desc', as values. */
static void assert_failure_is(QTestState *who, const char *desc)
{
    QDict *info = migrate_query(who);
    QDict *failure = qdict_get_qdict(info, "failure");
    const char *stream = qdict_get_try_str(failure, "stream");
    const char *text = qdict_get_str(failure, "text");
    g_autofree char *about = stream ? g_strdup_printf("stream '%s'", stream) :
                                      g_strdup("all streams");
    g_autofree char *expected = g_strdup_printf(
        "migration failed in phase '%s': %s: %s",
        qdict_get_str(failure, "phase"), about, text);
    const char *side = qdict_get_str(failure, "side");

    g_assert_cmpstr(desc, ==, expected);
    if (g_str_has_prefix(text, "timed out after ")) {
        g_assert_cmpstr(qdict_get_str(failure, "code"), ==, "timeout");
    }
    /* A reset by the other side has its text, and names it */
    if (g_str_has_prefix(text, "aborted by the ")) {
        g_autofree char *by = g_strdup_printf("aborted by the %s: ", side);

        g_assert(g_str_has_prefix(text, by));
    }
    qobject_unref(info);
}

void mux_assert_failure(QTestState *who, const char *phase, bool later,
                        const char *const *texts)
{
    static const char start[] = "migration failed in phase '";
    g_autofree char *desc = mux_assert_has_one_of(who, texts);
    g_auto(GStrv) parts = NULL;

    g_test_message("expected: phase '%s'%s", phase, later ? " or later" : "");
    g_assert(g_str_has_prefix(desc, start));
    parts = g_strsplit(desc + strlen(start), "'", 2);
    g_assert(phase_fits(parts[0], phase, later));
    assert_failure_is(who, desc);
}

void mux_assert_no_error(QTestState *who)
{
    QDict *info = migrate_query(who);

    g_assert_null(qdict_get_try_str(info, "error-desc"));
    g_assert_false(qdict_haskey(info, "failure"));
    qobject_unref(info);
}

/* For the log, in case the test expects another end */
static void show_error(QTestState *who)
{
    QDict *info = migrate_query(who);

    g_test_message("error-desc: %s", qdict_get_try_str(info, "error-desc"));
    qobject_unref(info);
}

char *mux_wait_end(MuxTest *t)
{
    char *status = migrate_query_status(t->from);

    g_test_timer_start();
    while (!g_str_equal(status, "failed") &&
           !g_str_equal(status, "cancelled") &&
           !g_str_equal(status, "completed")) {
        g_assert(g_test_timer_elapsed() < MUX_WAIT_TIMEOUT_S);
        usleep(2000);
        g_free(status);
        status = migrate_query_status(t->from);
    }
    if (g_str_equal(status, "failed")) {
        show_error(t->from);
    }
    return status;
}
