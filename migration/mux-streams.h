/*
 * Migration over a multiplexed connection: the kinds of stream
 *
 * Section "What the streams carry" of docs/interop/migration-mux.rst.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef MIGRATION_MUX_STREAMS_H
#define MIGRATION_MUX_STREAMS_H

#include "migration/mux/channel-mux.h"

typedef enum MuxStreamKind {
    MUX_STREAM_KIND_CONTROL,
    MUX_STREAM_KIND_MAIN,
    MUX_STREAM_KIND_MULTIFD,
    MUX_STREAM_KIND_NBD,
    MUX_STREAM_KIND__MAX,       /* none of them */
} MuxStreamKind;

/* The kind's name, as in the offer: "main", "nbd" ... */
const char *mux_stream_kind_str(MuxStreamKind kind);

/* The kind of that name, or of the stream of that name */
MuxStreamKind mux_stream_kind_parse(const char *kind);
MuxStreamKind mux_stream_kind_of(const char *stream);

/* The name of a stream of @kind, of which there are several: "nbd-@id" */
char *mux_stream_kind_name(MuxStreamKind kind, const char *id);

/* At the destination: prepare @ioc, of @kind, which is not accepted yet. */
void mux_stream_kind_set_up(MuxStreamKind kind, QIOChannelMux *ioc);

#endif
