/*
 * Messages on stream `control` of a multiplexed migration, as text
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "qapi/qapi-visit-migration-control.h"
#include "qapi/qobject-input-visitor.h"
#include "qapi/qobject-output-visitor.h"
#include "qobject/qdict.h"
#include "qobject/qjson.h"
#include "qobject/qlist.h"
#include "qobject/qstring.h"
#include "control-message.h"
#include "migration/mux/frame.h"

/*
 * All that docs/interop/migration-mux.rst names, except `type`, `require` and
 * the message `knows`.  A peer need not know what is optional.
 */
static const struct {
    const char *name;
    bool optional;
} control_names[] = {
    { "offer" },
    { "offer.disks" },
    { "offer.disks.name" },
    { "offer.disks.size" },
    { "offer.channels" },
    { "offer.channels.kind" },
    { "offer.channels.count" },
    { "offer.machine-type", true },
    { "accepted" },
    { "accepted.token" },
    { "rejected" },
    { "rejected.reasons" },
    { "rejected.reasons.stream", true },
    { "rejected.reasons.text" },
    { "phase", true },
    { "phase.phase", true },
    { "loaded" },
    { "committed" },
    { "running" },
};

GHashTable *control_names_own(void)
{
    static GHashTable *own;

    if (!own) {
        own = g_hash_table_new(g_str_hash, g_str_equal);
        for (size_t i = 0; i < ARRAY_SIZE(control_names); i++) {
            g_hash_table_add(own, (char *)control_names[i].name);
        }
    }
    return own;
}

GHashTable *control_names_new(const strList *names)
{
    GHashTable *set = g_hash_table_new_full(g_str_hash, g_str_equal, g_free,
                                            NULL);

    for (; names; names = names->next) {
        g_hash_table_add(set, g_strdup(names->value));
    }
    return set;
}

bool control_names_has(GHashTable *names, const char *name)
{
    /* `knows` is sent before the names of the peer are known */
    return g_str_equal(name, "knows") || g_str_equal(name, "knows.names") ||
        g_hash_table_contains(names, name);
}

bool control_names_suffice(GHashTable *peer, const char *side, Error **errp)
{
    for (size_t i = 0; i < ARRAY_SIZE(control_names); i++) {
        if (!control_names[i].optional &&
            !g_hash_table_contains(peer, control_names[i].name)) {
            error_setg(errp, "the %s does not know '%s'", side,
                       control_names[i].name);
            return false;
        }
    }
    return true;
}

/* --- what a side does not know --- */

static char *control_name(const char *container, const char *member)
{
    return g_strdup_printf("%s.%s", container, member);
}

static void control_prune(QObject *value, const char *name, GHashTable *known);

static void control_prune_dict(QDict *dict, const char *name,
                               GHashTable *known)
{
    const QDictEntry *entry = qdict_first(dict);

    while (entry) {
        const QDictEntry *next = qdict_next(dict, entry);
        const char *key = qdict_entry_key(entry);
        g_autofree char *member = control_name(name, key);

        if (control_names_has(known, member)) {
            control_prune(qdict_entry_value(entry), member, known);
        } else {
            qdict_del(dict, key);
        }
        entry = next;
    }
}

static void control_prune(QObject *value, const char *name, GHashTable *known)
{
    QDict *dict = qobject_to(QDict, value);
    QList *list = qobject_to(QList, value);
    QListEntry *entry;

    if (dict) {
        control_prune_dict(dict, name, known);
    } else if (list) {
        QLIST_FOREACH_ENTRY(list, entry) {
            control_prune(qlist_entry_obj(entry), name, known);
        }
    }
}

/* Returns: a name that @message requires and @known lacks, to be freed */
static char *control_missing(const QDict *message, const char *type,
                             GHashTable *known)
{
    QList *require = qobject_to(QList, qdict_get(message, "require"));
    const QListEntry *entry;

    if (!require) {
        return NULL;
    }
    QLIST_FOREACH_ENTRY(require, entry) {
        QString *member = qobject_to(QString, qlist_entry_obj(entry));
        g_autofree char *name = member ?
            control_name(type, qstring_get_str(member)) : NULL;

        if (name && !control_names_has(known, name)) {
            return mux_text_sanitize((uint8_t *)name, strlen(name));
        }
    }
    return NULL;
}

