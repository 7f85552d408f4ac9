/*
 * QTest testcases for migration over a multiplexed connection: the catalogue of
 * faults, each fault in each of its phases
 *
 * A relay forwards the connection between the two sides.  A phase is a place on
 * the wire: there the relay either injects the fault, or holds the source's
 * data while actions are executed, and then resumes.
 *
 * Each cell starts its own source, which is then migrated a second time.
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
#include "migration/mux-catalogue.h"
#include "qapi/error.h"
#include "qobject/qdict.h"
#include "qobject/qlist.h"

typedef struct Cell {
    const char *fault, *phase;
    /* Of one run */
    MuxTest t;
    MuxRelay *relay;
    unsigned num_faults;        /* that the relay has to inject */
} Cell;

/* --- what the catalogue says about the cell --- */

static const char *get(const Cell *c, const char *key)
{
    return mux_fault_get(c->fault, c->phase, key);
}

static bool is(const Cell *c, const char *key)
{
    return mux_fault_is(c->fault, c->phase, key);
}

static bool ends(const Cell *c, const char *end)
{
    return g_str_equal(get(c, "end") ?: "failed", end);
}

static bool in_phase(const Cell *c, const char *phase)
{
    return g_str_equal(c->phase, phase);
}

/* The migration fails by itself, without a fault at a place. */
static bool fails_alone(const Cell *c)
{
    return !g_strcmp0(get(c, "relay"), "none");
}

/*
 * Returns: options for the node below @disk of @side, without the file name;
 * NULL: the usual ones
 */
static char *below_disk(const Cell *c, const char *side, unsigned disk)
{
    g_autofree char *key = g_strdup_printf("%s-error%s", side,
                                           disk ? "1" : "");
    const char *error = get(c, key);
    const char *set_state = disk ? NULL : get(c, "set-state");
    bool hangs = is(c, "hang") && !disk && g_str_equal(side, "destination");
    g_autoptr(GString) text = g_string_new("driver=blkdebug");
    const struct {
        const char *name, *options;
    } rules[] = {
        { "inject-error.0", error },
        { "set-state.0", set_state },
    };

    if (!error && !hangs && !mux_phase_is(c->phase, "stopped")) {
        return NULL;
    }
    for (unsigned i = 0; i < ARRAY_SIZE(rules); i++) {
        g_auto(GStrv) options = g_strsplit(rules[i].options ?: "", ",", -1);

        for (unsigned o = 0; options[o]; o++) {
            g_string_append_printf(text, ",%s.%s", rules[i].name, options[o]);
        }
    }
    g_string_append(text, ",image.driver=file,image.cache.no-flush=on,"
                    "image.filename=");
    return g_string_free(g_steal_pointer(&text), false);
}

/* Returns: the disks of @side for mux_listen() and mux_migrate() */
static const char *disks(const Cell *c, const char *side)
{
    g_autofree char *key = g_strconcat(side, "-disks", NULL);
    const char *names = get(c, key);

    if (!names) {
        return MUX_BOTH_DISKS;
    }
    return g_str_equal(names, "disk0") ? MUX_DISK0 : "";
}

/* --- the fault --- */

static void act(Cell *c, const char *key)
{
    g_auto(GStrv) names = mux_fault_list(c->fault, c->phase, key);

    for (unsigned i = 0; names[i] && *names[i]; i++) {
        MuxAction *action = mux_find_action(names[i]);

        g_test_message("%s: %s", key, names[i]);
        g_assert(action);
        action(&c->t);
    }
}

static void add_fault(Cell *c, const char *fault)
{
    g_test_message("relay: %s", fault);
    mux_relay_add_fault(c->relay, fault, &error_abort);
    c->num_faults++;
}

/* Have the relay do @what at the place that @key of the phase names. */
static void add_fault_at(Cell *c, const char *what, const char *key)
{
    const char *place = mux_phase_get(c->phase, key);
    g_autofree char *fault = g_strconcat(what, *place ? "," : "", place, NULL);

    add_fault(c, fault);
}

static void wait_fired(Cell *c)
{
    g_assert(mux_relay_wait_fired(c->relay, c->num_faults,
                                  MUX_WAIT_TIMEOUT_S * 1000));
}

/* Hold, or release, what comes from one side. */
static char *hold(const Cell *c, const char *what)
{
    const char *dir = mux_phase_get(c->phase, "hold");

    return g_strdup_printf("%s,dir=%s", what, *dir ? dir : "to");
}

static void place_fault(Cell *c)
{
    g_autofree char *silence = hold(c, "silence");

    if (get(c, "relay-back")) {
        add_fault_at(c, get(c, "relay-back"), "back");
    } else {
        add_fault_at(c, get(c, "relay") ?: silence, "at");
    }
}

/* The error must name this phase, so keep it from ending early. */
static void stay_in_phase(Cell *c)
{
    if (in_phase(c, "precopy") && !is(c, "later") && !ends(c, "completed")) {
        migrate_set_parameter_int(c->t.from, "downtime-limit", 1);
    }
}

