/*
 * Messages on stream `control` of a multiplexed migration, as text
 *
 * Makes the text of a message and reads it, and sees to it that each side
 * uses only what the other one knows: section "control" of
 * docs/interop/migration-mux.rst.  Never touches a channel.
 *
 * A set of names, GHashTable *, has the kinds of message and the members that
 * a side knows, such as "offer" and "offer.disks.size".
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef MIGRATION_CONTROL_MESSAGE_H
#define MIGRATION_CONTROL_MESSAGE_H

#include "qapi/qapi-types-migration-control.h"
#include "qobject/qdict.h"

#define MUX_CONTROL_HEADER_SIZE     4
#define MUX_CONTROL_MESSAGE_MAX     (64 * 1024)     /* text of one, bytes */
#define MUX_CONTROL_NESTING_MAX     8               /* objects and arrays */
#define MUX_CONTROL_UNACCEPTED_MAX  (256 * 1024)    /* until `accepted` */
#define MUX_CONTROL_LIFETIME_MAX    (1024 * 1024)   /* of one direction */

/* What this implementation knows; belongs to this file. */
GHashTable *control_names_own(void);

/* The names of a message of type `knows`; to be freed by the caller. */
GHashTable *control_names_new(const strList *names);

/* Is @name in @names, or implied? */
bool control_names_has(GHashTable *names, const char *name);

/* Does @peer know all that this implementation needs?  @side: who that is. */
bool control_names_suffice(GHashTable *peer, const char *side, Error **errp);

/*
 * Leave in @message, which has a type, only what is in @known.
 *
 * Returns: NULL; or a name that the message requires and that is not in @known,
 *          to be freed
 */
char *control_message_reduce(QDict *message, GHashTable *known);

/*
 * The text of @message, for a peer that knows @peer.  Optional members that the
 * peer does not know are left out; it is an error if @message requires one.
 *
 * Returns: the text, to be freed, with its length in *@len; NULL with @errp set
 */
char *control_message_encode(const MigrationControl *message, GHashTable *peer,
                             const char *side, size_t *len, Error **errp);

/*
 * The message in the @len bytes of @text, of which what is not in @known is
 * dropped; it is an error if the message requires that.
 *
 * Returns: the message, to be freed with qapi_free_MigrationControl(); NULL
 *          without an error if its kind is not known; NULL with @errp set
 */
MigrationControl *control_message_decode(const char *text, size_t len,
                                         GHashTable *known, const char *side,
                                         Error **errp);

#endif
