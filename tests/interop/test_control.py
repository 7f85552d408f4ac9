# SPDX-License-Identifier: GPL-2.0-or-later
"""
Stream control: what a real QEMU offers, accepts and rejects, and how it ends a
connection on which the rules of the stream are broken.  The same breaches are
shown to the second implementation, without QEMU.
"""

import contextlib
import io
import json
import socket
import threading
import unittest
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

from checks import SIZES, QEMUScene, QEMUTest, for_each
from muxpeer import control
from muxpeer.connection import MuxError, connection
from muxpeer.control import KNOWS, Control, Unknown, make_offer, pack
from muxpeer.engine import State
from muxpeer.frames import Code, Role, Type
from muxpeer.record import Recorder, image, replay, send
from scene import MAIN_ID, Scene, goaway
from test_migration import WholeMigration, record
from vm import DISKS, QEMU, work_folder

DISK0, DISK1 = DISKS
OFFER = {'type': 'offer', **make_offer(SIZES)}
ACCEPTED = {'type': 'accepted', 'token': '0' * 32}
REJECTED = {'type': 'rejected', 'reasons': [
    {'stream': 'nbd-disk0', 'text': 'there is no room'},
    {'text': 'maintenance mode'}]}
COMMITTED = {'type': 'committed'}
UNKNOWN = {'type': 'no-such', 'require': ['anything']}


def without(message: dict, *names: str) -> dict:
    return {name: value for name, value in message.items()
            if name not in names}


def nested(depth: int) -> bytes:
    """A message of an unknown kind."""
    return b'{"type":"no-such","x":' + b'[' * (depth - 1) + \
        b']' * (depth - 1) + b'}'


def long(size: int = control.MESSAGE_MAX) -> bytes:
    """The same, of so many bytes."""
    return json.dumps({'type': 'no-such'}).encode().ljust(size)


class Breach(NamedTuple):
    """Bytes that a side must not send at that stage."""

    role: Role | None           # that sends them; None: either
    stage: str                  # of a scene
    data: bytes


def breach(role: Role | None, stage: str, *messages) -> Breach:
    return Breach(role, stage, b''.join(map(pack, messages)))


SOURCE, DESTINATION = Role
BREACHES = {
    'length 0': Breach(None, 'names_exchanged', control.LENGTH.pack(0)),
    'length 65537': Breach(None, 'names_exchanged', control.LENGTH.pack(
        control.MESSAGE_MAX + 1)),
    'nesting 9': breach(None, 'names_exchanged', nested(9)),
    'nesting of thousands': breach(None, 'names_exchanged', nested(30000)),
    'invalid JSON': breach(None, 'names_exchanged', b'{"type":'),
    'text behind the object': breach(None, 'names_exchanged',
                                     b'{"type":"no-such"} {}'),
    'invalid UTF-8': breach(None, 'names_exchanged',
                            b'{"type":"no-such","x":"\xff"}'),
    'no object': breach(None, 'names_exchanged', b'["offer"]'),
    'no type': breach(None, 'names_exchanged', {'x': 1}),
    'type that is no string': breach(None, 'names_exchanged', {'type': 1}),
    'first message not knows': breach(None, 'control_opened', UNKNOWN),
    'knows twice': breach(None, 'names_exchanged',
                          {'type': 'knows', 'names': []}),
    'knows without names': breach(None, 'control_opened', {'type': 'knows'}),
    '256 KiB before accepted': breach(None, 'names_exchanged', *[long()] * 4),
    '1 MiB': breach(None, 'agreed', *[long()] * 16),
    'offer before knows': breach(SOURCE, 'control_opened', OFFER),
    'offer twice': breach(SOURCE, 'agreed', OFFER),
    'offer without disks': breach(SOURCE, 'names_exchanged',
                                  without(OFFER, 'disks')),
    'offer without channels': breach(SOURCE, 'names_exchanged',
                                     without(OFFER, 'channels')),
    'disk without size': breach(SOURCE, 'names_exchanged', {
        **OFFER, 'disks': [{'name': DISK0}]}),
    'disk that is no object': breach(SOURCE, 'names_exchanged', {
        **OFFER, 'disks': [DISK0]}),
    'size that is a string': breach(SOURCE, 'names_exchanged', {
        **OFFER, 'disks': [{'name': DISK0, 'size': '1'}]}),
    'require that is no array': breach(SOURCE, 'names_exchanged', {
        **OFFER, 'require': 'disks'}),
    'accepted by the source': breach(SOURCE, 'names_exchanged', ACCEPTED),
    'committed before offer': breach(SOURCE, 'names_exchanged', COMMITTED),
    'committed before loaded': breach(SOURCE, 'agreed', COMMITTED),
    'rejected without reasons': breach(DESTINATION, 'proposed', {
        'type': 'rejected', 'reasons': []}),
    'rejected without a text': breach(DESTINATION, 'proposed', {
        'type': 'rejected', 'reasons': [{'stream': 'main'}]}),
    'accepted without token': breach(DESTINATION, 'proposed',
                                     {'type': 'accepted'}),
    'token of 31 digits': breach(DESTINATION, 'proposed', {
        'type': 'accepted', 'token': '0' * 31}),
    'token that is no number': breach(DESTINATION, 'proposed', {
        'type': 'accepted', 'token': 'x' * 32}),
    'accepted before knows': breach(DESTINATION, 'control_opened', ACCEPTED),
    'accepted twice': breach(DESTINATION, 'agreed', ACCEPTED),
    'rejected after accepted': breach(DESTINATION, 'agreed', REJECTED),
    'offer by the destination': breach(DESTINATION, 'proposed', OFFER),
    'loaded before accepted': breach(DESTINATION, 'proposed',
                                     {'type': 'loaded'}),
    'running before committed': breach(DESTINATION, 'agreed',
                                       {'type': 'running'}),
    'member that has to be known': breach(DESTINATION, 'proposed', {
        **ACCEPTED, 'x': 1, 'require': ['x']}),
}
# The messages that each side has sent at each stage
SENT = {'control_opened': set(), 'names_exchanged': {'knows'},
        'proposed': {'knows', 'offer'},
        'agreed': {'knows', 'offer', 'accepted'}}


