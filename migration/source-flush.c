/*
 * Migration: flush the source's disks before the guest is stopped
 *
 * Owns the flushes.  One that fails is reported when its round is over, and
 * fails the migration while the guest still runs: stopping the guest would fail
 * in the same way.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "block/aio.h"
#include "block/block.h"
#include "block/block_int.h"
#include "qemu/coroutine.h"
#include "qemu/timer.h"
#include "source-flush.h"
#include "trace.h"

/* Interval between rounds once source_flush_done() returns true */
#define SOURCE_FLUSH_INTERVAL_NS NANOSECONDS_PER_SECOND

struct SourceFlush {
    unsigned refs;              /* atomic: the owner's, one of each flush */
    bool stopped;
    int64_t limit_ns;
    SourceFlushSkip *skip;
    SourceFlushRoundDone *round_done;
    GDestroyNotify release;
    void *opaque;

    QEMUTimer *timer;           /* begins the next round */
    unsigned pending;           /* flushes of this round; main loop */
    int64_t began;              /* this round did */
    int64_t took;               /* the last one, ns; 0: there was none */
    bool done;                  /* atomic */
    Error *err;                 /* of this round, the first one */
};

typedef struct SourceFlushNode {
    SourceFlush *f;
    BlockDriverState *bs;       /* holds a reference */
    int ret;
} SourceFlushNode;

static void source_flush_unref(SourceFlush *f)
{
    if (qatomic_fetch_dec(&f->refs) == 1) {
        timer_free(f->timer);
        error_free(f->err);
        g_free(f);
    }
}

static void source_flush_round_over(SourceFlush *f)
{
    int64_t now = qemu_clock_get_ns(QEMU_CLOCK_REALTIME);
    int64_t took = now - f->began;
    /* Long, and the first one or clearly shorter than the one before */
    bool more = took > f->limit_ns && (!f->took || took < f->took / 2);

    if (f->err) {
        f->round_done(f->err, f->opaque);
        return;
    }
    trace_migration_source_flush(took, more);
    f->took = took;
    if (!more) {
        qatomic_set(&f->done, true);
        f->round_done(NULL, f->opaque);
    }
    timer_mod(f->timer, more ? now : now + SOURCE_FLUSH_INTERVAL_NS);
}

static void source_flush_node_bh(void *opaque)
{
    SourceFlushNode *node = opaque;
    SourceFlush *f = node->f;

    if (node->ret < 0 && !f->err) {
        error_setg_errno(&f->err, -node->ret, "cannot flush node '%s' of the "
                         "source", bdrv_get_node_name(node->bs));
    }
    bdrv_unref(node->bs);
    g_free(node);
    if (!--f->pending && f->stopped) {
        f->release(f->opaque);
    } else if (!f->pending) {
        source_flush_round_over(f);
    }
    source_flush_unref(f);
}

static void coroutine_fn source_flush_node_co(void *opaque)
{
    SourceFlushNode *node = opaque;

    WITH_GRAPH_RDLOCK_GUARD() {
        node->ret = bdrv_co_flush(node->bs);
    }
    aio_bh_schedule_oneshot(qemu_get_aio_context(), source_flush_node_bh,
                            node);
}

static void source_flush_round(void *opaque)
{
    SourceFlush *f = opaque;
    g_autoptr(GPtrArray) nodes = g_ptr_array_new();
    BdrvNextIterator it;
    BlockDriverState *bs;

    bdrv_graph_rdlock_main_loop();
    for (bs = bdrv_first(&it); bs; bs = bdrv_next(&it)) {
        SourceFlushNode *node;

        if (bdrv_is_read_only(bs) || f->skip(bs, f->opaque)) {
            continue;
        }
        node = g_new(SourceFlushNode, 1);
        *node = (SourceFlushNode) { .f = f, .bs = bs };
        bdrv_ref(bs);
        g_ptr_array_add(nodes, node);
    }
    bdrv_graph_rdunlock_main_loop();

    f->began = qemu_clock_get_ns(QEMU_CLOCK_REALTIME);
    f->pending = nodes->len;
    if (!nodes->len) {
        source_flush_round_over(f);
    }
    for (guint i = 0; i < nodes->len; i++) {
        qatomic_inc(&f->refs);
        qemu_coroutine_enter(qemu_coroutine_create(source_flush_node_co,
                                                   nodes->pdata[i]));
    }
}

SourceFlush *source_flush_new(int64_t limit_ns, SourceFlushSkip *skip,
                              SourceFlushRoundDone *round_done,
                              GDestroyNotify release, void *opaque)
{
    SourceFlush *f = g_new0(SourceFlush, 1);

    f->refs = 1;
    f->limit_ns = limit_ns;
    f->skip = skip;
    f->round_done = round_done;
    f->release = release;
    f->opaque = opaque;
    f->timer = timer_new_ns(QEMU_CLOCK_REALTIME, source_flush_round, f);
    source_flush_round(f);
    return f;
}

void source_flush_stop(SourceFlush *f)
{
    if (f && !f->stopped) {
        timer_del(f->timer);
        f->stopped = true;
        if (!f->pending) {
            f->release(f->opaque);
        }
    }
}

bool source_flush_idle(SourceFlush *f)
{
    return !f || !f->pending;
}

void source_flush_free(SourceFlush *f)
{
    if (f) {
        source_flush_unref(f);
    }
}

bool source_flush_done(SourceFlush *f)
{
    return qatomic_read(&f->done);
}
