# SPDX-License-Identifier: GPL-2.0-or-later
"""Line plots as SVG."""

import math
from html import escape

WIDTH, HEIGHT = 640, 320
LEFT, RIGHT, TOP, BOTTOM = 70, 170, 24, 44
COLOURS = ('#1b6ca8', '#d1495b', '#3c9d4e', '#8d5a97', '#e08e45', '#5c6672',
           '#00a6a6', '#b5179e')
TICKS = 5


class Axis:
    """Maps values to pixels, linear or logarithmic."""

    def __init__(self, values, begin: float, end: float, log: bool = False):
        self._log = log
        values = [value for value in values if not log or value > 0] or [1.0]
        self._low = min(values) if log else min(0.0, *values)
        self._high = max(values)
        if self._high <= self._low:
            self._high = self._low * 2 if log else self._low + 1
        self._begin, self._end = begin, end

    def _scale(self, value: float) -> float:
        return math.log(max(value, self._low)) if self._log else value

    def at(self, value: float) -> float:
        """The pixel of a value."""
        low, high = self._scale(self._low), self._scale(self._high)
        part = (self._scale(value) - low) / (high - low)
        return self._begin + part * (self._end - self._begin)

    def ticks(self) -> list[float]:
        """Values to be named."""
        if self._log:
            base = 2 if self._high / self._low <= 256 else 10
            first = math.ceil(math.log(self._low, base) - 1e-9)
            last = math.floor(math.log(self._high, base) + 1e-9)
            return [float(base) ** power for power in range(first, last + 1)]
        return [self._low + i * (self._high - self._low) / (TICKS - 1)
                for i in range(TICKS)]


def number(value: float) -> str:
    """A short form of a value."""
    return f'{value:.3g}' if abs(value) < 1000 else f'{value:,.0f}'


def text(x: float, y: float, words: str, anchor: str = 'start') -> str:
    return (f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">'
            f'{escape(words)}</text>')


def grid(x: Axis, y: Axis, x_name: str, y_name: str) -> list[str]:
    """Axes, lines and their names."""
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    parts = [f'<path class="axis" d="M{LEFT} {TOP}V{bottom}H{right}"/>']
    for value in y.ticks():
        at = y.at(value)
        parts += [f'<path class="grid" d="M{LEFT} {at:.1f}H{right}"/>',
                  text(LEFT - 6, at + 4, number(value), 'end')]
    for value in x.ticks():
        parts.append(text(x.at(value), bottom + 16, number(value), 'middle'))
    return parts + [text((LEFT + right) / 2, HEIGHT - 8, x_name, 'middle'),
                    text(LEFT, TOP - 8, y_name)]


def plot(curves: dict[str, list[tuple[float, float]]], x_name: str,
         y_name: str, log_x: bool = False) -> str:
    """Named curves in one plot."""
    points = [point for curve in curves.values() for point in curve]
    x = Axis([x for x, _ in points], LEFT, WIDTH - RIGHT, log_x)
    y = Axis([y for _, y in points], HEIGHT - BOTTOM, TOP)
    parts = grid(x, y, x_name, y_name)
    for i, (name, curve) in enumerate(curves.items()):
        colour = COLOURS[i % len(COLOURS)]
        line = ' '.join(f'{x.at(a):.1f},{y.at(b):.1f}' for a, b in curve)
        height = TOP + 16 * (i + 1)
        parts += [f'<polyline points="{line}" stroke="{colour}"/>',
                  f'<rect x="{WIDTH - RIGHT + 12}" y="{height - 9}" width="10" '
                  f'height="10" fill="{colour}"/>',
                  text(WIDTH - RIGHT + 28, height, name)]
    return (f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" '
            f'role="img">{"".join(parts)}</svg>')
