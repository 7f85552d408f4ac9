# SPDX-License-Identifier: GPL-2.0-or-later
"""
The ways to migrate that are compared.  They react to QEMU's events, so that
the command that follows an event is sent at once; a check each second is only
a fallback.
"""

import os
import re
import time
from pathlib import Path

from guestlib import migrate
from guestlib.vm import VM

QUIET = 1.0                     # seconds without an event, then look again


class EventDriven:
    """For subclasses of migrate.Migration."""

    more_capabilities: tuple[str, ...] = ()
    parameters: dict = {}

    def _prepare(self) -> None:
        """max-bandwidth 0 on both sides, and what is compared."""
        for vm in (self.source, self.destination):
            vm.qmp.cmd('migrate-set-capabilities', capabilities=[
                {'capability': name, 'state': True}
                for name in (*self.capabilities, *self.more_capabilities)])
            vm.qmp.cmd('migrate-set-parameters',
                       {'max-bandwidth': 0, **self.parameters})

    def _until(self, condition, on_progress, what: str, limit: float = 120):
        deadline = time.monotonic() + limit
        while not (result := condition()):
            for status in ('failed', 'cancelled'):
                if self._event('MIGRATION', status=status):
                    raise migrate.MigrationError(
                        f'{status}: {self._look() and self._error}')
            if time.monotonic() > deadline:
                raise migrate.MigrationError(f'{what}: not within {limit} s')
            self.source.qmp.wait_any(QUIET)
        return result


class OneSocket(EventDriven, migrate.OneSocket):
    """RAM and disks over one connection."""


class TwoSockets(EventDriven, migrate.TwoSockets):
    """An NBD server, mirrors with the options of the series, and migration."""

    def start(self) -> None:
        self._begin()
        qmp = self.source.qmp
        for disk in self.disks:
            qmp.cmd('blockdev-add', {
                'node-name': self._target(disk), 'driver': 'nbd',
                'server': self._nbd, 'export': disk.name, 'discard': 'unmap'})
            qmp.cmd('blockdev-mirror', {
                'job-id': migrate.job_name(disk), 'device': disk.name,
                'target': self._target(disk), 'sync': 'full',
                'copy-mode': 'background'})


class RamOnly(EventDriven, migrate.Migration):
    """A guest without disks."""

    name = 'RAM only'

    def listen(self) -> None:
        self._listen_main([self._main_channel()])

    def run(self, on_progress=lambda progress: None) -> migrate.Outcome:
        self._from = self.source.qmp.mark()
        self._began = time.time()
        self.source.qmp.cmd('migrate', channels=[self._main_channel()])
        resumed = self._finish(on_progress)
        return self._outcome(self._began, resumed)


def with_settings(way: type, name: str, capabilities: tuple[str, ...] = (),
                  **parameters) -> type:
    """A way with capabilities and parameters ("_" for "-")."""
    return type(way.__name__, (way,), {
        'name': name, 'more_capabilities': capabilities,
        'parameters': {key.replace('_', '-'): value
                       for key, value in parameters.items()}})


def cpu_seconds(vm: VM) -> float:
    """CPU that QEMU has used, without that of the guest's processors."""
    ticks = os.sysconf('SC_CLK_TCK')
    folder = Path(f'/proc/{vm.pid}')
    total = _cpu_ticks(folder / 'stat')
    for task in (folder / 'task').iterdir():
        try:
            if (task / 'comm').read_text().startswith('CPU '):
                total -= _cpu_ticks(task / 'stat')
        except OSError:                 # it has just ended
            pass
    return total / ticks


def _cpu_ticks(path: Path) -> int:
    """utime and stime; the name before them may contain anything."""
    fields = re.sub(r'.*\)', '', path.read_text()).split()
    return int(fields[11]) + int(fields[12])