char *control_message_reduce(QDict *message, GHashTable *known)
{
    g_autofree char *type = g_strdup(qdict_get_str(message, "type"));
    char *missing = control_missing(message, type, known);
    QObject *require = qobject_ref(qdict_get(message, "require"));

    qdict_del(message, "type");
    qdict_del(message, "require");
    control_prune_dict(message, type, known);
    qdict_put_str(message, "type", type);
    if (require) {
        qdict_put_obj(message, "require", require);
    }
    return missing;
}

/* --- text --- */

static unsigned control_depth(const QObject *value)
{
    QDict *dict = qobject_to(QDict, value);
    QList *list = qobject_to(QList, value);
    unsigned depth = 0;

    if (dict) {
        for (const QDictEntry *e = qdict_first(dict); e;
             e = qdict_next(dict, e)) {
            depth = MAX(depth, control_depth(qdict_entry_value(e)));
        }
    } else if (list) {
        const QListEntry *e;

        QLIST_FOREACH_ENTRY(list, e) {
            depth = MAX(depth, control_depth(qlist_entry_obj(e)));
        }
    }
    return dict || list ? depth + 1 : 0;
}

static QDict *control_parse(const char *text, size_t len, Error **errp)
{
    g_autofree char *terminated = g_strndup(text, len);
    QObject *value = NULL;
    QDict *message;

    if (strlen(terminated) == len) {
        value = qobject_from_json(terminated, NULL);
    }
    message = qobject_to(QDict, value);
    if (!message) {
        error_setg(errp, "a message is not a JSON object");
    } else if (control_depth(value) > MUX_CONTROL_NESTING_MAX) {
        error_setg(errp, "a message is nested more than %d deep",
                   MUX_CONTROL_NESTING_MAX);
    } else if (!qdict_get_try_str(message, "type")) {
        error_setg(errp, "a message has no type");
    } else {
        return message;
    }
    qobject_unref(value);
    return NULL;
}

static QDict *control_to_dict(const MigrationControl *message)
{
    MigrationControl *visited = (MigrationControl *)message;
    QObject *value;
    Visitor *v = qobject_output_visitor_new(&value);

    visit_type_MigrationControl(v, NULL, &visited, &error_abort);
    visit_complete(v, &value);
    visit_free(v);
    return qobject_to(QDict, value);
}

char *control_message_encode(const MigrationControl *message, GHashTable *peer,
                             const char *side, size_t *len, Error **errp)
{
    g_autoptr(QDict) dict = control_to_dict(message);
    g_autofree char *missing = control_message_reduce(dict, peer);
    GString *json;

    if (missing) {
        error_setg(errp, "the %s does not know '%s'", side, missing);
        return NULL;
    }
    json = qobject_to_json(QOBJECT(dict));
    *len = json->len;
    if (json->len > MUX_CONTROL_MESSAGE_MAX) {
        error_setg(errp, "message '%s' has %zu bytes, the limit is %d",
                   MigrationControlType_str(message->type), json->len,
                   MUX_CONTROL_MESSAGE_MAX);
        g_string_free(json, true);
        return NULL;
    }
    return g_string_free(json, false);
}

static MigrationControl *control_from_dict(QDict *dict, Error **errp)
{
    ERRP_GUARD();
    Visitor *v = qobject_input_visitor_new(QOBJECT(dict));
    MigrationControl *message = NULL;

    if (!visit_type_MigrationControl(v, NULL, &message, errp)) {
        error_prepend(errp, "message '%s': ", qdict_get_str(dict, "type"));
    }
    visit_free(v);
    return message;
}

MigrationControl *control_message_decode(const char *text, size_t len,
                                         GHashTable *known, const char *side,
                                         Error **errp)
{
    g_autoptr(QDict) dict = control_parse(text, len, errp);
    g_autofree char *missing = NULL;
    const char *type;

    if (!dict) {
        return NULL;
    }
    type = qdict_get_str(dict, "type");
    if (!control_names_has(known, type)) {
        return NULL;
    }
    missing = control_message_reduce(dict, known);
    if (missing) {
        error_setg(errp, "the %s requires the unknown member '%s'", side,
                   missing);
        return NULL;
    }
    return control_from_dict(dict, errp);
}
