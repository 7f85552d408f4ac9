# SPDX-License-Identifier: GPL-2.0-or-later
"""
Malicious, broken and slow peers that follow the multiplexer's protocol, but
send harmful NBD messages or migration data over it, or end the connection at
the wrong time.  A source reports the failure, and its guest continues to run;
QEMU responds to QMP in either role while the peer misbehaves.
"""

import contextlib
import errno
import os
import shutil
import socket
import struct
import subprocess
import threading
import unittest
from pathlib import Path

from checks import BUILD, SIZES, QEMUScene, QEMUTest
from muxpeer import frames, nbd
from muxpeer.connection import PATIENCE, MuxError
from muxpeer.frames import Code, Role, Type
from muxpeer.record import Recorder
from scene import MAIN_ID, goaway
from test_migration import record
from vm import (DISKS, LISTENING, QEMU, QMPError, make_images, wait_until,
                work_folder)

UNKNOWN_INFO = 0x1234
# Bytes after which a peer is taken for one that never stops
ENDLESS = 16 << 20
# What a client sends up to the end of the negotiation fits in
NEGOTIATION = 400
LIMIT_MS = 3000
SLOW = 4096                     # bytes a second, to stay in precopy
CONNECTIONS = 8                 # that may wait at once
# Of the migration's stream: magic, version and type of section precede it
CONFIGURATION = 9
SUBSECTION = 5
VM_COMMAND = 8
COMMANDS = {'POSTCOPY_ADVISE': 3, 'POSTCOPY_LISTEN': 4, 'POSTCOPY_RUN': 5,
            'PACKAGED': 7}


class Endless(nbd.Server):
    """Repeats `words` without an end."""

    sent = 0                        # by all servers of this class, in a test

    def repeat(self, words: bytes) -> None:
        words *= 65536 // len(words)
        while True:
            self.stream.write(words)
            type(self).sent += len(words)


class EndlessInfo(Endless):
    """Answers NBD_OPT_GO, and does not come to an end."""

    def _go(self, option: int, data: bytes) -> bool:
        info = struct.pack('>H', UNKNOWN_INFO)
        self.repeat(nbd.OPTION_REPLY.pack(nbd.REPLY_MAGIC, option,
                                          nbd.REP_INFO, len(info)) + info)
        return False


class EndlessErrors(Endless):
    """Answers the first request with errors, of which none is the last."""

    def _option(self) -> bool:
        magic, option, length = nbd.OPTION.unpack(
            self.stream.read(nbd.OPTION.size))
        data = self.stream.read(length)
        if magic != nbd.IHAVEOPT:
            raise nbd.NBDError(f'option magic {magic}')
        if option == nbd.OPT_GO:
            return not self._go(option, data)
        self._answer(option, nbd.REP_ACK if
                     option == nbd.OPT_STRUCTURED_REPLY else
                     nbd.REP_ERR_UNSUP)
        return True

    def _request(self) -> bool:
        _, _, kind, cookie, _, length = nbd.REQUEST.unpack(
            self.stream.read(nbd.REQUEST.size))
        if kind == nbd.CMD_WRITE:
            self.stream.read(length)
        error = struct.pack('>IH', nbd.EINVAL, 0)
        self.repeat(nbd.CHUNK.pack(nbd.CHUNK_MAGIC, 0, nbd.CHUNK_ERROR,
                                   cookie, len(error)) + error)
        return False


class OtherContext(nbd.Server):
    """Names another metadata context than the one that was asked for."""

    def _option(self) -> bool:
        magic, option, length = nbd.OPTION.unpack(
            self.stream.read(nbd.OPTION.size))
        self.stream.read(length)
        if option == nbd.OPT_SET_META_CONTEXT:
            self._answer(option, nbd.REP_META_CONTEXT,
                         struct.pack('>I', 1) + b'\x1b[2J\x89')
        self._answer(option, nbd.REP_ACK if option in
                     (nbd.OPT_STRUCTURED_REPLY, nbd.OPT_SET_META_CONTEXT)
                     else nbd.REP_ERR_UNSUP)
        return True


