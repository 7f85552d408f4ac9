# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs of tests/bench/mux-bench, QEMU's benchmark of streams."""

import json
import os
import subprocess
from pathlib import Path

from .model import BenchError, Run, Side

PROGRAM = 'tests/bench/mux-bench'
MIB = 1 << 20
LIMIT_S = 120
# Keep freed memory, so that runs are not dominated by the allocator's mmap()
ENVIRONMENT = {'MALLOC_MMAP_THRESHOLD_': str(256 * MIB),
               'MALLOC_TRIM_THRESHOLD_': str(1024 * MIB)}
# Runs the program with the tracepoint's id as its last argument; tracefs is
# mounted for this alone
WITH_TRACEPOINT = ('mount -t tracefs t /sys/kernel/tracing 2>/dev/null\n'
                   'id=$(cat /sys/kernel/tracing/events/raw_syscalls/'
                   'sys_enter/id) || exit 77\n'
                   'exec "$@" --tracepoint "$id"')
CANNOT_COUNT = 77


def metrics(result: dict) -> dict[str, float]:
    """The values of a run that rows compare and the report shows."""
    sides = [result['source'], result['destination']]
    seconds, mib = result['seconds'], result['bytes'] / MIB
    cpu = sum(side['cpu'] for side in sides)
    switches = sum(side['switches'] for side in sides)
    found = {'threads': max(side['threads'] for side in sides),
             'memory': max(side['rss'] for side in sides) / MIB}
    if all('syscalls' in side for side in sides):
        found['syscalls'] = sum(side['syscalls'] for side in sides)
    if mib:
        found['speed'] = mib / seconds
    latency = result.get('latency')
    if latency:
        found['p50'], found['p99'] = latency['p50_us'], latency['p99_us']
    # What one unit of work costs: a round trip if there is no bulk
    work = mib or (latency and latency['count']) or 0
    if work:
        found['cpu'] = cpu / work * 1e6
        found['switches'] = switches / work
        if 'syscalls' in found:
            found['syscalls'] /= work
    return found


class MuxBench:
    """The program of one build, and how long a run of it takes."""

    def __init__(self, build: Path, seconds: float):
        self._program = build / PROGRAM
        self._seconds = seconds

    def side(self, name: str, arguments: str, prefix: tuple = (),
             seconds: float | None = None) -> Side:
        """
        A side of a row: the program with these arguments; `prefix` precedes
        its command line.
        """
        argv = [*prefix, str(self._program), *arguments.split(), '--seconds',
                str(seconds or self._seconds)]
        return Side(name, lambda: self._run(argv), lambda: self._count(argv))

    @staticmethod
    def _execute(argv: list[str]) -> dict | None:
        try:
            done = subprocess.run(argv, env={**os.environ, **ENVIRONMENT},
                                  text=True, capture_output=True, check=False,
                                  timeout=LIMIT_S)
        except (OSError, subprocess.TimeoutExpired) as err:
            raise BenchError(f'mux-bench: {err}') from None
        if done.returncode == CANNOT_COUNT:
            return None
        if done.returncode:
            raise BenchError(f'{" ".join(argv)}: status {done.returncode}: '
                             f'{done.stderr.strip()}')
        return json.loads(done.stdout)

    def _run(self, argv: list[str]) -> Run:
        result = self._execute(argv)
        histogram = result.get('latency', {}).get('histogram', [])
        return Run(metrics(result), [tuple(pair) for pair in histogram])

    def _count(self, argv: list[str]) -> dict[str, float]:
        """System calls, from a run of their own; {} if that is impossible."""
        if os.geteuid():
            return {}
        result = self._execute(['unshare', '--mount', 'sh', '-c',
                                WITH_TRACEPOINT, 'sh', *argv])
        found = metrics(result) if result else {}
        return {'syscalls': found['syscalls']} if 'syscalls' in found else {}
