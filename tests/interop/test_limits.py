# SPDX-License-Identifier: GPL-2.0-or-later
"""
The second implementation keeps the document's limits, and notices when its
peer does not.  Needs no QEMU; most limits are made small here, what they
really are is compared by test_document.py.
"""

import random
import unittest
from unittest import mock

from muxpeer import frames
from muxpeer.engine import Engine, Fault, State
from muxpeer.frames import Code, Frame, Hello, Role, Type, numbered

BURST = 8
CREDIT = 16384
WINDOW = numbered(Type.WINDOW, 1, 0)
PING = Frame(Type.PING, 0, b'question')
PONG = Frame(Type.PONG, 0, b'question')
SKIPPED = Frame(0x80, payload=b'x')
MS = 10**6


def decode(data: bytes) -> list[Frame]:
    result = []
    while data:
        frame = Frame.header(data)
        end = frames.HEADER.size + frame.length
        frame.payload = data[frames.HEADER.size:end]
        frame.length = None
        result.append(frame)
        data = data[end:]
    return result


class Pair(unittest.TestCase):
    """A source and a destination with main open, and time that stands."""

    LIMITS = {'CONTROL_BURST': BURST}

    def setUp(self):
        for name, value in self.LIMITS.items():
            patch = mock.patch.object(frames, name, value)
            patch.start()
            self.addCleanup(patch.stop)
        self.now = 0
        self.source = self.engine(Role.SOURCE)
        self.target = self.engine(Role.DESTINATION)
        self.exchange()

    def engine(self, role: Role) -> Engine:
        return Engine(role, Hello(role, max_streams=3), window=CREDIT,
                      clock=lambda: self.now)

    def open_main(self) -> None:
        """Takes a control frame of each side."""
        self.main = self.source.open('main')
        self.exchange()
        self.target.accept(self.target.streams[1])
        self.exchange()

    def exchange(self) -> None:
        for _ in range(2):
            self.target.feed(self.source.fetch())
            self.source.feed(self.target.fetch())

    def said(self) -> list[Frame]:
        """What the source sends."""
        return decode(self.source.fetch())


class Judge(Pair):
    """The destination checks what the source sends."""

    def setUp(self):
        super().setUp()
        self.open_main()
        self.left = BURST - 1

    def feed(self, *what: Frame) -> None:
        self.target.feed(b''.join(frame.pack() for frame in what))

    def assert_left(self, count: int, frame: Frame = WINDOW) -> None:
        """One more is too many, and its header says so."""
        self.feed(*[frame] * count)
        self.assert_fault(Code.LIMIT, frame.pack()[:frames.HEADER.size])

    def assert_fault(self, code: Code, data: bytes) -> None:
        with self.assertRaises(Fault) as caught:
            self.target.feed(data)
        self.assertEqual(caught.exception.code, code)
        self.assertEqual(decode(self.target.fetch())[-1].type, Type.GOAWAY)


class ControlFrames(Judge):

    def test_burst(self):
        self.assert_left(self.left)

    def test_unknown_types_count(self):
        self.assert_left(self.left, SKIPPED)

    def test_answers_do_not_count(self):
        for _ in range(self.left):
            self.target.ping(PONG.payload)
            self.feed(PONG)
        self.assert_left(self.left)

    def test_time(self):
        self.now += 30 * MS - 1
        self.assert_left(self.left + 2)

    def test_time_counts_from_before_hello(self):
        """On the side that judges: the other has heard of it later."""
        self.target = self.engine(Role.DESTINATION)
        self.target.fetch()
        self.now += 20 * MS
        self.target.feed(Hello(Role.SOURCE).pack())
        self.assert_left(BURST + 2, SKIPPED)

    def test_data_received(self):
        self.feed(frames.data(1, 0, bytes(8191)))
        self.assert_left(self.left + 2 + 1)

    def test_each_data_counts_its_own_bytes(self):
        self.feed(*(frames.data(1, 4095 * i, bytes(4095)) for i in range(3)))
        self.assert_left(self.left + 3 * 2)

    def test_data_in_pieces(self):
        data = frames.data(1, 0, bytes(4096)).pack()
        self.target.feed(data[:-1])
        self.target.feed(data[-1:])
        self.assert_left(self.left + 2 + 1)

    def test_data_sent(self):
        self.target.write(self.target.streams[1], bytes(8192))
        self.assert_left(self.left + 2 + 2)

    def test_data_dropped(self):
        self.target.reset(self.target.streams[1], Code.ABORTED, '')
        self.feed(frames.data(1, 0, bytes(4096)))
        self.assert_left(self.left + 2 + 1)


