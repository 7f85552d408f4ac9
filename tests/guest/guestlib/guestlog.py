# SPDX-License-Identifier: GPL-2.0-or-later
"""What the guest said on its serial console, whichever QEMU it ran in."""

import re
import select
import socket
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass

LINE = re.compile(r'(READY|W|M|E) ?(.*)')


@dataclass(frozen=True)
class Ack:
    """An acknowledged write; its index in the list is its number."""

    when: float                 # time.monotonic() of the line's arrival
    side: str                   # the QEMU whose console it came from
    took: float = 0.0           # seconds, as the guest measured it


class GuestLog:
    """
    Reads the consoles of all QEMUs that the guest may run in as one text:
    a line that begins at the source may end at the destination.  Attach
    them in the order in which the guest visits them.
    """

    def __init__(self, disks: int):
        self.acks: list[list[Ack]] = [[] for _ in range(disks)]
        self.scans: list[Ack] = []
        self.faults: list[str] = []
        self.other: list[str] = []
        self._next = [0] * disks        # the number that has to come
        self._reboots = [0] * disks     # that may still show
        self._counts = [Counter() for _ in range(disks)]    # by side
        self._sides: list[tuple[str, socket.socket]] = []
        self._text = b''
        self._changed = threading.Condition()     # re-entrant
        self._closing = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def attach(self, side: str, sock: socket.socket) -> None:
        """Read one more console."""
        sock.setblocking(False)
        self._sides.append((side, sock))

    def close(self) -> None:
        """Take what is left to read, then end."""
        self._closing = True
        self._thread.join()

    def wait(self, condition, timeout: float) -> bool:
        """Wait until a condition on what was read holds."""
        with self._changed:
            return self._changed.wait_for(condition, timeout)

    def expect_reboot(self) -> None:
        """The guest is about to begin again, with the same records."""
        with self._changed:
            self._reboots = [number + 1 for number in self._reboots]

    def least(self, side: str) -> int:
        """
        The number of writes in this QEMU of the disk that has fewest; without
        disks, more than any.
        """
        with self._changed:
            return min((count[side] for count in self._counts),
                       default=sys.maxsize)

    def most(self) -> int:
        """The number of writes in all of the disk that has most."""
        with self._changed:
            return max(map(len, self.acks))

    def longest_pause(self, since: float) -> float:
        """Most seconds between two acknowledgements of any one disk."""
        pauses = [0.0]
        for acks in self.acks:
            times = [ack.when for ack in acks if ack.when >= since]
            pauses += [b - a for a, b in zip(times, times[1:])]
        return max(pauses)

    def latencies(self, since: float, until: float) -> list[float]:
        """How long the writes took that were acknowledged in that time."""
        with self._changed:
            return [ack.took for acks in self.acks for ack in acks
                    if since <= ack.when < until]

    def _run(self) -> None:
        try:
            self._read()
        except Exception as error:      # else the guest would seem silent
            with self._changed:
                self.faults.append(f'the consoles are read no more: {error!r}')
                self._changed.notify_all()

    def _read(self) -> None:
        while True:
            closing = self._closing
            sides = list(self._sides)
            ready = select.select([sock for _, sock in sides], [], [], 0.05)[0]
            if ready:
                # A QEMU says nothing once the next one has begun: read the
                # latest first, and what is read of the others is complete.
                chunks = [(side, self._drain(side, sock))
                          for side, sock in reversed(sides)]
                for side, data in reversed(chunks):
                    self._take(side, data)
            elif closing:
                return

    def _drain(self, side: str, sock: socket.socket) -> bytes:
        chunks = []
        try:
            while data := sock.recv(65536):
                chunks.append(data)
            self._sides.remove((side, sock))
        except BlockingIOError:
            pass
        except OSError:
            self._sides.remove((side, sock))
        return b''.join(chunks)

    def _take(self, side: str, data: bytes) -> None:
        now = time.monotonic()
        *lines, self._text = (self._text + data).split(b'\n')
        with self._changed:
            for line in lines:
                self._line(side, now, line.decode(errors='replace').strip())
            self._changed.notify_all()

    def _line(self, side: str, now: float, line: str) -> None:
        match = LINE.fullmatch(line)
        kind, rest = match.groups() if match else ('', '')
        if kind == 'W' and re.fullmatch(r'\d \d+( \d+)?', rest):
            disk, sequence, *took = map(int, rest.split())
            if sequence == 0 < self._reboots[disk]:
                self._reboots[disk] -= 1
            elif sequence != self._next[disk]:
                self.faults.append(
                    f'disk{disk}: write {sequence} acknowledged after '
                    f'{self._next[disk] - 1}, console of {side}')
            self._next[disk] = sequence + 1
            self._counts[disk][side] += 1
            ack = Ack(now, side, sum(took) / 1e6)
            self.acks[disk] += [ack] * (
                sequence + 1 - len(self.acks[disk]))
        elif kind == 'M':
            self.scans.append(Ack(now, side))
        elif kind == 'E':
            self.faults.append(f'guest, console of {side}: {rest}')
        elif kind != 'READY' and line:
            self.other.append(f'{side}: {line}')
