/*
 * QTest testcases for migration over a multiplexed connection: each fault in
 * each phase
 *
 * A relay stands between the two sides.  A phase is a place on the wire: there
 * either the relay does harm, or it holds what the source sends while something
 * else happens, and then goes on.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include <sys/resource.h>
#include <sys/wait.h>
#include "libqtest.h"
#include "migration/framework.h"
#include "migration/migration-qmp.h"
#include "migration/migration-util.h"
#include "migration/mux-util.h"
#include "qapi/error.h"
#include "qobject/qjson.h"
#include "qemu/units.h"

/*
 * Each cell has a source of its own, so that a second migration follows each.
 */
#define FIRE_TIMEOUT_MS 20000
#define END_TIMEOUT_S   30
#define MAX_SPARE_DESCRIPTORS 30

/* What becomes of the migration */
typedef enum FaultEnd {
    ENDS_FAILED,
    ENDS_CANCELLED,
    ENDS_GIVEN_UP,              /* failed or cancelled: whichever came first */
    ENDS_COMPLETED,             /* the guest is at the destination */
    ENDS_WITHOUT_SOURCE,
} FaultEnd;

/* What is left of the destination if the migration has not completed */
typedef enum FaultTarget {
    TARGET_SAYS_WHY,            /* it has failed, and says why */
    TARGET_WAITS,               /* it never heard of the source */
    TARGET_GONE,
} FaultTarget;

typedef enum FaultPhase {
    PHASE_CONNECT,
    PHASE_HELLO,
    PHASE_DISKS,
    PHASE_PRECOPY,
    PHASE_CONVERGE,
    PHASE_STOPPING,
    PHASE_COMPLETION,
    PHASE_DEVICE,
    PHASE_HANDOVER,
    PHASE__MAX,
} FaultPhase;

typedef struct PhaseInfo {
    const char *name;
    const char *place;          /* for the relay: to the destination */
    const char *back;           /* the same, from the destination */
    const char *from_phase;     /* the phase that the source names */
    const char *to_phase;       /* the phase that the destination names */
    bool to_late;               /* or a later one */
    bool stopped;               /* wait for the guest to be stopped first */
} PhaseInfo;

/*
 * In converge the destination is made to flush; then the guest is stopped,
 * which flushes all nodes; then the mirrors are ended.  On the wire one flush
 * looks like another.
 */
static const PhaseInfo phases[PHASE__MAX] = {
    [PHASE_CONNECT] = { "connect", "", "", "connect", "connect" },
    [PHASE_HELLO] = { "hello", ",frame=HELLO", ",in=from,frame=HELLO",
                      "connect", "connect" },
    [PHASE_DISKS] = { "disks", ",frame=DATA:nbd-disk0,nth=8",
                      ",in=from,frame=DATA:nbd-disk0,nth=8",
                      "disks", "disks" },
    [PHASE_PRECOPY] = { "precopy", ",frame=DATA:main,after=WINDOW:main",
                        ",in=from,frame=WINDOW:main",
                        "precopy", "precopy" },
    [PHASE_CONVERGE] = { "converge",
                         ",frame=DATA:nbd-disk0,after=DATA:main",
                         ",in=from,frame=DATA:nbd-disk0,after=DATA:main",
                         "converge", "precopy" },
    [PHASE_STOPPING] = { "stopping", ",frame=DATA:nbd-disk0",
                         ",in=from,frame=DATA:nbd-disk0",
                         "switchover", "precopy", true, true },
    [PHASE_COMPLETION] = { "completion", ",frame=FIN:nbd-disk0",
                           ",in=from,frame=FIN_OK:nbd-disk0",
                           "switchover", "precopy", true },
    [PHASE_DEVICE] = { "device", ",frame=DATA:main,after=FIN_OK:nbd-disk0",
                       NULL, "switchover", "switchover" },
    [PHASE_HANDOVER] = { "handover", ",frame=FIN:main",
                         ",in=from,frame=FIN_OK:main",
                         "switchover", "switchover" },
};

#define IN(phase) (1u << PHASE_##phase)
#define IN_ALL ((1u << PHASE__MAX) - 1)