class Headers(Judge):
    """DATA is judged without its payload."""

    def check(self, code: Code, frame: Frame) -> None:
        self.assert_fault(code, frame.pack()[:frames.HEADER.size])

    def test_offset(self):
        self.check(Code.PROTOCOL, frames.data(1, 1, b'x'))

    def test_credit(self):
        self.check(Code.LIMIT, frames.data(1, 0, bytes(CREDIT + 1)))

    def test_unknown_stream(self):
        self.check(Code.PROTOCOL, frames.data(3, 0, b'x'))

    def test_after_fin(self):
        self.feed(numbered(Type.FIN, 1, 0))
        self.check(Code.PROTOCOL, frames.data(1, 0, b'x'))


class Questions(Judge):

    LIMITS = {}

    def test_one_too_many(self):
        """An answer counts when it is handed over."""
        self.feed(*[PING] * 16)
        self.target.fetch()
        self.feed(*[PING] * 16)
        self.assert_fault(Code.LIMIT, PING.pack())


class Held(Pair):
    """What the source may not send waits, and nothing else does."""

    LIMITS = {}

    def open_many(self, count: int, accept: bool = False) -> list:
        streams = [self.source.open(str(i)) for i in range(count)]
        self.exchange()
        for stream in list(self.target.streams.values()) if accept else ():
            self.target.accept(stream)
        return streams

    def sent(self, kind: Type) -> list[Frame]:
        return [frame for frame in self.said() if frame.type == kind]

    def test_questions(self):
        for number in range(18):
            self.source.ping(number.to_bytes(8, 'big'))
        self.assertEqual(len(self.sent(Type.PING)), 16)
        for number in range(2):
            self.source.feed(numbered(Type.PONG, 0, number).pack())
            self.assertEqual([frame.number for frame in
                              self.sent(Type.PING)], [16 + number])

    def test_unanswered_streams(self):
        self.target.hello.max_streams = 100
        self.source.peer.max_streams = 100
        streams = [self.source.open('x') for _ in range(18)]
        said = self.said()
        self.assertEqual([frame.stream for frame in said],
                         [stream.id for stream in streams[:16]])
        self.target.feed(b''.join(frame.pack() for frame in said))
        self.target.accept(self.target.streams[1])
        self.target.reset(self.target.streams[3], Code.REFUSED, '')
        self.source.feed(self.target.fetch())
        self.assertEqual([frame.stream for frame in self.said()],
                         [stream.id for stream in streams[16:]])

    def test_streams_at_once(self):
        streams = self.open_many(4, accept=True)
        self.exchange()
        self.assertEqual(streams[3].state, State.OFFERED)
        self.assertNotIn(streams[3].id, self.target.streams)
        self.source.reset(streams[0], Code.ABORTED, '')
        self.exchange()
        self.source.release()
        self.exchange()
        self.assertIn(streams[3].id, self.target.streams)

    def test_stream_that_is_given_up(self):
        """It is never announced, and its id is skipped."""
        streams = self.open_many(4)
        self.source.reset(streams[3], Code.ABORTED, '')
        self.assertEqual(self.said(), [])
        self.assertFalse(self.source.holds)
        self.source.reset(streams[0], Code.ABORTED, '')
        self.exchange()
        later = self.source.open('later')
        self.exchange()
        self.assertIn(later.id, self.target.streams)

    def test_streams_in_a_lifetime(self):
        with mock.patch.object(frames, 'STREAMS_IN_LIFETIME', 2):
            self.open_many(2)
            with self.assertRaises(RuntimeError):
                self.source.open('x')

    def test_all_before_hello(self):
        self.source = self.engine(Role.SOURCE)
        self.source.ping(b'question')
        self.source.open('main')
        self.assertEqual(len(self.source.fetch()), frames.HELLO_MIN)
        self.source.feed(Hello(Role.DESTINATION).pack())
        self.assertEqual([frame.type for frame in self.said()],
                         [Type.PING, Type.OPEN])


class ControlFramesAtFirst(Pair):

    def test_time_counts_from_the_hello_of_the_peer(self):
        """When that came, not when this side has begun."""
        self.source = self.engine(Role.SOURCE)
        self.now += 1000 * MS
        self.source.feed(Hello(Role.DESTINATION).pack())
        self.source.fetch()
        for _ in range(BURST + 1):
            self.source.send(SKIPPED)
        self.assertEqual(self.said(), [SKIPPED] * BURST)


