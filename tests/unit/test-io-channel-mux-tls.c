/*
 * Migration multiplexer: TLS as its transport
 *
 * Functions of the same names wrap the relevant calls into GnuTLS.  They check
 * these calls, and change keys, which GnuTLS itself does only after many
 * gigabytes.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "qemu/sockets.h"
#include "qemu/units.h"
#include "crypto/init.h"
#include "crypto/tlscredspsk.h"
#include "io/channel-socket.h"
#include "io/channel-tls.h"
#include "crypto-tls-psk-helpers.h"
#include "mux-session-helpers.h"
#include <dlfcn.h>
#include <gnutls/gnutls.h>

#define HEADER_SIZE     16      /* of a frame */
/* GnuTLS accepts 8 new keys per second from a peer: use fewer in total */
#define REKEYS          6
/* Nearly every round causes the expected event: this only ends a hang */
#define ROUNDS_MAX      100

static char *workdir;

/* --- watching GnuTLS --- */

/* What one side has done since the pair was made; counters are atomic. */
typedef struct TlsWatch {
    gnutls_session_t session;   /* NULL: not seen yet */
    int inside;                 /* threads that are in GnuTLS now */
    GByteArray *refused;        /* to be offered again, NULL: none */
    unsigned again;             /* how often data was */
    unsigned records, lone_headers;
    unsigned byes, byes_sent;   /* started; sent */
    uint64_t bytes;
    bool rekeying;              /* the new key is not sent yet */
    uint64_t rekey_at;          /* at this number of bytes sent */
    unsigned rekeys;
} TlsWatch;

static TlsWatch watch[2];
static QemuMutex watch_lock;
/* Bytes between the REKEYS key changes of each direction; 0: no changes */
static uint64_t rekey_interval;
static int split_records;       /* send at most that many bytes in one */

static void tls_watch_reset(void)
{
    for (int i = 0; i < 2; i++) {
        if (watch[i].refused) {
            g_byte_array_unref(watch[i].refused);
        }
    }
    memset(watch, 0, sizeof(watch));
}

static TlsWatch *tls_enter(gnutls_session_t session)
{
    TlsWatch *w = watch;

    qemu_mutex_lock(&watch_lock);
    while (w->session && w->session != session) {
        w++;
        g_assert(w < watch + 2);
    }
    w->session = session;
    qemu_mutex_unlock(&watch_lock);
    /* one thread at a time: a new key may come while another one sends */
    g_assert_cmpint(qatomic_fetch_inc(&w->inside), ==, 0);
    return w;
}

static void tls_leave(TlsWatch *w)
{
    g_assert_cmpint(qatomic_fetch_dec(&w->inside), ==, 1);
}

/* After GNUTLS_E_AGAIN the caller must offer the same bytes. */
static void check_offered_again(TlsWatch *w, const void *data, size_t len)
{
    if (w->refused) {
        g_assert_cmpmem(data, len, w->refused->data, w->refused->len);
        g_clear_pointer(&w->refused, g_byte_array_unref);
    }
}

static void note_refused(TlsWatch *w, const void *data, size_t len)
{
    qatomic_inc(&w->again);
    w->refused = g_byte_array_new();
    g_byte_array_append(w->refused, data, len);
}

static ssize_t rekey(TlsWatch *w)
{
    int ret = 0;

    if (w->rekeying || (rekey_interval && w->rekeys < REKEYS &&
                        w->bytes >= w->rekey_at)) {
        /* GnuTLS does the same after 2^24 records */
        ret = gnutls_session_key_update(w->session, 0);
        w->rekeying = ret == GNUTLS_E_AGAIN;
        if (ret == 0) {
            g_assert_cmpint(gnutls_protocol_get_version(w->session), ==,
                            GNUTLS_TLS1_3);
            qatomic_inc(&w->rekeys);
            w->rekey_at = w->bytes + rekey_interval;
        }
    }
    return ret;
}

