# SPDX-License-Identifier: GPL-2.0-or-later
"""
Medians of paired ratios, and whether they reach a goal.

The interval of a median comes from order statistics: the number of values below
the median of the population has the binomial distribution, whatever the
distribution of the values.  It exists from 6 values on.
"""

import statistics
from dataclasses import dataclass
from math import comb

LEVEL = 0.95

MET, MISSED, OPEN = 'met', 'missed', 'not resolved'


def median_interval(values: list[float],
                    level: float = LEVEL) -> tuple[float, float] | None:
    """
    The confidence interval of the median, as narrow as order statistics allow;
    None if there are too few values.
    """
    ordered = sorted(values)
    size = len(ordered)
    best = None
    tail = 0.0                  # probability that fewer than `rank` are below
    for rank in range(1, size // 2 + 1):
        tail += comb(size, rank - 1) / 2 ** size
        if 1 - 2 * tail < level:
            break
        best = ordered[rank - 1], ordered[size - rank]
    return best


@dataclass(frozen=True)
class Goal:
    """What a metric has to reach."""

    metric: str
    limit: float
    at_least: bool = False      # else at most
    absolute: bool = False      # the variant's value; else its ratio

    def __str__(self) -> str:
        sign = '>=' if self.at_least else '<='
        return f'{self.metric} {sign} {self.limit:g}'

    def reached(self, value: float) -> bool:
        """Whether a value is on the good side."""
        return value >= self.limit if self.at_least else value <= self.limit


@dataclass(frozen=True)
class Finding:
    """A goal and what the pairs say about it."""

    goal: Goal
    median: float
    interval: tuple[float, float] | None
    count: int

    @property
    def verdict(self) -> str:
        """
        MET or MISSED if the interval is narrower than the distance from the
        median to the goal, or is a point; else OPEN.
        """
        if self.interval is None:
            return OPEN
        width = self.interval[1] - self.interval[0]
        if width and width >= abs(self.median - self.goal.limit):
            return OPEN
        return MET if self.goal.reached(self.median) else MISSED


def ratio(value: float, base: float) -> float:
    """value / base, where 0 / 0 is 1."""
    if base:
        return value / base
    return float('inf') if value else 1.0


def judge(goal: Goal, pairs: list[tuple[dict, dict]]) -> Finding | None:
    """
    What pairs of metrics, of the baseline and of the variant, say about a goal;
    None if they do not have the metric.
    """
    values = [variant[goal.metric] if goal.absolute else
              ratio(variant[goal.metric], base[goal.metric])
              for base, variant in pairs
              if goal.metric in variant and
              (goal.absolute or goal.metric in base)]
    if not values:
        return None
    return Finding(goal, statistics.median(values), median_interval(values),
                   len(values))
