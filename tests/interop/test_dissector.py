# SPDX-License-Identifier: GPL-2.0-or-later
"""
The dissector for Wireshark, by tshark, on captures of real migrations, and of
what TCP and TLS make of one.  The captures are made from what the sides have
sent, cut into TCP segments of random sizes.
"""

import os
import shutil
import socket
import subprocess
import threading
import unittest
from pathlib import Path
from ssl import TLSVersion
from unittest import mock

import pcap
from muxpeer import frames, nbd
from muxpeer.control import LENGTH, pack
from muxpeer.frames import Hello, Role, Type, data, numbered
from pcap import ADDRESSES, Capture
from checks import BUILD
from scene import decode
from test_migration import record
from tlscapture import TLSCapture
from tshark import TROUBLE, info_column, knows_handshake, tshark
from vm import DISKS, QEMU, make_images, work_folder

SIDES = {'.'.join(map(str, address)): direction
         for direction, (address, _) in ADDRESSES.items()}
WRITE, FLUSH, DISC = 1, 3, 2


class Traffic:
    """What the two sides have sent, and its capture."""

    def __init__(self, capture=None):
        self.capture = capture or Capture()
        self.sent = {'in': bytearray(), 'out': bytearray()}
        self._lock = threading.Lock()

    def __call__(self, direction: str, piece: bytes) -> None:
        with self._lock:
            self.capture(direction, piece)
            self.sent[direction] += piece

    def write(self, folder: Path) -> Path:
        path = folder / 'traffic.pcap'
        pcap.write(path, self.capture.packets)
        return path


class Relay:
    """Stands between two QEMUs, and hears all."""

    def __init__(self, port: int, tap):
        self.listener = socket.create_server(('127.0.0.1', 0))
        self.port = self.listener.getsockname()[1]
        self._target = port
        self._tap = tap
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def join(self) -> None:
        """When both QEMUs have ended: until all was heard."""
        self._thread.join()
        self.listener.close()

    def _run(self) -> None:
        left, _ = self.listener.accept()
        right = socket.create_connection(('127.0.0.1', self._target))
        with left, right:
            other = threading.Thread(target=self._copy, daemon=True,
                                     args=(right, left, 'in'))
            other.start()
            self._copy(left, right, 'out')
            other.join()

    def _copy(self, source, target, direction: str) -> None:
        try:
            while piece := source.recv(1 << 16):
                self._tap(direction, piece)
                target.sendall(piece)
            target.shutdown(socket.SHUT_WR)
        except OSError:
            pass                # the other direction has ended it


@unittest.skipUnless(shutil.which('tshark'), 'there is no tshark')
class DissectorTest(unittest.TestCase):

    def setUp(self):
        folder = work_folder()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.traffic = Traffic()

    def assert_all_frames(self, path: Path, passes: int = 1,
                          options=()) -> list[str]:
        """
        tshark sees the frames that were sent, with their streams, and finds
        nothing wrong.  Returns the NBD messages.
        """
        fields = ('qmux.type', 'qmux.stream', 'qmux.length', 'qmux.name')
        packets = tshark(path, 'ip.src', *fields, 'qmux.nbd', passes=passes,
                         options=options)
        sides = {direction: decode(data) for direction, data
                 in self.traffic.sent.items()}
        names = {frame.stream: frame.payload[12:].decode()
                 for sent in sides.values() for frame in sent
                 if frame.type == Type.OPEN}
        for direction, sent in sides.items():
            seen = [packet for packet in packets
                    if SIDES[packet[0][0]] == direction]
            for column, wanted in enumerate((
                    [f'0x{f.type:02x}' for f in sent],
                    [str(f.stream) for f in sent],
                    [str(f.length) for f in sent],
                    [names[f.stream] for f in sent if f.stream]), 1):
                self.assertEqual([value for packet in seen
                                  for value in packet[column]], wanted)
        self.assertEqual(tshark(path, 'frame.number', only=TROUBLE,
                                passes=passes, options=options), [])
        return [text for packet in packets for text in packet[-1]]


