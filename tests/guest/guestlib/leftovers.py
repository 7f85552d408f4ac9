# SPDX-License-Identifier: GPL-2.0-or-later
"""What a migration must not leave behind in a QEMU."""

import os
import re
import time
from collections import Counter

from .vm import VM

SETTLE = 8                      # seconds until what is closed is gone
# Workers of the thread pool come, with a name of their own a little later,
# and go after 10 s of idleness; that is no matter of the migration.
ENDED = ('finished', 'reset')
ANY_TIME = re.compile(r'worker|qemu-system')


def belongings(vm: VM) -> dict[str, list[str]]:
    """All that could be left, by its kind."""
    folder = f'/proc/{vm.pid}'
    links = (os.readlink(f'{folder}/fd/{fd}')
             for fd in os.listdir(f'{folder}/fd'))
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
        'descriptor': [re.sub(r':\[\d+\]', '', link) for link in links],
        'thread': _threads(folder),
    }


def _threads(folder: str) -> list[str]:
    names = []
    for task in os.listdir(f'{folder}/task'):
        try:
            with open(f'{folder}/task/{task}/comm', encoding='ascii') as comm:
                names.append(comm.read().strip())
        except OSError:         # it has just ended
            pass
    return [name for name in names if not ANY_TIME.match(name)]


def what_is_left(vm: VM, before: dict[str, list[str]],
                 succeeded: bool = False) -> list[str]:
    """
    Compare with what there was before a migration that failed, giving it
    time to go.  After one that `succeeded` there may be less, since devices
    of a guest that is gone need fewer descriptors; and query-migrate has the
    streams as they were before the connection was closed, or those of an
    older migration if there was no connection.
    """
    deadline = time.monotonic() + SETTLE
    while True:
        now = belongings(vm)
        if succeeded:
            now.pop('stream')
        faults = []
        for kind, found in now.items():
            more = Counter(found) - Counter(before[kind])
            less = Counter(before[kind]) - Counter(found)
            if more or (less and not succeeded and kind != 'stream'):
                faults.append(f'{kind}s of {vm.name}: new {list(more)}, '
                              f'gone {list(less)}')
        if not faults or time.monotonic() > deadline:
            return faults
        time.sleep(0.1)
