#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""
usage: delay.py NAMESPACE NAMESPACE MBIT DELAY_MS

Connects two network namespaces by tun devices named bench0, with a bandwidth
and a delay in each direction; prints "ready".  Packets are large, so that
this process keeps up with 1 Gb/s.
"""

import ctypes
import fcntl
import os
import select
import struct
import subprocess
import sys
import time
from collections import deque

MTU = 32000
QUEUE_S = 0.2                   # what would wait longer is dropped
TUNSETIFF = 0x400454ca
IFF_TUN, IFF_NO_PI = 1, 0x1000
CLONE_NEWNET = 0x40000000
BATCH = 64                      # packets before the other direction's turn


def open_tun(namespace):
    """A tun device in a namespace; enters it."""
    libc = ctypes.CDLL(None, use_errno=True)
    with open(f'/run/netns/{namespace}', encoding='ascii') as handle:
        if libc.setns(handle.fileno(), CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f'setns {namespace}')
    tun = os.open('/dev/net/tun', os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(tun, TUNSETIFF,
                struct.pack('16sH', b'bench0', IFF_TUN | IFF_NO_PI))
    subprocess.run(['ip', 'link', 'set', 'bench0', 'mtu', str(MTU),
                    'txqueuelen', '1000'], check=True)
    return tun


class Direction:
    """Packets on their way from one device to the other."""

    def __init__(self, source, target, rate, delay):
        self.source, self._target = source, target
        self._rate, self._delay = rate, delay
        self._packets = deque()         # (time to deliver, packet)
        self._free = 0.0                # when the link is

    @property
    def due(self):
        """When the first packet arrives, or None."""
        return self._packets[0][0] if self._packets else None

    def take(self):
        """Read what was sent."""
        for _ in range(BATCH):
            try:
                packet = os.read(self.source, MTU)
            except BlockingIOError:
                return
            now = time.monotonic()
            self._free = max(self._free, now)
            if self._free - now > QUEUE_S:
                continue
            self._free += len(packet) / self._rate
            self._packets.append((self._free + self._delay, packet))

    def deliver(self):
        """Write what has arrived."""
        while self._packets and self._packets[0][0] <= time.monotonic():
            try:
                os.write(self._target, self._packets.popleft()[1])
            except OSError:             # as a full network card
                pass


def main():
    """Forwards until the process is killed."""
    a, b = map(open_tun, sys.argv[1:3])
    rate = float(sys.argv[3]) * 1e6 / 8
    delay = float(sys.argv[4]) / 1000
    directions = [Direction(a, b, rate, delay), Direction(b, a, rate, delay)]
    print('ready', flush=True)
    while True:
        due = [each.due for each in directions if each.due is not None]
        wait = max(0, min(due) - time.monotonic()) if due else None
        ready = select.select([a, b], [], [], wait)[0]
        for each in directions:
            if each.source in ready:
                each.take()
            each.deliver()


if __name__ == '__main__':
    main()
