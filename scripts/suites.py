# SPDX-License-Identifier: GPL-2.0-or-later
"""
Test suites: the steps of a suite, how their results are counted, and the
runner, which runs two suites at a time and reports.
"""

import json
import re
import shlex
import signal
import subprocess
import threading
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path

from jobs import (SANITIZER_REPORT, TOP, Interrupted, Jobs, Live, Progress,
                  clock, excerpt, number_of_tests, relative)

TAP_LINE = re.compile(r'^(not )?ok\b([^#\n]*)(?:# *(\w+))?', re.M)
SKIPPED = re.compile(r'^ok \d+ -? ?(\S+).*# *SKIP', re.M | re.I)
TAP_BAIL = re.compile(r'^Bail out! *(.*)', re.M)
TAP_PLAN = re.compile(r'^1\.\.(\d+)', re.M)
SHOWN = 10                      # failures per suite in the report


@dataclass
class Failure:
    name: str
    part: str = ''              # the T= that selects it; '': the whole suite


@dataclass
class Counts:
    passed: int = 0
    skipped: int = 0
    failures: list = field(default_factory=list)

    @property
    def failed(self):
        return len(self.failures)

    @property
    def tests(self):
        return self.passed + self.failed + self.skipped

    def fail(self, name, part=''):
        self.failures.append(Failure(name, part))

    def add(self, other):
        self.passed += other.passed
        self.skipped += other.skipped
        self.failures += other.failures


def count_tap(text, part='', status=0):
    """
    Count TAP results.  Missing results count as one failure, unless the
    program timed out (status None).  `part` is the T= of all tests, or a
    regular expression that extracts it from a test's name.
    """
    counts = Counts()
    for failed, name, directive in TAP_LINE.findall(text):
        name = re.sub(r'^\d*[ -]*', '', name.strip())
        if directive.upper() == 'SKIP':
            counts.skipped += 1
        elif not failed:
            counts.passed += 1
        elif isinstance(part, str):
            counts.fail(name, part)
        else:
            found = part.search(name)
            counts.fail(name, found.group(1) if found else '')
    plan, bail = TAP_PLAN.search(text), TAP_BAIL.search(text)
    if bail and counts.failed:
        pass                    # it is the reason for that failure
    elif bail or status is not None and \
            plan and int(plan.group(1)) > counts.tests:
        why = bail.group(1) if bail else ended(status)
        planned = plan.group(1) if plan else '?'
        counts.fail(f'{why}, after {counts.tests} of {planned} tests',
                    part if isinstance(part, str) else '')
    return counts


def ended(status):
    """Describe the exit status of a program."""
    if status >= 0:
        return f'exit status {status}'
    return f'ended by signal {signal.Signals(-status).name}'


def count_meson(build):
    """Count the log of `meson test`: the TAP of each test, or its result."""
    counts = Counts()
    log = Path(build, 'meson-logs/testlog.json')
    for line in log.read_text(encoding='utf-8').splitlines():
        test = json.loads(line)
        status = test.get('returncode') or 0
        one = count_tap(test.get('stdout') or '', test['name'],
                        None if test['result'] == 'TIMEOUT' else status)
        bad = test['result'] not in ('OK', 'SKIP', 'EXPECTEDFAIL')
        if bad and (not one.failed or test['result'] == 'TIMEOUT'):
            one.fail(f'{test["name"]}: {test["result"]}', test['name'])
        elif not one.tests:
            one.skipped += test['result'] == 'SKIP'
            one.passed += test['result'] != 'SKIP'
        counts.add(one)
    return counts


def last_line(text):
    """The last non-empty line, which shows what was running."""
    return ([line for line in text.splitlines() if line] or [''])[-1]


@dataclass
class Step:
    """One command of a suite."""
    argv: list
    cwd: Path = TOP
    env: dict = field(default_factory=dict)
    count: object = 'tap'       # or 'none', or a meson build directory
    part: object = ''           # see count_tap()
    unskipped: object = None    # regular expression of tests that must run
    may_be_empty: bool = False  # a plan of no tests is no failure

    @property
    def program(self):
        """The program's name; for a Python script, the script's."""
        first = Path(self.argv[0]).name
        return Path(self.argv[1]).name if first.startswith('python') else first

    def run(self, log, jobs, left):
        """Run the command, for `left` seconds at most."""
        started = log.tell()
        if isinstance(self.count, Path):
            # Do not count the results of an earlier run
            (self.count / 'meson-logs/testlog.json').unlink(missing_ok=True)
        status = jobs.run(self.argv, log, left, self.cwd, self.env)
        output = Path(log.name).read_bytes()[started:].decode(errors='replace')
        counts = self._count(output, status)
        program = self.program
        part = self.part if isinstance(self.part, str) else ''
        if status is None:
            counts.fail(f'{program}: timed out after {left:.0f} s; '
                        f'last line: "{last_line(output)}"', part)
        elif status and not counts.failed:
            counts.fail(f'{program}: {ended(status)}', part)
        elif skipped := self._wrongly_skipped(output):
            counts.fail(f'{skipped} was skipped', part)
        elif self.count != 'none' and not counts.tests and not (
                self.may_be_empty and TAP_PLAN.search(output)):
            counts.fail(f'{program}: no test ran', part)
        return counts

    def _wrongly_skipped(self, output):
        return self.unskipped and next(
            filter(self.unskipped.search, SKIPPED.findall(output)), None)

    def _count(self, output, status):
        if self.count == 'tap':
            return count_tap(output, self.part, status)
        try:
            return Counts() if self.count == 'none' else \
                count_meson(self.count)
        except FileNotFoundError:
            return Counts()