typedef struct Fault {
    const char *name;
    unsigned phases;            /* those in which it can happen */
    /*
     * What the relay does at the phase's place, or at that in the other
     * direction, and goes on doing.  If it is neither, it stops bytes to the
     * destination there, until act() is done.
     */
    const char *relay, *relay_back;
    void (*before)(MuxTest *t); /* before the migration starts */
    void (*act)(MuxTest *t);    /* at the place */
    void (*then)(MuxTest *t);   /* when the relay has gone on */
    FaultEnd end;
    FaultTarget target;
    const char *from_says, *to_says;    /* part of their messages */
    bool late;                  /* the phase that they name may be the next */
    bool local;                 /* they need not name a stream */
    /* Instead of files, below disk0 at the source and at the destination */
    const char *from_protocol, *to_protocol;
} Fault;

/* --- the destination's process --- */

/* libqtest takes a signal for a failure: those killed are kept from it. */
static GPtrArray *killed;

static void kill_target(MuxTest *t)
{
    qtest_remove_abrt_handler(t->to);
    kill(qtest_pid(t->to), SIGKILL);
    waitpid(qtest_pid(t->to), NULL, 0);
    if (!killed) {
        killed = g_ptr_array_new();
    }
    g_ptr_array_add(killed, t->to);
    t->to = NULL;
}

/* It goes on until its threads have been scheduled. */
static void stop_target(MuxTest *t)
{
    int status;

    kill(qtest_pid(t->to), SIGSTOP);
    g_assert_cmpint(waitpid(qtest_pid(t->to), &status, WUNTRACED), ==,
                    qtest_pid(t->to));
    g_assert(WIFSTOPPED(status));
}

static void continue_target(MuxTest *t)
{
    usleep(200 * 1000);
    kill(qtest_pid(t->to), SIGCONT);
}

static void quit_target(MuxTest *t)
{
    qtest_quit(t->to);
    t->to = NULL;
}

/* --- the source --- */

static void quit_source(MuxTest *t)
{
    qtest_quit(t->from);
    t->from = NULL;
}

static void yank_source(MuxTest *t)
{
    usleep(50 * 1000);
    qtest_qmp_assert_success(t->from,
                             "{ 'exec-oob': 'yank', 'arguments': {"
                             "  'instances': [ { 'type': 'migration' } ] } }");
}

static void cancel_source(MuxTest *t)
{
    usleep(50 * 1000);
    migrate_cancel(t->from);
}

static void limit_silence(MuxTest *t)
{
    migrate_set_parameter_int(t->from, "channel-mux-timeout", 1500);
}

/* What the stopped guest waits for is given up soon. */
static void limit_stop(MuxTest *t)
{
    migrate_set_parameter_int(t->from, "channel-mux-stop-timeout", 2000);
}

static void cancel_job(MuxTest *t)
{
    qtest_qmp_assert_success(t->from, "{ 'execute': 'block-job-cancel',"
                             "  'arguments': { 'device': 'nbd-disk0' } }");
}

static void kill_job(MuxTest *t)
{
    qtest_qmp_assert_success(t->from, "{ 'execute': 'block-job-cancel',"
                             "  'arguments': { 'device': 'nbd-disk0',"
                             "                 'force': true } }");
}

static void pause_job(MuxTest *t)
{
    qtest_qmp_assert_success(t->from, "{ 'execute': 'block-job-pause',"
                             "  'arguments': { 'device': 'nbd-disk0' } }");
}

/* The disk is behind until the job goes on. */
static void pause_job_and_write(MuxTest *t)
{
    pause_job(t);
    mux_write(t, 0, 0x70, 4 * MiB, MiB);
}

static void resume_job(MuxTest *t)
{
    g_autofree char *status = NULL;

    usleep(200 * 1000);
    status = migrate_query_status(t->from);
    g_assert_cmpstr(status, !=, "completed");
    qtest_qmp_assert_success(t->from, "{ 'execute': 'block-job-resume',"
                             "  'arguments': { 'device': 'nbd-disk0' } }");
}

