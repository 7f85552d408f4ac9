/*
 * Migration multiplexer: commands as its transport
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include <sys/resource.h>
#include "qapi/error.h"
#include "qemu/module.h"
#include "qemu/sockets.h"
#include "qemu/units.h"
#include "io/channel-command.h"
#include "mux-session-helpers.h"

static char *workdir;

/* --- commands --- */

static QIOChannel *command_new(const char *from, const char *to)
{
    g_autofree char *script = g_strdup_printf("cat %s & exec cat > %s",
                                              from, to);
    const char *argv[] = { "/bin/sh", "-c", script, NULL };

    return QIO_CHANNEL(qio_channel_command_new_spawn(argv, O_RDWR,
                                                     &error_abort));
}

static void test_command(void)
{
    g_autofree char *up = g_strdup_printf("%s/up", workdir);
    g_autofree char *down = g_strdup_printf("%s/down", workdir);
    QIOChannel *src, *dst;
    Pair *p;

    g_assert(mkfifo(up, 0600) == 0 && mkfifo(down, 0600) == 0);
    src = command_new(down, up);
    dst = command_new(up, down);
    p = pair_new_transports(src, dst);
    object_unref(OBJECT(src));
    object_unref(OBJECT(dst));
    run_blocking(p, 3, 4 * MiB, 100 * KiB);
    pair_free(p);
    unlink(up);
    unlink(down);
}

static int64_t cpu_time_us(void)
{
    struct rusage u;

    g_assert(getrusage(RUSAGE_SELF, &u) == 0);
    return (u.ru_utime.tv_sec + u.ru_stime.tv_sec) * (int64_t)1000000 +
           u.ru_utime.tv_usec + u.ru_stime.tv_usec;
}

/* It takes our HELLO, closes its input, and says nothing: nothing to do. */
static void test_command_input_closed(void)
{
    const char *argv[] = {
        "/bin/sh", "-c", "head -c 40 >/dev/null; exec <&-; exec sleep 3", NULL
    };
    QIOChannelCommand *cioc;
    MuxSession *session;
    int64_t before;

    cioc = qio_channel_command_new_spawn(argv, O_RDWR, &error_abort);
    session = mux_session_new(QIO_CHANNEL(cioc), MUX_ROLE_SOURCE, NULL, NULL);
    object_unref(OBJECT(cioc));
    g_usleep(500 * 1000);
    before = cpu_time_us();
    g_usleep(1000 * 1000);
    g_assert_cmpint(cpu_time_us() - before, <, 20 * 1000);

    mux_session_yank(session);
    mux_session_close(session, NULL, 0);
    mux_session_unref(session);
}

/* What comes back is our own HELLO. */
static void test_command_echo(void)
{
    const char *argv[] = { "/bin/cat", NULL };
    QIOChannelCommand *cioc;
    MuxSession *session;
    QIOChannelMux *ioc;
    Error *err = NULL;
    char c;

    cioc = qio_channel_command_new_spawn(argv, O_RDWR, &error_abort);
    session = mux_session_new(QIO_CHANNEL(cioc), MUX_ROLE_SOURCE, NULL, NULL);
    object_unref(OBJECT(cioc));
    ioc = mux_session_open(session, "main", NULL);
    if (ioc) {
        g_assert_cmpint(qio_channel_read(QIO_CHANNEL(ioc), &c, 1, &err), ==,
                        -1);
        g_assert(strstr(error_get_pretty(err), "both sides claim"));
        error_free(err);
        object_unref(OBJECT(ioc));
    }
    mux_session_close_wait(session, NULL, CLOSE_MS);
    mux_session_unref(session);
}

int main(int argc, char **argv)
{
    int ret;

    /* As in QEMU proper */
    signal(SIGPIPE, SIG_IGN);
    module_call_init(MODULE_INIT_QOM);
    qemu_init_main_loop(&error_abort);
    socket_init();
    g_test_init(&argc, &argv, NULL);
    workdir = g_dir_make_tmp("test-io-channel-mux-XXXXXX", NULL);
    g_assert_nonnull(workdir);
    g_test_add_func("/io/channel/mux/command", test_command);
    g_test_add_func("/io/channel/mux/command/echo", test_command_echo);
    g_test_add_func("/io/channel/mux/command/input-closed",
                    test_command_input_closed);
    ret = g_test_run();
    rmdir(workdir);
    g_free(workdir);
    return ret;
}
