# SPDX-License-Identifier: GPL-2.0-or-later
"""
Runs commands, writes their output to a log and shows their progress: on a
terminal in one line that is rewritten in place, elsewhere in one line per
minute.  Used by scripts/build and scripts/check.
"""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

TOP = Path(__file__).resolve().parent.parent
BUILD = TOP / 'build'
QEMU = BUILD / 'qemu'
LOGS = BUILD / 'logs'
# What `make build` builds, and what the tests run
PROGRAMS = ['qemu-system-x86_64', 'qemu-img', 'qemu-io', 'qemu-nbd',
            'storage-daemon/qemu-storage-daemon']

CLEAR_LINE = '\r\033[K'
# ninja: "[12/345] Compiling ..."; meson: " 1/15 unit - ..."
STEP = re.compile(r'\[? *(\d+)/(\d+)\]? ')
RESULT = re.compile(r'(not )?ok\b')
WIDTH = 200                     # maximum width of a line in an excerpt
COMMAND = '## '                 # marks the command line in a log
SANITIZER_REPORT = re.compile(
    r'^.*(ERROR: \w+Sanitizer|WARNING: ThreadSanitizer).*$', re.M)


def ninja(folder, targets):
    """The command that builds these targets."""
    return ['ninja', '-C', folder, *targets]


def clock(seconds):
    """Minutes and seconds."""
    return f'{int(seconds) // 60}:{int(seconds) % 60:02}'


def number_of_tests(number):
    return f'{number} test{"" if number == 1 else "s"}' if number else ''


def relative(path):
    """The path to print: relative if it is in the repository."""
    path = Path(path)
    return path.relative_to(TOP) if path.is_relative_to(TOP) else path


class Live:
    """Prints permanent lines, and one progress line."""

    EVERY = 60                  # seconds between lines without a terminal

    def __init__(self, out=None):
        self._out = out or sys.stdout
        self._terminal = (self._out.isatty()
                          and os.environ.get('TERM', 'dumb') != 'dumb')
        self._lock = threading.Lock()
        self._shown = time.monotonic()

    def say(self, text):
        """Print permanent lines."""
        with self._lock:
            clear = CLEAR_LINE if self._terminal else ''
            print(f'{clear}{text}', file=self._out, flush=True)

    def show(self, text):
        """Update the progress line."""
        with self._lock:
            now = time.monotonic()
            if self._terminal:
                width = shutil.get_terminal_size().columns - 1
                print(f'{CLEAR_LINE}{text[:width]}', end='', file=self._out,
                      flush=True)
            elif now - self._shown >= self.EVERY:
                self._shown = now
                print(text, file=self._out, flush=True)


class Progress:
    """The progress of a command, read from its log."""

    def __init__(self, path):
        self._path = path
        self._position = 0
        self._tests = 0
        self._state = ''

    def read(self):
        """Returns "[12/345]" for a build, "12 tests" for tests, else ''."""
        try:
            with open(self._path, 'rb') as log:
                log.seek(self._position)
                new = log.read()
        except OSError:
            return ''
        new = new[:new.rfind(b'\n') + 1]
        self._position += len(new)
        for line in new.decode(errors='replace').splitlines():
            if line.startswith(COMMAND):
                self._state = number_of_tests(self._tests)
            elif found := STEP.match(line):
                self._state = f'[{found[1]}/{found[2]}]'
            elif RESULT.match(line):
                self._tests += 1
                self._state = number_of_tests(self._tests)
        return self._state


class Interrupted(Exception):
    """The run was interrupted before the command ended."""


class Jobs:
    """The commands that are running."""

    def __init__(self):
        self._lock = threading.Lock()
        self._running = set()
        self._ended = False

    def _start(self, argv, log, cwd, env):
        with self._lock:
            if self._ended:
                raise Interrupted
            process = subprocess.Popen(
                argv, cwd=cwd, env={**os.environ, **(env or {})},
                stdin=subprocess.DEVNULL, stdout=log,
                stderr=subprocess.STDOUT, start_new_session=True)
            self._running.add(process)
        return process

    def run(self, argv, log, timeout=None, cwd=TOP, env=None,
            tick=lambda: None):
        """
        Run a command, append its output to the file `log`, and call tick()
        meanwhile.  Returns the exit status, or None after a timeout.  Kills
        all processes that are left in the command's process group.
        """
        argv = [str(word) for word in argv]
        log.write(f'{COMMAND}{" ".join(argv)}\n'.encode())
        log.flush()
        process = self._start(argv, log, cwd, env)
        end = None if timeout is None else time.monotonic() + timeout
        try:
            status = None
            while status is None and (end is None or time.monotonic() < end):
                tick()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    status = process.wait(0.2)
        finally:
            self._kill(process, signal.SIGKILL)
            process.wait()
            with self._lock:
                self._running.discard(process)
            log.seek(0, os.SEEK_END)
        if self._ended:
            raise Interrupted
        return status

    @staticmethod
    def _kill(process, number):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)

    def end(self, patience=5):
        """End all commands; run() then raises Interrupted."""
        with self._lock:
            self._ended = True
            for process in self._running:
                self._kill(process, signal.SIGTERM)
        end = time.monotonic() + patience
        while self._running and time.monotonic() < end:
            time.sleep(0.1)
        with self._lock:
            for process in self._running:
                self._kill(process, signal.SIGKILL)


def end_on_signals():
    """Make SIGTERM and SIGHUP end the program as Ctrl-C does."""
    def interrupt(_number, _frame):
        raise KeyboardInterrupt
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupt)


def excerpt(text, most=60):
    """The lines of a log around its failures; else its last lines."""
    lines = text.splitlines()
    wanted = set()
    for index, line in enumerate(lines):
        if SANITIZER_REPORT.match(line):
            wanted.update(range(index, index + 40))
        elif line.startswith('FAILED: '):       # from ninja
            wanted.update(range(index, index + 25))
        elif line.startswith(('not ok', 'Bail out!')):
            # QEMU's programs print the reason before the result, Python's
            # after it
            wanted.update(range(index - 6, index + 12))
    kept = [line for index, line in enumerate(lines) if index in wanted]
    return [f'  | {line if len(line) <= WIDTH else line[:WIDTH] + " ..."}'
            for line in kept[:most] or lines[-25:]]
