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
    TARGET_CUT_OFF,             /* the same, but only when the relay has gone */
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

/* Parts of the messages of both sides; "A|B" is either of the two. */
typedef struct FaultTexts {
    const char *from, *to;
} FaultTexts;

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
    FaultTexts says;
    FaultTexts says_in[PHASE__MAX];     /* where it is not @says */
    bool late;                  /* the phase that they name may be the next */
    bool slow;                  /* answers take a while when it has gone on */
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
    migrate_set_parameter_int(t->from, "channel-mux-stop-timeout", 3000);
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

/* The migration may have ended the job, which makes it go on. */
static void resume_ending_job(MuxTest *t)
{
    usleep(200 * 1000);
    qobject_unref(qtest_qmp(t->from, "{ 'execute': 'block-job-resume',"
                            "  'arguments': { 'device': 'nbd-disk0' } }"));
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

static void complete_unready_job(MuxTest *t)
{
    assert_refused(t->from, "block-job-complete", "'device': 'nbd-disk0'",
                   "cannot accept command verb 'complete'");
}

static void complete_job(MuxTest *t)
{
    assert_refused(t->from, "block-job-complete", "'device': 'nbd-disk0'",
                   "the migration that started it will end it");
}

static void unplug_disk(MuxTest *t)
{
    assert_refused(t->from, "device_del", "'id': 'vd0'",
                   "not allowed while migrating");
}

/* What is done in then() lets it go on. */
static void keep_in_precopy(MuxTest *t)
{
    migrate_ensure_non_converge(t->from);
}

static void reset_guest(MuxTest *t)
{
    qtest_qmp_assert_success(t->from, "{ 'execute': 'system_reset' }");
    migrate_ensure_converge(t->from);
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
    migrate_ensure_converge(t->from);
}

/* --- errors of the images --- */

#define BAD_OFFSET (10 * MiB)       /* sector 20480 */
#define BLKDEBUG \
    "driver=blkdebug,image.driver=file,image.cache.no-flush=on,inject-error.0."
#define AT_BAD_SECTOR "event=none,inject-error.0.sector=20480,"
#define IMAGE "image.filename="
#define FAILING_WRITE(error) \
    BLKDEBUG "errno=" error ",inject-error.0." AT_BAD_SECTOR \
    "inject-error.0.iotype=write," IMAGE
#define FAILING_READ \
    BLKDEBUG "once=on,inject-error.0." AT_BAD_SECTOR \
    "inject-error.0.iotype=read," IMAGE
#define FAILING_FLUSH \
    BLKDEBUG "once=on,inject-error.0.event=none,inject-error.0.iotype=flush," \
    IMAGE
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

#define RESET "Connection reset by peer|Broken pipe"
/* Who writes just then, or has not been read to the end, sees the latter. */
#define CLOSED "closed the connection|" RESET
#define YANKED \
    "connection with the destination failed: the connection was yanked"
#define CANCELLED "the migration was cancelled at the source"
/* The source may have said nothing but that it ends. */
#define CLOSED_BEFORE_MAIN \
    [PHASE_CONNECT].to = "the source ended the connection early|" CLOSED, \
    [PHASE_HELLO].to = "the source ended the connection early|" CLOSED
#define UNKNOWN_FLAGS "with unknown flags 0x01"
#define BAD_OFFSET_OF(stream) "DATA on stream '" stream ") with offset 0x"
#define NOT_HANDED_OVER \
    "everything was loaded, but the source did not hand the guest over: "
#define NO_STREAM "on stream id 2 which was never opened|without a stream id"
#define BAD_LENGTH "with a bad length of |sent a frame of unknown type 0x"
#define MIRROR_FAILED(why) "stream 'nbd-disk0': mirror failed: " why
#define MIRROR_FAILED_BOTH(why) { MIRROR_FAILED(why), MIRROR_FAILED(why) }
#define JOB_ENDED \
    "stream 'nbd-disk0': job 'nbd-disk0' was ended by someone other than the " \
    "migration"

static const Fault faults[] = {
    { "kill", IN_ALL, .act = kill_target, .target = TARGET_GONE,
      .says.from = CLOSED },
    { "reset", IN_ALL, "reset", .says = { RESET, RESET } },
    { "cut", IN_ALL, "cut", .says = { CLOSED, CLOSED } },
    { "half-close-to", IN_ALL, "half-close,dir=to",
      .says = { CLOSED, CLOSED }, .late = true },
    { "half-close-from", IN_ALL, "half-close,dir=from",
      .says = { CLOSED, CLOSED }, .says_in = { CLOSED_BEFORE_MAIN },
      .late = true },
    { "silence-yank", IN_ALL, "silence", .then = yank_source,
      .target = TARGET_CUT_OFF, .says = { YANKED, CLOSED } },
    { "silence-cancel", IN_ALL & ~IN(STOPPING), "silence",
      .then = cancel_source, .end = ENDS_CANCELLED, .target = TARGET_CUT_OFF,
      .says.to = CLOSED },
    /* QMP waits for the guest to be stopped, which is given up after a time. */
    { "silence-cancel", IN(STOPPING), "silence", .before = limit_stop,
      .then = cancel_source, .end = ENDS_GIVEN_UP, .target = TARGET_CUT_OFF,
      .says = { "the end and the flush of the guest's writes did not come "
                "within 3 s", CLOSED } },
    { "silence", IN(STOPPING) | IN(COMPLETION) | IN(DEVICE) |
      IN(HANDOVER), "silence", .before = limit_stop,
      .target = TARGET_CUT_OFF,
      .says = { "the confirmation of the device state did not come within 3.",
                CLOSED },
      .says_in = {
          [PHASE_STOPPING].from = "the end and the flush of the guest's writes "
                                  "did not come within 3 s",
          [PHASE_COMPLETION].from = "stream 'nbd-disk0': the destination's "
                                    "confirmation did not come within 3 s",
          [PHASE_HANDOVER].to = NOT_HANDED_OVER
                                "all streams: source closed the connection" } },
    { "silence-timeout",
      IN(CONNECT) | IN(HELLO) | IN(DISKS) | IN(PRECOPY) | IN(CONVERGE),
      "silence", .before = limit_silence, .target = TARGET_CUT_OFF,
      .says = { "no byte from the destination for 1.5 s", CLOSED },
      .says_in[PHASE_HELLO].from =
          "no byte from the destination for 1.5 s|"
          "stream 'main': the destination did not accept it within 1.5 s",
      .late = true },
    { "stop-continue", IN_ALL, .act = stop_target, .then = continue_target,
      .end = ENDS_COMPLETED },
    { "stop-yank", IN_ALL, .act = stop_target, .then = yank_source,
      .says = { YANKED, CLOSED }, .says_in = { CLOSED_BEFORE_MAIN },
      .late = true },
    { "stop-cancel", IN_ALL & ~IN(STOPPING), .act = stop_target,
      .then = cancel_source, .end = ENDS_CANCELLED, .says.to = CANCELLED,
      .late = true },
    { "stop-cancel", IN(STOPPING), .before = limit_stop,
      .act = stop_target, .then = cancel_source, .end = ENDS_GIVEN_UP,
      .says = { "the end and the flush of the guest's writes did not come "
                "within 3 s", "did not come within 3 s|" CANCELLED } },
    { "flip-flags", IN_ALL & ~IN(CONNECT), "flip,byte=1",
      .says = { UNKNOWN_FLAGS, UNKNOWN_FLAGS }, .says_in = {
          [PHASE_HELLO] = { "does not speak the migration multiplexer",
                            "does not speak the migration multiplexer" } } },
    { "flip-stream", IN_ALL & ~IN(CONNECT) & ~IN(HELLO), "flip,byte=7",
      .says = { NO_STREAM, NO_STREAM } },
    { "flip-length", IN_ALL & ~IN(CONNECT), "flip,byte=11",
      .says = { BAD_LENGTH, BAD_LENGTH },
      /* What the last byte of its DATA is as a type */
      .says_in[PHASE_DEVICE] = { "source sent ", "source sent " } },
    { "flip-offset", IN(DISKS) | IN(CONVERGE) | IN(STOPPING), "flip,byte=15",
      .says = { BAD_OFFSET_OF("nbd-disk0' (id 3"),
                BAD_OFFSET_OF("nbd-disk0' (id 3") } },
    { "flip-offset", IN(PRECOPY) | IN(DEVICE), "flip,byte=15",
      .says = { BAD_OFFSET_OF("main' (id 1"), BAD_OFFSET_OF("main' (id 1") } },
    { "flip-back", IN_ALL & ~IN(CONNECT) & ~IN(DEVICE),
      .relay_back = "flip,byte=1", .says = { UNKNOWN_FLAGS, UNKNOWN_FLAGS },
      .says_in = {
          [PHASE_HELLO] = { "got 0x514c5558", "got 0x514c5558" },
          [PHASE_HANDOVER] = { UNKNOWN_FLAGS, NOT_HANDED_OVER
                               "all streams: source ended the connection: "
                               "destination sent FIN_OK on stream 'main'" } } },
    { "cut-back", IN_ALL & ~IN(CONNECT) & ~IN(DEVICE), .relay_back = "cut",
      .says = { CLOSED, CLOSED },
      .says_in = { CLOSED_BEFORE_MAIN } },
    { "quit-target",
      IN(HELLO) | IN(DISKS) | IN(PRECOPY) | IN(CONVERGE) | IN(STOPPING),
      .then = quit_target, .target = TARGET_GONE, .slow = true,
      .says.from = "the destination was shut down", .late = true },
    { "quit-target", IN(COMPLETION) | IN(DEVICE) | IN(HANDOVER),
      .act = quit_target, .target = TARGET_GONE,
      .says.from = "the destination was shut down" },
    { "quit-source", IN_ALL & ~IN(CONNECT), .then = quit_source, .slow = true,
      .end = ENDS_WITHOUT_SOURCE, .late = true, .says.to = CANCELLED },
    { "quit-source", IN(CONNECT), .then = quit_source,
      .end = ENDS_WITHOUT_SOURCE, .late = true,
      .says.to = CLOSED "|" CANCELLED },
    { "job-cancel", IN(DISKS) | IN(PRECOPY) | IN(CONVERGE),
      .act = cancel_job, .says = { JOB_ENDED, JOB_ENDED }, .late = true },
    { "job-kill", IN(DISKS) | IN(PRECOPY) | IN(CONVERGE),
      .act = kill_job, .says = { JOB_ENDED, JOB_ENDED } },
    { "job-pause", IN(DISKS), .act = pause_job, .then = resume_job,
      .end = ENDS_COMPLETED },
    { "job-pause", IN(CONVERGE), .act = pause_job, .then = resume_ending_job,
      .end = ENDS_COMPLETED },
    { "job-pause-behind", IN(PRECOPY), .act = pause_job_and_write,
      .then = resume_job, .end = ENDS_COMPLETED },
    { "job-complete", IN(DISKS), .act = complete_unready_job,
      .end = ENDS_COMPLETED },
    { "job-complete", IN(PRECOPY) | IN(CONVERGE), .act = complete_job,
      .end = ENDS_COMPLETED },
    { "unplug", IN(DISKS) | IN(PRECOPY) | IN(CONVERGE),
      .act = unplug_disk, .end = ENDS_COMPLETED },
    { "guest-reset", IN(DISKS) | IN(PRECOPY), .before = keep_in_precopy,
      .then = reset_guest, .end = ENDS_COMPLETED },
    { "guest-reset", IN(CONVERGE), .then = reset_guest, .slow = true,
      .end = ENDS_COMPLETED },
    { "iothread", IN(DISKS) | IN(PRECOPY), .before = keep_in_precopy,
      .then = move_disk_to_iothread, .end = ENDS_COMPLETED },
    { "iothread", IN(CONVERGE), .then = move_disk_to_iothread, .slow = true,
      .end = ENDS_COMPLETED },
    { "target-full", IN(DISKS) | IN(PRECOPY), .act = write_bad_sector,
      .to_protocol = FAILING_WRITE("28"), .late = true,
      .says = MIRROR_FAILED_BOTH("No space left on device") },
    /* From here on the guest's write waits for that of the destination. */
    { "target-full", IN(CONVERGE), .then = write_bad_sector, .slow = true,
      .to_protocol = FAILING_WRITE("28"), .late = true,
      .says = MIRROR_FAILED_BOTH("No space left on device") },
    { "target-eio", IN(DISKS) | IN(PRECOPY), .act = write_bad_sector,
      .to_protocol = FAILING_WRITE("5"), .late = true,
      .says = MIRROR_FAILED_BOTH("Input/output error") },
    { "target-eio", IN(CONVERGE), .then = write_bad_sector, .slow = true,
      .to_protocol = FAILING_WRITE("5"), .late = true,
      .says = MIRROR_FAILED_BOTH("Input/output error") },
    { "target-flush-eio", IN(PRECOPY), .act = write_bad_sector,
      .to_protocol = BLKDEBUG SECOND_FLUSH IMAGE, .late = true,
      .says = { "stream 'nbd-disk0': cannot flush the destination's disk: "
                "Input/output error",
                "stream 'nbd-disk0': cannot flush the destination's disk: "
                "Input/output error" } },
    { "source-eio", IN(DISKS), .before = write_bad_sector,
      .from_protocol = FAILING_READ,
      .says = MIRROR_FAILED_BOTH("Input/output error") },
    { "source-eio", IN(PRECOPY), .act = write_bad_sector,
      .from_protocol = FAILING_READ, .late = true,
      .says = MIRROR_FAILED_BOTH("Input/output error") },
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

/* Returns: the error-desc of @who, with one of @texts in it; to be freed */
static char *assert_has_one_of(QTestState *who, const char *texts)
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

/* One message, that names phase, stream and cause */
static void assert_says(QTestState *who, const char *phase, bool late,
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

static void assert_source_says(MuxTest *t, const Cell *c)
{
    const Fault *f = c->fault;
    const char *texts = f->says_in[c->phase - phases].from ?: f->says.from;

    assert_says(t->from, c->phase->from_phase, f->late, texts);
}

static void assert_target_says(MuxTest *t, const Cell *c)
{
    const Fault *f = c->fault;
    const char *texts = f->says_in[c->phase - phases].to ?: f->says.to;

    mux_wait_target_status(t, "failed");
    assert_says(t->to, c->phase->to_phase, f->late || c->phase->to_late, texts);
}

/* Somebody asked for it: no error. */
static void assert_says_nothing(QTestState *who)
{
    QDict *info = migrate_query(who);

    g_assert_null(qdict_get_try_str(info, "error-desc"));
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

    if (c->fault->end != ENDS_GIVEN_UP) {
        g_assert_cmpstr(status, ==, end_status[c->fault->end]);
    }
    switch (c->fault->end) {
    case ENDS_FAILED:
        assert_source_says(t, c);
        break;
    case ENDS_CANCELLED:
        assert_says_nothing(t->from);
        break;
    case ENDS_GIVEN_UP:
        g_assert_cmpstr(status, !=, "completed");
        assert_source_says(t, c);
        break;
    default:
        break;
    }
}

static void check_target(MuxTest *t, const Cell *c)
{
    kill(qtest_pid(t->to), SIGCONT);
    if (c->fault->end == ENDS_COMPLETED) {
        mux_wait_target_status(t, "completed");
    } else {
        assert_target_says(t, c);
    }
}

/* From "converge" on everything takes long enough to see the guest stop. */
static void wait_until_stopped(MuxTest *t, MuxRelay *relay)
{
    add_fault(relay, "delay=200", phases[PHASE_CONVERGE].place);
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
    if (c->fault->slow) {
        add_fault(relay, "delay=300,dir=from", "");
    }
    if (!c->fault->relay && !c->fault->relay_back) {
        add_fault(relay, "heal,dir=to", "");
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
    if (c->fault->target == TARGET_CUT_OFF) {
        g_clear_pointer(&relay, mux_relay_free);
    }
    if (t.to) {
        check_target(&t, c);
    }
    g_clear_pointer(&relay, mux_relay_free);
    if (c->fault->end <= ENDS_GIVEN_UP) {
        mux_end_after_failure(&t);
    } else {
        mux_end(&t, c->fault->end == ENDS_COMPLETED);
    }
}

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
    mux_assert_error(t.from, "migration failed in phase 'switchover': Error in "
                     "migration completion: Input/output error");
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

    wait_until_stopped(t, relay);
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
    status = wait_for_status(&t);
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

/* @act: on the job of disk0, which is about to end */
static void run_ending_job(void (*act)(MuxTest *t), const char *end)
{
    MuxTest t = { .bare = true, .inet = true, .keep_target = true };
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
    status = wait_for_status(&t);
    g_assert_cmpstr(status, ==, end);
    mux_wait_target_status(&t, end);
    if (g_str_equal(end, "completed")) {
        mux_relay_free(relay);
        mux_end(&t, true);
        return;
    }
    assert_says(t.from, "switchover", false, JOB_ENDED);
    assert_says(t.to, "precopy", true, JOB_ENDED);
    mux_relay_free(relay);
    mux_end_after_failure(&t);
}

/* The migration does the same. */
static void test_ending_job_cancel(void)
{
    run_ending_job(cancel_job, "completed");
}

static void test_ending_job_kill(void)
{
    run_ending_job(kill_job, "failed");
}

static void test_ending_job_pause(void)
{
    run_ending_job(pause_job, "completed");
}

/* Who lacks them says so, and its peer, too, if they talked by then. */
static void assert_descriptors_missed(MuxTest *t, bool at_source,
                                      unsigned spare)
{
    static const char cause[] = "Too many open files";
    static const char unheard[] =
        "Too many open files|closed the connection before its HELLO|"
        "no byte from the destination for 1.5 s";

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
    limit_silence(&t);
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
        status = wait_for_status(&t);
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
    migration_test_add("/migration/mux/fault/source-out-of-descriptors",
                       test_source_out_of_descriptors);
    migration_test_add("/migration/mux/fault/target-out-of-descriptors",
                       test_target_out_of_descriptors);
    migration_test_add("/migration/mux/fault/completion/silence-job-end",
                       test_silence_job_end);
    migration_test_add("/migration/mux/fault/completion/silence-last-flush",
                       test_silence_last_flush);
    migration_test_add("/migration/mux/fault/completion/job-cancel",
                       test_ending_job_cancel);
    migration_test_add("/migration/mux/fault/completion/job-kill",
                       test_ending_job_kill);
    migration_test_add("/migration/mux/fault/completion/job-pause",
                       test_ending_job_pause);
    migration_test_add("/migration/mux/fault/stopping/source-flush-eio",
                       test_source_flush_eio);
    for (unsigned p = 0; p < PHASE__MAX; p++) {
        for (unsigned f = 0; f < ARRAY_SIZE(faults); f++) {
            if (faults[f].phases & (1u << p)) {
                add_cell(&phases[p], &faults[f]);
            }
        }
    }
}
