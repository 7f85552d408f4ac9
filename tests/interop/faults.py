# SPDX-License-Identifier: GPL-2.0-or-later
"""
What a peer can do wrong: a catalogue.

A fault's name is that of the specification's tables of faults, which state
the code of the answer.  Its text is QEMU's error message, which the
specification leaves to the implementation.  The words in braces are those of
Scene.words(), where `peer` is the side at fault and `self` the side that
answers; what a fault returns replaces them, and any other word is a number.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

from muxpeer import frames
from muxpeer.frames import Code, Frame, Hello, Role, Type, data, numbered
from scene import MAIN_ID, Scene

BIT = 1 << 63
PAYLOAD = b'12345678'



class HelloFault(NamedTuple):
    """What differs from a valid HELLO, and QEMU's message."""
    change: dict[str, int | None]
    text: str


class FrameFault(NamedTuple):
    """An act upon a Scene at a stage, and QEMU's message."""
    stage: Callable
    act: Callable
    text: str


class EndFault(NamedTuple):
    """Bytes instead of HELLO, an act before the end, and QEMU's message."""
    hello: Callable | None
    act: Callable
    text: str


NO_COMMON_VERSION = ('no common version of the migration multiplexer: {self} '
                     'offers 2 to 2, {peer} offers ')
HELLOS = {
    'wrong magic': HelloFault(
        {'magic': 0x4e42444d},
        'peer does not speak the migration multiplexer (got 0x4e42444d '
        'instead of 0x514d5558)'),
    'length 39': HelloFault(
        {'length': 39}, '{peer} sent a HELLO with a bad length'),
    'length 4097': HelloFault(
        {'length': 4097}, '{peer} sent a HELLO with a bad length'),
    'version min 2, version max 1': HelloFault(
        {'version_min': 2, 'version_max': 1},
        '{peer} sent a HELLO with a bad version range'),
    'max frame 4095': HelloFault(
        {'max_frame': 4095}, '{peer} sent a HELLO with a bad frame limit'),
    'role 3': HelloFault({'role': 3}, '{peer} sent a HELLO with a bad role'),
    "the receiver's role": HelloFault(
        {'role': None}, 'both sides claim to be the {self} of the migration'),
    'versions 3 to 4': HelloFault(
        {'version_min': 3, 'version_max': 4}, NO_COMMON_VERSION + '3 to 4'),
    'all of version 1': HelloFault(
        {'version_min': 1, 'version_max': 1, 'length': 40},
        NO_COMMON_VERSION + '1 to 1'),
    'length 59': HelloFault(
        {'length': 59}, '{peer} sent a HELLO with a bad length'),
    'feature bit 63 required': HelloFault(
        {'features': BIT, 'required': BIT},
        '{peer} requires feature bits 0x8000000000000000 of the migration '
        'multiplexer, {self} offers 0x0'),
    'max streams 0': HelloFault(
        {'max_streams': 0}, '{peer} accepts no streams'),
    'connection 3': HelloFault(
        {'connection': 3}, '{peer} opens connection 3 of its session, {self} '
        'takes only the first'),
}
FRAMES = {}
# HELLO, of which no more comes
TIMED = {'incomplete for 30 seconds':
         '{peer} sent no HELLO within 30 s (does it support multiplexed '
         'migration?)'}
# Those that only a QEMU in this role takes for a fault
ONLY_AT_SOURCE = {'max streams 0'}
# Those that only a QEMU in this role can be led to
ONLY_AT_DESTINATION = {'OPEN beyond 16 unanswered',
                       'DATA on an id that is finished'}


def cut_hello(role: Role) -> bytes:
    return Hello(role).pack()[:59]


def cut_frame(scene: Scene) -> None:
    scene.quiet()
    scene.send(Frame(Type.PING, 0, b'1234567', length=8))
    scene.connection.flush()


# QEMU must have sent everything when the connection is closed: otherwise there
# is another fault, which is that this side accepts no data.
ENDS = {
    'before HELLO': EndFault(
        lambda _: b'', lambda _: None,
        'peer closed the connection before its HELLO (does it support '
        'multiplexed migration?)'),
    'within HELLO': EndFault(
        cut_hello, lambda scene: scene.connection.flush(),
        'peer closed the connection in the middle of its HELLO (does it '
        'support multiplexed migration?)'),
    'within a frame': EndFault(
        None, cut_frame,
        '{peer} closed the connection in the middle of a frame'),
    'with main open': EndFault(
        None, Scene.quiet,
        "{peer} closed the connection before stream 'control' was finished"),
}


def names() -> list[str]:
    return [*HELLOS, *TIMED, *FRAMES, *ENDS]


def text(name: str) -> str:
    """QEMU's message."""
    for catalogue in HELLOS, FRAMES, ENDS:
        if name in catalogue:
            return catalogue[name].text
    return TIMED[name]


