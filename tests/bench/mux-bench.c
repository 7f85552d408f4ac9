/*
 * Benchmark of streams over one connection, compared with sockets
 *
 * Runs one case on one kind of channel and prints the result as a line of
 * JSON.  Not part of QEMU's "make bench": tests/guest/bench.py of the series'
 * repository runs it for each kind and compares them.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include <sched.h>
#include <sys/prctl.h>
#include "block/block.h"
#include "crypto/init.h"
#include "mux-bench.h"
#include "qapi/error.h"
#include "qemu/error-report.h"
#include "qemu/main-loop.h"
#include "qemu/module.h"
#include "qemu/sockets.h"
#include "system/runstate.h"

#define PATIENCE_S 120          /* only ends a hang */

static const struct {
    const char *name;
    void (*run)(Bench *b);
} cases[] = {
    { "bulk", bench_bulk },
    { "request", bench_request },
    { "coroutine", bench_coroutine },
    { "nbd", bench_nbd },
    { "idle", bench_idle },
};

/* Wanted by the signal handler that comes with the block layer */
void qemu_system_killed(int signal, pid_t pid)
{
    _exit(128 + signal);
}

void bench_send(Bench *b, const void *data, size_t len)
{
    g_assert(qemu_write_full(b->peer, data, len) == len);
}

void bench_receive(Bench *b, void *data, size_t len)
{
    char *at = data;

    while (len) {
        ssize_t got = RETRY_ON_EINTR(read(b->peer, at, len));

        if (got <= 0) {
            error_report("the other process has ended");
            exit(1);
        }
        at += got;
        len -= got;
    }
}

void bench_barrier(Bench *b)
{
    char byte = 0;

    bench_send(b, &byte, 1);
    bench_receive(b, &byte, 1);
}

static void enter_netns(const char *name)
{
    g_autofree char *path = g_strdup_printf("/run/netns/%s", name);
    int fd = qemu_open_old(path, O_RDONLY);

    if (fd < 0 || setns(fd, CLONE_NEWNET) < 0) {
        error_report("%s: %s", path, strerror(errno));
        exit(1);
    }
    close(fd);
}

static void init(Bench *b)
{
    alarm(PATIENCE_S + (int)b->opt.seconds);
    signal(SIGPIPE, SIG_IGN);
    bench_meter_open(b);
    module_call_init(MODULE_INIT_QOM);
    qemu_init_main_loop(&error_abort);
    bdrv_init();
    socket_init();
    qcrypto_init(&error_abort);
}

static void run(Bench *b)
{
    for (int i = 0; i < G_N_ELEMENTS(cases); i++) {
        if (!strcmp(cases[i].name, b->opt.what)) {
            bench_link_open(b);
            cases[i].run(b);
            bench_link_close(b);
        }
    }
}

static void run_destination(Bench *b)
{
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (b->opt.peer_netns) {
        enter_netns(b->opt.peer_netns);
    }
    init(b);
    run(b);
    bench_send(b, &b->used, sizeof(b->used));
    /* The source still needs the other end of the connection */
    bench_barrier(b);
    exit(0);
}

/* Only the destination's end is expected, and not before it has reported. */
static volatile sig_atomic_t reported;

static void child_ended(int signal)
{
    static const char text[] = "mux-bench: the destination has failed\n";

    if (!reported) {
        _exit(write(STDERR_FILENO, text, sizeof(text) - 1) > 0 ? 1 : 2);
    }
}

static void run_source(Bench *b, pid_t child)
{
    BenchUsage destination;
    int status;

    init(b);
    run(b);
    bench_receive(b, &destination, sizeof(destination));
    reported = 1;
    bench_barrier(b);
    g_assert(RETRY_ON_EINTR(waitpid(child, &status, 0)) == child);
    if (status) {
        error_report("the destination failed: %d", status);
        exit(1);
    }
    bench_report(b, &destination);
}

