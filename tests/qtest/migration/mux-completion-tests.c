/*
 * QTest testcases for migration over a multiplexed connection: the steps of the
 * completion, and what fails in one of them
 *
 * These are places that the table of mux-fault-tests.c cannot name.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "libqtest.h"
#include "migration/framework.h"
#include "migration/migration-qmp.h"
#include "migration/migration-util.h"
#include "migration/mux-actions.h"
#include "migration/mux-assert.h"

/* The guest is stopped, which flushes its disks. */
static void test_source_flush_eio(void)
{
    MuxTest t = {
        .bare = true,
        .keep_target = true,
        .from_protocol = FAILING_FLUSH,
    };

    if (!mux_start(&t)) {
        return;
    }
    migrate_ensure_converge(t.from);
    mux_listen(&t, MUX_BOTH_DISKS);
    mux_migrate(&t, MUX_BOTH_DISKS);
    mux_wait_status(&t, "failed");
    mux_assert_error(t.from, "migration failed in phase 'switchover': all "
                     "streams: Error in migration completion: Input/output "
                     "error");
    mux_wait_target_status(&t, "failed");
    mux_assert_error(t.to, "migration failed in phase 'precopy': stream "
                     "'main': aborted by the source: Error in migration "
                     "completion: Input/output error");
    mux_end_after_failure(&t);
}

/* --- each step of the completion --- */

#define STEP(what) "stream 'nbd-disk0': " what " did not come within 3 s"

/*
 * Migrate, and have @fault at frame @nth that goes out for disk0 once the guest
 * is stopped.  The first flushes the guest's writes; none is sent as long as
 * the flushes of the phase "converge" are not answered.  The second belongs to
 * the end of the mirror, and one or two later the node is flushed and closed.
 */
static void migrate_into_step(MuxTest *t, MuxRelay *relay, unsigned nth,
                              const char *fault)
{
    g_autofree char *place = g_strdup_printf(",frame=DATA:nbd-disk0,nth=%u",
                                             nth);

    migrate_until_stopped(t, relay);
    add_fault(relay, "silence,dir=from", "");
    g_assert(mux_relay_wait_fired(relay, 2, FIRE_TIMEOUT_MS));
    usleep(300 * 1000);
    add_fault(relay, fault, place);
    add_fault(relay, "heal,dir=from", "");
    g_assert(mux_relay_wait_fired(relay, 4, FIRE_TIMEOUT_MS));
}

static void run_silent_step(unsigned nth, const char *from_says)
{
    MuxTest t = { .bare = true, .inet = true, .keep_target = true };
    g_autofree char *status = NULL;
    MuxRelay *relay;

    if (!mux_start(&t)) {
        return;
    }
    limit_stop(&t);
    mux_listen(&t, MUX_BOTH_DISKS);
    relay = mux_start_relay(&t);
    migrate_into_step(&t, relay, nth, "silence");
    status = wait_for_end(&t);
    g_assert_cmpstr(status, ==, "failed");
    assert_says(t.from, "switchover", false, from_says);
    mux_relay_free(relay);
    mux_wait_target_status(&t, "failed");
    assert_says(t.to, "precopy", true, CLOSED);
    mux_end_after_failure(&t);
}

static void test_silence_job_end(void)
{
    run_silent_step(2, STEP("the end of the mirror job"));
}

static void test_silence_last_flush(void)
{
    run_silent_step(4, STEP("the mirror's last flush") "|"
                    STEP("the destination's confirmation"));
}

/*
 * @act: when the mirror of disk0 is about to end
 * @says: by both sides; NULL: the migration completes
 */
static void run_ending_job(void (*act)(MuxTest *t), const char *says)
{
    MuxTest t = { .bare = true, .inet = true, .keep_target = true };
    const char *end = says ? "failed" : "completed";
    g_autofree char *status = NULL;
    MuxRelay *relay;

    if (!mux_start(&t)) {
        return;
    }
    mux_listen(&t, MUX_BOTH_DISKS);
    relay = mux_start_relay(&t);
    migrate_into_step(&t, relay, 2, "silence,dir=to");
    act(&t);
    add_fault(relay, "heal,dir=to", "");
    if (act == pause_job) {
        resume_ending_job(&t);
    }
    status = wait_for_end(&t);
    g_assert_cmpstr(status, ==, end);
    mux_wait_target_status(&t, end);
    if (!says) {
        mux_relay_free(relay);
        mux_end(&t, true);
        return;
    }
    assert_says(t.from, "switchover", false, says);
    assert_says(t.to, "precopy", true, says);
    mux_relay_free(relay);
    mux_end_after_failure(&t);
}

/* The migration does the same. */
static void test_ending_job_cancel(void)
{
    run_ending_job(cancel_job, NULL);
}

static void test_ending_job_kill(void)
{
    run_ending_job(kill_job, JOB_ENDED);
}

static void test_ending_job_pause(void)
{
    run_ending_job(pause_job, NULL);
}

/* --- the guest changes hands --- */

/*
 * The source's last word is lost, because of @fault and @act, so nobody runs
 * the guest, until somebody does who knows that the destination will not.
 */
