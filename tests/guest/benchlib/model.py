# SPDX-License-Identifier: GPL-2.0-or-later
"""What is measured: rows of a baseline and a variant, and their runs."""

from collections.abc import Callable
from dataclasses import dataclass, field

from .verdict import Finding, Goal, judge


class BenchError(Exception):
    """A run failed."""


@dataclass
class Run:
    """One run: values to compare, and what only the report shows."""

    metrics: dict[str, float]
    histogram: list[tuple[float, int]] = field(default_factory=list)


@dataclass(frozen=True)
class Side:
    """One way of doing what a row is about."""

    name: str
    measure: Callable[[], Run]
    # The metrics of a run that is slower because it counts system calls
    count: Callable[[], dict[str, float]] | None = None


@dataclass(frozen=True)
class Row:
    """A row of the table."""

    number: int
    title: str
    baseline: Side
    variant: Side
    goals: tuple[Goal, ...]
    others: tuple[Side, ...] = ()       # shown beside these two
    pairs: tuple[int, int] = (7, 31)    # at least and at most
    note: str = ''
    missing: str = ''                   # why it cannot be measured here

    @property
    def sides(self) -> tuple[Side, ...]:
        return self.baseline, self.variant, *self.others


@dataclass
class Result:
    """A row with its runs."""

    row: Row
    runs: dict[str, list[Run]] = field(default_factory=dict)   # by side
    counted: dict[str, dict[str, float]] = field(default_factory=dict)
    error: str = ''

    def findings(self) -> list[Finding]:
        """One for each goal that the runs have the metric of."""
        base, variant = (self.runs.get(side.name, [])
                         for side in self.row.sides[:2])
        pairs = [(a.metrics, b.metrics) for a, b in zip(base, variant)]
        found = [judge(goal, pairs) for goal in self.row.goals]
        return [each for each in found if each]

    def histogram(self, side: str) -> list[tuple[float, int]]:
        """The latencies of all runs of a side: upper bound in us, number."""
        total: dict[float, int] = {}
        for run in self.runs.get(side, []):
            for bound, count in run.histogram:
                total[bound] = total.get(bound, 0) + count
        return sorted(total.items())
