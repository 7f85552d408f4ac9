# SPDX-License-Identifier: GPL-2.0-or-later
"""
Reads the rows that the campaign runs from the catalogue of faults,
tests/data/migration/mux-faults.ini, whose header describes the format.
"""

import configparser
import errno
import os
import re
from dataclasses import dataclass
from pathlib import Path

FILE = Path(__file__).resolve().parents[3] / \
    'tests/data/migration/mux-faults.ini'
PHASES = ('connect', 'disks', 'precopy', 'converge', 'switchover')
START = 'start'
NEVER = r'(?!)'                 # a pattern that matches nothing


def _load() -> configparser.ConfigParser:
    parser = configparser.ConfigParser(
        delimiters=('=',), comment_prefixes=('#',), interpolation=None,
        default_section='')
    parser.optionxform = str
    with open(FILE, encoding='utf-8') as file:
        parser.read_file(file)
    return parser


_FILE = _load()


def _split(value: str) -> list[str]:
    return [word.strip() for word in value.split(';') if word.strip()]


def _pattern(text: str, side: str) -> str:
    """Convert a text of the catalogue to a regular expression."""
    def meaning(match: re.Match) -> str:
        if match[1] == 'peer':
            return 'destination' if side == 'source' else 'source'
        return os.strerror(getattr(errno, match[1]))
    return re.escape(re.sub(r'\$(\w+)', meaning, text))


def causes(side: str, *names: str) -> str:
    """The pattern of an error of that side with one of these causes."""
    return '|'.join(_pattern(text, side) for name in names
                    for text in _split(_FILE['causes'][name]))


@dataclass(frozen=True)
class Row:
    """A fault of the catalogue."""

    name: str

    def get(self, key: str, phase: str = '', default: str = '') -> str:
        """The value for that phase, else the value for all phases."""
        keys = _FILE[self.name]
        return keys.get(f'{key}.{phase}', keys.get(key, default))

    def options(self, key: str) -> dict:
        """Options of blkdebug, in the form that QMP takes."""
        pairs = [word.split('=') for word in self.get(key).split(',') if word]
        return {name: int(value) if value.isdigit() else value
                for name, value in pairs}

    @property
    def phases(self) -> list[str]:
        """The phases in which the campaign injects the fault."""
        phases = _split(self.get('campaign'))
        return list(PHASES) if phases == ['all'] else phases

    @property
    def users(self) -> list[str]:
        """User actions that the campaign combines with the fault."""
        return _split(self.get('campaign-with'))

    @property
    def allows_user_action(self) -> bool:
        """
        Whether it can be combined with a user action: the source must still
        run, and a fault that the migration survives must not be prolonged.
        """
        end = self.get('end', default='failed')
        lasts = self.name.startswith(('freeze', 'silence'))
        return end != 'source-gone' and not (lasts and end == 'completed')

    def says(self, side: str, phase: str = '') -> str:
        """The pattern that the side's error matches in the campaign."""
        names = _split(self.get(f'campaign-{side}-says', phase))
        return causes(side, *names) if names else NEVER


def rows() -> list[Row]:
    """The rows that the campaign runs."""
    return [Row(name) for name in _FILE.sections()
            if 'campaign' in _FILE[name]]
