#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""
Measure a migration with disks over one socket against the classic way
with an NBD server, in turns on the same machine, and print a table.

Every migration has a freshly booted guest that writes to its disks and
its memory; its disks are half full.
"""

import argparse
import statistics
import sys
from pathlib import Path

from guestlib import migrate
from guestlib.testbed import (ERRORS, Options, Testbed, TestbedError,
                              end_in_good_order)

LOCALHOST = {'type': 'inet', 'host': '127.0.0.1', 'port': '0'}
MIB = 1 << 20
WAYS = (migrate.TwoSockets, migrate.OneSocket)
COLUMNS = ('disk phase s', 'RAM phase s', 'downtime ms', 'total s',
           'disk MiB/s', 'RAM MiB/s')


def measure(way, build: Path, work: Path, options: Options) -> tuple:
    """One migration; returns the values of COLUMNS."""
    with Testbed(build, work, options) as bed:
        source = bed.boot_source()
        destination = bed.start_destination()
        migration = way(source, destination, LOCALHOST)
        migration.listen()
        outcome = migration.run()
        bed.await_writes(destination)
        reports = bed.finish(destination)
        faults = [f for report in reports for f in report.faults]
        if faults or bed.log.faults:
            raise TestbedError('; '.join(faults + bed.log.faults))
    # Half of each disk holds data; the rest is not sent.
    disk_mib = len(options.formats) * options.disk_mb / 2
    ram_mib = outcome.streams['main'] / MIB
    return (outcome.disks, outcome.ram, outcome.downtime * 1000,
            outcome.total, disk_mib / outcome.disks, ram_mib / outcome.ram)


def show(name: str, runs: list[tuple]) -> None:
    """The median of each column, and the range of the total."""
    middle = [statistics.median(column) for column in zip(*runs)]
    totals = [run[COLUMNS.index('total s')] for run in runs]
    cells = ''.join(f'{value:{len(title) + 2}.{places}f}'
                    for title, value, places in
                    zip(COLUMNS, middle, (2, 2, 0, 2, 0, 0)))
    print(f'{name:12}{cells}   ({min(totals):.2f}-{max(totals):.2f})')


def supported(build: Path, work: Path) -> tuple:
    """The ways that this QEMU knows."""
    with Testbed(build, work, Options(disk_mb=1, memory_mb=64)) as bed:
        if migrate.supports_one_socket(bed.start_destination()):
            return WAYS
    print(f'# {build}: no channels of type nbd, so only the classic way')
    return WAYS[:1]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--build', type=Path, required=True, metavar='DIR')
    parser.add_argument('--work', type=Path, metavar='DIR')
    parser.add_argument('--runs', type=int, default=3, metavar='N')
    parser.add_argument('--disk-mb', type=int, default=1024, metavar='N')
    parser.add_argument('--memory-mb', type=int, default=768, metavar='N')
    parser.add_argument('--formats', default='raw,qcow2',
                        help='one disk for each (default: raw,qcow2)')
    args = parser.parse_args()
    end_in_good_order()
    build = args.build.resolve()
    work = (args.work or build / 'guest').resolve()
    options = Options(formats=tuple(args.formats.split(',')),
                      disk_mb=args.disk_mb, memory_mb=args.memory_mb,
                      fill_mb=args.memory_mb // 2,
                      dirty_mb=args.memory_mb // 12)
    try:
        runs = {way: [] for way in supported(build, work)}
        for number in range(args.runs):
            for way, values in runs.items():
                values.append(measure(way, build, work, options))
                print(f'# run {number + 1}, {way.name}: '
                      f'{values[-1][3]:.2f} s', flush=True)
    except ERRORS as err:
        print(f'FAILED: {err}')
        return 1
    print(f'\n{len(options.formats)} disks of {options.disk_mb} MiB half full '
          f'({args.formats}), {options.memory_mb} MiB of RAM, '
          f'median of {args.runs}\n')
    print(f'{"":12}  {"  ".join(COLUMNS)}   (total, range)')
    for way, values in runs.items():
        show(way.name, values)
    return 0


if __name__ == '__main__':
    sys.exit(main())
