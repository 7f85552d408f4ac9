# SPDX-License-Identifier: GPL-2.0-or-later
"""
Two network namespaces with a link between them: a veth pair with a token
bucket, or two tun devices with a process that delays packets.  Needs root.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from .model import BenchError

HOSTS = ('198.51.100.1', '198.51.100.2')        # reserved for documentation
BUFFER = 64 << 20       # bytes of a socket, for links with a long delay


def missing(*more: str) -> str:
    """Why there can be no such network here; empty: there can."""
    if os.geteuid():
        return 'needs root'
    tools = [tool for tool in ('ip', 'tc') if not shutil.which(tool)]
    if tools:
        return f'needs {", ".join(tools)}'
    absent = [path for path in more if not Path(path).exists()]
    return f'needs {", ".join(absent)}' if absent else ''


def run(*argv: str) -> None:
    """Raises BenchError."""
    done = subprocess.run(argv, text=True, check=False,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode:
        raise BenchError(f'{" ".join(argv)}: {done.stdout.strip()}')


class Network:
    """Namespaces `names`, with HOSTS; use it in a `with` statement."""

    def __init__(self, kind: str):
        self.names = tuple(f'mux-bench-{os.getpid()}-{kind}{side}'
                           for side in 'ab')

    def __enter__(self):
        try:
            for name in self.names:
                run('ip', 'netns', 'add', name)
                run('ip', '-n', name, 'link', 'set', 'lo', 'up')
            self._connect()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        for name in self.names:
            subprocess.run(['ip', 'netns', 'del', name], check=False,
                           stderr=subprocess.DEVNULL)

    def prefix(self, side: int) -> tuple[str, ...]:
        """What to put before a command to run it in a namespace."""
        return ('ip', 'netns', 'exec', self.names[side])

    @property
    def arguments(self) -> str:
        """Arguments of mux-bench, which is run with prefix(0)."""
        return f'--tcp --host {HOSTS[0]} --peer-netns {self.names[1]}'

    def _connect(self) -> None:
        raise NotImplementedError

    def _up(self, device: str) -> None:
        for name, host in zip(self.names, HOSTS):
            run('ip', '-n', name, 'address', 'add', f'{host}/24', 'dev',
                device)
            run('ip', '-n', name, 'link', 'set', device, 'up')


class Shaped(Network):
    """A link with a bandwidth."""

    def __init__(self, mbit: int):
        super().__init__('s')
        self._mbit = mbit

    def _connect(self) -> None:
        a, b = self.names
        run('ip', '-n', a, 'link', 'add', 'bench0', 'type', 'veth', 'peer',
            'name', 'bench0', 'netns', b)
        self._up('bench0')
        for name in self.names:
            run('ip', 'netns', 'exec', name, 'tc', 'qdisc', 'add', 'dev',
                'bench0', 'root', 'tbf', 'rate', f'{self._mbit}mbit', 'burst',
                '128k', 'latency', '50ms')


class Delayed(Network):
    """A link with a bandwidth and a round-trip time."""

    def __init__(self, mbit: int, round_trip_ms: float):
        super().__init__('d')
        self._arguments = [str(mbit), str(round_trip_ms / 2)]
        self._process = None

    def _connect(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).parent / 'delay.py'),
             *self.names, *self._arguments], stdout=subprocess.PIPE, text=True)
        if self._process.stdout.readline().strip() != 'ready':
            raise BenchError('no tun devices can be made')
        self._up('bench0')
        for name in self.names:
            for direction in 'rw':
                run('ip', 'netns', 'exec', name, 'sysctl', '-qw',
                    f'net.ipv4.tcp_{direction}mem=4096 262144 {BUFFER}')

    def __exit__(self, *_):
        if self._process:
            self._process.terminate()
            self._process.wait()
            self._process.stdout.close()
        super().__exit__()
