/*
 * Unit tests for the messages on stream `control` of a multiplexed migration
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "qobject/qjson.h"
#include "migration/control-message.h"

#define OFFER_DISK  "'disks': [ { 'name': 'disk0', 'size': 4096 } ]"
#define OFFER_MAIN  "'channels': [ { 'kind': 'main', 'count': 1 } ]"
#define OFFER       "{ 'type': 'offer', " OFFER_DISK ", " OFFER_MAIN

/* A later version, which knows more */
static GHashTable *later_names(void)
{
    GHashTable *names = g_hash_table_new(g_str_hash, g_str_equal);
    GHashTableIter iter;
    gpointer name;

    g_hash_table_iter_init(&iter, control_names_own());
    while (g_hash_table_iter_next(&iter, &name, NULL)) {
        g_hash_table_add(names, name);
    }
    g_hash_table_add(names, (char *)"offer.disks.bitmap");
    g_hash_table_add(names, (char *)"offer.disks.bitmap.granularity");
    g_hash_table_add(names, (char *)"offer.colour");
    g_hash_table_add(names, (char *)"farewell");
    return names;
}

static void assert_reduced(const char *text, GHashTable *known,
                           const char *expected, const char *missing)
{
    QObject *value = qobject_from_json(text, &error_abort);
    QObject *wanted = qobject_from_json(expected, &error_abort);
    g_autofree char *found =
        control_message_reduce(qobject_to(QDict, value), known);

    g_assert_cmpstr(found, ==, missing);
    if (!missing) {
        g_assert_true(qobject_is_equal(value, wanted));
    }
    qobject_unref(value);
    qobject_unref(wanted);
}

/* What the later version says to this one, and this one to the later */
static void test_two_versions(void)
{
    g_autoptr(GHashTable) later = later_names();
    GHashTable *own = control_names_own();
    const char *plain = OFFER " }";
    const char *rich = "{ 'type': 'offer', 'colour': [ 'red' ], 'disks': "
        "[ { 'name': 'disk0', 'size': 4096, "
        "'bitmap': { 'granularity': 1 } } ], " OFFER_MAIN " }";
    const char *strict = OFFER ", 'colour': 'red', 'require': "
        "[ 'disks.size', 'colour' ] }";

    assert_reduced(plain, later, plain, NULL);
    assert_reduced(plain, own, plain, NULL);
    assert_reduced(rich, later, rich, NULL);
    assert_reduced(rich, own, plain, NULL);
    assert_reduced(strict, later, strict, NULL);
    assert_reduced(strict, own, plain, "offer.colour");

    g_assert_true(control_names_suffice(later, "source", &error_abort));
    g_assert_true(control_names_suffice(own, "source", &error_abort));
}

static void test_names_lack(void)
{
    g_autoptr(GHashTable) names = later_names();
    Error *err = NULL;

    g_hash_table_remove(names, "offer.machine-type");
    g_assert_true(control_names_suffice(names, "destination", &error_abort));
    g_hash_table_remove(names, "offer.disks.size");
    g_assert_false(control_names_suffice(names, "destination", &err));
    g_assert_cmpstr(error_get_pretty(err), ==,
                    "the destination does not know 'offer.disks.size'");
    error_free(err);
}

static const struct {
    const char *name, *text, *error;
} faults[] = {
    { "nothing", "", "a message is not a JSON object" },
    { "not-json", "{ 'type': ", "a message is not a JSON object" },
    { "two", "{ 'type': 'loaded' } { }", "a message is not a JSON object" },
    { "array", "[]", "a message is not a JSON object" },
    { "no-type", "{ 'kind': 'loaded' }", "a message has no type" },
    { "type-of-number", "{ 'type': 1 }", "a message has no type" },
    { "nested", "{ 'type': 'loaded', 'a': [[[[[[[[ ]]]]]]]] }",
      "a message is nested more than 8 deep" },
    { "lacking", "{ 'type': 'offer', " OFFER_DISK " }",
      "message 'offer': Parameter 'channels' is missing" },
    { "lacking-inside", "{ 'type': 'offer', 'disks': [ { 'name': 'disk0' } ], "
      OFFER_MAIN " }",
      "message 'offer': Parameter 'disks[0].size' is missing" },
    { "wrong-type", "{ 'type': 'accepted', 'token': 1 }",
      "message 'accepted': Invalid parameter type for 'token', "
      "expected: string" },
    { "required", OFFER ", 'require': [ 'colour' ] }",
      "the source requires the unknown member 'offer.colour'" },
    { "required-unprintable", OFFER ", 'require': [ 'a\\u001bb' ] }",
      "the source requires the unknown member 'offer.a?b'" },
    { "require-no-list", OFFER ", 'require': 1 }",
      "message 'offer': Invalid parameter type for 'require', "
      "expected: array" },
};

static void test_fault(const void *opaque)
{
    const char *text = faults[GPOINTER_TO_UINT(opaque)].text;
    Error *err = NULL;

    g_assert_null(control_message_decode(text, strlen(text),
                                         control_names_own(), "source", &err));
    g_assert_nonnull(err);
    g_assert_cmpstr(error_get_pretty(err), ==,
                    faults[GPOINTER_TO_UINT(opaque)].error);
    error_free(err);
}

