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
#include "libqtest.h"
#include "migration/framework.h"
#include "migration/migration-qmp.h"
#include "migration/migration-util.h"
#include "migration/mux-actions.h"
#include "migration/mux-assert.h"

/*
 * Each cell has a source of its own, so that a second migration follows each.
 */

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
                         PLACE_CONVERGE, ",in=from" PLACE_CONVERGE,
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

#define YANKED_BY(peer) \
    "connection with the " peer " failed: the connection was yanked"
#define YANKED YANKED_BY("destination")
#define CANCELLED "the migration was cancelled at the source"
/* The source may have said nothing but that it ends. */
#define CLOSED_BEFORE_MAIN \
    [PHASE_CONNECT].to = "the source ended the connection early|" CLOSED, \
    [PHASE_HELLO].to = "the source ended the connection early|" CLOSED
#define UNKNOWN_FLAGS "with unknown flags 0x01"
#define BAD_OFFSET_OF(stream) "DATA on stream '" stream ") with offset 0x"
#define NO_STREAM "on stream id 2 which was never opened|without a stream id"
#define BAD_LENGTH "with a bad length of |sent a frame of unknown type 0x"
#define MIRROR_FAILED(why) "stream 'nbd-disk0': mirror failed: " why
#define MIRROR_FAILED_BOTH(why) { MIRROR_FAILED(why), MIRROR_FAILED(why) }
#define FLUSH_FAILED(why) \
    "stream 'nbd-disk0': cannot flush the destination's disk: " why
#define FLUSH_FAILED_BOTH(why) { FLUSH_FAILED(why), FLUSH_FAILED(why) }

static const Fault faults[] = {
    { "kill", IN_ALL, .act = kill_target, .target = TARGET_GONE,
      .says.from = CLOSED },
    { "reset", IN_ALL, "reset", .says = { RESET, RESET } },
    { "cut", IN_ALL, "cut", .says = { CLOSED, CLOSED } },
    { "cut-inside", IN_ALL & ~IN(CONNECT), "cut,byte=5",
      .says = { CLOSED, CLOSED } },
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
    { "silence", IN(CONVERGE) | IN(STOPPING) | IN(COMPLETION) | IN(DEVICE) |
      IN(HANDOVER), "silence", .before = limit_stop,
      .target = TARGET_CUT_OFF,
      .says = { "the confirmation of the device state did not come within 3.",
                CLOSED },
      .says_in = {
          [PHASE_CONVERGE].from = "no byte from the destination for 3 s",
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
    { "yank-target",
      IN(DISKS) | IN(PRECOPY) | IN(CONVERGE) | IN(STOPPING) | IN(COMPLETION) |
      IN(DEVICE) | IN(HANDOVER),
      .act = yank_target, .says = { CLOSED, YANKED_BY("source") } },
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
      .says = FLUSH_FAILED_BOTH("Input/output error") },
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

static void judge_source(MuxTest *t, const Cell *c)
{
    g_autofree char *status = wait_for_end(t);

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

static void judge_target(MuxTest *t, const Cell *c)
{
    kill(qtest_pid(t->to), SIGCONT);
    if (c->fault->end == ENDS_COMPLETED) {
        mux_wait_target_status(t, "completed");
    } else {
        assert_target_says(t, c);
    }
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

/* The phase is named exactly: what little RAM there is must not end it. */
static void stay_in_phase(MuxTest *t, const Cell *c)
{
    if (c->phase == &phases[PHASE_PRECOPY] && !c->fault->late &&
        c->fault->end != ENDS_COMPLETED) {
        migrate_set_parameter_int(t->from, "downtime-limit", 1);
    }
}

static void do_harm(MuxTest *t, MuxRelay *relay, const Cell *c)
{
    const Fault *f = c->fault;

    if (c->phase->stopped) {
        migrate_until_stopped(t, relay);
        place_fault(relay, c);
        g_assert(mux_relay_wait_fired(relay, 2, FIRE_TIMEOUT_MS));
    } else {
        place_fault(relay, c);
        stay_in_phase(t, c);
        mux_migrate(t, MUX_BOTH_DISKS);
        g_assert(mux_relay_wait_fired(relay, 1, FIRE_TIMEOUT_MS));
    }
    if (c->phase == &phases[PHASE_CONNECT] && (f->act || f->then)) {
        /* The source has heard of the connection, too. */
        mux_wait_streams(t->from);
    }
    if (f->act) {
        f->act(t);
    }
    if (f->slow) {
        add_fault(relay, "delay=300,dir=from", "");
    }
    if (!f->relay && !f->relay_back) {
        add_fault(relay, "heal,dir=to", "");
    }
    if (f->then) {
        f->then(t);
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
        judge_source(&t, c);
    }
    if (c->fault->target == TARGET_CUT_OFF) {
        g_clear_pointer(&relay, mux_relay_free);
    }
    if (t.to) {
        judge_target(&t, c);
    }
    g_clear_pointer(&relay, mux_relay_free);
    if (c->fault->end <= ENDS_GIVEN_UP) {
        mux_end_after_failure(&t);
    } else {
        mux_end(&t, c->fault->end == ENDS_COMPLETED);
    }
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
    for (unsigned p = 0; p < PHASE__MAX; p++) {
        for (unsigned f = 0; f < ARRAY_SIZE(faults); f++) {
            if (faults[f].phases & (1u << p)) {
                add_cell(&phases[p], &faults[f]);
            }
        }
    }
}
