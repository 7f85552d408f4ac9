/*
 * QTest testcases for multiplexed migration: time limits
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include <poll.h>
#include "libqtest.h"
#include "migration/framework.h"
#include "migration/migration-qmp.h"
#include "migration/migration-util.h"
#include "migration/mux-actions.h"
#include "migration/mux-assert.h"
#include "migration/mux-relay.h"
#include "migration/mux-util.h"
#include "migration/mux/engine.h"
#include "migration/mux/frame.h"
#include "qapi/error.h"
#include "qemu/bswap.h"
#include "qemu/sockets.h"
#include "qemu/units.h"
#include "qobject/qjson.h"

static char *tmpfs;

static bool start(MuxTest *t)
{
    t->keep_target = true;
    return mux_start(t);
}

/* --- no answer --- */

static void set_parameter_hmp(MuxTest *t, const char *name_and_value)
{
    g_autofree char *out = qtest_hmp(t->from, "migrate_set_parameter %s",
                                     name_and_value);

    g_assert_cmpstr(out, ==, "");
}

static void assert_parameters_hmp(MuxTest *t, const char *line)
{
    g_autofree char *out = qtest_hmp(t->from, "info migrate_parameters");

    g_assert(strstr(out, line));
}

static void test_parameters(void)
{
    MuxTest t = { .bare = true };

    if (!start(&t)) {
        return;
    }
    assert_parameters_hmp(&t, "channel-mux-timeout: 300000 ms");
    assert_parameters_hmp(&t, "channel-mux-stop-timeout: 10000 ms");
    set_parameter_hmp(&t, "channel-mux-timeout 1500");
    set_parameter_hmp(&t, "channel-mux-stop-timeout 0");
    assert_parameters_hmp(&t, "channel-mux-timeout: 1500 ms");
    assert_parameters_hmp(&t, "channel-mux-stop-timeout: 0 ms");
    mux_end(&t, false);
}

static void test_no_hello_from_destination(void)
{
    g_autofree char *path = g_strdup_printf("%s/migsocket", tmpfs);
    MuxTest t = { .bare = true };
    int fd;

    if (!start(&t)) {
        return;
    }
    fd = unix_listen(path, &error_abort);
    migrate_set_parameter_int(t.from, "channel-mux-timeout", 300);
    mux_migrate(&t, MUX_BOTH_DISKS);
    mux_wait_status(&t, "failed");
    mux_assert_error(t.from, "migration failed in phase 'connect': all "
                     "streams: no data received from the destination "
                     "for 0.3 s");
    close(fd);
    migrate_set_parameter_int(t.from, "channel-mux-timeout", 300000);
    mux_end_after_failure(&t);
}

static void read_until_end(int fd)
{
    char buf[256];
    ssize_t len;

    do {
        len = recv(fd, buf, sizeof(buf), 0);
    } while (len > 0);
}

static void test_no_hello_from_source(void)
{
    g_autofree char *path = g_strdup_printf("%s/migsocket", tmpfs);
    MuxTest t = { .bare = true };
    int fd;

    if (!start(&t)) {
        return;
    }
    migrate_set_parameter_int(t.to, "channel-mux-timeout", 300);
    mux_listen(&t, MUX_BOTH_DISKS);
    fd = unix_connect(path, &error_abort);
    /* The destination closes that connection, and waits for another one. */
    read_until_end(fd);
    close(fd);
    mux_wait_target_status(&t, "setup");
    mux_assert_no_error(t.to);
    migrate_set_parameter_int(t.to, "channel-mux-timeout", 300000);
    migrate_ensure_converge(t.from);
    mux_migrate(&t, MUX_BOTH_DISKS);
    mux_complete(&t);
    mux_end(&t, true);
}

/* A listener at @path with a full backlog; *@guest is the connection in it */
static int listen_full(const char *path, int *guest)
{
    struct sockaddr_un addr = { .sun_family = AF_UNIX };
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);

    g_assert_cmpint(strlen(path), <, sizeof(addr.sun_path));
    strcpy(addr.sun_path, path);
    g_assert(!bind(fd, (struct sockaddr *)&addr, sizeof(addr)));
    g_assert(!listen(fd, 0));
    *guest = unix_connect(path, &error_abort);
    return fd;
}

