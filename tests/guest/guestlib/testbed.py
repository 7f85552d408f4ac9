# SPDX-License-Identifier: GPL-2.0-or-later
"""
A guest, its source and its destinations in a folder of their own.

    with Testbed(build, work) as bed:
        source = bed.boot_source()
        destination = bed.start_destination()
        ... migrate ...
        reports = bed.finish(destination)
"""

import concurrent.futures
import contextlib
import os
import shutil
import signal
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from . import image, verify
from .configuration import BASIC, Configuration
from .disks import Disk, DiskError, ImageTool
from .guestlog import GuestLog
from .link import LinkError
from .migrate import MigrationError
from .qmp import QMPError
from .vm import GuestConfig, Own, VM, VMError

MIB = 1 << 20
NVRAM_SIZE = 2 * MIB
WRITES_BEFORE = 20              # to each disk, before a migration begins
WRITES_AFTER = 50               # to each disk, after it


class TestbedError(Exception):
    """The guest does not work as expected."""


# All exceptions that can end a run without a result.
ERRORS = (DiskError, image.ImageError, LinkError, MigrationError, QMPError,
          TestbedError, VMError, OSError)


@dataclass(frozen=True)
class Options:
    """The guest's size and what it keeps doing."""

    formats: tuple[str, ...] = ('raw', 'qcow2')
    disk_mb: int = 1024
    disk_sizes_mb: tuple[int, ...] = ()     # of each disk, if they differ
    filled: float = 0.5         # the part of each disk with data
    zeroes: bool = False        # zeroes are written to the rest
    touched: bool = False       # so are they to the destination's images
    memory_mb: int = 768
    fill_mb: int = 384
    dirty_mb: int = 64
    dirty_mb_per_s: int = 20
    writes_per_s: int = 200
    idle_disks: int = 0
    scribblers: int = 0         # per disk; they overwrite its end
    storage: Configuration = BASIC