class Mute(nbd.Server):
    """Answers requests until `silenced` is set; then `swallowed` is."""

    silenced = threading.Event()
    swallowed = threading.Event()
    failing = ''                    # the disk whose requests fail then
    # Whose flush, which ends the first copy, waits for `synced`
    copied: set[str] = set()
    synced = threading.Event()

    def _perform(self, kind: int, offset: int, length: int):
        if kind == nbd.CMD_FLUSH:
            self.copied.add(self.name)
            self.synced.wait()
        if not self.silenced.is_set():
            return super()._perform(kind, offset, length)
        if self.name != self.failing:
            self.swallowed.set()
            threading.Event().wait()
        if kind == nbd.CMD_WRITE:
            self.stream.read(length)
        self.swallowed.wait()           # the other disk's request hangs
        return errno.EIO, b''


class Source(QEMUTest):
    """QEMU is the source."""

    def setUp(self):
        self.scene = self.to_qemu(Role.DESTINATION)
        self.source = self.scene.qemu
        EndlessInfo.sent = EndlessErrors.sent = 0

    def set_parameter(self, name: str, value: int) -> None:
        """Set a parameter for this test."""
        usual = self.source.qmp.cmd('query-migrate-parameters')[name]
        self.source.qmp.cmd('migrate-set-parameters', {name: value})
        self.addCleanup(self.source.qmp.cmd, 'migrate-set-parameters',
                        {name: usual})

    def limit(self, name: str) -> None:
        """Shorten a limit for this test."""
        self.set_parameter(name, LIMIT_MS)

    def serve(self, *args, **keywords) -> None:
        """As Scene.serve_disks(), in the background."""
        self.scene.main()
        self.serve_now(*args, **keywords)

    def serve_now(self, *args, **keywords) -> None:
        """The same, with main open."""
        def run():
            with contextlib.suppress(MuxError, OSError):
                self.scene.serve_disks(*args, **keywords)
        thread = threading.Thread(target=run, daemon=True)
        thread.start()

    def assert_fails(self, text: str) -> None:
        """The peer does not go away by itself."""
        answer = self.source.wait_end()
        self.assertEqual(answer['status'], 'failed')
        self.assertIn(text, answer['error-desc'])
        self.source.wait_for_guest()

    def assert_flooded(self, server: type[Endless]) -> None:
        """QMP answers while the peer goes on."""
        wait_until(lambda: server.sent > ENDLESS, 'a flood')
        for command in 'query-status', 'query-migrate', 'query-block-jobs':
            self.source.qmp.cmd(command)
        before = server.sent
        wait_until(lambda: server.sent > before, 'more of it')

    def wait_precopy(self) -> None:
        wait_until(lambda: self.source.qmp.cmd('query-migrate')['phase']
                   == 'precopy', 'the phase')

    def cancel(self) -> None:
        self.source.qmp.cmd('migrate_cancel')
        self.assertEqual(self.source.wait_end()['status'], 'cancelled')
        self.source.wait_for_guest()