static void migrate_to(MuxTest *t, const char *path)
{
    g_autofree char *command = g_strdup_printf(
        "{ 'execute': 'migrate', 'arguments': { 'channels': ["
        "  { 'channel-type': 'main', 'addr': { 'transport': 'socket',"
        "    'type': 'unix', 'path': '%s' } }" MUX_BOTH_DISKS "] } }", path);

    qtest_qmp_assert_success(t->from, "%p",
                             qobject_from_json(command, &error_abort));
}

static void test_cancel_connect(void)
{
    g_autofree char *path = g_strdup_printf("%s/full", tmpfs);
    MuxTest t = {};
    int fd, guest;

    if (!start(&t)) {
        return;
    }
    fd = listen_full(path, &guest);
    migrate_set_capability(t.from, "dirty-bitmaps", true);
    migrate_to(&t, path);
    usleep(100 * 1000);
    mux_wait_status(&t, "setup");
    mux_wait_phase(&t, "connect");
    qobject_unref(qtest_qmp_assert_failure_ref(
                      t.from, "{ 'execute': 'migrate-start-postcopy' }"));
    migrate_cancel(t.from);
    mux_wait_status(&t, "cancelled");
    migrate_set_capability(t.from, "dirty-bitmaps", false);

    migrate_ensure_non_converge(t.from);
    mux_listen(&t, MUX_BOTH_DISKS);
    mux_migrate(&t, MUX_BOTH_DISKS);
    mux_wait_phase(&t, "precopy");
    mux_wait_status(&t, "active");
    /* The first attempt has no effect on the second one. */
    close(guest);
    close(fd);
    unlink(path);
    usleep(100 * 1000);
    mux_complete(&t);
    mux_end(&t, true);
}

static void test_silence(void)
{
    MuxTest t = { .bare = true, .inet = true };
    QTestState *stopped;
    MuxRelay *relay;

    if (!start(&t)) {
        return;
    }
    migrate_set_parameter_int(t.from, "channel-mux-timeout", MUX_SILENCE_MS);
    migrate_set_parameter_int(t.to, "channel-mux-timeout", MUX_SILENCE_MS);
    migrate_set_capability(t.from, "pause-before-switchover", true);
    migrate_ensure_converge(t.from);
    mux_listen(&t, MUX_BOTH_DISKS);
    relay = mux_start_relay(&t);
    mux_migrate(&t, MUX_BOTH_DISKS);
    mux_wait_status(&t, "pre-switchover");
    /* Neither side has anything to send, but both reply to PING. */
    mux_relay_add_fault(relay, "delay=0,in=from,frame=PONG,nth=3",
                        &error_abort);
    g_assert(mux_relay_wait_fired(relay, 1, MUX_WAIT_TIMEOUT_S * 1000));
    mux_wait_status(&t, "pre-switchover");

    stopped = g_steal_pointer(&t.to);
    kill(qtest_pid(stopped), SIGSTOP);
    mux_wait_status(&t, "failed");
    mux_assert_error(t.from, "migration failed in phase 'switchover': all "
                     "streams: no data received from the destination "
                     "for 3 s");
    kill(qtest_pid(stopped), SIGCONT);
    t.to = stopped;
    mux_relay_free(relay);
    migrate_set_parameter_int(t.from, "channel-mux-timeout", 300000);
    migrate_set_capability(t.from, "pause-before-switchover", false);
    mux_end_after_failure(&t);
}

static void test_silence_of_source(void)
{
    MuxTest t = {};

    if (!start(&t)) {
        return;
    }
    migrate_set_parameter_int(t.to, "channel-mux-timeout", MUX_SILENCE_MS);
    migrate_ensure_non_converge(t.from);
    mux_listen(&t, MUX_BOTH_DISKS);
    mux_migrate(&t, MUX_BOTH_DISKS);
    mux_wait_phase(&t, "precopy");
    mux_wait_status(&t, "active");
    kill(qtest_pid(t.from), SIGSTOP);
    mux_wait_target_status(&t, "failed");
    mux_assert_error(t.to, "migration failed in phase 'precopy': all streams: "
                     "no data received from the source for 3 s");
    kill(qtest_pid(t.from), SIGCONT);
    mux_wait_status(&t, "failed");
    mux_assert_error(t.from, "all streams: destination ended the connection: "
                     "no data received from the source for 3 s");
    mux_end_after_failure(&t);
}

