# SPDX-License-Identifier: GPL-2.0-or-later
"""
Which sockets do some processes have?  The kernel's tables, over and over.

A thread reads /proc while a migration runs and notes every socket that
was not there when it began.  A TCP connection shorter than the interval
still shows afterwards, as the kernel keeps it in TIME_WAIT.
"""

import os
import re
import socket
import threading
import time
from dataclasses import dataclass, field

INTERVAL = 0.02
TCP_LISTEN, TCP_TIME_WAIT, TCP_CLOSE = '0A', '06', '07'
UNIX_LISTEN = 0x10000           # __SO_ACCEPTCON
UNIX_CONNECTED = '03'
SOCKET_LINK = re.compile(r'socket:\[(\d+)\]')


@dataclass(frozen=True)
class Socket:
    """A socket of one of the processes."""

    owner: str
    kind: str                   # tcp or unix
    listening: bool
    local: str
    remote: str = ''

    def __str__(self) -> str:
        what = 'listens on' if self.listening else 'has'
        ends = f'{self.local} <-> {self.remote}' if self.remote else self.local
        return f'{self.owner} {what} {self.kind} {ends}'


@dataclass
class Sightings:
    """All that was seen; `longest_gap` tells how well it was watched."""

    sockets: dict[int, Socket] = field(default_factory=dict)    # by inode
    time_wait: set[tuple[str, str]] = field(default_factory=set)
    samples: int = 0
    longest_gap: float = 0.0

    def listeners(self) -> list[Socket]:
        return [s for s in self.sockets.values() if s.listening]

    def connections(self) -> list[Socket]:
        return [s for s in self.sockets.values() if not s.listening]


def _address(text: str) -> str:
    """'0100007F:1F90' of /proc/net/tcp* as '127.0.0.1:8080'."""
    host, port = text.split(':')
    words = bytes.fromhex(host)
    raw = b''.join(words[i:i + 4][::-1] for i in range(0, len(words), 4))
    family = socket.AF_INET if len(raw) == 4 else socket.AF_INET6
    name = socket.inet_ntop(family, raw).removeprefix('::ffff:')
    return f'{name}:{int(port, 16)}'


def _rows(table: str, pid: int | str = 'self') -> list[list[str]]:
    """The rows of /proc/PID/net/`table`."""
    try:
        with open(f'/proc/{pid}/net/{table}', encoding='ascii',
                  errors='replace') as lines:
            return [line.split() for line in list(lines)[1:]]
    except FileNotFoundError:       # no IPv6
        return []


def process_sockets(pid: int) -> set[int]:
    """The inodes of a process' sockets; empty when it is gone."""
    inodes = set()
    try:
        for fd in os.listdir(f'/proc/{pid}/fd'):
            try:
                link = os.readlink(f'/proc/{pid}/fd/{fd}')
            except FileNotFoundError:
                continue
            match = SOCKET_LINK.fullmatch(link)
            if match:
                inodes.add(int(match.group(1)))
    except FileNotFoundError:
        pass
    return inodes


def listening_ports(pid: int) -> set[int]:
    """The TCP ports on which a process listens."""
    inodes = process_sockets(pid)
    return {int(_address(row[1]).rpartition(':')[2])
            for table in ('tcp', 'tcp6') for row in _rows(table, pid)
            if row[3] == TCP_LISTEN and int(row[9]) in inodes}


class NetWatch:
    """
    Watches from the call until stop().  `processes` maps names to pids.
    """

    def __init__(self, processes: dict[str, int]):
        self._processes = processes
        self._sightings = Sightings()
        self._known = {inode for pid in processes.values()
                       for inode in process_sockets(pid)}
        self._old_time_wait = set(self._time_wait())
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> Sightings:
        """Look a last time and return what was seen."""
        self._stop.set()
        self._thread.join()
        self._sample()
        self._sightings.time_wait = (set(self._time_wait()) -
                                     self._old_time_wait)
        return self._sightings

    def _watch(self) -> None:
        last = time.monotonic()
        while not self._stop.wait(INTERVAL):
            self._sample()
            now = time.monotonic()
            seen = self._sightings
            seen.samples += 1
            seen.longest_gap = max(seen.longest_gap, now - last)
            last = now

    def _sample(self) -> None:
        owners = {}
        for name, pid in self._processes.items():
            for inode in process_sockets(pid) - self._known:
                owners[inode] = name
        if not owners:
            return
        found = self._tcp(owners) | self._unix(owners)
        self._sightings.sockets.update(found)

    @staticmethod
    def _tcp(owners: dict[int, str]) -> dict[int, Socket]:
        return {int(row[9]): Socket(
                    owners[int(row[9])], 'tcp', row[3] == TCP_LISTEN,
                    _address(row[1]),
                    '' if row[3] == TCP_LISTEN else _address(row[2]))
                for table in ('tcp', 'tcp6') for row in _rows(table)
                if int(row[9]) in owners and row[3] != TCP_CLOSE}

    @staticmethod
    def _unix(owners: dict[int, str]) -> dict[int, Socket]:
        found = {}
        for row in _rows('unix'):
            inode, listening = int(row[6]), bool(int(row[3], 16) & UNIX_LISTEN)
            if inode in owners and (listening or row[5] == UNIX_CONNECTED):
                path = row[7] if len(row) > 7 else '(no name)'
                found[inode] = Socket(owners[inode], 'unix', listening, path)
        return found

    @staticmethod
    def _time_wait() -> list[tuple[str, str]]:
        return [(_address(row[1]), _address(row[2]))
                for table in ('tcp', 'tcp6') for row in _rows(table)
                if row[3] == TCP_TIME_WAIT]


def one_tcp_connection(seen: Sightings, source: str, destination: str,
                       port: int) -> list[str]:
    """What speaks against: one connection, to this one listening port."""
    faults = [str(s) for s in seen.listeners()
              if (s.owner, s.kind) != (destination, 'tcp') or
              s.local.rpartition(':')[2] != str(port)]
    ends = {owner: {(s.local, s.remote) for s in seen.connections()
                    if s.owner == owner and s.kind == 'tcp'}
            for owner in (source, destination)}
    faults += [str(s) for s in seen.connections() if s.kind != 'tcp']
    mirrored = {(remote, local) for local, remote in ends[destination]}
    if len(ends[source]) != 1 or ends[source] != mirrored:
        faults += [str(s) for s in seen.connections() if s.kind == 'tcp']
        faults.append(f'{len(ends[source])} TCP connections of {source}, '
                      f'{len(mirrored)} of {destination}')
    past = {frozenset(pair) for pair in seen.time_wait
            if any(end.rpartition(':')[2] == str(port) for end in pair)}
    missed = past - {frozenset(pair) for pair in ends[source]}
    faults += [f'a short connection: {" <-> ".join(pair)}' for pair in missed]
    return faults


def one_unix_connection(seen: Sightings, source: str, destination: str,
                        path: str) -> list[str]:
    """What speaks against: one connection, to this one listening path."""
    faults = [str(s) for s in seen.sockets.values() if s.kind != 'unix']
    faults += [str(s) for s in seen.listeners()
               if (s.owner, s.local) != (destination, path)]
    ends = [s for s in seen.connections() if s.kind == 'unix']
    want = [Socket(source, 'unix', False, '(no name)'),
            Socket(destination, 'unix', False, path)]
    if sorted(map(str, ends)) != sorted(map(str, want)):
        faults += [str(s) for s in ends]
        faults.append(f'{len(ends)} ends of unix connections, not one of '
                      f'{source} and one of {destination}')
    return faults
