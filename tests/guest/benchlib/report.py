# SPDX-License-Identifier: GPL-2.0-or-later
"""The results as a table, as JSON and as a page with plots."""

from html import escape

from . import svg
from .model import Result
from .verdict import MET, MISSED, Finding

UNITS = {'speed': 'MiB/s', 'cpu': 'CPU us', 'switches': 'switches',
         'syscalls': 'system calls', 'p50': 'p50 us', 'p99': 'p99 us',
         'total': 'total s', 'disks': 'disk phase s', 'downtime': 'downtime s',
         'write p99': 'guest write p99 ms', 'threads': 'threads',
         'memory': 'memory MiB'}
STYLE = '''
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem;
       margin: 2rem auto; padding: 0 1rem; color: #1d2733; }
table { border-collapse: collapse; width: 100%; margin: 1rem 0; }
th, td { text-align: left; padding: .3rem .6rem; vertical-align: top;
         border-bottom: 1px solid #d5dbe1; }
td.number { text-align: right; white-space: nowrap; }
.met { color: #23703a; } .missed { color: #b3261e; } .open { color: #76560b; }
svg { font: 11px system-ui, sans-serif; fill: #1d2733; }
svg polyline { fill: none; stroke-width: 1.6; }
svg .axis { fill: none; stroke: #1d2733; }
svg .grid { stroke: #e4e8ec; }
.plots { display: flex; flex-wrap: wrap; gap: 1rem; }
figure { margin: 0; }
'''
CLASSES = {MET: 'met', MISSED: 'missed'}


def interval_text(found: Finding) -> str:
    """The interval in brackets."""
    if found.interval is None:
        return '(too few pairs)'
    return f'[{found.interval[0]:.2f}, {found.interval[1]:.2f}]'


