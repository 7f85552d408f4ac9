# SPDX-License-Identifier: GPL-2.0-or-later
"""Tests of scripts/check: counting, limits, progress and reports."""

import importlib.machinery
import importlib.util
import io
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
import unittest
import unittest.mock
from pathlib import Path

TOP = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(TOP / 'scripts'))
# pylint: disable=wrong-import-position
import jobs                                                     # noqa: E402
import suites                                                   # noqa: E402
from suites import Failure, Reports, Runner, Step, Suite        # noqa: E402

HUNG = 8                        # seconds in which a busy machine starts sh


def shell(script: str, **more) -> Step:
    return Step(['sh', '-c', script], **more)


class Terminal(io.StringIO):

    def isatty(self) -> bool:
        return True


class Folder(unittest.TestCase):
    """Base class: creates a folder for logs."""

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)

    def wait_for(self, condition) -> None:
        end = time.monotonic() + 60
        while not condition():
            self.assertLess(time.monotonic(), end)
            time.sleep(0.02)


class Counting(Folder):

    def test_results(self):
        counts = suites.count_tap('1..4\nok 1 /a\n# ok 9 /x\nnot ok 2 /b/c\n'
                                  'ok 3 /d # SKIP no KVM\nok 4 - e: f\n',
                                  re.compile(r'(/\S+)'))
        self.assertEqual((counts.passed, counts.skipped), (2, 1))
        self.assertEqual(counts.failures, [Failure('/b/c', '/b/c')])

    def test_missing_results(self):
        counts = suites.count_tap('1..3\nok 1 a\n', 'x')
        self.assertEqual(counts.failures, [
            Failure('exit status 0, after 1 of 3 tests', 'x')])
        self.assertFalse(suites.count_tap('1..3\nok 1\n', status=None)
                         .failures)

    def test_abort(self):
        for text, why in (
                ('', 'ended by signal SIGABRT, after 1 of 3 tests'),
                ('Bail out! x == y\n', 'x == y, after 1 of 3 tests'),
                ('not ok 2 b\nBail out! x == y\n', 'b')):
            with self.subTest(text=text):
                counts = suites.count_tap(f'1..3\nok 1 a\n{text}', status=-6)
                self.assertEqual(counts.failures, [Failure(why)])

    def test_meson(self):
        (self.folder / 'meson-logs').mkdir()
        tests = [{'name': 'one', 'result': 'OK', 'stdout': '1..1\nok 1 /a\n'},
                 {'name': 'two', 'result': 'TIMEOUT', 'stdout': 'ok 1 /b\n'},
                 {'name': 'three', 'result': 'SKIP'},
                 {'name': 'four', 'result': 'ERROR', 'returncode': -11,
                  'stdout': '1..2\nok 1 /c\n'}]
        (self.folder / 'meson-logs/testlog.json').write_text(
            '\n'.join(map(json.dumps, tests)))
        counts = suites.count_meson(self.folder)
        self.assertEqual((counts.passed, counts.skipped), (3, 1))
        self.assertEqual(counts.failures, [
            Failure('two: TIMEOUT', 'two'),
            Failure('ended by signal SIGSEGV, after 1 of 2 tests', 'four')])


class Steps(Folder):

    def run_step(self, step: Step, left: float = 60) -> suites.Counts:
        with open(self.folder / 'log', 'w+b') as log:
            return step.run(log, jobs.Jobs(), left)

    def test_exit_status(self):
        counts = self.run_step(shell('echo ok 1 a; exit 3', part='p'))
        self.assertEqual(counts.failures, [Failure('sh: exit status 3', 'p')])

    def test_script(self):
        counts = self.run_step(Step([sys.executable, '/no/such/script.py']))
        self.assertEqual(counts.failures,
                         [Failure('script.py: exit status 2')])

    def test_no_test(self):
        for script, empty, failed in (('true', False, 1), ('true', True, 1),
                                      ('echo 1..0', False, 1),
                                      ('echo 1..0', True, 0)):
            with self.subTest(script=script, empty=empty):
                step = shell(script, may_be_empty=empty)
                self.assertEqual(self.run_step(step).failed, failed)

    def test_skipped(self):
        """Some tests must not be skipped."""
        script = 'echo 1..2; echo "ok 1 /a # SKIP no x"; echo ok 2 /b'
        for name, failed in (('/a', 1), ('/b', 0)):
            with self.subTest(name=name):
                step = shell(script, unskipped=re.compile(name))
                self.assertEqual(self.run_step(step).failed, failed)

    def test_results_of_an_earlier_run(self):
        (self.folder / 'meson-logs').mkdir()
        (self.folder / 'meson-logs/testlog.json').write_text(
            json.dumps({'name': 'one', 'result': 'OK'}))
        counts = self.run_step(shell('true', count=self.folder))
        self.assertEqual(counts.failures, [Failure('sh: no test ran')])

    def test_hung(self):
        """It is killed with its children, and reported."""
        pid = self.folder / 'pid'
        counts = self.run_step(shell(
            f'sleep 1000 & echo $! >{pid}; echo 1..2; echo ok 1 a; sleep 1000',
            part='p'), left=HUNG)
        self.assertEqual(counts.passed, 1)
        self.assertEqual(counts.failures, [Failure(
            f'sh: timed out after {HUNG} s; last line: "ok 1 a"', 'p')])
        self.wait_for(lambda: self.is_over(int(pid.read_text())))

    def test_leftover(self):
        pid = self.folder / 'pid'
        self.run_step(shell(f'sleep 1000 & echo $! >{pid}; echo ok 1'))
        self.wait_for(lambda: self.is_over(int(pid.read_text())))

    @staticmethod
    def is_over(pid: int) -> bool:
        try:
            return ') Z' in Path(f'/proc/{pid}/stat').read_text()
        except (FileNotFoundError, ProcessLookupError):
            return True

    def test_sanitizer_report(self):
        (self.folder / 'asan-report.7').write_text(
            '=7=\n==7==ERROR: AddressSanitizer: heap-use-after-free on x\n')
        counts = self.run_step(Reports(self.folder / 'asan-report'))
        self.assertEqual(counts.failed, 1)
        self.assertIn('heap-use-after-free', counts.failures[0].name)