static void assert_refused(QTestState *who, const char *command,
                           const char *arguments, const char *text)
{
    g_autofree char *json = g_strdup_printf("{ %s }", arguments);
    QDict *err = qtest_qmp_assert_failure_ref(
        who, "{ 'execute': %s, 'arguments': %p }", command,
        qobject_from_json(json, &error_abort));

    g_test_message("%s", qdict_get_str(err, "desc"));
    g_assert(strstr(qdict_get_str(err, "desc"), text));
    qobject_unref(err);
}

static void complete_job(MuxTest *t)
{
    assert_refused(t->from, "block-job-complete", "'device': 'nbd-disk0'",
                   "complete");
}

static void unplug_disk(MuxTest *t)
{
    assert_refused(t->from, "device_del", "'id': 'vd0'",
                   "not allowed while migrating");
}

static void reset_guest(MuxTest *t)
{
    qtest_qmp_assert_success(t->from, "{ 'execute': 'system_reset' }");
}

static void powerdown_guest(MuxTest *t)
{
    qtest_qmp_assert_success(t->from, "{ 'execute': 'system_powerdown' }");
}

/* Only the device could do it. */
static void move_disk_to_iothread(MuxTest *t)
{
    qtest_qmp_assert_success(t->from, "{ 'execute': 'object-add',"
                             "  'arguments': { 'qom-type': 'iothread',"
                             "                 'id': 'iothread0' } }");
    assert_refused(t->from, "x-blockdev-set-iothread",
                   "'node-name': 'disk0', 'iothread': 'iothread0'",
                   "Cannot change iothread of active block backend");
}

/* --- errors of the images --- */

#define BAD_OFFSET (10 * MiB)       /* sector 20480 */
#define BLKDEBUG "driver=blkdebug,image.driver=file,inject-error.0."
#define AT_BAD_SECTOR "event=none,inject-error.0.sector=20480,"
#define IMAGE "image.filename="
/* The mirror flushes when it is in step; then comes the phase "converge". */
#define SECOND_FLUSH \
    "event=flush_to_disk,inject-error.0.state=2,inject-error.0.errno=5," \
    "set-state.0.event=flush_to_disk,set-state.0.state=1," \
    "set-state.0.new_state=2,"

static void write_bad_sector(MuxTest *t)
{
    mux_write(t, 0, 0x66, BAD_OFFSET, 64 * KiB);
}

/* --- descriptors --- */

/* Let @who open @spare descriptors more. */
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

