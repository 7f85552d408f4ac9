/*
 * Stand-in for QEMU's header, for building the engine alone against GLib
 *
 * Big-endian loads and stores at any alignment, with the names, arguments and
 * return types that QEMU gives them.  Never laid on QEMU's tree.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef BSWAP_H
#define BSWAP_H

static inline void stw_be_p(void *ptr, uint16_t v)
{
    v = GUINT16_TO_BE(v);
    memcpy(ptr, &v, sizeof(v));
}

static inline void stl_be_p(void *ptr, uint32_t v)
{
    v = GUINT32_TO_BE(v);
    memcpy(ptr, &v, sizeof(v));
}

static inline void stq_be_p(void *ptr, uint64_t v)
{
    v = GUINT64_TO_BE(v);
    memcpy(ptr, &v, sizeof(v));
}

static inline int lduw_be_p(const void *ptr)
{
    uint16_t v;

    memcpy(&v, ptr, sizeof(v));
    return GUINT16_FROM_BE(v);
}

static inline int ldl_be_p(const void *ptr)
{
    uint32_t v;

    memcpy(&v, ptr, sizeof(v));
    return GUINT32_FROM_BE(v);
}

static inline uint64_t ldq_be_p(const void *ptr)
{
    uint64_t v;

    memcpy(&v, ptr, sizeof(v));
    return GUINT64_FROM_BE(v);
}

#endif