class Exports(Source):
    """The destination's export is not one to be written to."""

    def check_block_size(self, size: int, text: str) -> None:
        self.serve(block_sizes=(size, max(size, 1), max(size, 1)))
        self.assert_fails(text)

    def test_block_size_0(self):
        self.check_block_size(0, 'is not a power of two')

    def test_block_size_3(self):
        self.check_block_size(3, 'is not a power of two')

    def test_block_size_128k(self):
        self.check_block_size(128 << 10, 'is larger than 65536')

    def test_block_size_64m(self):
        self.check_block_size(64 << 20, 'is larger than 65536')

    def test_block_size_2g(self):
        self.check_block_size(1 << 31, 'is larger than 65536')

    def test_block_sizes_that_are_allowed(self):
        """Up to the end of a disk."""
        self.scene.main()
        self.scene.serve_disks(block_sizes=(65536, 65536, 65536))
        self.scene.connection.drop()
        self.source.wait_end()

    def test_read_only(self):
        self.serve(flags=nbd.SERVED | nbd.READ_ONLY)
        self.assert_fails("the destination's export is read-only")

    def serve_without_credit(self, **keywords) -> None:
        """For more than the negotiation."""
        self.scene.main()
        self.scene.connection.engine.window = NEGOTIATION
        self.scene.connection.engine.grant = lambda *_: None
        self.serve_now(**keywords)

    def test_read_only_without_credit(self):
        self.serve_without_credit(flags=nbd.SERVED | nbd.READ_ONLY)
        self.assert_fails("the destination's export is read-only")

    def test_text_of_the_peer(self):
        """What is not printable does not get into messages."""
        self.serve(OtherContext)
        self.assert_fails("answered with different context '?[2J?'")

    def test_no_credit_for_requests(self):
        self.limit('channel-mux-stop-timeout')
        self.serve_without_credit()
        self.assert_fails('to complete a disk request')


class Silence(Source):
    """
    From some time on the destination does not answer NBD requests, while it
    answers PING.
    """

    def setUp(self):
        super().setUp()
        Mute.silenced.clear()
        Mute.swallowed.clear()
        Mute.copied.clear()
        Mute.synced.set()
        Mute.failing = ''

    def in_disks(self) -> None:
        """Up to a request that is not answered."""
        Mute.silenced.set()
        self.serve(Mute)
        wait_until(Mute.swallowed.is_set, 'a request')

    def in_precopy(self) -> None:
        """The next request is not answered."""
        Mute.synced.clear()
        self.serve(Mute)
        wait_until(lambda: Mute.copied == set(DISKS), 'the copies')
        self.set_parameter('max-bandwidth', SLOW)
        Mute.synced.set()
        self.wait_precopy()
        Mute.silenced.set()

    def stop(self) -> None:
        self.source.qmp.cmd('stop')
        self.source.qmp.cmd('cont')

    def kill_job(self) -> None:
        self.source.qmp.cmd('block-job-cancel', device='nbd-disk1',
                            force=True)

    def test_stop_in_disks(self):
        self.in_disks()
        self.limit('channel-mux-stop-timeout')
        self.stop()
        self.assert_fails('to complete a disk request')

    def test_reset_in_disks(self):
        self.in_disks()
        self.limit('channel-mux-stop-timeout')
        self.source.qmp.cmd('system_reset')
        self.assert_fails('to complete a disk request')

    def test_kill_job_in_disks(self):
        self.in_disks()
        wait_until(lambda: len(self.source.qmp.cmd('query-block-jobs')) == 2,
                   'the jobs')
        self.kill_job()
        self.assert_fails("job 'nbd-disk1' was ended by a command")

    def test_error_in_disks(self):
        Mute.failing = 'disk0'
        self.in_disks()
        self.assert_fails("stream 'nbd-disk0': mirror failed: ")

    def test_stop_in_precopy(self):
        self.in_precopy()
        self.limit('channel-mux-timeout')
        self.limit('channel-mux-stop-timeout')
        self.stop()
        self.assert_fails('waiting for the destination to flush the disk')

    def test_converge(self):
        """What converge asks for first is a flush."""
        self.in_precopy()
        self.limit('channel-mux-timeout')
        self.set_parameter('max-bandwidth', 0)
        self.assert_fails('waiting for the destination to flush the disk')


