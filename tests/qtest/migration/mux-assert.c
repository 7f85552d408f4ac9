/*
 * QTest helpers for migration over a multiplexed connection: how a migration
 * with a relay between the sides ends, and what they say of it
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "libqtest.h"
#include "migration/migration-qmp.h"
#include "migration/migration-util.h"
#include "migration/mux-assert.h"
#include "qapi/error.h"

#define END_TIMEOUT_S 60

void add_fault(MuxRelay *relay, const char *kind, const char *place)
{
    g_autofree char *fault = g_strconcat(kind, place, NULL);

    mux_relay_add_fault(relay, fault, &error_abort);
}

/* Is @phase @expected, or a later one where that is allowed? */
static bool phase_fits(const char *phase, const char *expected, bool late)
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
        if (!late || i + 1 == ARRAY_SIZE(order)) {
            return false;
        }
    }
    return true;
}

char *assert_has_one_of(QTestState *who, const char *texts)
{
    g_auto(GStrv) alternatives = g_strsplit(texts, "|", -1);
    QDict *info = migrate_query(who);
    char *desc = g_strdup(qdict_get_try_str(info, "error-desc"));
    bool found = false;

    g_test_message("error-desc: %s", desc);
    g_test_message("expected: %s", texts);
    g_assert(desc);
    for (unsigned i = 0; alternatives[i]; i++) {
        found |= strstr(desc, alternatives[i]) != NULL;
    }
    g_assert(found);
    qobject_unref(info);
    return desc;
}

void assert_says(QTestState *who, const char *phase, bool late,
                 const char *texts)
{
    static const char start[] = "migration failed in phase '";
    g_autofree char *desc = assert_has_one_of(who, texts);
    g_auto(GStrv) parts = NULL;

    g_test_message("expected: phase '%s'%s", phase, late ? " or later" : "");
    g_assert(g_str_has_prefix(desc, start));
    parts = g_strsplit(desc + strlen(start), "'", 2);
    g_assert(phase_fits(parts[0], phase, late));
    g_assert(strstr(desc, "stream"));
}

void assert_says_nothing(QTestState *who)
{
    QDict *info = migrate_query(who);

    g_assert_null(qdict_get_try_str(info, "error-desc"));
    qobject_unref(info);
}

void migrate_until_stopped(MuxTest *t, MuxRelay *relay)
{
    add_fault(relay, "delay=200", PLACE_CONVERGE);
    migrate_ensure_converge(t->from);
    mux_migrate(t, MUX_BOTH_DISKS);
    g_assert(mux_relay_wait_fired(relay, 1, FIRE_TIMEOUT_MS));
    qtest_qmp_eventwait(t->from, "STOP");
}

char *wait_for_end(MuxTest *t)
{
    char *status = migrate_query_status(t->from);

    g_test_timer_start();
    while (!g_str_equal(status, "failed") &&
           !g_str_equal(status, "cancelled") &&
           !g_str_equal(status, "completed")) {
        g_assert(g_test_timer_elapsed() < END_TIMEOUT_S);
        usleep(2000);
        g_free(status);
        status = migrate_query_status(t->from);
    }
    return status;
}
