/*
 * Relay for tests of the migration multiplexer, as a program
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "qemu/error-report.h"
#include "migration/mux-relay.h"

static char *opt_listen, *opt_connect;
static char **opt_faults;
static gboolean opt_frames;

static GOptionEntry entries[] = {
    { "listen", 'l', 0, G_OPTION_ARG_STRING, &opt_listen,
      "where the source connects to", "unix:PATH|HOST:PORT" },
    { "connect", 'c', 0, G_OPTION_ARG_STRING, &opt_connect,
      "where the destination listens", "unix:PATH|HOST:PORT" },
    { "fault", 'f', 0, G_OPTION_ARG_STRING_ARRAY, &opt_faults,
      "what to do wrong, may be repeated", "FAULT" },
    { "frames", 0, 0, G_OPTION_ARG_NONE, &opt_frames,
      "print each frame that passes", NULL },
    { NULL }
};

static const char description[] =
    "FAULT is KIND[=VALUE][,KEY=VALUE...], described in mux-relay-fault.h:\n"
    "  cut, reset, half-close, silence, delay=MS, throttle=BYTES, heal, flip\n"
    "  dir=to|from|both  in=to|from  at=OFFSET  frame=TYPE[:STREAM]\n"
    "  after=TYPE[:STREAM]  nth=N  byte=N|mid  bit=N\n"
    "One that has no place (at, frame) happens at once.  More faults are read\n"
    "from standard input, one in each line.\n"
    "\n"
    "Prints 'listening ADDRESS', 'connected', 'fired FAULT', and at its end\n"
    "'closed'.\n";

static void print_event(void *opaque, const char *event)
{
    if (opt_frames || !g_str_has_prefix(event, "frame ")) {
        printf("%s\n", event);
        fflush(stdout);
    }
}

static void add_fault(MuxRelay *r, const char *fault)
{
    Error *err = NULL;

    if (!mux_relay_add_fault(r, fault, &err)) {
        error_reportf_err(err, "mux-relay: ");
        exit(EXIT_FAILURE);
    }
}

static void *read_faults(void *opaque)
{
    char line[256];

    while (fgets(line, sizeof(line), stdin)) {
        add_fault(opaque, g_strchomp(line));
    }
    return NULL;
}

static void parse_options(int argc, char **argv)
{
    g_autoptr(GOptionContext) context = g_option_context_new(NULL);
    g_autoptr(GError) err = NULL;

    g_option_context_add_main_entries(context, entries, NULL);
    g_option_context_set_description(context, description);
    if (!g_option_context_parse(context, &argc, &argv, &err)) {
        g_printerr("mux-relay: %s\n", err->message);
        exit(EXIT_FAILURE);
    }
    if (argc > 1 || !opt_listen || !opt_connect) {
        g_printerr("mux-relay: --listen and --connect are needed\n");
        exit(EXIT_FAILURE);
    }
}

int main(int argc, char **argv)
{
    g_autofree char *address = NULL;
    Error *err = NULL;
    MuxRelay *r;

    parse_options(argc, argv);
    r = mux_relay_new(opt_listen, opt_connect, print_event, NULL, &err);
    if (!r) {
        error_reportf_err(err, "mux-relay: ");
        return EXIT_FAILURE;
    }
    for (char **fault = opt_faults; fault && *fault; fault++) {
        add_fault(r, *fault);
    }
    address = mux_relay_address(r);
    printf("listening %s\n", address);
    fflush(stdout);

    g_thread_unref(g_thread_new("faults", read_faults, r));
    mux_relay_wait_closed(r);
    return EXIT_SUCCESS;
}