/* --- a destination that replies to PING, but does nothing else --- */

#define MOCK_PING_MS 200

typedef struct Mock {
    int fd;
    bool accepts;               /* streams */
    bool garbage;               /* on the disks' streams, instead of nothing */
    GByteArray *control;        /* bytes of the next message on `control` */
    unsigned messages;          /* received there */
    uint32_t said;              /* bytes sent there */
} Mock;

/* Ids that the source assigns */
#define MOCK_CONTROL 1
#define MOCK_MAIN 3

#define MOCK_KNOWS \
    "{ \"type\": \"knows\", \"names\": [ \"offer\", \"offer.disks\"," \
    " \"offer.disks.name\", \"offer.disks.size\", \"offer.channels\"," \
    " \"offer.channels.kind\", \"offer.channels.count\", \"accepted\"," \
    " \"accepted.token\", \"rejected\", \"rejected.reasons\"," \
    " \"rejected.reasons.text\", \"loaded\", \"committed\"," \
    " \"running\" ] }"
#define MOCK_ACCEPTED \
    "{ \"type\": \"accepted\"," \
    " \"token\": \"0123456789abcdef0123456789abcdef\" }"

static void mock_send(Mock *mock, MuxFrameType type, uint32_t stream,
                      const void *payload, uint32_t len)
{
    MuxHeader h = {
        .type = type,
        .stream = stream,
        .length = len,
        .arg = stream == MOCK_CONTROL ? mock->said : 0,
    };
    uint8_t header[MUX_HEADER_SIZE];

    mux_header_encode(&h, header);
    send(mock->fd, header, sizeof(header), MSG_NOSIGNAL);
    send(mock->fd, payload, len, MSG_NOSIGNAL);
}

static void mock_hello(Mock *mock)
{
    MuxHello hello = {
        .magic = MUX_MAGIC,
        .version_min = MUX_VERSION,
        .version_max = MUX_VERSION,
        .length = MUX_HELLO_V2_SIZE,
        .max_frame = 64 * KiB,
        .max_streams = 16,
        .role = MUX_ROLE_DESTINATION,
    };
    uint8_t buf[MUX_HELLO_V2_SIZE];

    mux_hello_encode(&hello, buf);
    send(mock->fd, buf, sizeof(buf), MSG_NOSIGNAL);
    g_assert_cmpint(recv(mock->fd, buf, sizeof(buf), MSG_WAITALL), ==,
                    sizeof(buf));
    mux_hello_decode(buf, &hello);
    g_assert_cmpuint(hello.length, ==, sizeof(buf));
}

static void mock_say(Mock *mock, const char *text)
{
    uint8_t message[1024];
    uint32_t len = strlen(text);

    g_assert_cmpuint(len + 4, <=, sizeof(message));
    stl_be_p(message, len);
    memcpy(message + 4, text, len);
    mock_send(mock, MUX_FRAME_DATA, MOCK_CONTROL, message, len + 4);
    mock->said += len + 4;
}

static void mock_accept(Mock *mock, uint32_t stream)
{
    static const char garbage[32] = "this is not an NBD server";
    uint8_t limit[8];

    stq_be_p(limit, MiB);
    mock_send(mock, MUX_FRAME_OPEN_OK, stream, limit, sizeof(limit));
    if (stream == MOCK_CONTROL) {
        mock_say(mock, MOCK_KNOWS);
    } else if (mock->garbage && stream != MOCK_MAIN) {
        mock_send(mock, MUX_FRAME_DATA, stream, garbage, sizeof(garbage));
    }
}

