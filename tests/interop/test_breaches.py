# SPDX-License-Identifier: GPL-2.0-or-later
"""
The dissector says what is wrong, at the frame where it is; and what is not
wrong, though it looks so, it does not complain of.
"""

import shutil
import unittest
from collections import Counter
from itertools import groupby
from operator import itemgetter
from pathlib import Path

import pcap
from muxpeer import frames
from muxpeer.frames import Code, Frame, Hello, Role, Type, data, numbered
from tshark import TROUBLE, tshark
from vm import work_folder

KINDS = ('qmux.malformed', 'qmux.violation', 'qmux.failed', 'qmux.skipped',
         '_ws.lua.error')
ODD = 1 << 20                   # a payload of this size is never right
HELLOS = (('out', Hello(Role.SOURCE)),
          ('in', Hello(Role.DESTINATION, max_frame=4096, max_streams=20)))
# 'out' is the source.  main may carry 10 bytes from it.
BEGIN = (*HELLOS, ('out', frames.open_(1, 0, b'main')),
         ('in', numbered(Type.OPEN_OK, 1, 10)))
PING = Frame(Type.PING, 0, b'question')
PONG = Frame(Type.PONG, 0, b'question')


def open_(stream: int, **how) -> Frame:
    return frames.open_(stream, 0, how.pop('name', b'x'), **how)


def open_ok(stream: int) -> Frame:
    return numbered(Type.OPEN_OK, stream, 0)


def fin(stream: int, size: int = 0) -> Frame:
    return numbered(Type.FIN, stream, size)


def fin_ok(stream: int, size: int = 0) -> Frame:
    return numbered(Type.FIN_OK, stream, size)


def window(stream: int, limit: int = 1) -> Frame:
    return numbered(Type.WINDOW, stream, limit)


def reset(stream: int) -> Frame:
    return frames.ended(Type.RESET, stream, Code.ABORTED, 'no more')


def goaway(code: Code = Code.OK) -> Frame:
    return frames.ended(Type.GOAWAY, 0, code, '')


def out(*what: Frame) -> list:
    return [('out', frame) for frame in what]


def in_(*what: Frame) -> list:
    return [('in', frame) for frame in what]


def streams(first: int, count: int) -> range:
    return range(first, first + 2 * count, 2)


def finished(first: int, count: int) -> list:
    """The lives of streams of the source, as many at once as may be."""
    result = []
    while count:
        some = streams(first, min(count, 16))
        for direction, kind in ((out, open_), (in_, open_ok), (in_, fin),
                                (out, fin), (out, fin_ok), (in_, fin_ok)):
            result += direction(*map(kind, some))
        first += 2 * len(some)
        count -= len(some)
    return result


def malformed(text: str) -> tuple:
    return 'qmux.malformed', text


def violation(text: str) -> tuple:
    return 'qmux.violation', text


RESET = 'qmux.failed', 'ABORTED: no more'
SKIPPED = 'qmux.skipped', 'Unknown type, skipped'
LENGTH = malformed('Bad length')
TOO_LONG = violation('More than max frame, 4096')
EARLY = violation('Before OPEN_OK')
USED_UP = 'Too many {} without an answer'