class Running(Folder):

    def run_suites(self, *which: Suite, pattern='', build='true',
                   limit=60) -> tuple[bool, str]:
        """Run suites; returns whether they passed, and the output."""
        out = io.StringIO()
        self.runner = Runner(
            which, self.folder, pattern, lambda _: Suite(
                'build', lambda _: [shell(build, count='none')]),
            jobs.Live(out))
        self.assertTrue(self.runner.run(limit))
        good = self.runner.summary()
        return good, out.getvalue()

    @staticmethod
    def suite(name: str, *scripts: str, needs=None, minutes=1,
              part='') -> Suite:
        return Suite(name, lambda _: [shell(script, part=part)
                                      for script in scripts], needs, minutes)

    def row(self, name: str) -> list[str]:
        row, = [line.split() for line in self.runner.table()
                if line.split()[0] == name]
        return row

    def test_good(self):
        good, said = self.run_suites(
            self.suite('a', 'echo ok 1; echo "ok 2 # SKIP x"'),
            self.suite('b', 'echo ok 1', needs=lambda _: ['x']))
        self.assertTrue(good)
        self.assertEqual(self.row('a')[1:5], ['ok', '2', '0', '1'])
        self.assertEqual(self.row('build')[1:4], ['ok', '0', '0'])
        self.assertEqual(self.row('total')[1:5], ['ok', '3', '0', '1'])
        self.assertEqual(said.splitlines()[-1], '2 passed, 0 failed')
        self.assertNotIn('make', said)

    def test_failed(self):
        good, said = self.run_suites(
            self.suite('a', 'echo "ok 1"; echo "not ok 2 /x/y"; echo "# why"',
                       part=re.compile(r'(/\S+)')),
            self.suite('b', 'echo ok 1'))
        self.assertFalse(good)
        self.assertEqual(self.row('a')[1:5], ['FAILED', '2', '1', '0'])
        self.assertEqual(self.row('total')[1:5], ['FAILED', '3', '1', '0'])
        self.assertIn('  | # why\n', said)
        end = said[said.index('a failed: see'):]
        self.assertEqual(end.splitlines(), [
            f'a failed: see {self.folder}/a.log', '  /x/y',
            '      make check-a T=/x/y', '  all of it: make check-a', '',
            '2 passed, 1 failed'])

    def test_part_for_a_shell(self):
        _, said = self.run_suites(self.suite('a', 'echo "not ok 1 round 2: x"',
                                             part=re.compile('(round .:)')))
        self.assertIn("make check-a T='round 2:'\n", said)

    def test_part_of_a_part(self):
        _, said = self.run_suites(self.suite('a', 'echo ok 1; false'),
                                  pattern='p')
        self.assertIn('all of it: make check-a T=p\n', said)

    def test_nothing_so_named(self):
        good, said = self.run_suites(self.suite('a'), pattern='p')
        self.assertFalse(good)
        self.assertIn('no test has "p" in its name', said)

    def test_build_failed(self):
        good, said = self.run_suites(
            self.suite('a', 'echo ok 1'),
            self.suite('b', 'echo ok 1', needs=lambda _: ['x']),
            build='echo "FAILED: x.o"; echo error; exit 1')
        self.assertFalse(good)
        self.assertEqual(self.row('a')[1], 'ok')
        self.assertEqual(self.row('b')[1:3], ['not', 'run'])
        self.assertIn('  | error\n', said)
        self.assertIn('all of it: make check-b\n', said)

    def test_beside_the_build(self):
        """Suites that need no build do not wait for it; the others do."""
        flag = self.folder / 'flag'
        good, _ = self.run_suites(
            self.suite('b', f'[ -e {flag} ] && echo ok 1',
                       needs=lambda _: ['x']),
            self.suite('a', f'touch {flag}; echo ok 1'),
            build=f'until [ -e {flag} ]; do sleep 0.05; done')
        self.assertTrue(good)

    def test_limit_of_a_suite(self):
        good, said = self.run_suites(self.suite(
            'a', 'echo ok 1; sleep 1000', 'echo ok 1', minutes=HUNG / 60))
        self.assertFalse(good)
        self.assertRegex(said, r'sh: timed out after \d+ s; last line: "ok 1"')
        self.assertIn('out of time: 1 of its 2 commands did not run', said)

    def test_limit_of_the_run(self):
        good, said = self.run_suites(self.suite('a', 'sleep 1000'), limit=1)
        self.assertFalse(good)
        self.assertRegex(said, r'timed out after \d+ s|out of time')

    def test_missing_program(self):
        good, said = self.run_suites(
            Suite('a', lambda _: [Step(['/no/such/program'])]))
        self.assertFalse(good)
        self.assertIn('/no/such/program', said)

    def test_interrupted(self):
        log = self.folder / 'a.log'
        runner = Runner([self.suite('a', 'echo ok 1; sleep 1000', 'true')],
                        self.folder, live=jobs.Live(io.StringIO()))
        thread = threading.Thread(target=runner.run, args=(60,))
        thread.start()
        self.wait_for(lambda: log.exists() and b'ok 1\n' in log.read_bytes())
        runner.jobs.end()
        thread.join()
        self.runner = runner
        self.assertEqual(self.row('a')[1], 'interrupted')
        self.assertFalse(runner.summary())
        self.assertIn('last line: "ok 1"', '\n'.join(runner.failures()))