/* A frame may contain several messages, or part of one. */
static void mock_control(Mock *mock, const uint8_t *data, size_t len)
{
    GByteArray *in = mock->control;
    uint32_t size;

    g_byte_array_append(in, data, len);
    while (in->len >= 4 && (size = ldl_be_p(in->data)) <= in->len - 4) {
        g_byte_array_remove_range(in, 0, 4 + size);
        if (++mock->messages == 2) {
            /* After `knows` this was `offer` */
            mock_say(mock, MOCK_ACCEPTED);
        }
    }
}

/* Read and reply to a frame.  Returns: whether there was one */
static bool mock_answer(Mock *mock)
{
    uint8_t header[MUX_HEADER_SIZE];
    g_autofree uint8_t *payload = NULL;
    MuxHeader h;

    if (recv(mock->fd, header, sizeof(header), MSG_WAITALL) !=
        sizeof(header)) {
        return false;
    }
    mux_header_decode(header, &h);
    payload = g_malloc(h.length);
    recv(mock->fd, payload, h.length, MSG_WAITALL);
    if (h.type == MUX_FRAME_OPEN && mock->accepts) {
        mock_accept(mock, h.stream);
    } else if (h.type == MUX_FRAME_DATA && h.stream == MOCK_CONTROL) {
        mock_control(mock, payload, h.length);
    }
    return true;
}

/* Send PINGs, so that the migration does not fail because of silence. */
static void mock_run_until_failed(Mock *mock, MuxTest *t)
{
    g_autofree char *status = migrate_query_status(t->from);
    uint64_t number = 0;

    g_test_timer_start();
    while (!g_str_equal(status, "failed")) {
        struct pollfd pfd = { .fd = mock->fd, .events = POLLIN };
        uint8_t ping[8];

        g_assert(g_test_timer_elapsed() < MUX_WAIT_TIMEOUT_S);
        if (poll(&pfd, 1, MOCK_PING_MS) > 0) {
            if (!mock_answer(mock)) {
                g_usleep(MOCK_PING_MS * 1000);
            }
        } else {
            stq_be_p(ping, ++number);
            mock_send(mock, MUX_FRAME_PING, 0, ping, sizeof(ping));
        }
        g_free(status);
        status = migrate_query_status(t->from);
    }
}

static void run_mock(Mock *mock, const char *error)
{
    g_autofree char *path = g_strdup_printf("%s/migsocket", tmpfs);
    MuxTest t = { .bare = true };
    int listener;

    if (!start(&t)) {
        return;
    }
    listener = unix_listen(path, &error_abort);
    migrate_set_parameter_int(t.from, "channel-mux-timeout", MUX_SILENCE_MS);
    mux_migrate(&t, MUX_BOTH_DISKS);
    mock->fd = accept(listener, NULL, NULL);
    g_assert_cmpint(mock->fd, >=, 0);
    mock->control = g_byte_array_new();
    mock_hello(mock);
    mock_run_until_failed(mock, &t);
    mux_assert_error(t.from, error);
    close(mock->fd);
    close(listener);
    g_byte_array_unref(mock->control);
    migrate_set_parameter_int(t.from, "channel-mux-timeout", 300000);
    mux_end_after_failure(&t);
}

static void test_main_not_accepted(void)
{
    run_mock(&(Mock) {}, "migration failed in phase 'connect': stream 'main': "
             "timed out after 3 s waiting for the destination to accept it");
}

static void test_no_nbd_handshake(void)
{
    run_mock(&(Mock) { .accepts = true },
             "migration failed in phase 'disks': stream 'nbd-disk0': timed "
             "out after 3 s waiting for the NBD handshake");
}

static void test_bad_nbd_handshake(void)
{
    run_mock(&(Mock) { .accepts = true, .garbage = true },
             "migration failed in phase 'disks': stream 'nbd-disk0': NBD "
             "handshake failed: ");
}

/* --- a disk that hangs --- */

