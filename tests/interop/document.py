# SPDX-License-Identifier: GPL-2.0-or-later
"""
What the specification says, read out of its text: tables and byte vectors.

Tables are found by their captions.  A vector is a name with a colon at the
beginning of a literal block's line, and indented lines of hexadecimal digits.
"""

import re
from pathlib import Path

PATH = Path(__file__).resolve().parents[2] / 'docs/interop/migration-mux.rst'
VECTOR = re.compile(r'^  ([a-z0-9-]+):\n((?:    [0-9a-f ]+\n)+)', re.M)
CELL = re.compile(r'^ {3}(\*| ) - ', re.M)


def plain(cell: str) -> str:
    """A cell without markup and references to footnotes."""
    text = re.sub(r'\[#\w+\]_', '', ' '.join(cell.split()))
    return text.replace('``', '').replace('*', '').strip()


def table(caption: str, text: str | None = None) -> list[list[str]]:
    """The rows of a list-table, without the header."""
    text = PATH.read_text(encoding='utf-8') if text is None else text
    found = re.search(r'^\.\. list-table:: ' + re.escape(caption)
                      + r'\n(?: {3}:.*\n)*\n((?: {3}.*\n|\n)+)', text, re.M)
    if not found:
        raise LookupError(f'{PATH}: no table "{caption}"')
    rows = []
    parts = CELL.split(found.group(1))[1:]
    for mark, cell in zip(parts[::2], parts[1::2]):
        if mark == '*':
            rows.append([])
        rows[-1].append(plain(cell))
    if len({len(row) for row in rows}) != 1:
        raise LookupError(f'{PATH}: "{caption}" has rows of several lengths')
    return rows[1:]


def vectors() -> dict[str, bytes]:
    """All byte vectors."""
    found = VECTOR.findall(PATH.read_text(encoding='utf-8'))
    result = {name: bytes.fromhex(digits) for name, digits in found}
    if len(result) != len(found):
        raise LookupError(f'{PATH}: a vector\'s name is used twice')
    return result
