/*
 * Migration multiplexer: HELLO
 *
 * Each side sends one HELLO before anything else.  The peer's is checked as it
 * arrives, so that a peer that speaks another protocol or version is rejected
 * without waiting for the rest: after 4 bytes the magic; after 40 bytes the
 * fields common to all versions (versions, features, limits, role); after 60
 * bytes those of version 2 (session, index of the connection).  A reserved tail
 * is dropped.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/bswap.h"
#include "engine-int.h"

/* --- ours --- */

void mux_hello_put(MuxEngine *e, uint8_t out[MUX_HELLO_V2_SIZE])
{
    MuxHello hello = {
        .magic = MUX_MAGIC,
        .version_min = e->config.version_min,
        .version_max = e->config.version_max,
        .length = MUX_HELLO_V2_SIZE,
        .features = MUX_FEATURES,
        .max_frame = e->config.max_frame,
        .max_streams = e->config.max_streams,
        .role = e->config.role,
    };

    memcpy(hello.session, e->config.session, MUX_SESSION_ID_SIZE);
    mux_hello_encode(&hello, out);
    e->hello_queued = true;
}

/* --- the peer's --- */

static void malformed(MuxEngine *e, const char *fault)
{
    mux_engine_fail(e, MUX_CODE_PROTOCOL, "%s sent a HELLO with a bad %s",
                    mux_peer_name(e), fault);
}

static bool check_magic(MuxEngine *e)
{
    uint32_t magic = ldl_be_p(e->rx_buf);

    if (magic != MUX_MAGIC) {
        e->foreign = true;
        mux_engine_fail(e, MUX_CODE_PROTOCOL,
                        "peer does not speak the migration multiplexer "
                        "(got 0x%08x instead of 0x%08x)", magic, MUX_MAGIC);
        return false;
    }
    return true;
}

static bool check_form(MuxEngine *e)
{
    const MuxHello *peer = &e->peer;
    const char *fault = NULL;

    if (peer->length < MUX_HELLO_SIZE || peer->length > MUX_HELLO_MAX) {
        fault = "length";
    } else if (peer->version_min > peer->version_max) {
        fault = "version range";
    } else if (peer->max_frame < MUX_FRAME_MIN) {
        fault = "frame limit";
    } else if (peer->role != MUX_ROLE_SOURCE &&
               peer->role != MUX_ROLE_DESTINATION) {
        fault = "role";
    }
    if (fault) {
        malformed(e, fault);
        return false;
    }
    if (peer->role == e->config.role) {
        mux_engine_fail(e, MUX_CODE_INCOMPATIBLE,
                        "both sides claim to be the %s of the migration",
                        mux_local_name(e));
        return false;
    }
    return true;
}

static bool check_version(MuxEngine *e)
{
    const MuxConfig *c = &e->config;
    const MuxHello *peer = &e->peer;

    if (MAX(c->version_min, peer->version_min) >
        MIN(c->version_max, peer->version_max)) {
        mux_engine_fail(e, MUX_CODE_INCOMPATIBLE,
                        "no common version of the migration multiplexer: "
                        "%s offers %u to %u, %s offers %u to %u",
                        mux_local_name(e), c->version_min, c->version_max,
                        mux_peer_name(e), peer->version_min,
                        peer->version_max);
        return false;
    }
    /* The least that we speak is version 2 */
    if (peer->length < MUX_HELLO_V2_SIZE) {
        malformed(e, "length");
        return false;
    }
    return true;
}

static bool check_features(MuxEngine *e)
{
    if (e->peer.required & ~MUX_FEATURES) {
        mux_engine_fail(e, MUX_CODE_INCOMPATIBLE,
                        "%s requires feature bits 0x%" PRIx64
                        " of the migration multiplexer, %s offers 0x%" PRIx64,
                        mux_peer_name(e), e->peer.required,
                        mux_local_name(e), MUX_FEATURES);
        return false;
    }
    return true;
}

static bool check_max_streams(MuxEngine *e)
{
    /* A source opens streams, if it has not yet */
    if (!e->peer.max_streams &&
        (e->config.role == MUX_ROLE_SOURCE || e->local_open)) {
        mux_engine_fail(e, MUX_CODE_INCOMPATIBLE, "%s accepts no streams",
                        mux_peer_name(e));
        return false;
    }
    return true;
}

static bool check_connection(MuxEngine *e)
{
    if (e->peer.connection) {
        mux_engine_fail(e, MUX_CODE_INCOMPATIBLE,
                        "%s opens connection %u of its session, "
                        "%s takes only the first", mux_peer_name(e),
                        e->peer.connection, mux_local_name(e));
        return false;
    }
    return true;
}

size_t mux_hello_want(MuxEngine *e)
{
    return e->hello_fits ? MUX_HELLO_V2_SIZE : MUX_HELLO_SIZE;
}

void mux_hello_arrived(MuxEngine *e, int64_t now)
{
    if (e->rx_buf_len >= 4 && !check_magic(e)) {
        return;
    }
    if (e->rx_buf_len == MUX_HELLO_SIZE) {
        mux_hello_decode_common(e->rx_buf, &e->peer);
        e->hello_fits = check_form(e) && check_version(e) &&
                        check_features(e) && check_max_streams(e);
    } else if (e->rx_buf_len == MUX_HELLO_V2_SIZE) {
        mux_hello_decode(e->rx_buf, &e->peer);
        if (check_connection(e)) {
            e->rx_buf_len = 0;
            e->rx_left = e->peer.length - MUX_HELLO_V2_SIZE;
            e->rx_drop = true;
            if (!e->rx_left) {
                mux_hello_complete(e, now);
            }
        }
    }
}

void mux_hello_complete(MuxEngine *e, int64_t now)
{
    const MuxConfig *c = &e->config;

    e->hello_done = true;
    e->hello_event = true;
    if (c->window < c->window_max) {
        mux_liveness_measure(e, now);   /* while nothing is in the way */
    }
}

/* --- queries --- */

bool mux_engine_peer_is_foreign(MuxEngine *e)
{
    return e->foreign;
}

const uint8_t *mux_engine_session(MuxEngine *e)
{
    return e->config.role == MUX_ROLE_SOURCE ? e->config.session
                                             : e->peer.session;
}