/* Wait until writes to disk0 complete only after they have been mirrored. */
static void wait_actively_synced(Cell *c)
{
    bool synced = false;

    g_test_timer_start();
    while (!synced) {
        QDict *rsp = qtest_qmp(c->t.from, "{ 'execute': 'query-block-jobs' }");
        QListEntry *entry;

        QLIST_FOREACH_ENTRY(qdict_get_qlist(rsp, "return"), entry) {
            QDict *job = qobject_to(QDict, qlist_entry_obj(entry));

            synced |= g_str_equal(qdict_get_str(job, "device"), "nbd-disk0") &&
                qdict_get_try_bool(job, "actively-synced", false);
        }
        qobject_unref(rsp);
        g_assert(g_test_timer_elapsed() < MUX_WAIT_TIMEOUT_S);
        usleep(synced ? 0 : 5000);
    }
}

/*
 * Migrate until the guest is stopped, with no data of disk0 in flight then.
 *
 * In "converge" the source flushes each disk repeatedly, but not while a flush
 * of that disk is in flight, and it stops the guest only after each disk has
 * replied.  So the destination first holds the reply of disk1, then that of
 * disk0, and then releases disk1: stopping the guest has to wait for disk0.
 */
static void migrate_until_stopped(Cell *c)
{
    migrate_ensure_converge(c->t.from);
    add_fault(c, "silence,dir=to,frame=DATA:main,after=WINDOW:main");
    mux_migrate(&c->t, disks(c, "source"));
    wait_fired(c);
    mux_disk_io(c->t.to, 1, "break flush_to_os hold");
    add_fault(c, "heal,dir=to");
    wait_actively_synced(c);
    /* The reply to the first request tells the source that disk0 is synced. */
    add_fault(c, "silence,dir=to,frame=DATA:nbd-disk0,nth=2");
    wait_fired(c);
    mux_disk_io(c->t.to, 0, "break flush_to_os hold");
    add_fault(c, "heal,dir=to");
    /* Now its main loop has nothing to do but these flushes. */
    mux_disk_io(c->t.to, 0, "wait_break hold");
    mux_disk_io(c->t.to, 1, "wait_break hold");
    mux_disk_io(c->t.to, 1, "resume hold");
    qtest_qmp_eventwait(c->t.from, "STOP");

    /*
     * Let the relay see whatever was queued before that.  While the guest is
     * being stopped, the source cannot be asked if it has sent everything.
     */
    for (unsigned i = 0; i < 10; i++) {
        g_usleep(20 * 1000);
        add_fault(c, "delay=0");
        wait_fired(c);
    }
    place_fault(c);
    mux_disk_io(c->t.to, 0, "resume hold");
    wait_fired(c);
}

/* Migrate up to the phase, and have the relay act there. */
static void migrate_into_phase(Cell *c)
{
    const char *status = mux_phase_get(c->phase, "status");

    if (*status) {
        mux_find_action("pause-before-switchover")(&c->t);
        migrate_ensure_converge(c->t.from);
        mux_migrate(&c->t, disks(c, "source"));
        mux_wait_status(&c->t, status);
    } else if (fails_alone(c)) {
        stay_in_phase(c);
        mux_migrate(&c->t, disks(c, "source"));
    } else if (mux_phase_is(c->phase, "stopped")) {
        migrate_until_stopped(c);
    } else {
        place_fault(c);
        stay_in_phase(c);
        mux_migrate(&c->t, disks(c, "source"));
        wait_fired(c);
    }
    if (in_phase(c, "connect") && (get(c, "act") || get(c, "then"))) {
        /* Wait until the source knows of the connection as well. */
        mux_wait_streams(c->t.from);
    }
}

static void do_harm(Cell *c)
{
    g_autofree char *heal = hold(c, "heal");
    bool held;

    migrate_into_phase(c);
    held = c->num_faults && !get(c, "relay") && !get(c, "relay-back");
    act(c, "act");
    if (is(c, "slow")) {
        add_fault(c, "delay=300,dir=from");
    }
    if (held) {
        add_fault(c, heal);
    }
    act(c, "then");
    if (get(c, "relay-then")) {
        add_fault(c, get(c, "relay-then"));
    }
}

/* --- the outcome --- */

static void assert_failure(const Cell *c, QTestState *who, const char *side)
{
    g_autofree char *may_be_later = g_strconcat(side, "-later", NULL);
    g_auto(GStrv) texts = mux_fault_texts(c->fault, c->phase, side);

    if (texts) {
        mux_assert_failure(who, mux_phase_get(c->phase, side),
                           is(c, "later") ||
                           mux_phase_is(c->phase, may_be_later),
                           (const char *const *)texts);
    }
}