class Recordings(DissectorTest):

    def test_migration_to_the_second_implementation(self):
        self.check_recording()

    def test_migration_within_tls(self):
        for version in (TLSVersion.TLSv1_2, TLSVersion.TLSv1_3):
            with self.subTest(version.name):
                capture = TLSCapture(self.folder, version)
                self.traffic = Traffic(capture)
                self.check_recording('-o', f'tls.keylog_file:{capture.keys}')

    def check_recording(self, *options: str) -> None:
        """Migrate to the recorder; tshark shows frames and NBD."""
        servers = record(self.folder, tap=self.traffic).servers
        path = self.traffic.write(self.folder)
        seen = self.assert_all_frames(path, options=options)
        self.assertEqual(self.assert_all_frames(path, 2, options), seen)
        # NBD, as the servers have counted it
        for number, name in ((WRITE, 'WRITE'), (FLUSH, 'FLUSH'),
                             (DISC, 'DISC')):
            count = sum(server.commands[number]
                        for server in servers.values())
            self.assertEqual(sum(text.startswith(f'{name} request')
                                 for text in seen), count, name)
        self.assertEqual(seen.count('greeting'), len(DISKS))
        self.assertEqual(seen.count('option GO'), len(DISKS))
        self.assert_handed_over(path, servers, options)

    def assert_handed_over(self, path: Path, servers, options) -> None:
        """Wireshark's own dissector shows the requests."""
        known = None if knows_handshake() else (WRITE, DISC)
        packets = tshark(path, 'nbd.magic', only='nbd', options=options)
        magics = [magic for (magics,) in packets for magic in magics]
        self.assertEqual(
            magics.count('0x25609513'),
            sum(count for server in servers.values()
                for command, count in server.commands.items()
                if known is None or command in known))

    def test_migration_between_two_qemus(self):
        """They agree upon extended headers."""
        seen = self.assert_all_frames(self.migrate())
        for text in ('WRITE request, offset 0, length 1048576',
                     'WRITE reply, type 0',
                     'DISC request, offset 0, length 0'):
            self.assertEqual(seen.count(text), len(DISKS), text)
        self.assertFalse([text for text in seen if 'unknown' in text])

    def test_tls_between_two_qemus(self):
        """GnuTLS writes the keys to a file for the dissector."""
        subprocess.run(['psktool', '-u', 'qemu', '-p',
                        str(self.folder / 'keys.psk')], check=True,
                       capture_output=True)

        def setup(qemu, endpoint: str, **more):
            qemu.qmp.cmd('object-add', **{
                'qom-type': 'tls-creds-psk', 'id': 'tls', 'dir':
                str(self.folder), 'endpoint': endpoint, **more})
            qemu.qmp.cmd('migrate-set-parameters', **{'tls-creds': 'tls'})
        keys = self.folder / 'keys'
        with mock.patch.dict(os.environ, SSLKEYLOGFILE=str(keys)):
            path = self.migrate(
                lambda source: setup(source, 'client', username='qemu'),
                lambda target: setup(target, 'server'))
        options = '-o', f'tls.keylog_file:{keys}'
        for passes in (1, 2):
            packets = tshark(path, 'qmux.nbd', 'qmux.name', passes=passes,
                             options=options)
            seen = [text for texts, _ in packets for text in texts]
            self.assertEqual(seen.count('DISC request, offset 0, length 0'),
                             len(DISKS))
            self.assertEqual({name for _, names in packets for name in names},
                             {'control', 'main',
                              *(f'nbd-{disk}' for disk in DISKS)})
            self.assertEqual(tshark(path, 'frame.number', only=TROUBLE,
                                    passes=passes, options=options), [])

    def migrate(self, prepare_source=lambda _: None,
                prepare_target=lambda _: None) -> Path:
        """Between two QEMUs; returns the capture."""
        other = self.folder / 'destination'
        other.mkdir()
        make_images(self.folder)
        make_images(other)
        with QEMU(BUILD, self.folder, 'source') as source, \
                QEMU(BUILD, other, 'destination', incoming=True) as target:
            prepare_source(source)
            prepare_target(target)
            source.wait_for_guest()
            relay = Relay(target.listen(), self.traffic)
            source.migrate(relay.port)
            source.wait_success()
            target.wait_success()
            target.wait_for_guest()
        relay.join()
        return self.traffic.write(self.folder)