static const Fault faults[] = {
    { "kill", IN_ALL, .act = kill_target, .target = TARGET_GONE,
      .from_says = "all streams: " },
    { "reset", IN_ALL, "reset", .from_says = "all streams: ",
      .to_says = "all streams: " },
    { "cut", IN_ALL, "cut", .from_says = "all streams: ",
      .to_says = "all streams: " },
    { "half-close-to", IN_ALL, "half-close,dir=to",
      .from_says = "all streams: ", .to_says = "all streams: ", .late = true },
    { "half-close-from", IN_ALL, "half-close,dir=from",
      .from_says = "all streams: ", .to_says = "all streams: ", .late = true },
    { "silence-yank", IN_ALL, "silence", .then = yank_source,
      .target = TARGET_WAITS, .from_says = "" },
    { "silence-cancel", IN_ALL & ~IN(STOPPING), "silence",
      .then = cancel_source, .end = ENDS_CANCELLED, .target = TARGET_WAITS },
    /* QMP waits for the guest to be stopped, which is given up after a time. */
    { "silence-cancel", IN(STOPPING), "silence", .before = limit_stop,
      .then = cancel_source,
      .end = ENDS_GIVEN_UP, .target = TARGET_WAITS },
    { "silence", IN(STOPPING) | IN(COMPLETION) | IN(DEVICE) |
      IN(HANDOVER), "silence", .before = limit_stop,
      .target = TARGET_WAITS, .from_says = "" },
    { "silence-timeout",
      IN(CONNECT) | IN(HELLO) | IN(DISKS) | IN(PRECOPY) | IN(CONVERGE),
      "silence", .before = limit_silence, .target = TARGET_WAITS,
      .from_says = "1.5 s", .late = true },
    { "stop-continue", IN_ALL, .act = stop_target, .then = continue_target,
      .end = ENDS_COMPLETED },
    { "stop-yank", IN_ALL, .act = stop_target, .then = yank_source,
      .target = TARGET_WAITS, .from_says = "" },
    { "stop-cancel", IN_ALL & ~IN(STOPPING), .act = stop_target,
      .then = cancel_source, .end = ENDS_CANCELLED, .target = TARGET_WAITS },
    { "stop-cancel", IN(STOPPING), .before = limit_stop,
      .act = stop_target, .then = cancel_source,
      .end = ENDS_GIVEN_UP, .target = TARGET_WAITS },
    { "flip-flags", IN_ALL & ~IN(CONNECT), "flip,byte=1", .from_says = "",
      .to_says = "" },
    { "flip-stream", IN_ALL & ~IN(CONNECT) & ~IN(HELLO), "flip,byte=7",
      .from_says = "", .to_says = "" },
    { "flip-length", IN_ALL & ~IN(CONNECT), "flip,byte=11", .from_says = "",
      .to_says = "" },
    { "flip-offset", IN_ALL & ~IN(CONNECT) & ~IN(HELLO) & ~IN(COMPLETION) &
      ~IN(HANDOVER), "flip,byte=15", .from_says = "", .to_says = "" },
    { "flip-back", IN_ALL & ~IN(CONNECT) & ~IN(DEVICE),
      .relay_back = "flip,byte=1", .from_says = "", .to_says = "" },
    { "cut-back", IN_ALL & ~IN(CONNECT) & ~IN(DEVICE), .relay_back = "cut",
      .from_says = "", .to_says = "" },
    { "quit-target",
      IN_ALL & ~IN(CONNECT) & ~IN(DEVICE) & ~IN(HANDOVER),
      .then = quit_target, .target = TARGET_GONE,
      .from_says = "the destination was shut down", .late = true },
    /* Else it is over by then */
    { "quit-target", IN(DEVICE), .act = quit_target,
      .target = TARGET_GONE, .from_says = "the destination was shut down" },
    { "quit-source", IN_ALL & ~IN(DEVICE) & ~IN(HANDOVER) & ~IN(CONNECT),
      .then = quit_source,
      .end = ENDS_WITHOUT_SOURCE, .late = true,
      .to_says = "the migration was cancelled at the source" },
    { "quit-source", IN(CONNECT), .then = quit_source,
      .end = ENDS_WITHOUT_SOURCE, .to_says = "all streams: " },
    { "job-cancel", IN(DISKS) | IN(PRECOPY) | IN(CONVERGE),
      .act = cancel_job,
      .from_says = "stream 'nbd-disk0': job 'nbd-disk0' was ended by someone",
      .to_says = "nbd-disk0", .late = true },
    { "job-kill", IN(DISKS) | IN(PRECOPY) | IN(CONVERGE),
      .act = kill_job,
      .from_says = "stream 'nbd-disk0': job 'nbd-disk0' was ended by someone",
      .to_says = "nbd-disk0" },
    { "job-pause", IN(DISKS), .act = pause_job, .then = resume_job,
      .end = ENDS_COMPLETED },
    { "job-pause-behind", IN(PRECOPY), .act = pause_job_and_write,
      .then = resume_job, .end = ENDS_COMPLETED },
    { "job-complete", IN(DISKS) | IN(PRECOPY) | IN(CONVERGE),
      .act = complete_job, .end = ENDS_COMPLETED },
    { "unplug", IN(DISKS) | IN(PRECOPY) | IN(CONVERGE),
      .act = unplug_disk, .end = ENDS_COMPLETED },
    { "powerdown", IN(DISKS) | IN(PRECOPY) | IN(CONVERGE),
      .act = powerdown_guest, .end = ENDS_COMPLETED },
    { "guest-reset", IN(DISKS) | IN(PRECOPY) | IN(CONVERGE),
      .then = reset_guest, .end = ENDS_COMPLETED },
    { "iothread", IN(DISKS) | IN(PRECOPY) | IN(CONVERGE),
      .then = move_disk_to_iothread, .end = ENDS_COMPLETED },
    { "target-full", IN(DISKS) | IN(PRECOPY), .act = write_bad_sector,
      .to_protocol = BLKDEBUG "errno=28,inject-error.0." AT_BAD_SECTOR
                     "inject-error.0.iotype=write," IMAGE,
      .from_says = "No space left on device",
      .to_says = "No space left on device", .late = true },
    { "target-eio", IN(DISKS) | IN(PRECOPY), .act = write_bad_sector,
      .to_protocol = BLKDEBUG "errno=5,inject-error.0." AT_BAD_SECTOR
                     "inject-error.0.iotype=write," IMAGE,
      .from_says = "Input/output error",
      .to_says = "Input/output error", .late = true },
    { "target-flush-eio", IN(PRECOPY), .act = write_bad_sector,
      .to_protocol = BLKDEBUG SECOND_FLUSH IMAGE,
      .from_says = "Input/output error", .to_says = "Input/output error",
      .late = true, .local = true },
    { "source-eio", IN(DISKS), .before = write_bad_sector,
      .from_protocol = BLKDEBUG "once=on,inject-error.0." AT_BAD_SECTOR
                       "inject-error.0.iotype=read," IMAGE,
      .from_says = "Input/output error", .to_says = "Input/output error" },
    { "source-flush-eio", IN(CONVERGE),
      .from_protocol = BLKDEBUG "once=on,inject-error.0.event=none,"
                       "inject-error.0.iotype=flush," IMAGE,
      .from_says = "", .to_says = "", .late = true, .local = true },
};

