# SPDX-License-Identifier: GPL-2.0-or-later
"""
QEMU's QEMUMachine with the extensions that these tests need.

QEMU's packages must be in sys.path before this is imported: see
machine_class().
"""

import logging
import tempfile
import threading
import time
from pathlib import Path

# pylint: disable=import-error
from qemu.machine import QEMUMachine
from qemu.machine.machine import QEMUMachineError
from qemu.qmp import ExecuteError
from qemu.qmp import QMPError as ClientError

from .qmp import QMPError

REPLY_TIMEOUT = 60              # seconds, on a busy machine
POLL = 0.1

# Some tests kill the process, so do not warn about that
logging.getLogger('qemu.machine').addHandler(logging.NullHandler())


class Machine(QEMUMachine):
    """
    A QEMU process with its monitor and, if requested, its console, over socket
    pairs.  Not thread-safe.  End it with kill(), even if launch() failed.

    `events` only grows: call mark() before an action, and pass the result to
    wait_event() to wait for an event of that action.
    """

    def __init__(self, build: Path, name: str, arguments: list[str],
                 wrapper: tuple[str, ...] = (), log_dir: Path | None = None):
        super().__init__(str(build / 'qemu-system-x86_64'), arguments,
                         wrapper, name, tempfile.gettempdir(),
                         log_dir=log_dir and str(log_dir))
        self.events: list[dict] = []

    @property
    def pid(self) -> int:
        """The pid of the process, even after it has ended."""
        return self._subp.pid

    def launch(self) -> None:
        """Start it.  Raises QMPError."""
        try:
            super().launch()
        except QEMUMachineError as err:
            raise QMPError(f'{self._name}: {err}') from None

    def cmd(self, cmd: str, args_dict=None, conv_keys=None, **args):
        """Run a command and return its result.  Raises QMPError."""
        try:
            return super().cmd(cmd, args_dict, conv_keys, **args)
        except ExecuteError as err:
            why = str(err)
        except TimeoutError:
            why = f'no reply within {REPLY_TIMEOUT} s'
        except (ClientError, QEMUMachineError):
            why = 'QEMU is gone'
        raise QMPError(f'{self._name}: {cmd}: {why}')

    def mark(self) -> int:
        """The position after the last event so far."""
        self.wait_any(0)
        return len(self.events)

    def find_event(self, name: str, since: int = 0, **data) -> dict | None:
        """
        The first event with that name and those data members, or None.  Finds
        all events that were emitted before the reply to the last command.
        """
        self.wait_any(0)
        for event in self.events[since:]:
            if event['event'] == name and all(
                    event['data'].get(k) == v for k, v in data.items()):
                return event
        return None

    def wait_event(self, name: str, since: int = 0, timeout: float = 60,
                   **data) -> dict:
        """Wait for an event.  Raises QMPError on timeout."""
        deadline = time.monotonic() + timeout
        over = False
        while not (event := self.find_event(name, since, **data)):
            if over:
                raise QMPError(f'{self._name}: no event {name} {data}')
            # Events of a process that has ended can still be read
            over = not self.is_running() or time.monotonic() > deadline
            self.wait_any(POLL)
        return event

    def wait_any(self, timeout: float) -> None:
        """Wait for any event, for `timeout` seconds at most."""
        try:
            new = self.get_qmp_events(float(timeout))
        except (TimeoutError, QEMUMachineError):    # none; closed
            return
        self.events += [{'data': {}, **event} for event in new]

    def wait_end(self, timeout: float) -> int | None:
        """Wait for the process to end.  Returns its status, or None."""
        deadline = time.monotonic() + timeout
        while self.is_running() and time.monotonic() < deadline:
            time.sleep(POLL / 10)
        return self.exitcode()

    def _post_launch(self) -> None:
        """Apply REPLY_TIMEOUT to a QEMU that hangs at start, too."""
        self._qmp.settimeout(REPLY_TIMEOUT)
        watchdog = threading.Timer(REPLY_TIMEOUT, self._subp.kill)
        watchdog.start()
        try:
            super()._post_launch()
        except BaseException:
            self._subp.kill()   # else launch() would wait for it
            raise
        finally:
            watchdog.cancel()
