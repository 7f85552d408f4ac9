#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""
Migrations of a running Linux guest with two disks, as TAP.

Each case checks that no write that the guest had acknowledged is lost.
"""

import argparse
import os
import re
import sys
import time
from pathlib import Path

from guestlib import migrate, netwatch
from guestlib.testbed import ERRORS, Options, Testbed, end_in_good_order
from guestlib.vm import VM

LOCALHOST = {'type': 'inet', 'host': '127.0.0.1', 'port': '0'}
SMALL = Options(disk_mb=512, memory_mb=384, fill_mb=96, dirty_mb=32)
SETTLE = 5                      # seconds until what is closed is gone


class Cases:
    """The cases; each returns what is wrong."""

    def __init__(self, build: Path, work: Path, way):
        self.build = build
        self.work = work
        self.way = way

    def bed(self) -> Testbed:
        return Testbed(self.build, self.work, SMALL)

    def migrate(self, bed: Testbed, source: VM, address: dict):
        """One migration to a new destination and its whole check."""
        destination = bed.start_destination()
        watch = netwatch.NetWatch({source.name: source.pid,
                                   destination.name: destination.pid})
        migration = self.way(source, destination, address)
        migration.listen()
        migration.run()
        seen = watch.stop()
        bed.await_writes(destination)
        reports = bed.finish(destination)
        faults = [fault for report in reports for fault in report.faults]
        if self.way is migrate.OneSocket:
            faults += self.network(seen, migration)
        bed.keep = bool(faults)
        return faults + bed.log.faults

    @staticmethod
    def network(seen: netwatch.Sightings, migration) -> list[str]:
        names = migration.source.name, migration.destination.name
        if migration.address['type'] == 'unix':
            return netwatch.one_unix_connection(seen, *names,
                                                migration.address['path'])
        return netwatch.one_tcp_connection(seen, *names,
                                           int(migration.address['port']))

    def tcp(self) -> list[str]:
        """two disks and RAM over one TCP connection"""
        with self.bed() as bed:
            return self.migrate(bed, bed.boot_source(), LOCALHOST)

    def unix(self) -> list[str]:
        """two disks and RAM over one unix connection"""
        with self.bed() as bed:
            path = str(bed.folder / 'migrate.sock')
            return self.migrate(bed, bed.boot_source(),
                                {'type': 'unix', 'path': path})

    def cancel(self) -> list[str]:
        """cancelled while disks are copied: nothing is left, a second try
        completes"""
        with self.bed() as bed:
            source = bed.boot_source()
            before = belongings(source)
            destination = bed.start_destination()
            migration = self.way(source, destination, LOCALHOST)
            migration.listen()
            migration.start()
            migration.hold_in_disk_phase()
            migration.cancel()
            destination.wait(20)
            bed.await_writes(source)
            faults = what_is_left(source, before)
            return faults + self.migrate(bed, source, LOCALHOST)


def belongings(vm: VM) -> dict[str, list[str]]:
    """What a migration must not leave behind in a QEMU."""
    folder = f'/proc/{vm.pid}/fd'
    links = (os.readlink(f'{folder}/{fd}') for fd in os.listdir(folder))
    return {
        'job': sorted(migrate.jobs_of(vm)),
        'node': sorted(node['node-name'] for node in
                       vm.qmp.cmd('query-named-block-nodes', flat=True)),
        'export': sorted(export['id'] for export in
                         vm.qmp.cmd('query-block-exports')),
        'descriptor': sorted(re.sub(r':\[\d+\]', '', link) for link in links),
    }


def what_is_left(vm: VM, before: dict[str, list[str]]) -> list[str]:
    """Compare with what there was before, giving it time to go."""
    deadline = time.monotonic() + SETTLE
    while (now := belongings(vm)) != before and time.monotonic() < deadline:
        time.sleep(0.2)
    return [f'{kind}s of {vm.name}: {before[kind]} before, {found} after'
            for kind, found in now.items() if found != before[kind]]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--build', type=Path, required=True, metavar='DIR')
    parser.add_argument('--work', type=Path, metavar='DIR')
    parser.add_argument('--two-sockets', action='store_true',
                        help='test the classic way: a check of the tests')
    parser.add_argument('case', nargs='*', help='tcp, unix, cancel')
    args = parser.parse_args()
    args.build = args.build.resolve()
    args.work = (args.work or args.build / 'guest').resolve()
    return args


def main() -> int:
    args = arguments()
    end_in_good_order()
    cases = Cases(args.build, args.work, migrate.TwoSockets
                  if args.two_sockets else migrate.OneSocket)
    names = args.case or ['tcp', 'unix', 'cancel']
    print(f'1..{len(names)}', flush=True)
    failed = 0
    for number, name in enumerate(names, 1):
        case = getattr(cases, name)
        began = time.monotonic()
        try:
            faults = case()
        except ERRORS as err:
            faults = [str(err)]
        failed += bool(faults)
        for fault in faults:
            print('# ' + fault.replace('\n', '\n# '))
        title = ' '.join(case.__doc__.split())
        print(f'{"not ok" if faults else "ok"} {number} - {name}: {title}\n'
              f'# {time.monotonic() - began:.1f} s', flush=True)
    return 1 if failed else 0


if __name__ == '__main__':
    sys.exit(main())