static ssize_t record_send(TlsWatch *w, const void *data, size_t len)
{
    static const uint8_t data_frame[4] = { 3, 0, 0, 0 };
    ssize_t (*real)(gnutls_session_t, const void *, size_t) =
        dlsym(RTLD_NEXT, "gnutls_record_send");
    ssize_t ret = w->refused ? 0 : rekey(w);

    check_offered_again(w, data, len);
    if (ret == 0) {
        ret = real(w->session, data,
                   split_records ? MIN(len, split_records) : len);
    }
    if (ret == GNUTLS_E_AGAIN) {
        note_refused(w, data, len);
    } else if (ret > 0) {
        qatomic_inc(&w->records);
        qatomic_add(&w->bytes, ret);
        if (ret == HEADER_SIZE && !memcmp(data, data_frame, 4)) {
            qatomic_inc(&w->lone_headers);
        }
    }
    return ret;
}

ssize_t gnutls_record_send(gnutls_session_t session, const void *data,
                           size_t data_size)
{
    TlsWatch *w = tls_enter(session);
    ssize_t ret = record_send(w, data, data_size);

    tls_leave(w);
    return ret;
}

ssize_t gnutls_record_recv(gnutls_session_t session, void *data,
                           size_t data_size)
{
    ssize_t (*real)(gnutls_session_t, void *, size_t) =
        dlsym(RTLD_NEXT, "gnutls_record_recv");
    TlsWatch *w = tls_enter(session);
    ssize_t ret;

    ret = real(session, data, data_size);
    tls_leave(w);
    return ret;
}

int gnutls_bye(gnutls_session_t session, gnutls_close_request_t how)
{
    int (*real)(gnutls_session_t, gnutls_close_request_t) =
        dlsym(RTLD_NEXT, "gnutls_bye");
    TlsWatch *w = tls_enter(session);
    int ret;

    g_assert_null(w->refused);
    qatomic_inc(&w->byes);
    ret = real(session, how);
    if (ret == GNUTLS_E_SUCCESS) {
        qatomic_inc(&w->byes_sent);
    }
    tls_leave(w);
    return ret;
}

/* --- two sessions over TLS --- */

/*
 * Credentials of the client and of the server.  All tests share them, because
 * QEMU generates DH parameters for those of the server, which takes long.
 */
static QCryptoTLSCreds *creds[2];

static QCryptoTLSCreds *creds_new(const char *endpoint)
{
    Object *obj = object_new_with_props(TYPE_QCRYPTO_TLS_CREDS_PSK,
                                        object_get_objects_root(),
                                        endpoint, &error_abort,
                                        "endpoint", endpoint,
                                        "dir", workdir,
                                        "priority", "NORMAL",
                                        NULL);

    return QCRYPTO_TLS_CREDS(obj);
}

static void handshake_done(QIOTask *task, gpointer opaque)
{
    g_assert(!qio_task_propagate_error(task, NULL));
    (*(int *)opaque)++;
}

static QIOChannelTLS *tls_new(int fd, bool server)
{
    g_autoptr(QIOChannelSocket) sioc = NULL;
    QIOChannelTLS *tls;

    sioc = qio_channel_socket_new_fd(fd, &error_abort);
    qio_channel_set_blocking(QIO_CHANNEL(sioc), false, &error_abort);
    if (server) {
        tls = qio_channel_tls_new_server(QIO_CHANNEL(sioc), creds[1], NULL,
                                         &error_abort);
    } else {
        tls = qio_channel_tls_new_client(QIO_CHANNEL(sioc), creds[0], "host",
                                         &error_abort);
    }
    return tls;
}

static Pair *tls_pair_new(int sndbuf)
{
    QIOChannelTLS *tls[2];
    int done = 0;
    int fds[2];
    Pair *p;
    int i;

    tls_watch_reset();
    socket_pair(fds, sndbuf);
    for (i = 0; i < 2; i++) {
        tls[i] = tls_new(fds[i], i);
        qio_channel_tls_handshake(tls[i], handshake_done, &done, NULL, NULL);
    }
    WAIT_FOR(done == 2);
    p = pair_new_transports(QIO_CHANNEL(tls[0]), QIO_CHANNEL(tls[1]));
    p->src.fd = fds[0];
    p->dst.fd = fds[1];
    object_unref(OBJECT(tls[0]));
    object_unref(OBJECT(tls[1]));
    return p;
}