/* --- a cell of the table --- */

typedef struct Cell {
    const PhaseInfo *phase;
    const Fault *fault;
} Cell;

static const char *const end_status[] = {
    [ENDS_FAILED] = "failed",
    [ENDS_CANCELLED] = "cancelled",
    [ENDS_COMPLETED] = "completed",
};

static void add_fault(MuxRelay *relay, const char *kind, const char *place)
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

/* One message, that names phase, stream and cause */
static void assert_says(QTestState *who, const Fault *f, const char *phase,
                        bool late, const char *text)
{
    static const char start[] = "migration failed in phase '";
    QDict *info = migrate_query(who);
    const char *desc = qdict_get_try_str(info, "error-desc");
    g_auto(GStrv) parts = NULL;

    g_test_message("error-desc: %s", desc);
    g_assert(desc);
    g_test_message("expected: phase '%s'%s, %s", phase, late ? " or later" : "",
                   text);
    g_assert(g_str_has_prefix(desc, start));
    parts = g_strsplit(desc + strlen(start), "'", 2);
    g_assert(phase_fits(parts[0], phase, late));
    g_assert(strstr(desc, "stream") || f->local);
    g_assert(strstr(desc, text));
    qobject_unref(info);
}

static char *wait_for_status(MuxTest *t)
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

static void wait_for_end(MuxTest *t, const Cell *c)
{
    g_autofree char *status = wait_for_status(t);

    if (c->fault->end == ENDS_FAILED) {
        assert_says(t->from, c->fault, c->phase->from_phase, c->fault->late,
                    c->fault->from_says);
    }
    if (c->fault->end == ENDS_GIVEN_UP) {
        g_assert_cmpstr(status, !=, "completed");
    } else {
        g_assert_cmpstr(status, ==, end_status[c->fault->end]);
    }
}

static void check_target(MuxTest *t, const Cell *c)
{
    kill(qtest_pid(t->to), SIGCONT);
    if (c->fault->end == ENDS_COMPLETED) {
        mux_wait_target_status(t, "completed");
    } else if (c->fault->target == TARGET_SAYS_WHY) {
        mux_wait_target_status(t, "failed");
        assert_says(t->to, c->fault, c->phase->to_phase,
                    c->fault->late || c->phase->to_late, c->fault->to_says);
    }
}

/* From "converge" on everything takes long enough to see the guest stop. */
static void wait_until_stopped(MuxTest *t, MuxRelay *relay)
{
    add_fault(relay, "delay=50", phases[PHASE_CONVERGE].place);
    migrate_ensure_converge(t->from);
    mux_migrate(t, MUX_BOTH_DISKS);
    g_assert(mux_relay_wait_fired(relay, 1, FIRE_TIMEOUT_MS));
    qtest_qmp_eventwait(t->from, "STOP");
}