# What follows BEGIN, and what is reported of it
CASES = {
    'flags': (out(Frame(Type.PING, 0, bytes(8), flags=1)),
              malformed('Flags or zero field not 0')),
    'unknown type': (in_(Frame(0x0b)), malformed('Unknown type')),
    'skipped type': (in_(Frame(0x80, 7, b'x' * 5000)), SKIPPED),
    'skipped above max frame': (out(Frame(0x80, 7, bytes(4097))), TOO_LONG,
                                SKIPPED),
    'skipped that cannot be': (out(Frame(0x80, length=ODD + 1)), LENGTH),
    'FIN of 9 bytes': (out(Frame(Type.FIN, 1, bytes(9))), LENGTH),
    'WINDOW that cannot be': (out(Frame(Type.WINDOW, 1, length=0xffffffff)),
                              LENGTH),
    'DATA that cannot be': (out(Frame(Type.DATA, 1, length=ODD + 1)),
                            LENGTH),
    'DATA of 0 bytes': (out(Frame(Type.DATA, 1)), LENGTH),
    'DATA above max frame': (out(data(1, 0, bytes(4097))), TOO_LONG),
    'DATA of 1 MiB': (out(data(1, 0, bytes(ODD))), TOO_LONG),
    'DATA of max frame': ([*in_(window(1, 4096)),
                           *out(data(1, 0, bytes(4096)))],),
    'stream that was not opened': (in_(window(3)), violation(
        'No such stream was opened')),
    'offset': (out(data(1, 0, b'12345'), data(1, 6, b'7')),
               violation('Offset 6 instead of 5')),
    'credit': (out(data(1, 0, b'1234567890'), data(1, 10, b'1')),
               violation('Data beyond the credit')),
    'raised credit': ([*out(data(1, 0, b'1234567890')),
                       *in_(window(1, 12), window(1, 11)),
                       *out(data(1, 10, b'12'))],),
    'DATA after FIN': (out(fin(1), data(1, 0, b'1')),
                       violation('Data after FIN')),
    'final size': (out(data(1, 0, b'12345'), fin(1, 4)),
                   violation('Final size after 5 bytes')),
    'FIN twice': (out(fin(1), fin(1)), violation('FIN twice')),
    'FIN_OK without FIN': (in_(fin_ok(1)), violation('FIN_OK without FIN')),
    'FIN_OK twice': ([*out(fin(1)), *in_(fin_ok(1), fin_ok(1))],
                     violation('FIN_OK twice')),
    'FIN_OK of another size': ([*out(fin(1)), *in_(fin_ok(1, 1))],
                               violation('Final size after 0 bytes')),
    'after RESET': (out(reset(1), window(1)), RESET,
                    violation('After RESET')),
    'RESET twice': (in_(reset(1), reset(1)), RESET,
                    violation('After RESET'), RESET),
    'RESET that crosses': ([*out(reset(1)), *in_(reset(1))], RESET, RESET),
    'frames that cross RESET': ([*in_(reset(1)),
                                 *out(data(1, 0, b'1'), window(1),
                                      fin(1, 1))], RESET),
    'refusal': ([*out(open_(3)), *in_(reset(3))], RESET),
    'after GOAWAY': (out(goaway(), PING), violation('After GOAWAY')),
    'skipped after GOAWAY': (in_(goaway(), Frame(0x80)),
                             violation('After GOAWAY'), SKIPPED),
    'frames that cross GOAWAY': (in_(goaway()) + out(PING, goaway()),),
    'GOAWAY with a code': (in_(goaway(Code.LIMIT)), (
        'qmux.failed', 'LIMIT: no reason given')),
    'WINDOW of the opener before OPEN_OK': (out(open_(3), window(3)), EARLY),
    'WINDOW of the acceptor before OPEN_OK': (
        out(open_(3)) + in_(window(3)), EARLY),
    'DATA before OPEN_OK': (out(open_(3), data(3, 0, b'1')), EARLY),
    'OPEN_OK of the opener': (out(open_(3), open_ok(3)),
                              violation('The opener accepts')),
    'OPEN_OK twice': (in_(open_ok(1)), violation('Accepted before')),
    'OPEN of a used id': (out(open_(1)), violation('This id was used before')),
    'OPEN of an even id by the source': (out(open_(2)), violation(
        "This id is the other side's to open")),
    'OPEN of an odd id by the destination': (in_(open_(3)), violation(
        "This id is the other side's to open")),
    'OPEN by the destination': (in_(open_(4)),),
    'OPEN with falling ids': (out(open_(5), open_(3)),
                              violation('Id 3 after 5')),
    'OPEN with a wrong name length': (out(open_(3, name_length=2)),
                                      violation('Bad name')),
    'OPEN with its zero field 1': (out(open_(3, zero=1)),
                                   violation('Bad name')),
    'OPEN that cannot be printed': (out(open_(3, name=b'a\x7f')),
                                    violation('Bad name')),
    '17 OPEN': (out(*map(open_, streams(3, 17))),
                violation(USED_UP.format('OPEN'))),
    '17 OPEN, one with an answer': (
        [*out(open_(3)), *in_(open_ok(3)), *out(*map(open_, streams(5, 16)))],
    ),
    '21 streams at once': (
        [*out(*map(open_, streams(3, 16))),
         *in_(*map(open_ok, streams(3, 16))),
         *out(*map(open_, streams(35, 4)))],
        violation('Too many streams at once')),
    '4097 streams in all': (finished(3, 4096),
                            violation('Too many streams in a lifetime')),
    '17 PING, one with an answer': (
        [*out(*[PING] * 16), *in_(PONG), *out(PING)],),
    '17 PING': (out(*[PING] * 17), violation(USED_UP.format('PING'))),
    'PONG without PING': (in_(PONG), violation('PONG that answers no PING')),
    'PONG of the side that asked': (out(PING, PONG), violation(
        'PONG that answers no PING')),
}


