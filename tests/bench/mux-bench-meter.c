/*
 * Benchmark of streams: what a run costs
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include <linux/perf_event.h>
#include <math.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include "mux-bench.h"
#include "qemu/cutils.h"
#include "qemu/timer.h"

#define HISTOGRAM_STEPS 8               /* per power of two */
#define HISTOGRAM_SIZE (48 * HISTOGRAM_STEPS)

/* Count the system calls of this process, its later threads included. */
void bench_meter_open(Bench *b)
{
    struct perf_event_attr attr = {
        .type = PERF_TYPE_TRACEPOINT,
        .size = sizeof(attr),
        .config = b->opt.tracepoint,
        .inherit = 1,
    };

    b->counter = b->opt.tracepoint ?
        syscall(SYS_perf_event_open, &attr, 0, -1, -1, 0) : -1;
}

static int64_t read_syscalls(Bench *b)
{
    int64_t count;

    if (b->counter < 0 ||
        read(b->counter, &count, sizeof(count)) != sizeof(count)) {
        return -1;
    }
    return count;
}

static int64_t status_value(const char *status, const char *name)
{
    const char *line = strstr(status, name);
    int64_t value;

    if (!line || qemu_strtoi64(line + strlen(name), &line, 10, &value) < 0) {
        return -1;
    }
    return value;
}

static void read_usage(Bench *b, BenchUsage *used)
{
    g_autofree char *status = NULL;
    struct rusage ru;

    getrusage(RUSAGE_SELF, &ru);
    used->cpu = ru.ru_utime.tv_sec + ru.ru_utime.tv_usec / 1e6 +
                ru.ru_stime.tv_sec + ru.ru_stime.tv_usec / 1e6;
    used->switches = ru.ru_nvcsw;
    used->syscalls = read_syscalls(b);
    if (g_file_get_contents("/proc/self/status", &status, NULL, NULL)) {
        used->rss = status_value(status, "VmRSS:") * 1024;
        used->threads = status_value(status, "Threads:");
    }
}

void bench_begin(Bench *b)
{
    bench_barrier(b);
    read_usage(b, &b->used);
    b->began = get_clock();
}

void bench_end(Bench *b)
{
    BenchUsage now;

    b->seconds = (get_clock() - b->began) / 1e9;
    bench_barrier(b);
    read_usage(b, &now);
    b->used.cpu = now.cpu - b->used.cpu;
    b->used.switches = now.switches - b->used.switches;
    b->used.syscalls = now.syscalls < 0 ? -1 :
                       now.syscalls - b->used.syscalls;
    b->used.rss = now.rss - b->used.rss;
    b->used.threads = now.threads;
}

/* --- latencies --- */

void bench_latency(Bench *b, int64_t ns)
{
    if (!b->latencies) {
        b->latencies = g_array_sized_new(false, false, sizeof(ns), 1 << 17);
    }
    g_array_append_val(b->latencies, ns);
}

static int compare_int64(const void *a, const void *b)
{
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;

    return x < y ? -1 : x > y;
}

static double percentile(GArray *ns, double part)
{
    return g_array_index(ns, int64_t, (unsigned)(part * (ns->len - 1))) / 1e3;
}

/* Pairs of an upper bound in us and how many latencies are in that step */
static void print_histogram(GArray *ns)
{
    int64_t counts[HISTOGRAM_SIZE] = { 0 };
    const char *comma = "";

    for (int i = 0; i < ns->len; i++) {
        double step = log2(MAX(g_array_index(ns, int64_t, i), 1)) *
                      HISTOGRAM_STEPS;

        counts[MIN((int)step, HISTOGRAM_SIZE - 1)]++;
    }
    for (int i = 0; i < HISTOGRAM_SIZE; i++) {
        if (counts[i]) {
            printf("%s[%.3f, %" PRId64 "]", comma,
                   exp2((i + 1.0) / HISTOGRAM_STEPS) / 1e3, counts[i]);
            comma = ", ";
        }
    }
}

static void print_latencies(GArray *ns)
{
    g_array_sort(ns, compare_int64);
    printf(", \"latency\": {\"count\": %u, \"p50_us\": %.3f, "
           "\"p99_us\": %.3f, \"max_us\": %.3f, \"histogram\": [",
           ns->len, percentile(ns, 0.5), percentile(ns, 0.99),
           percentile(ns, 1));
    print_histogram(ns);
    printf("]}");
}

static void print_usage(const char *side, const BenchUsage *used)
{
    printf(", \"%s\": {\"cpu\": %.6f, \"switches\": %" PRId64
           ", \"rss\": %" PRId64 ", \"threads\": %" PRId64,
           side, used->cpu, used->switches, used->rss, used->threads);
    if (used->syscalls >= 0) {
        printf(", \"syscalls\": %" PRId64, used->syscalls);
    }
    printf("}");
}

void bench_report(Bench *b, const BenchUsage *destination)
{
    printf("{\"case\": \"%s\", \"on\": \"%s\", \"streams\": %d, "
           "\"bytes\": %" PRIu64 ", \"seconds\": %.6f",
           b->opt.what, b->opt.on, b->opt.streams, b->bytes, b->seconds);
    print_usage("source", &b->used);
    print_usage("destination", destination);
    if (b->latencies) {
        print_latencies(b->latencies);
    }
    printf("}\n");
}
