# SPDX-License-Identifier: GPL-2.0-or-later
"""
What is on a disk: the data from before the guest's start, and its records.

The first part, half of it unless configured otherwise, is filled with a pattern
in which each page names its disk and its own number; the rest is zero.  The guest then writes records
of one page, numbered from 0, each to a place of its own (init.c,
record_offset()), so that whatever was acknowledged can be looked up.
"""

import random
import struct
import zlib

PAGE = 4096
BLOCK = 1 << 20                 # unit of writing and comparing
BLOCK_PAGES = BLOCK // PAGE
CHUNK_RECORDS = 16
CHUNK_STRIDE = 6367
RECORD_MAGIC = 0x44524345525f5447
RECORD_HEAD = struct.Struct('<QQII')
STAMP = struct.Struct('<IIQ')
_NOISE = random.Random(20).randbytes(BLOCK)


def fill_block(disk: int, block: int) -> bytearray:
    """The pattern of 1 MiB number `block`; no two pages are alike."""
    turn = (block * 37 + disk * 11) % BLOCK_PAGES * PAGE
    data = bytearray(_NOISE[turn:] + _NOISE[:turn])
    for page in range(BLOCK_PAGES):
        STAMP.pack_into(data, page * PAGE, disk, 0x50474152,
                        block * BLOCK_PAGES + page)
    return data


def initial_block(disk: int, block: int, filled: int) -> bytes | bytearray:
    """
    What 1 MiB number `block` held before the guest's start, when the first
    `filled` had the pattern.
    """
    if block < filled:
        return fill_block(disk, block)
    return bytes(BLOCK)


def record_page(sequence: int, size: int) -> int:
    """The page of a disk of `size` bytes that a record is written to."""
    chunks = size // (CHUNK_RECORDS * PAGE)
    chunk = sequence // CHUNK_RECORDS * CHUNK_STRIDE & (chunks - 1)
    return chunk * CHUNK_RECORDS + sequence % CHUNK_RECORDS


def record_capacity(size: int) -> int:
    """How many records the guest writes: the load has the other half."""
    return size // PAGE // 2


def record_fault(data: bytes, disk: int, sequence: int) -> str | None:
    """What is wrong with a page that should hold this record, or None."""
    magic, got_sequence, got_disk, crc = RECORD_HEAD.unpack_from(data)
    if magic != RECORD_MAGIC:
        return 'no record there'
    if (got_disk, got_sequence) != (disk, sequence):
        return f'holds record {got_sequence} of disk {got_disk}'
    head = RECORD_HEAD.pack(magic, got_sequence, got_disk, 0)
    if zlib.crc32(data[RECORD_HEAD.size:], zlib.crc32(head)) != crc:
        return 'checksum differs'
    return None
