# SPDX-License-Identifier: GPL-2.0-or-later
"""
Every fault of the specification's tables is committed against a real QEMU, as
source and as destination: QEMU answers with the code of the table and the text
of the catalogue, reports the failure, and the guest of a source runs on.
"""

import re
import subprocess
import sys
import unittest
from pathlib import Path

import document
import faults
from checks import BUILD, SIZES, Bench, QEMUScene, QEMUTest, for_each
from muxpeer.frames import Code, Role
from scene import goaway
from vm import QEMU, make_images, work_folder

HELLO = dict(document.table('Faults of a HELLO'))
FRAME = dict(document.table('Faults of a frame'))
ENDS = dict(document.table('Faulty ends'))
CODES = HELLO | FRAME


def pattern(text: str, words: dict) -> str:
    """A text of the catalogue as a regular expression."""
    parts = re.split(r'\{(\w+)\}', text)
    for index in range(1, len(parts), 2):
        known = words.get(parts[index])
        parts[index] = r'\d+' if known is None else re.escape(str(known))
    parts[::2] = map(re.escape, parts[::2])
    return ''.join(parts) + r'\Z'


class FaultTest(QEMUTest):
    """A case is a fault's name."""

    def assert_answer(self, scene: QEMUScene, name: str, extra=None) -> None:
        """QEMU ends the connection with the fault's code and text."""
        got = goaway(scene.answers())
        self.assertIsNotNone(got, 'no GOAWAY')
        self.assertRegex(got[1], pattern(faults.text(name),
                                         {**scene.words(), **(extra or {})}))
        self.assertEqual(Code(got[0]).name, CODES[name])
        self.assert_failed(scene, got[1])


@for_each(faults.HELLOS, lambda case, role: role == Role.DESTINATION or
          case not in faults.ONLY_AT_SOURCE)
class HelloFaults(FaultTest):

    def check(self, case: str, role: Role) -> None:
        scene = self.to_qemu(role, faults.beginning(case, role))
        self.assert_answer(scene, case)


@for_each(faults.FRAMES, lambda case, role: role == Role.SOURCE or
          case not in faults.ONLY_AT_DESTINATION)
class FrameFaults(FaultTest):

    def check(self, case: str, role: Role) -> None:
        scene = self.to_qemu(role)
        extra = faults.commit(case, scene)
        self.assert_answer(scene, case, extra)


@for_each(faults.ENDS)
class Ends(FaultTest):

    def check(self, case: str, role: Role) -> None:
        scene = self.to_qemu(role, faults.beginning(case, role))
        faults.commit(case, scene)
        self.assert_failed(scene,
                           faults.text(case).format(**scene.words()))


class Catalogue(unittest.TestCase):
    """The specification's tables and the catalogue have the same faults."""

    def test_nothing_is_left_out(self):
        self.assertEqual(sorted(HELLO), sorted([*faults.HELLOS,
                                                *faults.TIMED]))
        self.assertEqual(sorted(FRAME), sorted(faults.FRAMES))
        self.assertEqual(sorted(ENDS), sorted(faults.ENDS))


class Command(QEMUTest):
    """peer.py commits faults by name."""

    PEER = [sys.executable, str(Path(__file__).with_name('peer.py'))]

    def test_names(self):
        listed = subprocess.run([*self.PEER, 'faults'], check=True, text=True,
                                capture_output=True).stdout
        self.assertEqual(sorted(listed.splitlines()),
                         sorted([*HELLO, *FRAME, *ENDS]))

    def peer(self, name: str, *options: str) -> subprocess.Popen:
        process = subprocess.Popen(
            [*self.PEER, 'fault', name, *map('{0[0]}={0[1]}'.format,
                                             SIZES.items()), *options],
            stdout=subprocess.PIPE, text=True)
        self.addCleanup(process.__exit__, None, None, None)
        return process

    def assert_answered(self, process, qemu, name: str, words: dict) -> None:
        """The peer shows what QEMU tells its user, too."""
        answer = process.stdout.read().strip()
        self.assertEqual(process.wait(), 0)
        self.assertRegex(answer, f'GOAWAY {CODES[name]}: '
                         + pattern(faults.text(name), words))
        self.assertIn(answer.partition(': ')[2],
                      qemu.wait_end()['error-desc'])

    def test_as_source(self):
        name = 'FIN_OK twice'
        with work_folder() as folder:
            make_images(Path(folder))
            qemu = QEMU(BUILD, Path(folder), 'destination', incoming=True)
        with qemu:
            process = self.peer(name, '--connect', f'--port={qemu.listen()}')
            self.assert_answered(process, qemu, name, {
                'peer': 'source', 'stream': "stream 'nbd-disk0' (id 5)"})

    def test_as_destination(self):
        name = 'length 39'
        process = self.peer(name, '--port=0')
        port = int(process.stdout.readline().split()[-1])
        self.bench.source.migrate(port)
        self.assert_answered(process, self.bench.source, name,
                             {'peer': 'destination'})


class TimeoutOfHello(FaultTest):
    """Begun with the module: the other tests fill the 30 seconds."""

    NAME, = faults.TIMED
    scenes = []

    @classmethod
    def begin(cls):
        bench = Bench()
        unittest.addModuleCleanup(bench.close)
        for role in Role:
            cls.scenes.append(bench.scene(
                role, faults.beginning(cls.NAME, role)))
            unittest.addModuleCleanup(bench.leave, cls.scenes[-1])

    def test_incomplete_hello(self):
        self.assertEqual(len(self.scenes), len(Role))
        for scene in self.scenes:
            self.assert_answer(scene, self.NAME)
            self.assertGreater(scene.last_byte_at - scene.began, 29)


def setUpModule():
    TimeoutOfHello.begin()
