#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""
Tests of the guest tests: do they detect errors?  No QEMU is needed.
"""

import contextlib
import errno
import io
import os
import socket
import tempfile
import time
import unittest
import zlib
from pathlib import Path

from campaign import Life
from guestlib import catalogue, faults, layout, netwatch, verify
from guestlib.catalogue import NEVER, PHASES
from guestlib.configuration import BY_NAME, CONFIGURATIONS
from guestlib.disks import Disk
from guestlib.display import Display
from guestlib.guestlog import GuestLog
from guestlib.migrate import Progress, Stream
from guestlib.resources import surplus
from guestlib.source import PACKAGE, source_of

DISK = Disk(1, 'raw', 16 << 20)


def record(sequence: int) -> bytes:
    """A record as init.c writes it, with a payload of its own."""
    payload = b'\x5a' * (layout.PAGE - layout.RECORD_HEAD.size)
    head = layout.RECORD_MAGIC, sequence, DISK.number
    crc = zlib.crc32(layout.RECORD_HEAD.pack(*head, 0) + payload)
    return layout.RECORD_HEAD.pack(*head, crc) + payload


class DiskCheck(unittest.TestCase):
    """verify.check_disk() on a disk with 40 records."""

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.path = Path(folder.name) / 'disk'
        blocks = DISK.size // layout.BLOCK
        self.path.write_bytes(b''.join(
            bytes(layout.initial_block(DISK.number, block,
                                       DISK.filled_blocks))
            for block in range(blocks)))
        for sequence in range(40):
            self.put(self.place(sequence), record(sequence))

    @staticmethod
    def place(sequence: int) -> int:
        return layout.record_page(sequence, DISK.size) * layout.PAGE

    def put(self, offset: int, data: bytes) -> None:
        with open(self.path, 'r+b') as file:
            file.seek(offset)
            file.write(data)

    def faults(self, acknowledged: int = 40) -> list[str]:
        return verify.check_disk(DISK, self.path, acknowledged).faults

    def test_good(self):
        report = verify.check_disk(DISK, self.path, 40)
        self.assertEqual(report.faults, [])
        self.assertEqual(report.records, 40)
        self.assertEqual(report.records + report.pages,
                         DISK.size // layout.PAGE)

    def test_one_write_under_way(self):
        self.assertEqual(self.faults(39), [])

    def test_unknown_write(self):
        self.assertEqual(len(self.faults(38)), 1)

    def test_lost_write(self):
        self.put(self.place(7), bytes(layout.PAGE))
        self.assertRegex(self.faults()[0], 'write 7 .*no record')

    def test_last_write_lost(self):
        self.assertRegex(self.faults(41)[0], 'write 40 .*no record')

    def test_old_write(self):
        self.put(self.place(7), record(6))
        self.assertRegex(self.faults()[0], 'write 7 .*holds record 6')

    def test_torn_write(self):
        self.put(self.place(7) + layout.PAGE - 1, b'\0')
        self.assertRegex(self.faults()[0], 'write 7 .*checksum')

    def test_changed_byte(self):
        for offset in (DISK.size // 2 - 1, DISK.size - 1):
            with self.subTest(offset=offset):
                self.put(offset, b'\1')
                page = offset // layout.PAGE * layout.PAGE
                self.assertIn(f'{page:#x}', self.faults()[-1])

    def test_short_disk(self):
        os.truncate(self.path, DISK.size - layout.BLOCK)
        self.assertRegex(self.faults()[0], 'bytes')

    def test_many_faults_are_counted(self):
        self.put(0, bytes(layout.BLOCK))
        self.assertRegex(self.faults()[-1], r'\d{3} faults in all')

    def test_places_are_all_different(self):
        capacity = layout.record_capacity(DISK.size)
        self.assertEqual(len({layout.record_page(sequence, DISK.size)
                              for sequence in range(capacity)}), capacity)


class Log(unittest.TestCase):
    """GuestLog with two consoles."""

    def setUp(self):
        self.log = GuestLog(2)
        self.addCleanup(self.log.close)
        self.ends = {}
        for side in ('source', 'destination'):
            ours, self.ends[side] = socket.socketpair()
            self.addCleanup(ours.close)
            self.addCleanup(self.ends[side].close)
            self.log.attach(side, ours)

    def say(self, side: str, text: str) -> None:
        self.ends[side].sendall(text.encode())

    def test_line_over_two_consoles(self):
        self.say('source', 'READY 2\r\nW 0 0\r\nW 1 0\r\nW 0')
        self.say('destination', ' 1\r\nW 1 1\r\n')
        self.log.close()
        self.assertEqual([[ack.side for ack in acks] for acks in
                          self.log.acks], [['source', 'destination']] * 2)
        self.assertEqual(self.log.faults + self.log.other, [])

    def test_missing_acknowledgement(self):
        self.say('source', 'W 0 0\r\nW 0 2\r\n')
        self.log.close()
        self.assertRegex(self.log.faults[0], 'write 2 .*after 0')

    def test_guest_restarted(self):
        self.say('source', 'W 0 0\r\nW 0 1\r\n')
        self.say('destination', 'W 0 0\r\n')
        self.log.close()
        self.assertRegex(self.log.faults[0], 'write 0 .*after 1')

    def test_guest_rebooted(self):
        self.say('source', 'W 0 0\r\nW 0 1\r\n')
        self.log.wait(lambda: len(self.log.acks[0]) == 2, 5)
        self.log.expect_reboot()
        self.say('source', 'W 0 0\r\nW 0 1\r\nW 0 2\r\nW 0 0\r\n')
        self.log.close()
        self.assertEqual(len(self.log.acks[0]), 3)
        self.assertRegex(self.log.faults[0], 'write 0 .*after 2')
        self.assertEqual(len(self.log.faults), 1)

    def test_guest_complains(self):
        self.say('destination', 'E memory: page 3\r\n')
        self.log.close()
        self.assertRegex(self.log.faults[0], 'memory: page 3')


class Network(unittest.TestCase):
    """NetWatch on sockets of this process."""

    def setUp(self):
        self.stack = contextlib.ExitStack()
        self.addCleanup(self.stack.close)

    def watched(self, listeners: int, connections: int):
        """What it sees of sockets that this process opens."""
        watch = netwatch.NetWatch({'both': os.getpid()})
        server = None
        for _ in range(listeners):
            server = self.stack.enter_context(socket.create_server(
                ('127.0.0.1', 0)))
        port = server.getsockname()[1]
        for _ in range(connections):
            self.stack.enter_context(socket.create_connection(
                ('127.0.0.1', port)))
            self.stack.enter_context(server.accept()[0])
        return watch.stop(), port

    def test_sees_every_socket(self):
        seen, port = self.watched(listeners=2, connections=3)
        self.assertEqual(len(seen.listeners()), 2)
        self.assertEqual(len(seen.connections()), 6)
        self.assertIn(f'127.0.0.1:{port}',
                      [found.local for found in seen.listeners()])

    def test_listening_ports(self):
        before = netwatch.listening_ports(os.getpid())
        _, port = self.watched(listeners=1, connections=1)
        self.assertEqual(netwatch.listening_ports(os.getpid()) - before,
                         {port})

    def test_short_connection_is_seen_afterwards(self):
        watch = netwatch.NetWatch({})
        with socket.create_server(('127.0.0.1', 0)) as server:
            port = server.getsockname()[1]
            with socket.create_connection(('127.0.0.1', port)):
                server.accept()[0].close()
        for _ in range(200):    # the kernel ends it in its own time
            faults = netwatch.one_tcp_connection(watch.stop(), 'a', 'b', port)
            if faults and 'short' in faults[-1]:
                break
            time.sleep(0.05)
        self.assertRegex(' '.join(faults), 'short connection')


class NetworkRules(unittest.TestCase):
    """one_tcp_connection() and one_unix_connection() on made-up sightings."""

    LISTENER = netwatch.Socket('dst', 'tcp', True, '127.0.0.1:4444')
    THERE = netwatch.Socket('src', 'tcp', False, '127.0.0.1:5000',
                            '127.0.0.1:4444')
    BACK = netwatch.Socket('dst', 'tcp', False, '127.0.0.1:4444',
                           '127.0.0.1:5000')

    def tcp(self, *sockets) -> list[str]:
        seen = netwatch.Sightings(dict(enumerate(sockets)))
        return netwatch.one_tcp_connection(seen, 'src', 'dst', 4444)

    def test_one_connection(self):
        self.assertEqual(self.tcp(self.LISTENER, self.THERE, self.BACK), [])

    def test_no_connection(self):
        self.assertTrue(self.tcp(self.LISTENER))

    def test_second_connection(self):
        second = [netwatch.Socket('src', 'tcp', False, '127.0.0.1:5001',
                                  '127.0.0.1:4444'),
                  netwatch.Socket('dst', 'tcp', False, '127.0.0.1:4444',
                                  '127.0.0.1:5001')]
        self.assertTrue(self.tcp(self.LISTENER, self.THERE, self.BACK,
                                 *second))

    def test_other_listeners(self):
        for other in (netwatch.Socket('dst', 'tcp', True, '127.0.0.1:10809'),
                      netwatch.Socket('src', 'tcp', True, '127.0.0.1:4444'),
                      netwatch.Socket('dst', 'unix', True, '/tmp/nbd')):
            with self.subTest(other=str(other)):
                self.assertEqual(self.tcp(self.LISTENER, self.THERE,
                                          self.BACK, other), [str(other)])

    def test_unix(self):
        listener = netwatch.Socket('dst', 'unix', True, '/m')
        ends = [netwatch.Socket('dst', 'unix', False, '/m'),
                netwatch.Socket('src', 'unix', False, '(no name)')]

        def faults(*sockets):
            seen = netwatch.Sightings(dict(enumerate(sockets)))
            return netwatch.one_unix_connection(seen, 'src', 'dst', '/m')

        self.assertEqual(faults(listener, *ends), [])
        self.assertTrue(faults(listener, *ends, *ends))
        self.assertTrue(faults(listener))
        self.assertTrue(faults(listener, *ends, self.LISTENER))


class Screen(io.StringIO):
    """A terminal to draw on."""

    def isatty(self) -> bool:
        return True


class Shown(unittest.TestCase):
    """Display of what QEMU tells, be it much or little."""

    MAIN = Stream('main', 'open', 0, 0)
    DISK = Stream('nbd-disk0', 'open', 256 << 20, 1 << 20, 768 << 20, 1 << 30)
    JOB = {'nbd-disk0': {'len': 1 << 30, 'offset': 1 << 29, 'ready': False}}

    @staticmethod
    def lines(*steps: Progress, out=None) -> list[str]:
        display = Display(out or io.StringIO())
        for step in steps:
            display(step)
        return display._out.getvalue().splitlines()

    def test_streams(self):
        phase, main, disk = self.lines(
            Progress('setup', 'disks', [self.MAIN, self.DISK]))
        self.assertRegex(phase, 'disks$')
        self.assertRegex(main, '^  main .* waits for the disks$')
        self.assertRegex(disk, r'^  nbd-disk0 +\[#{6}\.{18}\]  25% .* '
                         '768 MiB left  first copy$')

    def test_numbers_of_the_job(self):
        stream = Stream('nbd-disk0', 'open')
        _, line = self.lines(Progress('setup', '', [stream], self.JOB))
        self.assertRegex(line, 'nbd-disk0 .* 50% ')

    def test_unknown_state_and_phase(self):
        phase, line = self.lines(Progress('odd', 'new', [Stream('x', 'newer')]))
        self.assertRegex(phase, 'new$')
        self.assertRegex(line, '^  x .* newer$')

    def test_shown_on_change_only(self):
        step = Progress('setup', 'disks', [self.DISK])
        other = Progress('active', 'precopy', [self.DISK])
        self.assertEqual(len(self.lines(step, step, other, other)), 4)

    def test_terminal(self):
        step = Progress('setup', 'disks', [self.MAIN, self.DISK])
        lines = self.lines(step, step, out=Screen())
        self.assertRegex(lines[2], r'nbd-disk0 +\[#{6}\.{18}\]')
        self.assertIn('\033[3A', lines[3])


class Resources(unittest.TestCase):
    """surplus(): resources that a migration has left behind."""

    def test_each_counts(self):
        self.assertEqual(surplus('descriptor', ['a', 'a', 'b'], ['a', 'b']),
                         ['a'])
        self.assertEqual(surplus('descriptor', ['c'], ['a', 'b']), ['c'])

    def test_threads_count_by_number(self):
        self.assertEqual(surplus('thread', ['new', 'b'], ['a', 'b']), [])
        self.assertIn('b', surplus('thread', ['a', 'b', 'b'], ['a', 'b']))


class Source(unittest.TestCase):
    """source_of(): where QEMU's Python packages are."""

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.build = self.folder / 'qemu'
        self.build.mkdir()

    def source(self, name: str) -> Path:
        (self.folder / name / PACKAGE).mkdir(parents=True)
        return self.folder / name

    def configured_from(self, path: str) -> None:
        (self.build / 'config-host.mak').write_text(
            f'all:\nSRC_PATH={path}\nSUBDIRS=\n')

    def test_beside_the_build(self):
        self.assertEqual(self.source('src'), source_of(self.build))

    def test_elsewhere(self):
        self.source('src')
        other = self.source('other')
        for path in (str(other), '../other'):
            self.configured_from(path)
            self.assertTrue(source_of(self.build).samefile(other))

    def test_moved(self):
        """A build directory that was moved with its source."""
        self.configured_from(str(self.folder / 'gone'))
        self.assertEqual(self.source('src'), source_of(self.build))

    def test_nowhere(self):
        with self.assertRaisesRegex(FileNotFoundError, PACKAGE):
            source_of(self.build)


