# SPDX-License-Identifier: GPL-2.0-or-later
"""The guest's disk images: make, fill, and read them back in full."""

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from . import layout


LUKS = 'luks'
SECRET = 'key'
SECRET_OBJECT = f'secret,id={SECRET},data=a-passphrase'


class DiskError(Exception):
    """qemu-img refused; the text is its own."""


@dataclass(frozen=True)
class Disk:
    """One disk of the guest, the same on both sides."""

    number: int
    format: str
    size: int
    backing: bool = False       # the filled image is a file that others share
    firmware: bool = False      # it holds the firmware's variables
    filled: float = 0.5         # the part, from the beginning, with the pattern
    zeroes: bool = False        # zeroes are written to the rest

    @property
    def filled_blocks(self) -> int:
        """How many blocks hold the pattern."""
        return int(self.size // layout.BLOCK * self.filled)

    @property
    def name(self) -> str:
        """Node name, serial number, and what its stream is named after."""
        return f'disk{self.number}'

    def image(self, folder: Path) -> Path:
        """Where one side keeps the image."""
        return folder / f'{self.name}.{self.format}'

    def base(self, folder: Path) -> Path:
        """Where both sides find the backing file."""
        return folder.parent / f'{self.name}.base'

    def options(self, path: Path, **file) -> dict:
        """The options that open the image."""
        more = {'key-secret': SECRET} if self.format == LUKS else {}
        return {'driver': self.format, **more,
                'file': {'driver': 'file', 'filename': str(path), **file}}


class ImageTool:
    """qemu-img of one build."""

    def __init__(self, build: Path):
        self._program = build / 'qemu-img'

    def run(self, *argv) -> None:
        """Run it.  Raises DiskError."""
        done = subprocess.run([str(self._program), *map(str, argv)],
                              text=True, check=False,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        if done.returncode:
            raise DiskError(f'qemu-img {" ".join(map(str, argv))}: '
                            f'{done.stdout.strip()}')

    def create_empty(self, disk: Disk, folder: Path, size: int) -> None:
        """An image in which nothing has been written yet."""
        backing = ('-b', disk.base(folder), '-F', 'raw') if disk.backing else ()
        self.run('create', '-q', *self._format(disk, '-f'), *backing,
                 disk.image(folder), size)

    def create_filled(self, disk: Disk, folder: Path) -> None:
        """An image whose first blocks hold the pattern."""
        image = disk.image(folder)
        raw = image if disk.format == 'raw' else image.with_suffix('.tmp')
        if disk.backing:
            raw = disk.base(folder)
        blocks = disk.size // layout.BLOCK
        with open(raw, 'wb') as out:
            for block in range(disk.filled_blocks):
                out.write(layout.fill_block(disk.number, block))
            for _ in range(disk.filled_blocks, blocks if disk.zeroes else 0):
                out.write(bytes(layout.BLOCK))
            out.truncate(disk.size)
        if disk.backing:
            self.create_empty(disk, folder, disk.size)
        elif raw != image:
            sparse = ('-S', '0') if disk.zeroes else ()
            self.run('convert', *sparse, '-f', 'raw',
                     *self._format(disk, '-O'), raw, image)
            raw.unlink()

    def touch(self, disk: Disk, folder: Path) -> None:
        """
        Write the empty image's disk with zeroes, so that its memory and its
        clusters exist.  Then flush it, because QEMU would do so when it first
        uses the image.
        """
        image = disk.image(folder)
        if disk.format == 'raw':
            with open(image, 'r+b') as out:
                for _ in range(disk.size // layout.BLOCK):
                    out.write(bytes(layout.BLOCK))
        else:
            raw = image.with_suffix('.zeroes')
            with open(raw, 'wb') as out:
                for _ in range(disk.size // layout.BLOCK):
                    out.write(bytes(layout.BLOCK))
            self.run('convert', '-S', '0', '-f', 'raw',
                     *self._format(disk, '-O'), raw, image)
            raw.unlink()
        with open(image, 'r+b') as out:
            os.fsync(out.fileno())

    @staticmethod
    def _format(disk: Disk, option: str) -> tuple[str, ...]:
        """The options to create an image, quickly."""
        if disk.format != LUKS:
            return option, disk.format
        return ('--object', SECRET_OBJECT, option, LUKS,
                '-o', f'key-secret={SECRET},iter-time=10')

    def compare(self, disk: Disk, folder: Path, other: Path) -> None:
        """Raises DiskError if a disk's contents differ."""
        self.run('compare', '-q', '--object', SECRET_OBJECT,
                 *('json:' + json.dumps(disk.options(disk.image(side)))
                   for side in (folder, other)))

    def to_raw(self, disk: Disk, folder: Path, killed: bool = False) -> Path:
        """
        A raw file with the disk's contents, next to the image.  A QEMU that
        was killed may have been about to use a cluster: that is no fault.
        """
        image = disk.image(folder)
        if disk.format == 'raw':
            return image
        if disk.format == 'qcow2':
            self.run('check', '-q', *(['-r', 'leaks'] if killed else []), '-f',
                     disk.format, image)
        raw = image.with_suffix('.read-back')
        self.run('convert', '--object', SECRET_OBJECT, '-O', 'raw',
                 'json:' + json.dumps(disk.options(image)), raw)
        return raw
