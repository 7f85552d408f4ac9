#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""
Migrations of a real QEMU with a peer that injects random faults.

The peer speaks the multiplexer's protocol, and control, NBD and the migration
stream on top of it, mostly correctly.  After each round QEMU must still run,
respond to QMP, have reported how the migration ended, and have no additional
file descriptors or block jobs; the guest of a source must continue to run,
unless the peer has said that everything is loaded.  A destination that has
accepted nothing must wait on.

Prints TAP, with QEMU's output after a failure, and a comment when QMP took
longer than a second.  QEMU is ended by 'quit', so that LeakSanitizer can
report.  Exits with 1 if a round failed.  Seed and number of a round determine
the faults, apart from the order of threads; to repeat a round, pass both.  A
source runs for 50 rounds, so a fault may need those before.
"""

import argparse
import contextlib
import random
import socket
import struct
import sys
import threading
import time
from pathlib import Path

from muxpeer import connection, control, nbd
from muxpeer.connection import Connection, MuxError
from muxpeer.control import Control, make_offer, pack
from muxpeer.engine import Engine
from muxpeer.frames import Code, Role
from muxpeer.nbd import NBDError
from scene import MAIN_ID
from vm import (DISK_SIZE, DISKS, ENDS, LISTENING, QEMU, QMPError,
                make_images, wait_until, work_folder)

LIMIT_MS = 1000                 # QEMU's, for a peer that makes no progress
RATES = (0, 0.002, 0.02, 0.1, 0.4)
ON_CONTROL = 0.2                # of what else goes wrong, to get beyond it
OPT_LIST, OPT_STARTTLS, OPT_INFO = 3, 5, 6
DONE = 1
SETTLE = 30                     # seconds until resources are released
LIFE = 50                       # rounds of one source


class PeerDone(Exception):
    """The peer ends its part here."""


class FaultChooser:
    """Decides what goes wrong, and when."""

    def __init__(self, seed: str):
        self.rng = random.Random(seed)
        self.rate = self.rng.choice(RATES)
        self.chosen: list[str] = []

    def happens(self) -> bool:
        return self.rng.random() < self.rate

    def one_of(self, *functions):
        """Choose a function, note its name, and call it."""
        fault = self.rng.choice(functions)
        self.chosen.append(fault.__name__)
        return fault()

    def bytes(self, most: int = 200) -> bytes:
        return self.rng.randbytes(self.rng.randrange(1, most))

    def number(self, bits: int) -> int:
        """Small, large, or near a power of two."""
        value = self.rng.choice((0, 1, 1 << self.rng.randrange(bits),
                                 self.rng.getrandbits(bits),
                                 (1 << bits) - 1))
        return (value + self.rng.choice((-1, 0, 0, 1))) % (1 << bits)


class RandomControl(Control):
    """Says the right thing, or something else."""

    def __init__(self, stream: connection.Stream, faults: FaultChooser):
        super().__init__(stream)
        self.faults = faults

    def say(self, message: dict | bytes) -> None:
        faults, rng = self.faults, self.faults.rng
        if not (faults.happens() and rng.random() < ON_CONTROL):
            super().say(message)
            return
        self.sent.add(message['type'])      # QEMU may take it for that
        right = pack(message)
        text = right[control.LENGTH.size:]

        def raw(data: bytes) -> None:
            self.stream.write(data)

        def bad_length():
            raw(control.LENGTH.pack(faults.number(32)) + text)

        def wrong_text():
            raw(pack(faults.bytes()))

        def cut_text():
            raw(pack(text[:rng.randrange(1, len(text))]))

        def deep():
            depth = rng.choice((control.NESTING_MAX, 100, 30000))
            raw(pack(b'{"type":"x","y":' + b'[' * depth + b']' * depth
                     + b'}'))

        def unknown_type():
            raw(pack({'type': 'no-such', 'require': ['x']}) + right)

        def unknown_member():
            raw(pack({**message, 'no-such': [{}]}))

        def required():
            raw(pack({**message, 'no-such': 1, 'require': ['no-such']}))

        def missing_member():
            raw(pack({'type': message['type']}))

        def other_value():
            raw(pack({name: name == 'type' and value or rng.choice(
                (None, -1, 1 << 64, 'x', [], {}, [value]))
                for name, value in message.items()}))

        def other_kind():
            raw(pack({**message, 'type': rng.choice(
                [*control.MESSAGES])}))

        def too_much():
            raw(pack(b'{"type":"no-such"}'.ljust(control.MESSAGE_MAX))
                * rng.choice((4, 16)))

        def in_pieces():
            for byte in right:
                raw(bytes([byte]))

        def twice():
            raw(right * 2)

        def nothing():
            pass

        def abort():
            self.stream.abort(rng.randrange(1, 9), 'no more')
            raise PeerDone

        def finish():
            self.stream.finish()

        faults.one_of(bad_length, wrong_text, cut_text, deep, unknown_type,
                      unknown_member, required, missing_member, other_value,
                      other_kind, too_much, in_pieces, twice, nothing, abort,
                      finish)


class RandomServer:
    """Simulates an NBD server without storage."""

    def __init__(self, stream: connection.Stream, faults: FaultChooser):
        self.stream = stream
        self.faults = faults
        self.structured = self.extended = False
        self.may_structure = faults.rng.random() < 0.7
        self.may_extend = self.may_structure and faults.rng.random() < 0.7
        self.late: list[bytes] = []     # replies out of order

    def serve(self) -> None:
        self.write(nbd.MAGIC + nbd.IHAVEOPT + struct.pack('>H', 3))
        self.stream.read(4)
        while self.option():
            pass
        while self.request():
            pass
        self.stream.settle()
        self.stream.finish()

    def write(self, data: bytes) -> None:
        """Say that, or something else."""
        if not self.faults.happens():
            self.stream.write(data)
            return

        def garbage():
            self.stream.write(self.faults.bytes())

        def flip():
            place = self.faults.rng.randrange(len(data))
            self.stream.write(data[:place] + bytes(
                [data[place] ^ 1 << self.faults.rng.randrange(8)])
                + data[place + 1:])

        def truncate():
            self.stream.write(data[:self.faults.rng.randrange(len(data))])

        def twice():
            self.stream.write(data * 2)

        def nothing():
            pass

        def for_long():
            self.stream.write(data * (1 + (1 << 20) // len(data)))

        self.faults.one_of(garbage, flip, truncate, twice, nothing, for_long,
                         self.finish, self.abort, self.fall_silent)

    def finish(self) -> None:
        self.stream.finish()
        raise PeerDone

    def abort(self) -> None:
        self.stream.abort(self.faults.rng.randrange(1, 9), 'no more')
        raise PeerDone

    def fall_silent(self) -> None:
        raise PeerDone

    def option(self) -> bool:
        magic, option, length = nbd.OPTION.unpack(
            self.stream.read(nbd.OPTION.size))
        if magic != nbd.IHAVEOPT:
            raise NBDError('option magic')
        self.stream.read(length)
        if option == nbd.OPT_GO:
            self.answer_go()
            return False
        wanted = {nbd.OPT_STRUCTURED_REPLY: self.may_structure,
                  nbd.OPT_EXTENDED_HEADERS: self.may_extend}.get(option, False)
        if option == nbd.OPT_SET_META_CONTEXT and self.structured:
            wanted = True
            if self.faults.rng.random() < 0.5:
                self.answer(option, nbd.REP_META_CONTEXT, struct.pack('>I', 1)
                            + b'base:allocation')
        self.structured |= wanted
        self.extended |= wanted and option == nbd.OPT_EXTENDED_HEADERS
        self.answer(option, nbd.REP_ACK if wanted else nbd.REP_ERR_UNSUP)
        return True

    def answer_go(self) -> None:
        size, flags = DISK_SIZE, nbd.SERVED
        if self.faults.happens():
            size = self.faults.number(64)
        if self.faults.happens():
            flags = self.faults.number(16)
        self.answer(nbd.OPT_GO, nbd.REP_INFO, struct.pack(
            '>HQH', nbd.INFO_EXPORT, size, flags))
        if self.faults.rng.random() < 0.5:
            sizes = [1 << self.faults.rng.randrange(17), 1 << 17, 1 << 25]
            if self.faults.happens():
                sizes = [self.faults.number(32) for _ in range(3)]
            self.answer(nbd.OPT_GO, nbd.REP_INFO, struct.pack(
                '>HIII', nbd.INFO_BLOCK_SIZE, *sizes))
        self.answer(nbd.OPT_GO, nbd.REP_ACK)

    def answer(self, option: int, kind: int, data: bytes = b'') -> None:
        self.write(nbd.OPTION_REPLY.pack(nbd.REPLY_MAGIC, option, kind,
                                         len(data)) + data)

    def request(self) -> bool:
        if self.extended:
            _, _, kind, cookie, _, length = nbd.EXTENDED_REQUEST.unpack(
                self.stream.read(nbd.EXTENDED_REQUEST.size))
        else:
            _, _, kind, cookie, _, length = nbd.REQUEST.unpack(
                self.stream.read(nbd.REQUEST.size))
        if kind == nbd.CMD_DISC:
            return False
        if kind == nbd.CMD_WRITE:
            self.stream.read(length)
        if self.faults.happens():
            cookie = self.faults.number(64)
        self.late.append(self.reply(cookie))
        while self.late and (not self.faults.rate or
                             self.faults.rng.random() < 0.9):
            number = self.faults.rng.randrange(len(self.late))
            self.write(self.late.pop(number))
        return True

    def reply(self, cookie: int) -> bytes:
        error, kind, payload = 0, 0, b''
        if self.faults.happens():
            error = self.faults.rng.choice((1, 5, 12, 22, 28, 75, 95, 108,
                                          self.faults.number(32)))
        if not self.structured:
            return nbd.REPLY.pack(nbd.SIMPLE_REPLY_MAGIC, error, cookie)
        if error:
            kind = nbd.CHUNK_ERROR
            payload = struct.pack('>IH', error, 3) + b'why'
        if self.faults.happens():
            kind = self.faults.rng.choice((0, 1, 2, 3, 4, 5, 6, 0x8001, 0x8002,
                                         self.faults.number(16)))
            payload = self.faults.bytes(64)
        length = len(payload)
        if self.faults.happens():
            length = self.faults.number(32)
        flags = self.faults.number(16) if self.faults.happens() else DONE
        if self.extended:
            return nbd.EXTENDED_CHUNK.pack(
                nbd.EXTENDED_CHUNK_MAGIC, flags, kind, cookie, 0,
                length) + payload
        return nbd.CHUNK.pack(nbd.CHUNK_MAGIC, flags, kind, cookie,
                              length) + payload


class RandomClient(RandomServer):
    """Negotiates with a server, and asks it for all kinds of things."""

    def __init__(self, stream: connection.Stream, faults: FaultChooser,
                 name: str):
        super().__init__(stream, faults)
        self.name = name

    def serve(self) -> None:
        self.stream.read(18)
        self.write(struct.pack('>I', 3))
        threading.Thread(target=self.hear, daemon=True).start()
        for _ in range(self.faults.rng.randrange(4)):
            self.write(self.ask(self.faults.rng.choice(
                (OPT_LIST, OPT_STARTTLS, OPT_INFO, nbd.OPT_STRUCTURED_REPLY,
                 nbd.OPT_SET_META_CONTEXT, self.faults.number(32))),
                self.faults.bytes()))
        if self.may_extend:
            self.write(self.ask(nbd.OPT_EXTENDED_HEADERS))
            self.extended = True
        elif self.may_structure:
            self.write(self.ask(nbd.OPT_STRUCTURED_REPLY))
        name = self.name.encode()
        self.write(self.ask(nbd.OPT_GO, struct.pack('>I', len(name)) + name
                            + b'\0\0'))
        for number in range(self.faults.rng.randrange(200)):
            self.write(self.one(number))
        if self.faults.rng.random() < 0.5:
            self.write(self.header(nbd.CMD_DISC, 0, 0, 0))
            self.finish()

    @staticmethod
    def ask(option: int, data: bytes = b'') -> bytes:
        return nbd.OPTION.pack(nbd.IHAVEOPT, option, len(data)) + data

    def header(self, kind: int, cookie: int, offset: int, length: int,
               flags: int = 0) -> bytes:
        if self.extended:
            return nbd.EXTENDED_REQUEST.pack(
                nbd.EXTENDED_REQUEST_MAGIC, flags, kind, cookie, offset,
                length)
        return nbd.REQUEST.pack(nbd.REQUEST_MAGIC, flags, kind, cookie,
                                offset, length % (1 << 32))

    def one(self, cookie: int) -> bytes:
        """A request."""
        rng = self.faults.rng
        kind = rng.choice((nbd.CMD_WRITE, nbd.CMD_WRITE, nbd.CMD_FLUSH,
                           nbd.CMD_READ, nbd.CMD_WRITE_ZEROES, 4, 5, 7))
        offset = rng.randrange(DISK_SIZE // 4096) * 4096
        length = min(rng.randrange(1, 16) * 4096, DISK_SIZE - offset)
        flags = 0
        if self.faults.happens():
            kind = self.faults.number(16)
        if self.faults.happens():
            offset = self.faults.number(64)
        if self.faults.happens():
            length = self.faults.number(32)
        if self.faults.happens():
            flags = self.faults.number(16)
        if kind == nbd.CMD_FLUSH and not self.faults.happens():
            offset = length = 0
        data = bytes(min(length, 1 << 20)) if kind == nbd.CMD_WRITE else b''
        return self.header(kind, cookie, offset, length, flags) + data

    def hear(self) -> None:
        with contextlib.suppress(Exception):
            while self.stream.read_some():
                if self.faults.rate > 0.3:
                    return


class Round:
    """One migration."""

    def __init__(self, seed: int, number: int):
        self.faults = FaultChooser(f'{seed}-{number}')
        self.threads: list[threading.Thread] = []
        self.slow = self.faults.happens()
        self.qmp_time = 0.0             # seconds, of the slowest command
        self.qmp_name = ''
        self.control: Control | None = None
        self.loaded = threading.Event()

    @property
    def may_have_guest(self) -> bool:
        """Whether a source may have given its guest up, or will."""
        return self.control is not None and 'loaded' in self.control.sent

    def ask(self, qemu: QEMU, command: str):
        began = time.monotonic()
        answer = qemu.qmp.cmd(command)
        took = time.monotonic() - began
        if took > self.qmp_time:
            self.qmp_time, self.qmp_name = took, command
        return answer

    def start(self, work) -> None:
        def run():
            with contextlib.suppress(PeerDone, MuxError, NBDError, OSError,
                                     struct.error):
                work()
        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        self.threads.append(thread)

    def is_done(self) -> bool:
        """Has it begun, and nothing more to do?"""
        threads = list(self.threads)
        return bool(threads) and not any(thread.is_alive()
                                         for thread in threads)

    def end(self, conn: Connection, qemu: QEMU) -> None:
        """Let it run for a while, and leave in one of several ways."""
        deadline = time.monotonic() + self.faults.rng.choice((0.2, 1, 4))
        while time.monotonic() < deadline and \
                not (conn.over or conn.error or self.is_done()):
            self.ask(qemu, 'query-migrate')
            self.ask(qemu, 'query-block-jobs')
            time.sleep(0.05)
        if conn.over or conn.error:
            return

        def drop():
            conn.drop()

        def leave():
            conn.do(lambda engine: engine.gone or
                    engine.leave(self.faults.rng.choice((0, 1, 3)), 'enough'))

        def stay():
            pass
        # A slow peer that stays is no failure, and has no time limit
        self.faults.one_of(drop, leave, *([] if self.slow else [stay]))

    def wait_end(self, qemu: QEMU) -> dict:
        """Returns what query-migrate says then."""
        wait_until(lambda: self.ask(qemu, 'query-migrate').get('status')
                   in ENDS, 'the end', lambda:
                   qemu.qmp.cmd('query-migrate'))
        return qemu.qmp.cmd('query-migrate')

    def accept(self, conn: Connection, stream: connection.Stream) -> None:
        """A stream of a source."""
        rng = self.faults.rng
        if self.faults.happens() and (stream.name != control.NAME
                                      or rng.random() < ON_CONTROL):
            stream.abort(Code.REFUSED, 'not this one')
            return
        if self.slow and stream.name != control.NAME:
            conn.engine.window = rng.choice((0, 1, 64, 400, 5000))
        conn.accept(stream)
        if stream.name == control.NAME:
            self.control = RandomControl(stream, self.faults)
            self.start(lambda: self.talk(conn))
        elif stream.name == control.MAIN:
            self.start(lambda: self.take(stream))
        else:
            self.start(RandomServer(stream, self.faults).serve)

    def talk(self, conn: Connection) -> None:
        """A destination's part on control."""
        self.control.introduce()
        self.control.expect('offer')
        self.control.accept()
        conn.wait(lambda: MAIN_ID in conn.streams)
        self.accept(conn, conn.streams[MAIN_ID])
        if not self.loaded.wait(SETTLE):
            return
        self.control.send('loaded')
        self.control.expect('committed')
        self.control.send('running')
        self.control.stream.finish()
        self.control.stream.settle()

    def take(self, stream: connection.Stream) -> None:
        def garbage_on_main():
            stream.write(self.faults.bytes())

        def hand_over():
            stream.settle()
            stream.finish()

        def only_settle():
            stream.settle()

        def only_finish():
            stream.finish()

        while stream.read_some():
            if self.faults.happens():
                self.faults.one_of(stream.finish, stream.settle,
                                 garbage_on_main)
        self.faults.one_of(hand_over, only_settle, only_finish)
        self.loaded.set()

    def be_destination(self, sock: socket.socket) -> Connection:
        def opened(stream: connection.Stream) -> None:
            if stream.name != control.MAIN:     # which talk() accepts
                self.accept(stream.connection, stream)
        return Connection(sock, Engine(Role.DESTINATION), on_open=opened)

    def be_source(self, sock: socket.socket) -> Connection:
        conn = Connection(sock, Engine(Role.SOURCE))

        def work():
            opened = conn.offer(control.NAME)
            early = conn.offer(control.MAIN)
            self.control = RandomControl(conn.opened(opened), self.faults)
            self.control.propose(**make_offer(
                {disk: DISK_SIZE for disk in DISKS}))
            main = conn.opened(early)
            for disk in DISKS:
                if self.faults.happens():
                    continue
                stream = conn.open(f'nbd-{disk}')
                self.start(RandomClient(stream, self.faults, disk).serve)
            if self.faults.rng.random() < 0.2:
                main.write(b'QEVM\0\0\0\3' + self.faults.bytes(5000))
            if self.faults.happens():
                main.finish()
        self.start(work)
        return conn


