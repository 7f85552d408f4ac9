# SPDX-License-Identifier: GPL-2.0-or-later
"""
The document against the second implementation and against QEMU's constants:
vectors, limits, types, codes, negotiation.  Needs no QEMU.  That QEMU's engine
makes and takes the same vectors is tested by tests/unit/test-mux-vectors.c.
"""

import ast
import math
import re
import unittest

import document
import faults
from muxpeer import control, frames
from muxpeer.engine import Engine, Fault, State
from muxpeer.frames import Code, Frame, Hello, Role, Type, numbered

MIGRATION = document.PATH.parents[2] / 'migration'
HEADERS = ('mux/engine-limits.h', 'mux/session.h', 'mux-limits.h',
           'mux-limits.c', 'mux-candidates.c', '../nbd/private-export.c')
LOCAL_HEADERS = HEADERS + (
    'mux/transport.h', 'mux/transport.c', 'mux/channel-mux.h', 'mux-watch.c',
    'disk-mirror.c', 'disk-watch.c', 'delivery-probe.c', 'delivery-rate.h',
    'source-flush.c')
DEVELOPERS = MIGRATION.parent / 'docs/devel/migration/mux.rst'
PARAMETERS = MIGRATION.parent / 'patches/migration/options.c.patch'
CONTROL_HEADERS = ('control-message.h',)
BYTES = document.vectors()
WINDOW = 100


def numbers(cell: str) -> list[int]:
    return [int(digits) for digits in re.findall(r'\d+', cell)]


def macros(headers=HEADERS) -> dict[str, int]:
    """QEMU's constants."""
    text = ''.join((MIGRATION / header).read_text() for header in headers)
    text = re.sub(r'/\*.*?\*/', '', text, flags=re.S)
    result = {'NANOSECONDS_PER_SECOND': 10**9, 'SCALE_MS': 10**6,
              'KiB': 1 << 10}
    define = re.compile(r'^#define (\w*MUX_\w+|\w+_(?:MS|NS|SECS|POLLS))'
                        r'[ \t]+([\w() *]+)$', re.M)
    for name, value in define.findall(text):
        result[name] = math.prod(
            result.get(factor) or ast.literal_eval(factor)
            for factor in re.findall(r'\w+', value.replace('LL', '')))
    return result


def talk(role: Role) -> Engine:
    """An engine that has sent its own HELLO and received the vector's."""
    side = Engine(role, window=WINDOW)
    side.feed(BYTES['hello-' + Role(3 - role).name.lower()])
    side.fetch()
    return side