def look(packets, passes: int = 1) -> dict[int, tuple]:
    """For each connection: texts, and how many of each kind."""
    reported = {}
    for (connection,), texts, *kinds in show(
            packets, 'tcp.stream', '_ws.expert.message', *KINDS,
            only=TROUBLE, passes=passes):
        all_texts, counts = reported.setdefault(int(connection),
                                                ([], Counter()))
        all_texts += texts
        for kind, values in zip(KINDS, kinds):
            counts[kind] += len(values)
    return reported


def show(packets, *fields: str, **how) -> list:
    with work_folder() as folder:
        path = Path(folder, 'breaches.pcap')
        pcap.write(path, packets)
        return tshark(path, *fields, **how)


@unittest.skipUnless(shutil.which('tshark'), 'there is no tshark')
class Breaches(unittest.TestCase):
    """All cases in one capture, a connection for each."""

    @classmethod
    def setUpClass(cls):
        packets = []
        for number, (what, *_) in enumerate(CASES.values()):
            capture = pcap.Capture(number)
            for direction, some in groupby((*BEGIN, *what), itemgetter(0)):
                capture(direction,
                        b''.join(frame.pack() for _, frame in some))
            packets += capture.packets
        cls.packets = packets
        cls.reported = look(packets)

    def assert_reported(self, reported, wanted) -> None:
        texts, counts = reported or ([], Counter())
        self.assertEqual(texts, [text for _, text in wanted])
        self.assertEqual(+counts, Counter(kind for kind, _ in wanted))

    def test_role_of_both(self):
        capture = pcap.Capture()
        for direction in ('out', 'in'):
            capture(direction, Hello(Role.SOURCE).pack())
        self.assert_reported(look(capture.packets).get(0),
                         [violation('Both sides claim this role')])

    def test_parts_of_hello(self):
        """What version 2 has is shown and checked, unless version 1 speaks."""
        session = bytes(range(16))
        packets, wanted = [], []
        for number, (hello, fields, *trouble) in enumerate((
                (Hello(Role.SOURCE, session=session), ['0']),
                (Hello(Role.SOURCE, session=session, length=68), ['0']),
                (Hello(Role.SOURCE, session=session, connection=3), ['3'],
                 violation('Not the first connection')),
                (Hello(Role.SOURCE, version_min=1, version_max=1, length=40),
                 []),
                (Hello(Role.SOURCE, length=59), [],
                 ('qmux.malformed', 'HELLO of a bad length')))):
            capture = pcap.Capture(number)
            capture('out', hello.pack())
            packets += capture.packets
            wanted.append([[session.hex()] * len(fields), fields,
                           ['00' * 8] * (hello.length == 68)])
            with self.subTest(hello=hello):
                self.assert_reported(look(capture.packets).get(0), trouble)
        self.assertEqual(
            show(packets, 'qmux.hello.session', 'qmux.hello.connection',
                 'qmux.hello.tail', only='qmux.hello.magic'), wanted)

    def test_second_pass(self):
        self.assertEqual(look(self.packets, passes=2), self.reported)

    def test_any_header(self):
        """No type, id and length confuses the dissector."""
        capture = pcap.Capture()
        for direction, frame in BEGIN:
            capture(direction, frame.pack())
        sent = [Frame(kind, stream, bytes(length))
                for kind in (*range(12), 0x7f, 0x80, 0xff)
                for stream in (0, 1, 3)
                for length in (0, 1, 7, 8, 9, 12, 13, 267, 268, 1024, 1025)]
        sent += [Frame(kind, stream, length=ODD + 1)
                 for kind in range(256) for stream in (0, 1)]
        for frame in sent:
            capture('out', frame.pack())
        seen = show(capture.packets, 'qmux.type', '_ws.lua.error')
        self.assertEqual(sum(len(types) for types, _ in seen),
                         len(sent) + len(BEGIN) - len(HELLOS))
        self.assertFalse([errors for _, errors in seen if errors])


def add_tests():
    for number, (name, (_, *wanted)) in enumerate(CASES.items()):
        def method(self, number=number, wanted=wanted):
            self.assert_reported(self.reported.get(number), wanted)
        setattr(Breaches, 'test_' + name.replace(' ', '_'), method)


add_tests()
