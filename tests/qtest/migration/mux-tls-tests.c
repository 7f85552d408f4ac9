/*
 * QTest testcases for migration over a multiplexed connection: TLS
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "crypto/tlscredspsk.h"
#include "libqtest.h"
#include "migration/framework.h"
#include "migration/migration-qmp.h"
#include "migration/migration-util.h"
#include "migration/mux-util.h"
#include "qapi/error.h"
#include "tests/unit/crypto-tls-psk-helpers.h"

static char *keys_dir;
static char *keys_file;

static void set_tls_client(QTestState *who)
{
    qtest_qmp_assert_success(who,
                             "{ 'execute': 'object-add', 'arguments': {"
                             "    'qom-type': 'tls-creds-psk',"
                             "    'id': 'tls0', 'dir': %s,"
                             "    'endpoint': 'client',"
                             "    'username': 'qemu' } }", keys_dir);
    migrate_set_parameter_str(who, "tls-creds", "tls0");
}

static void set_tls_server(QTestState *who)
{
    qtest_qmp_assert_success(who,
                             "{ 'execute': 'object-add', 'arguments': {"
                             "    'qom-type': 'tls-creds-psk',"
                             "    'id': 'tls0', 'dir': %s,"
                             "    'endpoint': 'server' } }", keys_dir);
    migrate_set_parameter_str(who, "tls-creds", "tls0");
}

static void make_keys(void)
{
    g_mkdir_with_parents(keys_dir, 0700);
    test_tls_psk_init(keys_file);
}

static void remove_keys(void)
{
    test_tls_psk_cleanup(keys_file);
    rmdir(keys_dir);
}

/* One TLS session carries RAM, the return path and both disks. */
static void test_disks_tls(void)
{
    MuxTest t = { .inet = true };

    if (!mux_start(&t)) {
        return;
    }
    make_keys();
    set_tls_client(t.from);
    set_tls_server(t.to);
    migrate_set_capability(t.from, "return-path", true);
    migrate_set_capability(t.to, "return-path", true);

    mux_listen(&t, MUX_BOTH_DISKS);
    mux_migrate(&t, MUX_BOTH_DISKS);
    mux_complete(&t);
    mux_assert_no_jobs(&t);
    mux_wait_running(t.to);
    mux_end(&t, true);
    remove_keys();
}

/* The destination requires TLS: it rejects a connection in clear text. */
static void test_fail_source_without_tls(void)
{
    MuxTest t = { .inet = true, .keep_target = true };

    if (!mux_start(&t)) {
        return;
    }
    make_keys();
    set_tls_server(t.to);

    mux_listen(&t, MUX_BOTH_DISKS);
    mux_migrate(&t, MUX_BOTH_DISKS);
    mux_wait_status(&t, "failed");
    mux_assert_error(t.from, "migration failed in phase 'connect': all "
                     "streams: ");
    mux_assert_no_jobs(&t);
    g_assert(mux_is_running(t.from));
    mux_end(&t, false);
    remove_keys();
}

#ifndef _WIN32
/* A byte that is changed on the wire is detected by both sides. */
static void test_fail_tls_bit_flipped(void)
{
    /* In the handshake, in the first pass of the disks, in RAM */
    static const struct {
        const char *fault;
        const char *from_says, *to_says;
    } flips[] = {
        { "flip,at=30",
          "migration failed in phase 'connect': all streams: TLS handshake "
          "failed: " },
        { "flip,at=700000",
          "migration failed in phase 'disks': all streams: ",
          "migration failed in phase 'disks': all streams: connection with "
          "the source failed: Cannot read from TLS channel" },
        { "flip,at=9000000",
          /* The source may be ahead of the destination. */
          "all streams: ",
          "migration failed in phase 'precopy': all streams: connection with "
          "the source failed: Cannot read from TLS channel" },
    };
    MuxTest t = { .bare = true, .inet = true, .keep_target = true };

    if (!mux_start(&t)) {
        return;
    }
    make_keys();
    set_tls_client(t.from);
    for (unsigned i = 0; i < ARRAY_SIZE(flips); i++) {
        MuxRelay *relay;

        if (i) {
            mux_replace_target(&t);
        }
        set_tls_server(t.to);
        mux_listen(&t, MUX_BOTH_DISKS);
        relay = mux_start_relay(&t);
        mux_relay_add_fault(relay, flips[i].fault, &error_abort);
        mux_migrate(&t, MUX_BOTH_DISKS);
        wait_for_migration_status(t.from, "failed",
                                  (const char * []) { "completed", NULL });
        mux_assert_error(t.from, flips[i].from_says);
        g_assert(mux_relay_wait_fired(relay, 1, 0));
        mux_relay_free(relay);
        /* After a failed handshake it waits for another connection. */
        mux_wait_target_status(&t, flips[i].to_says ? "failed" : "setup");
        if (flips[i].to_says) {
            mux_assert_error(t.to, flips[i].to_says);
        }
        mux_wait_running(t.from);
        mux_assert_nothing_left(&t);
    }
    migrate_set_parameter_str(t.from, "tls-creds", "");
    mux_end_after_failure(&t);
    remove_keys();
}

