/*
 * Stream `control` of a multiplexed migration
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "qemu/bswap.h"
#include "control-message.h"
#include "mux-control.h"
#include "trace.h"

/* The rules of each kind of message */
static const struct {
    bool by_source, by_destination;
    bool repeats;
    MigrationControlType after;         /* has gone to or fro before */
    MigrationControlType before;        /* has not */
} rules[] = {
    [MIGRATION_CONTROL_TYPE_KNOWS] = { true, true, false },
    [MIGRATION_CONTROL_TYPE_OFFER] = {
        true, false, false, MIGRATION_CONTROL_TYPE_KNOWS },
    [MIGRATION_CONTROL_TYPE_ACCEPTED] = {
        false, true, false, MIGRATION_CONTROL_TYPE_OFFER,
        MIGRATION_CONTROL_TYPE_REJECTED },
    [MIGRATION_CONTROL_TYPE_REJECTED] = {
        false, true, false, MIGRATION_CONTROL_TYPE_OFFER,
        MIGRATION_CONTROL_TYPE_ACCEPTED },
    [MIGRATION_CONTROL_TYPE_PHASE] = {
        true, false, true, MIGRATION_CONTROL_TYPE_ACCEPTED },
    [MIGRATION_CONTROL_TYPE_LOADED] = {
        false, true, false, MIGRATION_CONTROL_TYPE_ACCEPTED },
    [MIGRATION_CONTROL_TYPE_COMMITTED] = {
        true, false, false, MIGRATION_CONTROL_TYPE_LOADED },
    [MIGRATION_CONTROL_TYPE_RUNNING] = {
        false, true, false, MIGRATION_CONTROL_TYPE_COMMITTED },
};

G_STATIC_ASSERT(G_N_ELEMENTS(rules) == MIGRATION_CONTROL_TYPE__MAX);

struct MuxControl {
    QIOChannelMux *ioc;
    MuxRole role;
    const MuxControlOps *ops;
    void *opaque;
    GHashTable *peer;           /* the names that it knows; NULL: not yet */
    uint32_t sent, received;    /* kinds of message, a bit for each */
    guint watch_in, watch_out;
    GByteArray *in;             /* of one message, its length first */
    GByteArray *out;            /* that the stream has not taken */
    uint64_t bytes_in;
    MuxFailure *failure;        /* why the stream has ended */
};

static const char *mux_control_peer(MuxControl *c)
{
    return c->role == MUX_ROLE_SOURCE ? "destination" : "source";
}

/* --- sending --- */

static bool mux_control_flush(MuxControl *c, MuxFailure **failp);

/* The stream cannot be used any more */
static MuxFailure *mux_control_stream_failure(MuxControl *c)
{
    return qio_channel_mux_get_failure(c->ioc) ?:
        mux_failure_new("control", MUX_CODE_ABORTED, "connection closed");
}

static gboolean mux_control_writable(QIOChannel *ioc, GIOCondition cond,
                                     gpointer opaque)
{
    MuxControl *c = opaque;

    c->watch_out = 0;
    /* If it fails, the reader sees the end, too */
    mux_control_flush(c, NULL);
    return G_SOURCE_REMOVE;
}

static bool mux_control_flush(MuxControl *c, MuxFailure **failp)
{
    while (c->out->len) {
        ssize_t len = qio_channel_write(QIO_CHANNEL(c->ioc),
                                        (char *)c->out->data, c->out->len,
                                        NULL);

        if (len == QIO_CHANNEL_ERR_BLOCK) {
            if (!c->watch_out) {
                c->watch_out = qio_channel_add_watch(QIO_CHANNEL(c->ioc),
                                                     G_IO_OUT,
                                                     mux_control_writable, c,
                                                     NULL);
            }
            return true;
        }
        if (len < 0) {
            mux_failure_propagate(failp, mux_control_stream_failure(c));
            return false;
        }
        g_byte_array_remove_range(c->out, 0, len);
    }
    return true;
}

