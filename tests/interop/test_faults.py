# SPDX-License-Identifier: GPL-2.0-or-later
"""
Every fault of the document's tables is committed against a real QEMU, as
source and as destination: QEMU answers with the code and the text that the
document gives, reports the failure, and the guest of a source runs on.
"""

import re
import unittest

import document
import faults
from checks import Bench, QEMUTest, for_each
from muxpeer.frames import Code, Role
from scene import Scene, goaway

HELLO = {name: (code, text) for name, code, text
         in document.table('Faults of a HELLO')}
FRAME = {name: (code, text) for name, code, text
         in document.table('Faults of a frame')}
ENDS = dict(document.table('Faulty ends'))
TIMED = 'incomplete for 30 seconds'


def pattern(text: str, words: dict) -> str:
    """A text of the document as a regular expression."""
    parts = re.split(r'\{(\w+)\}', text)
    for index in range(1, len(parts), 2):
        known = words.get(parts[index])
        parts[index] = r'\d+' if known is None else re.escape(str(known))
    parts[::2] = map(re.escape, parts[::2])
    return ''.join(parts) + r'\Z'


class FaultTest(QEMUTest):
    """A case is a fault's name."""

    def assert_answer(self, scene: Scene, wanted, extra=None) -> None:
        """QEMU ends the connection with this code and text."""
        code, text = wanted
        got = goaway(scene.answers())
        self.assertIsNotNone(got, 'no GOAWAY')
        self.assertRegex(got[1], pattern(text, {**scene.words(),
                                                **(extra or {})}))
        self.assertEqual(Code(got[0]).name, code)
        self.assert_failed(scene, got[1])


@for_each(faults.HELLOS, lambda case, role: role == Role.DESTINATION or
          case not in faults.ONLY_AT_SOURCE)
class HelloFaults(FaultTest):

    def check(self, case: str, role: Role) -> None:
        scene = self.to_qemu(role, faults.bad_hello(case, role))
        self.assert_answer(scene, HELLO[case])


@for_each(faults.FAULTS, lambda case, role: role == Role.SOURCE or
          case not in faults.ONLY_AT_DESTINATION)
class FrameFaults(FaultTest):

    def check(self, case: str, role: Role) -> None:
        stage, act = faults.FAULTS[case]
        scene = self.to_qemu(role)
        stage(scene)
        extra = act(scene)
        self.assert_answer(scene, FRAME[case], extra)


@for_each(faults.ENDS)
class Ends(FaultTest):

    def check(self, case: str, role: Role) -> None:
        hello, act = faults.ENDS[case]
        scene = self.to_qemu(role, hello and hello(role))
        scene.connection.wait(lambda: scene.connection.engine.peer)
        act(scene)
        scene.connection.drop()
        self.assert_failed(scene,
                           ENDS[case].format(**scene.words()))


class Catalogue(unittest.TestCase):
    """The document's tables and the catalogue have the same faults."""

    def test_nothing_is_left_out(self):
        self.assertEqual(sorted(HELLO), sorted([*faults.HELLOS, TIMED]))
        self.assertEqual(sorted(FRAME), sorted(faults.FAULTS))
        self.assertEqual(sorted(ENDS), sorted(faults.ENDS))


class TimeoutOfHello(FaultTest):
    """Begun with the module: the other tests fill the 30 seconds."""

    scenes = []

    @classmethod
    def begin(cls):
        bench = Bench()
        unittest.addModuleCleanup(bench.close)
        for role in Role:
            cls.scenes.append(bench.scene(role, b'QMUX'))
            unittest.addModuleCleanup(bench.leave, cls.scenes[-1])

    def test_incomplete_hello(self):
        self.assertEqual(len(self.scenes), len(Role))
        for scene in self.scenes:
            scene.patience = 90
            self.assert_answer(scene, HELLO[TIMED])
            took = scene.heard - scene.began
            self.assertTrue(29 < took < 45, f'{took} s')


def setUpModule():
    TimeoutOfHello.begin()
