# SPDX-License-Identifier: GPL-2.0-or-later
"""Measures rows: pairs of runs, until the goals are resolved."""

import time

from .model import BenchError, Result, Row
from .verdict import OPEN


def enough(result: Result, most: int) -> bool:
    """Whether no further pair is needed, or there may be none."""
    count = len(result.runs.get(result.row.baseline.name, []))
    if count >= most:
        return True
    if count < result.row.pairs[0]:
        return False
    return all(found.verdict != OPEN for found in result.findings())


def summary(result: Result) -> str:
    """The findings in a line."""
    if result.error:
        return result.error
    return ', '.join(f'{found.goal.metric} {found.median:.2f} '
                     f'({found.verdict})' for found in result.findings())


class Runner:
    """`say` shows progress; `pairs` limits the number of pairs."""

    def __init__(self, say, pairs: int | None = None):
        self._say = say
        self._pairs = pairs

    def measure(self, row: Row) -> Result:
        """
        Alternates baseline and variant, and which of them comes first.  A run
        that fails ends the row, not the benchmark.
        """
        result = Result(row, {side.name: [] for side in row.sides})
        if row.missing:
            result.error = f'left out: {row.missing}'
            return result
        most = min(self._pairs or row.pairs[1], row.pairs[1])
        began = time.monotonic()
        number = 0
        try:
            while not enough(result, most):
                sides = row.sides if number % 2 == 0 else row.sides[::-1]
                for side in sides:
                    self._say(f'{row.number}: {row.title}: pair {number + 1} '
                              f'of {most}, {side.name} '
                              f'({time.monotonic() - began:.0f} s; '
                              f'{summary(result) or "no pair yet"})')
                    result.runs[side.name].append(side.measure())
                number += 1
            for side in row.sides:
                if side.count:
                    result.counted[side.name] = side.count()
        except BenchError as err:
            result.error = f'failed: {err}'
        return result
