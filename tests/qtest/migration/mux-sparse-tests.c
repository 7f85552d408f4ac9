/*
 * QTest testcases for disks with zeroes, over a multiplexed connection
 *
 * Zeroes are neither sent nor allocated where the destination's image has them
 * anyway; its contents are exact, whatever it had before.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "libqtest.h"
#include "migration/framework.h"
#include "migration/migration-qmp.h"
#include "migration/migration-util.h"
#include "migration/mux-util.h"
#include "qemu/units.h"

/*
 * mux_start() writes 1 MiB to each disk; the file system, and the format, may
 * allocate more than was written.
 */
#define SPARSE_MAX (3 * MiB)
/* Where the guest writes zeroes, away from other data */
#define ZEROES_AT (8 * MiB)
#define ZEROES (8 * MiB)

static int64_t target_allocated(unsigned disk)
{
    g_autofree char *path = mux_image_path("dst", disk);
    struct stat st;

    g_assert_cmpint(stat(path, &st), ==, 0);
    return st.st_blocks * 512;
}

/* What the stream of the disk has carried to the destination */
static int64_t disk_sent(MuxTest *t, unsigned disk)
{
    g_autofree char *name = g_strdup_printf("nbd-disk%u", disk);
    QDict *stream = mux_query_stream(t->from, name);
    int64_t sent = qdict_get_int(stream, "sent");

    qobject_unref(stream);
    return sent;
}

/* Migrate a guest that has written zeroes to both disks. */
static void migrate_zeroes(MuxTest *t, const char *disks)
{
    for (unsigned i = 0; i < MUX_NUM_DISKS; i++) {
        mux_write(t, i, 0, ZEROES_AT, ZEROES);
    }
    mux_listen(t, MUX_BOTH_DISKS);
    mux_migrate(t, disks);
    mux_complete(t);
}

static void test_fresh(void)
{
    MuxTest t = { .bare = true };

    if (!mux_start(&t)) {
        return;
    }
    migrate_zeroes(&t, MUX_BOTH_DISKS);
    for (unsigned i = 0; i < MUX_NUM_DISKS; i++) {
        g_assert_cmpint(disk_sent(&t, i), <, SPARSE_MAX);
        g_assert_cmpint(target_allocated(i), <, SPARSE_MAX);
    }
    mux_end(&t, true);
}

static void test_detect_zeroes_off(void)
{
    MuxTest t = { .bare = true };

    if (!mux_start(&t)) {
        return;
    }
    migrate_zeroes(&t, MUX_DISK("'disk': 'disk0', 'detect-zeroes': 'off'")
                       MUX_DISK1);
    g_assert_cmpint(disk_sent(&t, 0), >, ZEROES);
    g_assert_cmpint(disk_sent(&t, 1), <, SPARSE_MAX);
    mux_end(&t, true);
}

static void test_not_fresh(void)
{
    MuxTest t = { .bare = true };

    if (!mux_start(&t)) {
        return;
    }
    /* The destination's QEMU has it open, but has not read it yet */
    mux_write_image("dst", 0, 0xff, 0, MUX_DISK_SIZE_MB * MiB);
    migrate_zeroes(&t, MUX_BOTH_DISKS);
    mux_end(&t, true);
}

/* What the guest zeroes after it was copied */
static void test_zeroed_later(void)
{
    MuxTest t = { .bare = true };

    if (!mux_start(&t)) {
        return;
    }
    migrate_ensure_non_converge(t.from);
    mux_listen(&t, MUX_BOTH_DISKS);
    mux_migrate(&t, MUX_BOTH_DISKS);
    mux_wait_phase(&t, "precopy");
    mux_write(&t, 0, 0, 0, MiB / 2);
    mux_write(&t, 1, 0, 4 * MiB, 512);
    mux_complete(&t);
    mux_end(&t, true);
}

void migration_test_add_mux_sparse(MigrationTestEnv *env)
{
    migration_test_add("/migration/mux/sparse/fresh", test_fresh);
    migration_test_add("/migration/mux/sparse/detect-zeroes-off",
                       test_detect_zeroes_off);
    migration_test_add("/migration/mux/sparse/not-fresh", test_not_fresh);
    migration_test_add("/migration/mux/sparse/zeroed-later",
                       test_zeroed_later);
}
