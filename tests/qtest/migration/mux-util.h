/*
 * QTest helpers for migration over a multiplexed connection
 *
 * A MuxTest is a source and a destination with two disks each, disk0 (raw) and
 * disk1 (qcow2), and the content that these disks must have at the end.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef MUX_UTIL_H
#define MUX_UTIL_H

#include "libqtest.h"
#include "migration/framework.h"
#include "migration/mux-resources.h"
#include "migration/mux-relay.h"
#include "qobject/qdict.h"

/* Seconds until a wait is considered a hang; not a limit under test */
#define MUX_WAIT_TIMEOUT_S 120

/* A limit of silence: longer than a live side is silent, if the host is busy */
#define MUX_SILENCE_MS 3000

#define MUX_NUM_DISKS 2
#define MUX_DISK_SIZE_MB 16

/* For mux_listen() and mux_migrate() */
#define MUX_DISK(members) ", { 'channel-type': 'nbd', " members " }"
#define MUX_DISK0 MUX_DISK("'disk': 'disk0'")
#define MUX_DISK1 MUX_DISK("'disk': 'disk1'")
#define MUX_BOTH_DISKS MUX_DISK0 MUX_DISK1

typedef struct MuxTest {
    /* Set by the test before mux_start(); each has a default */
    bool inet;                  /* not a unix socket */
    bool bare;                  /* quick: no program in the guest, little RAM */
    const char *from_protocol;  /* below the source's disk0, without path */
    const char *to_node;        /* destination's node name prefix: "disk" */
    const char *to_protocol;    /* below the destination's, without path */
    const char *to_protocol1;   /* the same below disk1 */
    unsigned to_size_mb;        /* destination's disk0: MUX_DISK_SIZE_MB */
    bool keep_target;           /* the destination survives its failure */
    bool target_waits;          /* it still waits for a source */

    /* Filled in */
    QTestState *from;
    QTestState *to;
    char *via_port;             /* the relay's, if there is one */
    MuxResources before;        /* the source's, when it has started */
} MuxTest;

/* Call once, before anything else. */
void mux_init(MigrationTestEnv *env);

/*
 * Create the images, start both sides, wait for the source's guest to run, and
 * write 1 MiB to either disk.  QMP of the source has out-of-band execution if
 * it is bare.  Returns false, with the test marked as skipped,
 * if that is not possible here.
 */
bool mux_start(MuxTest *t);

/*
 * Quit both sides, or the remaining one.  @moved: assert that the guest runs at
 * the destination only, with consistent memory, that the images there have the
 * content that was written, and that the source holds no more resources.
 */
void mux_end(MuxTest *t, bool moved);

/* Returns: the path of an image of @side, "src" or "dst"; to be freed */
char *mux_image_path(const char *side, unsigned disk);

/* Write to a raw image directly: no QEMU may have read or written there. */
void mux_write_image(const char *side, unsigned disk, uint8_t pattern,
                     size_t offset, size_t len);

/* Replace the destination by a new one, with images of full size. */
void mux_replace_target(MuxTest *t);

/* For from_protocol and to_protocol: mux_disk_io() can hang requests there */
#define MUX_BLKDEBUG "driver=blkdebug,image.driver=file," \
                     "image.cache.no-flush=on,image.filename="

/*
 * Run a qemu-io command, which must print nothing, on a disk of @who as its
 * device would: another user of the node would drain it.  "wait_break" holds
 * the BQL and runs the main AioContext alone, so the request that it waits for
 * must come without another thread's or the monitor's help.
 */
void mux_disk_io(QTestState *who, unsigned disk, const char *command);

/* Write to a disk at the source, in bytes, as its device would. */
void mux_write(MuxTest *t, unsigned disk, uint8_t pattern, size_t offset,
               size_t len);

/* Execute migrate-incoming for RAM and @disks, which may be "". */
void mux_listen(MuxTest *t, const char *disks);

#ifndef _WIN32
/*
 * Have the source connect to a relay, which connects to the destination, in
 * the next mux_migrate().  mux_listen() must have been called.
 */
MuxRelay *mux_start_relay(MuxTest *t);
#endif

/* Execute migrate for RAM and @disks, which may be "". */
void mux_migrate(MuxTest *t, const char *disks);

/*
 * Wait until the source's migration is in this status or phase.  It must not
 * fail, unless that is waited for; no export can be seen at the destination.
 */
void mux_wait_status(MuxTest *t, const char *status);
void mux_wait_phase(MuxTest *t, const char *phase);

/* Wait until the destination's incoming migration is in this status. */
void mux_wait_target_status(MuxTest *t, const char *status);

/* Let the migration converge, and wait until both sides have completed. */
void mux_complete(MuxTest *t);

/* Is the guest running? */
bool mux_is_running(QTestState *who);
void mux_wait_running(QTestState *who);

/* Wait until the migration's error has been reported with all these texts. */
#define mux_assert_error(who, ...) \
    mux_assert_error_has(who, (const char *const[]) { __VA_ARGS__, NULL })
void mux_assert_error_has(QTestState *who, const char *const *texts);

/*
 * Returns: what query-migrate of @who says about stream @name; to be freed
 * with qobject_unref()
 */
QDict *mux_query_stream(QTestState *who, const char *name);
/* Wait until the migration has streams: @who knows of the connection. */
void mux_wait_streams(QTestState *who);

/* Wait until the stream is in this state, or that many bytes were sent. */
void mux_wait_stream(QTestState *who, const char *name, const char *state);
void mux_wait_sent(QTestState *who, const char *name, uint64_t bytes);

void mux_assert_stream(QTestState *who, const char *name, const char *state,
                       uint64_t min_sent, uint64_t min_received);

/* Returns: the number of streams in query-migrate of @who */
size_t mux_num_streams(QTestState *who);

/* Wait until the jobs of both disks exist. */
void mux_wait_jobs(MuxTest *t);

/* Assert that the jobs of both disks exist and are in this state. */
void mux_assert_jobs(MuxTest *t, const char *status);

/* The jobs of both disks exist; wait until they are ready. */
void mux_wait_jobs_ready(MuxTest *t);

/* Assert that the migration has left no job or block node. */
void mux_assert_no_jobs(MuxTest *t);

/* Wait until the source holds no more resources than when it was started. */
void mux_assert_nothing_left(MuxTest *t);

/*
 * Call this after a failed migration.  Assert that the guest continues at the
 * source only, with its disks and without any other resources, and that the
 * next migration, to another destination, succeeds.  Ends the test.
 */
void mux_end_after_failure(MuxTest *t);

#endif
