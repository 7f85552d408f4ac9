# SPDX-License-Identifier: GPL-2.0-or-later
"""
Migrations through ssh: one connection by exec, or two forwarded sockets.

The sshd is one of our own, on a port of the loopback interface, with keys of
its own; nothing of the system's configuration is used.
"""

import contextlib
import getpass
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path

from . import ways
from .model import BenchError

HOST = '127.0.0.1'
START_S = 20
PATH = f'{os.environ.get("PATH", "")}:/usr/sbin'
PRIVILEGE_SEPARATION = ('sshd', Path('/run/sshd'))


def missing() -> str:
    """Why there can be no sshd here; empty: there can."""
    tools = [tool for tool in ('sshd', 'ssh', 'ssh-keygen')
             if not shutil.which(tool, path=PATH)]
    if tools:
        return f'needs {", ".join(tools)}'
    if not os.geteuid():
        user, folder = PRIVILEGE_SEPARATION
        try:
            pwd.getpwnam(user)
        except KeyError:
            return f'sshd needs the user {user}'
        if not folder.is_dir():
            return f'sshd needs {folder}'
    return ''


def free_port() -> int:
    """A port on which nothing listens, for now."""
    with socket.socket() as sock:
        sock.bind((HOST, 0))
        return sock.getsockname()[1]


def run(*argv: str) -> None:
    """Raises BenchError."""
    done = subprocess.run(argv, check=False, text=True, timeout=60,
                          stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                          stderr=subprocess.PIPE)
    if done.returncode:
        raise BenchError(f'{argv[0]}: {done.stderr.strip()}')


class Sshd:
    """Runs within a `with` statement."""

    def __enter__(self):
        self._stack = contextlib.ExitStack()
        self._folder = Path(self._stack.enter_context(
            tempfile.TemporaryDirectory(prefix='bench-ssh-')))
        self._port = free_port()
        try:
            self._start()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_):
        self.end_forwarding()
        self._stack.close()

    def _start(self) -> None:
        for name in ('host', 'user'):
            run('ssh-keygen', '-q', '-t', 'ed25519', '-N', '', '-f',
                str(self._folder / name))
        process = subprocess.Popen(
            [shutil.which('sshd', path=PATH), '-D', '-e', '-f', '/dev/null',
             '-p', str(self._port), '-h', str(self._folder / 'host'),
             *self._options(ListenAddress=HOST, StrictModes='no', UsePAM='no',
                            PidFile='none', PermitRootLogin='yes',
                            AuthorizedKeysFile=self._folder / 'user.pub')],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=open(self._folder / 'log', 'wb'))    # it logs to the end
        self._stack.callback(process.wait)
        self._stack.callback(process.terminate)
        deadline = time.monotonic() + START_S
        while True:
            with socket.socket() as sock:
                if sock.connect_ex((HOST, self._port)) == 0:
                    return
            if process.poll() is not None or time.monotonic() > deadline:
                raise BenchError('sshd does not start: ' +
                                 (self._folder / 'log').read_text())
            time.sleep(0.05)

    @staticmethod
    def _options(**options) -> list[str]:
        return [word for name, value in options.items()
                for word in ('-o', f'{name}={value}')]

    def _ssh(self, *more: str) -> list[str]:
        return [shutil.which('ssh'), '-F', '/dev/null', '-p', str(self._port),
                '-i', str(self._folder / 'user'),
                *self._options(StrictHostKeyChecking='no', BatchMode='yes',
                               UserKnownHostsFile='/dev/null',
                               LogLevel='ERROR'),
                *more, f'{getpass.getuser()}@{HOST}']

    def command(self, port: int) -> list[str]:
        """A command whose standard input and output are a connection there."""
        return self._ssh('-W', f'{HOST}:{port}')

    @property
    def _control(self) -> str:
        return str(self._folder / 'control')

    def forward(self, ports: list[int]) -> list[int]:
        """Local ports that are forwarded to these, through one ssh."""
        self.end_forwarding()
        local = [free_port() for _ in ports]
        words = [word for own, port in zip(local, ports)
                 for word in ('-L', f'{HOST}:{own}:{HOST}:{port}')]
        # Returns when they listen
        run(*self._ssh('-f', '-N', '-M', '-S', self._control,
                       *self._options(ExitOnForwardFailure='yes'), *words))
        return local

    def end_forwarding(self) -> None:
        """End the ssh of forward(), if there is one."""
        if os.path.exists(self._control):
            run(*self._ssh('-S', self._control, '-O', 'exit'))


def over(sshd: Sshd) -> tuple[type, type]:
    """The baseline and the variant."""

    class Forwarded(ways.TwoSockets):
        """Two sockets, forwarded by one ssh."""

        name = 'two forwarded sockets'

        def listen(self) -> None:
            super().listen()
            main, nbd = sshd.forward([int(self.address['port']),
                                      int(self._nbd['port'])])
            self.address['port'] = str(main)
            self._nbd['port'] = str(nbd)

    class Exec(ways.OneSocket):
        """One connection, by exec."""

        name = 'one connection by exec'
        _listening = False

        def listen(self) -> None:
            super().listen()
            self._listening = True

        def _main_channel(self) -> dict:
            if not self._listening:
                return super()._main_channel()
            return {'channel-type': 'main', 'addr': {
                'transport': 'exec',
                'args': sshd.command(int(self.address['port']))}}

    return Forwarded, Exec
