/*
 * Migration multiplexer: a failure as a value
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "failure.h"

MuxFailure *mux_failure_from_cause(const char *stream, MuxCause cause,
                                   const char *text)
{
    MuxFailure *f = g_new0(MuxFailure, 1);

    f->stream = g_strdup(stream);
    f->cause = cause;
    f->text = g_strdup(text);
    return f;
}

MuxFailure *mux_failure_new(const char *stream, uint32_t code,
                            const char *fmt, ...)
{
    g_autofree char *text = NULL;
    va_list ap;

    va_start(ap, fmt);
    text = g_strdup_vprintf(fmt, ap);
    va_end(ap);
    return mux_failure_from_cause(stream, (MuxCause) { .code = code }, text);
}

MuxFailure *mux_failure_from_error(const char *stream, const Error *err)
{
    return mux_failure_from_cause(stream,
                                  (MuxCause) { .code = MUX_CODE_ABORTED },
                                  error_get_pretty(err));
}

MuxFailure *mux_failure_timeout(const char *stream, uint32_t timeout_ms,
                                const char *awaited)
{
    return mux_failure_new(stream, MUX_CODE_TIMEOUT,
                           "timed out after %g s waiting for %s",
                           timeout_ms / 1000.0, awaited);
}

MuxFailure *mux_failure_copy(const MuxFailure *f)
{
    return mux_failure_from_cause(f->stream, f->cause, f->text);
}

void mux_failure_free(MuxFailure *f)
{
    if (f) {
        g_free(f->stream);
        g_free(f->text);
        g_free(f);
    }
}

void mux_failure_propagate(MuxFailure **failp, MuxFailure *f)
{
    if (failp) {
        *failp = f;
    } else {
        mux_failure_free(f);
    }
}

char *mux_failure_text(const MuxFailure *f)
{
    return f->stream ? g_strdup_printf("stream '%s': %s", f->stream, f->text) :
                       g_strdup_printf("all streams: %s", f->text);
}

char *mux_failure_text_within(const MuxFailure *f, const char *stream)
{
    return !f->stream || g_strcmp0(f->stream, stream) == 0 ?
           g_strdup(f->text) : mux_failure_text(f);
}

void mux_failure_to_error(const MuxFailure *f, Error **errp)
{
    g_autofree char *text = mux_failure_text(f);

    error_setg(errp, "%s", text);
}
