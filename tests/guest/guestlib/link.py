# SPDX-License-Identifier: GPL-2.0-or-later
"""
A network of its own, whose bandwidth can be set while it is in use.

It is a network namespace with a loopback interface and a token bucket, so
it needs root and Linux.  Processes started with `prefix` are in it; this
one is not.
"""

import os
import shutil
import subprocess

QUEUE_MS = 400                  # what waits longer is dropped
BURST = 32 * 1024
ADDRESS = '192.0.2.1'           # reserved for documentation


class LinkError(Exception):
    """The network could not be made."""


class Link:
    """The network; it goes when its last process ends."""

    def __init__(self):
        self._holder = subprocess.Popen(['unshare', '--net', 'cat'],
                                        stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE)
        try:
            self._await_namespace()
            self._run('ip', 'link', 'set', 'lo', 'mtu', '1500', 'up')
            # getaddrinfo() knows no IPv4 where there is but 127.0.0.1
            self._run('ip', 'address', 'add', ADDRESS, 'dev', 'lo')
        except LinkError:
            self.close()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    @staticmethod
    def missing() -> str:
        """Why there can be no such network here; empty: there can."""
        if os.geteuid():
            return 'not root'
        tools = [tool for tool in ('unshare', 'nsenter', 'ip', 'tc')
                 if not shutil.which(tool)]
        if tools:
            return f'no {", ".join(tools)}'
        try:
            with Link() as link:
                link.limit(100)
        except LinkError as err:
            return str(err)
        return ''

    @property
    def prefix(self) -> tuple[str, ...]:
        """What to put before a command to run it in there."""
        return ('nsenter', f'--net=/proc/{self._holder.pid}/ns/net')

    def limit(self, mbit: int) -> None:
        """Let no more than so many Mbit/s through, both directions added."""
        self._run('tc', 'qdisc', 'replace', 'dev', 'lo', 'root', 'tbf',
                  'rate', f'{mbit}mbit', 'burst', str(BURST),
                  'latency', f'{QUEUE_MS}ms')

    def close(self) -> None:
        with self._holder:
            pass                # closes its input, which ends it

    def _await_namespace(self) -> None:
        """cat answers, and does so in the new network."""
        try:
            self._holder.stdin.write(b'.')
            self._holder.stdin.flush()
        except OSError:
            pass
        if self._holder.stdout.read(1) != b'.':
            raise LinkError('unshare --net was refused')

    def _run(self, *argv: str) -> None:
        done = subprocess.run([*self.prefix, *argv], text=True, check=False,
                              stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT)
        if done.returncode:
            raise LinkError(f'{" ".join(argv)}: {done.stdout.strip()}')
