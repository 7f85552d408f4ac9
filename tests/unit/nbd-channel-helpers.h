/*
 * Helpers for tests of NBD on a QIOChannel
 *
 * Client and server share the process and its main loop, connected by a
 * socket pair.  The exported node "disk" is a temporary file.
 *
 * This work is licensed under the terms of the GNU GPL, version 2 or
 * later.  See the COPYING file in the top-level directory.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef TESTS_NBD_CHANNEL_HELPERS_H
#define TESTS_NBD_CHANNEL_HELPERS_H

#include "block/nbd-channel.h"
#include "qemu/units.h"
#include "system/block-backend.h"

#define DISK_SIZE (4 * MiB)
#define CHUNK (64 * KiB)

typedef struct Connection {
    QIOChannel *client;
    QIOChannel *server;
    NBDPrivateExport *exp;
    BlockDriverState *disk;

    bool ready;             /* negotiation is over */
    NBDExportInfo info;
    Error *ready_err;

    int closed;             /* calls of the closed callback */
    bool released;          /* the node had no BlockBackend then */
    Error *closed_err;
} Connection;

/* Call first and last in main() */
void nbd_test_init(int *argc, char ***argv);
int nbd_test_run(void);

void wait_for(bool *flag);
void socket_pair(QIOChannel **a, QIOChannel **b);

/* Create the temporary file anew, all zeroes, and open it as "disk" */
BlockDriverState *open_disk(bool writable);
/* The file has @byte there */
void assert_disk(int64_t offset, size_t len, uint8_t byte);

/* Export @c->disk to @c->client as @name; it has not said anything yet */
void connection_export_node(Connection *c, const char *name);
/* The same with a new disk */
void connection_export(Connection *c, const char *name);
/* Negotiate for export @name: begin; begin and wait until @c->ready */
void connection_negotiate_begin(Connection *c, const char *name);
void connection_negotiate(Connection *c, const char *name);
/* All that, and a BlockBackend for the node "client" */
BlockBackend *connection_open(Connection *c);
/* Let go of the node with NBD_CMD_DISC */
void connection_close(Connection *c, BlockBackend *blk);
/*
 * Wait until the export has ended, whose cause must contain @cause or be
 * NULL, and free @c.  Nothing may be left.
 */
void connection_end(Connection *c, const char *cause);

/* Write CHUNK bytes, expecting @expect */
void write_pattern(BlockBackend *blk, int64_t offset, uint8_t byte,
                   int expect);
/* Use every kind of request and look at the result on the disk */
void do_io(BlockBackend *blk);
/* The node must fail from now on, quickly, and close */
void assert_dead(BlockBackend *blk);

#endif
