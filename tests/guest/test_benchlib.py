#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Tests of the benchmark's statistics, runner and report, without QEMU."""

import contextlib
import json
import os
import random
import socket
import sys
import unittest
import xml.dom.minidom
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).parent))

# pylint: disable=wrong-import-position
from benchlib import (delay, migrations, report, streamrows, streams, svg,
                      ways)
from benchlib.model import BenchError, Result, Row, Run, Side
from benchlib.runner import Runner
from benchlib.verdict import (MET, MISSED, OPEN, Finding, Goal, judge,
                              median_interval, ratio)
from guestlib import migrate

AT_LEAST = Goal('speed', 0.97, at_least=True)
AT_MOST = Goal('cpu', 1.1)
RESULT = {
    'bytes': 4 << 20, 'seconds': 2.0,
    'source': {'cpu': 0.5, 'switches': 8, 'rss': 1 << 20, 'threads': 4,
               'syscalls': 40},
    'destination': {'cpu': 1.5, 'switches': 4, 'rss': 3 << 20, 'threads': 3,
                    'syscalls': 80}}


def side(name, values, **more):
    """A side with one metric, 'speed', of these values in turn."""
    left = iter(values)
    return Side(name, lambda: Run({'speed': next(left)}, **more))


def row(base, variant, **more):
    return Row(1, 'a <row>', side('socket', base), side('mux', variant),
               (AT_LEAST,), **more)


class Interval(unittest.TestCase):
    """The interval of a median."""

    def test_few(self):
        self.assertIsNone(median_interval([1, 2, 3, 4, 5]))

    def test_six(self):
        # 1 - 2 / 2^6 = 0.969
        self.assertEqual(median_interval([6, 1, 5, 2, 4, 3]), (1, 6))

    def test_tables(self):
        # Ranks as tables of the binomial distribution have them
        for size, first in ((8, 1), (9, 2), (11, 2), (12, 3), (20, 6),
                            (25, 8)):
            self.assertEqual(median_interval(list(range(1, size + 1))),
                             (first, size + 1 - first), size)

    def test_coverage(self):
        rand = random.Random(1)
        hits = 0
        for _ in range(1000):
            low, high = median_interval([rand.random() for _ in range(15)])
            hits += low <= 0.5 <= high
        self.assertGreater(hits, 940)


class Verdict(unittest.TestCase):
    """Goals."""

    def test_met(self):
        self.assertEqual(Finding(AT_LEAST, 1.0, (0.99, 1.01), 7).verdict, MET)
        self.assertEqual(Finding(AT_MOST, 1.0, (0.96, 1.05), 7).verdict, MET)

    def test_missed(self):
        self.assertEqual(Finding(AT_LEAST, 0.8, (0.75, 0.9), 7).verdict,
                         MISSED)
        self.assertEqual(Finding(AT_MOST, 1.5, (1.4, 1.6), 7).verdict, MISSED)

    def test_open(self):
        self.assertEqual(Finding(AT_LEAST, 1.0, (0.95, 1.05), 7).verdict, OPEN)
        self.assertEqual(Finding(AT_LEAST, 1.0, None, 3).verdict, OPEN)

    def test_point(self):
        self.assertEqual(Finding(Goal('threads', 1), 1, (1, 1), 6).verdict, MET)
        self.assertEqual(Finding(Goal('threads', 1), 2, (2, 2), 6).verdict,
                         MISSED)

    def test_pairs(self):
        pairs = [({'cpu': 2.0}, {'cpu': 2.0 + 0.1 * i}) for i in range(7)]
        found = judge(AT_MOST, pairs)
        self.assertAlmostEqual(found.median, 1.15)
        self.assertEqual(found.count, 7)
        self.assertIsNone(judge(AT_LEAST, pairs))

    def test_absolute(self):
        found = judge(Goal('memory', 100, absolute=True),
                      [({}, {'memory': 50.0 + i}) for i in range(6)])
        self.assertEqual(found.verdict, MET)
        self.assertEqual(found.median, 52.5)

    def test_ratio_of_nothing(self):
        self.assertEqual(ratio(0, 0), 1)
        self.assertEqual(ratio(1, 0), float('inf'))