static void test_zero_byte(void)
{
    static const char text[] = "{ 'type': 'loaded' }\0";
    Error *err = NULL;

    g_assert_null(control_message_decode(text, sizeof(text),
                                         control_names_own(), "source", &err));
    g_assert_nonnull(err);
    error_free(err);
}

/* `knows` is reduced, too, although it is not in the lists of names. */
static void test_extended_knows(void)
{
    const char *text = "{ 'type': 'knows', 'names': [ 'offer' ], "
                       "'colours': [ 'red' ], 'require': [ 'names' ] }";
    g_autoptr(MigrationControl) message =
        control_message_decode(text, strlen(text), control_names_own(),
                               "source", &error_abort);

    g_assert_cmpstr(message->u.knows.names->value, ==, "offer");
    g_assert_null(message->u.knows.names->next);
}

static void test_unknown_kind(void)
{
    const char *text = "{ 'type': 'farewell', 'colour': { }, "
                       "'require': [ 'colour' ] }";

    g_assert_null(control_message_decode(text, strlen(text),
                                         control_names_own(), "source",
                                         &error_abort));
}

static void test_deepest(void)
{
    const char *text = "{ 'type': 'loaded', 'a': [[[[[[[ ]]]]]]] }";
    g_autoptr(MigrationControl) message =
        control_message_decode(text, strlen(text), control_names_own(),
                               "destination", &error_abort);

    g_assert_cmpint(message->type, ==, MIGRATION_CONTROL_TYPE_LOADED);
}

static MigrationControl *new_offer(const char *machine)
{
    MigrationControl *message = g_new0(MigrationControl, 1);
    MigrationControlDisk *disk = g_new0(MigrationControlDisk, 1);
    MigrationControlChannels *main = g_new0(MigrationControlChannels, 1);

    disk->name = g_strdup("disk0");
    disk->size = UINT64_MAX;
    main->kind = g_strdup("main");
    main->count = 1;
    message->type = MIGRATION_CONTROL_TYPE_OFFER;
    QAPI_LIST_PREPEND(message->u.offer.disks, disk);
    QAPI_LIST_PREPEND(message->u.offer.channels, main);
    message->u.offer.machine_type = g_strdup(machine);
    return message;
}

static MigrationControl *through(const MigrationControl *message,
                                 GHashTable *peer)
{
    size_t len;
    g_autofree char *text = control_message_encode(message, peer,
                                                   "destination", &len,
                                                   &error_abort);

    return control_message_decode(text, len, peer, "source", &error_abort);
}

static void test_through(void)
{
    g_autoptr(MigrationControl) offer = new_offer("pc");
    g_autoptr(MigrationControl) copy = through(offer, control_names_own());
    MigrationControlOffer *o = &copy->u.offer;

    g_assert_cmpint(copy->type, ==, MIGRATION_CONTROL_TYPE_OFFER);
    g_assert_cmpstr(o->disks->value->name, ==, "disk0");
    g_assert_cmpuint(o->disks->value->size, ==, UINT64_MAX);
    g_assert_null(o->disks->next);
    g_assert_cmpstr(o->channels->value->kind, ==, "main");
    g_assert_cmpuint(o->channels->value->count, ==, 1);
    g_assert_cmpstr(o->machine_type, ==, "pc");
}

static void test_left_out(void)
{
    g_autoptr(GHashTable) names = later_names();
    g_autoptr(MigrationControl) offer = new_offer("pc");
    g_autoptr(MigrationControl) copy = NULL;
    Error *err = NULL;
    size_t len;

    g_hash_table_remove(names, "offer.machine-type");
    copy = through(offer, names);
    g_assert_null(copy->u.offer.machine_type);

    offer->has_require = true;
    QAPI_LIST_PREPEND(offer->require, g_strdup("machine-type"));
    g_assert_null(control_message_encode(offer, names, "destination", &len,
                                         &err));
    g_assert_cmpstr(error_get_pretty(err), ==,
                    "the destination does not know 'offer.machine-type'");
    error_free(err);
}

static void test_too_long(void)
{
    g_autofree char *machine = g_strnfill(MUX_CONTROL_MESSAGE_MAX, 'x');
    g_autoptr(MigrationControl) offer = new_offer(machine);
    Error *err = NULL;
    size_t len;

    g_assert_null(control_message_encode(offer, control_names_own(),
                                         "destination", &len, &err));
    g_assert_nonnull(strstr(error_get_pretty(err), "the limit is 65536"));
    error_free(err);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    for (size_t i = 0; i < G_N_ELEMENTS(faults); i++) {
        g_autofree char *path = g_strdup_printf("/control-message/fault/%s",
                                                faults[i].name);

        g_test_add_data_func(path, GUINT_TO_POINTER(i), test_fault);
    }
    g_test_add_func("/control-message/two-versions", test_two_versions);
    g_test_add_func("/control-message/names-lack", test_names_lack);
    g_test_add_func("/control-message/zero-byte", test_zero_byte);
    g_test_add_func("/control-message/extended-knows", test_extended_knows);
    g_test_add_func("/control-message/unknown-kind", test_unknown_kind);
    g_test_add_func("/control-message/deepest", test_deepest);
    g_test_add_func("/control-message/through", test_through);
    g_test_add_func("/control-message/left-out", test_left_out);
    g_test_add_func("/control-message/too-long", test_too_long);
    return g_test_run();
}