/*
 * A peer that is silent during the handshake does not block a main loop.
 * @end: ends the migration.
 */
static void test_silent_handshake(int timeout_ms, void (*end)(MuxTest *t))
{
    MuxTest t = { .bare = true, .inet = true, .keep_target = true };
    MuxRelay *relay;

    if (!mux_start(&t)) {
        return;
    }
    make_keys();
    set_tls_client(t.from);
    set_tls_server(t.to);
    migrate_set_parameter_int(t.from, "channel-mux-timeout", timeout_ms);
    mux_listen(&t, MUX_BOTH_DISKS);
    relay = mux_start_relay(&t);
    mux_relay_add_fault(relay, "silence,in=from,at=60", &error_abort);
    mux_migrate(&t, MUX_BOTH_DISKS);
    g_assert(mux_relay_wait_fired(relay, 1, MUX_WAIT_TIMEOUT_S * 1000));
    g_usleep(100 * 1000);
    /* A blocked main loop would not reply. */
    mux_wait_phase(&t, "connect");
    g_assert(mux_is_running(t.from));
    g_assert(!mux_is_running(t.to));
    end(&t);
    mux_relay_free(relay);
    mux_assert_nothing_left(&t);
    migrate_set_parameter_str(t.from, "tls-creds", "");
    migrate_set_parameter_int(t.from, "channel-mux-timeout", 300000);
    mux_end_after_failure(&t);
    remove_keys();
}

static void cancel_handshake(MuxTest *t)
{
    migrate_cancel(t->from);
    wait_for_migration_status(t->from, "cancelled",
                              (const char * []) { "failed", NULL });
}

static void yank_handshake(MuxTest *t)
{
    qtest_qmp_assert_success(t->from, "{ 'exec-oob': 'yank', 'arguments': {"
                             "  'instances': [ { 'type': 'migration' } ] } }");
    wait_for_migration_status(t->from, "failed",
                              (const char * []) { "completed", NULL });
    mux_assert_error(t->from, "migration failed in phase 'connect': ");
    mux_assert_error(t->from, "TLS handshake failed: ");
}

static void await_handshake_timeout(MuxTest *t)
{
    wait_for_migration_status(t->from, "failed",
                              (const char * []) { "completed", NULL });
    mux_assert_error(t->from, "migration failed in phase 'connect': all "
                     "streams: timed out after 3 s waiting for the TLS "
                     "handshake");
}

static void test_fail_tls_silent_handshake(void)
{
    test_silent_handshake(0, cancel_handshake);
}

static void test_fail_tls_handshake_yank(void)
{
    test_silent_handshake(0, yank_handshake);
}

static void test_fail_tls_handshake_timeout(void)
{
    test_silent_handshake(3000, await_handshake_timeout);
}

/*
 * A connection whose handshake begins before the migration and ends after it is
 * rejected.
 */
static void test_tls_late_handshake(void)
{
    MuxTest t = { .bare = true, .inet = true, .keep_target = true };
    MuxRelay *relay;

    if (!mux_start(&t)) {
        return;
    }
    make_keys();
    set_tls_client(t.from);
    set_tls_server(t.to);
    mux_listen(&t, MUX_BOTH_DISKS);
    relay = mux_start_relay(&t);
    /* Hold the source's last handshake message */
    mux_relay_add_fault(relay, "silence,dir=to,in=from,at=60", &error_abort);
    mux_migrate(&t, MUX_BOTH_DISKS);
    mux_wait_streams(t.from);
    migrate_cancel(t.from);
    mux_wait_status(&t, "cancelled");

    g_clear_pointer(&t.via_port, g_free);
    mux_migrate(&t, MUX_BOTH_DISKS);
    mux_complete(&t);
    mux_relay_add_fault(relay, "heal", &error_abort);
    mux_relay_wait_closed(relay);
    mux_relay_free(relay);
    mux_end(&t, true);
    remove_keys();
}
#endif

void migration_test_add_mux_tls(MigrationTestEnv *env)
{
    mux_init(env);
    keys_dir = g_strdup_printf("%s/mux-keys", env->tmpfs);
    keys_file = g_strdup_printf("%s/%s", keys_dir, QCRYPTO_TLS_CREDS_PSKFILE);

    migration_test_add("/migration/mux/tls-disks", test_disks_tls);
    migration_test_add("/migration/mux/tls-fail-source-without-tls",
                       test_fail_source_without_tls);
#ifndef _WIN32
    migration_test_add("/migration/mux/tls-fail-bit-flipped",
                       test_fail_tls_bit_flipped);
    migration_test_add("/migration/mux/tls-fail-silent-handshake",
                       test_fail_tls_silent_handshake);
    migration_test_add("/migration/mux/tls-fail-handshake-yank",
                       test_fail_tls_handshake_yank);
    migration_test_add("/migration/mux/tls-fail-handshake-timeout",
                       test_fail_tls_handshake_timeout);
    migration_test_add("/migration/mux/tls-late-handshake",
                       test_tls_late_handshake);
#endif
}