class Vectors(unittest.TestCase):
    """Frames are packed and unpacked as the document has them."""

    FRAMES = {
        'open': frames.open_(1, WINDOW, b'main'),
        'open-ok': numbered(Type.OPEN_OK, 1, WINDOW),
        'data': frames.data(1, 0, b'hello'),
        'data-next': frames.data(1, 5, b'hello'),
        'window': numbered(Type.WINDOW, 1, 150),
        'fin': numbered(Type.FIN, 1, 10),
        'fin-ok': numbered(Type.FIN_OK, 1, 51),
        'reset': frames.ended(Type.RESET, 1, 28, 'full'),
        'ping': numbered(Type.PING, 0, 1),
        'pong': numbered(Type.PONG, 0, 0x0123456789abcdef),
        'goaway': frames.ended(Type.GOAWAY, 0, Code.ABORTED, 'bye'),
        'skipped': Frame(0x80, 0xffffffff, b'abc', 0xffffffff, 0xff, 0xffff),
    }
    HELLOS = {
        'hello-source': Hello(Role.SOURCE, session=bytes.fromhex(
            '0f1e2d3c4b5a69788796a5b4c3d2e1f0')),
        'hello-destination': Hello(Role.DESTINATION),
        'hello-future': Hello(Role.DESTINATION, version_max=7, length=68,
                              features=1 << 63 | 2, max_frame=1 << 20,
                              max_streams=1),
    }

    def test_every_vector_is_known(self):
        self.assertEqual(sorted(BYTES),
                         sorted([*self.FRAMES, *self.HELLOS]))

    def test_every_type_has_a_vector(self):
        self.assertLessEqual(set(Type), {frame.type for frame
                                         in self.FRAMES.values()})

    def test_frames(self):
        for name, frame in self.FRAMES.items():
            with self.subTest(name):
                self.assertEqual(frame.pack(), BYTES[name])
                header = Frame.header(BYTES[name])
                self.assertEqual(header.length, len(frame.payload))
                header.payload = BYTES[name][frames.HEADER.size:]
                header.length = None
                self.assertEqual(header, frame)

    def test_hellos(self):
        for name, hello in self.HELLOS.items():
            with self.subTest(name):
                self.assertEqual(hello.pack()[:60], BYTES[name][:60])
                self.assertEqual(hello.length, len(BYTES[name]))
                self.assertEqual(Hello.unpack(BYTES[name]), hello)

    def test_conversation(self):
        """An engine says what the vectors have, in their order."""
        source = talk(Role.SOURCE)
        stream = source.open('main')
        self.assert_said(source, 'open')
        source.feed(BYTES['open-ok'])
        for name in ('data', 'data-next'):
            source.write(stream, b'hello')
            self.assert_said(source, name)
        source.finish(stream)
        self.assert_said(source, 'fin')
        source.feed(frames.data(1, 0, bytes(51)).pack())
        source.grant(stream, 50)
        self.assert_said(source, 'window')
        source.feed(numbered(Type.FIN, 1, 51).pack())
        source.settle(stream)
        self.assert_said(source, 'fin-ok')
        source.feed(BYTES['skipped'] + numbered(Type.PING, 0,
                                                0x0123456789abcdef).pack())
        self.assert_said(source, 'pong')
        source.leave(Code.ABORTED, 'bye')
        self.assert_said(source, 'goaway')

    def test_hello_of_the_future_is_taken(self):
        source = Engine(Role.SOURCE)
        source.feed(BYTES['hello-future'])
        self.assertEqual(source.version, 2)

    def test_hello_is_judged_in_parts(self):
        """As soon as the byte is there that it depends on."""
        for hello, size, code in (
                (Hello(Role.SOURCE, length=68), 40, Code.INCOMPATIBLE),
                (Hello(Role.DESTINATION, length=59), 40, Code.PROTOCOL),
                (Hello(Role.DESTINATION, length=68, connection=1), 60,
                 Code.INCOMPATIBLE)):
            with self.subTest(hello=hello):
                self.assert_refused(Role.SOURCE, hello.pack()[:size], code)

    def test_hello_of_version_1_is_refused(self):
        """The catalogue of faults has it as it was recorded."""
        for role in Role:
            with self.subTest(role=role):
                recorded = bytes.fromhex('514d555800010001 00000028' + 32 * '0'
                                         + f'00040000 00000200 {role:08x}')
                self.assertEqual(faults.beginning('all of version 1', role),
                                 recorded)
                self.assert_refused(Role(3 - role), recorded,
                                    Code.INCOMPATIBLE)

    def assert_refused(self, role: Role, hello: bytes, code: Code) -> None:
        """With the last byte of a HELLO, and not before."""
        side = Engine(role)
        side.feed(hello[:-1])
        with self.assertRaises(Fault) as caught:
            side.feed(hello[-1:])
        self.assertEqual(caught.exception.code, code)

    def assert_said(self, side: Engine, name: str) -> None:
        self.assertEqual(side.fetch(), BYTES[name], name)