static void place_fault(MuxRelay *relay, const Cell *c)
{
    if (c->fault->relay_back) {
        add_fault(relay, c->fault->relay_back, c->phase->back);
    } else {
        add_fault(relay, c->fault->relay ?: "silence,dir=to",
                  c->phase->place);
    }
}

static void do_harm(MuxTest *t, MuxRelay *relay, const Cell *c)
{
    if (c->phase->stopped) {
        wait_until_stopped(t, relay);
        place_fault(relay, c);
        g_assert(mux_relay_wait_fired(relay, 2, FIRE_TIMEOUT_MS));
    } else {
        place_fault(relay, c);
        mux_migrate(t, MUX_BOTH_DISKS);
        g_assert(mux_relay_wait_fired(relay, 1, FIRE_TIMEOUT_MS));
    }
    if (c->fault->act) {
        c->fault->act(t);
    }
    if (!c->fault->relay && !c->fault->relay_back) {
        add_fault(relay, "heal", "");
    }
    if (c->fault->then) {
        c->fault->then(t);
    }
}

static void run_cell(const void *opaque)
{
    const Cell *c = opaque;
    MuxTest t = {
        .bare = true,
        .inet = true,
        .keep_target = true,
        .from_protocol = c->fault->from_protocol,
        .to_protocol = c->fault->to_protocol,
    };
    MuxRelay *relay;

    if (!mux_start(&t)) {
        return;
    }
    if (c->fault->before) {
        c->fault->before(&t);
    }
    mux_listen(&t, MUX_BOTH_DISKS);
    relay = mux_start_relay(&t);
    do_harm(&t, relay, c);
    if (t.from) {
        wait_for_end(&t, c);
    }
    if (t.to) {
        check_target(&t, c);
    }
    mux_relay_free(relay);
    if (c->fault->end <= ENDS_GIVEN_UP) {
        mux_end_after_failure(&t);
    } else {
        mux_end(&t, c->fault->end == ENDS_COMPLETED);
    }
}

/*
 * Fewer descriptors than a migration needs: it fails, until there are enough.
 * Nobody dies, and what was opened is closed.
 */
static void test_out_of_descriptors(void)
{
    MuxTest t = { .bare = true, .inet = true, .keep_target = true };
    g_autofree char *status = g_strdup("");

    if (!mux_start(&t)) {
        return;
    }
    for (unsigned spare = 0; !g_str_equal(status, "completed"); spare++) {
        g_assert_cmpuint(spare, <, MAX_SPARE_DESCRIPTORS);
        if (spare) {
            mux_assert_nothing_left(&t);
            mux_replace_target(&t);
        }
        mux_listen(&t, MUX_BOTH_DISKS);
        limit_descriptors(t.from, spare);
        mux_migrate(&t, MUX_BOTH_DISKS);
        g_free(status);
        status = wait_for_status(&t);
        unlimit_descriptors(t.from);
        g_test_message("%u spare: %s", spare, status);
        g_assert(spare || g_str_equal(status, "failed"));
    }
    mux_end(&t, true);
}

static void add_cell(const PhaseInfo *phase, const Fault *fault)
{
    g_autofree char *path = g_strdup_printf("migration/mux/fault/%s/%s",
                                            phase->name, fault->name);
    Cell *c = g_new0(Cell, 1);

    c->phase = phase;
    c->fault = fault;
    qtest_add_data_func_full(path, c, run_cell, g_free);
}

void migration_test_add_mux_fault(MigrationTestEnv *env)
{
    mux_init(env);
    if (!env->is_x86) {
        return;
    }
    migration_test_add("/migration/mux/fault/connect/out-of-descriptors",
                       test_out_of_descriptors);
    for (unsigned p = 0; p < PHASE__MAX; p++) {
        for (unsigned f = 0; f < ARRAY_SIZE(faults); f++) {
            if (faults[f].phases & (1u << p)) {
                add_cell(&phases[p], &faults[f]);
            }
        }
    }
}
