# SPDX-License-Identifier: GPL-2.0-or-later
"""The relay of the qtests (mux-relay), which commits the faults that it is given."""

import contextlib
import subprocess
import threading
import time
from pathlib import Path

PROGRAM = 'tests/qtest/migration/mux-relay'


class RelayError(Exception):
    """It did not start; the text has its own message."""


def _text(address: dict) -> str:
    if address['type'] == 'unix':
        return f'unix:{address["path"]}'
    return f'{address["host"]}:{address["port"]}'


class Relay:
    """
    Between a source and the address of a destination.  `address` is where
    the source has to connect to; faults are those of mux-relay-fault.h.
    """

    def __init__(self, build: Path, listen: dict, connect: dict,
                 faults: list[str]):
        argv = [str(build / PROGRAM), '--listen', _text(listen),
                '--connect', _text(connect)]
        for fault in faults:
            argv += ['--fault', fault]
        self._process = subprocess.Popen(
            argv, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT)
        first = self._process.stdout.readline().split()
        if first[:1] != ['listening']:
            self.close()
            raise RelayError(f'mux-relay: {" ".join(first)}')
        self.address = dict(listen)
        if listen['type'] == 'inet':
            self.address['port'] = first[1].rpartition(':')[2]
        self.said: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def add(self, fault: str) -> None:
        """One more fault, from now on."""
        try:
            self._process.stdin.write(fault + '\n')
            self._process.stdin.flush()
        except (OSError, ValueError):   # it has ended with its connection
            pass

    def do(self, fault: str, wait: float) -> None:
        """The same, which is to happen at once, and wait until it has."""
        self.add(fault)
        self.fired(wait, fault)

    def fired(self, wait: float = 0, fault: str = '') -> bool:
        """
        Whether the fault, or any, has happened.  What came of it may be seen
        before the relay's word is read: wait so many seconds for that.
        """
        deadline = time.monotonic() + wait
        while True:
            more = self._reader.is_alive() and time.monotonic() < deadline
            if any(line.startswith(f'fired {fault}') for line in self.said):
                return True
            if not more:
                return False
            time.sleep(0.01)

    def close(self) -> None:
        self._process.kill()
        with contextlib.suppress(BrokenPipeError), self._process:
            pass                # it closes stdin, maybe with a fault unsent

    def _read(self) -> None:
        for line in self._process.stdout:
            self.said.append(line.strip())
