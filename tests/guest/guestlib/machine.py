# SPDX-License-Identifier: GPL-2.0-or-later
"""
QEMU's QEMUMachine with what these tests ask for beyond it.

Not to be imported before QEMU's packages are found: see machine_class().
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

# That a process was killed is what some tests are about
logging.getLogger('qemu.machine').addHandler(logging.NullHandler())


class Machine(QEMUMachine):
    """
    A QEMU process, its monitor, and maybe its console, over socket pairs.
    For one thread.  Ends with kill(), however far it came.

    `events` only grows; take mark() before the act whose events matter
    and hand it to wait_event().
    """

    def __init__(self, build: Path, name: str, arguments: list[str],
                 wrapper: tuple[str, ...] = (), log_dir: Path | None = None):
        super().__init__(str(build / 'qemu-system-x86_64'), arguments,
                         wrapper, name, tempfile.gettempdir(),
                         log_dir=log_dir and str(log_dir))
        self.events: list[dict] = []

    @property
    def pid(self) -> int:
        """Of the process, even when it has ended."""
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
        """The position behind the last event so far."""
        self.wait_any(0)
        return len(self.events)

    def find_event(self, name: str, since: int = 0, **data) -> dict | None:
        """
        The first event of that name and those data members, if it has come:
        all have that were raised before a command was answered.
        """
        self.wait_any(0)
        for event in self.events[since:]:
            if event['event'] == name and all(
                    event['data'].get(k) == v for k, v in data.items()):
                return event
        return None

    def wait_event(self, name: str, since: int = 0, timeout: float = 60,
                   **data) -> dict:
        """Wait for an event.  Raises QMPError when it does not come."""
        deadline = time.monotonic() + timeout
        over = False
        while not (event := self.find_event(name, since, **data)):
            if over:
                raise QMPError(f'{self._name}: no event {name} {data}')
            # What a QEMU said that is gone is still to be read, too
            over = not self.is_running() or time.monotonic() > deadline
            self.wait_any(POLL)
        return event

    def wait_any(self, timeout: float) -> None:
        """Wait for an event, so long at most."""
        try:
            new = self.get_qmp_events(float(timeout))
        except (TimeoutError, QEMUMachineError):    # none; closed
            return
        self.events += [{'data': {}, **event} for event in new]

    def wait_end(self, timeout: float) -> int | None:
        """Wait for the end of the process; its status, or None."""
        deadline = time.monotonic() + timeout
        while self.is_running() and time.monotonic() < deadline:
            time.sleep(POLL / 10)
        return self.exitcode()

    def _post_launch(self) -> None:
        """Nor does a QEMU that hangs when it starts have more time."""
        self._qmp.settimeout(REPLY_TIMEOUT)
        watchdog = threading.Timer(REPLY_TIMEOUT, self._subp.kill)
        watchdog.start()
        try:
            super()._post_launch()
        except BaseException:
            self._subp.kill()   # else launch() would give it time to end
            raise
        finally:
            watchdog.cancel()
