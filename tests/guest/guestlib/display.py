# SPDX-License-Identifier: GPL-2.0-or-later
"""Progress of each stream as a bar, redrawn in place on a terminal."""

import shutil
import sys
import time
from dataclasses import dataclass

from .migrate import Progress, Stream

MIB = 1 << 20
BAR = 24
RATE_SPAN = 1.0                 # seconds over which a rate is taken
SHOW_EVERY = 1.0

WAITS = {
    'opening': 'waits for the destination',
    'copying': 'first copy',
    'ready': 'mirrors the guest\'s writes',
    'finishing': 'waits for the destination to finish',
    'finished': 'done',
    'reset': 'aborted',
}
MAIN_WAITS = {
    'connect': 'waits for the connection',
    'setup': 'waits for the connection',
    'disks': 'waits for the disks',
    'precopy': 'copies RAM',
    'active': 'copies RAM',
    'converge': 'waits until the rest is small',
    'pre-switchover': 'guest stopped, completes the disks',
    'switchover': 'guest stopped, sends device state',
    'device': 'guest stopped, sends device state',
    'completed': 'done',
}


@dataclass
class Row:
    """One stream as shown."""

    name: str
    done: float | None          # 0 to 1
    rate: float                 # bytes per second
    left: int | None
    waits: str


def _left_and_total(stream: Stream, progress: Progress):
    """The contract's members, else what the job or the RAM counters say."""
    if stream.total is not None and stream.remaining is not None:
        return stream.remaining, stream.total
    if stream.name == 'main' and progress.ram:
        return progress.ram['remaining'], progress.ram['total']
    job = progress.jobs.get(stream.name)
    if job:
        return job['len'] - job['offset'], job['len']
    return stream.remaining, stream.total


def _waits(stream: Stream, progress: Progress) -> str:
    if stream.state in ('opening', 'finished', 'reset'):
        return WAITS[stream.state]
    if stream.name == 'main':
        for key in (progress.phase, progress.status):
            if key in MAIN_WAITS:
                return MAIN_WAITS[key]
    elif stream.state == 'open':
        ready = progress.jobs.get(stream.name, {}).get('ready')
        return WAITS['ready' if ready else 'copying']
    return WAITS.get(stream.state, stream.state)


class Display:
    """Shows each Progress on a terminal, elsewhere changes and one a second."""

    def __init__(self, out=sys.stdout):
        self._out = out
        self._terminal = out.isatty()
        self._began = time.monotonic()
        self._history: dict[str, list[tuple[float, int]]] = {}
        self._drawn = 0
        self._last_shown = 0.0
        self._last_states: tuple = ()

    def __call__(self, progress: Progress) -> None:
        now = time.monotonic()
        rows = [self._row(stream, progress, now)
                for stream in sorted(progress.streams,
                                     key=lambda s: (s.name != 'main', s.name))]
        phase = progress.phase or progress.status
        lines = self._lines(phase, now, rows)
        if self._terminal:
            self._redraw(lines)
            return
        states = (phase, *((row.name, row.waits) for row in rows))
        if states != self._last_states or now >= self._last_shown + SHOW_EVERY:
            self._last_states, self._last_shown = states, now
            print(*lines, sep='\n', file=self._out, flush=True)

    def _row(self, stream: Stream, progress: Progress, now: float) -> Row:
        left, total = _left_and_total(stream, progress)
        moved = stream.sent + stream.received
        history = self._history.setdefault(stream.name, [])
        history.append((now, moved))
        while len(history) > 2 and history[1][0] < now - RATE_SPAN:
            history.pop(0)
        since, then = history[0]
        rate = (moved - then) / (now - since) if now > since else 0.0
        done = None
        if total and left is not None:
            done = min(max(1 - left / total, 0.0), 1.0)
        if stream.state == 'finished' or progress.status == 'completed':
            done, left = 1.0, 0
        return Row(stream.name, done, max(rate, 0.0), left,
                   _waits(stream, progress))

    def _lines(self, phase: str, now: float, rows: list[Row]) -> list[str]:
        lines = [f'{now - self._began:6.1f} s  {phase}']
        for row in rows:
            full = round((row.done or 0) * BAR)
            bar = '#' * full + '.' * (BAR - full)
            percent = '' if row.done is None else f'{row.done:4.0%}'
            lines.append(f'  {row.name:10} [{bar}] {percent:>4} '
                         f'{row.rate / MIB:7.1f} MiB/s '
                         f'{_mib(row.left):>9} left  {row.waits}')
        return lines

    def _redraw(self, lines: list[str]) -> None:
        up = f'\033[{self._drawn}A' if self._drawn else ''
        width = shutil.get_terminal_size().columns - 1
        text = ''.join(f'\033[2K{line[:width]}\n' for line in lines)
        self._out.write(up + text + '\033[J')
        self._out.flush()
        self._drawn = len(lines)


def _mib(size: int | None) -> str:
    return '?' if size is None else f'{size / MIB:.0f} MiB'
