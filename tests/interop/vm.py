# SPDX-License-Identifier: GPL-2.0-or-later
"""
A real QEMU for the tests: it runs a guest with a boot sector and two disks, or
waits for it.

The guest only counts timer ticks in its memory, which shows that it runs.
"""

import contextlib
import json
import os
import random
import sys
import tempfile
import time
from pathlib import Path

from muxpeer.connection import PATIENCE

sys.path.append(str(Path(__file__).resolve().parents[1] / 'guest'))
# pylint: disable=wrong-import-position
from guestlib.qmp import QMPError                              # noqa: E402
from guestlib.source import machine_class                      # noqa: E402

DISK_SIZE = 1 << 20
DISKS = ('disk0', 'disk1')
LISTENING = 'setup'             # the status of a destination that waits
ENDS = ('completed', 'failed', 'cancelled')
COUNTER = 0x7e00
# cli; xor ax,ax; mov ds,ax; sti; again: inc dword [COUNTER]; hlt; jmp again
CODE = bytes.fromhex('fa31c08ed8fb66ff06007ef4ebf8')
FIRMWARE = ('qemu-bundle/usr/local/share/qemu', 'pc-bios')
FOLDERS = ('/usr/share/seabios', '/usr/share/qemu')
MACHINE = ('-nodefaults', '-no-user-config', '-accel', 'tcg', '-machine',
           'pc', '-m', '16M')


class QEMU:
    """A process; `with` ends it."""

    def __init__(self, build: Path, folder: Path, name: str,
                 incoming: bool = False):
        self.folder = folder
        argv = [*MACHINE]
        for path in [*(build / name for name in FIRMWARE), *FOLDERS]:
            argv += ['-L', str(path)] if os.path.isdir(path) else []
        for disk in DISKS:
            image = {'driver': 'raw', 'node-name': disk, 'file': {
                'driver': 'file', 'filename': str(self.image(disk))}}
            argv += ['-blockdev', json.dumps(image),
                     '-device', f'ide-hd,drive={disk}']
        self.qmp = machine_class(build)(
            build, name, argv + (['-incoming', 'defer'] if incoming else []))
        self.qmp.launch()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.qmp.kill()

    def quit(self) -> None:
        """
        End it as a user would, so that a leak sanitizer reports.  Raises
        QMPError if it ends badly.
        """
        self.qmp.cmd('quit')
        code = self.qmp.wait_end(PATIENCE)
        if code != 0:
            raise QMPError(f'after quit: exit status {code}')

    def output(self) -> str:
        """What it has printed; only after its end."""
        return self.qmp.get_log() or ''

    def image(self, disk: str) -> Path:
        return self.folder / f'{disk}.img'

    def counter(self) -> int:
        """How far the guest has counted."""
        line = self.qmp.cmd('human-monitor-command',
                            command_line=f'xp /1wx {COUNTER}')
        return int(line.split()[1], 16)

    def wait_for_guest(self) -> None:
        """Wait until the guest counts on.  Raises QMPError."""
        before = self.counter()
        wait_until(lambda: self.counter() > before, 'the guest runs')

    def migrate(self, port: int, disks=DISKS) -> None:
        self.qmp.cmd('migrate', channels=channels(port, disks))

    def listen(self, disks=DISKS) -> int:
        """Wait for a migration; returns the port."""
        self.qmp.cmd('migrate-incoming', channels=channels(0, disks),
                     exit_on_error=False)
        address = self.qmp.cmd('query-migrate')['socket-address'][0]
        return int(address['port'])

    def set_capability(self, name: str, state: bool = True) -> None:
        self.qmp.cmd('migrate-set-capabilities', capabilities=[
            {'capability': name, 'state': state}])

    def descriptors(self) -> int:
        """How many are open."""
        return len(os.listdir(f'/proc/{self.qmp.pid}/fd'))

    def sockets(self) -> int:
        """How many of them are sockets."""
        found = 0
        for entry in Path(f'/proc/{self.qmp.pid}/fd').iterdir():
            with contextlib.suppress(FileNotFoundError):    # closed by now
                found += os.readlink(entry).startswith('socket:')
        return found

    def status(self) -> str:
        return self.qmp.cmd('query-migrate').get('status', 'none')

    def wait_end(self) -> dict:
        """
        Wait for the end of a migration, and until its jobs are gone, which
        may be a little later; returns what query-migrate says.
        """
        wait_until(lambda: self.status() in ENDS and
                   not self.qmp.cmd('query-block-jobs'),
                   'the end of the migration',
                   lambda: self.qmp.cmd('query-migrate'))
        return self.qmp.cmd('query-migrate')

    def wait_success(self) -> None:
        """The same of one that has to succeed.  Raises QMPError."""
        answer = self.wait_end()
        if answer['status'] != 'completed':
            raise QMPError(answer['error-desc'])


def wait_until(condition, what: str, detail=lambda: '') -> None:
    """Raises QMPError if it does not come true."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            raise QMPError(f'in vain waited for: {what} {detail()}')
        time.sleep(0.02)


def channels(port: int, disks) -> list[dict]:
    return [{'channel-type': 'main',
             'addr': {'transport': 'socket', 'type': 'inet',
                      'host': '127.0.0.1', 'port': str(port)}},
            *({'channel-type': 'nbd', 'disk': disk} for disk in disks)]


def make_images(folder: Path) -> None:
    """The guest's disks: the first one boots."""
    boot = CODE.ljust(510, b'\0') + b'\x55\xaa'
    for disk in DISKS:
        content = random.Random(disk).randbytes(DISK_SIZE - len(boot))
        (folder / f'{disk}.img').write_bytes(boot + content)


def work_folder() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory(prefix='interop-')
