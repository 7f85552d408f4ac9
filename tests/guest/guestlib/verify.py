# SPDX-License-Identifier: GPL-2.0-or-later
"""Is every page of a disk what it has to be?"""

import mmap
from dataclasses import dataclass, field
from pathlib import Path

from . import layout
from .disks import Disk

FAULTS_SHOWN = 5


@dataclass
class DiskReport:
    """Result of one disk; it is good when `faults` is empty."""

    name: str
    records: int = 0            # acknowledged writes found
    pages: int = 0              # other pages compared
    faults: list[str] = field(default_factory=list)
    fault_count: int = 0

    def fault(self, text: str) -> None:
        """Note a fault; of many, the first few and how many there are."""
        self.fault_count += 1
        if self.fault_count <= FAULTS_SHOWN:
            self.faults.append(f'{self.name}: {text}')
        else:
            self.faults[FAULTS_SHOWN:] = [
                f'{self.name}: {self.fault_count} faults in all']


def _check_records(report: DiskReport, disk: Disk, data: mmap.mmap,
                   acknowledged: int) -> dict[int, int]:
    """Returns the sequence number by the page of each record found."""
    places = {}
    for sequence in range(acknowledged + 1):
        page = layout.record_page(sequence, disk.size)
        start = page * layout.PAGE
        why = layout.record_fault(data[start:start + layout.PAGE],
                                  disk.number, sequence)
        if sequence < acknowledged:
            places[page] = sequence
            report.records += why is None
            if why:
                report.fault(f'acknowledged write {sequence} '
                             f'(offset {start:#x}): {why}')
        elif why is None:
            places[page] = sequence     # was under way when the guest stopped
    return places


def _check_rest(report: DiskReport, disk: Disk, data: mmap.mmap,
                places: dict[int, int]) -> None:
    """Compare all pages but those of the records."""
    blocks = disk.size // layout.BLOCK
    by_block: dict[int, list[int]] = {}
    for page in places:
        by_block.setdefault(page // layout.BLOCK_PAGES, []).append(page)
    for block in range(blocks):
        start = block * layout.BLOCK
        got = data[start:start + layout.BLOCK]
        want = layout.initial_block(disk.number, block, disk.filled_blocks)
        written = by_block.get(block, ())
        report.pages += layout.BLOCK_PAGES - len(written)
        if written:
            want = bytearray(want)
            for page in written:
                at = page * layout.PAGE - start
                want[at:at + layout.PAGE] = got[at:at + layout.PAGE]
        if got != want:
            _name_pages(report, block, got, want)


def _name_pages(report: DiskReport, block: int, got: bytes,
                want: bytes) -> None:
    for page in range(layout.BLOCK_PAGES):
        at = page * layout.PAGE
        if got[at:at + layout.PAGE] != want[at:at + layout.PAGE]:
            report.fault(f'page at offset {block * layout.BLOCK + at:#x} '
                         'is not what it was before the guest started')


def check_disk(disk: Disk, raw: Path, acknowledged: int) -> DiskReport:
    """
    Check a raw file with a disk's contents.  `acknowledged` writes, from
    number 0 on, have to be there; one more may be.  All else has to be as
    it was before the guest's start.
    """
    report = DiskReport(disk.name)
    if raw.stat().st_size != disk.size:
        report.fault(f'has {raw.stat().st_size} bytes, not {disk.size}')
        return report
    if acknowledged >= layout.record_capacity(disk.size):
        report.fault('the guest ran out of places for its records')
        return report
    with open(raw, 'rb') as file, \
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        places = _check_records(report, disk, data, acknowledged)
        _check_rest(report, disk, data, places)
    return report
