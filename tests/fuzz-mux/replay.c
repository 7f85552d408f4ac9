/*
 * Runs inputs that a fuzzer has found, without the fuzzer
 *
 * usage: replay CORPUS, with folders bytes and operations in CORPUS
 *        replay bytes|operations FILE...
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "tests/unit/mux-fuzz.h"

typedef void Target(const uint8_t *data, size_t size);

static const struct {
    const char *name;
    Target *run;
} targets[] = {
    { "bytes", mux_fuzz_bytes },
    { "operations", mux_fuzz_operations },
};

static const char *corpus;

static void replay_file(Target *run, const char *path)
{
    g_autofree char *content = NULL;
    g_autoptr(GError) err = NULL;
    size_t len;

    g_test_message("%s", path);
    g_file_get_contents(path, &content, &len, &err);
    g_assert_no_error(err);
    run((uint8_t *)content, len);
}

static int compare_names(gconstpointer a, gconstpointer b)
{
    return strcmp(*(const char **)a, *(const char **)b);
}

/* The names in @folder, in the same order on every machine */
static GPtrArray *list_folder(const char *folder)
{
    GPtrArray *names = g_ptr_array_new_with_free_func(g_free);
    g_autoptr(GError) err = NULL;
    GDir *dir = g_dir_open(folder, 0, &err);
    const char *name;

    g_assert_no_error(err);
    while ((name = g_dir_read_name(dir))) {
        g_ptr_array_add(names, g_strdup(name));
    }
    g_dir_close(dir);
    g_ptr_array_sort(names, compare_names);
    return names;
}

static void test_corpus(const void *opaque)
{
    unsigned i = GPOINTER_TO_UINT(opaque);
    g_autofree char *folder = g_build_filename(corpus, targets[i].name, NULL);
    g_autoptr(GPtrArray) names = list_folder(folder);

    g_assert_cmpuint(names->len, >, 0);
    for (unsigned k = 0; k < names->len; k++) {
        g_autofree char *path = g_build_filename(
            folder, g_ptr_array_index(names, k), NULL);

        replay_file(targets[i].run, path);
    }
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);

    for (unsigned i = 0; i < G_N_ELEMENTS(targets); i++) {
        g_autofree char *path = g_strdup_printf("/mux/corpus/%s",
                                                targets[i].name);

        if (argc > 2 && g_str_equal(argv[1], targets[i].name)) {
            for (int k = 2; k < argc; k++) {
                replay_file(targets[i].run, argv[k]);
            }
            return 0;
        }
        g_test_add_data_func(path, GUINT_TO_POINTER(i), test_corpus);
    }
    g_assert_cmpint(argc, ==, 2);
    corpus = argv[1];
    return g_test_run();
}
