/*
 * Migration multiplexer: error texts for the peer
 *
 * Errors of the block layer name files.  The peer learns which stream is meant,
 * and why, but not what is where on this host.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "session.h"

/* Returns: the characters one of which ends what begins after @before */
static const char *peer_text_closing(char before)
{
    switch (before) {
    case '\'':
        return "'";
    case '"':
        return "\"";
    case '[':
        return "]";
    case '(':
        return ")";
    case ' ':
    case '=':
    case ':':
        return " ,;'\")]";
    default:
        return NULL;
    }
}

char *mux_peer_text(const char *text)
{
    GString *sent = g_string_new(NULL);
    char before = ' ';

    while (*text) {
        const char *closing = peer_text_closing(before);

        if (*text == '/' && closing) {
            g_string_append(sent, "(file)");
            text += strcspn(text, closing);
            before = '/';
        } else {
            before = *text++;
            g_string_append_c(sent, before);
        }
    }
    return g_string_free(sent, false);
}