static void run_lost_word(const char *fault, void (*before)(MuxTest *t),
                          void (*act)(MuxTest *t), const char *says)
{
    MuxTest t = { .bare = true, .inet = true, .keep_target = true };
    g_autofree char *status = NULL;
    MuxRelay *relay;

    if (!mux_start(&t)) {
        return;
    }
    if (before) {
        before(&t);
    }
    mux_listen(&t, MUX_BOTH_DISKS);
    relay = mux_start_relay(&t);
    add_fault(relay, fault, ",frame=FIN_OK:main");
    mux_migrate(&t, MUX_BOTH_DISKS);
    g_assert(mux_relay_wait_fired(relay, 1, FIRE_TIMEOUT_MS));
    status = wait_for_end(&t);
    g_assert_cmpstr(status, ==, "completed");
    if (act) {
        act(&t);
    }
    mux_wait_target_status(&t, "failed");
    assert_says(t.to, "switchover", false, says);
    g_assert(!mux_is_running(t.from));
    mux_relay_free(relay);

    qtest_qmp_assert_success(t.from, "{ 'execute': 'cont' }");
    mux_end_after_failure(&t);
}

static void test_word_cut(void)
{
    run_lost_word("cut", NULL, NULL,
                  NOT_HANDED_OVER "all streams: source closed the connection");
}

static void test_word_half_closed(void)
{
    run_lost_word("half-close,dir=to", NULL, NULL,
                  NOT_HANDED_OVER "all streams: source closed the connection");
}

static void test_word_flipped(void)
{
    run_lost_word("flip,byte=1", NULL, NULL, NOT_HANDED_OVER
                  "all streams: source sent FIN_OK on stream 'main'");
}

static void test_word_silence_yank(void)
{
    run_lost_word("silence", NULL, yank_target, NOT_HANDED_OVER
                  "all streams: connection with the source failed: the "
                  "connection was yanked");
}

static void limit_silence_of_source(MuxTest *t)
{
    migrate_set_parameter_int(t->to, "channel-mux-timeout", 1500);
}

static void test_word_silence_timeout(void)
{
    run_lost_word("silence", limit_silence_of_source, NULL, NOT_HANDED_OVER
                  "all streams: no byte from the source for 1.5 s");
}

/* --- descriptors --- */

#define MAX_SPARE_DESCRIPTORS 30

/* Who lacks them says so, and its peer, too, if they talked by then. */
static void assert_descriptors_missed(MuxTest *t, bool at_source,
                                      unsigned spare)
{
    static const char cause[] = "Too many open files";
    static const char unheard[] =
        "Too many open files|closed the connection before its HELLO|"
        "no byte from the destination for 5 s";

    g_free(assert_has_one_of(t->from, at_source ? cause : unheard));
    /* With none at all, either of the two has not noticed anything. */
    if (spare) {
        mux_wait_target_status(t, "failed");
        g_free(assert_has_one_of(t->to, at_source ? unheard : cause));
    }
}

/*
 * Fewer descriptors than a migration needs: it fails, until there are enough.
 * Nobody dies, and what was opened at the source is closed.
 */
static void run_out_of_descriptors(bool at_source)
{
    MuxTest t = { .bare = true, .inet = true, .keep_target = true };
    g_autofree char *status = g_strdup("");

    if (!mux_start(&t)) {
        return;
    }
    /* A destination that cannot even accept the connection is mute. */
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
        status = wait_for_end(&t);
        unlimit_descriptors(who);
        g_test_message("%u spare: %s", spare, status);
        g_assert(spare || g_str_equal(status, "failed"));
        if (g_str_equal(status, "failed")) {
            assert_descriptors_missed(&t, at_source, spare);
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

void migration_test_add_mux_completion(MigrationTestEnv *env)
{
    mux_init(env);
    if (!env->is_x86) {
        return;
    }
    migration_test_add("/migration/mux/completion/source-flush-eio",
                       test_source_flush_eio);
    migration_test_add("/migration/mux/completion/silence-job-end",
                       test_silence_job_end);
    migration_test_add("/migration/mux/completion/silence-last-flush",
                       test_silence_last_flush);
    migration_test_add("/migration/mux/completion/job-cancel",
                       test_ending_job_cancel);
    migration_test_add("/migration/mux/completion/job-kill",
                       test_ending_job_kill);
    migration_test_add("/migration/mux/completion/job-pause",
                       test_ending_job_pause);
    migration_test_add("/migration/mux/completion/word-cut", test_word_cut);
    migration_test_add("/migration/mux/completion/word-half-closed",
                       test_word_half_closed);
    migration_test_add("/migration/mux/completion/word-flipped",
                       test_word_flipped);
    migration_test_add("/migration/mux/completion/word-silence-yank",
                       test_word_silence_yank);
    migration_test_add("/migration/mux/completion/word-silence-timeout",
                       test_word_silence_timeout);
    migration_test_add("/migration/mux/completion/source-out-of-descriptors",
                       test_source_out_of_descriptors);
    migration_test_add("/migration/mux/completion/target-out-of-descriptors",
                       test_target_out_of_descriptors);
}
