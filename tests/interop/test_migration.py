# SPDX-License-Identifier: GPL-2.0-or-later
"""
Whole migrations between a real QEMU and the second implementation, which
records what a source sends, and replays it to a destination.  And what a
QEMU has to put up with from a peer that keeps to the rules.
"""

import contextlib
import socket
import subprocess
import sys
import unittest
from pathlib import Path
from types import SimpleNamespace

from checks import BUILD, SIZES, QEMUTest, for_each
from muxpeer import frames
from muxpeer.connection import Connection, MuxError
from muxpeer.control import DISK
from muxpeer.engine import Engine
from muxpeer.frames import Code, Frame, Hello, Role, Type
from muxpeer.nbd import SEND_FLUSH, SERVED, Server
from muxpeer.record import Recorder, image, replay, send
from scene import MAIN_ID, Scene, goaway
from vm import DISK_SIZE, DISKS, QEMU, make_images, work_folder


def record(folder: Path, engine: Engine | None = None, setup=lambda _: None,
           tap=None) -> Recorder:
    """Migrate a new guest into a folder.  Raises what goes wrong."""
    make_images(folder)
    with QEMU(BUILD, folder, 'source') as source, \
            socket.create_server(('127.0.0.1', 0)) as listener:
        source.wait_for_guest()
        setup(source)
        source.migrate(listener.getsockname()[1])
        recorder = Recorder(listener.accept()[0], folder, SIZES,
                            engine=engine, tap=tap)
        recorder.run()
        source.wait_success()
        return recorder


class WholeMigration(unittest.TestCase):

    def setUp(self):
        folder = work_folder()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)

    def assert_recorded(self):
        for disk in DISKS:
            original = (self.folder / f'{disk}.img').read_bytes()
            self.assertEqual(image(self.folder, disk).read_bytes(), original)
            self.assertEqual(self.serve_again(disk).read_bytes(), original)

    def serve_again(self, disk: str) -> Path:
        """The image that comes of what the disk's stream has carried."""
        target = self.folder / 'again'
        with open(self.folder / (DISK + disk), 'rb') as file:
            stream = SimpleNamespace(read=file.read, write=lambda _: None)
            Server(stream, disk, target, DISK_SIZE).serve()
            self.assertEqual(file.read(), b'')
        return target

    @contextlib.contextmanager
    def source_to(self, failing: type[Recorder]):
        """A QEMU that has migrated to a recorder, which has failed."""
        make_images(self.folder)
        with QEMU(BUILD, self.folder, 'source') as source, \
                socket.create_server(('127.0.0.1', 0)) as listener:
            source.wait_for_guest()
            source.migrate(listener.getsockname()[1])
            recorder = failing(listener.accept()[0], self.folder, SIZES)
            with self.assertRaises(MuxError):
                recorder.run()
            yield source

    def destination(self) -> QEMU:
        other = self.folder / 'replayed'
        other.mkdir()
        make_images(other)
        return QEMU(BUILD, other, 'destination', incoming=True)

    def replay(self, setup=lambda _: None, play=None):
        """Play the recording to a new destination, whose guest goes on."""
        with self.destination() as qemu:
            setup(qemu)
            (play or self.play)(qemu.listen())
            qemu.wait_success()
            for disk in DISKS:
                self.assertEqual(qemu.image(disk).read_bytes(),
                                 (self.folder / f'{disk}.img').read_bytes())
            qemu.wait_for_guest()

    def play(self, port: int):
        sock = socket.create_connection(('127.0.0.1', port))
        replay(sock, self.folder, DISKS)


class Migrations(WholeMigration):

    def test_record_and_replay(self):
        record(self.folder)
        self.assert_recorded()
        self.replay()

    def test_command(self):
        """peer.py does the same."""
        make_images(self.folder)
        peer = [sys.executable, str(Path(__file__).with_name('peer.py'))]
        with QEMU(BUILD, self.folder, 'source') as source, \
                subprocess.Popen(
                    [*peer, '--port=0', 'record', self.folder,
                     *(f'{disk}={DISK_SIZE}' for disk in DISKS)],
                    stdout=subprocess.PIPE, text=True) as command:
            port = int(command.stdout.readline().split()[-1])
            source.wait_for_guest()
            source.migrate(port)
            source.wait_success()
            self.assertEqual(command.wait(), 0)
        self.assert_recorded()

        def replay_it(port: int):
            subprocess.run([*peer, f'--port={port}', 'replay', self.folder,
                            *DISKS], check=True)
        self.replay(play=replay_it)

    def test_multifd_streams(self):
        def setup(qemu):
            qemu.set_capability('multifd')
        record(self.folder, setup=setup)
        self.assertEqual(len(list(self.folder.glob('multifd-*'))), 2)
        self.assert_recorded()
        self.replay(setup)

    def test_small_credit_and_frames(self):
        """Less than a NBD request; the least that a frame may be."""
        hello = Hello(Role.DESTINATION, max_frame=frames.MAX_FRAME_MIN)
        def setup(qemu):        # however slow that is, it converges
            qemu.qmp.cmd('migrate-set-parameters', downtime_limit=30000)
        record(self.folder, Engine(Role.DESTINATION, hello, window=20000),
               setup)
        self.assert_recorded()


