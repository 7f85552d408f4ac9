# SPDX-License-Identifier: GPL-2.0-or-later
"""
The protocol's rules: bytes in, events out; calls in, bytes out.

Owns the state of a connection and of its streams, finds every breach of a
rule by the peer, except that it takes too long, and keeps the rules itself.
It never touches a socket or a thread, and of the clock it knows what it needs
to count control frames.
"""

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import NamedTuple

from . import frames
from .frames import Code, Frame, Hello, Role, Type


class State(Enum):
    """What a side thinks of an id."""

    UNKNOWN = auto()
    OFFERED = auto()
    ASKED = auto()
    OPEN = auto()
    ENDED = auto()
    RETIRED = auto()


class Event(NamedTuple):
    """What a received frame means to the application."""

    kind: Type
    stream: 'Stream | None' = None
    data: bytes = b''
    code: int = 0


class Fault(Exception):
    """The peer broke a rule."""

    def __init__(self, code: Code, text: str):
        super().__init__(text)
        self.code = code
        self.text = text


# The states in which a frame may come.  In the others it is fatal, except
# in the state RETIRED, where all but OPEN are dropped.
ALLOWED = {Type.OPEN: {State.UNKNOWN},
           Type.OPEN_OK: {State.OFFERED},
           Type.DATA: {State.OPEN},
           Type.WINDOW: {State.OPEN, State.ENDED},
           Type.FIN: {State.OPEN},
           Type.FIN_OK: {State.OPEN, State.ENDED},
           Type.RESET: {State.OFFERED, State.ASKED, State.OPEN,
                        State.ENDED}}


@dataclass
class Stream:
    id: int
    name: str
    state: State
    granted: int = 0            # the limit that this side gave the peer
    received: int = 0
    limit: int = 0              # the limit that the peer gave this side
    sent: int = 0
    offered: bool = True        # OPEN was sent, or received
    fin_sent: bool = False
    fin_ok_received: bool = False
    fin_ok_sent: bool = False

    def __str__(self):
        return f'stream {self.id} ({self.name})'

    @property
    def credit(self) -> int:
        return self.limit - self.sent

    @property
    def accepted(self) -> bool:
        return self.state in (State.OPEN, State.ENDED)