/* Put @message into c->out. */
static bool mux_control_queue(MuxControl *c, const MigrationControl *message,
                              MuxFailure **failp)
{
    g_autoptr(Error) err = NULL;
    GHashTable *peer = c->peer ?: control_names_own();
    uint8_t header[MUX_CONTROL_HEADER_SIZE];
    size_t len;
    g_autofree char *text =
        control_message_encode(message, peer, mux_control_peer(c), &len, &err);

    if (!text) {
        mux_failure_propagate(failp, mux_failure_from_error("control", err));
        return false;
    }
    trace_migration_mux_control_sent(text);
    stl_be_p(header, len);
    g_byte_array_append(c->out, header, sizeof(header));
    g_byte_array_append(c->out, (uint8_t *)text, len);
    c->sent |= BIT(message->type);
    return true;
}

bool mux_control_send(MuxControl *c, const MigrationControl *message,
                      MuxFailure **failp)
{
    return mux_control_queue(c, message, failp) && mux_control_flush(c, failp);
}

bool mux_control_say(MuxControl *c, MigrationControlType type,
                     MuxFailure **failp)
{
    MigrationControl message = { .type = type };

    return mux_control_send(c, &message, failp);
}

bool mux_control_commit(MuxControl *c, MuxFailure **failp)
{
    const MigrationControl message = {
        .type = MIGRATION_CONTROL_TYPE_COMMITTED
    };
    bool ok;

    if (c->out->len) {
        mux_failure_propagate(failp,
                              mux_failure_new("control", MUX_CODE_ABORTED,
                                              "the destination does not accept "
                                              "data"));
        return false;
    }
    ok = mux_control_queue(c, &message, failp) &&
        qio_channel_mux_write_whole(c->ioc, c->out->data, c->out->len, failp);
    /* The peer ignores an incomplete message */
    g_byte_array_set_size(c->out, 0);
    return ok;
}

static void mux_control_introduce(MuxControl *c)
{
    MigrationControl message = { .type = MIGRATION_CONTROL_TYPE_KNOWS };
    GHashTableIter iter;
    gpointer name;

    g_hash_table_iter_init(&iter, control_names_own());
    while (g_hash_table_iter_next(&iter, &name, NULL)) {
        QAPI_LIST_PREPEND(message.u.knows.names, name);
    }
    /* A stream that has failed already tells its reader, too */
    mux_control_send(c, &message, NULL);
    while (message.u.knows.names) {
        strList *next = message.u.knows.names->next;

        g_free(message.u.knows.names);
        message.u.knows.names = next;
    }
}

/* --- receiving --- */

/*
 * Was it sent or received?  Both sides send `knows`: it counts when it was
 * received.
 */
static bool mux_control_seen(MuxControl *c, MigrationControlType type)
{
    return (type == MIGRATION_CONTROL_TYPE_KNOWS ? c->received :
            c->received | c->sent) & BIT(type);
}

static bool mux_control_in_order(MuxControl *c, MigrationControlType type,
                                 Error **errp)
{
    const char *name = MigrationControlType_str(type);
    MigrationControlType after = rules[type].after;
    MigrationControlType before = rules[type].before;

    if (c->role == MUX_ROLE_SOURCE ? !rules[type].by_destination :
                                     !rules[type].by_source) {
        error_setg(errp, "the %s sent '%s', which only its peer may send",
                   mux_control_peer(c), name);
        return false;
    }
    if (c->received & BIT(type) && !rules[type].repeats) {
        error_setg(errp, "the %s sent '%s' twice", mux_control_peer(c), name);
        return false;
    }
    if (type != MIGRATION_CONTROL_TYPE_KNOWS && !mux_control_seen(c, after)) {
        error_setg(errp, "the %s sent '%s' before '%s'", mux_control_peer(c),
                   name, MigrationControlType_str(after));
        return false;
    }
    if (before && mux_control_seen(c, before)) {
        error_setg(errp, "the %s sent '%s' after '%s'", mux_control_peer(c),
                   name, MigrationControlType_str(before));
        return false;
    }
    return true;
}