class Handover(WholeMigration):
    """The guest runs where control says, and nowhere else."""

    def test_source_goes_on_if_loading_fails(self):
        class Failing(Recorder):
            """Cannot load what it has received."""

            def _store(self, stream):
                super()._store(stream)
                raise MuxError('cannot load this')

        with self.source_to(Failing) as source:
            answer = source.wait_end()
            self.assertEqual(answer['status'], 'failed')
            self.assertIn('cannot load this', answer['error-desc'])
            source.wait_for_guest()

    def test_destination_needs_the_last_word(self):
        """All is loaded, and the source's `committed` does not come."""
        record(self.folder)
        with self.destination() as qemu:
            sock = socket.create_connection(('127.0.0.1', qemu.listen()))
            conn = Connection(sock, Engine(Role.SOURCE))
            control, _ = send(conn, self.folder, DISKS)
            control.expect('loaded')
            self.assertFalse(qemu.qmp.cmd('query-status')['running'])
            conn.drop()
            answer = qemu.wait_end()
            self.assertEqual(answer['status'], 'failed')
            self.assertIn('did not hand the guest over',
                          answer['error-desc'])
            self.assertFalse(qemu.qmp.cmd('query-status')['running'])


ODDITIES = {}


def oddity(name: str):
    def note(act):
        ODDITIES[name] = act
        return act
    return note


@oddity('types from 0x80 on, whatever their fields')
def skipped_types(scene: Scene) -> None:
    for kind in (0x80, 0xff):
        scene.connection.send_raw(
            Frame(kind, 0xffffffff, bytes(scene.max_frame), 0xffffffff,
                  0xff, 0xffff).pack() + Frame(kind).pack())


@oddity('arg where it has no meaning')
def meaningless_arg(scene: Scene) -> None:
    window = frames.numbered(Type.WINDOW, MAIN_ID, scene.credit)
    window.arg = 7
    scene.connection.send_raw(window.pack())


@oddity('WINDOW that is lower, the same, and endless')
def windows(scene: Scene) -> None:
    for limit in (0, 0, (1 << 64) - 1, (1 << 64) - 1, 1):
        scene.connection.send_raw(
            frames.numbered(Type.WINDOW, MAIN_ID, limit).pack())


@oddity('bytes one by one')
def single_bytes(scene: Scene) -> None:
    for byte in Frame(0x80, payload=b'slow').pack():
        scene.connection.send_raw(bytes([byte]))
        scene.connection.flush()


@oddity('a refused stream, and frames that crossed')
def crossed(scene: Scene) -> None:
    stream = scene.connection.offer('nbd-no-such')
    scene.connection.wait(lambda: stream.reset)
    scene.connection.send_raw(
        frames.numbered(Type.FIN, stream.state.id, 0).pack()
        + frames.ended(Type.RESET, stream.state.id, Code.ABORTED, '').pack())


@oddity('as many OPEN, PING and WINDOW as the limits let through')
def many(scene: Scene) -> None:
    def ask(engine):
        for number in range(400):
            engine.ping(number.to_bytes(8, 'big'))
            engine.send(frames.numbered(Type.WINDOW, MAIN_ID, 0))
    for _ in range(100):
        scene.connection.offer('nbd-no-such')
    scene.connection.do(ask)
    scene.connection.wait(lambda: scene.count(Type.PONG) == 400 and
                          scene.count(Type.RESET) == 100)


@oddity('more control frames than are allowed at once')
def patient(scene: Scene) -> None:
    def flood(engine):
        for _ in range(frames.CONTROL_BURST + 500):
            engine.send(frames.numbered(Type.WINDOW, MAIN_ID, 0))
    scene.connection.do(flood)
    scene.connection.flush()