def end_in_good_order() -> None:
    """On SIGTERM clean up the testbed, as on Ctrl-C."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))


class Testbed:
    """Owns all processes and files of a run, and removes them."""

    __test__ = False            # not a test class, whatever its name

    def __init__(self, build: Path, work: Path, options=Options(),
                 prefix: tuple[str, ...] = ()):
        sizes = (options.disk_sizes_mb or
                 (options.disk_mb,) * len(options.formats))
        if any(size & (size - 1) for size in sizes):
            raise TestbedError('disk size: a power of two of MiB, please')
        self.build = build
        self.options = options
        self.tool = ImageTool(build)
        self.keep = False       # keep the folder: something went wrong
        kernel, initramfs = image.build(work / 'cache')
        storage = options.storage
        disks = tuple(Disk(number, form, size * MIB, storage.backing,
                           filled=options.filled, zeroes=options.zeroes)
                      for number, (form, size) in enumerate(
                          zip(options.formats, sizes)))
        idle = options.idle_disks
        if storage.nvram:
            idle += 1
            disks += Disk(len(disks), 'raw', NVRAM_SIZE, firmware=True),
        self.config = GuestConfig(
            build, kernel, initramfs, disks, options.memory_mb,
            tuple((name, getattr(options, name)) for name in (
                'fill_mb', 'dirty_mb', 'dirty_mb_per_s', 'writes_per_s',
                'scribblers')),
            idle, prefix, storage)
        self.folder = Path(tempfile.mkdtemp(prefix='run-', dir=work))
        self.log = GuestLog(len(disks) - idle)
        self.vms: list[VM] = []
        self._numbers: dict[str, int] = {}

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        with contextlib.ExitStack() as stack:
            for vm in self.vms:
                stack.callback(vm.stop)
        self.log.close()
        if self.keep or (kind and issubclass(kind, Exception)):
            self._keep_messages()
            print(f'# what QEMU and the guest said is in {self.folder}')
        else:
            shutil.rmtree(self.folder)

    def boot_source(self, own: Own = Own()) -> VM:
        """Fill the disks, boot the guest, wait until it writes."""
        vm = self._vm('source', own=own)
        with concurrent.futures.ThreadPoolExecutor() as pool:
            list(pool.map(lambda disk: self.tool.create_filled(disk,
                                                               vm.folder),
                          self.config.disks))
        self._start(vm)
        self._await(lambda: self.log.scans and
                    self.log.least(vm.name) >= WRITES_BEFORE,
                    180, 'the guest does not come to write its records')
        return vm

    def start_destination(self, own: Own = Own()) -> VM:
        """A QEMU with empty disks that waits for a migration."""
        vm = self._vm('destination', incoming=True, own=own)
        for disk in self.config.disks:
            small = disk.name in own.too_small
            self.tool.create_empty(disk, vm.folder, disk.size >> small)
            if self.options.touched:
                self.tool.touch(disk, vm.folder)
        self._start(vm)
        return vm

    def await_writes(self, vm: VM, more: int = WRITES_AFTER) -> None:
        """
        Wait until the guest, in this QEMU, has written `more` records to each
        disk and has checked all of its memory.
        """
        goal = min(self.log.least(vm.name) + more, sys.maxsize)
        # The current scan began earlier; the next one is complete.
        scans = len(self.log.scans) + 2
        self._await(lambda: self.log.least(vm.name) >= goal and
                    len(self.log.scans) >= scans,
                    120, f'the guest does not go on at the {vm.name}')

    def await_more(self, number: int) -> None:
        """Wait until `number` records in all were written to disk 0."""
        self._await(lambda: len(self.log.acks[0]) >= number, 180,
                    f'the guest does not come to write {number} records')

    def load(self, vm: VM, mb_per_s: int) -> None:
        """Have the guest rewrite `mb_per_s` MiB/s of each disk."""
        vm.console.sendall(f'load {mb_per_s}\n'.encode())

    def retire(self, vm: VM) -> None:
        """Quit a QEMU that the guest has left, and delete its files."""
        vm.quit()
        self.drop(vm)

    def drop(self, vm: VM) -> None:
        """The same, but kill it."""
        vm.stop()
        self.vms.remove(vm)
        shutil.rmtree(vm.folder)

    def finish(self, vm: VM) -> list[verify.DiskReport]:
        """
        Quit the QEMU that runs the guest, and check its disks against the
        acknowledged writes.
        """
        vm.quit()
        for other in self.vms:
            if other is not vm and other.running:
                other.quit()
        return self.check(vm)

    def compare(self, vm: VM, other: VM) -> list[str]:
        """
        Quit two QEMUs with the guest stopped, and compare their disks.
        Returns how they differ.
        """
        for each in (vm, other):
            each.quit()
        faults = []
        for disk in self.config.disks:
            try:
                self.tool.compare(disk, vm.folder, other.folder)
            except DiskError as err:
                faults.append(str(err))
        return faults

    def check(self, vm: VM, killed: bool = False) -> list[verify.DiskReport]:
        """As finish(), if all QEMUs have exited or were killed."""
        self.log.close()
        with concurrent.futures.ThreadPoolExecutor() as pool:
            raws = list(pool.map(lambda disk: self.tool.to_raw(
                disk, vm.folder, killed), self.config.disks))
        acks = self.log.acks + [[]] * self.config.idle_disks
        return [verify.check_disk(disk, raw, len(acks[disk.number]))
                for disk, raw in zip(self.config.disks, raws)]

    def _vm(self, kind: str, incoming: bool = False, own: Own = Own()) -> VM:
        number = self._numbers[kind] = self._numbers.get(kind, 0) + 1
        name = f'{kind}{number}' if number > 1 else kind
        folder = self.folder / name
        folder.mkdir()
        vm = VM(name, self.config, folder, incoming, own)
        self.vms.append(vm)
        return vm

    def _start(self, vm: VM) -> None:
        vm.start()
        self.log.attach(vm.name, vm.console)

    def _await(self, condition, timeout: float, what: str) -> None:
        if not self.log.wait(lambda: self.log.faults or condition(), timeout):
            last = ''.join(f'\n  {line}' for line in self.log.other[-10:])
            raise TestbedError(what + last)
        if self.log.faults:
            raise TestbedError('; '.join(self.log.faults[:5]))

    def _keep_messages(self) -> None:
        """Delete the images, which are large; keep QEMU's messages."""
        for path in self.folder.rglob('disk*'):
            os.unlink(path)
        (self.folder / 'console').write_text(
            '\n'.join(self.log.faults + self.log.other) + '\n')