static void wait_waiting_for(MuxTest *t, const char *side)
{
    bool found = false;

    g_test_timer_start();
    while (!found) {
        QDict *stream = mux_query_stream(t->from, "nbd-disk0");
        const char *waiting = qdict_get_try_str(stream, "waiting-for");

        found = !g_strcmp0(waiting, side);
        g_assert(found || !waiting);
        if (found) {
            g_autofree char *line = qtest_hmp(t->from, "info migrate");

            g_assert_cmpint(qdict_get_int(stream, "waiting-ms"), >=, 1000);
            g_assert(strstr(line, ", waiting for the disk of the "));
        }
        qobject_unref(stream);
        g_assert(g_test_timer_elapsed() < MUX_WAIT_TIMEOUT_S);
        usleep(found ? 0 : 5000);
    }
}

static void run_waiting(const char *side, const char *event)
{
    bool source = g_str_equal(side, "source");
    g_autofree char *hang = g_strdup_printf("break %s hold", event);
    MuxTest t = {
        .bare = true,
        .from_protocol = source ? MUX_BLKDEBUG : NULL,
        .to_protocol = source ? NULL : MUX_BLKDEBUG,
    };
    QTestState *who;

    if (!start(&t)) {
        return;
    }
    who = source ? t.from : t.to;
    migrate_set_parameter_int(t.from, "channel-mux-stop-timeout", 0);
    migrate_ensure_converge(t.from);
    mux_listen(&t, MUX_BOTH_DISKS);
    mux_disk_io(who, 0, hang);
    mux_migrate(&t, MUX_BOTH_DISKS);
    mux_wait_phase(&t, "disks");
    wait_waiting_for(&t, side);
    mux_disk_io(who, 0, "resume hold");
    mux_complete(&t);
    mux_end(&t, true);
}

static void test_waiting_for_source(void)
{
    run_waiting("source", "read_aio");
}

/*
 * disk0's storage at the source hangs.  Its mirror cannot end until it responds
 * again, so the final status is not reported before.  Nor may the other disk's
 * mirror end: that would block the main loop.
 */
static void wait_despite_hanging_source(MuxTest *t, const char *now,
                                        const char *in_the_end)
{
    mux_wait_stream(t->from, "nbd-disk0", "reset");
    mux_wait_stream(t->from, "nbd-disk1", "reset");
    for (int i = 0; i < 10; i++) {
        g_autofree char *status = migrate_query_status(t->from);

        g_assert_cmpstr(status, ==, now);
        mux_wait_jobs(t);
        g_assert(mux_is_running(t->from));
        usleep(20000);
    }
    mux_disk_io(t->from, 0, "resume hold");
    mux_wait_status(t, in_the_end);
    mux_end_after_failure(t);
}

static void test_source_hangs(void)
{
    MuxTest t = { .bare = true, .from_protocol = MUX_BLKDEBUG };

    if (!start(&t)) {
        return;
    }
    mux_listen(&t, MUX_BOTH_DISKS);
    mux_disk_io(t.from, 0, "break read_aio hold");
    mux_migrate(&t, MUX_BOTH_DISKS);
    /* The nested event loop of wait_break starts no job */
    mux_wait_jobs(&t);
    mux_disk_io(t.from, 0, "wait_break hold");
    migrate_cancel(t.from);
    wait_despite_hanging_source(&t, "cancelling", "cancelled");
}

/* The same, and the mirror of disk1 fails: its request is not answered. */
static void test_source_hangs_and_mirror_fails(void)
{
    MuxTest t = {
        .bare = true,
        .from_protocol = MUX_BLKDEBUG,
        .to_protocol1 = MUX_BLKDEBUG,
    };

    if (!start(&t)) {
        return;
    }
    mux_listen(&t, MUX_BOTH_DISKS);
    mux_disk_io(t.from, 0, "break read_aio hold");
    mux_disk_io(t.to, 1, "break pwritev hold");
    mux_migrate(&t, MUX_BOTH_DISKS);
    mux_wait_jobs(&t);
    mux_disk_io(t.from, 0, "wait_break hold");
    mux_disk_io(t.to, 1, "wait_break hold");
    mux_find_action("kill-destination")(&t);
    wait_despite_hanging_source(&t, "setup", "failed");
}

static void test_waiting_for_destination(void)
{
    run_waiting("destination", "pwritev");
}