class DecodeAs(DissectorTest):
    """Where nothing is recognised a user can say what it is."""

    def check(self, port: str, capture, *options: str) -> None:
        self.traffic = Traffic(capture)
        self.traffic('out', frames.open_(1, 0, b'main').pack())
        path = self.traffic.write(self.folder)
        self.assertEqual(tshark(path, 'qmux.name', options=options), [])
        self.assertEqual(tshark(path, 'qmux.name', options=[
            *options, '-d', f'{port}=={ADDRESSES["in"][1]},qmux']),
            [[['main']]])

    def test_tcp(self):
        self.check('tcp.port', Capture())

    def test_tls(self):
        capture = TLSCapture(self.folder, TLSVersion.TLSv1_3)
        self.check('tls.port', capture,
                   '-o', f'tls.keylog_file:{capture.keys}')


class StreamTest(DissectorTest):
    """A connection with open streams."""

    STREAMS: dict[int, bytes] = {}

    def setUp(self):
        super().setUp()
        self.sent = {}
        self.traffic('out', Hello(Role.SOURCE).pack())
        self.traffic('in', Hello(Role.DESTINATION).pack())
        for stream, name in self.STREAMS.items():
            self.traffic('out', frames.open_(stream, 5000, name).pack())
            self.traffic('in', numbered(Type.OPEN_OK, stream, 5000).pack())

    def send(self, direction: str, stream: int, payload: bytes) -> None:
        key = direction, stream
        offset = self.sent.get(key, 0)
        self.sent[key] = offset + len(payload)
        self.traffic(direction, data(stream, offset, payload).pack())


class Disks(StreamTest):
    """Two NBD sessions of one connection, with the same cookies."""

    STREAMS = {1: b'nbd-a', 3: b'nbd-b'}

    def test_each_has_its_own_session(self):
        """Replies belong to the requests on the same stream."""
        for stream, length in ((1, 100), (3, 200)):
            self.send('out', stream, nbd.REQUEST.pack(
                nbd.REQUEST_MAGIC, 0, nbd.CMD_READ, 7, 0, length))
        for stream, length in ((1, 100), (3, 200)):
            reply = nbd.REPLY.pack(nbd.SIMPLE_REPLY_MAGIC, 0, 7)
            # in two frames, the second with the beginning of another reply
            self.send('in', stream, reply + bytes(50))
            self.send('in', stream, bytes(length - 50) + reply[:5])
        path = self.traffic.write(self.folder)
        self.assertEqual(self.assert_all_frames(path),
                         ['READ request, offset 0, length 100',
                          'READ request, offset 0, length 200',
                          'READ reply, error 0', 'READ reply, error 0'])
        packets = tshark(path, 'frame.number', 'nbd.response_to', 'nbd.data',
                         only='nbd')
        requests = [number for (number,), answers, _ in packets
                    if not answers]
        self.assertEqual([answers for _, answers, _ in packets if answers],
                         [[number] for number in requests])
        self.assertEqual([len(value) for *_, values in packets
                          for value in values], [200, 400])

    def test_segment_that_is_sent_again(self):
        self.check_disorder(Capture.repeat_last, 'tcp.analysis.retransmission')

    def test_segments_out_of_order(self):
        """The user has to ask for it, or TCP hands over what it has."""
        self.check_disorder(Capture.swap_last, 'tcp.analysis.out_of_order',
                            '-o', 'tcp.reassemble_out_of_order:TRUE')

    def check_disorder(self, disorder, sign: str, *options: str) -> None:
        """A request in three segments, and what happens to the second."""
        request = nbd.REQUEST.pack(nbd.REQUEST_MAGIC, 0, WRITE, 8, 0,
                                   2000) + bytes(2000)
        sent = data(1, 0, request).pack()
        self.traffic.sent['out'] += sent
        for piece in (sent[:700], sent[700:1400]):
            self.traffic.capture.segment('out', piece)
        disorder(self.traffic.capture)
        self.traffic.capture.segment('out', sent[1400:])
        self.send('in', 1, nbd.REPLY.pack(nbd.SIMPLE_REPLY_MAGIC, 0, 8))
        path = self.traffic.write(self.folder)
        self.assertEqual(len(tshark(path, 'frame.number', only=sign)), 1)
        for passes in (1, 2):
            with self.subTest(passes=passes):
                self.assertEqual(
                    self.assert_all_frames(path, passes, options),
                    ['WRITE request, offset 0, length 2000',
                     'WRITE reply, error 0'])

    def test_frames_that_begin_and_end_within_segments(self):
        """
        The first pass gets all of a segment behind the frame that ends in
        it, the later ones only what is complete then.
        """
        flush = nbd.REQUEST.pack(nbd.REQUEST_MAGIC, 0, FLUSH, 7, 0, 0)
        write = nbd.REQUEST.pack(nbd.REQUEST_MAGIC, 0, WRITE, 8, 0,
                                 2000) + bytes(2000)
        offset = 0
        for pair in ((write[:1000], write[1000:]), (flush, flush)):
            sent = b''
            for payload in pair:
                sent += data(1, offset, payload).pack()
                offset += len(payload)
            end = len(sent) - len(pair[1])
            for piece in (sent[:1], sent[1:end], sent[end:]):
                self.traffic.capture.segment('out', piece)
            self.traffic.sent['out'] += sent
        path = self.traffic.write(self.folder)
        for passes in (1, 2):
            with self.subTest(passes=passes):
                self.assertEqual(self.assert_all_frames(path, passes),
                                 ['WRITE request, offset 0, length 2000',
                                  'FLUSH request, offset 0, length 0',
                                  'FLUSH request, offset 0, length 0'])


