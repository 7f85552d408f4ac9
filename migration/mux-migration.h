/*
 * Migration over a multiplexed connection: what migration.c calls
 *
 * The control flow of the source is in mux-source.c and mux-switchover.c, that
 * of the destination in mux-destination.c.  Every function here does nothing,
 * and reports success, when the migration is not multiplexed.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef MIGRATION_MUX_MIGRATION_H
#define MIGRATION_MUX_MIGRATION_H

#include "io/channel.h"
#include "io/task.h"
#include "qapi/qapi-types-migration.h"

typedef struct MigrationState MigrationState;
typedef struct MigrationIncomingState MigrationIncomingState;

/* Milliseconds that what is queued may take to go out when a side lets go. */
#define MIGRATION_MUX_LINGER_MS 5000
/*
 * The same after success, in the background: what a slow network still holds
 * is the guest, and lost if the connection is cut.
 */
#define MIGRATION_MUX_DONE_MS 60000

/*
 * --- source ---
 */

/* Is the migration that is being started multiplexed? */
bool migration_mux_source(MigrationState *s);

/* If it is, where is it?  Any thread, while the migration lasts. */
bool migration_mux_source_phase(MigrationState *s, MigrationPhase *phase);

/*
 * Milliseconds that the destination has for each step of the set-up: the TLS
 * handshake, the stream `main`, the NBD handshakes of all disks.
 */
uint32_t migration_mux_setup_ms(void);

/*
 * Milliseconds that the guest, its writes or the main loop may wait for the
 * destination; 0: no limit.
 */
uint32_t migration_mux_guest_waits_ms(void);

/*
 * Take over the connected (and, if asked for, encrypted) @ioc: HELLO, stream
 * `main`, then the disks; migration_connect() is called when all disks were
 * copied once.  Sets s->to_dst_file, so that from here on a cancellation or a
 * failure ends in migration_cleanup().  Main loop.
 */
void migration_mux_connect(MigrationState *s, QIOChannel *ioc);

/*
 * Open stream @name as one more channel of the migration, as
 * socket_send_channel_create() would open a connection: @func is called, from
 * within, with a completed task whose source is the channel, and keeps the
 * reference that it was made with.  Any thread.
 */
void migration_mux_open_channel(MigrationState *s, const char *name,
                                QIOTaskFunc func, void *opaque);

/*
 * The set-up of the migration thread is complete, which held the BQL at times:
 * send what it has written to `main`.  Migration thread, without the BQL.
 */
void migration_mux_end_setup(MigrationState *s);

/* The state just became CANCELLING: abort the migration. */
void migration_mux_cancel(MigrationState *s);

/*
 * Bytes per millisecond that went into disks since the last call, and that
 * will be free for RAM once the guest is stopped; 0 at the first one.
 * Migration thread.
 */
double migration_mux_disk_bandwidth(MigrationState *s);

/* The parameter max-bandwidth has changed.  Main loop. */
void migration_mux_bandwidth_changed(MigrationState *s);

/*
 * May the guest be stopped, with @ram_pending bytes of RAM left, as far as the
 * disks are concerned?  The first call makes the guest's writes wait for the
 * destination.  Migration thread, without the BQL.
 */
bool migration_mux_can_switchover(MigrationState *s, uint64_t ram_pending);

/*
 * The guest is about to be stopped, which waits for its writes, and these for
 * the destination: see that this has an end.  Migration thread, with the BQL.
 */
void migration_mux_stopping(MigrationState *s);

/*
 * The guest is stopped: complete the disks and wait until the destination has
 * dealt with them, or the time that channel-mux-stop-timeout allows is over.
 * Migration thread, with the BQL, which is released meanwhile: the migration
 * may have been cancelled when this returns.
 */
bool migration_mux_complete_disks(MigrationState *s, Error **errp);

/*
 * Were the disks left alone since, and has nothing failed, as it may have in
 * pre-switchover?  If so, the device state follows, which is bounded in time as
 * well.  Migration thread, with the BQL.
 */
bool migration_mux_disks_unmodified(MigrationState *s, Error **errp);

/*
 * The device state is sent: wait until the destination has loaded it, then hand
 * the guest over and send that to the destination, which waits for it: from now
 * on nothing can fail or cancel the migration.  Migration thread, without the
 * BQL.
 *
 * Returns: false, with the cause recorded, if the guest stays here
 */
bool migration_mux_handover_commit(MigrationState *s);