class Tables(unittest.TestCase):

    def test_types(self):
        rows = document.table('Frame types')
        self.assertEqual({row[1]: int(row[0], 16) for row in rows},
                         {kind.name: int(kind) for kind in Type})
        for number, _, about, length, _ in rows:
            kind = Type(int(number, 16))
            self.assertEqual(about == 'connection',
                             kind in frames.ABOUT_CONNECTION)
            low, high = frames.LENGTHS[kind]
            stated = numbers(length)
            self.assertEqual((stated[0], stated[-1]), (low, high or low))

    def test_codes(self):
        self.assertEqual({row[1]: int(row[0])
                          for row in document.table('Codes')},
                         {code.name: int(code) for code in Code})

    @staticmethod
    def limits() -> dict[str, list[str]]:
        """What the protocol and what QEMU allow."""
        return {row[0]: row[1:3] for row in document.table('Limits')}

    def test_limits(self):
        """As the peer knows them, and as QEMU's engine does."""
        rows = self.limits()
        q = macros()
        wanted = {
            'HELLO, bytes':
                ([frames.HELLO_MIN, q['MUX_HELLO_MAX']], [frames.HELLO_MIN]),
            'max frame, bytes':
                ([q['MUX_FRAME_MIN'], q['MUX_FRAME_LIMIT']],
                 [q['MUX_FRAME_BULK']]),
            'payload of DATA, bytes': ([1], [q['MUX_FRAME_BULK']]),
            'payload of a skipped frame, bytes': ([0], []),
            'text of RESET, GOAWAY, bytes':
                ([0, q['MUX_TEXT_MAX']], [q['MUX_TEXT_MAX']]),
            'name, bytes': ([1, q['MUX_NAME_MAX']],
                            [len('main'), len('nbd-') + 200]),
            'streams open at once, each opener': ([], [q['MUX_MAX_STREAMS']]),
            'streams in a lifetime, each opener':
                ([q['MUX_LIFETIME_STREAMS']], []),
            'unanswered OPEN, each opener':
                ([q['MUX_UNANSWERED_OPENS']],) * 2,
            'unanswered PING, each side':
                ([q['MUX_UNANSWERED_PINGS']], [q['MUX_PINGS_OUT']]),
            'credit of a stream, bytes':
                ([], [q['MUX_WINDOW'], q['MUX_WINDOW_MAX']]),
            'credit of all streams, bytes': ([], [q['MUX_WINDOW_SUM']]),
        }
        self.assertEqual({*wanted, 'control frames'}, set(rows))
        for name, (protocol, qemu) in wanted.items():
            with self.subTest(name):
                self.assertEqual(numbers(rows[name][0]), protocol)
                self.assertEqual(numbers(rows[name][1]), qemu)
        self.assertEqual(
            (q['MUX_HELLO_MAX'], q['MUX_FRAME_MIN'], q['MUX_FRAME_LIMIT'],
             q['MUX_TEXT_MAX'], q['MUX_NAME_MAX'], q['MUX_UNANSWERED_OPENS'],
             q['MUX_UNANSWERED_PINGS'], q['MUX_LIFETIME_STREAMS']),
            (frames.HELLO_MAX, frames.MAX_FRAME_MIN, frames.MAX_FRAME_MAX,
             frames.TEXT_MAX, frames.NAME_MAX, frames.OPENS_UNANSWERED,
             frames.PINGS_UNANSWERED, frames.STREAMS_IN_LIFETIME))

    def test_time_limits(self):
        """Those in the table that are not parameters, and their defaults."""
        q = macros()
        hello = q['MUX_HELLO_TIMEOUT'] // 10**9
        setup = q['MUX_LIMIT_SETUP_MS'] // 1000
        candidate = q['MUX_LIMIT_OFFER_MS'] // 1000
        fault = q['MUX_LINGER_NS'] // 10**9
        leave = q['MIGRATION_MUX_LINGER_MS'] // 1000
        done = q['MIGRATION_MUX_DONE_MS'] // 1000
        fixed = {row[0]: numbers(row[2])
                 for row in document.table('Time limits') if numbers(row[2])}
        self.assertEqual(fixed, {
            'for the whole HELLO': [hello],
            'for the TLS handshake': [setup],
            'for the TLS handshake, HELLO and offer': [candidate],
            'for the TLS handshake, after another source was accepted':
                [leave],
            'for accepted and OPEN_OK of main, after HELLO': [setup],
            'for the NBD handshakes of all disks, after OPEN_OK of main':
                [setup],
            'for the NBD handshake of a disk, after OPEN_OK of its stream':
                [q['NBD_PRIVATE_HANDSHAKE_MAX_SECS']],
            'for credit for the first bytes on main': [setup],
            'for running and the end of all streams, after committed': [done],
            'for the disk to be flushed, after FIN of its stream': [2],
            'for the peer to close, after a GOAWAY because of a fault, or a '
            'failed connection': [fault],
            'for queued data to be sent and the peer to close, when a side '
            'aborts the migration': [leave],
            'for queued data to be sent and the peer to close, after running':
                [done],
        })
        text = ' '.join(document.PATH.read_text(encoding='utf-8').split())
        self.assertIn(f'whole ``HELLO`` within {hello} s after', text)
        for name, macro in (('channel-mux-timeout', 'TIMEOUT'),
                            ('channel-mux-stop-timeout', 'STOP_TIMEOUT')):
            value = re.search(r'^\+#define DEFAULT_MIGRATE_CHANNEL_MUX_'
                              + macro + r' \(?([\d *]+)\)?$',
                              PARAMETERS.read_text(), re.M).group(1)
            seconds = math.prod(map(int, value.split('*'))) // 1000
            self.assertRegex(text, f'``{name}``[^;.]*, {seconds} s by default')

    def test_local_time_limits(self):
        """Those of the developers' page, in milliseconds."""
        q = macros(LOCAL_HEADERS)
        page = DEVELOPERS.read_text(encoding='utf-8')
        stated = {row[0]: [
            float(number) * (1 if unit == 'ms' else 1000) for number, unit
            in re.findall(r'([\d.]+) (m?s)\b', row[1])]
            for caption in ('Local time limits', 'Intervals')
            for row in document.table(caption, page)}
        ns = 10**6
        self.assertEqual(stated, {
            'for a rejected connection to close':
                [q['MIGRATION_MUX_LINGER_MS']],
            'for queued data to be sent and the peer to close, before the '
            'process exits': [q['MIGRATION_MUX_LINGER_MS'],
                              q['MIGRATION_MUX_DONE_MS']],
            'for the transport to close after that':
                [q['MUX_COMMAND_END_NS'] / ns],
            'for a GOAWAY from the peer, after a write has failed':
                [q['MUX_LINGER_NS'] / ns],
            'for the command of exec to exit, after its pipes were closed':
                [q['MUX_COMMAND_EXIT_MS']],
            'for it to exit after that': [q['MUX_COMMAND_TERM_MS']],
            'for a mirror that has copied the whole disk to become ready':
                [q['DISK_MIRROR_POLL_MS'] * q['DISK_MIRROR_POLLS']],
            'calls of tick': [q['MUX_TICK_MS']],
            'without a call of tick': [q['MUX_WATCH_AWAY_NS'] / ns],
            'without received data': [q['MUX_WATCH_AWAY_NS'] / ns],
            'without a run of the main loop': [q['MUX_WATCH_BLOCKED_NS'] / ns],
            'without a reply to an NBD request':
                [q['DISK_WATCH_PING_NS'] / ns],
            'silence': [],
            'measuring the round trip': [q['MUX_MEASURE_INTERVAL'] / ns],
            'flushes of the destination in converge':
                [q['DELIVERY_PROBE_INTERVAL_NS'] / ns],
            'measuring the speed of the link':
                [q['DELIVERY_RATE_SPAN_NS'] / ns],
            'checks of the downtime': [10],
            'flushes of the source': [q['SOURCE_FLUSH_INTERVAL_NS'] / ns],
        })

    def test_control_frames(self):
        """How many are allowed, and how many QEMU sends."""
        q = macros()
        per_data, data_bytes = map(int, re.search(
            r'^#define MUX_CONTROL_PER_DATA\(length\) +'
            r'\((\d+) \+ \(length\) / (\d+)\)$',
            (MIGRATION / HEADERS[0]).read_text(), re.M).groups())
        text = ' '.join(document.PATH.read_text(encoding='utf-8').split())
        stated = re.search(
            r'exceed the sum of - (\d+), - 1 for every whole (\d+) ms .*?, '
            r'- (\d+) for each ``DATA`` frame .*?, - 1 for every whole (\d+) '
            r'KiB', text)
        self.assertIsNotNone(stated)
        burst, interval, count, kib = stated.groups()
        self.assertEqual(
            (int(burst), int(interval) * 10**6, int(count), int(kib) << 10),
            (frames.CONTROL_BURST, frames.CONTROL_INTERVAL,
             frames.CONTROL_PER_DATA, frames.CONTROL_BYTES))
        self.assertEqual(
            (q['MUX_CONTROL_BURST'], q['MUX_CONTROL_INTERVAL'], per_data,
             data_bytes),
            (frames.CONTROL_BURST, frames.CONTROL_INTERVAL,
             frames.CONTROL_PER_DATA, frames.CONTROL_BYTES))
        second = 10**9
        # 4 of each side for each stream; WINDOW for half of the least window;
        # PING to measure and, thrice in the time, to hear of the peer
        self.assertEqual(
            numbers(self.limits()['control frames'][1]),
            [4 * 2 * q['MUX_LIFETIME_STREAMS'],
             q['MUX_WINDOW_SHARE'] // 2 >> 10,
             second // q['MUX_MEASURE_INTERVAL']
             + 3 * second // q['MUX_SILENCE_MIN']])

    def test_features(self):
        """All bits have a row, and those that no version has are not sent."""
        assigned, bits = 0, []
        for cell, version, _ in document.table('Features by version'):
            low, *high = numbers(cell)
            row = range(low, (high or [low])[0] + 1)
            bits += row
            if version != 'none yet':
                assigned |= sum(1 << bit for bit in row)
        self.assertEqual(bits, list(range(64)))
        sent = re.search(r'^#define MUX_FEATURES +UINT64_C\((\w+)\)$',
                         (MIGRATION / 'mux/frame.h').read_text(), re.M)
        self.assertEqual(int(sent.group(1), 0), assigned)
        self.assertEqual(Hello(Role.SOURCE).features, assigned)

    def test_negotiation(self):
        for source, destination, lowest, highest, result in \
                document.table('Examples of negotiation'):
            with self.subTest(source=source, destination=destination):
                sides = [Engine(role, Hello(role, version_min=low,
                                            version_max=high))
                         for role, (low, high) in
                         zip(Role, map(numbers, (source, destination)))]
                fits = int(lowest) <= int(highest)
                self.assertEqual(result, f'version {highest}' if fits
                                 else 'none')
                for side, other in (sides, sides[::-1]):
                    hello = other.hello.pack()
                    if fits:
                        side.feed(hello)
                        self.assertEqual(side.version, int(highest))
                    else:
                        with self.assertRaises(Fault) as caught:
                            side.feed(hello)
                        self.assertEqual(caught.exception.code,
                                         Code.INCOMPATIBLE)


class Control(unittest.TestCase):
    """What section "control" says of messages."""

    def setUp(self):
        text = document.PATH.read_text(encoding='utf-8')
        self.text = re.search(r'^control\n-+\n(.*?)^main\n-+\n', text,
                              re.M | re.S).group(1)

    def stated(self) -> list[int]:
        """Limits: of a message, of nesting, before `accepted`, in all."""
        least, most, deep, kib, mib = re.search(
            r'(\d+) to (\d+) bytes long\. .* nested (\d+) deep at most.* '
            r'carries at most (\d+) KiB before .*, and (\d+) MiB in all',
            ' '.join(self.text.split())).groups()
        self.assertEqual(least, '1')
        return [int(most), int(deep), int(kib) << 10, int(mib) << 20]

    def test_limits(self):
        self.assertEqual(self.stated(), [
            control.MESSAGE_MAX, control.NESTING_MAX, control.UNACCEPTED_MAX,
            control.LIFETIME_MAX])

    def test_limits_of_qemu(self):
        q = macros(CONTROL_HEADERS)
        self.assertEqual(self.stated(), [
            q['MUX_CONTROL_MESSAGE_MAX'], q['MUX_CONTROL_NESTING_MAX'],
            q['MUX_CONTROL_UNACCEPTED_MAX'], q['MUX_CONTROL_LIFETIME_MAX']])

    def test_kinds(self):
        """Each with its sender."""
        senders = {kind: sender for kind, sender, _
                   in document.table('Messages')}
        self.assertEqual(senders, {'knows': 'both', **{
            kind: role.name.lower() for role, kinds in control.AFTER.items()
            for kind in kinds}})
        self.assertEqual(list(senders), list(control.MESSAGES))

    def test_members(self):
        """A paragraph for each, which names those within it."""
        described = {}
        for kinds, body in re.findall(
                r'^(\w+(?:, \w+)*)\n((?:  .*\n|\n)+)', self.text, re.M):
            for kind in kinds.split(', '):
                described[kind] = self.members(body)
        for kind in control.MESSAGES.keys() - described.keys():
            self.fail(f'{kind} is not described')
        self.assertEqual(
            {kind: described[kind] for kind in control.MESSAGES},
            {kind: self.shape(members)
             for kind, members in control.MESSAGES.items()})

    @staticmethod
    def members(body: str) -> dict[str, list[str]]:
        """The members, with their members; optional ones have asterisks."""
        result = {}
        for paragraph in body.split('\n\n'):
            head, *inner = [
                [name + '*' * bool(optional) for name, optional in
                 re.findall(r'(?<!\*)\*([a-z-]+)\*(\\\*)?', part)]
                for part in paragraph.split('with the members')]
            if paragraph.strip().startswith('*'):
                result[head[0]] = inner[0] if inner else []
        return result

    @staticmethod
    def shape(members: dict) -> dict[str, list[str]]:
        return {name: list(inner[0]) if isinstance(inner, list) and
                isinstance(inner[0], dict) else []
                for name, inner in members.items()}

    def test_names(self):
        """As the example in the text has them."""
        self.assertIn('offer.disks.size', self.text)
        self.assertIn('offer.disks.size', control.KNOWS)
        for name in 'knows', 'knows.names', 'offer.type':
            self.assertNotIn(name, control.KNOWS)


class LateFrames(unittest.TestCase):
    """
    What a real QEMU cannot be led to in good time: frames on a stream that
    was accepted and then reset, or refused by their sender.
    """

    def setUp(self):
        self.side = talk(Role.DESTINATION)
        self.side.feed(BYTES['open'])
        self.stream = self.side.streams[1]
        self.side.accept(self.stream)
        self.side.reset(self.stream, Code.ABORTED, 'x')
        self.assertEqual(self.stream.state, State.RETIRED)

    def test_data_within_the_credit_is_dropped(self):
        self.side.feed(frames.data(1, 0, bytes(WINDOW)).pack())
        self.assertEqual(self.side.events[1:], [])

    def test_data_beyond_the_credit_is_fatal(self):
        self.assert_fatal(Code.LIMIT, frames.data(1, 0, bytes(WINDOW + 1)))

    def test_data_after_fin_is_fatal(self):
        self.assert_fatal(Code.LIMIT, frames.data(1, 0, b'x'),
                          numbered(Type.FIN, 1, 1), frames.data(1, 1, b'x'))

    def test_wrong_offset_is_fatal(self):
        self.assert_fatal(Code.PROTOCOL, frames.data(1, 1, b'x'))

    def test_wrong_size_is_fatal(self):
        self.assert_fatal(Code.PROTOCOL, numbered(Type.FIN, 1, 1))

    def test_data_after_a_refusal_is_fatal(self):
        self.side = talk(Role.SOURCE)
        self.side.open('main')
        self.assert_fatal(Code.LIMIT,
                          frames.ended(Type.RESET, 1, Code.REFUSED, 'x'),
                          frames.data(1, 0, b'x'))

    def assert_fatal(self, code: Code, *late: Frame) -> None:
        self.side.feed(b''.join(frame.pack() for frame in late[:-1]))
        with self.assertRaises(Fault) as caught:
            self.side.feed(late[-1].pack())
        self.assertEqual(caught.exception.code, code)