@for_each(ODDITIES)
class Oddities(QEMUTest):
    """After each of them PING is answered."""

    def check(self, case: str, role: Role) -> None:
        scene = self.to_qemu(role)
        scene.main()
        ODDITIES[case](scene)
        self.assert_alive(scene)

    def assert_alive(self, scene: Scene) -> None:
        question = b'answer!?'
        scene.connection.do(lambda engine: engine.ping(question))
        scene.connection.wait(lambda: any(
            frame.type == Type.PONG and frame.payload == question
            for frame in scene.seen()))
        self.assertEqual(scene.count(Type.GOAWAY), 0)

    def test_hello_of_the_future(self):
        for role in Role:
            with self.subTest(role=role):
                hello = Hello(role, version_max=9, length=frames.HELLO_MAX,
                              features=~0 & ((1 << 64) - 1),
                              max_frame=0xffffffff, max_streams=0xffffffff)
                scene = self.to_qemu(role, hello.pack())
                scene.main()
                self.assert_alive(scene)

    def test_session(self):
        """QEMU's source makes a new id each time, its destination none."""
        seen = []
        for role in (Role.DESTINATION, Role.DESTINATION, Role.SOURCE):
            scene = self.bench.scene(role)
            scene.main()
            seen.append(scene.connection.engine.peer.session)
            self.bench.leave(scene)
        none = bytes(16)
        self.assertEqual([session == none for session in seen],
                         [False, False, True])
        self.assertNotEqual(seen[0], seen[1])

    def test_hello_in_pieces(self):
        for role in Role:
            with self.subTest(role=role):
                scene = self.to_qemu(role, b'')
                for byte in Hello(role).pack():
                    scene.connection.send_raw(bytes([byte]))
                    scene.connection.flush()
                scene.main()
                self.assert_alive(scene)


class Refusals(QEMUTest):
    """What only one side does."""

    def test_stream_that_is_not_expected(self):
        for role in Role:
            with self.subTest(role=role):
                scene = self.to_qemu(role)
                scene.refused()
                self.assertEqual(scene.stream.reset[0], Code.REFUSED)

    def test_stream_that_was_opened_before(self):
        scene = self.to_qemu(Role.SOURCE)
        scene.main()
        scene.connection.open('nbd-disk0')
        for name in ('control', 'main', 'nbd-disk0'):
            with self.assertRaises(MuxError) as caught:
                scene.connection.open(name)
            self.assertEqual(caught.exception.code, Code.REFUSED)

    def test_refused_disk_fails_the_migration(self):
        scene = self.to_qemu(Role.DESTINATION)
        scene.main()
        scene.connection.wait(lambda: len(scene.connection.streams) > 2)
        stream = scene.connection.streams[MAIN_ID + 2]
        stream.abort(Code.REFUSED, 'there is no room')
        code, text = goaway(scene.answers())
        self.assertEqual(code, Code.ABORTED)
        self.assertIn(stream.name, text)
        self.assert_failed(scene, 'there is no room')

    def test_disk_that_cannot_be_flushed(self):
        scene = self.to_qemu(Role.DESTINATION)
        scene.main()
        with contextlib.suppress(MuxError):     # main may hear of it first
            scene.serve_disks(flags=SERVED & ~SEND_FLUSH)
        self.assert_failed(scene, 'does not support NBD_CMD_FLUSH')

    def test_main_that_is_refused(self):
        scene = self.to_qemu(Role.DESTINATION)
        scene.offered()
        scene.stream.abort(Code.REFUSED, 'not today')
        self.assertEqual(goaway(scene.answers())[0], Code.ABORTED)
        self.assert_failed(scene, 'not today')

    def test_first_byte_before_all_disks(self):
        scene = self.to_qemu(Role.SOURCE)
        scene.main()
        scene.connection.open('nbd-disk0')
        scene.stream.write(b'Q')
        code, text = goaway(scene.answers())
        self.assertEqual(code, Code.ABORTED)
        self.assertIn('disk1', text)
        self.assert_failed(scene, text)

    def test_multifd_streams_that_are_not_expected(self):
        scene = self.to_qemu(Role.SOURCE, capabilities=['multifd'])
        scene.main()
        scene.connection.open('multifd-1')
        for name in ('multifd-1', 'multifd-2', 'multifd-00', 'multifd-'):
            with self.assertRaises(MuxError) as caught:
                scene.connection.open(name)
            self.assertEqual(caught.exception.code, Code.REFUSED)

    def test_multifd_stream_with_the_data_of_main(self):
        """Its name says what it is, not what it begins with."""
        scene = self.to_qemu(Role.SOURCE, capabilities=['multifd'])
        scene.main()
        stream = scene.connection.open('multifd-0')
        stream.write(b'QEVM' + bytes(60))
        text = goaway(scene.answers())[1]
        self.assertIn("stream 'multifd-0': ", text)
        self.assertIn('received packet magic', text)
        self.assert_failed(scene, 'received packet magic')

    def test_disk_that_ends_without_disconnecting(self):
        scene = self.to_qemu(Role.SOURCE)
        scene.main()
        stream = scene.connection.open('nbd-disk0')
        stream.finish()
        scene.connection.wait(lambda: stream.reset)
        self.assertEqual(stream.reset[0], Code.ABORTED)
        self.assertIn('disk0', goaway(scene.answers())[1])
        self.assert_failed(scene, 'disk0')

    def test_goaway_is_reported(self):
        for role in Role:
            with self.subTest(role=role):
                scene = self.to_qemu(role)
                scene.main()
                scene.connection.close(Code.ABORTED, 'out of order')
                self.assert_failed(scene, 'out of order')
