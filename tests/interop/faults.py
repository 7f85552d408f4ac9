# SPDX-License-Identifier: GPL-2.0-or-later
"""
What a peer can do wrong: a catalogue.

The names are those of the document's tables of faults, which say what QEMU
answers.  Each frame fault is an act upon a Scene at a stage; it may return
what else is needed to know the text.
"""

from dataclasses import replace

from muxpeer import frames
from muxpeer.frames import Code, Frame, Hello, Role, Type, data, numbered
from scene import MAIN_ID, Scene

BIT = 1 << 63
PAYLOAD = b'12345678'

HELLOS = {                      # what differs from a good HELLO
    'wrong magic': {'magic': 0x4e42444d},
    'length 39': {'length': 39},
    'length 4097': {'length': 4097},
    'version min 2, version max 1': {'version_min': 2, 'version_max': 1},
    'max frame 4095': {'max_frame': 4095},
    'role 3': {'role': 3},
    "the receiver's role": {'role': None},
    'versions 3 to 4': {'version_min': 3, 'version_max': 4},
    'all of version 1': {'version_min': 1, 'version_max': 1, 'length': 40},
    'length 59': {'length': 59},
    'feature bit 63 required': {'features': BIT, 'required': BIT},
    'max streams 0': {'max_streams': 0},
    'connection 3': {'connection': 3},
}
FAULTS = {}                     # name -> (stage, act)
TIMED = 'incomplete for 30 seconds'     # HELLO, of which no more comes
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


# name -> (bytes instead of HELLO, act).  QEMU must have nothing to send any
# more when the connection is closed: else there is another fault, which is
# that this side takes no more.
ENDS = {
    'before HELLO': (lambda _: b'', lambda _: None),
    'within HELLO': (cut_hello, lambda scene: scene.connection.flush()),
    'within a frame': (None, cut_frame),
    'with main open': (None, Scene.quiet),
}


def names() -> list[str]:
    return [*HELLOS, TIMED, *FAULTS, *ENDS]


def beginning(name: str, role: Role) -> bytes | None:
    """What the connection begins with instead of a good HELLO, if so."""
    if name == TIMED:
        return frames.MAGIC.to_bytes(4, 'big')
    if name in ENDS:
        hello, _ = ENDS[name]
        return hello and hello(role)
    if name not in HELLOS:
        return None
    change = dict(HELLOS[name])
    if 'role' in change:
        change['role'] = change['role'] or 3 - role
    return replace(Hello(role), **change).pack()


def commit(name: str, scene: Scene) -> dict:
    """
    Commit a fault on a connection with its beginning; returns what else is
    needed to know the text.
    """
    if name in FAULTS:
        stage, act = FAULTS[name]
        stage(scene)
        return act(scene) or {}
    if name in ENDS:
        _, act = ENDS[name]
        scene.connection.wait(lambda: scene.connection.engine.peer)
        act(scene)
        scene.connection.drop()
    return {}


def fault(name: str, stage=Scene.main):
    """Adds the function to the catalogue."""
    def note(act):
        FAULTS[name] = stage, act
        return act
    return note


def frame_fault(name: str, *what: Frame) -> None:
    """Frames that are wrong on their own."""
    FAULTS[name] = Scene.main, lambda scene: scene.send(*what)


def about(kind: Type, stream: int) -> Frame:
    return Frame(kind, stream, bytes(frames.LENGTHS[kind][0]))


frame_fault('PING with flags 1', Frame(Type.PING, 0, PAYLOAD, flags=1))
frame_fault('PING with the zero field 1', Frame(Type.PING, 0, PAYLOAD,
                                                zero=1))
frame_fault('type 0x00', Frame(0x00))
frame_fault('type 0x0b', Frame(0x0b))
frame_fault('type 0x7f', Frame(0x7f))
for _kind in Type:
    if _kind in frames.ABOUT_CONNECTION:
        frame_fault(f'{_kind.name} about stream {MAIN_ID}',
                    about(_kind, MAIN_ID))
    else:
        frame_fault(f'{_kind.name} about stream 0', about(_kind, 0))
    _id = 0 if _kind in frames.ABOUT_CONNECTION else MAIN_ID
    if frames.LENGTHS[_kind] == (8, 8):
        frame_fault(f'{_kind.name} of 7 bytes', Frame(_kind, _id, bytes(7)))
        frame_fault(f'{_kind.name} of 9 bytes', Frame(_kind, _id, bytes(9)))
frame_fault('RESET of 1025 bytes',
            Frame(Type.RESET, MAIN_ID, b'x' * 1025, Code.ABORTED))
frame_fault('GOAWAY of 1025 bytes',
            Frame(Type.GOAWAY, 0, b'x' * 1025, Code.ABORTED))
frame_fault('PONG that answers no PING', Frame(Type.PONG, 0, PAYLOAD))
# More than are answered before the last of them has been read
frame_fault('PING beyond 16 unanswered',
            *[Frame(Type.PING, 0, PAYLOAD)] * 2000)


