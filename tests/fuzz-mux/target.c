/*
 * A libFuzzer target: MUX_FUZZ_TARGET, one of those in mux-fuzz.h
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "tests/unit/mux-fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    MUX_FUZZ_TARGET(data, size);
    return 0;
}
