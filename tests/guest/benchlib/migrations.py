# SPDX-License-Identifier: GPL-2.0-or-later
"""The rows about migrations of a guest."""

import contextlib
import time
from dataclasses import replace
from pathlib import Path

from guestlib import migrate
from guestlib.testbed import ERRORS, Options, Testbed, TestbedError
from guestlib.vm import Own

from . import ways
from .model import BenchError, Row, Run, Side
from .verdict import Goal

LOCALHOST = {'type': 'inet', 'host': '127.0.0.1', 'port': '0'}
MIB = 1 << 20
LOOK_S = 0.05                   # between two points of the timeline
# Seconds from the start of the migration in which the guest's writes count.  If
# only writes during the migration counted, the shorter one would look worse:
# both have the same few writes that wait for the stopped guest.
WRITES_S = 10
BUSY = Options(disk_mb=1024, memory_mb=1024, fill_mb=512, dirty_mb=64,
               touched=True)
MULTIFD = {'multifd_channels': 4}
UNEQUAL_MB = (1024, 512, 512, 256, 256, 128, 128, 64)
TOTAL = Goal('total', 0.7)
DISKS = Goal('disks', 0.7)
RAM_GOALS = (Goal('total', 1.03), Goal('downtime', 1.03))


def without_zstd(build: Path) -> str:
    """Why this QEMU cannot use zstd, or ''."""
    config = build / 'config-host.h'
    if config.exists() and '#define CONFIG_ZSTD' not in config.read_text():
        return 'this QEMU was built without zstd'
    return ''


def part(values: list[float], which: float) -> float:
    """A percentile; 0 if there are no values."""
    ordered = sorted(values)
    return ordered[int(which * (len(ordered) - 1))] if ordered else 0.0


def migrate_once(way: type, build: Path, work: Path, options: Options,
                 own: Own = Own(), watch=None) -> Run:
    """
    One migration of a freshly booted guest, whose disks are checked afterwards.
    `watch` gives a context in which it runs.
    """
    try:
        with Testbed(build, work, options) as bed:
            source = bed.boot_source(own)
            destination = bed.start_destination(own)
            migration = way(source, destination, LOCALHOST)
            migration.listen()
            before = [ways.cpu_seconds(vm) for vm in bed.vms]
            began = time.monotonic()
            with watch(migration) if watch else contextlib.nullcontext():
                outcome = migration.run()
            after = [ways.cpu_seconds(vm) for vm in bed.vms]
            bed.await_writes(destination, 20)
            if options.formats:
                time.sleep(max(0, began + WRITES_S - time.monotonic()))
            latencies = bed.log.latencies(began, began + WRITES_S)
            reports = bed.finish(destination)
            faults = [f for report in reports for f in report.faults]
            if faults or bed.log.faults:
                raise TestbedError('; '.join(faults + bed.log.faults))
    except ERRORS as err:
        raise BenchError(str(err)) from None
    found = {'total': outcome.total, 'downtime': outcome.downtime,
             'cpu': (sum(after) - sum(before)) * 1e6}
    if options.formats:
        found['disks'] = outcome.disks
        found['write p99'] = part(latencies, 0.99) * 1000
    return Run(found)