class Misers(Source):
    """The peer serves the disks, and grants little or no credit on main."""

    def check(self, credit: int, *capabilities: str) -> None:
        for name in capabilities:
            self.source.set_capability(name)
            self.addCleanup(self.source.set_capability, name, False)
        self.begin(credit)
        before = self.source.counter()
        wait_until(lambda: self.source.counter() > before, 'the guest')
        self.assertNotEqual(self.source.status(), 'failed')
        self.cancel()

    def begin(self, credit: int) -> None:
        """Up to where the source sends on main."""
        self.scene = self.to_qemu(Role.DESTINATION)
        self.scene.offered()
        engine = self.scene.connection.engine
        usual, engine.window = engine.window, credit
        grant = engine.grant
        engine.grant = lambda state, consumed: state.id == MAIN_ID or \
            grant(state, consumed)
        self.scene.connection.accept(self.scene.stream)
        engine.window = usual
        self.serve_now()
        self.wait_precopy()

    def setUp(self):
        self.source = self.bench.source

    def test_limit(self):
        self.limit('channel-mux-timeout')
        self.begin(0)
        self.assert_fails('waiting for the destination to accept data')

    def test_credit_0(self):
        self.check(0)

    def test_credit_10(self):
        self.check(10)

    def test_credit_64(self):
        self.check(64)

    def test_credit_0_return_path(self):
        self.check(0, 'return-path')

    def test_credit_10_return_path(self):
        self.check(10, 'return-path')

    def test_credit_64_return_path(self):
        self.check(64, 'return-path')


class Floods(Source):
    """The peer never stops sending."""

    def test_endless_negotiation(self):
        self.limit('channel-mux-timeout')
        self.serve(EndlessInfo)
        self.assert_fails('waiting for the NBD handshake')
        self.assertGreater(EndlessInfo.sent, 0)

    def test_endless_negotiation_qmp(self):
        self.serve(EndlessInfo)
        self.assert_flooded(EndlessInfo)
        self.cancel()

    def test_endless_errors(self):
        self.serve(EndlessErrors)
        self.assert_flooded(EndlessErrors)
        self.cancel()

    def test_endless_errors_stop(self):
        """'stop' waits for the request, so the time limit applies."""
        self.limit('channel-mux-stop-timeout')
        self.serve(EndlessErrors)
        self.assert_flooded(EndlessErrors)
        self.source.qmp.cmd('stop')
        self.source.qmp.cmd('cont')
        self.assert_fails('to complete a disk request')


class Leaver(Recorder):
    """Loads everything, and closes cleanly instead of a handover."""

    def __init__(self, *args, last=()):
        self.last = last
        super().__init__(*args)

    def _work(self, target, stream) -> None:
        if stream.name != 'main':
            super()._work(target, stream)
            return
        target(stream)
        state, conn = stream.state, stream.connection
        said = {Type.FIN_OK: frames.numbered(Type.FIN_OK, state.id,
                                             state.received),
                Type.FIN: frames.numbered(Type.FIN, state.id, 0),
                Type.GOAWAY: frames.ended(Type.GOAWAY, 0, Code.OK, '')}
        conn.listening = False
        conn.send_raw(b''.join(said[kind].pack() for kind in self.last))


class Handover(QEMUTest):
    """
    The destination says GOAWAY(OK) instead of `loaded`; whether it has ended
    main makes no difference.
    """

    def check(self, *last: Type) -> None:
        source = self.bench.source
        with work_folder() as folder:
            source.migrate(self.bench.listener.getsockname()[1])
            leaver = Leaver(self.bench.listener.accept()[0], Path(folder),
                            SIZES, last=last)
            self.addCleanup(leaver.connection.drop)
            answer = source.wait_end()
        self.assertEqual(answer['status'], 'failed')
        source.wait_for_guest()

    def test_before_fin_ok(self):
        self.check(Type.GOAWAY)

    def test_before_fin_ok_after_fin(self):
        self.check(Type.FIN, Type.GOAWAY)

    def test_after_fin_ok(self):
        self.check(Type.FIN_OK, Type.GOAWAY)

    def test_after_fin_ok_and_fin(self):
        self.check(Type.FIN_OK, Type.FIN, Type.GOAWAY)