/* Zeroes that the mirror writes at first count as progress. */
static void test_zero_progress(void)
{
    MuxTest t = { .bare = true, .to_protocol = MUX_BLKDEBUG };
    QDict *stream;

    if (!start(&t)) {
        return;
    }
    migrate_ensure_converge(t.from);
    mux_listen(&t, MUX_BOTH_DISKS);
    mux_disk_io(t.to, 0, "break pwritev_zero hold");
    mux_migrate(&t, MUX_BOTH_DISKS);
    mux_wait_jobs(&t);
    mux_disk_io(t.to, 0, "wait_break hold");
    stream = mux_query_stream(t.from, "nbd-disk0");
    g_assert_cmpint(qdict_get_int(stream, "total"), ==,
                    MUX_DISK_SIZE_MB * MiB);
    g_assert_cmpint(qdict_get_int(stream, "remaining"), ==,
                    MUX_DISK_SIZE_MB * MiB);
    qobject_unref(stream);
    mux_disk_io(t.to, 0, "resume hold");
    mux_complete(&t);
    mux_end(&t, true);
}

/*
 * The guest runs while the source's disks are flushed for the first time.
 *
 * The migration thread needs the BQL to start the flush, so this cannot use
 * wait_break, which holds it.  Resuming has no effect when nothing is held.
 */
static void test_slow_source_flush(void)
{
    MuxTest t = { .bare = true, .from_protocol = MUX_BLKDEBUG };
    bool completed = false;

    if (!start(&t)) {
        return;
    }
    mux_listen(&t, MUX_BOTH_DISKS);
    migrate_ensure_converge(t.from);
    mux_disk_io(t.from, 0, "break flush_to_os hold");
    mux_migrate(&t, MUX_BOTH_DISKS);
    for (int i = 0; i < 20; i++) {
        mux_wait_phase(&t, "precopy");
        g_assert(mux_is_running(t.from));
        usleep(5000);
    }
    g_test_timer_start();
    while (!completed) {
        g_autofree char *status = NULL;

        mux_disk_io(t.from, 0, "resume hold");
        status = migrate_query_status(t.from);
        completed = g_str_equal(status, "completed");
        g_assert(g_test_timer_elapsed() < MUX_WAIT_TIMEOUT_S);
        usleep(5000);
    }
    mux_wait_target_status(&t, "completed");
    mux_end(&t, true);
}

/* A guest that does not run moves whatever the downtime limit is. */
static void test_paused_guest(void)
{
    MuxTest t = { .bare = true };

    if (!start(&t)) {
        return;
    }
    mux_listen(&t, MUX_BOTH_DISKS);
    migrate_set_parameter_int(t.from, "downtime-limit", 0);
    qtest_qmp_assert_success(t.from, "{ 'execute': 'stop' }");
    mux_migrate(&t, MUX_BOTH_DISKS);
    mux_wait_status(&t, "completed");
    mux_wait_target_status(&t, "completed");
    g_assert(!mux_is_running(t.to));
    qtest_qmp_assert_success(t.to, "{ 'execute': 'cont' }");
    mux_end(&t, true);
}

/* --- a process that ends --- */

static void start_and_stop(MuxTest *t, QTestState *stopped)
{
    migrate_set_parameter_int(t->from, "max-bandwidth", MiB);
    mux_listen(t, MUX_BOTH_DISKS);
    mux_migrate(t, MUX_BOTH_DISKS);
    mux_wait_phase(t, "disks");
    mux_wait_jobs(t);
    kill(qtest_pid(stopped), SIGSTOP);
}

static void test_quit_source(void)
{
    MuxTest t = { .bare = true };

    if (!start(&t)) {
        return;
    }
    start_and_stop(&t, t.to);
    /* The peer, which is stopped, does not keep it from ending. */
    qtest_quit(g_steal_pointer(&t.from));
    kill(qtest_pid(t.to), SIGCONT);
    mux_wait_target_status(&t, "failed");
    /* The cause arrives only if the socket had space for it. */
    mux_assert_error(t.to, "migration failed in phase 'disks': ");
    mux_end(&t, false);
}

