/*
 * Relay for tests of the migration multiplexer: what it does wrong, and where
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "qemu/cutils.h"
#include "migration/mux-relay-fault.h"

typedef struct FaultInfo {
    const char *name;
    bool has_value;
    unsigned dir;               /* if not said */
} FaultInfo;

static const FaultInfo fault_info[] = {
    [MUX_FAULT_CUT] = { "cut", false, MUX_DIR_BOTH },
    [MUX_FAULT_RESET] = { "reset", false, MUX_DIR_BOTH },
    [MUX_FAULT_HALF_CLOSE] = { "half-close", false, MUX_DIR_TO },
    [MUX_FAULT_SILENCE] = { "silence", false, MUX_DIR_BOTH },
    [MUX_FAULT_DELAY] = { "delay", true, MUX_DIR_BOTH },
    [MUX_FAULT_THROTTLE] = { "throttle", true, MUX_DIR_BOTH },
    [MUX_FAULT_HEAL] = { "heal", false, MUX_DIR_BOTH },
    [MUX_FAULT_FLIP] = { "flip", false, 0 },
};

static bool parse_number(const char *value, uint64_t *n, Error **errp)
{
    if (!value || parse_uint_full(value, 10, n) < 0) {
        error_setg(errp, "'%s' is not a number", value ?: "");
        return false;
    }
    return true;
}

static bool parse_kind(MuxFault *f, const char *name, const char *value,
                       Error **errp)
{
    for (unsigned i = 0; i < ARRAY_SIZE(fault_info); i++) {
        if (g_str_equal(name, fault_info[i].name)) {
            f->kind = i;
            f->dir = fault_info[i].dir;
            if (fault_info[i].has_value) {
                return parse_number(value, &f->value, errp);
            }
            if (value) {
                error_setg(errp, "'%s' takes no value", name);
                return false;
            }
            return true;
        }
    }
    error_setg(errp, "there is no fault '%s'", name);
    return false;
}

static bool parse_dir(const char *value, unsigned *dir, Error **errp)
{
    static const char *const names[] = { "to", "from", "both" };

    for (unsigned i = 0; value && i < ARRAY_SIZE(names); i++) {
        if (g_str_equal(value, names[i])) {
            *dir = i + 1;
            return true;
        }
    }
    error_setg(errp, "'%s' is not a direction", value ?: "");
    return false;
}

static void clear_name(MuxFrameName *name)
{
    g_clear_pointer(&name->type, g_free);
    g_clear_pointer(&name->stream, g_free);
}

static bool parse_name(MuxFrameName *name, const char *value, Error **errp)
{
    const char *colon = value ? strchr(value, ':') : NULL;

    if (!value) {
        error_setg(errp, "the name of a type of frame is missing");
        return false;
    }
    clear_name(name);
    name->type = colon ? g_strndup(value, colon - value) : g_strdup(value);
    name->stream = g_strdup(colon ? colon + 1 : NULL);
    return true;
}

static bool parse_nth_or_bit(unsigned *field, const char *value, Error **errp)
{
    uint64_t n;

    if (!parse_number(value, &n, errp)) {
        return false;
    }
    *field = n;
    return true;
}

static bool parse_key(MuxFault *f, const char *key, const char *value,
                      Error **errp)
{
    if (g_str_equal(key, "dir")) {
        return parse_dir(value, &f->dir, errp);
    }
    if (g_str_equal(key, "in")) {
        return parse_dir(value, &f->in, errp);
    }
    if (g_str_equal(key, "at")) {
        return parse_number(value, &f->at, errp);
    }
    if (g_str_equal(key, "frame")) {
        return parse_name(&f->frame, value, errp);
    }
    if (g_str_equal(key, "after")) {
        return parse_name(&f->after, value, errp);
    }
    if (g_str_equal(key, "nth")) {
        return parse_nth_or_bit(&f->nth, value, errp);
    }
    if (g_str_equal(key, "byte")) {
        f->byte = MUX_FAULT_MIDDLE;
        return !g_strcmp0(value, "mid") || parse_number(value, &f->byte, errp);
    }
    if (g_str_equal(key, "bit")) {
        return parse_nth_or_bit(&f->bit, value, errp);
    }
    error_setg(errp, "there is no key '%s'", key);
    return false;
}

static bool fault_check(const MuxFault *f, Error **errp)
{
    if (f->in == MUX_DIR_BOTH) {
        error_setg(errp, "a place is in one direction");
    } else if (f->frame.type && f->at != MUX_FAULT_NOWHERE) {
        error_setg(errp, "'at' and 'frame' exclude each other");
    } else if (f->after.type && !f->frame.type) {
        error_setg(errp, "'after' needs 'frame'");
    } else if (f->kind == MUX_FAULT_FLIP && mux_fault_is_immediate(f)) {
        error_setg(errp, "'flip' needs a place");
    } else if (f->kind == MUX_FAULT_FLIP && f->dir) {
        error_setg(errp, "'flip' has no 'dir'");
    } else if (f->kind == MUX_FAULT_THROTTLE && !f->value) {
        error_setg(errp, "no bytes per second: that is 'silence'");
    } else if (!f->nth || f->bit > 7) {
        error_setg(errp, "'nth' counts from 1, 'bit' from 0 to 7");
    } else {
        return true;
    }
    return false;
}

MuxFault *mux_fault_parse(const char *text, Error **errp)
{
    g_auto(GStrv) words = g_strsplit(text, ",", -1);
    MuxFault *f = g_new0(MuxFault, 1);
    bool ok = words[0] != NULL;

    f->text = g_strdup(text);
    f->in = MUX_DIR_TO;
    f->at = MUX_FAULT_NOWHERE;
    f->nth = 1;
    if (!ok) {
        error_setg(errp, "a fault begins with its kind");
    }
    for (unsigned i = 0; ok && words[i]; i++) {
        char *value = strchr(words[i], '=');

        if (value) {
            *value++ = 0;
        }
        ok = i ? parse_key(f, words[i], value, errp)
               : parse_kind(f, words[i], value, errp);
    }
    if (!ok || !fault_check(f, errp)) {
        error_prepend(errp, "fault '%s': ", text);
        mux_fault_free(f);
        return NULL;
    }
    return f;
}

void mux_fault_free(MuxFault *f)
{
    g_free(f->text);
    clear_name(&f->frame);
    clear_name(&f->after);
    g_free(f);
}

bool mux_fault_is_immediate(const MuxFault *f)
{
    return !f->frame.type && f->at == MUX_FAULT_NOWHERE;
}

static bool name_matches(const MuxFrameName *name, const MuxFrames *frame)
{
    return (g_str_equal(name->type, "any") ||
            g_str_equal(name->type, frame->type)) &&
           (!name->stream ||
            g_pattern_match_simple(name->stream, frame->stream ?: ""));
}

void mux_fault_see_frame(MuxFault *f, unsigned in, const MuxFrames *frame,
                         uint64_t offset)
{
    if (f->after.type) {
        if (name_matches(&f->after, frame)) {
            clear_name(&f->after);
        }
        return;
    }
    if (!f->frame.type || f->in != in || !f->nth ||
        !name_matches(&f->frame, frame)) {
        return;
    }
    if (--f->nth == 0) {
        f->at = offset + (f->byte == MUX_FAULT_MIDDLE ? frame->length / 2
                                                      : f->byte);
    }
}