def beginning(name: str, role: Role) -> bytes | None:
    """What the connection begins with instead of a good HELLO, if so."""
    if name in TIMED:
        return frames.MAGIC.to_bytes(4, 'big')
    if name in ENDS:
        hello = ENDS[name].hello
        return hello and hello(role)
    if name not in HELLOS:
        return None
    change = dict(HELLOS[name].change)
    if 'role' in change:
        change['role'] = change['role'] or 3 - role
    return replace(Hello(role), **change).pack()


def commit(name: str, scene: Scene) -> dict:
    """
    Commit a fault on a connection with its beginning; returns what else is
    needed to know the text.
    """
    if name in FRAMES:
        FRAMES[name].stage(scene)
        return FRAMES[name].act(scene) or {}
    if name in ENDS:
        scene.connection.wait(lambda: scene.connection.engine.peer)
        ENDS[name].act(scene)
        scene.connection.drop()
    return {}


def fault(name: str, why: str, stage=Scene.main):
    """Adds the function to the catalogue."""
    def note(act):
        FRAMES[name] = FrameFault(stage, act, '{peer} sent ' + why)
        return act
    return note


def frame_fault(name: str, why: str, *what: Frame) -> None:
    """Frames that are wrong on their own."""
    fault(name, why)(lambda scene: scene.send(*what))


def about(kind: Type, stream: int) -> Frame:
    return Frame(kind, stream, bytes(frames.LENGTHS[kind][0]))


def length_fault(kind: Type, size: int, code: int = 0) -> None:
    """A frame of another size than its type has."""
    stream, where = (0, '') if kind in frames.ABOUT_CONNECTION else \
        (MAIN_ID, ' on {stream}')
    frame_fault(f'{kind.name} of {size} bytes',
                f'{kind.name}{where} with a bad length of {size} bytes',
                Frame(kind, stream, bytes(size), code))


frame_fault('PING with flags 1',
            'PING with unknown flags 0x01, reserved field 0x0000',
            Frame(Type.PING, 0, PAYLOAD, flags=1))
frame_fault('PING with the zero field 1',
            'PING with unknown flags 0x00, reserved field 0x0001',
            Frame(Type.PING, 0, PAYLOAD, zero=1))
for _type in 0x00, 0x0b, 0x7f:
    frame_fault(f'type 0x{_type:02x}',
                f'a frame of unknown type 0x{_type:02x}', Frame(_type))
for _kind in Type:
    if _kind in frames.ABOUT_CONNECTION:
        frame_fault(f'{_kind.name} about stream {MAIN_ID}',
                    _kind.name + ' on {stream} but it concerns the connection',
                    about(_kind, MAIN_ID))
    else:
        frame_fault(f'{_kind.name} about stream 0',
                    f'{_kind.name} without a stream id', about(_kind, 0))
    if frames.LENGTHS[_kind] == (8, 8):
        length_fault(_kind, 7)
        length_fault(_kind, 9)
length_fault(Type.RESET, 1025, Code.ABORTED)
length_fault(Type.GOAWAY, 1025, Code.ABORTED)
frame_fault('PONG that answers no PING', 'PONG that answers no PING',
            Frame(Type.PONG, 0, PAYLOAD))
# More than are answered before the last of them has been read
frame_fault('PING beyond 16 unanswered',
            'PING with 16 PINGs unanswered, the limit',
            *[Frame(Type.PING, 0, PAYLOAD)] * 2000)


@fault('type 0x80 above max frame',
       'a frame of type 0x80 with {n} bytes, {self} accepts {frame}')
def skipped(scene: Scene) -> None:
    scene.send(Frame(0x80, length=scene.max_frame + 1))


@fault('OPEN of 12 bytes',
       'OPEN on stream id {id} with a bad length of 12 bytes')
def open_short(scene: Scene) -> None:
    scene.send(Frame(Type.OPEN, scene.next_id, bytes(12)))


@fault('OPEN of 268 bytes',
       'OPEN on stream id {id} with a bad length of 268 bytes')
def open_long(scene: Scene) -> None:
    scene.send(frames.open_(scene.next_id, 1, b'x' * 256))


@fault('OPEN with a name length that is not that of the name',
       'OPEN on stream id {id} with a bad length of the name')
def open_mismatch(scene: Scene) -> None:
    scene.send(frames.open_(scene.next_id, 1, b'foo', name_length=2))


@fault('OPEN with the zero field 1',
       'OPEN on stream id {id} with a bad length of the name')
def open_zero(scene: Scene) -> None:
    scene.send(frames.open_(scene.next_id, 1, b'foo', zero=1))


@fault('OPEN with 0x7f in the name',
       'OPEN on stream id {id} with a name that is not printable')
def open_unprintable(scene: Scene) -> None:
    scene.send(frames.open_(scene.next_id, 1, b'foo\x7f'))


@fault('OPEN with an id of the wrong parity',
       'OPEN on stream id {id} which the other side assigns')
def open_parity(scene: Scene) -> dict:
    scene.send(frames.open_(scene.next_id + 1, 1, b'foo'))
    return {'id': scene.next_id + 1}


@fault('OPEN with an id below the one before',
       'OPEN on stream id {id} but ids only grow, and {last} was used')
