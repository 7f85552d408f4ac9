# SPDX-License-Identifier: GPL-2.0-or-later
"""
The manual's page for users names QEMU's messages as the code has them.
Needs no QEMU.
"""

import re
import unittest

import document

TOP = document.PATH.parents[2]
PAGE = TOP / 'docs/system/migration-mux.rst'
SECTION = re.compile(r'^Messages\n~+\n(.*?)^After a lost handover\n~+\n',
                     re.M | re.S)
TERM = re.compile(r'^``(.+)``$', re.M)
STRING = r'"(?:[^"\\\n]|\\.)*"'
# Literals that follow each other, some of them in macros like PRIu64
STRINGS = re.compile(rf'{STRING}(?:\s+(?:PRI\w+|{STRING}))*')
JOINTS = re.compile(r'"\s+(?:(PRI\w)\w+(?:\s+")?|")')
FORMAT = re.compile(r'%[-+0#.\d*]*[lz]*(?:PRI)?[a-zA-Z]')
VARIABLE = '...'


def source() -> str:
    """QEMU's code in this repository: overlay files, and lines added."""
    files = [path for folder in ('migration', 'nbd')
             for path in sorted((TOP / folder).rglob('*.[ch]'))]
    patches = sorted((TOP / 'patches').rglob('*.c.patch'))
    return '\n'.join([path.read_text() for path in files] +
                     [line[1:] for path in patches
                      for line in path.read_text().splitlines()
                      if line.startswith('+')])


def messages() -> list[str]:
    """All string literals; what is filled in becomes VARIABLE."""
    return [FORMAT.sub(VARIABLE, JOINTS.sub(r'\1', found).strip('"'))
            for found in STRINGS.findall(source())]


class Messages(unittest.TestCase):

    def test_messages(self):
        page = PAGE.read_text(encoding='utf-8')
        terms = TERM.findall(SECTION.search(page).group(1))
        self.assertGreater(len(terms), 40)
        self.assertEqual(len(terms), len(set(terms)))
        code = messages()
        self.assertIn(f'timed out after {VARIABLE} s waiting for {VARIABLE}',
                      code)
        for term in terms:
            with self.subTest(term):
                # An error of the host follows some messages
                self.assertTrue(self.is_in(term, code) or self.is_in(
                    term.removesuffix(f': {VARIABLE}'), code))

    @staticmethod
    def is_in(term: str, code: list[str]) -> bool:
        """What a time limit awaits is a string of its own."""
        awaited = term.removeprefix('waiting for ')
        return any(awaited in text for text in code)


if __name__ == '__main__':
    unittest.main()