class HeldControlFrames(Pair):

    def setUp(self):
        super().setUp()
        self.open_main()
        self.other = self.source.open('other')
        self.exchange()
        self.target.accept(self.target.streams[3])
        self.exchange()
        for _ in range(BURST - 2 + 1):      # the last of them is held
            self.source.send(WINDOW)
        self.assertEqual(len(self.said()), BURST - 2)

    def test_time(self):
        self.now += 10 * MS - 1
        self.source.release()
        self.assertEqual(self.said(), [])
        self.now += 1
        self.source.release()
        self.assertEqual(self.said(), [WINDOW])

    def test_data_received(self):
        self.source.feed(frames.data(1, 0, bytes(4096)).pack())
        self.assertEqual(self.said(), [WINDOW])
        for _ in range(3):
            self.source.send(WINDOW)
        self.assertEqual(self.said(), [WINDOW] * 2)

    def test_data_sent_and_answers(self):
        """They are not held up, and the data allows what is."""
        self.source.feed(PING.pack())
        self.source.write(self.other, b'x')
        self.source.release()
        self.assertEqual([frame.type for frame in self.said()],
                         [Type.PONG, Type.DATA, Type.WINDOW])

    def test_order_within_the_stream(self):
        """Data does not overtake what is held."""
        self.source.write(self.main, b'x')
        self.source.finish(self.main)
        self.assertEqual(self.said(), [])
        self.now += 20 * MS
        self.source.release()
        self.assertEqual([frame.type for frame in self.said()],
                         [Type.WINDOW, Type.DATA, Type.FIN])

    def test_nothing_before_reset(self):
        """What was held on the stream is dropped."""
        self.source.reset(self.main, Code.ABORTED, '')
        self.now += 1000 * MS
        self.source.release()
        self.assertEqual([frame.type for frame in self.said()],
                         [Type.RESET])

    def test_nothing_after_goaway(self):
        self.source.leave()
        self.now += 1000 * MS
        self.source.release()
        self.assertEqual([frame.type for frame in self.said()],
                         [Type.GOAWAY])


class HeldReset(Pair):
    """A stream counts until its end was sent."""

    LIMITS = {'CONTROL_BURST': 3, 'OPENS_UNANSWERED': 3}

    def check(self, max_streams: int) -> None:
        self.source.peer.max_streams = max_streams
        first, *_ = [self.source.open('x') for _ in range(3)]
        self.source.reset(first, Code.ABORTED, '')
        self.assertEqual(len(self.said()), 3)
        self.now += 10 * MS
        self.source.open('x')
        self.assertEqual(self.said(), [])
        for kind in (Type.RESET, Type.OPEN):
            self.source.release()
            self.assertEqual([frame.type for frame in self.said()], [kind])
            self.now += 10 * MS

    def test_streams_at_once(self):
        with mock.patch.object(frames, 'OPENS_UNANSWERED', 100):
            self.check(max_streams=3)

    def test_unanswered_streams(self):
        self.check(max_streams=100)


class Random(Pair):
    """
    Two that keep the limits never find a fault in each other, however long
    what they say is on its way.
    """

    LIMITS = {'CONTROL_BURST': 4, 'OPENS_UNANSWERED': 2,
              'PINGS_UNANSWERED': 2, 'STREAMS_IN_LIFETIME': 40}

    def test_random_operations(self):
        for seed in range(60):
            with self.subTest(seed=seed):
                self.play(random.Random(seed))

    def play(self, rng: random.Random) -> None:
        self.source = self.engine(Role.SOURCE)
        self.target = self.engine(Role.DESTINATION)
        sides = self.source, self.target
        wires = [bytearray(), bytearray()]      # from each side
        for _ in range(600):
            number = rng.randrange(2)
            side, wire = sides[number], wires[number]
            rng.choice((self.act, self.act, self.tick))(rng, side)
            wire += side.fetch()
            size = rng.choice((0, 1, 100, len(wire)))
            sides[1 - number].feed(bytes(wire[:size]))
            del wire[:size]

    def tick(self, rng, side: Engine) -> None:
        self.now += rng.randrange(15) * MS
        if rng.randrange(2):
            side.release()

    @staticmethod
    def act(rng, side: Engine) -> None:
        """One thing that an application may do."""
        if side.peer is None:
            return
        kind = rng.choice('open open ping skipped stream stream stream'
                          .split())
        if kind == 'open' and len(side.streams) < 40:
            side.open('x')
        elif kind == 'ping':
            side.ping(rng.randbytes(8))
        elif kind == 'skipped':
            side.send(SKIPPED)
        elif side.streams:
            stream = rng.choice(list(side.streams.values()))
            Random.act_on(rng, side, stream)

    @staticmethod
    def act_on(rng, side: Engine, stream) -> None:
        if stream.state == State.ASKED and rng.randrange(3):
            side.accept(stream)
        elif stream.accepted:
            rng.choice((
                lambda: None if stream.fin_sent else
                side.write(stream, bytes(rng.choice((1, 4096, 9000)))),
                lambda: side.grant(stream, stream.received),
                lambda: side.send(numbered(Type.WINDOW, stream.id, 0)),
                lambda: side.finish(stream),
                lambda: side.settle(stream)))()
        elif rng.randrange(5) == 0:
            side.reset(stream, Code.ABORTED, 'x')