def open_falling(scene: Scene) -> dict:
    scene.send(frames.open_(scene.next_id + 2, 1, b'foo'),
               frames.open_(scene.next_id, 1, b'foo'))
    return {'last': scene.next_id + 2}


@fault('OPEN beyond 16 unanswered',
       'OPEN on stream id {id} with 16 OPENs unanswered, the limit')
def open_unanswered(scene: Scene) -> dict:
    # More than are refused before the last of them has been read
    scene.send(*(frames.open_(scene.next_id + 2 * i, 1, b'foo')
                 for i in range(600)))
    return {'id': None}


@fault('OPEN beyond 4096 in a lifetime',
       'OPEN on stream id {id} after 4096 streams, the limit for a '
       'connection')
def open_lifetime(scene: Scene) -> dict:
    conn = scene.connection
    mine = 2 if scene.role == Role.SOURCE else 0    # control and main
    for _ in range(frames.STREAMS_IN_LIFETIME - mine):
        stream = conn.offer('foo')
    conn.wait(lambda: stream.reset)
    one_more = stream.state.id + 2
    scene.send(frames.open_(one_more, 1, b'foo'))
    return {'id': one_more}


@fault('WINDOW beyond the control-frame budget',
       'more than {n} control frames, the limit by now')
def window_flood(scene: Scene) -> None:
    # with what time allows meanwhile
    scene.send(*[numbered(Type.WINDOW, MAIN_ID, 0)] * 70000)


@fault('DATA of 0 bytes',
       'DATA on {stream} with a bad length of 0 bytes')
def data_empty(scene: Scene) -> None:
    scene.send(data(MAIN_ID, 0, b''))


@fault('DATA above max frame',
       'DATA on {stream} with {n} bytes, {self} accepts {frame}')
def data_long(scene: Scene) -> None:
    scene.send(data(MAIN_ID, 0, bytes(scene.max_frame + 1)))


@fault('DATA with offset 1 instead of 0',
       'DATA on {stream} with offset 0x00000001 instead of 0x00000000')
def data_offset(scene: Scene) -> None:
    scene.send(data(MAIN_ID, 1, b'x'))


@fault('DATA beyond the credit',
       'DATA on {stream} beyond its credit: 1 bytes at offset {limit}, '
       'limit {limit}',
       Scene.deaf)
def data_beyond(scene: Scene) -> None:
    send_up_to(scene, scene.credit + 1)


@fault('DATA on an id that was refused',
       'DATA on stream id {id} beyond its credit: 1 bytes at offset 0, '
       'limit 0',
       Scene.refused)
def data_refused(scene: Scene) -> dict:
    scene.send(data(scene.stream.state.id, 0, b'x'))
    return {'id': scene.stream.state.id}


@fault('DATA with offset 1 instead of 0 on an id that was refused',
       'DATA on stream id {id} with offset 0x00000001 instead of '
       '0x00000000',
       Scene.refused)
def data_offset_refused(scene: Scene) -> dict:
    scene.send(data(scene.stream.state.id, 1, b'x'))
    return {'id': scene.stream.state.id}


@fault('DATA on an id that is finished',
       'DATA on stream id {id} beyond its credit: 1 bytes at offset {n}, '
       'limit {n}',
       Scene.finished)
def data_finished(scene: Scene) -> dict:
    state = scene.stream.state
    scene.send(data(state.id, state.sent, b'x'))
    return {'id': scene.stream.state.id}


@fault('FIN with size 1 after 0 bytes',
       'FIN on {stream} with final size 1 after 0 bytes')
def fin_size(scene: Scene) -> None:
    scene.send(numbered(Type.FIN, MAIN_ID, 1))


@fault('FIN with size 1 after 0 bytes on an id that was refused',
       'FIN on stream id {id} with final size 1 after 0 bytes',
       Scene.refused)
def fin_size_refused(scene: Scene) -> dict:
    scene.send(numbered(Type.FIN, scene.stream.state.id, 1))
    return {'id': scene.stream.state.id}


@fault('FIN_OK without FIN',
       'FIN_OK on {stream} that answers no FIN')
def fin_ok_early(scene: Scene) -> None:
    scene.send(numbered(Type.FIN_OK, MAIN_ID, 0))


@fault('FIN_OK with another size than FIN',
       'FIN_OK on {stream} with final size {n}, {self} sent {n} bytes',
       Scene.disk)
def fin_ok_size(scene: Scene) -> None:
    state = scene.stream.state
    scene.send(numbered(Type.FIN_OK, state.id, state.received + 1))


@fault('FIN_OK twice',
       'FIN_OK on {stream} that answers no FIN',
       Scene.disk)
def fin_ok_twice(scene: Scene) -> None:
    state = scene.stream.state
    scene.send(*[numbered(Type.FIN_OK, state.id, state.received)] * 2)


def send_up_to(scene: Scene, end: int) -> None:
    """Data on the scene's stream up to an offset."""
    offset = scene.sent
    while offset < end:
        size = min(scene.max_frame, end - offset)
        scene.send(data(scene.stream.state.id, offset, bytes(size)))
        offset += size