class Control(StreamTest):
    """The messages of stream control."""

    STREAMS = {1: b'control'}
    TYPES = 'knows', 'offer', 'accepted'

    def setUp(self):
        super().setUp()
        offer = {'x': {'type': 'no'}, 'y': '}"{', 'type': 'offer', 'z': [1]}
        self.messages = [pack(message) for message in (
            {'type': 'knows', 'names': ['phase'] * 300}, offer,
            {'type': 'accepted'})]

    def check(self, *pieces: bytes) -> None:
        for piece in pieces:
            self.send('out', 1, piece)
        path = self.traffic.write(self.folder)
        for passes in (1, 2):
            with self.subTest(passes=passes):
                self.assert_all_frames(path, passes)
                self.assert_messages(path, passes)

    def assert_messages(self, path: Path, passes: int) -> None:
        packets = tshark(path, 'qmux.control.length', 'qmux.control.type',
                         info_column(), passes=passes)
        lengths = [length for lengths, *_ in packets for length in lengths]
        self.assertEqual(lengths, [str(len(message) - LENGTH.size)
                                   for message in self.messages])
        self.assertEqual([kind for _, kinds, _ in packets for kind in kinds],
                         [*self.TYPES])
        said = [word for *_, infos in packets for info in infos
                for word in info.split() if word in self.TYPES]
        self.assertEqual(said, [*self.TYPES])

    def test_one_by_one(self):
        self.check(*self.messages)

    def test_several_in_one_frame(self):
        self.check(b''.join(self.messages))

    def test_messages_that_span_frames(self):
        whole = b''.join(self.messages)
        self.check(whole[:2], whole[2:100], whole[100:-3], whole[-3:])

    def test_text(self):
        text = '{"type":"phase","phase":"a\\u00e4\u00e4"}'
        self.send('in', 1, pack(text.encode()))
        self.assertEqual(tshark(self.traffic.write(self.folder),
                                'qmux.control.text',
                                only='qmux.control'), [[[text]]])

    def test_messages_that_are_none(self):
        for piece, text in (
                (pack(b'[]'), 'Message without a type'),
                (LENGTH.pack(0), 'Message of a bad length'),
                (LENGTH.pack(65537) + b'x', 'Message of a bad length')):
            with self.subTest(piece):
                self.setUp()
                self.send('out', 1, piece)
                self.assertEqual(
                    tshark(self.traffic.write(self.folder),
                           '_ws.expert.message', only=TROUBLE), [[[text]]])


class Other(DissectorTest):

    def test_other_connections_are_left_alone(self):
        self.traffic('out', b'GET / HTTP/1.1\r\n\r\n')
        self.assertEqual(tshark(self.traffic.write(self.folder),
                                'frame.number'), [])