class Destination(QEMUTest):
    """QEMU is the destination."""

    def opened(self, *capabilities: str) -> QEMUScene:
        scene = self.to_qemu(Role.SOURCE, capabilities=capabilities)
        scene.main()
        for disk in DISKS:
            scene.connection.open(f'nbd-{disk}')
        return scene

    def test_postcopy(self):
        """Rejected even with dirty-bitmaps, which allows it otherwise."""
        with work_folder() as folder:
            record(Path(folder))
            begin = beginning((Path(folder) / 'main').read_bytes())
        for name, payload in (('POSTCOPY_ADVISE', b''),
                              ('POSTCOPY_LISTEN', b''),
                              ('POSTCOPY_RUN', b''),
                              ('PACKAGED', bytes(4))):
            with self.subTest(command=name):
                scene = self.opened('dirty-bitmaps')
                scene.stream.write(begin + struct.pack(
                    '>BHH', VM_COMMAND, COMMANDS[name], len(payload))
                    + payload)
                text = goaway(scene.answers())[1]
                self.assertIn(f'command {name}', text)
                answer = scene.qemu.wait_end()
                self.assertEqual(answer['status'], 'failed')
                self.assertIn(f'command {name}', answer['error-desc'])
                self.assertFalse(
                    scene.qemu.qmp.cmd('query-status')['running'])

    def ask_block_status(self, payload: bytes) -> nbd.Client:
        """With a payload of 8 bytes, which selects contexts."""
        self.scene = self.to_qemu(Role.SOURCE)
        self.scene.main()
        client = nbd.Client(self.scene.connection.open('nbd-disk0'))
        client.negotiate('disk0', nbd.OPT_EXTENDED_HEADERS)
        client.stream.write(nbd.EXTENDED_REQUEST.pack(
            nbd.EXTENDED_REQUEST_MAGIC, nbd.CMD_FLAG_PAYLOAD_LEN,
            nbd.CMD_BLOCK_STATUS, 1, 0, 8) + payload)
        return client

    def test_block_status_cut(self):
        """A leak sanitizer reports at the end of QEMU."""
        client = self.ask_block_status(b'half')
        client.stream.finish()
        self.scene.qemu.wait_end()
        self.scene.qemu.quit()

    def test_block_status_without_context(self):
        client = self.ask_block_status(struct.pack('>Q', 4096))
        _, _, kind, _, _, length = nbd.EXTENDED_CHUNK.unpack(
            client.stream.read(nbd.EXTENDED_CHUNK.size))
        self.assertEqual(kind, nbd.CHUNK_ERROR)
        error = struct.unpack_from('>I', client.stream.read(length))[0]
        self.assertEqual(error, nbd.EINVAL)

    def test_lengths_in_the_configuration(self):
        with work_folder() as folder:
            record(Path(folder))
            begin = beginning((Path(folder) / 'main').read_bytes())
        name = b'configuration/capabilities'
        caps = begin + struct.pack('>BB', SUBSECTION, len(name)) + name
        for data, error in (
                (struct.pack('>4sIBI', b'QEVM', 3, 7, 1024), errno.EINVAL),
                (struct.pack('>4sIBI', b'QEVM', 3, 7, 1025), errno.EPERM),
                (struct.pack('>4sIBI', b'QEVM', 3, 7, 1 << 31), errno.EPERM),
                (caps + struct.pack('>II', 1, 1025), errno.EPERM),
                (caps + struct.pack('>II', 1, 0xffffffff), errno.EPERM)):
            with self.subTest(end=data[-8:]):
                scene = self.opened()
                scene.stream.write(data + bytes(2000))
                self.assertIn(os.strerror(error),
                              goaway(scene.answers())[1])
                self.assertEqual(scene.qemu.wait_end()['status'], 'failed')

    def test_part_of_a_multifd_packet(self):
        """QMP answers while the rest is awaited."""
        scene = self.opened('multifd')
        stream = scene.connection.open('multifd-0')
        stream.write(b'x')
        scene.connection.do(lambda engine: engine.ping(b'question'))
        scene.connection.wait(lambda: scene.count(Type.PONG))
        for _ in range(10):
            scene.qemu.qmp.cmd('query-status')
        stream.write(bytes(63))
        self.assertIn('received packet magic', goaway(scene.answers())[1])