static bool mux_control_take_names(MuxControl *c,
                                   const MigrationControl *message,
                                   Error **errp)
{
    c->peer = control_names_new(message->u.knows.names);
    return control_names_suffice(c->peer, mux_control_peer(c), errp);
}

/*
 * The message whose text is in c->in.
 *
 * Returns: NULL without an error if it is to be ignored
 */
static MigrationControl *mux_control_decode(MuxControl *c, Error **errp)
{
    ERRP_GUARD();
    g_autoptr(MigrationControl) message = control_message_decode(
        (char *)c->in->data + MUX_CONTROL_HEADER_SIZE,
        c->in->len - MUX_CONTROL_HEADER_SIZE, control_names_own(),
        mux_control_peer(c), errp);

    if (!message) {
        if (!*errp && !c->peer) {
            error_setg(errp, "the %s did not send 'knows' first",
                       mux_control_peer(c));
        }
        return NULL;
    }
    trace_migration_mux_control_received(
        MigrationControlType_str(message->type));
    if (!mux_control_in_order(c, message->type, errp)) {
        return NULL;
    }
    c->received |= BIT(message->type);
    if (message->type == MIGRATION_CONTROL_TYPE_KNOWS &&
        !mux_control_take_names(c, message, errp)) {
        return NULL;
    }
    return g_steal_pointer(&message);
}

static bool mux_control_accepted(MuxControl *c)
{
    return (c->sent | c->received) & BIT(MIGRATION_CONTROL_TYPE_ACCEPTED);
}

/* How many bytes are missing from the message in c->in; 0: it is complete */
static size_t mux_control_missing(MuxControl *c, Error **errp)
{
    uint32_t len;
    uint64_t max = mux_control_accepted(c) ? MUX_CONTROL_LIFETIME_MAX :
                                             MUX_CONTROL_UNACCEPTED_MAX;

    if (c->in->len < MUX_CONTROL_HEADER_SIZE) {
        return MUX_CONTROL_HEADER_SIZE - c->in->len;
    }
    len = ldl_be_p(c->in->data);
    if (!len || len > MUX_CONTROL_MESSAGE_MAX) {
        error_setg(errp, "the %s sent a message with a bad length of %" PRIu32
                   " bytes", mux_control_peer(c), len);
        return 0;
    }
    if (c->bytes_in - c->in->len + MUX_CONTROL_HEADER_SIZE + len > max) {
        error_setg(errp, "the %s sent more than %" PRIu64 " bytes",
                   mux_control_peer(c), max);
        return 0;
    }
    return MUX_CONTROL_HEADER_SIZE + len - c->in->len;
}

/* Returns: the bytes that came, or what qio_channel_read() says */
static ssize_t mux_control_read(MuxControl *c, size_t missing)
{
    guint have = c->in->len;
    ssize_t len;

    g_byte_array_set_size(c->in, have + missing);
    len = qio_channel_read(QIO_CHANNEL(c->ioc), (char *)c->in->data + have,
                           missing, NULL);
    g_byte_array_set_size(c->in, have + MAX(len, 0));
    c->bytes_in += MAX(len, 0);
    return len;
}

/* Takes @failure.  The callback, @report, may free @c. */
static void mux_control_end(MuxControl *c, MuxFailure *failure,
                            void (*report)(const MuxFailure *, void *))
{
    g_autoptr(MuxFailure) passed = failure ? mux_failure_copy(failure) : NULL;

    c->watch_in = 0;
    c->failure = failure;
    report(passed, c->opaque);
}