static void test_tls(void)
{
    Pair *p = tls_pair_new(0);

    run_blocking(p, 3, 10 * MiB, 300 * KiB);
    pair_free(p);
}

/* On both sides, GnuTLS has returned GNUTLS_E_AGAIN and got the data again. */
static bool offered_again(void)
{
    return qatomic_read(&watch[0].again) && qatomic_read(&watch[1].again);
}

/* Records are split frequently, in both directions. */
static void test_tls_small_buffers(void)
{
    Pair *p = tls_pair_new(4096);
    int i = 0;

    do {
        g_assert_cmpint(i++, <, ROUNDS_MAX);
        run_blocking(p, 4, MiB, 9000);
    } while (!offered_again());
    pair_free(p);
}

/* One byte at a time must not leave one waiting inside of GnuTLS. */
static void test_tls_ping_pong(void)
{
    Pair *p = tls_pair_new(0);
    QIOChannel *a, *b;
    char c;
    int i;

    a = open_stream(p, "main", &b);
    for (i = 0; i < 1000; i++) {
        c = i;
        qio_channel_write_all(a, &c, 1, &error_abort);
        qio_channel_read_all(b, &c, 1, &error_abort);
        qio_channel_write_all(b, &c, 1, &error_abort);
        qio_channel_read_all(a, &c, 1, &error_abort);
        g_assert_cmpint(c, ==, (char)i);
    }
    object_unref(OBJECT(a));
    object_unref(OBJECT(b));
    pair_free(p);
}

static void test_tls_close(void)
{
    Pair *p = tls_pair_new(4096);
    Worker *writer, *reader;
    QIOChannel *a, *b;

    a = open_stream(p, "main", &b);
    reader = reader_new(b, 1, 1000);
    writer = writer_new(a, 1, 50 * KiB, 1000);
    worker_join_ok(writer, 50 * KiB);
    object_unref(OBJECT(a));
    worker_join_ok(reader, 50 * KiB);
    object_unref(OBJECT(b));
    g_ptr_array_set_size(p->dst.streams, 0);
    mux_session_close_wait(p->src.session, NULL, CLOSE_MS);
    WAIT_FOR(p->src.ended && p->dst.ended);
    g_assert_cmpstr(p->src.error, ==, NULL);
    g_assert_cmpstr(p->dst.error, ==, NULL);
    /*
     * A bye that the peer has received may not be counted yet.  A side that has
     * received GOAWAY does not wait for a bye, so one bye may fail.
     */
    WAIT_FOR(qatomic_read(&watch[0].byes) && qatomic_read(&watch[1].byes));
    WAIT_FOR(qatomic_read(&watch[0].byes_sent) ||
             qatomic_read(&watch[1].byes_sent));
    pair_free(p);
}

static void test_tls_cut(void)
{
    Pair *p = tls_pair_new(0);
    g_autofree char *error = NULL;
    QIOChannel *a, *b;
    char buf[1000] = "";

    a = open_stream(p, "main", &b);
    qio_channel_write_all(a, buf, sizeof(buf), &error_abort);
    shutdown(p->src.fd, SHUT_RDWR);
    WAIT_FOR(p->src.ended && p->dst.ended);
    qio_channel_read_all(b, buf, sizeof(buf), &error_abort);
    error = worker_join(reader_new(b, 0, 1));
    g_assert(strstr(error, "all streams: "));
    object_unref(OBJECT(a));
    object_unref(OBJECT(b));
    pair_free(p);
}

/* EOF without a bye is an error: an attacker may have caused it. */
static void test_truncation(void)
{
    Pair *p = tls_pair_new(0);

    WAIT_FOR(p->src.ready && p->dst.ready);
    shutdown(p->src.fd, SHUT_RDWR);
    WAIT_FOR(p->src.ended && p->dst.ended);
    g_assert_cmpstr(p->dst.error, !=, NULL);
    pair_free(p);
}

static void run_one_way(QIOChannel *a, QIOChannel *b, uint64_t size,
                        size_t chunk)
{
    Worker *reader = reader_new(b, 1, chunk);

    worker_join_ok(writer_new(a, 1, size, chunk), size);
    qio_channel_shutdown(a, QIO_CHANNEL_SHUTDOWN_WRITE, &error_abort);
    worker_join_ok(reader, size);
}