def medians(result: Result, side: str) -> dict[str, float]:
    """The medians of the metrics of a side."""
    runs = result.runs.get(side, [])
    names = {name for run in runs for name in run.metrics}
    middle = {}
    for name in names:
        values = sorted(run.metrics[name] for run in runs
                        if name in run.metrics)
        middle[name] = values[len(values) // 2]
    middle.update(result.counted.get(side, {}))
    return middle


def table(results: list[Result]) -> str:
    """A table for the terminal."""
    lines = [f'{"row":>3}  {"goal":<20} {"median":>8}  '
             f'{"95 % interval":<16} {"pairs":>5}  verdict']
    for result in results:
        row = result.row
        lines.append(f'{row.number:>3}  {row.title}: {row.variant.name} / '
                     f'{row.baseline.name}')
        if result.error:
            lines.append(f'     {result.error}')
        for found in result.findings():
            lines.append(f'     {found.goal!s:<20} {found.median:>8.2f}  '
                         f'{interval_text(found):<16} {found.count:>5}  '
                         f'{found.verdict}')
    return '\n'.join(lines)


def as_json(results: list[Result], about: dict) -> dict:
    """What is recorded."""
    rows = []
    for result in results:
        rows.append({
            'number': result.row.number, 'title': result.row.title,
            'error': result.error,
            'findings': [{'metric': found.goal.metric,
                          'goal': str(found.goal), 'median': found.median,
                          'interval': found.interval, 'pairs': found.count,
                          'verdict': found.verdict}
                         for found in result.findings()],
            'sides': {side.name: {
                'runs': [run.metrics for run in result.runs.get(side.name, [])],
                **result.counted.get(side.name, {})}
                      for side in result.row.sides}})
    return {**about, 'rows': rows}


def _result_rows(result: Result) -> str:
    row = result.row
    goals = '<br>'.join(
        f'<span class="{CLASSES.get(found.verdict, "open")}">'
        f'{escape(str(found.goal))}: {found.median:.2f} '
        f'{interval_text(found)}, {found.count} pairs: {found.verdict}</span>'
        for found in result.findings()) or escape(result.error)
    if result.error and result.findings():
        goals += f'<br>{escape(result.error)}'
    if row.note:
        goals += f'<br>{escape(row.note)}'
    sides = []
    for side in row.sides:
        values = medians(result, side.name)
        cells = ', '.join(f'{text} {svg.number(values[name])}'
                          for name, text in UNITS.items() if name in values)
        sides.append(f'<b>{escape(side.name)}</b>: {cells}')
    return (f'<tr><td class="number">{row.number}</td>'
            f'<td>{escape(row.title)}</td><td>{goals}</td>'
            f'<td>{"<br>".join(sides)}</td></tr>')


def _cumulative(histogram: list) -> list[tuple[float, float]]:
    """The part of all values, in per cent, up to each bound."""
    total = sum(count for _, count in histogram)
    points, so_far = [], 0
    for bound, count in histogram:
        so_far += count
        points.append((bound, 100 * so_far / total))
    return points


def _latency_plot(result: Result) -> str:
    curves = {side.name: _cumulative(result.histogram(side.name))
              for side in result.row.sides if result.histogram(side.name)}
    if not curves:
        return ''
    return _figure(f'{result.row.number}: {result.row.title}',
                   svg.plot(curves, 'latency, us', '% of requests', True))


def _figure(title: str, picture: str) -> str:
    return (f'<figure><figcaption>{escape(title)}</figcaption>{picture}'
            '</figure>')


def page(results: list[Result], about: dict, sweep: dict,
         timeline: dict) -> str:
    """
    The page.  `sweep` has throughput by streams for each size of writes,
    `timeline` the rate of each stream over one migration; both may be empty.
    """
    plots = [_latency_plot(result) for result in results]
    parts = ['<h2>Goals</h2>',
             '<table><tr><th>row</th><th>what</th><th>median of the ratios, '
             '95 % interval</th><th>medians</th></tr>',
             *map(_result_rows, results), '</table>',
             '<p>CPU is of both processes: us per MiB, or per round trip where '
             'there is no bulk; so are switches (voluntary context switches) '
             'and system calls.</p>']
    if sweep:
        parts += ['<h2>Throughput by streams and size of writes</h2>',
                  svg.plot(sweep, 'streams', 'MiB/s', True)]
    if any(plots):
        parts += ['<h2>Latencies</h2><div class="plots">', *plots, '</div>']
    if timeline:
        parts += ['<h2>One migration</h2>',
                  svg.plot(timeline, 's', 'MiB/s')]
    facts = '<br>'.join(f'{escape(str(name))}: {escape(str(value))}'
                        for name, value in about.items())
    return ('<!DOCTYPE html><html lang="en"><meta charset="utf-8">'
            f'<title>Benchmark</title><style>{STYLE}</style>'
            f'<h1>Benchmark</h1><p>{facts}</p>{"".join(parts)}</html>\n')


def compare(new: dict, old: dict) -> str:
    """The findings of two records side by side."""
    known = {(row['title'], found['metric']): found
             for row in old['rows'] for found in row['findings']}
    lines = [f'{"row":>3}  {"metric":<10} {"recorded":>9} {"now":>9}  change']
    for row in new['rows']:
        lines.append(f'{row["number"]:>3}  {row["title"]}')
        for found in row['findings']:
            before = known.get((row['title'], found['metric']))
            then = f'{before["median"]:9.2f}' if before else f'{"-":>9}'
            lines.append(f'     {found["metric"]:<10} {then} '
                         f'{found["median"]:9.2f}  '
                         f'{_change(found, before)}')
    return '\n'.join(lines)


def _change(now: dict, before: dict | None) -> str:
    """Whether the intervals have no value in common."""
    if not before or not now['interval'] or not before['interval']:
        return 'unknown'
    if now['interval'][0] > before['interval'][1]:
        return 'higher'
    if now['interval'][1] < before['interval'][0]:
        return 'lower'
    return 'none seen'