/* The stream has no more data: by the peer's FIN, or by a failure */
static MuxFailure *mux_control_eof(MuxControl *c)
{
    MuxFailure *f = qio_channel_mux_get_failure(c->ioc);

    if (!f && qio_channel_mux_state(c->ioc) != MUX_STREAM_RESET) {
        f = mux_failure_new("control", MUX_CODE_PROTOCOL, "the %s ended the "
                            "stream early", mux_control_peer(c));
    }
    return f;
}

/* One read at a time, so that others have their turn */
static gboolean mux_control_readable(QIOChannel *ioc, GIOCondition cond,
                                     gpointer opaque)
{
    MuxControl *c = opaque;
    g_autoptr(MigrationControl) message = NULL;
    g_autoptr(Error) err = NULL;
    ssize_t len = mux_control_read(c, mux_control_missing(c, &error_abort));

    if (len == QIO_CHANNEL_ERR_BLOCK) {
        return G_SOURCE_CONTINUE;
    }
    if (len <= 0) {
        mux_control_end(c, mux_control_eof(c), c->ops->ended);
        return G_SOURCE_REMOVE;
    }
    if (mux_control_missing(c, &err)) {
        return G_SOURCE_CONTINUE;
    }
    if (!err) {
        message = mux_control_decode(c, &err);
    }
    if (err) {
        mux_control_end(c, mux_failure_new("control", MUX_CODE_PROTOCOL, "%s",
                                           error_get_pretty(err)),
                        c->ops->broken);
        return G_SOURCE_REMOVE;
    }
    g_byte_array_set_size(c->in, 0);
    if (message) {
        /* Maybe the end of @c, and of its watch */
        c->ops->message(message, c->opaque);
    }
    return G_SOURCE_CONTINUE;
}

/* --- life --- */

MuxControl *mux_control_new(QIOChannelMux *ioc, MuxRole role,
                            const MuxControlOps *ops, void *opaque)
{
    MuxControl *c = g_new0(MuxControl, 1);

    c->ioc = ioc;
    object_ref(OBJECT(ioc));
    c->role = role;
    c->ops = ops;
    c->opaque = opaque;
    c->in = g_byte_array_new();
    c->out = g_byte_array_new();
    qio_channel_set_blocking(QIO_CHANNEL(ioc), false, NULL);
    c->watch_in = qio_channel_add_watch(QIO_CHANNEL(ioc), G_IO_IN,
                                        mux_control_readable, c, NULL);
    mux_control_introduce(c);
    return c;
}

void mux_control_set_ops(MuxControl *c, const MuxControlOps *ops, void *opaque)
{
    c->ops = ops;
    c->opaque = opaque;
}

void mux_control_free(MuxControl *c)
{
    if (!c) {
        return;
    }
    if (c->watch_in) {
        g_source_remove(c->watch_in);
    }
    if (c->watch_out) {
        g_source_remove(c->watch_out);
    }
    object_unref(OBJECT(c->ioc));
    g_clear_pointer(&c->peer, g_hash_table_unref);
    g_byte_array_unref(c->in);
    g_byte_array_unref(c->out);
    mux_failure_free(c->failure);
    g_free(c);
}

bool mux_control_received(MuxControl *c, MigrationControlType type)
{
    return c->received & BIT(type);
}

bool mux_control_over(MuxControl *c)
{
    return !c->watch_in;
}

const MuxFailure *mux_control_failure(MuxControl *c)
{
    return c->failure;
}

void mux_control_finish(MuxControl *c)
{
    qio_channel_shutdown(QIO_CHANNEL(c->ioc), QIO_CHANNEL_SHUTDOWN_WRITE, NULL);
    qio_channel_mux_fin_ok(c->ioc);
}

bool mux_control_knows(MuxControl *c, const char *name)
{
    return c->peer && control_names_has(c->peer, name);
}

void mux_control_receive(MuxControl *c)
{
    if (c->watch_in) {
        mux_control_readable(QIO_CHANNEL(c->ioc), G_IO_IN, c);
    }
}

QIOChannelMux *mux_control_stream(MuxControl *c)
{
    return c->ioc;
}