class Guests:
    """
    Migrations with QEMU in `build`; the baseline with unpatched QEMU in
    `plain`, or, if that is None, the same QEMU.
    """

    def __init__(self, build: Path, plain: Path | None, work: Path):
        self._build = build
        self._plain = plain or build
        self._note = '' if plain else \
            'the baseline is the same QEMU, not unpatched QEMU'
        self._work = work

    def _side(self, way: type, options: Options, build: Path | None = None,
              name: str = '') -> Side:
        return Side(name or way.name, lambda: migrate_once(
            way, build or self._build, self._work, options))

    def _row(self, number: int, title: str, options: Options,
             goals: tuple[Goal, ...], pairs: tuple[int, int]) -> Row:
        return Row(number, title,
                   self._side(ways.TwoSockets, options, self._plain),
                   self._side(ways.OneSocket, options), goals, pairs=pairs,
                   note=self._note)

    def busy(self) -> list[Row]:
        """Row 8."""
        return [self._row(8, 'guest with 1 GiB of RAM and two disks, half '
                             'full, busy', BUSY,
                          (TOTAL, DISKS, Goal('downtime', 1),
                           Goal('write p99', 1)), (6, 15))]

    def contents(self) -> list[Row]:
        """Row 9: thin images, so not touched."""
        thin = replace(BUSY, touched=False)
        goals = (Goal('disks', 0.3),)
        return [self._row(9, 'disks 90 % sparse', replace(thin, filled=0.1),
                          goals, (6, 11)),
                self._row(9, 'disks full of written zeroes',
                          replace(thin, filled=0.0, zeroes=True), goals,
                          (6, 11))]

    def many(self) -> list[Row]:
        """Row 10."""
        options = replace(BUSY, formats=('raw', 'qcow2') * 4,
                          disk_sizes_mb=UNEQUAL_MB, writes_per_s=50)
        return [self._row(10, '8 disks of unequal size', options, (TOTAL,),
                          (6, 11))]

    def through_ssh(self, baseline: type, variant: type,
                    missing: str) -> list[Row]:
        """Row 12."""
        return [Row(12, 'guest as in row 8, through ssh',
                    self._side(baseline, BUSY, self._plain),
                    self._side(variant, BUSY), (Goal('total', 0.9),),
                    pairs=(6, 11), note=self._note, missing=missing)]

    def ram(self) -> list[Row]:
        """Row 13."""
        options = replace(BUSY, formats=())
        kinds = {'': ((), {}), ', 4 channels of multifd': (('multifd',),
                                                          MULTIFD)}
        for method in ('zlib', 'zstd'):
            kinds[f', 4 channels of multifd, {method}'] = (
                ('multifd',), {**MULTIFD, 'multifd_compression': method})
        rows = []
        for title, (capabilities, parameters) in kinds.items():
            zstd = parameters.get('multifd_compression') == 'zstd'
            sides = [self._side(ways.with_settings(
                ways.RamOnly, f'channel-mux {name}', (*capabilities, *more),
                **parameters), options) for name, more in (
                    ('off', ()), ('on', ('channel-mux',)))]
            rows.append(Row(13, f'RAM only{title}', *sides, RAM_GOALS,
                            pairs=(6, 15), missing=without_zstd(
                                self._build) if zstd else ''))
        return rows

    def timeline(self) -> dict[str, list[tuple[float, float]]]:
        """MiB/s of each stream over one migration, which is not measured."""
        recorder = Recorder()
        migrate_once(ways.OneSocket, self._build, self._work, BUSY,
                     watch=recorder.watch)
        return recorder.rates()


class Recorder:
    """Asks for the bytes of each stream while a migration waits for events."""

    def __init__(self):
        self._samples: list[tuple[float, dict[str, int]]] = []

    @contextlib.contextmanager
    def watch(self, migration: migrate.Migration):
        """While the migration runs."""
        qmp = migration.source.qmp
        wait_any = qmp.wait_any

        def wait_and_look(timeout: float) -> None:
            wait_any(min(timeout, LOOK_S))
            if timeout:         # not while events are only collected
                self._look(qmp)

        qmp.wait_any = wait_and_look
        try:
            yield
        finally:
            qmp.wait_any = wait_any

    def _look(self, qmp) -> None:
        info = qmp.cmd('query-migrate')
        self._samples.append((time.monotonic(), {
            stream['name']: stream['sent']
            for stream in info.get('streams', ())}))

    def rates(self) -> dict[str, list[tuple[float, float]]]:
        """By stream: seconds since the first sample, MiB/s."""
        curves: dict[str, list[tuple[float, float]]] = {}
        for (t0, old), (t1, new) in zip(self._samples, self._samples[1:]):
            for name, sent in new.items():
                rate = max(0, sent - old.get(name, 0)) / MIB / (t1 - t0)
                curves.setdefault(name, []).append(
                    (t1 - self._samples[0][0], rate))
        return curves