def limits(qemu: QEMU) -> None:
    qemu.qmp.cmd('migrate-set-parameters', **{
        'channel-mux-timeout': LIMIT_MS, 'channel-mux-stop-timeout': LIMIT_MS})


class Sources:
    """QEMU is the source, for LIFE rounds."""

    def __init__(self, build: Path):
        self.build = build
        self.stack = contextlib.ExitStack()
        self.listener = self.stack.enter_context(
            socket.create_server(('127.0.0.1', 0)))
        self.qemu: QEMU | None = None
        self.last: QEMU | None = None
        self.rounds = 0

    def close(self) -> None:
        self.end_life()
        self.stack.close()

    def end_life(self) -> None:
        if self.qemu:
            qemu, self.qemu = self.qemu, None
            with self.life:
                qemu.quit()

    def begin_life(self) -> None:
        self.life = contextlib.ExitStack()
        folder = Path(self.life.enter_context(work_folder()))
        make_images(folder)
        self.qemu = self.life.enter_context(QEMU(self.build, folder,
                                                 'source'))
        self.last = self.qemu
        self.rounds = 0
        limits(self.qemu)
        self.qemu.wait_for_guest()

    def one(self, play: Round) -> str:
        if self.qemu and self.rounds >= LIFE:
            self.end_life()
        if not self.qemu:
            self.begin_life()
        self.rounds += 1
        qemu, before = self.qemu, self.qemu.descriptors()
        qemu.migrate(self.listener.getsockname()[1])
        conn = play.be_destination(self.listener.accept()[0])
        play.end(conn, qemu)
        status = play.wait_end(qemu)['status']
        conn.drop()
        if status == 'completed' or play.may_have_guest:
            self.end_life()
            return status
        qemu.wait_for_guest()
        if jobs := qemu.qmp.cmd('query-block-jobs'):
            raise QMPError(f'jobs are left: {jobs}')
        wait_until(lambda: qemu.descriptors() <= before, 'closed descriptors')
        return f"{status}: {qemu.qmp.cmd('query-migrate')['error-desc']}"


