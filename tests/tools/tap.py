#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs the unittest cases of a file and prints TAP."""

import argparse
import importlib.util
import sys
import unittest
from pathlib import Path


class TapResult(unittest.TestResult):
    """Prints each result as it comes."""

    def _line(self, test, good, detail='', directive=''):
        name = '.'.join(test.id().split('.')[-2:])
        print('ok' if good else 'not ok', self.testsRun, name + directive)
        print(''.join(f'# {line}\n' for line in detail.splitlines()), end='',
              flush=True)

    def addSuccess(self, test):
        self._line(test, True)

    def addFailure(self, test, err):
        super().addFailure(test, err)
        self._line(test, False, self.failures[-1][1])

    def addError(self, test, err):
        super().addError(test, err)
        self._line(test, False, self.errors[-1][1])

    def addSkip(self, test, reason):
        self._line(test, True, directive=f' # SKIP {reason}')

    def addSubTest(self, test, subtest, err):
        if err:     # the test itself reports nothing then
            self.addFailure(test, err)


def chosen(tests, part):
    """The tests with `part` in FILE.CLASS.TEST."""
    for test in tests:
        if isinstance(test, unittest.TestSuite):
            yield from chosen(test, part)
        elif part in test.id():
            yield test


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--only', default='', metavar='PART',
                        help='only tests with PART in FILE.CLASS.TEST')
    parser.add_argument('file', type=Path)
    args = parser.parse_args()
    path = args.file
    sys.path.insert(0, str(path.parent))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module     # where unittest finds setUpModule()
    spec.loader.exec_module(module)
    tests = unittest.TestSuite(chosen(
        unittest.defaultTestLoader.loadTestsFromModule(module), args.only))
    print(f'1..{tests.countTestCases()}', flush=True)
    sys.exit(not tests.run(TapResult()).wasSuccessful())


if __name__ == '__main__':
    main()
