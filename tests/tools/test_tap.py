# SPDX-License-Identifier: GPL-2.0-or-later
"""What tap.py makes of a file of test cases."""

import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

TAP = Path(__file__).with_name('tap.py')
CASES = """
import unittest

BEGUN = []


def setUpModule():
    BEGUN.append(True)


class Case(unittest.TestCase):

    def test_good(self):
        self.assertTrue(BEGUN)

    def test_parts(self):
        for number in range(3):
            with self.subTest(number=number):
                self.assertNotEqual(number, 1)
"""


class TapTest(unittest.TestCase):

    def run_cases(self, text: str) -> tuple[int, list[str]]:
        """The status, and the lines that are no diagnostics."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, 'test_cases.py')
            path.write_text(text)
            done = subprocess.run([sys.executable, TAP, path], text=True,
                                  stdout=subprocess.PIPE, check=False)
        return done.returncode, [line for line in done.stdout.splitlines()
                                 if not line.startswith('#')]

    def test_results(self):
        status, lines = self.run_cases(CASES)
        self.assertEqual(status, 1)
        self.assertEqual(lines, ['1..2', 'ok 1 Case.test_good',
                                 'not ok 2 Case.test_parts'])

    def test_module_that_cannot_begin(self):
        status, lines = self.run_cases(
            CASES.replace('BEGUN.append(True)', 'raise OSError'))
        self.assertEqual(status, 1)
        self.assertIn('not ok 0 setUpModule (test_cases)', lines)


if __name__ == '__main__':
    unittest.main()