class Destinations:
    """QEMU is the destination, a new one for each round."""

    def __init__(self, build: Path):
        self.build = build
        self.last: QEMU | None = None

    def close(self) -> None:
        """Nothing is open."""

    @staticmethod
    def waits_on(qemu: QEMU, before: int) -> bool:
        """Whether it listens, and has closed all connections."""
        return qemu.status() == LISTENING and qemu.descriptors() <= before

    def one(self, play: Round) -> str:
        with work_folder() as name:
            folder = Path(name)
            make_images(folder)
            with QEMU(self.build, folder, 'destination',
                      incoming=True) as qemu:
                self.last = qemu
                limits(qemu)
                port = qemu.listen()
                before = qemu.descriptors()
                conn = play.be_source(
                    socket.create_connection(('127.0.0.1', port)))
                play.end(conn, qemu)
                conn.drop()
                wait_until(lambda: play.ask(qemu, 'query-migrate')['status']
                           in ENDS or self.waits_on(qemu, before), 'the end',
                           lambda: qemu.qmp.cmd('query-migrate'))
                answer = qemu.qmp.cmd('query-migrate')
                if qemu.qmp.cmd('query-status')['running']:
                    raise QMPError('the guest runs')
                wait_until(lambda: qemu.descriptors() <= before,
                           'closed descriptors')
                qemu.quit()
                return f"{answer['status']}: {answer.get('error-desc')}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--build', type=Path, required=True, metavar='DIR')
    parser.add_argument('--role', choices=('source', 'destination'),
                        required=True, help='the part of QEMU')
    parser.add_argument('--rounds', type=int, default=100, metavar='N')
    parser.add_argument('--seed', type=int, default=1, metavar='N')
    parser.add_argument('--round', type=int, metavar='N',
                        help='only that round')
    args = parser.parse_args()
    connection.PATIENCE = SETTLE
    numbers = [args.round] if args.round else range(1, args.rounds + 1)
    stage = (Sources if args.role == 'source' else Destinations)(args.build)
    failed = 0
    print(f'1..{len(numbers)}', flush=True)
    for count, number in enumerate(numbers, 1):
        play = Round(args.seed, number)
        word, detail, output = 'ok', '', ''
        try:
            detail = stage.one(play)
        except Exception as err:        # whatever it is, it is a finding
            word, detail = 'not ok', f'{type(err).__name__}: {err}'
            failed += 1
            with contextlib.suppress(QMPError):
                stage.close()
            output = stage.last.output() if stage.last else ''
            stage = type(stage)(args.build)
        chosen = ', '.join(play.faults.chosen[:5]) or 'nothing'
        print(f'{word} {count} - round {number}, seed {args.seed}: '
              f'rate {play.faults.rate}, {chosen}: {detail}', flush=True)
        for line in output.splitlines()[-30:]:
            print(f'# {line}', flush=True)
        if play.qmp_time > 1:
            print(f'# {play.qmp_name} took {play.qmp_time:.1f} s', flush=True)
    stage.close()
    return 1 if failed else 0


if __name__ == '__main__':
    sys.exit(main())