static void test_quit_destination(void)
{
    MuxTest t = { .bare = true };

    if (!start(&t)) {
        return;
    }
    start_and_stop(&t, t.from);
    /* The same */
    qtest_quit(g_steal_pointer(&t.to));
    kill(qtest_pid(t.from), SIGCONT);
    mux_wait_status(&t, "failed");
    mux_assert_error(t.from, "migration failed in phase 'disks': ",
                     "the destination was shut down");
    mux_end_after_failure(&t);
}

/* --- a stopped guest waits --- */

/* Migrate; the relay falls silent at the FIN of disk0. */
static void migrate_without_end_of_disk0(MuxTest *t, MuxRelay **relay)
{
    g_autofree char *listen = g_strdup_printf("unix:%s/relay", tmpfs);
    g_autofree char *connect = g_strdup_printf("unix:%s/migsocket", tmpfs);
    g_autofree char *path = g_strdup_printf("%s/relay", tmpfs);

    migrate_ensure_converge(t->from);
    mux_listen(t, MUX_BOTH_DISKS);
    *relay = mux_relay_new(listen, connect, NULL, NULL, &error_abort);
    mux_relay_add_fault(*relay, "silence,frame=FIN:nbd-disk0", &error_abort);
    migrate_to(t, path);
}

static void test_completion(void)
{
    MuxTest t = { .bare = true };
    MuxRelay *relay;

    if (!start(&t)) {
        return;
    }
    migrate_set_parameter_int(t.from, "channel-mux-stop-timeout", 3000);
    migrate_without_end_of_disk0(&t, &relay);
    mux_wait_status(&t, "failed");
    mux_assert_error(t.from, "migration failed in phase 'switchover': stream "
                     "'nbd-disk0': timed out after 3 s waiting for the "
                     "destination to complete the disk");
    mux_relay_add_fault(relay, "heal", &error_abort);
    mux_wait_target_status(&t, "failed");
    mux_assert_error(t.to, "stream 'nbd-disk0': ", "aborted by the source: ",
                     "waiting for the destination to complete the disk");
    mux_relay_free(relay);
    mux_end_after_failure(&t);
}

void migration_test_add_mux_timeout(MigrationTestEnv *env)
{
    tmpfs = env->tmpfs;
    mux_init(env);
    migration_test_add("/migration/mux/timeout-parameters", test_parameters);
    migration_test_add("/migration/mux/timeout-no-hello-from-destination",
                       test_no_hello_from_destination);
    migration_test_add("/migration/mux/timeout-no-hello-from-source",
                       test_no_hello_from_source);
    migration_test_add("/migration/mux/timeout-cancel-connect",
                       test_cancel_connect);
    migration_test_add("/migration/mux/timeout-silence", test_silence);
    migration_test_add("/migration/mux/timeout-silence-of-source",
                       test_silence_of_source);
    migration_test_add("/migration/mux/timeout-main-not-accepted",
                       test_main_not_accepted);
    migration_test_add("/migration/mux/timeout-no-nbd-handshake",
                       test_no_nbd_handshake);
    migration_test_add("/migration/mux/fail-nbd-handshake",
                       test_bad_nbd_handshake);
    migration_test_add("/migration/mux/zero-progress", test_zero_progress);
    migration_test_add("/migration/mux/waiting-for-source",
                       test_waiting_for_source);
    migration_test_add("/migration/mux/source-hangs", test_source_hangs);
    migration_test_add("/migration/mux/source-hangs-mirror-fails",
                       test_source_hangs_and_mirror_fails);
    migration_test_add("/migration/mux/waiting-for-destination",
                       test_waiting_for_destination);
    migration_test_add("/migration/mux/slow-source-flush",
                       test_slow_source_flush);
    migration_test_add("/migration/mux/paused-guest", test_paused_guest);
    migration_test_add("/migration/mux/timeout-quit-source", test_quit_source);
    migration_test_add("/migration/mux/timeout-quit-destination",
                       test_quit_destination);
    migration_test_add("/migration/mux/timeout-completion", test_completion);
}
