/*
 * QTest helpers for migration over a multiplexed connection: the catalogue of
 * faults
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "migration/mux-catalogue.h"

#define CATALOGUE "tests/data/migration/mux-faults.ini"
#define CAUSES "causes"
#define PHASE "phase "
#define ANY "any"

static GKeyFile *catalogue;

/* --- the file --- */

bool mux_catalogue_load(void)
{
    if (!catalogue) {
        g_autoptr(GError) err = NULL;

        catalogue = g_key_file_new();
        if (!g_key_file_load_from_file(catalogue, CATALOGUE, G_KEY_FILE_NONE,
                                       &err)) {
            g_test_message("%s: %s", CATALOGUE, err->message);
            g_clear_pointer(&catalogue, g_key_file_free);
        }
    }
    return catalogue != NULL;
}

/* Returns: an interned string; NULL if the key is absent */
static const char *get(const char *group, const char *key)
{
    g_autofree char *value = g_key_file_get_string(catalogue, group, key,
                                                   NULL);

    return value ? g_intern_string(value) : NULL;
}

static GStrv split(const char *value)
{
    GStrv list = g_strsplit(value ?: "", ";", -1);

    for (unsigned i = 0; list[i]; i++) {
        g_strstrip(list[i]);
    }
    return list;
}

static bool is_fault(const char *group)
{
    return !g_str_equal(group, CAUSES) && !g_str_has_prefix(group, PHASE);
}

void mux_catalogue_foreach(void (*func)(const char *fault, const char *phase))
{
    g_auto(GStrv) groups = g_key_file_get_groups(catalogue, NULL);

    for (unsigned i = 0; groups[i]; i++) {
        g_auto(GStrv) phases = split(get(groups[i], "phases"));

        for (unsigned p = 0; is_fault(groups[i]) && phases[p]; p++) {
            func(g_intern_string(groups[i]), g_intern_string(phases[p]));
        }
    }
}

/* --- phases and faults --- */

const char *mux_phase_get(const char *phase, const char *key)
{
    g_autofree char *group = g_strconcat(PHASE, phase, NULL);

    return get(group, key) ?: "";
}

bool mux_phase_is(const char *phase, const char *key)
{
    return g_str_equal(mux_phase_get(phase, key), "true");
}

const char *mux_fault_get(const char *fault, const char *phase,
                          const char *key)
{
    g_autofree char *own_key = g_strdup_printf("%s.%s", key, phase);

    return get(fault, own_key) ?: get(fault, key);
}

bool mux_fault_is(const char *fault, const char *phase, const char *key)
{
    return !g_strcmp0(mux_fault_get(fault, phase, key), "true");
}

GStrv mux_fault_list(const char *fault, const char *phase, const char *key)
{
    return split(mux_fault_get(fault, phase, key));
}

/* --- texts --- */

/* Replace the variables in the text of a cause. */
static char *expand(const char *text, bool source)
{
    const struct {
        const char *word, *meaning;
    } words[] = {
        { "$peer", source ? "destination" : "source" },
        { "$ECANCELED", g_strerror(ECANCELED) },
        { "$ECONNRESET", g_strerror(ECONNRESET) },
        { "$EIO", g_strerror(EIO) },
        { "$EMFILE", g_strerror(EMFILE) },
        { "$ENOSPC", g_strerror(ENOSPC) },
        { "$EPIPE", g_strerror(EPIPE) },
    };
    char *result = g_strdup(text);

    for (unsigned i = 0; i < ARRAY_SIZE(words); i++) {
        g_auto(GStrv) parts = g_strsplit(result, words[i].word, -1);

        g_free(result);
        result = g_strjoinv(words[i].meaning, parts);
    }
    g_assert(!strchr(result, '$'));
    return result;
}

GStrv mux_fault_texts(const char *fault, const char *phase, const char *side)
{
    g_autofree char *key = g_strconcat(side, "-says", NULL);
    g_auto(GStrv) causes = NULL;
    g_autoptr(GPtrArray) texts = g_ptr_array_new();

    if (!g_strcmp0(mux_fault_get(fault, phase, key) ?: ANY, ANY)) {
        return NULL;
    }
    causes = mux_fault_list(fault, phase, key);
    for (unsigned i = 0; causes[i]; i++) {
        g_auto(GStrv) some = split(get(CAUSES, causes[i]));

        g_assert(some[0]);
        for (unsigned j = 0; some[j]; j++) {
            g_ptr_array_add(texts, expand(some[j],
                                          g_str_equal(side, "source")));
        }
    }
    g_ptr_array_add(texts, NULL);
    return (GStrv)g_ptr_array_free(g_steal_pointer(&texts), false);
}

