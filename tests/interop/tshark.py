# SPDX-License-Identifier: GPL-2.0-or-later
"""Wireshark's tshark with the dissector."""

import os
import shutil
import subprocess
from pathlib import Path

import document

SCRIPT = document.PATH.parents[2] / 'contrib/wireshark/qemu-migration-mux.lua'
TROUBLE = ('qmux.malformed || qmux.violation || qmux.failed || '
           'qmux.skipped || _ws.lua.error || _ws.malformed')


def tshark(capture: Path, *fields: str, only: str = 'qmux', passes: int = 1,
           options=()) -> list[list[list[str]]]:
    """For each packet, and each field, the list of its values."""
    # Some versions load no script for root, and without root nothing of
    # root's may be looked for
    script = shutil.copy(SCRIPT, capture.parent)
    capture.parent.chmod(0o755)
    unprivileged = {'user': 'nobody', 'group': 'nogroup',
                    'extra_groups': []} if os.geteuid() == 0 else {}
    argv = ['tshark', '-n', '-r', str(capture), '-X',
            f'lua_script:{script}', '-Y', only, '-T', 'fields',
            '-E', 'separator=/t', '-E', 'aggregator=;',
            *(['-2'] if passes == 2 else []), *options]
    for name in fields:
        argv += ['-e', name]
    result = subprocess.run(argv, check=True, capture_output=True, text=True,
                            env={'PATH': os.environ['PATH'],
                                 'HOME': str(capture.parent)},
                            **unprivileged)
    return [[value.split(';') if value else [] for value in line.split('\t')]
            for line in result.stdout.splitlines()]


def knows(field: str) -> bool:
    """Whether this version has a field of that name."""
    fields = subprocess.run(['tshark', '-G', 'fields'], check=True,
                            capture_output=True, text=True).stdout
    return f'\t{field}\t' in fields


def knows_handshake() -> bool:
    """Whether Wireshark's dissector for NBD is one of those with a name."""
    return knows('nbd.hnd.magic')


def info_column() -> str:
    """The field that is what a packet's line says."""
    return '_ws.col.info' if knows('_ws.col.info') else '_ws.col.Info'
