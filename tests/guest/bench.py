#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""
Compare multiplexed migration, and its streams, with what they replace.

Each row of the table alternates a baseline and a variant.  The result is the
median of the pairs' ratios with its 95 % confidence interval; pairs are added
until the interval is narrower than the median's distance to the goal, up to a
maximum: then the row says "not resolved".  report.html and results.json go to
--output.
"""

import argparse
import contextlib
import json
import os
import platform
import sys
import time
from pathlib import Path

from benchlib import (migrations, networks, report, ssh, streamrows,
                      ways)
from benchlib.model import BenchError, Result, Row
from benchlib.runner import Runner, summary
from benchlib.streams import MuxBench
from guestlib.testbed import end_in_good_order

TARGET_MB = 1024
QUICK_ROWS = (1, 2, 3, 4, 5, 8)
QUICK_SECONDS = 0.3
QUICK_PAIRS = {8: 2}            # else 6: fewer have no interval
SECONDS = 1.0
DELAY_MBIT, DELAY_MS = 1000, 60


class Progress:
    """One line that changes, on a terminal; else only what is final."""

    def __init__(self):
        self._terminal = sys.stderr.isatty()

    def show(self, text: str) -> None:
        """What is going on."""
        if self._terminal:
            width = os.get_terminal_size(sys.stderr.fileno()).columns - 1
            print(f'\r\x1b[K{text[:width]}', end='', file=sys.stderr,
                  flush=True)

    def final(self, text: str) -> None:
        """A line that stays."""
        if self._terminal:
            print('\r\x1b[K', end='', file=sys.stderr)
        print(text, flush=True)


def prepare_targets(targets: dict[str, str]) -> None:
    """The files for NBD, with all of their memory present."""
    for path in targets.values():
        if path != 'null':
            with open(path, 'wb') as out:
                for _ in range(TARGET_MB):
                    out.write(b'\x5a' * (1 << 20))


def remove_targets(targets: dict[str, str]) -> None:
    for path in targets.values():
        Path(path).unlink(missing_ok=True)


class Bench:
    """One run of the benchmark."""

    def __init__(self, args, progress: Progress):
        self._args = args
        self._progress = progress
        self._results: list[Result] = []
        self._streams = MuxBench(args.build,
                                 QUICK_SECONDS if args.quick else SECONDS)
        self._guests = migrations.Guests(args.build, args.plain,
                                         args.build / 'guest')

    def wanted(self, number: int) -> bool:
        rows = self._args.rows or (QUICK_ROWS if self._args.quick else ())
        return not rows or number in rows

    def measure(self, rows: list[Row]) -> None:
        """Those of the rows that are wanted."""
        for row in rows:
            if not self.wanted(row.number):
                continue
            pairs = self._args.pairs or (
                QUICK_PAIRS.get(row.number, 6) if self._args.quick else None)
            result = Runner(self._progress.show, pairs).measure(row)
            self._results.append(result)
            self._progress.final(f'{row.number:>3}  {row.title}: '
                                 f'{summary(result)}')

    def run(self) -> None:
        """All rows, in an order that begins with the short ones."""
        bench, guests = self._streams, self._guests
        self.measure(streamrows.bulk(bench) + streamrows.requests(bench))
        self._on_networks()
        self.measure(streamrows.coroutines(bench))
        if self.wanted(7):
            targets = streamrows.nbd_targets(self._args.output)
            try:
                prepare_targets(targets)
                self.measure(streamrows.nbd(bench, targets))
            finally:
                remove_targets(targets)
        self.measure(streamrows.idle(bench))
        self.measure(guests.busy() + guests.contents() + guests.many() +
                     guests.ram())
        self._through_ssh()

    def _through_ssh(self) -> None:
        """Row 12, with an sshd that exists meanwhile."""
        missing = ssh.missing()
        if missing or not self.wanted(12):
            self.measure(self._guests.through_ssh(
                ways.TwoSockets, ways.OneSocket, missing))
            return
        with ssh.Sshd() as sshd:
            self.measure(self._guests.through_ssh(*ssh.over(sshd), missing))

    def _on_networks(self) -> None:
        """Rows 6 and 11, on networks that exist meanwhile."""
        kinds = ((6, streamrows.shaped, networks.missing(),
                  lambda: networks.Shaped(DELAY_MBIT)),
                 (11, streamrows.delayed, networks.missing('/dev/net/tun'),
                  lambda: networks.Delayed(DELAY_MBIT, DELAY_MS)))
        for number, rows, missing, network in kinds:
            if not self.wanted(number):
                continue
            with contextlib.ExitStack() as stack:
                link = None
                if not missing:
                    try:
                        link = stack.enter_context(network())
                    except BenchError as err:
                        missing = str(err)
                self.measure(rows(self._streams, link, missing))

    def extras(self) -> tuple[dict, dict]:
        """The data of the plots that belong to no row."""
        if self._args.quick or self._args.rows:
            return {}, {}
        self._progress.show('throughput by streams and size')
        sweep = streamrows.sweep(self._streams)
        self._progress.show('timeline of a migration')
        return sweep, self._guests.timeline()

    def write(self, about: dict, sweep: dict, timeline: dict) -> None:
        """The files, and the table."""
        output = self._args.output
        record = report.as_json(self._results, about)
        (output / 'results.json').write_text(json.dumps(record, indent=1))
        (output / 'report.html').write_text(
            report.page(self._results, about, sweep, timeline),
            encoding='utf-8')
        print(f'\n{report.table(self._results)}\n\n'
              f'report: {output / "report.html"}')


def about(args) -> dict:
    """When and where; the load tells whether the machine was idle."""
    return {'date': time.strftime('%F %T'), 'machine': platform.machine(),
            'kernel': platform.release(), 'processors': os.cpu_count(),
            'load at the beginning': ' '.join(f'{load:.2f}' for load in
                                              os.getloadavg()),
            'quick': 'yes' if args.quick else 'no',
            'baseline of rows 8 to 10, 12': 'unpatched QEMU' if args.plain else
            'the same QEMU, with two sockets'}


def numbers(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(',')))


def main() -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument('--build', type=Path, required=True, metavar='DIR')
    parser.add_argument('--plain', type=Path, metavar='DIR',
                        help='build of unpatched QEMU, for the baseline')
    parser.add_argument('--output', type=Path, required=True, metavar='DIR')
    parser.add_argument('--rows', type=numbers, default=(), metavar='N,N')
    parser.add_argument('--pairs', type=int, metavar='N',
                        help='at most so many pairs in each row')
    parser.add_argument('--quick', action='store_true',
                        help='a few rows, few pairs: about 3 minutes')
    parser.add_argument('--compare', type=Path, metavar='FILE',
                        help='measure nothing, compare results.json with this')
    args = parser.parse_args()
    args.build, args.output = args.build.resolve(), args.output.resolve()
    args.plain = args.plain and args.plain.resolve()
    if args.compare:
        new, old = (json.loads(path.read_text()) for path in
                    (args.output / 'results.json', args.compare))
        print(report.compare(new, old))
        return 0
    end_in_good_order()
    for folder in (args.output, args.build / 'guest'):
        folder.mkdir(parents=True, exist_ok=True)
    facts = about(args)
    bench = Bench(args, Progress())
    try:
        bench.run()
        extras = bench.extras()
    except BenchError as err:
        print(f'FAILED: {err}')
        extras = {}, {}
    except KeyboardInterrupt:
        extras = {}, {}         # what was measured is kept
    bench.write(facts, *extras)
    return 0


if __name__ == '__main__':
    sys.exit(main())