class Running(unittest.TestCase):
    """Pairs are added until the goals are resolved."""

    def test_resolved(self):
        result = Runner(lambda text: None).measure(
            row([1.0] * 9, [1.2] * 9, pairs=(7, 9)))
        self.assertEqual(len(result.runs['mux']), 7)
        self.assertEqual(result.findings()[0].verdict, MET)

    def test_not_resolved(self):
        result = Runner(lambda text: None).measure(
            row([1.0] * 9, [0.5, 1.5] * 5, pairs=(6, 9)))
        self.assertEqual(len(result.runs['socket']), 9)
        self.assertEqual(result.findings()[0].verdict, OPEN)

    def test_fewer(self):
        result = Runner(lambda text: None, 2).measure(
            row([1.0] * 9, [1.2] * 9, pairs=(6, 9)))
        self.assertEqual(len(result.runs['mux']), 2)

    def test_order(self):
        order = []

        def noting(name):
            return Side(name, lambda: order.append(name) or Run({'speed': 1}))

        Runner(lambda text: None).measure(Row(
            1, '', noting('a'), noting('b'), (AT_LEAST,), (noting('c'),),
            (2, 2)))
        self.assertEqual(''.join(order), 'abccba')

    def test_failure(self):
        def fail():
            raise BenchError('no luck')

        result = Runner(lambda text: None).measure(Row(
            1, '', Side('a', fail), side('b', [1]), (AT_LEAST,)))
        self.assertIn('no luck', result.error)

    def test_missing(self):
        result = Runner(lambda text: None).measure(
            row([], [], missing='no root'))
        self.assertEqual(result.error, 'left out: no root')
        self.assertEqual(result.findings(), [])

    def test_counted(self):
        one = Side('a', lambda: Run({'speed': 1}), lambda: {'syscalls': 3})
        result = Runner(lambda text: None, 1).measure(
            Row(1, '', one, side('b', [1]), (AT_LEAST,)))
        self.assertEqual(result.counted, {'a': {'syscalls': 3}})
        self.assertEqual(report.medians(result, 'a')['syscalls'], 3)


class Metrics(unittest.TestCase):
    """What is made of the program's output."""

    def test_bulk(self):
        found = streams.metrics(RESULT)
        self.assertEqual(found['speed'], 2)
        self.assertEqual(found['cpu'], 500000)
        self.assertEqual(found['switches'], 3)
        self.assertEqual(found['syscalls'], 30)
        self.assertEqual(found['threads'], 4)
        self.assertEqual(found['memory'], 3)

    def test_requests(self):
        latency = {'count': 4, 'p50_us': 10.0, 'p99_us': 20.0}
        found = streams.metrics({**RESULT, 'bytes': 0, 'latency': latency})
        self.assertNotIn('speed', found)
        self.assertEqual(found['p99'], 20)
        self.assertEqual(found['switches'], 3)

    def test_percentile(self):
        self.assertEqual(migrations.part(list(range(101)), 0.99), 99)
        self.assertEqual(migrations.part([], 0.99), 0)

    def test_rates(self):
        recorder = migrations.Recorder()
        recorder._samples = [(10.0, {}), (11.0, {'main': 2 << 20}),
                             (13.0, {'main': 4 << 20})]
        self.assertEqual(recorder.rates(), {'main': [(1.0, 2.0), (3.0, 1.0)]})


class Rows(unittest.TestCase):
    """The table."""

    def test_titles_differ(self):
        bench = streams.MuxBench(Path('build'), 1)
        targets = streamrows.nbd_targets(Path('/out'))
        rows = (streamrows.bulk(bench) + streamrows.requests(bench) +
                streamrows.shaped(bench, None, 'no root') +
                streamrows.coroutines(bench) +
                streamrows.nbd(bench, targets) + streamrows.idle(bench) +
                streamrows.delayed(bench, None, 'no root'))
        guests = migrations.Guests(Path('a'), Path('b'), Path('w'))
        rows += (guests.busy() + guests.contents() + guests.many() +
                 guests.ram() +
                 guests.through_ssh(ways.TwoSockets, ways.OneSocket, ''))
        titles = [row.title for row in rows]
        self.assertEqual(len(set(titles)), len(titles))
        self.assertEqual({row.number for row in rows}, set(range(1, 15)))
        for each in rows:
            names = [side.name for side in each.sides]
            if not each.missing:
                self.assertEqual(len(set(names)), len(names), each.title)


