# SPDX-License-Identifier: GPL-2.0-or-later
"""
A QEMU process that runs the test's guest or waits for it.

QMP and the serial console use socket pairs, so that this QEMU has no listening
socket but that of the migration.
"""

import json
import os
import socket
from dataclasses import dataclass
from pathlib import Path

from .disks import Disk
from .source import machine_class

IOTHREAD = 'io0'
# A fixed number of I/O workers, so that threads can be counted
POOL = 'thread-pool-min=4,thread-pool-max=4'
FIRMWARE = 'bios-256k.bin'
FIRMWARE_FOLDERS = ('/usr/share/seabios', '/usr/share/qemu')


class VMError(Exception):
    """QEMU did not start or did not end."""


@dataclass(frozen=True)
class GuestConfig:
    """The configuration that both sides share."""

    build: Path
    kernel: Path
    initramfs: Path
    disks: tuple[Disk, ...]
    memory_mb: int = 768
    settings: tuple[tuple[str, int], ...] = ()
    idle_disks: int = 0         # the last ones, which the guest does not use
    prefix: tuple[str, ...] = ()        # before QEMU's command line

    def command_line(self) -> str:
        settings = ' '.join(f'{name}={value}' for name, value in
                            (('disks', len(self.disks) - self.idle_disks),
                             *self.settings))
        return f'console=ttyS0 quiet panic=-1 mitigations=off {settings}'


@dataclass(frozen=True)
class Own:
    """The configuration in which the sides may differ."""

    iothread: bool = False              # the disks are in one
    arguments: tuple[str, ...] = ()     # additional ones for QEMU
    errors: tuple[tuple[str, dict], ...] = ()   # blkdebug, by disk
    too_small: tuple[str, ...] = ()     # disks with half the size
    no_device: tuple[str, ...] = ()     # disks without a device
    write_mb_per_s: int = 0             # limit of each disk; 0: none
    may_reboot: bool = False            # else it ends instead


def _firmware(build: Path) -> list[str]:
    folders = [build / 'qemu-bundle/usr/local/share/qemu', build / 'pc-bios',
               *map(Path, FIRMWARE_FOLDERS)]
    if not any((folder / FIRMWARE).exists() for folder in folders):
        raise VMError(f'no {FIRMWARE}: the packages seabios and '
                      'qemu-system-data have it')
    return [word for folder in folders if folder.is_dir()
            for word in ('-L', str(folder))]


class VM:
    """A QEMU process.  Ends with stop(), however far it came."""

    def __init__(self, name: str, config: GuestConfig, folder: Path,
                 incoming: bool = False, own: Own = Own()):
        self.name = name
        self.own = own
        self.config = config
        self.folder = folder
        self.log = folder / f'{name}.log'
        self.incoming = incoming
        self.console: socket.socket | None = None
        self.qmp = machine_class(config.build)(
            config.build, name, self._arguments(), config.prefix, folder)
        self.qmp.set_console()

    @property
    def pid(self) -> int:
        return self.qmp.pid

    @property
    def running(self) -> bool:
        """Whether the process exists (not whether the guest runs)."""
        return self.qmp.is_running()

    def start(self) -> None:
        """Start it, and the guest unless it waits for a migration."""
        self.qmp.launch()
        # The machine closes its own when it ends, maybe with text unread
        self.console = socket.socket(
            fileno=os.dup(self.qmp.console_socket.fileno()))

    def messages(self, since: int = 0) -> str:
        """What QEMU printed, from that byte on."""
        return self.log.read_bytes()[since:].decode(errors='replace').strip()

    def wait(self, timeout: float) -> int:
        """Wait for the end of the process; returns its status."""
        status = self.qmp.wait_end(timeout)
        if status is None:
            raise VMError(f'{self.name}: still there after {timeout} s')
        return status

    def quit(self) -> None:
        """Quit it, so that it closes its images."""
        if self.running:
            self.qmp.cmd('quit')
        status = self.wait(60)
        if status:
            raise VMError(f'{self.name}: exit status {status}: '
                          f'{self.messages()}')

    def stop(self) -> None:
        """Kill it if it still runs."""
        self.qmp.kill()

    def _arguments(self) -> list[str]:
        config = self.config
        memory = f'{config.memory_mb}M'
        argv = [*_firmware(config.build), '-nodefaults', '-no-user-config',
                '-name', f'{self.name},debug-threads=on',
                '-object', f'main-loop,id=main-loop,{POOL}',
                '-accel', 'tcg',
                '-machine', 'pc,memory-backend=mem', '-m', memory,
                '-object', f'memory-backend-ram,id=mem,size={memory},'
                           'prealloc=on',
                '-kernel', str(config.kernel),
                '-initrd', str(config.initramfs),
                '-append', config.command_line()]
        if not self.own.may_reboot:
            argv.append('-no-reboot')
        if self.own.iothread:
            argv += ['-object', f'iothread,id={IOTHREAD},{POOL}']
        for disk in config.disks:
            argv += self._disk_arguments(disk)
        return argv + list(self.own.arguments) + (
            ['-incoming', 'defer'] if self.incoming else [])

    def _disk_arguments(self, disk: Disk) -> list[str]:
        # A crash of the host is not what is tested: without its flushes
        # the speed of the host's disk is not what is measured.
        cache = {'direct': False, 'no-flush': True}
        node = {'driver': disk.format, 'cache': cache,
                'file': {'driver': 'file', 'cache': cache,
                         'node-name': f'{disk.name}-file',
                         'filename': str(disk.image(self.folder))}}
        errors = dict(self.own.errors).get(disk.name)
        if errors:
            node = {'driver': 'blkdebug', 'image': node,
                    'inject-error': [errors]}
        argv = []
        if self.own.write_mb_per_s:
            group = f'limit-{disk.name}'
            argv = ['-object', f'throttle-group,id={group},'
                    f'x-bps-write={self.own.write_mb_per_s << 20}']
            node = {'driver': 'throttle', 'throttle-group': group,
                    'file': node}
        argv += ['-blockdev', json.dumps({**node, 'node-name': disk.name})]
        if disk.name in self.own.no_device:
            return argv
        device = f'virtio-blk-pci,id=dev-{disk.name},drive={disk.name},' \
                 f'serial={disk.name}'
        if self.own.iothread:
            device += f',iothread={IOTHREAD}'
        return argv + ['-device', device]