@fault('type 0x80 above max frame')
def skipped(scene: Scene) -> None:
    scene.send(Frame(0x80, length=scene.max_frame + 1))


@fault('OPEN of 12 bytes')
def open_short(scene: Scene) -> None:
    scene.send(Frame(Type.OPEN, scene.next_id, bytes(12)))


@fault('OPEN of 268 bytes')
def open_long(scene: Scene) -> None:
    scene.send(frames.open_(scene.next_id, 1, b'x' * 256))


@fault('OPEN with a name length that is not that of the name')
def open_mismatch(scene: Scene) -> None:
    scene.send(frames.open_(scene.next_id, 1, b'foo', name_length=2))


@fault('OPEN with the zero field 1')
def open_zero(scene: Scene) -> None:
    scene.send(frames.open_(scene.next_id, 1, b'foo', zero=1))


@fault('OPEN with 0x7f in the name')
def open_unprintable(scene: Scene) -> None:
    scene.send(frames.open_(scene.next_id, 1, b'foo\x7f'))


@fault('OPEN with an id of the wrong parity')
def open_parity(scene: Scene) -> dict:
    scene.send(frames.open_(scene.next_id + 1, 1, b'foo'))
    return {'id': scene.next_id + 1}


@fault('OPEN with an id below the one before')
def open_falling(scene: Scene) -> dict:
    scene.send(frames.open_(scene.next_id + 2, 1, b'foo'),
               frames.open_(scene.next_id, 1, b'foo'))
    return {'last': scene.next_id + 2}


@fault('OPEN beyond 16 unanswered')
def open_unanswered(scene: Scene) -> dict:
    # More than are refused before the last of them has been read
    scene.send(*(frames.open_(scene.next_id + 2 * i, 1, b'foo')
                 for i in range(600)))
    return {'id': None}


@fault('OPEN beyond 4096 in a lifetime')
def open_lifetime(scene: Scene) -> dict:
    conn = scene.connection
    mine = 2 if scene.role == Role.SOURCE else 0    # control and main
    for _ in range(frames.STREAMS_IN_LIFETIME - mine):
        stream = conn.offer('foo')
    conn.wait(lambda: stream.reset)
    one_more = stream.state.id + 2
    scene.send(frames.open_(one_more, 1, b'foo'))
    return {'id': one_more}


@fault('WINDOW beyond the limit of control frames')
def window_flood(scene: Scene) -> None:
    # with what time allows meanwhile
    scene.send(*[numbered(Type.WINDOW, MAIN_ID, 0)] * 70000)


@fault('DATA of 0 bytes')
def data_empty(scene: Scene) -> None:
    scene.send(data(MAIN_ID, 0, b''))


@fault('DATA above max frame')
def data_long(scene: Scene) -> None:
    scene.send(data(MAIN_ID, 0, bytes(scene.max_frame + 1)))


@fault('DATA with offset 1 instead of 0')
def data_offset(scene: Scene) -> None:
    scene.send(data(MAIN_ID, 1, b'x'))


@fault('DATA beyond the credit', Scene.deaf)
def data_beyond(scene: Scene) -> None:
    send_up_to(scene, scene.credit + 1)


@fault('DATA on an id that was refused', Scene.refused)
def data_refused(scene: Scene) -> dict:
    scene.send(data(scene.stream.state.id, 0, b'x'))
    return {'id': scene.stream.state.id}


@fault('DATA with offset 1 instead of 0 on an id that was refused',
       Scene.refused)
def data_offset_refused(scene: Scene) -> dict:
    scene.send(data(scene.stream.state.id, 1, b'x'))
    return {'id': scene.stream.state.id}


@fault('DATA on an id that is finished', Scene.finished)
def data_finished(scene: Scene) -> dict:
    state = scene.stream.state
    scene.send(data(state.id, state.sent, b'x'))
    return {'id': scene.stream.state.id}


@fault('FIN with size 1 after 0 bytes')
def fin_size(scene: Scene) -> None:
    scene.send(numbered(Type.FIN, MAIN_ID, 1))


@fault('FIN with size 1 after 0 bytes on an id that was refused',
       Scene.refused)
def fin_size_refused(scene: Scene) -> dict:
    scene.send(numbered(Type.FIN, scene.stream.state.id, 1))
    return {'id': scene.stream.state.id}


@fault('FIN_OK without FIN')
def fin_ok_early(scene: Scene) -> None:
    scene.send(numbered(Type.FIN_OK, MAIN_ID, 0))


@fault('FIN_OK with another size than FIN', Scene.disk)
def fin_ok_size(scene: Scene) -> None:
    state = scene.stream.state
    scene.send(numbered(Type.FIN_OK, state.id, state.received + 1))


@fault('FIN_OK twice', Scene.disk)
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
