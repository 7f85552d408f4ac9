# SPDX-License-Identifier: GPL-2.0-or-later
"""The guest's disk images: make, fill, and read them back in full."""

import subprocess
from dataclasses import dataclass
from pathlib import Path

from . import layout


class DiskError(Exception):
    """qemu-img refused; the text is its own."""


@dataclass(frozen=True)
class Disk:
    """One disk of the guest, the same on both sides."""

    number: int
    format: str
    size: int

    @property
    def name(self) -> str:
        """Node name, serial number, and what its stream is named after."""
        return f'disk{self.number}'

    def image(self, folder: Path) -> Path:
        """Where one side keeps the image."""
        return folder / f'{self.name}.{self.format}'


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
        self.run('create', '-q', '-f', disk.format, disk.image(folder), size)

    def create_filled(self, disk: Disk, folder: Path) -> None:
        """An image whose lower half holds the pattern."""
        image = disk.image(folder)
        raw = image if disk.format == 'raw' else image.with_suffix('.tmp')
        blocks = disk.size // layout.BLOCK
        with open(raw, 'wb') as out:
            for block in range(blocks // 2):
                out.write(layout.fill_block(disk.number, block))
            out.truncate(disk.size)
        if raw != image:
            self.run('convert', '-f', 'raw', '-O', disk.format, raw, image)
            raw.unlink()

    def to_raw(self, disk: Disk, folder: Path, killed: bool = False) -> Path:
        """
        A raw file with the disk's contents, next to the image.  A QEMU that
        was killed may have been about to use a cluster: that is no fault.
        """
        image = disk.image(folder)
        if disk.format == 'raw':
            return image
        self.run('check', '-q', *(['-r', 'leaks'] if killed else []), '-f',
                 disk.format, image)
        raw = image.with_suffix('.read-back')
        self.run('convert', '-f', disk.format, '-O', 'raw', image, raw)
        return raw