static void check_options(const BenchOptions *opt)
{
    const char *fault = NULL;
    bool found = false;

    for (int i = 0; i < G_N_ELEMENTS(cases); i++) {
        found |= !g_strcmp0(cases[i].name, opt->what);
    }
    if (!found) {
        fault = "--case: bulk, request, coroutine, nbd or idle";
    } else if (!g_str_equal(opt->on, "socket") &&
               !g_str_equal(opt->on, "mux") &&
               !g_str_equal(opt->on, "shared")) {
        fault = "--on: socket, mux or shared";
    } else if (g_str_equal(opt->on, "shared") &&
               !g_str_equal(opt->what, "request")) {
        fault = "--on shared: only for --case request";
    } else if (opt->streams < 1 || opt->streams > 256 || opt->bulk < 0 ||
               opt->bulk > 255 || opt->size < 1 || opt->memory < 0 ||
               opt->window < 0 ||
               opt->request < 1 || opt->reply < 1 || opt->depth < 1 ||
               opt->seconds <= 0 || opt->rate < 0) {
        fault = "a number is out of range";
    } else if (opt->peer_netns && !opt->tcp) {
        fault = "--peer-netns needs --tcp";
    }
    if (fault) {
        error_report("%s", fault);
        exit(1);
    }
}

static void parse_options(BenchOptions *opt, int *argc, char ***argv)
{
#define OPTION(name, type, member, text, argument)                      \
    { name, 0, 0, G_OPTION_ARG_ ## type, &opt->member, text, argument }
    const GOptionEntry entries[] = {
        OPTION("case", STRING, what,
               "bulk, request, coroutine, nbd, idle", "CASE"),
        OPTION("on", STRING, on,
               "socket, mux, shared (requests and bulk in one socket)", "KIND"),
        OPTION("tcp", NONE, tcp, "TCP instead of a unix socket", NULL),
        OPTION("tls", NONE, tls, "TLS", NULL),
        OPTION("host", STRING, host, "the source's address", "ADDRESS"),
        OPTION("peer-netns", STRING, peer_netns,
               "network namespace of the destination", "NAME"),
        OPTION("streams", INT, streams, "streams, or sockets", "N"),
        OPTION("bulk", INT, bulk, "bulk streams beside the requests", "N"),
        OPTION("seconds", DOUBLE, seconds, "how long to send", "S"),
        OPTION("size", INT, size, "bytes of a bulk write", "N"),
        OPTION("memory", INT, memory, "MiB that each writer repeats", "N"),
        OPTION("window", INT, window, "MiB that a stream may hold", "N"),
        OPTION("request", INT, request, "bytes of a request", "N"),
        OPTION("reply", INT, reply, "bytes of a reply", "N"),
        OPTION("rate", DOUBLE, rate, "MB/s of all bulk streams", "N"),
        OPTION("target", STRING, target, "NBD: null, or a file", "NAME"),
        OPTION("pattern", STRING, pattern, "NBD: sequential, random", "WHICH"),
        OPTION("read", NONE, read, "NBD: read, do not write", NULL),
        OPTION("depth", INT, depth, "NBD: requests at a time", "N"),
        OPTION("tracepoint", INT, tracepoint,
               "id of raw_syscalls/sys_enter, to count system calls", "ID"),
        { NULL }
    };
#undef OPTION
    g_autoptr(GOptionContext) context = g_option_context_new(NULL);
    g_autoptr(GError) err = NULL;

    g_option_context_add_main_entries(context, entries, NULL);
    if (!g_option_context_parse(context, argc, argv, &err)) {
        error_report("%s", err->message);
        exit(1);
    }
    check_options(opt);
}

int main(int argc, char **argv)
{
    Bench b = {
        .opt = {
            .on = g_strdup("mux"),
            .host = g_strdup("127.0.0.1"),
            .streams = 1,
            .seconds = 1,
            .size = 256 * 1024,
            .request = 64,
            .reply = 4096,
            .target = g_strdup("null"),
            .pattern = g_strdup("sequential"),
            .depth = 1,
        },
    };
    struct sigaction act = { .sa_handler = child_ended };
    int fds[2];
    pid_t child;

    error_init(argv[0]);
    parse_options(&b.opt, &argc, &argv);
    bench_link_prepare(&b);
    g_assert(socketpair(AF_UNIX, SOCK_STREAM, 0, fds) == 0);
    /* QEMU's own RCU thread exists already, and must exist in both */
    rcu_enable_atfork();
    sigaction(SIGCHLD, &act, NULL);
    child = fork();
    g_assert(child >= 0);
    rcu_disable_atfork();
    b.is_source = child;
    b.peer = fds[!child];
    close(fds[!!child]);
    if (b.is_source) {
        run_source(&b, child);
    } else {
        run_destination(&b);
    }
    return 0;
}
