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
import os
import shutil
import signal
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from . import image, verify
from .disks import Disk, DiskError, ImageTool
from .guestlog import GuestLog
from .migrate import MigrationError
from .qmp import QMPError
from .vm import GuestConfig, VM, VMError

MIB = 1 << 20
WRITES_BEFORE = 20              # of each disk, before a migration begins
WRITES_AFTER = 50               # of each disk, where it went


class TestbedError(Exception):
    """The guest does not do what it is here for."""


# All that a run can end with short of a result.
ERRORS = (DiskError, image.ImageError, MigrationError, QMPError,
          TestbedError, VMError)


@dataclass(frozen=True)
class Options:
    """The guest's size and what it keeps doing."""

    formats: tuple[str, ...] = ('raw', 'qcow2')
    disk_mb: int = 1024
    memory_mb: int = 768
    fill_mb: int = 384
    dirty_mb: int = 64
    dirty_mb_per_s: int = 20
    writes_per_s: int = 200


def end_in_good_order() -> None:
    """On SIGTERM leave through the testbed's exit, as Ctrl-C does."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))


class Testbed:
    """Owns every process and file of one run; leaves none behind."""

    __test__ = False            # not a test class, whatever its name

    def __init__(self, build: Path, work: Path, options=Options()):
        if options.disk_mb & (options.disk_mb - 1):
            raise TestbedError('disk size: a power of two of MiB, please')
        self.build = build
        self.options = options
        self.tool = ImageTool(build)
        self.keep = False       # the folder, when something went wrong
        kernel, initramfs = image.build(work / 'cache')
        disks = tuple(Disk(number, form, options.disk_mb * MIB)
                      for number, form in enumerate(options.formats))
        self.config = GuestConfig(
            build, kernel, initramfs, disks, options.memory_mb,
            tuple((name, getattr(options, name)) for name in (
                'fill_mb', 'dirty_mb', 'dirty_mb_per_s', 'writes_per_s')))
        self.folder = Path(tempfile.mkdtemp(prefix='run-', dir=work))
        self.log = GuestLog(len(disks))
        self.vms: list[VM] = []

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        for vm in self.vms:
            vm.stop()
        self.log.close()
        if self.keep or (kind and issubclass(kind, Exception)):
            self._keep_messages()
            print(f'# what QEMU and the guest said is in {self.folder}')
        else:
            shutil.rmtree(self.folder)

    def boot_source(self) -> VM:
        """Fill the disks, boot the guest, wait until it writes."""
        vm = self._vm('source')
        with concurrent.futures.ThreadPoolExecutor() as pool:
            list(pool.map(lambda disk: self.tool.create_filled(disk,
                                                               vm.folder),
                          self.config.disks))
        vm.start()
        self._await(lambda: self.log.scans and
                    self.log.least(vm.name) >= WRITES_BEFORE,
                    90, 'the guest does not come to write its records')
        return vm

    def start_destination(self) -> VM:
        """A QEMU with empty disks that waits for a migration."""
        vm = self._vm('destination', incoming=True)
        for disk in self.config.disks:
            self.tool.create_empty(disk, vm.folder)
        vm.start()
        return vm

    def await_writes(self, vm: VM, more: int = WRITES_AFTER) -> None:
        """
        Wait until the guest has written so many more records to each disk
        and checked all of its memory, from now on and in this QEMU.
        """
        goal = self.log.least(vm.name) + more
        # The scan that is under way began before; the next one is whole.
        scans = len(self.log.scans) + 2
        self._await(lambda: self.log.least(vm.name) >= goal and
                    len(self.log.scans) >= scans,
                    60, f'the guest does not go on at the {vm.name}')

    def finish(self, vm: VM) -> list[verify.DiskReport]:
        """
        End the QEMU that has the guest; check its disks against what was
        acknowledged until then.
        """
        vm.quit()
        for other in self.vms:
            if other is not vm and other.running:
                other.quit()
        self.log.close()
        with concurrent.futures.ThreadPoolExecutor() as pool:
            raws = list(pool.map(lambda disk: self.tool.to_raw(disk,
                                                               vm.folder),
                                 self.config.disks))
        return [verify.check_disk(disk, raw, len(acks)) for disk, raw, acks in
                zip(self.config.disks, raws, self.log.acks)]

    def _vm(self, kind: str, incoming: bool = False) -> VM:
        number = sum(vm.name.startswith(kind) for vm in self.vms)
        name = f'{kind}{number + 1}' if number else kind
        folder = self.folder / name
        folder.mkdir()
        vm = VM(name, self.config, folder, incoming)
        self.vms.append(vm)
        self.log.attach(name, vm.console)
        return vm

    def _await(self, condition, timeout: float, what: str) -> None:
        if not self.log.wait(lambda: self.log.faults or condition(), timeout):
            last = ''.join(f'\n  {line}' for line in self.log.other[-10:])
            raise TestbedError(what + last)
        if self.log.faults:
            raise TestbedError('; '.join(self.log.faults[:5]))

    def _keep_messages(self) -> None:
        """Drop the images, which are large; keep what QEMU said."""
        for path in self.folder.rglob('disk*'):
            os.unlink(path)
        (self.folder / 'console').write_text(
            '\n'.join(self.log.faults + self.log.other) + '\n')