class Catalogue(unittest.TestCase):
    """The rows of the catalogue that the campaign runs."""

    def test_cells(self):
        cells = faults.cells()
        self.assertEqual(len(dict(cells)), len(cells))
        self.assertEqual({fault.phase for _, fault in cells}, set(PHASES))
        for name, fault in cells:
            self.assertTrue(fault.harmless or fault.cancelled or
                            fault.says != NEVER or
                            fault.ends_source, name)

    def test_some(self):
        some = faults.cells()[::4]
        self.assertEqual({fault.phase for _, fault in some}, set(PHASES))
        self.assertGreater(len({fault.name for _, fault in some}), 15)

    def test_storage(self):
        self.assertEqual(len(BY_NAME), len(CONFIGURATIONS))

    def test_one(self):
        self.assertEqual([name for name, _ in faults.cells()
                          if 's/kill-' in name],
                         ['disks/kill-destination',
                          'disks/kill-destination+stop-guest',
                          'disks/kill-destination+reset-guest'])

    def test_lasting(self):
        names = {fault.name: fault for fault in faults.lasting('3')}
        self.assertEqual(names['source-without-descriptors'].text, '3')
        self.assertEqual(names['destination-full'].error['errno'], 28)
        self.assertEqual(names['destination-too-small'].error, {})

    def test_causes(self):
        self.assertIn(os.strerror(errno.EPIPE),
                      catalogue.causes('source', 'closed').replace('\\', ''))
        yanked = 'all streams: connection with the {} failed: the ' \
            'connection was yanked'
        self.assertRegex(yanked.format('destination'),
                         catalogue.causes('source', 'yanked'))
        self.assertNotRegex(yanked.format('source'),
                            catalogue.causes('source', 'yanked'))


class Messages(unittest.TestCase):
    """Life.is_right(): the error that a side must report."""

    GOOD = "migration failed in phase 'precopy': stream 'nbd-disk0': it broke"

    def right(self, message: str, phase: str = 'disks') -> bool:
        return Life.is_right(message, 'broke', phase)

    def test_good(self):
        self.assertTrue(self.right(self.GOOD))
        self.assertTrue(self.right(self.GOOD.replace("stream 'nbd-disk0'",
                                                     'all streams')))

    def test_cause(self):
        self.assertFalse(self.right(self.GOOD.replace('broke', 'ended')))

    def test_stream(self):
        self.assertFalse(self.right(self.GOOD.replace("stream '", "disk '")))

    def test_phase(self):
        self.assertTrue(self.right(self.GOOD, 'precopy'))
        self.assertFalse(self.right(self.GOOD, 'converge'))

    def test_once(self):
        self.assertFalse(self.right(f'{self.GOOD}: {self.GOOD}'))


if __name__ == '__main__':
    unittest.main()