class Strangers(unittest.TestCase):
    """Connections to a destination that say nothing."""

    def setUp(self):
        folder = work_folder()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.target = self.start('destination', incoming=True)
        self.port = self.target.listen()

    def start(self, name: str, incoming: bool = False) -> QEMU:
        folder = self.folder / name
        folder.mkdir()
        make_images(folder)
        qemu = QEMU(BUILD, folder, name, incoming=incoming)
        self.addCleanup(qemu.__exit__)
        return qemu

    def connect(self, number: int) -> list[socket.socket]:
        strangers = []
        for _ in range(number):
            strangers.append(socket.create_connection(('127.0.0.1',
                                                       self.port)))
            strangers[-1].settimeout(PATIENCE)
            self.addCleanup(strangers[-1].close)
        return strangers

    def assert_closed(self, strangers: list[socket.socket]) -> None:
        """Whatever was said to them before."""
        for stranger in strangers:
            with contextlib.suppress(ConnectionResetError):
                while stranger.recv(4096):
                    pass
            stranger.close()

    def check_migration(self, before: list[socket.socket]) -> None:
        """
        The strangers that came before the source have to go, those that come
        later are refused, and no descriptor is left.
        """
        source = self.start('source')
        source.wait_for_guest()
        source.set_capability('pause-before-switchover')
        source.migrate(self.port)
        self.assert_closed(before)
        wait_until(lambda: source.status() == 'pre-switchover', 'the source')
        descriptors = self.target.descriptors()
        self.assert_closed(self.connect(50))
        wait_until(lambda: self.target.descriptors() <= descriptors,
                   'the end of the strangers')
        source.qmp.cmd('migrate-continue', state='pre-switchover')
        source.wait_success()
        self.target.wait_success()
        self.target.wait_for_guest()
        with self.assertRaises(ConnectionRefusedError):
            self.connect(1)


class PlainStrangers(Strangers):

    def test_later(self):
        self.check_migration(before=[])

    def test_first(self):
        """All but one of the places are taken."""
        self.check_migration(before=self.connect(CONNECTIONS - 1))

    def test_number(self) -> None:
        """More are refused at once."""
        before = self.target.sockets()
        admitted = self.connect(CONNECTIONS)
        wait_until(lambda: self.target.sockets() == before + CONNECTIONS,
                   'the connections')
        self.assert_closed(self.connect(50))
        self.assertEqual(self.target.sockets(), before + CONNECTIONS)
        admitted.pop().close()
        wait_until(lambda: self.target.sockets() ==
                   before + CONNECTIONS - 1, 'the end of one')

    def test_time(self) -> None:
        """They have to go when their time is over."""
        name, qmp = 'channel-mux-timeout', self.target.qmp
        usual = qmp.cmd('query-migrate-parameters')[name]
        qmp.cmd('migrate-set-parameters', {name: LIMIT_MS})
        before = self.target.descriptors()
        self.assert_closed(self.connect(CONNECTIONS))
        wait_until(lambda: self.target.descriptors() == before,
                   'the end of all')
        self.assertEqual(self.target.status(), LISTENING)
        qmp.cmd('migrate-set-parameters', {name: usual})
        self.check_migration(before=[])


class TLSStrangers(PlainStrangers):

    def start(self, name: str, incoming: bool = False) -> QEMU:
        (self.folder / 'keys.psk').write_text(f'qemu:{"5a" * 32}\n',
                                              encoding='ascii')
        qemu = super().start(name, incoming)
        endpoint = {'endpoint': 'server'} if incoming else {
            'endpoint': 'client', 'username': 'qemu'}
        qemu.qmp.cmd('object-add', **{
            'qom-type': 'tls-creds-psk', 'id': 'tls',
            'dir': str(self.folder), **endpoint})
        qemu.qmp.cmd('migrate-set-parameters', **{'tls-creds': 'tls'})
        return qemu


