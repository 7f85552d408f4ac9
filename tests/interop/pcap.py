# SPDX-License-Identifier: GPL-2.0-or-later
"""
A capture file of TCP connections, made from the bytes that their sides have
sent: no privileges are needed, and it can be cut as a test wants it.
"""

import random
import struct
from pathlib import Path

ADDRESSES = {'out': (bytes((10, 0, 0, 1)), 40000),
             'in': (bytes((10, 0, 0, 2)), 4444)}
LINKTYPE_RAW = 101
SYN, PSH, ACK, FIN = 2, 8, 16, 1
SEGMENT = 1448


class Capture:
    """
    The packets of one connection.  Call it with ('in' or 'out', bytes), as the
    tap of a Connection.  'out' has opened the connection; `number` tells it
    from others.
    """

    def __init__(self, number: int = 0, seed: int = 1):
        self.packets: list[bytes] = []
        self._number = number
        self._next = {'in': 1000, 'out': 2000}
        self._random = random.Random(seed)
        self._packet('out', SYN)
        self._packet('in', SYN | ACK)
        self._packet('out', ACK)

    def __call__(self, direction: str, data: bytes) -> None:
        while data:
            size = self._random.choice((1, 3, 17, SEGMENT, SEGMENT, SEGMENT,
                                        SEGMENT, SEGMENT, SEGMENT))
            self.segment(direction, data[:size])
            data = data[size:]

    def segment(self, direction: str, data: bytes) -> None:
        """All in one."""
        self._packet(direction, PSH | ACK, data)

    def repeat_last(self) -> None:
        """As if TCP had sent the packet again."""
        self.packets.append(self.packets[-1])

    def swap_last(self) -> None:
        """As if one packet had overtaken the other."""
        self.packets[-2:] = self.packets[:-3:-1]

    def _packet(self, direction: str, flags: int, data: bytes = b'') -> None:
        other = 'in' if direction == 'out' else 'out'
        (source, source_port), (target, target_port) = (
            ADDRESSES[direction], ADDRESSES[other])
        if direction == 'out':
            source_port += self._number
        else:
            target_port += self._number
        ack = self._next[other] if flags & ACK else 0
        tcp = struct.pack('>HHIIBBHHH', source_port, target_port,
                          self._next[direction] & 0xffffffff, ack, 5 << 4,
                          flags, 65535, 0, 0) + data
        self._next[direction] += len(data) + bool(flags & (SYN | FIN))
        self.packets.append(struct.pack(
            '>BBHHHBBH4s4s', 0x45, 0, 20 + len(tcp), 0, 0, 64, 6, 0, source,
            target) + tcp)


def write(path: Path, packets: list[bytes]) -> None:
    with open(path, 'wb') as file:
        file.write(struct.pack('<IHHIIII', 0xa1b2c3d4, 2, 4, 0, 0, 65535,
                               LINKTYPE_RAW))
        for number, packet in enumerate(packets):
            file.write(struct.pack('<IIII', 1, number, len(packet),
                                   len(packet)) + packet)
