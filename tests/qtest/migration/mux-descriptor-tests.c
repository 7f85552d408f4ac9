/*
 * QTest testcases for migration over a multiplexed connection: a side that runs
 * out of file descriptors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include <sys/resource.h>
#include "libqtest.h"
#include "migration/framework.h"
#include "migration/migration-qmp.h"
#include "migration/migration-util.h"
#include "migration/mux-assert.h"

/* Let @who open only @spare more descriptors. */
static void limit_descriptors(QTestState *who, unsigned spare)
{
    struct rlimit limit;
    unsigned n = 0;

    for (;; n++) {
        g_autofree char *path = g_strdup_printf("/proc/%d/fd/%u",
                                                (int)qtest_pid(who), n);
        struct stat st;

        if (lstat(path, &st) < 0) {
            break;
        }
    }
    g_assert(!prlimit(qtest_pid(who), RLIMIT_NOFILE, NULL, &limit));
    limit.rlim_cur = n + spare;
    g_assert(!prlimit(qtest_pid(who), RLIMIT_NOFILE, &limit, NULL));
}

static void unlimit_descriptors(QTestState *who)
{
    struct rlimit limit;

    g_assert(!prlimit(qtest_pid(who), RLIMIT_NOFILE, NULL, &limit));
    limit.rlim_cur = limit.rlim_max;
    g_assert(!prlimit(qtest_pid(who), RLIMIT_NOFILE, &limit, NULL));
}

#define MAX_SPARE_DESCRIPTORS 30

/*
 * The side that lacks descriptors reports it; so does its peer, if they were
 * connected by then.
 */
static void assert_descriptors_missed(MuxTest *t, bool at_source)
{
    const char *const cause[] = { g_strerror(EMFILE), NULL };
    const char *const unheard[] = {
        g_strerror(EMFILE), "closed the connection before its HELLO",
        "no data received from the destination for 5 s", NULL
    };

    g_autofree char *status = migrate_query_status(t->to);

    g_free(mux_assert_has_one_of(t->from, at_source ? cause : unheard));
    /* If it has not accepted the migration, the destination waits on. */
    if (g_str_equal(status, "failed")) {
        g_free(mux_assert_has_one_of(t->to, at_source ? unheard : cause));
    }
}

/*
 * Migrate with too few descriptors, each time with one more, until that
 * succeeds.  Neither side crashes, and the source closes what it has opened.
 */
static void run_out_of_descriptors(bool at_source)
{
    MuxTest t = { .bare = true, .inet = true, .keep_target = true };
    g_autofree char *status = g_strdup("");

    if (!mux_start(&t)) {
        return;
    }
    /* A destination that cannot accept the connection sends nothing. */
    migrate_set_parameter_int(t.from, "channel-mux-timeout", 5000);
    for (unsigned spare = 0; !g_str_equal(status, "completed"); spare++) {
        QTestState *who;

        g_assert_cmpuint(spare, <, MAX_SPARE_DESCRIPTORS);
        if (spare) {
            mux_assert_nothing_left(&t);
            mux_replace_target(&t);
        }
        mux_listen(&t, MUX_BOTH_DISKS);
        who = at_source ? t.from : t.to;
        limit_descriptors(who, spare);
        mux_migrate(&t, MUX_BOTH_DISKS);
        g_free(status);
        status = mux_wait_end(&t);
        unlimit_descriptors(who);
        g_test_message("%u spare: %s", spare, status);
        g_assert(spare || g_str_equal(status, "failed"));
        if (g_str_equal(status, "failed")) {
            assert_descriptors_missed(&t, at_source);
        }
    }
    mux_end(&t, true);
}

static void test_source_out_of_descriptors(void)
{
    run_out_of_descriptors(true);
}

static void test_target_out_of_descriptors(void)
{
    run_out_of_descriptors(false);
}

void migration_test_add_mux_descriptor(MigrationTestEnv *env)
{
    mux_init(env);
    if (!env->is_x86) {
        return;
    }
    migration_test_add("/migration/mux/descriptors/source",
                       test_source_out_of_descriptors);
    migration_test_add("/migration/mux/descriptors/destination",
                       test_target_out_of_descriptors);
}