/* --- check of the keys --- */

static const char *const phase_keys[] = {
    "at", "back", "destination", "destination-later", "hold", "source",
    "status", "stopped", "waits", NULL
};

static const char *const fault_keys[] = {
    "act", "before", "campaign", "campaign-destination-says",
    "campaign-source-says", "campaign-with", "destination",
    "destination-disks", "destination-error", "destination-error1",
    "destination-says",
    "destination-size", "end", "exit-on-error", "hang", "later", "phases",
    "relay", "relay-always", "relay-back", "relay-then", "set-state", "slow",
    "source-disks", "source-error", "source-says", "then", NULL
};

static void check_key(const char *group, const char *key)
{
    g_auto(GStrv) parts = g_strsplit(key, ".", 2);
    const char *const *keys = is_fault(group) ? fault_keys : phase_keys;

    g_test_message("[%s] %s", group, key);
    g_assert(g_strv_contains(keys, parts[0]));
    if (parts[1]) {
        g_autofree char *phase = g_strconcat(PHASE, parts[1], NULL);

        g_assert(is_fault(group));
        g_assert(g_key_file_has_group(catalogue, phase));
    }
    if (g_str_has_suffix(parts[0], "-says")) {
        g_auto(GStrv) causes = split(get(group, key));

        for (unsigned i = 0; causes[i]; i++) {
            g_assert(g_str_equal(causes[i], ANY) ||
                     g_key_file_has_key(catalogue, CAUSES, causes[i], NULL));
        }
    }
}

static void check_is_one_of(const char *fault, const char *phase,
                            const char *key, const char *const *values)
{
    const char *value = mux_fault_get(fault, phase, key);

    g_test_message("%s in %s: %s", fault, phase, key);
    g_assert(!value || g_strv_contains(values, value));
}

/* A mistake must not make a row pass for want of something to check. */
static void check_cell(const char *fault, const char *phase)
{
    static const char *const ends[] = {
        "failed", "cancelled", "completed", "given-up", "source-gone",
        "not-handed-over", NULL
    };
    static const char *const destinations[] = {
        "failed", "cut-off", "gone", "rejected", NULL
    };
    static const char *const flags[] = { "true", "false", NULL };
    g_autofree char *group = g_strconcat(PHASE, phase, NULL);
    const char *end = mux_fault_get(fault, phase, "end") ?: "failed";

    g_assert(g_key_file_has_group(catalogue, group));
    check_is_one_of(fault, phase, "end", ends);
    check_is_one_of(fault, phase, "destination", destinations);
    check_is_one_of(fault, phase, "later", flags);
    check_is_one_of(fault, phase, "slow", flags);
    check_is_one_of(fault, phase, "exit-on-error", flags);
    if (g_str_equal(end, "failed") || g_str_equal(end, "given-up")) {
        g_assert(mux_fault_get(fault, phase, "source-says"));
    }
    if (!g_str_equal(end, "completed") &&
        !mux_fault_get(fault, phase, "destination") &&
        !mux_phase_is(phase, "waits")) {
        g_assert(mux_fault_get(fault, phase, "destination-says"));
    }
    if (mux_fault_get(fault, phase, "relay-back")) {
        g_assert(*mux_phase_get(phase, "back"));
    }
}

static void check_causes(void)
{
    g_auto(GStrv) names = g_key_file_get_keys(catalogue, CAUSES, NULL, NULL);

    for (unsigned i = 0; names[i]; i++) {
        g_auto(GStrv) texts = split(get(CAUSES, names[i]));

        g_test_message("cause %s", names[i]);
        g_assert(texts[0]);
        for (unsigned t = 0; texts[t]; t++) {
            g_assert(*texts[t]);
        }
    }
}

void mux_catalogue_check(void)
{
    g_auto(GStrv) groups = g_key_file_get_groups(catalogue, NULL);

    for (unsigned i = 0; groups[i]; i++) {
        g_auto(GStrv) keys = g_key_file_get_keys(catalogue, groups[i], NULL,
                                                 NULL);

        for (unsigned k = 0; keys[k] && !g_str_equal(groups[i], CAUSES); k++) {
            check_key(groups[i], keys[k]);
        }
    }
    check_causes();
    mux_catalogue_foreach(check_cell);
}
