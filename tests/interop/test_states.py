# SPDX-License-Identifier: GPL-2.0-or-later
"""
The document's tables of states and frames, cell by cell: against the second
implementation, and against a real QEMU wherever its application can be led
into the state.
"""

import unittest

import document
from checks import QEMUTest, for_each
from muxpeer import engine as engines
from muxpeer import frames
from muxpeer.engine import Engine, Fault, State
from muxpeer.frames import Code, Frame, Role, Type, numbered
from scene import Scene, goaway

RECEIVED = document.table('What is done with a received frame')
STATES = ('unknown', 'offered', 'asked', 'open', 'ended', 'finished',
          'reset')
CELLS = [f'{row[0]} when {state}' for row in RECEIVED for state in STATES]
MEANING = {f'{row[0]} when {state}': cell for row in RECEIVED
           for state, cell in zip(STATES, row[1:])}
LIMIT = 1 << 20
PING = Frame(Type.PING, payload=b'in order')


def make(kind: Type, stream: int) -> Frame:
    """A frame that is right if the state is."""
    if kind == Type.OPEN:
        return frames.open_(stream, LIMIT, b'again')
    if kind == Type.DATA:
        return frames.data(stream, 0, b'x')
    if kind == Type.RESET:
        return frames.ended(kind, stream, Code.ABORTED, 'x')
    return numbered(kind, stream,
                    LIMIT if kind in (Type.OPEN_OK, Type.WINDOW) else 0)


def split(cell: str) -> tuple[Type, str, str]:
    name, state = cell.split(' when ')
    return Type[name], state, MEANING[cell]


class Pair:
    """An engine and the peer that leads it; stream 1 is the source's."""

    def __init__(self, role: Role):
        self.tested = Engine(role)
        self.peer = Engine(Role(3 - role))
        self.exchange()

    def exchange(self) -> None:
        for ours, theirs in ((self.tested, self.peer),
                             (self.peer, self.tested)) * 2:
            theirs.feed(ours.fetch())

    def stream(self, state: str) -> int:
        """Lead the tested engine's stream into a state; returns the id."""
        if state == 'unknown':
            return 100 + (self.peer.role == Role.SOURCE)
        opener = self.tested if state == 'offered' else self.peer
        number = opener.open('x').id
        if state == 'offered':
            return number
        self.exchange()
        ours, theirs = (side.streams[number]
                        for side in (self.tested, self.peer))
        if state != 'asked':
            self.tested.accept(ours)
            self.exchange()
        if state in ('ended', 'finished'):
            self.peer.finish(theirs)
            self.exchange()
        if state == 'finished':
            self.tested.finish(ours)
            self.tested.settle(ours)
            self.exchange()
            self.peer.settle(theirs)
            self.exchange()
        if state == 'reset':
            self.peer.reset(theirs, Code.ABORTED, 'x')
            self.exchange()
        return number


@for_each(CELLS)
class SecondImplementation(unittest.TestCase):

    def check(self, case: str, role: Role) -> None:
        kind, state, meaning = split(case)
        pair = Pair(Role(3 - role))
        number = pair.stream(state)
        stream = pair.tested.streams.get(number)
        if kind == Type.FIN_OK and meaning == 'take':
            pair.tested.finish(stream)
        frame = make(kind, number).pack()
        # what is charged is fatal where there is no credit
        if meaning == 'fatal' or (meaning, state) == ('charge', 'finished'):
            with self.assertRaises(Fault):
                pair.tested.feed(frame)
            return
        before = stream and stream.state
        pair.tested.feed(frame)
        after = pair.tested.streams[number].state
        if meaning.startswith('becomes'):
            wanted = meaning.split()[1].upper()
            self.assertEqual(after, State.RETIRED if wanted == 'RESET'
                             else State[wanted])
        else:
            self.assertEqual(after, before)

    def test_what_may_be_sent_is_taken(self):
        """What one side may send, no other side takes for fatal."""
        sends = {row[0]: dict(zip(STATES, row[1:])) for row in
                 document.table('What may be sent')}
        receives = {row[0]: dict(zip(STATES, row[1:])) for row in RECEIVED}
        # the states in which the peer can be then
        peers = {'unknown': ['unknown'], 'offered': ['asked', 'reset'],
                 'asked': ['offered', 'reset'],
                 'open': ['open', 'ended', 'reset'],
                 'ended': ['open', 'ended', 'reset']}
        for kind, states in sends.items():
            for state, may in states.items():
                for peer in peers.get(state, ()) if may != 'no' else ():
                    if (kind, peer) in (('DATA', 'ended'), ('FIN', 'ended')):
                        continue        # its sender had to send FIN before
                    with self.subTest(kind=kind, sender=state, peer=peer):
                        self.assertNotEqual(receives[kind][peer], 'fatal')


