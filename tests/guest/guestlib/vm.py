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

from .configuration import BASIC, EACH, MAPPED, Configuration
from .disks import LUKS, SECRET_OBJECT, Disk
from .source import machine_class

IOTHREAD = 'io0'
# A fixed number of I/O workers, so that threads can be counted.  RARE_POOL: with
# an AIO interface of Linux they are seldom needed.
POOL = 'thread-pool-min=4,thread-pool-max=4'
RARE_POOL = 'thread-pool-min=0,thread-pool-max=4'
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
    storage: Configuration = BASIC

    def command_line(self) -> str:
        settings = ' '.join(f'{name}={value}' for name, value in
                            (('disks', len(self.disks) - self.idle_disks),
                             *self.settings))
        return f'console=ttyS0 quiet panic=-1 mitigations=off {settings}'


@dataclass(frozen=True)
class Own:
    """The configuration in which the sides may differ."""

    # The disks are in one, unless the configuration says otherwise
    iothread: bool = False
    arguments: tuple[str, ...] = ()     # additional ones for QEMU
    errors: tuple[tuple[str, dict], ...] = ()   # blkdebug, by disk
    too_small: tuple[str, ...] = ()     # disks with half the size
    no_device: tuple[str, ...] = ()     # disks without a device
    write_mb_per_s: int = 0             # limit of each disk; 0: none
    may_reboot: bool = False            # else it ends instead


def _firmware_folders(build: Path) -> list[Path]:
    folders = [build / 'qemu-bundle/usr/local/share/qemu', build / 'pc-bios',
               *map(Path, FIRMWARE_FOLDERS)]
    return [folder for folder in folders if folder.is_dir()]


def _firmware(build: Path) -> Path:
    for folder in _firmware_folders(build):
        if (folder / FIRMWARE).exists():
            return folder / FIRMWARE
    raise VMError(f'no {FIRMWARE}: the packages seabios and '
                  'qemu-system-data have it')


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
        storage = config.storage
        pool = RARE_POOL if storage.aio else POOL
        machine = 'pc,memory-backend=mem'
        firmware = _firmware(config.build)
        argv = []
        if storage.nvram:
            machine += f',pflash0=firmware,pflash1={config.disks[-1].name}'
            argv += ['-blockdev', 'file,node-name=firmware,read-only=on,'
                     f'filename={firmware}']
        for folder in _firmware_folders(config.build):
            argv += ['-L', str(folder)]
        argv += ['-nodefaults', '-no-user-config',
                '-name', f'{self.name},debug-threads=on',
                '-object', f'main-loop,id=main-loop,{pool}',
                '-accel', 'tcg',
                '-machine', machine, '-m', memory, '-smp', str(storage.cpus),
                '-object', f'memory-backend-ram,id=mem,size={memory},'
                           'prealloc=on',
                '-kernel', str(config.kernel),
                '-initrd', str(config.initramfs),
                '-append', config.command_line()]
        if not self.own.may_reboot:
            argv.append('-no-reboot')
        for name in self._iothreads():
            argv += ['-object', f'iothread,id={name},{pool}']
        if any(disk.format == LUKS for disk in config.disks):
            argv += ['-object', SECRET_OBJECT]
        if storage.device == 'virtio-scsi':
            argv += ['-device', 'virtio-scsi-pci,id=scsi' + (
                f',iothread={IOTHREAD}' if self.own.iothread else '')]
        for disk in config.disks:
            argv += self._disk_arguments(disk)
        return argv + list(self.own.arguments) + (
            ['-incoming', 'defer'] if self.incoming else [])

    def _iothreads(self) -> list[str]:
        how = self.config.storage.iothreads
        if how == EACH:
            return [f'io{disk.number}' for disk in self.config.disks]
        return ['io0', 'io1'] if how == MAPPED else \
            [IOTHREAD] if self.own.iothread else []

    def _disk_arguments(self, disk: Disk) -> list[str]:
        storage = self.config.storage
        # A crash of the host is not what is tested: without its flushes
        # the speed of the host's disk is not what is measured.
        cache = {'direct': bool(storage.aio), 'no-flush': True}
        file = {'cache': cache, 'node-name': f'{disk.name}-file'}
        if storage.aio:
            file['aio'] = storage.aio
        node = {**disk.options(disk.image(self.folder), **file),
                'cache': cache}
        errors = dict(self.own.errors).get(disk.name)
        if errors:
            node = {'driver': 'blkdebug', 'image': node,
                    'inject-error': [errors]}
        argv = []
        if self.own.write_mb_per_s:
            limit = self.own.write_mb_per_s << 20
            node = self._throttle(argv, node, f'limit-{disk.name}',
                                  f'x-bps-write={limit}')
        if storage.filter == 'throttle':
            node = self._throttle(argv, node, f'filter-{disk.name}',
                                  'x-bps-total=67108864')
        elif storage.filter:
            node = {'driver': storage.filter, 'file': node}
        argv += ['-blockdev', json.dumps({**node, 'node-name': disk.name})]
        if disk.name in self.own.no_device or disk.firmware:
            return argv
        return argv + ['-device', json.dumps(self._device(disk))]

    @staticmethod
    def _throttle(argv: list[str], node: dict, group: str,
                  limit: str) -> dict:
        argv += ['-object', f'throttle-group,id={group},{limit}']
        return {'driver': 'throttle', 'throttle-group': group, 'file': node}

    def _device(self, disk: Disk) -> dict:
        storage = self.config.storage
        device = {'id': f'dev-{disk.name}', 'drive': disk.name,
                  'serial': disk.name}
        if storage.device == 'virtio-scsi':
            return {'driver': 'scsi-hd', 'bus': 'scsi.0', **device}
        device['driver'] = 'virtio-blk-pci'
        if storage.iothreads == MAPPED:
            device['num-queues'] = 2
            device['iothread-vq-mapping'] = [{'iothread': name}
                                             for name in self._iothreads()]
        elif storage.iothreads == EACH:
            device['iothread'] = f'io{disk.number}'
        elif self.own.iothread:
            device['iothread'] = IOTHREAD
        return device
