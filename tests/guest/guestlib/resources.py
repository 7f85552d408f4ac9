# SPDX-License-Identifier: GPL-2.0-or-later
"""The resources that a migration must not leave behind in a QEMU."""

import contextlib
import os
import re
import time
from collections import Counter

from .vm import VM

SETTLE = 30                     # seconds until resources are released
ENDED = ('finished', 'reset')


def belongings(vm: VM) -> dict[str, list[str]]:
    """All resources that could be left behind, by kind."""
    folder = f'/proc/{vm.pid}'
    nodes = vm.qmp.cmd('query-named-block-nodes', flat=True)
    return {
        'job': [job['id'] for job in vm.qmp.cmd('query-jobs')],
        'node': [node['node-name'] for node in nodes],
        'bitmap': [f'on {node["node-name"]}' for node in nodes
                   for _ in node.get('dirty-bitmaps', ())],
        'export': [export['id'] for export in
                   vm.qmp.cmd('query-block-exports')],
        'yank instance': [str(instance) for instance in
                          vm.qmp.cmd('query-yank')],
        'stream': [stream['name'] for stream in
                   vm.qmp.cmd('query-migrate').get('streams', ())
                   if stream['state'] not in ENDED],
        'descriptor': _descriptors(folder),
        'thread': _threads(folder),
    }


def _descriptors(folder: str) -> list[str]:
    """What they refer to; ignores one that is closed meanwhile."""
    links = []
    for fd in os.listdir(f'{folder}/fd'):
        with contextlib.suppress(FileNotFoundError):
            links.append(re.sub(r':\[\d+\]', '',
                                os.readlink(f'{folder}/fd/{fd}')))
    return links


def _threads(folder: str) -> list[str]:
    """
    Their names.  A thread has its creator's name until it sets its own, so
    compare only the number of threads.
    """
    names = []
    for task in os.listdir(f'{folder}/task'):
        with contextlib.suppress(OSError):      # it has just ended
            with open(f'{folder}/task/{task}/comm', encoding='ascii') as comm:
                names.append(comm.read().strip())
    return sorted(names)


def surplus(kind: str, found: list[str], other: list[str]) -> list[str]:
    """The resources of a kind in `found` that are not in `other`."""
    if kind == 'thread' and len(found) <= len(other):
        return []
    return list((Counter(found) - Counter(other)).elements())


def belongings_at_rest(vm: VM) -> dict[str, list[str]]:
    """
    belongings(), as soon as they do not change any more: an earlier migration
    may still be closing its connection, and resources that are released later
    would hide as many new ones.
    """
    deadline = time.monotonic() + SETTLE
    last, now = None, belongings(vm)
    while now != last and time.monotonic() < deadline:
        time.sleep(0.1)
        last, now = now, belongings(vm)
    return now


def what_is_left(vm: VM, before: dict[str, list[str]],
                 succeeded: bool = False) -> list[str]:
    """
    Compare with the resources before a migration that failed, and wait until
    they are released.  Idle threads may end at any time.  After a migration
    that `succeeded` there may be less, since the devices of a guest that has
    left need fewer descriptors; and query-migrate shows the streams as they
    were before the connection was closed, or those of an older migration if
    there was no connection.
    """
    deadline = time.monotonic() + SETTLE
    while True:
        now = belongings(vm)
        if succeeded:
            now.pop('stream')
        faults = []
        for kind, found in now.items():
            more = surplus(kind, found, before[kind])
            less = surplus(kind, before[kind], found)
            if more or (less and not succeeded and
                        kind not in ('stream', 'thread')):
                faults.append(f'{kind}s of {vm.name}: new {more}, '
                              f'gone {less}')
        if not faults or time.monotonic() > deadline:
            return faults
        time.sleep(0.1)
