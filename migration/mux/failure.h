/*
 * Migration multiplexer: a failure as a value
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef MIGRATION_MUX_FAILURE_H
#define MIGRATION_MUX_FAILURE_H

#include "migration/mux/engine.h"

/**
 * MuxFailure:
 * @stream: the name of the stream that failed; NULL: all streams
 * @cause: the error code, and whether the peer sent it
 * @text: what happened, without the name of the stream
 *
 * Why a stream, a connection or a migration failed.  Functions that may fail
 * take a MuxFailure ** where others take an Error **: it may be NULL, and what
 * is stored there belongs to the caller.
 */
typedef struct MuxFailure {
    char *stream;
    MuxCause cause;
    char *text;
} MuxFailure;

/* A failure that this side has noticed; @code: MUX_CODE_* */
MuxFailure *mux_failure_new(const char *stream, uint32_t code,
                            const char *fmt, ...) G_GNUC_PRINTF(3, 4);

/* The same, with @cause */
MuxFailure *mux_failure_from_cause(const char *stream, MuxCause cause,
                                   const char *text);

/* The same, with MUX_CODE_ABORTED, from @err, which is not changed */
MuxFailure *mux_failure_from_error(const char *stream, const Error *err);

/* "timed out after N s waiting for @awaited" */
MuxFailure *mux_failure_timeout(const char *stream, uint32_t timeout_ms,
                                const char *awaited);

MuxFailure *mux_failure_copy(const MuxFailure *f);
void mux_failure_free(MuxFailure *f);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(MuxFailure, mux_failure_free)

/* Store @f in *@failp, unless that is NULL: then free @f. */
void mux_failure_propagate(MuxFailure **failp, MuxFailure *f);

/* Returns: "stream 'NAME': TEXT" or "all streams: TEXT"; to be freed */
char *mux_failure_text(const MuxFailure *f);

/*
 * Returns: the text to send with a RESET of @stream, or with GOAWAY (NULL); it
 * does not repeat the name of @stream.  To be freed.
 */
char *mux_failure_text_within(const MuxFailure *f, const char *stream);

/* For callers that use Error: set @errp to mux_failure_text(). */
void mux_failure_to_error(const MuxFailure *f, Error **errp);

#endif
