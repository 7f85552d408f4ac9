# SPDX-License-Identifier: GPL-2.0-or-later
"""What the tests of a real QEMU have in common."""

import contextlib
import os
import socket
import unittest
from pathlib import Path

from muxpeer.connection import MuxError
from muxpeer.frames import Role
from scene import Scene
from vm import DISK_SIZE, DISKS, LISTENING, QEMU, make_images, work_folder

SIZES = {disk: DISK_SIZE for disk in DISKS}
MULTIFD = 2                     # QEMU's default of multifd-channels
BUILD = Path(os.environ.get(
    'INTEROP_BUILD', Path(__file__).resolve().parents[2] / 'build/qemu'))


class QEMUScene(Scene):
    """A scene with a QEMU that the test has started."""

    def __init__(self, qemu: QEMU, sock, role: Role,
                 hello: bytes | None = None, multifd: int = 0):
        super().__init__(sock, role, SIZES, hello, multifd)
        self.qemu = qemu


class Bench:
    """A QEMU that is a source, again and again, and many destinations."""

    def __init__(self):
        self._stack = contextlib.ExitStack()
        self.folder = Path(self._stack.enter_context(work_folder()))
        make_images(self.folder)
        self.listener = self._stack.enter_context(
            socket.create_server(('127.0.0.1', 0)))
        self.source = self._stack.enter_context(
            QEMU(BUILD, self.folder, 'source'))
        self.source.wait_for_guest()

    def scene(self, role: Role, hello: bytes | None = None,
              capabilities=()) -> QEMUScene:
        """
        A connection; `role` is the part that the test plays.  The
        capabilities are for a destination.
        """
        if role == Role.DESTINATION:
            self.source.migrate(self.listener.getsockname()[1])
            return QEMUScene(self.source, self.listener.accept()[0], role,
                             hello)
        with work_folder() as folder:
            make_images(Path(folder))
            qemu = QEMU(BUILD, Path(folder), 'destination', incoming=True)
        for name in capabilities:
            qemu.set_capability(name)
        sock = socket.create_connection(('127.0.0.1', qemu.listen()))
        return QEMUScene(qemu, sock, role, hello,
                         MULTIFD if 'multifd' in capabilities else 0)

    def leave(self, scene: 'QEMUScene') -> None:
        """Cut a connection; a destination ends with it, a source stays."""
        scene.connection.drop()
        if scene.qemu is self.source:
            scene.qemu.wait_end()
        else:
            scene.qemu.__exit__()

    def close(self) -> None:
        self._stack.close()


class QEMUTest(unittest.TestCase):
    """Tests with a bench of their own."""

    @classmethod
    def setUpClass(cls):
        """Start the source and wait until its guest runs."""
        cls.bench = Bench()
        cls.addClassCleanup(cls.bench.close)

    def to_qemu(self, role: Role, hello: bytes | None = None,
                capabilities=()) -> QEMUScene:
        """As Bench.scene(), and left when the test is over."""
        scene = self.bench.scene(role, hello, capabilities)
        self.addCleanup(self.bench.leave, scene)
        return scene

    def assert_failed(self, scene: QEMUScene, text: str) -> None:
        """
        QEMU reports the failure, with that text in it, and at the source
        no job is left and its guest runs on.  A destination that has not
        accepted the migration waits on, and reports nothing.
        """
        scene.connection.drop()
        if scene.role == Role.SOURCE and not scene.accepted:
            self.assert_listens(scene)
            return
        answer = scene.qemu.wait_end()
        self.assertEqual(answer['status'], 'failed')
        self.assertIn(text, answer['error-desc'])
        if scene.role == Role.DESTINATION:
            scene.qemu.wait_for_guest()

    def again(self, scene: QEMUScene,
              hello: bytes | None = None) -> QEMUScene:
        """Another connection to the same destination."""
        sock = socket.create_connection(scene.connection.peer)
        other = QEMUScene(scene.qemu, sock, scene.role, hello, scene.multifd)
        self.addCleanup(other.connection.drop)
        return other

    def assert_listens(self, scene: QEMUScene) -> None:
        """A destination is as before, and accepts a good source."""
        self.assertEqual(scene.qemu.status(), LISTENING)
        self.assertEqual(scene.qemu.qmp.cmd('query-status')['status'],
                         'inmigrate')
        good = self.again(scene)
        try:
            good.main()
        except MuxError as error:
            self.fail(error)


def for_each(cases, possible=lambda case, role: True):
    """
    Adds to a class a test method for each case and each role that is played,
    if it is possible: SOURCE means that a QEMU is the destination.
    """
    def decorate(cls):
        for role in Role:
            for number, case in enumerate(cases):
                if not possible(case, role):
                    continue

                def method(self, case=case, role=role):
                    self.check(case, role)
                side = Role(3 - role).name.lower()
                method.__name__ = (f'test_{side}_{number:02}_'
                                   + '_'.join(str(case).split()))
                setattr(cls, method.__name__, method)
        return cls
    return decorate
