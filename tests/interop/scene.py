# SPDX-License-Identifier: GPL-2.0-or-later
"""
A connection to a QEMU, at a stage where something can go wrong.

Keeps all that QEMU sends, so that one can look at it whatever state the peer's
own engine is in.
"""

import tempfile
import time
from pathlib import Path

from muxpeer import frames
from muxpeer.connection import PATIENCE, Connection, MuxError, Stream
from muxpeer.control import KNOWS, MAIN, NAME, Control, make_offer
from muxpeer.engine import Engine
from muxpeer.frames import Frame, Hello, Role, Type
from muxpeer.nbd import Client, Server
from muxpeer.record import end

CONTROL_ID, MAIN_ID = 1, 3
# Without the only message that comes at any time
STEADY = [name for name in KNOWS if name.partition('.')[0] != 'phase']


class Scene:
    """
    One connection.  `role` is the part that is played to QEMU, whose disks
    are named with their sizes.  `hello` says what to begin with instead of
    good manners.
    """

    def __init__(self, sock, role: Role, disks: dict[str, int],
                 hello: bytes | None = None, multifd: int = 0):
        self.role = role
        self.disks = disks
        self.multifd = multifd          # streams that are offered
        self.stream: Stream | None = None
        self.control: Control | None = None
        self.began = self.last_byte_at = time.monotonic()
        self._seen = bytearray()
        engine = Engine(role)
        if hello is not None:
            engine.out[:] = hello
        self.connection = Connection(sock, engine, tap=self._tap)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.connection.drop()

    # Stages

    def control_opened(self) -> None:
        """control is open, and this side has sent nothing on it."""
        if self.role == Role.SOURCE:
            self.stream = self.connection.open(NAME)
        else:
            self.stream = self._offered(CONTROL_ID)
            self.connection.accept(self.stream)
        self.control = Control(self.stream)

    def names_exchanged(self) -> None:
        """Both sides have sent the names that they know."""
        self.control_opened()
        self.control.introduce(STEADY)

    def proposed(self) -> None:
        """The offer was made, and has no answer (as destination)."""
        self.names_exchanged()
        self.control.expect('offer')

    def agreed(self) -> None:
        """The destination has accepted the migration."""
        if self.role == Role.SOURCE:
            self.control_opened()
            self.control.propose(**make_offer(self.disks, self.multifd))
        else:
            self.proposed()
            self.control.accept()

    def offered(self) -> None:
        """main was offered by QEMU, and has no answer (as destination)."""
        self.agreed()
        self.stream = self._offered(MAIN_ID)

    def main(self) -> None:
        """main is open."""
        if self.role == Role.SOURCE:
            self.agreed()
            self.stream = self.connection.open(MAIN)
        else:
            self.offered()
            self.connection.accept(self.stream)

    def quiet(self) -> None:
        """main is open, and QEMU has sent all that it sends then."""
        self.main()
        if self.role == Role.DESTINATION:
            self.connection.wait(self._has_all_disks)
        self.connection.flush()

    def deaf(self) -> None:
        """A stream is open of which QEMU reads nothing."""
        self.main()
        if self.role == Role.SOURCE:
            # The NBD server cannot speak first, and so does not listen
            self.connection.engine.window = 0
            self.stream = self.connection.open(f'nbd-{self._first_disk}')

    def disk(self) -> None:
        """A disk's NBD session is over, and QEMU has sent FIN."""
        self.main()
        if self.role == Role.SOURCE:
            client = Client(self.connection.open(f'nbd-{self._first_disk}'))
            client.negotiate(self._first_disk)
            client.disconnect()
            self.stream = client.stream
        else:
            self.serve_disks()
        self.connection.wait(lambda: self.stream.ended)

    def finished(self) -> None:
        """A disk's stream has come to its good end."""
        self.disk()
        end(self.stream)

    def refused(self) -> None:
        """A stream of this side was refused."""
        self.main()
        self.stream = self.connection.offer('nbd-no-such')
        self.connection.wait(lambda: self.stream.reset)

    def _offered(self, number: int) -> Stream:
        """By QEMU."""
        self.connection.wait(lambda: number in self.connection.streams)
        return self.connection.streams[number]

    # What can be done then

    @property
    def next_id(self) -> int:
        """An id that this side may open."""
        return 1001 if self.role == Role.SOURCE else 1002

    @property
    def accepted(self) -> bool:
        """Whether the destination has accepted the migration."""
        return self.control is not None and self.control.accepted

    @property
    def credit(self) -> int:
        """Up to where QEMU takes data on the stream."""
        return self.stream.state.limit

    @property
    def sent(self) -> int:
        return self.stream.state.sent

    @property
    def max_frame(self) -> int:
        """What QEMU takes."""
        return self.connection.engine.peer.max_frame

    def send(self, *what: Frame) -> None:
        """Send frames in one piece, past all rules, and listen no more."""
        self.connection.listening = False
        self.connection.send_raw(b''.join(frame.pack() for frame in what))

    def answers(self) -> list[Frame]:
        """All that QEMU sends until it closes.  Raises MuxError."""
        conn = self.connection
        with conn.changed:
            closed = conn.changed.wait_for(lambda: conn.over, PATIENCE)
        conn.drop()
        if not closed:
            raise MuxError('QEMU does not close the connection')
        return decode(self._seen)

    def seen(self) -> list[Frame]:
        """The whole frames so far."""
        return decode(self._seen)

    def count(self, kind: Type) -> int:
        """How many frames of that type."""
        return sum(frame.type == kind for frame in self.seen())

    def words(self) -> dict[str, object]:
        """What the words in the texts of faults.py stand for here."""
        sides = ('source', 'destination')
        me, qemu = sides if self.role == Role.SOURCE else sides[::-1]
        words = {'peer': me, 'self': qemu, 'id': self.next_id}
        if self.stream:
            state = self.stream.state
            words['stream'] = f"stream '{state.name}' (id {state.id})"
            words['limit'] = self.credit
        if self.connection.engine.peer:
            words['frame'] = self.max_frame
        return words

    def _tap(self, direction: str, data: bytes) -> None:
        if direction == 'in':
            self._seen += data
            self.last_byte_at = time.monotonic()

    @property
    def _first_disk(self) -> str:
        if not self.disks:
            raise MuxError('this needs a disk')
        return next(iter(self.disks))

    def _offered_disks(self) -> list[Stream]:
        """By QEMU, as source."""
        return [stream for number, stream in self.connection.streams.items()
                if number % 2 and stream.name not in (NAME, MAIN)]

    def _has_all_disks(self) -> bool:
        return len(self._offered_disks()) == len(self.disks)

    def serve_disks(self, kind=Server, **how) -> None:
        """
        Be the server of all disks (as destination), up to the end of the
        first one; main is read, too.
        """
        conn, main = self.connection, self.stream

        def drain():
            while main.read_some():
                pass
        conn.work(drain)
        conn.wait(self._has_all_disks)
        with tempfile.TemporaryDirectory() as folder:
            for stream in self._offered_disks():
                conn.accept(stream)
                name = stream.name.removeprefix('nbd-')
                server = kind(stream, name, Path(folder, name),
                              self.disks[name], **how)
                conn.work(server.serve)
            self.stream = self._offered_disks()[0]
            conn.wait(lambda: self.stream.ended)


def decode(seen: bytes) -> list[Frame]:
    """The frames behind the HELLO of one side's bytes."""
    if len(seen) < frames.HELLO_MIN:
        raise MuxError(f'QEMU sent {len(seen)} bytes')
    rest = memoryview(bytes(seen))[Hello.unpack(seen).length:]
    result = []
    while len(rest) >= frames.HEADER.size:
        frame = Frame.header(rest)
        size = frames.HEADER.size + frame.length
        if len(rest) < size:
            break
        frame.payload = bytes(rest[frames.HEADER.size:size])
        rest = rest[size:]
        result.append(frame)
    return result


def goaway(answers: list[Frame]) -> tuple[int, str] | None:
    """The GOAWAY, which has to be the last frame."""
    last = answers[-1] if answers else None
    if last is None or last.type != Type.GOAWAY:
        return None
    return last.arg, last.text