def possible(cell: str, role: Role) -> bool:
    """
    Whether a QEMU can be led there: a destination opens no streams, a source
    refuses all at once, and soon has no use for the connection when its own
    are finished.
    """
    state = split(cell)[1]
    if role == Role.SOURCE:
        return state != 'offered'
    return state not in ('asked', 'finished')


@for_each(CELLS, possible)
class RealQEMU(QEMUTest):
    """The streams are ones that QEMU does not read meanwhile."""

    def check(self, case: str, role: Role) -> None:
        kind, state, meaning = split(case)
        scene = self.to_qemu(role)
        if (state, meaning) == ('asked', 'fatal'):
            self.ask(scene, kind)
            return
        number, before = self.lead(scene, state)
        frame = make(kind, number)
        if (kind, state) == (Type.FIN, 'finished'):
            frame = numbered(kind, number, scene.sent)
        scene.send(*before, frame, PING)
        if meaning == 'fatal' or (kind, meaning) == (Type.FIN_OK, 'take'):
            # QEMU has not sent FIN
            self.assert_fatal(scene, Code.PROTOCOL)
        elif meaning == 'charge':
            # QEMU has given no credit, and on a finished stream the offset
            # is wrong, too
            self.assert_fatal(scene, Code.PROTOCOL if state == 'finished'
                              else Code.LIMIT)
        else:
            self.assert_goes_on(scene)

    @staticmethod
    def lead(scene: Scene, state: str) -> tuple[int, list[Frame]]:
        """
        Lead QEMU's stream into a state, or up to it; returns its id, and the
        frames that are missing.
        """
        stage = {'offered': scene.offered, 'finished': scene.finished,
                 'reset': scene.refused}.get(state, scene.deaf)
        stage()
        if state == 'unknown':
            return scene.next_id, []
        if state == 'asked':
            return scene.next_id, [make(Type.OPEN, scene.next_id)]
        number = scene.stream.state.id
        return number, [numbered(Type.FIN, number, 0)] * (state == 'ended')

    def ask(self, scene: Scene, kind: Type) -> None:
        """
        A frame just behind OPEN.  If QEMU answers PING its application was
        faster, and the state is another one: then repeat.
        """
        scene.main()
        for number in range(scene.next_id, scene.next_id + 2000, 2):
            pongs = scene.count(Type.PONG)
            scene.send(make(Type.OPEN, number), make(kind, number), PING)
            scene.connection.wait(lambda last=pongs:
                                  scene.count(Type.GOAWAY) or
                                  scene.count(Type.PONG) > last)
            if scene.count(Type.GOAWAY):
                break
        self.assert_fatal(scene, Code.PROTOCOL)

    def assert_fatal(self, scene: Scene, wanted: Code) -> None:
        code, text = goaway(scene.answers())
        self.assertEqual(code, wanted, text)
        self.assert_failed(scene, text)

    def assert_goes_on(self, scene: Scene) -> None:
        """
        PING is answered, or QEMU has given up the migration, whose stream
        this was, without a fault of the peer.
        """
        def last_words():
            return [frame for frame in scene.seen()
                    if frame.type in (Type.PONG, Type.GOAWAY)]
        scene.connection.wait(last_words)
        self.assertNotIn(last_words()[0].arg, (Code.PROTOCOL, Code.LIMIT))


class Tables(unittest.TestCase):

    def test_states_and_frames_are_those_of_the_code(self):
        self.assertEqual([row[0] for row in RECEIVED],
                         [kind.name for kind in engines.ALLOWED])
        for row in RECEIVED:
            allowed = {state for state, cell in zip(STATES, row[1:])
                       if cell == 'take' or cell.startswith('becomes')}
            self.assertEqual(
                allowed, {state.name.lower()
                          for state in engines.ALLOWED[Type[row[0]]]})