class Showing(Folder):

    def test_progress(self):
        log = self.folder / 'log'
        progress = jobs.Progress(log)
        self.assertEqual(progress.read(), '')
        for text, state in (('## ninja\n', ''), ('[1/3', ''),
                            ('0] Compiling x\n', '[1/30]'),
                            ('warning: 2/3 y\n', '[1/30]'),
                            ('[2/30] Linking\n', '[2/30]'),
                            ('## ./test\n', ''), ('ok 1 x\n', '1 test'),
                            ('not ok 2 x\n# y\n', '2 tests'),
                            (' 3/15 unit - test OK\n', '[3/15]')):
            with log.open('a') as file:
                file.write(text)
            with self.subTest(text=text):
                self.assertEqual(progress.read(), state)

    def test_terminal(self):
        out = Terminal()
        with unittest.mock.patch.dict(os.environ, TERM='xterm'):
            live = jobs.Live(out)
        live.show('one')
        live.show('x' * 1000)
        live.say('end')
        self.assertEqual(out.getvalue().count('\n'), 1)
        self.assertTrue(out.getvalue().endswith('\r\033[Kend\n'))
        self.assertLess(len(out.getvalue()), 900)

    def test_no_terminal(self):
        out = io.StringIO()
        live = jobs.Live(out)
        live.show('one')
        self.assertEqual(out.getvalue(), '')
        live.EVERY = 0
        live.show('two')
        self.assertEqual(out.getvalue(), 'two\n')

    def test_excerpt_of_a_build(self):
        log = '\n'.join(['[1/9] x'] * 50 + ['FAILED: y.o', 'y.c: error']
                        + ['ninja: build stopped'])
        self.assertEqual(jobs.excerpt(log), [
            '  | FAILED: y.o', '  | y.c: error', '  | ninja: build stopped'])


class Lists(unittest.TestCase):
    """The lists of suites in the Makefile and in scripts/check."""

    def test_lists(self):
        path = TOP / 'scripts/check'
        loader = importlib.machinery.SourceFileLoader('check', str(path))
        spec = importlib.util.spec_from_loader('check', loader)
        check = importlib.util.module_from_spec(spec)
        loader.exec_module(check)
        text = (TOP / 'Makefile').read_text()
        listed = re.findall(r'^CHECK(?:_CI)? := (.*)', text, re.M)
        self.assertEqual(len(listed), 2)
        self.assertEqual(sorted(' '.join(listed).split()),
                         sorted(suite.name for suite in check.SUITES))

    def test_unknown_suite(self):
        done = subprocess.run([TOP / 'scripts/check', 'nothing'], check=False,
                              stderr=subprocess.PIPE, text=True)
        self.assertEqual(done.returncode, 2)
        self.assertIn("'nothing'", done.stderr)


if __name__ == '__main__':
    unittest.main()