def by(case: str, role: Role) -> bool:
    return BREACHES[case].role in (None, role)


@for_each(BREACHES, by)
class SecondImplementation(unittest.TestCase):

    def check(self, case: str, role: Role) -> None:
        found = BREACHES[case]
        side = self.side(Role(3 - role), found.stage, found.data)
        with self.assertRaises(MuxError):
            while True:
                side.receive()

    @staticmethod
    def side(role: Role, stage: str, data: bytes) -> Control:
        """Raises EOFError when all was received."""
        received = io.BytesIO(data)

        def read(size: int) -> bytes:
            if len(piece := received.read(size)) < size:
                raise EOFError
            return piece
        side = Control(SimpleNamespace(
            read=read, connection=SimpleNamespace(
                engine=SimpleNamespace(role=role))))
        mine = control.AFTER[role].keys() | {'knows'}
        theirs = control.AFTER[side.peer_role].keys() | {'knows'}
        side.sent, side.received = SENT[stage] & mine, SENT[stage] & theirs
        if stage != 'control_opened':
            side.sent |= {'knows'}
        return side

    def receive(self, *messages, stage: str = 'names_exchanged') -> dict:
        """As a destination."""
        side = self.side(DESTINATION, stage, b''.join(map(pack, messages)))
        return side.receive()

    def test_what_is_unknown_is_dropped(self):
        self.assertEqual(
            self.receive(UNKNOWN, nested(8), long(), more(OFFER)), OFFER)

    def test_what_is_required(self):
        with self.assertRaises(Unknown) as caught:
            self.receive({**OFFER, 'require': ['disks.size', 'disks.x']})
        self.assertEqual(caught.exception.name, 'offer.disks.x')

    def test_brackets_in_strings_are_not_nested(self):
        text = '["' * 20
        self.assertEqual(self.receive({**OFFER, 'machine-type': text}),
                         {**OFFER, 'machine-type': text})

    def test_texts_can_be_shown(self):
        self.assertEqual(
            self.receive({**OFFER, 'machine-type': 'a\x1b'})['machine-type'],
            'a\ufffd')

    def test_totals(self):
        """Up to them, lengths included."""
        piece = long(control.MESSAGE_MAX - control.LENGTH.size)
        for stage, most in (('names_exchanged', control.UNACCEPTED_MAX),
                            ('agreed', control.LIFETIME_MAX)):
            with self.assertRaises(EOFError):
                self.receive(*[piece] * (most // control.MESSAGE_MAX),
                             stage=stage)

    def test_what_the_peer_does_not_know_is_left_out(self):
        names = [name for name in KNOWS if name != 'offer.disks.size']
        self.assertEqual(
            control.leave_out({**make_offer({'a': 1}), 'x': 2}, 'offer',
                              set(names)),
            {**make_offer({}), 'disks': [{'name': 'a'}],
             'channels': make_offer({'a': 1})['channels']})


class BothSides(unittest.TestCase):
    """The second implementation with itself: whole migrations."""

    def setUp(self):
        folders = [work_folder() for _ in range(2)]
        for folder in folders:
            self.addCleanup(folder.cleanup)
        self.recording, self.result = [Path(folder.name)
                                       for folder in folders]
        for disk, size in SIZES.items():
            image(self.recording, disk).write_bytes(disk[-1:].encode() * size)
        for name in ('main', 'multifd-0', 'multifd-1'):
            (self.recording / name).write_bytes(name.encode() * 100000)

    def migrate(self, expected: dict[str, int]) -> tuple[str, str]:
        """Returns what goes wrong for the source and for the destination."""
        errors = {}

        def run(role: Role, act) -> None:
            try:
                act()
            except MuxError as error:
                errors[role] = str(error)
        here, there = socket.socketpair()
        thread = threading.Thread(target=run, daemon=True, args=(
            SOURCE, lambda: replay(here, self.recording, DISKS)))
        thread.start()
        run(DESTINATION, Recorder(there, self.result, expected).run)
        thread.join()
        return errors.get(SOURCE, ''), errors.get(DESTINATION, '')

    def test_migration(self):
        self.assertEqual(self.migrate(SIZES), ('', ''))
        for path in self.recording.iterdir():
            self.assertEqual((self.result / path.name).read_bytes(),
                             path.read_bytes(), path.name)

    def test_rejection(self):
        """All reasons are sent, and nothing is copied."""
        for error in self.migrate({DISK0: 512, 'other': 512}):
            for text in ('disk0: ', 'disk1: not expected',
                         'other: not offered'):
                self.assertIn(text, error)
        self.assertEqual(list(self.result.iterdir()), [])


def more(offer: dict) -> dict:
    """With members that are not known."""
    return {**offer, 'x': {'disks': 1}, 'disks': [
        {**disk, 'x': [1.5, None]} for disk in offer['disks']]}


@for_each(BREACHES, by)
class Breaches(QEMUTest):
    """QEMU names the stream, and a source's guest runs on."""

    def check(self, case: str, role: Role) -> None:
        found = BREACHES[case]
        scene = self.to_qemu(role)
        getattr(scene, found.stage)()
        with contextlib.suppress(MuxError):     # QEMU may not read it all
            scene.control.stream.write(found.data)
        answer = goaway(scene.answers())
        self.assertIsNotNone(answer, 'no GOAWAY')
        self.assertIn("'control'", answer[1])
        self.assertNotEqual(answer[0], Code.OK)
        self.assert_failed(scene, answer[1])


class ControlTest(QEMUTest):

    def proposed(self, *messages: dict | bytes) -> QEMUScene:
        """A QEMU that is the destination has received that."""
        scene = self.to_qemu(SOURCE)
        scene.names_exchanged()
        for message in messages:
            scene.control.say(message)
        return scene

    def assert_goaway(self, scene: QEMUScene) -> None:
        """The destination has no use for this connection."""
        self.assertNotEqual(self.goaway_text(scene), '')

    def goaway_text(self, scene: QEMUScene) -> str:
        code, text = goaway(scene.answers())
        self.assertEqual(code, Code.ABORTED)
        return text


class Rejections(ControlTest):
    """By a destination, which waits on."""

    def check(self, offer: dict, *wanted: tuple[str | None, str]) -> None:
        """There is a reason with each stream and text, and no other."""
        scene = self.proposed(offer)
        answer = scene.control.receive()
        self.assertEqual(answer['type'], 'rejected')
        reasons = answer['reasons']
        for stream, text in wanted:
            fits = [reason for reason in reasons if text in reason['text'] and
                    stream in (None, reason.get('stream'))]
            self.assertTrue(fits, f'{stream}: {text}: {reasons}')
        self.assertEqual(len(reasons), len(wanted), reasons)
        scene.connection.drop()
        self.assert_listens(scene)

    def test_missing_disk(self):
        self.check({**OFFER, **make_offer({DISK0: SIZES[DISK0]})},
                   ('nbd-disk1', ''))

    def test_unlisted_disk(self):
        self.check({**OFFER, **make_offer({**SIZES, 'other': 512})},
                   ('nbd-other', ''))

    def test_wrong_size(self):
        self.check({**OFFER, **make_offer({**SIZES, DISK1: 512})},
                   ('nbd-disk1', '512'))

    def test_disk_twice(self):
        disks = OFFER['disks']
        self.check({**OFFER, 'disks': [*disks, disks[0]]}, ('nbd-disk0', ''))

    def test_unknown_kind(self):
        self.check({**OFFER, 'channels': [*OFFER['channels'], {
            'kind': 'preempt', 'count': 1}]}, (None, 'preempt'))

    def test_multifd_channels(self):
        self.check({**OFFER, **make_offer(SIZES, multifd=200)},
                   (None, 'multifd'))

    def test_machine_type(self):
        self.check({**OFFER, 'machine-type': 'no-such-machine'},
                   (None, 'no-such-machine'))

    def test_all_reasons(self):
        offer = make_offer({DISK0: 512, 'other': 512}, multifd=200)
        offer['channels'].append({'kind': 'preempt', 'count': 1})
        self.check({**OFFER, **offer, 'machine-type': 'no-such-machine'},
                   ('nbd-disk0', '512'), ('nbd-disk1', ''),
                   ('nbd-other', ''), (None, 'preempt'), (None, 'multifd'),
                   (None, 'no-such-machine'))

    def test_required_member(self):
        scene = self.proposed({**OFFER, 'require': ['disks.size',
                                                    'disks.bitmap']})
        self.assertIn("'offer.disks.bitmap'", self.goaway_text(scene))
        self.assert_listens(scene)


class Acceptance(ControlTest):
    """By a destination."""

    def assert_accepted(self, scene: QEMUScene) -> str:
        """Returns the token."""
        answer = scene.control.receive()
        self.assertEqual(answer['type'], 'accepted', answer)
        return answer['token']

    def test_what_is_unknown_is_dropped(self):
        self.assert_accepted(self.proposed(UNKNOWN, nested(8), long(),
                                           more(OFFER)))

    def test_in_pieces(self):
        scene = self.proposed()
        scene.control.sent.add('offer')
        for byte in pack(OFFER):
            scene.control.stream.write(bytes([byte]))
        self.assert_accepted(scene)

    def test_tokens_differ(self):
        tokens = {self.assert_accepted(self.proposed(OFFER))
                  for _ in range(2)}
        self.assertEqual(len(tokens), 2)

    def test_streams_before(self):
        """main waits; others are refused."""
        scene = self.proposed()
        conn = scene.connection
        main = conn.offer(control.MAIN)
        disk = conn.offer(f'nbd-{DISK0}')
        conn.wait(lambda: disk.reset)
        self.assertEqual(disk.reset[0], Code.REFUSED)
        self.assertEqual(main.state.state, State.OFFERED)
        scene.control.say(OFFER)
        self.assert_accepted(scene)
        conn.opened(main)
        conn.open(f'nbd-{DISK0}')

    def test_knows(self):
        self.check_knows(SOURCE)

    def check_knows(self, role: Role) -> None:
        scene = self.to_qemu(role)
        scene.names_exchanged()
        self.assertEqual(scene.control.peer_knows & set(KNOWS), set(KNOWS))

    def test_knows_of_a_source(self):
        self.check_knows(DESTINATION)


class Others(ControlTest):
    """Several connections to one destination."""

    def test_first_that_fits_is_taken(self):
        """Those that wait are rejected when another one is accepted."""
        scene = self.proposed()
        silent = self.again(scene, b'')
        slow = self.again(scene)
        slow.names_exchanged()
        self.again(scene).main()
        for other in (scene, silent, slow):
            self.assert_goaway(other)

    def test_while_a_migration_runs(self):
        scene = self.to_qemu(SOURCE)
        scene.main()
        for stage in (lambda _: None, Scene.control_opened):
            other = self.again(scene)
            with contextlib.suppress(MuxError):
                stage(other)
            self.assert_goaway(other)
        scene.connection.do(lambda engine: engine.ping(b'question'))
        scene.connection.wait(lambda: scene.count(Type.PONG))

    def test_rejected_ones_do_no_harm(self):
        """More than may wait at once, one after the other."""
        scene = self.proposed({**OFFER, 'disks': []})
        self.assertEqual(scene.control.receive()['type'], 'rejected')
        for _ in range(10):
            other = self.again(scene)
            other.names_exchanged()
            other.control.say(b'no JSON')
            self.assert_goaway(other)
        self.assert_listens(scene)


class Source(ControlTest):
    """QEMU is the source, and its guest goes on whatever comes."""

    def control_opened(self) -> QEMUScene:
        scene = self.to_qemu(DESTINATION)
        scene.control_opened()
        return scene

    def assert_failed(self, scene: QEMUScene, text: str) -> None:
        """Before anything was copied."""
        super().assert_failed(scene, text)
        self.assertTrue(scene.qemu.qmp.cmd('query-status')['running'])
        self.assertLessEqual({stream.name for stream in
                              scene.connection.streams.values()},
                             {control.NAME, control.MAIN})

    def test_offer(self):
        scene = self.control_opened()
        scene.control.introduce()
        offer = scene.control.expect('offer')
        self.assertEqual({disk['name']: disk['size']
                          for disk in offer['disks']}, SIZES)
        counts = {channel['kind']: channel['count']
                  for channel in offer['channels'] if channel['count']}
        self.assertEqual(counts, {'main': 1, 'nbd': len(SIZES)})
        self.assertIn('machine-type', offer)

    def test_streams_before(self):
        """main comes at once, the disks do not."""
        scene = self.to_qemu(DESTINATION)
        scene.proposed()
        scene.connection.wait(lambda: MAIN_ID in scene.connection.streams)
        self.assertEqual(len(scene.connection.streams), 2)

    def test_rejected(self):
        scene = self.to_qemu(DESTINATION)
        scene.proposed()
        scene.control.say(REJECTED)
        goaway(scene.answers())
        for reason in REJECTED['reasons']:
            self.assert_failed(scene, reason['text'])

    def test_text_of_the_peer(self):
        """What is not printable does not get into messages."""
        scene = self.to_qemu(DESTINATION)
        scene.proposed()
        scene.control.say({'type': 'rejected', 'reasons': [
            {'text': 'out of \x1b[2J'}]})
        scene.answers()
        self.assert_failed(scene, 'out of ?[2J')

    def test_end_instead_of_an_answer(self):
        scene = self.to_qemu(DESTINATION)
        scene.proposed()
        scene.control.stream.finish()
        scene.answers()
        self.assert_failed(scene, "'control'")

    def test_control_that_is_refused(self):
        scene = self.to_qemu(DESTINATION)
        scene.connection.wait(lambda: scene.connection.streams)
        scene.connection.streams[1].abort(Code.REFUSED, 'say nothing')
        scene.answers()
        self.assert_failed(scene, 'say nothing')

    def knows_all_but(self, name: str) -> QEMUScene:
        scene = self.control_opened()
        scene.control.send('knows', names=[
            other for other in KNOWS if other != name])
        return scene

    def test_member_that_is_not_known(self):
        scene = self.knows_all_but('offer.machine-type')
        scene.control.expect('knows')
        self.assertNotIn('machine-type', scene.control.expect('offer'))

    def test_phase_that_is_not_known(self):
        scene = self.knows_all_but('phase')
        for kind in ('knows', 'offer'):
            self.assertEqual(scene.control.receive()['type'], kind)

    def check_needed(self, name: str) -> None:
        scene = self.knows_all_but(name)
        self.assertIn(name, goaway(scene.answers())[1])
        self.assert_failed(scene, name)

    def test_size_that_is_not_known(self):
        self.check_needed('offer.disks.size')

    def test_committed_that_is_not_known(self):
        self.check_needed('committed')


class Commit(WholeMigration):
    """The end of a migration; see also test_migration.Handover."""

    def test_running_not_received(self):
        """After `committed`, the source must not run the guest again."""
        class Unconfirmed(Recorder):
            """Does not send `running`."""

            def _take_over(self, side: Control) -> None:
                side.send('loaded')
                side.expect('committed')
                raise MuxError('gone')

        with self.source_to(Unconfirmed) as source:
            source.wait_end()
            self.assertFalse(source.qmp.cmd('query-status')['running'])

    def test_committed_in_pieces(self):
        """The last byte decides."""
        record(self.folder)
        committed = pack(COMMITTED)
        for size in (len(committed) - 1, len(committed)):
            with self.subTest(size), self.destination() as qemu:
                self.check(qemu, committed[:size],
                           runs=size == len(committed))
            (self.folder / 'replayed').rename(self.folder / f'run{size}')

    def check(self, qemu: QEMU, last: bytes, runs: bool) -> None:
        conn = connection(socket.create_connection(
            ('127.0.0.1', qemu.listen())), SOURCE)
        side, _ = send(conn, self.folder, DISKS)
        side.expect('loaded')
        for byte in last:
            side.stream.write(bytes([byte]))
        side.sent.add('committed')
        if runs:
            side.expect('running')
        conn.flush()
        conn.drop()
        qemu.wait_end()
        self.assertEqual(qemu.qmp.cmd('query-status')['running'], runs)

    def test_after_bad_connections(self):
        """A good source is served in the end."""
        record(self.folder)

        def play(port: int) -> None:
            for messages in ([{**OFFER, 'disks': []}], [b'no JSON'], []):
                sock = socket.create_connection(('127.0.0.1', port))
                with Scene(sock, SOURCE, SIZES) as scene:
                    scene.names_exchanged()
                    for message in messages:
                        scene.control.say(message)
            self.play(port)
        self.replay(play=play)