/* --- what GnuTLS needs --- */

/* Both sides have made all their key changes. */
static bool rekeyed(void)
{
    return qatomic_read(&watch[0].rekeys) == REKEYS &&
           qatomic_read(&watch[1].rekeys) == REKEYS;
}

static void test_rekeys(void)
{
    Pair *p;

    rekey_interval = MiB;
    p = tls_pair_new(0);
    for (int i = 0; !rekeyed(); i++) {
        g_assert_cmpint(i, <, ROUNDS_MAX);
        run_blocking(p, 3, 2 * MiB, 100 * KiB);
    }
    /* Send data with the last keys */
    run_blocking(p, 3, MiB, 100 * KiB);
    pair_free(p);
    rekey_interval = 0;
}

/* Key changes while a record is partly sent. */
static void test_rekeys_small_buffers(void)
{
    Pair *p;

    rekey_interval = 64 * KiB;
    p = tls_pair_new(4096);
    for (int i = 0; !rekeyed() || !offered_again(); i++) {
        g_assert_cmpint(i, <, ROUNDS_MAX);
        run_blocking(p, 2, 200 * KiB, 9000);
    }
    run_blocking(p, 2, 100 * KiB, 9000);
    pair_free(p);
    rekey_interval = 0;
}

/* Frames begin and end anywhere in a record. */
static void test_frames_cross_records(void)
{
    static const int sizes[] = { 1, 7, 1000 };

    for (int i = 0; i < G_N_ELEMENTS(sizes); i++) {
        Pair *p;

        split_records = sizes[i];
        p = tls_pair_new(0);
        run_blocking(p, 2, 1000 * sizes[i], 5000);
        pair_free(p);
        split_records = 0;
    }
}

static void test_headers_share_records(void)
{
    Pair *p = tls_pair_new(0);
    QIOChannel *a, *b;
    TlsWatch *w;
    uint64_t bytes;

    a = open_stream(p, "main", &b);
    run_one_way(a, b, 20 * MiB, MiB);
    w = qatomic_read(&watch[0].bytes) > qatomic_read(&watch[1].bytes) ?
        &watch[0] : &watch[1];
    bytes = qatomic_read(&w->bytes);
    g_assert_cmpuint(bytes, >, 20 * MiB);
    g_assert_cmpuint(bytes / qatomic_read(&w->records), >, 12 * KiB);
    g_assert_cmpuint(qatomic_read(&w->lone_headers), ==, 0);
    object_unref(OBJECT(a));
    object_unref(OBJECT(b));
    pair_free(p);
}

int main(int argc, char **argv)
{
    g_autofree char *keys = NULL;
    int ret;

    session_test_init(&argc, &argv);
    g_assert(qcrypto_init(NULL) == 0);
    qemu_mutex_init(&watch_lock);
    workdir = g_dir_make_tmp("test-io-channel-mux-XXXXXX", NULL);
    g_assert_nonnull(workdir);
    keys = g_strdup_printf("%s/keys.psk", workdir);
    test_tls_psk_init(keys);
    creds[0] = creds_new("client");
    creds[1] = creds_new("server");
    g_test_add_func("/io/channel/mux/tls", test_tls);
#define ADD(path, func) g_test_add_func("/io/channel/mux/tls/" path, func)
    ADD("small-buffers", test_tls_small_buffers);
    ADD("ping-pong", test_tls_ping_pong);
    ADD("close", test_tls_close);
    ADD("cut", test_tls_cut);
    ADD("truncation", test_truncation);
    ADD("rekeys", test_rekeys);
    ADD("rekeys-small-buffers", test_rekeys_small_buffers);
    ADD("frames-cross-records", test_frames_cross_records);
    ADD("headers-share-records", test_headers_share_records);
#undef ADD
    ret = g_test_run();
    object_unparent(OBJECT(creds[0]));
    object_unparent(OBJECT(creds[1]));
    test_tls_psk_cleanup(keys);
    rmdir(workdir);
    g_free(workdir);
    return ret;
}