class Report(unittest.TestCase):
    """The page, the table and the record."""

    def setUp(self):
        self.result = Result(
            row([], []), {'socket': [Run({'speed': 1.0, 'p50': 5.0},
                                         [(8.0, 3), (16.0, 1)])] * 6,
                          'mux': [Run({'speed': 1.1}, [(8.0, 4)])] * 6})

    def test_page(self):
        page = report.page([self.result], {'machine': 'a & b'},
                           {'4 KiB': [(1, 100.0), (2, 150.0)]},
                           {'main': [(0.1, 5.0), (0.2, 6.0)]})
        xml.dom.minidom.parseString(
            page.replace('<!DOCTYPE html>', '').replace(
                '<meta charset="utf-8">', '').replace('<br>', '<br/>'))
        self.assertIn('a &amp; b', page)
        self.assertIn('a &lt;row&gt;', page)
        self.assertEqual(page.count('<svg'), 3)

    def test_empty(self):
        page = report.page([Result(row([], [], missing='x'),
                                   error='left out: x')], {}, {}, {})
        self.assertIn('left out: x', page)
        self.assertNotIn('<svg', page)

    def test_histogram(self):
        self.assertEqual(self.result.histogram('socket'),
                         [(8.0, 18), (16.0, 6)])

    def test_table(self):
        table = report.table([self.result])
        self.assertIn('speed >= 0.97', table)
        self.assertIn('1.10', table)
        self.assertIn(MET, table)

    def test_compare(self):
        record = json.loads(json.dumps(report.as_json([self.result],
                                                      {'date': 'today'})))
        self.assertEqual(record['date'], 'today')
        self.assertIn('none seen', report.compare(record, record))
        slower = json.loads(json.dumps(record))
        found = slower['rows'][0]['findings'][0]
        found['median'], found['interval'] = 0.5, [0.4, 0.6]
        self.assertIn('lower', report.compare(slower, record))
        self.assertIn('higher', report.compare(record, slower))
        slower['rows'] = []
        self.assertIn('unknown', report.compare(record, slower))

    def test_ticks(self):
        self.assertEqual(svg.Axis([1, 8], 0, 1, True).ticks(), [1, 2, 4, 8])
        self.assertEqual(svg.Axis([9, 5000], 0, 1, True).ticks(),
                         [10, 100, 1000])
        self.assertEqual(svg.Axis([8], 0, 1).ticks(), [0, 2, 4, 6, 8])

    def test_plot_of_one_value(self):
        for log in (False, True):
            picture = svg.plot({'a': [(1.0, 0.0)]}, 'x', 'y', log)
            xml.dom.minidom.parseString(picture)


class Monitor:
    """Stands for a QEMU whose events are known beforehand."""

    def __init__(self, *events):
        self.coming = list(events)
        self.events = []
        self.commands = []

    def cmd(self, name, arguments=None, **more):
        self.commands.append((name, arguments or more))
        return {}

    def find_event(self, name, since=0, **data):
        for event in self.events[since:]:
            if event[0] == name and data.items() <= event[1].items():
                return event
        return None

    def wait_any(self, timeout):
        if timeout:
            self.events.append(self.coming.pop(0))


class Ways(unittest.TestCase):
    """Migrations that are driven by events."""

    def migration(self, way, *events):
        source = SimpleNamespace(qmp=Monitor(*events),
                                 config=SimpleNamespace(disks=()))
        return way(source, SimpleNamespace(qmp=Monitor()), {})

    def test_until(self):
        migration = self.migration(ways.RamOnly, ('STOP', {}), ('RESUME', {}))
        found = migration._until(lambda: migration._event('RESUME'), None, '')
        self.assertEqual(found, ('RESUME', {}))
        # Nothing is asked meanwhile
        self.assertEqual(migration.source.qmp.commands, [])

    def test_failure(self):
        migration = self.migration(ways.OneSocket,
                                   ('MIGRATION', {'status': 'failed'}))
        with self.assertRaises(migrate.MigrationError):
            migration._look = lambda: True
            migration._error = 'a reason'
            migration._until(lambda: None, None, '')

    def test_settings(self):
        way = ways.with_settings(ways.RamOnly, 'x', ('multifd',),
                                 multifd_channels=4)
        migration = self.migration(way)
        migration._prepare()
        for vm in (migration.source, migration.destination):
            (_, capabilities), (_, parameters) = vm.qmp.commands
            self.assertIn({'capability': 'multifd', 'state': True},
                          capabilities['capabilities'])
            self.assertEqual(parameters,
                             {'max-bandwidth': 0, 'multifd-channels': 4})

    def test_cpu(self):
        used = ways.cpu_seconds(SimpleNamespace(pid=os.getpid()))
        self.assertGreater(used, 0)


class Delay(unittest.TestCase):
    """The link with a delay, on sockets instead of devices."""

    def test_packets(self):
        near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        out, end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with contextlib.ExitStack() as stack:
            for each in (near, far, out, end):
                stack.enter_context(each)
                each.setblocking(False)
            link = delay.Direction(far.fileno(), out.fileno(), 1e6, 0.0)
            self.assertIsNone(link.due)
            near.send(b'abc')
            link.take()
            self.assertIsNotNone(link.due)
            while link.due:
                link.deliver()
            self.assertEqual(end.recv(10), b'abc')

    def test_queue(self):
        near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with near, far:
            far.setblocking(False)
            link = delay.Direction(far.fileno(), -1, 10.0, 0.0)
            for _ in range(3):
                near.send(b'0123456789')        # a second of this link
            link.take()
            self.assertEqual(len(link._packets), 1)


if __name__ == '__main__':
    unittest.main()