class Identities(Strangers):
    """tls-authz admits one of two clients of the same authority."""

    def setUp(self):
        folder = work_folder()
        self.addCleanup(folder.cleanup)
        self.authority = Path(folder.name)
        self.certtool('--generate-privkey', '--key-type=ecdsa',
                      outfile=self.authority / 'key.pem')
        self.certify('ca', 'authority', 'ca', 'cert_signing_key',
                     '--generate-self-signed')
        super().setUp()

    def certtool(self, *args: str | Path, outfile: Path) -> None:
        subprocess.run(['certtool', *args, '--outfile', outfile], check=True,
                       capture_output=True)

    def certify(self, stem: str, name: str, *options: str,
                folder: Path | None = None) -> None:
        """A certificate in `folder`; all have the same key."""
        folder = folder or self.authority
        what = [option for option in options if option.startswith('--')]
        template = folder / 'template'
        template.write_text(f'cn = "{name}"\nip_address = 127.0.0.1\n' +
                            '\n'.join(set(options) - set(what)))
        key = self.authority / 'key.pem'
        self.certtool(*(what or ['--generate-certificate',
                                 '--load-ca-privkey', key,
                                 '--load-ca-certificate',
                                 self.authority / 'ca-cert.pem']),
                      '--load-privkey', key, '--template', template,
                      outfile=folder / f'{stem}-cert.pem')

    def start(self, name: str, incoming: bool = False) -> QEMU:
        qemu = super().start(name, incoming)
        endpoint = 'server' if incoming else 'client'
        folder = self.folder / name
        shutil.copy(self.authority / 'ca-cert.pem', folder)
        shutil.copy(self.authority / 'key.pem',
                    folder / f'{endpoint}-key.pem')
        self.certify(endpoint, name, f'tls_www_{endpoint}', 'signing_key',
                     folder=folder)
        qemu.qmp.cmd('object-add', **{
            'qom-type': 'tls-creds-x509', 'id': 'tls', 'dir': str(folder),
            'endpoint': endpoint, 'verify-peer': True})
        parameters = {'tls-creds': 'tls'}
        if incoming:
            qemu.qmp.cmd('object-add', **{
                'qom-type': 'authz-simple', 'id': 'authz',
                'identity': 'CN=source'})
            parameters['tls-authz'] = 'authz'
        qemu.qmp.cmd('migrate-set-parameters', **parameters)
        return qemu

    def test_refused(self):
        """It does not get to HELLO, and the destination waits on."""
        descriptors = self.target.descriptors()
        other = self.start('other')
        other.wait_for_guest()
        other.migrate(self.port)
        answer = other.wait_end()
        self.assertEqual(answer['status'], 'failed')
        self.assertIn("in phase 'connect'", answer['error-desc'])
        other.wait_for_guest()
        wait_until(lambda: self.target.descriptors() == descriptors,
                   'the end of its connection')
        self.assertEqual(self.target.status(), LISTENING)
        self.check_migration(before=[])


class StartPostcopy(QEMUTest):

    def test_refused(self):
        """Its capability excludes streams, and cannot be set any more."""
        scene = self.to_qemu(Role.DESTINATION)
        scene.main()
        with self.assertRaises(QMPError):
            scene.qemu.qmp.cmd('migrate-set-capabilities', capabilities=[
                {'capability': 'postcopy-ram', 'state': True}])
        with self.assertRaisesRegex(QMPError, 'Enable postcopy'):
            scene.qemu.qmp.cmd('migrate-start-postcopy')


def beginning(main: bytes) -> bytes:
    """The recorded stream up to the machine's name."""
    length = struct.unpack_from('>I', main, CONFIGURATION)[0]
    return main[:CONFIGURATION + 4 + length]


if __name__ == '__main__':
    unittest.main()
