/*
 * Helpers of unit tests: nodes that hold requests, so that the order of events
 * is the same in each run
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "block-hold-helpers.h"
#include "qapi/error.h"
#include "qemu/coroutine.h"

BlockDriverState *hold_new_node(BlockDriver *driver, const char *name,
                                int64_t size)
{
    BlockDriverState *bs = bdrv_new_open_driver(driver, name, BDRV_O_RDWR,
                                                &error_abort);

    bs->total_sectors = size / BDRV_SECTOR_SIZE;
    return bs;
}

void coroutine_fn hold_request(Coroutine **held)
{
    qatomic_store_release(held, qemu_coroutine_self());
    qemu_coroutine_yield();
}

void hold_release(Coroutine **held)
{
    Coroutine *co = qatomic_xchg(held, NULL);

    g_assert(co);
    aio_co_wake(co);
}

static void hold_set_flag_bh(void *opaque)
{
    qatomic_store_release((int *)opaque, true);
}

void hold_run_iothread(IOThread *iothread)
{
    /* Bottom halves of one round may run in any order, so make it two */
    for (int i = 0; i < 2; i++) {
        int done = false;

        aio_bh_schedule_oneshot(iothread_get_aio_context(iothread),
                                hold_set_flag_bh, &done);
        while (!qatomic_load_acquire(&done)) {
            g_usleep(100);
        }
    }
}