/*
 * The migration thread has failed, maybe before the main loop could hear why:
 * record what the streams know, as the first cause.
 */
void migration_mux_find_cause(MigrationState *s);

/*
 * The migration has succeeded or failed, its streams are about to be closed:
 * see that the destination hears of a failure before it sees their end.  Main
 * loop or migration thread.
 */
void migration_mux_ending(MigrationState *s);

/*
 * The migration has succeeded, failed or been cancelled.
 *
 * Returns: true if mirrors still exist: migration_cleanup() is called when the
 * last one has ended, which may have to wait for the source's storage.  If
 * false, the caller has to call it.  Main loop.
 */
bool migration_mux_defer_cleanup(MigrationState *s);

/*
 * The migration has ended: with success, or else streams are reset, mirrors
 * cancelled.  The connection closes in the background.  Main loop.
 */
void migration_mux_cleanup(MigrationState *s);

/* Returns: the status that query-migrate reports. */
MigrationStatus migration_mux_status(MigrationState *s);

/*
 * --- destination ---
 */

/* Is the connection that the destination waits for multiplexed? */
bool migration_mux_expected(MigrationIncomingState *mis);

/* Is one there, and where is the migration?  Any thread, while it lasts. */
bool migration_mux_destination_phase(MigrationIncomingState *mis,
                                     MigrationPhase *phase);

/*
 * Is @ioc, which was accepted or has completed its TLS handshake, one too many?
 * Then it is closed.  Main loop.
 */
bool migration_mux_refuses(MigrationIncomingState *mis, QIOChannel *ioc);

/* Take over the connection @ioc, which was not refused.  Main loop. */
void migration_mux_accept(MigrationIncomingState *mis, QIOChannel *ioc);

/*
 * The device state is loaded: check that all disks are complete, tell the
 * source, and wait until it has handed the guest over.  If this fails, the
 * guest must not run here: the source has resumed it, or the connection was
 * lost before the source's answer.
 */
bool coroutine_fn migration_mux_handover_accept(MigrationIncomingState *mis,
                                                Error **errp);

/*
 * Loading failed with *@errp: put the cause that the stream knows in its place
 * where it knows better, and tell the source, before this process exits.
 */
void migration_mux_load_failed(MigrationIncomingState *mis, Error **errp);

/* The incoming migration has ended, well or not.  Main loop. */
void migration_mux_destination_cleanup(MigrationIncomingState *mis);

/*
 * --- both sides: mux-migration.c ---
 */

/*
 * Fill in @phase and @streams, those of the last multiplexed migration when
 * none is in progress.  Main loop.
 */
void migration_mux_info(MigrationInfo *info);

/*
 * @status is about to change from @now to FAILED: delay the event MIGRATION
 * until the clean-up is done, which then sends it.  At the source,
 * query-migrate reports @now until then.  At a destination with exit-on-error
 * nothing is delayed.  Any thread.
 *
 * Returns: false if nothing is delayed: the caller sends the event
 */
bool migration_mux_hold_failed(const MigrationStatus *status,
                               MigrationStatus now);

/* The process is about to exit, whatever the migration was doing. */
void migration_mux_shutdown(void);

/* Is @ioc a stream of a connection, which is where encryption belongs? */
bool migration_mux_is_stream(QIOChannel *ioc);

/*
 * If @ioc is a stream, set *@is_main: is it that of the main channel?  Only its
 * name decides, not the data that the source sends on it.
 */
bool migration_mux_find_channel(MigrationIncomingState *mis, QIOChannel *ioc,
                                bool *is_main);

/*
 * The migration has failed because of @err: say it with the phase.  @err tells
 * the stream by itself.
 *
 * Returns: a new error; NULL if this is how it was cancelled, not a failure
 */
Error *migration_mux_explain(const Error *err);

/* Returns: the part of the @explained error that the peer receives */
Error *migration_mux_bare_cause(const Error *explained);

/*
 * --- the parts of each side that mux-migration.c calls ---
 */

void mux_source_info(MigrationState *s, MigrationInfo *info);
void mux_destination_info(MigrationIncomingState *mis, MigrationInfo *info);
bool mux_source_hold_failed(const MigrationStatus *status, MigrationStatus now);
bool mux_destination_hold_failed(const MigrationStatus *status);
void mux_source_shutdown(MigrationState *s);
void mux_destination_shutdown(MigrationIncomingState *mis);
bool mux_destination_is_main(MigrationIncomingState *mis, QIOChannel *ioc);

#endif