@dataclass
class Engine:
    """
    One side of a connection.

    Received bytes go to feed(), which puts what they mean into `events`; what
    is to be sent is in `out`, and fetch() hands it over.  A breach of the
    rules by the peer makes feed() queue a GOAWAY and raise Fault.

    A frame that a limit forbids is held until it is allowed, with those behind
    it on the same stream, and holds up nothing else.  feed() lets go what it
    has allowed; what time allows waits for release().
    """

    role: Role
    hello: Hello = None
    window: int = 1 << 20
    clock: Callable[[], int] = time.monotonic_ns
    peer: Hello | None = None
    version: int = 0
    streams: dict[int, Stream] = field(default_factory=dict)
    out: bytearray = field(default_factory=bytearray)
    events: list[Event] = field(default_factory=list)
    goaway: tuple[int, str] | None = None       # as received
    gone: bool = False                          # no more frames are sent
    _in: bytearray = field(default_factory=bytearray)
    _held: dict[int, list[Frame]] = field(default_factory=dict)  # by stream
    _offers: list[Frame] = field(default_factory=list)  # OPEN, held
    _next_id: int = 0
    _last_peer_id: int = 0
    _pings: list[bytes] = field(default_factory=list)
    _pongs_out: int = 0         # not fetched yet
    _began: int = 0             # by the clock, before HELLO was sent
    _met: int = 0               # when the peer's HELLO had come
    _earned: int = 0            # control frames that DATA allows to each side
    _control_sent: int = 0
    _control_received: int = 0

    def __post_init__(self):
        self._began = self.clock()
        self.hello = self.hello or Hello(
            self.role, session=secrets.token_bytes(16)
            if self.role == Role.SOURCE else bytes(16))
        self._next_id = 1 if self.role == Role.SOURCE else 2
        self.out += self.hello.pack()

    # What the application does

    def send(self, frame: Frame) -> None:
        """Queue a frame, or hold it; none comes after a GOAWAY."""
        if self.gone:
            return
        if self._may_send(frame):
            self._note_sent(frame)
            self.out += frame.pack()
        elif frame.type == Type.OPEN:
            self._offers.append(frame)
        else:
            self._held.setdefault(frame.stream, []).append(frame)

    @property
    def holds(self) -> bool:
        """Whether there is something for release()."""
        return bool(self._held or self._offers)

    def release(self) -> None:
        """Queue what was held and need not be any more."""
        held, self._held = self._held, {}
        for waiting in held.values():
            for frame in waiting:
                self.send(frame)
        offers, self._offers = self._offers, []
        for frame in offers:
            self.send(frame)

    def fetch(self) -> bytes:
        """What is to be sent; it counts as sent from here on."""
        data = bytes(self.out)
        self.out.clear()
        self._pongs_out = 0
        return data

    def open(self, name: str) -> Stream:
        """Raises RuntimeError if no stream may be opened ever more."""
        if self._next_id > 2 * frames.STREAMS_IN_LIFETIME:
            raise RuntimeError(f'{name}: all streams are used up')
        stream = Stream(self._next_id, name, State.OFFERED,
                        granted=self.window, offered=False)
        self._next_id += 2
        self.streams[stream.id] = stream
        self.send(frames.open_(stream.id, self.window, name.encode()))
        return stream

    def accept(self, stream: Stream) -> None:
        stream.state = State.OPEN
        stream.granted = self.window
        self.send(frames.numbered(Type.OPEN_OK, stream.id, self.window))

    def write(self, stream: Stream, payload: bytes) -> int:
        """Queue as much as one frame and the credit take."""
        size = min(len(payload), stream.credit, self.peer.max_frame,
                   frames.MAX_FRAME_MAX)
        if size > 0:
            self.send(frames.data(stream.id, stream.sent, payload[:size]))
            stream.sent += size
        return size

    def grant(self, stream: Stream, consumed: int) -> None:
        """The application has taken that many bytes in all."""
        limit = consumed + self.window
        if stream.state == State.OPEN and \
                limit - stream.granted >= self.window // 2:
            stream.granted = limit
            self.send(frames.numbered(Type.WINDOW, stream.id, limit))

    def finish(self, stream: Stream) -> None:
        """No more data from this side."""
        if stream.accepted and not stream.fin_sent:
            stream.fin_sent = True
            self.send(frames.numbered(Type.FIN, stream.id, stream.sent))

    def settle(self, stream: Stream) -> None:
        """All that was received has been dealt with."""
        if stream.state == State.ENDED and not stream.fin_ok_sent:
            stream.fin_ok_sent = True
            self.send(frames.numbered(Type.FIN_OK, stream.id,
                                      stream.received))
            self._retire_if_finished(stream)

    def reset(self, stream: Stream, code: int, text: str) -> None:
        if stream.state != State.RETIRED:
            if stream.state == State.ASKED:
                stream.granted = 0
            stream.state = State.RETIRED
            self._held.pop(stream.id, None)
            self._offers = [frame for frame in self._offers
                            if frame.stream != stream.id]
            if stream.offered:
                self.send(frames.ended(Type.RESET, stream.id, code, text))

    def ping(self, payload: bytes) -> None:
        self.send(Frame(Type.PING, payload=payload))

    def leave(self, code: int = Code.OK, text: str = '') -> None:
        """GOAWAY."""
        self.send(frames.ended(Type.GOAWAY, 0, code, text))
        self.gone = True

    @property
    def all_retired(self) -> bool:
        return all(stream.state == State.RETIRED
                   for stream in self.streams.values())

    # How much may be sent

    def _may_send(self, frame: Frame) -> bool:
        if frame.type in (Type.PONG, Type.GOAWAY):
            return True
        if self.peer is None or frame.stream in self._held:
            return False
        if frame.type not in frames.UNLIMITED and \
                self._control_sent >= self._control_limit(self._met):
            return False
        if frame.type == Type.PING:
            return len(self._pings) < frames.PINGS_UNANSWERED
        if frame.type == Type.OPEN:         # in the order of their ids
            return not self._offers and not self._open_exceeds(
                frame.stream, self.peer.max_streams)
        return True

    def _note_sent(self, frame: Frame) -> None:
        if frame.type not in frames.UNLIMITED:
            self._control_sent += 1
        if frame.type == Type.DATA:
            self._earn(frame)
        elif frame.type == Type.OPEN:
            self.streams[frame.stream].offered = True
        elif frame.type == Type.PING:
            self._pings.append(frame.payload)

    def _control_limit(self, since: int) -> int:
        """Control frames that a side may have sent by now."""
        return frames.CONTROL_BURST + self._earned + \
            (self.clock() - since) // frames.CONTROL_INTERVAL

    def _earn(self, frame: Frame) -> None:
        """DATA of either direction allows control frames to both sides."""
        self._earned += frames.CONTROL_PER_DATA + \
            len(frame.payload) // frames.CONTROL_BYTES

    def _open_exceeds(self, number: int, max_streams: int) -> str:
        """
        What is too many if one more is opened with this id, or ''.  The peer
        does not know yet of what is held.
        """
        streams = [stream for stream in self.streams.values()
                   if stream.offered and stream.id % 2 == number % 2]
        for what, count, most in (
                ('streams in all', len(streams), frames.STREAMS_IN_LIFETIME),
                ('streams at once',
                 sum(s.state != State.RETIRED or s.id in self._held
                     for s in streams), max_streams),
                ('OPEN unanswered',
                 sum(s.state in (State.OFFERED, State.ASKED)
                     or s.id in self._held for s in streams),
                 frames.OPENS_UNANSWERED)):
            if count >= most:
                return f'more than {most} {what}'
        return ''

    # What the peer does

    def feed(self, received: bytes) -> None:
        """Take bytes from the peer.  Raises Fault."""
        self._in += received
        try:
            if self.peer is None and not self._take_hello():
                return
            while not self.goaway and (frame := self._next_frame()):
                self._take(frame)
            self.release()
        except Fault as fault:
            self.leave(fault.code, fault.text[:frames.TEXT_MAX])
            raise

    def end(self) -> None:
        """The peer's bytes have ended.  Raises Fault if they must not."""
        if self.peer is None:
            raise Fault(Code.PROTOCOL, 'the connection ended before HELLO')
        if self.goaway is None and (self._in or not self.all_retired):
            raise Fault(Code.PROTOCOL, 'the connection ended too early')

    def _take_hello(self) -> bool:
        magic = frames.MAGIC.to_bytes(4, 'big')
        if len(self._in) >= 4 and self._in[:4] != magic:
            raise Fault(Code.PROTOCOL, 'wrong magic')
        if len(self._in) < frames.HELLO_COMMON:
            return False
        hello = Hello.unpack(self._in)
        self._check_hello(hello)
        if len(self._in) >= frames.HELLO_MIN and hello.connection:
            raise Fault(Code.INCOMPATIBLE,
                        f'connection {hello.connection} of a session')
        if len(self._in) < hello.length:
            return False
        del self._in[:hello.length]
        self._met = self.clock()
        self.peer = hello
        return True

    def _check_hello(self, hello: Hello) -> None:
        """Judge what every version has."""
        bad_length = Fault(Code.PROTOCOL, f'length of HELLO: {hello.length}')
        if not frames.HELLO_COMMON <= hello.length <= frames.HELLO_MAX:
            raise bad_length
        if hello.max_frame < frames.MAX_FRAME_MIN:
            raise Fault(Code.PROTOCOL, f'max frame {hello.max_frame}')
        if hello.version_min > hello.version_max:
            raise Fault(Code.PROTOCOL, 'the range of versions is empty')
        if hello.role not in list(Role):
            raise Fault(Code.PROTOCOL, f'role {hello.role}')
        mine = self.hello
        if hello.role == self.role:
            raise Fault(Code.INCOMPATIBLE, 'both sides have one role')
        lowest = max(mine.version_min, hello.version_min)
        self.version = min(mine.version_max, hello.version_max)
        if lowest > self.version:
            raise Fault(Code.INCOMPATIBLE, 'no common version: '
                        f'{mine.version_min} to {mine.version_max} here, '
                        f'{hello.version_min} to {hello.version_max} there')
        if hello.length < frames.HELLO_MIN:
            raise bad_length
        if hello.required & ~mine.features or mine.required & ~hello.features:
            raise Fault(Code.INCOMPATIBLE, 'a required feature is missing')
        if hello.max_streams == 0 and self.role == Role.SOURCE:
            raise Fault(Code.INCOMPATIBLE, 'no streams are accepted')

    def _next_frame(self) -> Frame | None:
        if len(self._in) < frames.HEADER.size:
            return None
        frame = Frame.header(self._in)
        if frame.type not in frames.UNLIMITED and \
                self._control_received >= self._control_limit(self._began):
            raise Fault(Code.LIMIT, 'too many control frames')
        self._check_header(frame)
        if frame.type == Type.DATA:
            self._check_state(frame)
            self._check_data(frame, self.streams[frame.stream])
        end = frames.HEADER.size + frame.length
        if len(self._in) < end:
            return None
        frame.payload = bytes(self._in[frames.HEADER.size:end])
        del self._in[:end]
        if frame.type not in frames.UNLIMITED:
            self._control_received += 1
        elif frame.type == Type.DATA:
            self._earn(frame)
        return frame

    def _check_header(self, frame: Frame) -> None:
        if frame.type >= frames.FIRST_SKIPPED_TYPE:
            if frame.length > self.hello.max_frame:
                raise Fault(Code.LIMIT, f'skipped frame of {frame.length}')
            return
        if frame.type not in list(Type):
            raise Fault(Code.PROTOCOL, f'unknown type {frame.type}')
        if frame.flags or frame.zero:
            raise Fault(Code.PROTOCOL, 'flags or zero field not zero')
        if (frame.stream == 0) != (frame.type in frames.ABOUT_CONNECTION):
            raise Fault(Code.PROTOCOL, f'{Type(frame.type).name} of stream '
                        f'{frame.stream}')
        low, high = frames.LENGTHS[frame.type]
        if frame.type == Type.DATA and frame.length > self.hello.max_frame:
            raise Fault(Code.LIMIT, f'DATA of {frame.length} bytes')
        if frame.length < low or (high and frame.length > high):
            raise Fault(Code.PROTOCOL, f'{Type(frame.type).name} with '
                        f'{frame.length} bytes')

    def _take(self, frame: Frame) -> None:
        if frame.type >= frames.FIRST_SKIPPED_TYPE:
            return
        kind = Type(frame.type)
        if kind in frames.ABOUT_CONNECTION:
            getattr(self, f'_take_{kind.name.lower()}')(frame)
            return
        self._check_state(frame)
        stream = self.streams.get(frame.stream)
        if stream and stream.state == State.RETIRED:
            self._drop(kind, frame, stream)
        else:
            getattr(self, f'_take_{kind.name.lower()}')(frame, stream)

    def _check_state(self, frame: Frame) -> None:
        kind = Type(frame.type)
        stream = self.streams.get(frame.stream)
        state = stream.state if stream else State.UNKNOWN
        if state not in ALLOWED[kind] and \
                (state != State.RETIRED or kind == Type.OPEN):
            raise Fault(Code.PROTOCOL, f'{kind.name} on stream '
                        f'{frame.stream}, which is {state.name.lower()}')

    def _drop(self, kind: Type, frame: Frame, stream: Stream) -> None:
        if kind == Type.DATA:
            stream.received += len(frame.payload)
        elif kind == Type.FIN:
            self._check_size(frame, stream)
            stream.granted = stream.received

    @staticmethod
    def _check_data(frame: Frame, stream: Stream) -> None:
        if frame.arg != stream.received & 0xffffffff:
            raise Fault(Code.PROTOCOL, f'{stream}: offset {frame.arg}, not '
                        f'{stream.received & 0xffffffff}')
        if stream.received + frame.length > stream.granted:
            raise Fault(Code.LIMIT, f'{stream}: data beyond the credit')

    @staticmethod
    def _check_size(frame: Frame, stream: Stream) -> None:
        if frame.number != stream.received:
            raise Fault(Code.PROTOCOL, f'{stream}: final size '
                        f'{frame.number}, not {stream.received}')

    def _retire_if_finished(self, stream: Stream) -> None:
        if stream.fin_ok_sent and stream.fin_ok_received:
            stream.state = State.RETIRED
            stream.granted = stream.received

    def _take_open(self, frame: Frame, _) -> None:
        limit, length, zero = frames.OPEN_HEAD.unpack_from(frame.payload)
        name = frame.payload[frames.OPEN_HEAD.size:]
        if zero or length != len(name) or \
                any(not 0x20 <= byte <= 0x7e for byte in name):
            raise Fault(Code.PROTOCOL, f'OPEN of stream {frame.stream} with '
                        'a malformed payload')
        if frame.stream % 2 == self._next_id % 2 or \
                frame.stream <= self._last_peer_id:
            raise Fault(Code.PROTOCOL, f'OPEN of {frame.stream} after '
                        f'{self._last_peer_id}')
        self._last_peer_id = frame.stream
        exceeded = self._open_exceeds(frame.stream, self.hello.max_streams)
        if exceeded:
            raise Fault(Code.LIMIT, exceeded)
        stream = Stream(frame.stream, name.decode(), State.ASKED, limit=limit)
        self.streams[stream.id] = stream
        self.events.append(Event(Type.OPEN, stream))

    def _take_open_ok(self, frame: Frame, stream: Stream) -> None:
        stream.state = State.OPEN
        stream.limit = frame.number
        self.events.append(Event(Type.OPEN_OK, stream))

    def _take_data(self, frame: Frame, stream: Stream) -> None:
        stream.received += len(frame.payload)
        self.events.append(Event(Type.DATA, stream, frame.payload))

    def _take_window(self, frame: Frame, stream: Stream) -> None:
        stream.limit = max(stream.limit, frame.number)
        self.events.append(Event(Type.WINDOW, stream))

    def _take_fin(self, frame: Frame, stream: Stream) -> None:
        self._check_size(frame, stream)
        stream.state = State.ENDED
        self.events.append(Event(Type.FIN, stream))

    def _take_fin_ok(self, frame: Frame, stream: Stream) -> None:
        if not stream.fin_sent or stream.fin_ok_received or \
                frame.number != stream.sent:
            raise Fault(Code.PROTOCOL, f'{stream}: FIN_OK of {frame.number} '
                        'that answers no FIN')
        stream.fin_ok_received = True
        self._retire_if_finished(stream)
        self.events.append(Event(Type.FIN_OK, stream))

    def _take_reset(self, frame: Frame, stream: Stream) -> None:
        if stream.state == State.OFFERED:
            stream.granted = 0
        stream.state = State.RETIRED
        self.events.append(Event(Type.RESET, stream, frame.text.encode(),
                                 frame.arg))

    def _take_ping(self, frame: Frame) -> None:
        if self._pongs_out == frames.PINGS_UNANSWERED:
            raise Fault(Code.LIMIT,
                        f'more than {self._pongs_out} PING unanswered')
        self._pongs_out += 1
        self.send(Frame(Type.PONG, payload=frame.payload))
        self.events.append(Event(Type.PING, data=frame.payload))

    def _take_pong(self, frame: Frame) -> None:
        if not self._pings or self._pings.pop(0) != frame.payload:
            raise Fault(Code.PROTOCOL, 'PONG that answers no PING')
        self.events.append(Event(Type.PONG, data=frame.payload))

    def _take_goaway(self, frame: Frame) -> None:
        self.goaway = frame.arg, frame.text
        self.gone = True
        self.events.append(Event(Type.GOAWAY, data=frame.text.encode(),
                                 code=frame.arg))