@dataclass
class Reports:
    """The step after tests under a sanitizer: each report is a failure."""
    stem: Path                  # of the files' names
    count: object = 'tap'

    def run(self, log, _jobs, _left):
        counts = Counts()
        for path in sorted(self.stem.parent.glob(f'{self.stem.name}.*')):
            text = path.read_text(errors='replace')
            for found in SANITIZER_REPORT.finditer(text):
                counts.fail(found.group())
            if counts.failed:
                log.write(f'## {path}\n{text}'.encode())
        counts.passed = int(not counts.failed)
        return counts


@dataclass
class Suite:
    name: str
    steps: object               # called when the suite starts: -> [Step]
    targets: object = None      # called before the build: -> [target]
    minutes: int = 10           # time limit, far above the usual time


@dataclass
class Result:
    suite: str
    state: str                  # ok, FAILED, not run, interrupted
    counts: Counts = field(default_factory=Counts)
    seconds: float = 0


class Runner:
    """
    Runs suites in two lanes.  Those that do not need a build of QEMU run in
    parallel with the build; the others follow, in the given order.
    """

    def __init__(self, suites, logs, pattern='', build=None, live=None):
        self.suites = suites
        self.waiting = list(suites)     # not yet taken by a lane
        self.logs = logs
        self.pattern = pattern
        self.build = build      # (suites that need it) -> the build suite
        self.live = live or Live()
        self.jobs = Jobs()
        self.lock = threading.Lock()
        self.built = threading.Event()
        self.build_ok = True
        self.active = {}        # suite name -> (start time, Progress)
        self.results = []
        self.began = time.monotonic()

    # Running

    def run(self, limit):
        """Run the suites, within `limit` seconds; False if interrupted."""
        self.end = self.began + limit
        threads = [threading.Thread(target=self._guard, args=(lane,),
                                    daemon=True)
                   for lane in (self._build_lane, self._lane)]
        for thread in threads:
            thread.start()
        try:
            while any(thread.is_alive() for thread in threads):
                time.sleep(0.2)
                self._show()
        except KeyboardInterrupt:
            self.jobs.end()
            for thread in threads:
                thread.join(10)
            return False
        return True

    def _show(self):
        now = time.monotonic()
        with self.lock:
            active = sorted(self.active.items())
        if active:
            self.live.show('running: ' + ', '.join(
                ' '.join(filter(None, [name, progress.read(),
                                       clock(now - start)]))
                for name, (start, progress) in active))

    def _guard(self, lane):
        """Report an unexpected exception in a lane as a failure."""
        try:
            lane()
        except Interrupted:
            pass
        except Exception as error:      # pylint: disable=broad-except
            traceback.print_exc()
            counts = Counts()
            counts.fail(repr(error))
            self._finish(Result('scripts/check', 'FAILED', counts))

    def _build_lane(self):
        try:
            built_for = [suite for suite in self.suites if suite.targets]
            if built_for:
                self.build_ok = False
                self.build_ok = self._run_suite(self.build(built_for))
        finally:
            self.built.set()
        self._lane()

    def _lane(self):
        while self.waiting:
            suite = self._next_suite()
            if not suite:
                self.built.wait()
            elif suite.targets and not self.build_ok:
                self._finish(Result(suite.name, 'not run'))
            else:
                self._run_suite(suite)

    def _next_suite(self):
        """The first suite that need not wait for the build, or None."""
        with self.lock:
            for suite in self.waiting:
                if not suite.targets or self.built.is_set():
                    self.waiting.remove(suite)
                    return suite
        return None

    def _run_suite(self, suite):
        started = time.monotonic()
        path = self.logs / f'{suite.name}.log'
        counts, interrupted = Counts(), False
        with open(path, 'w+b') as log:
            with self.lock:
                self.active[suite.name] = started, Progress(path)
            self.live.say(f'{suite.name}: started')
            try:
                self._run_steps(suite, log, counts)
            except Interrupted:
                interrupted = True
        with self.lock:
            del self.active[suite.name]
        self._finish(Result(
            suite.name, 'interrupted' if interrupted else
            'FAILED' if counts.failed else 'ok', counts,
            time.monotonic() - started))
        if interrupted:
            raise Interrupted
        return not counts.failed

    def _run_steps(self, suite, log, counts):
        end = min(time.monotonic() + 60 * suite.minutes, self.end)
        try:
            steps = suite.steps(self.pattern)
        except (OSError, subprocess.SubprocessError) as error:
            counts.fail(str(error))
            return
        for number, step in enumerate(steps):
            left = end - time.monotonic()
            if left <= 0:
                counts.fail(f'out of time: {len(steps) - number} of its '
                            f'{len(steps)} commands did not run')
                return
            one = Counts()
            try:
                one = step.run(log, self.jobs, left)
            except OSError as error:    # e.g. no such program
                one.fail(str(error), step.part
                         if isinstance(step.part, str) else '')
            counts.add(one)
            if one.failed and step.count == 'none':
                return
        if not counts.tests and (not steps or steps[-1].count != 'none'):
            counts.fail(f'no test has "{self.pattern}" in its name'
                        if self.pattern else 'the suite has no tests')

    # Reporting

    def _finish(self, result):
        counts = result.counts
        with self.lock:
            self.results.append(result)
        if result.state == 'not run':
            self.live.say(f'{result.suite}: not run, the build failed')
            return
        text = f'{result.suite}: {result.state}'
        if counts.failed:
            text += f', {counts.failed} of {counts.tests} failed'
        elif counts.tests:
            text += f', {number_of_tests(counts.tests)}'
        self.live.say(f'{text} ({clock(result.seconds)})')
        path = self._log(result)
        if counts.failed and path.exists():
            self.live.say('\n'.join(
                excerpt(self._text(result))
                + [f'  (the whole log: {relative(path)})']))

    def _log(self, result):
        return self.logs / f'{result.suite}.log'

    def _text(self, result):
        return self._log(result).read_text(encoding='utf-8', errors='replace')

    def _again(self, result, part=''):
        """The command that repeats a suite, or a part of it."""
        names = [result.suite] if result.suite != 'build' else \
            [suite.name for suite in self.suites if suite.targets]
        part = part or self.pattern
        return 'make ' + ' '.join(f'check-{name}' for name in names) + (
            f' T={shlex.quote(part)}' if part else '')

    def table(self):
        """A line for each suite and one for the total."""
        order = ['build', *(suite.name for suite in self.suites)]
        results = sorted(self.results, key=lambda result: order.index(
            result.suite) if result.suite in order else len(order))
        total = Counts()
        for result in results:
            total.add(result.counts)
        done = {result.suite for result in results}
        results += [Result(name, 'not run') for name in order[1:]
                    if name not in done]
        states = {result.state for result in results}
        worst = [state for state in ('interrupted', 'FAILED', 'not run', 'ok')
                 if state in states]
        rows = [('suite', 'result', 'tests', 'failed', 'skipped', 'time')]
        rows += [(result.suite, result.state, result.counts.tests,
                  result.counts.failed, result.counts.skipped,
                  clock(result.seconds)) for result in results]
        rows += [('total', worst[0] if worst else 'FAILED', total.tests,
                  total.failed, total.skipped,
                  clock(time.monotonic() - self.began))]
        return [f'{suite:14}{state:12}' + ''.join(
            f'{number:>8}' for number in numbers)
                for suite, state, *numbers in rows]

    def failures(self):
        """The failures, their logs, and the commands that repeat them."""
        lines = []
        for result in self.results:
            if result.state == 'interrupted':
                lines += ['', f'{result.suite} was interrupted: see '
                          f'{relative(self._log(result))}; last line: '
                          f'"{last_line(self._text(result))}"']
            if not result.counts.failed:
                continue
            lines += ['', f'{result.suite} failed: see '
                      f'{relative(self._log(result))}']
            for failure in result.counts.failures[:SHOWN]:
                lines.append(f'  {failure.name}')
                if failure.part and failure.part != self.pattern:
                    lines.append('      '
                                 + self._again(result, failure.part))
            more = result.counts.failed - SHOWN
            if more > 0:
                lines.append(f'  ... and {more} more')
            lines.append(f'  all of it: {self._again(result)}')
        return lines

    def summary(self):
        """Print the report; returns whether all suites passed."""
        total = Counts()
        for result in self.results:
            total.add(result.counts)
        ran = {result.suite for result in self.results if result.state == 'ok'}
        good = total.passed and all(suite.name in ran
                                    for suite in self.suites)
        self.live.say('\n'.join(['', *self.table(), *self.failures(), '',
                                 f'{total.passed} passed, '
                                 f'{total.failed} failed']))
        return bool(good and not total.failed)