static void assert_source(Cell *c)
{
    g_autofree char *status = mux_wait_end(&c->t);

    if (!g_str_equal(status, "completed")) {
        mux_assert_no_jobs(&c->t);
    }
    if (ends(c, "failed")) {
        g_assert_cmpstr(status, ==, "failed");
        assert_failure(c, c->t.from, "source");
    } else if (ends(c, "cancelled")) {
        g_assert_cmpstr(status, ==, "cancelled");
        mux_assert_no_error(c->t.from);
    } else if (ends(c, "given-up")) {
        g_assert_cmpstr(status, !=, "completed");
        assert_failure(c, c->t.from, "source");
    } else {
        g_assert(ends(c, "completed") || ends(c, "not-handed-over"));
        g_assert_cmpstr(status, ==, "completed");
    }
}

static bool destination_is(const Cell *c, const char *expected)
{
    return !g_strcmp0(get(c, "destination"), expected);
}

static void assert_destination(Cell *c)
{
    kill(qtest_pid(c->t.to), SIGCONT);
    /* One that waits is proved right by the migration that follows. */
    c->t.target_waits = mux_phase_is(c->phase, "waits") &&
        !destination_is(c, "failed") && !destination_is(c, "rejected");
    if (ends(c, "completed")) {
        mux_wait_target_status(&c->t, "completed");
    } else if (c->t.target_waits || destination_is(c, "rejected")) {
        mux_wait_target_status(&c->t, "setup");
        mux_assert_no_error(c->t.to);
    } else {
        mux_wait_target_status(&c->t, "failed");
        assert_failure(c, c->t.to, "destination");
    }
}

static void free_relay(Cell *c)
{
    g_clear_pointer(&c->relay, mux_relay_free);
}

/* Neither side runs the guest: resume it at the source, as a user would. */
static void take_guest_back(Cell *c)
{
    g_assert(!mux_is_running(c->t.from));
    g_assert(!mux_is_running(c->t.to));
    qtest_qmp_assert_success(c->t.from, "{ 'execute': 'cont' }");
}

static void assert_end(Cell *c)
{
    if (c->t.from) {
        assert_source(c);
    }
    if (destination_is(c, "cut-off")) {
        free_relay(c);
    }
    g_assert(!c->t.to == destination_is(c, "gone"));
    if (c->t.to) {
        assert_destination(c);
    }
    if (ends(c, "not-handed-over")) {
        take_guest_back(c);
    }
    free_relay(c);
    if (ends(c, "completed") || ends(c, "source-gone")) {
        mux_end(&c->t, ends(c, "completed"));
    } else {
        mux_restore_source(&c->t);
        mux_end_after_failure(&c->t);
    }
}

/* --- a cell --- */

static void run_cell(const void *opaque)
{
    Cell c = *(const Cell *)opaque;
    g_autofree char *from_protocol = below_disk(&c, "source", 0);
    g_autofree char *to_protocol = below_disk(&c, "destination", 0);
    g_autofree char *to_protocol1 = below_disk(&c, "destination", 1);

    c.t = (MuxTest) {
        .bare = true,
        .inet = true,
        .keep_target = !is(&c, "exit-on-error"),
        .from_protocol = from_protocol,
        .to_protocol = to_protocol,
        .to_protocol1 = to_protocol1,
        .to_size_mb = atoi(get(&c, "destination-size") ?: "0"),
    };
    if (!mux_start(&c.t)) {
        return;
    }
    act(&c, "before");
    mux_listen(&c.t, disks(&c, "destination"));
    if (!fails_alone(&c) || get(&c, "relay-always")) {
        c.relay = mux_start_relay(&c.t);
    }
    if (get(&c, "relay-always")) {
        mux_relay_add_fault(c.relay, get(&c, "relay-always"), &error_abort);
    }
    do_harm(&c);
    assert_end(&c);
}

static void add_cell(const char *fault, const char *phase)
{
    g_autofree char *path = g_strdup_printf("migration/mux/fault/%s/%s",
                                            phase, fault);
    Cell *c = g_new0(Cell, 1);

    c->fault = fault;
    c->phase = phase;
    qtest_add_data_func_full(path, c, run_cell, g_free);
}

static void check_actions(const char *fault, const char *phase)
{
    static const char *const keys[] = { "before", "act", "then" };

    for (unsigned k = 0; k < ARRAY_SIZE(keys); k++) {
        g_auto(GStrv) names = mux_fault_list(fault, phase, keys[k]);

        for (unsigned i = 0; names[i] && *names[i]; i++) {
            g_test_message("%s", names[i]);
            g_assert(mux_find_action(names[i]));
        }
    }
}

/* The catalogue can be read, and has no unknown keys or actions. */
static void test_catalogue(void)
{
    g_assert(mux_catalogue_load());
    mux_catalogue_check();
    mux_catalogue_foreach(check_actions);
}

void migration_test_add_mux_fault(MigrationTestEnv *env)
{
    mux_init(env);
    if (!env->is_x86) {
        return;
    }
    migration_test_add("/migration/mux/fault/catalogue", test_catalogue);
    if (mux_catalogue_load()) {
        mux_catalogue_foreach(add_cell);
    }
}
