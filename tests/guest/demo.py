#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""
Migrate a running Linux guest with two disks over one TCP connection, show
the progress of each stream, and check that no acknowledged write was lost.

Everything runs on this machine, emulated, without privileges.  The exit
status is 0 only if all that is checked holds.
"""

import argparse
import sys
import time
from pathlib import Path

from guestlib import migrate, netwatch
from guestlib.display import Display
from guestlib.testbed import (ERRORS, Options, Testbed, TestbedError,
                              end_in_good_order)

LOCALHOST = {'type': 'inet', 'host': '127.0.0.1', 'port': '0'}
MIB = 1 << 20


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument('--build', type=Path, required=True, metavar='DIR',
                        help='the build directory with qemu-system-x86_64')
    parser.add_argument('--work', type=Path, metavar='DIR',
                        help='for images and the cached guest kernel\n'
                             '(default: guest/ in the build directory)')
    parser.add_argument('--two-sockets', action='store_true',
                        help='the classic way, with an NBD server')
    for name, value in vars(Options()).items():
        if isinstance(value, int):
            parser.add_argument(f'--{name.replace("_", "-")}', type=int,
                                default=value, metavar='N',
                                help=f'(default: {value})')
    args = parser.parse_args()
    args.build = args.build.resolve()
    args.work = (args.work or args.build / 'guest').resolve()
    return args


def options(args: argparse.Namespace) -> Options:
    return Options(**{name: getattr(args, name) for name, value in
                      vars(Options()).items() if isinstance(value, int)})


def say(text: str) -> None:
    print(text, flush=True)


def summary(outcome: migrate.Outcome, pause: float) -> None:
    say('\nThe connection carried')
    for name, size in sorted(outcome.streams.items()):
        say(f'  {name:12} {size / MIB:9.1f} MiB')
    say('Times')
    say(f'  disk phase   {outcome.disks:7.2f} s')
    say(f'  precopy      {outcome.ram:7.2f} s')
    say(f'  downtime     {outcome.downtime * 1000:7.0f} ms '
        f'({outcome.downtime_reported * 1000:.0f} ms by query-migrate; '
        f'longest pause between two\n{"":25}writes of the guest '
        f'{pause * 1000:.0f} ms)')
    say(f'  in all       {outcome.total:7.2f} s\n')


def check_network(seen: netwatch.Sightings, migration) -> list[str]:
    port = int(migration.address['port'])
    faults = netwatch.one_tcp_connection(seen, 'source', 'destination', port)
    for found in seen.sockets.values():
        say(f'  {found}')
    say(f'  (the kernel\'s tables, {seen.samples} times, '
        f'{seen.longest_gap * 1000:.0f} ms apart at most)')
    return [f'network: {fault}' for fault in faults]


def check_disks(reports) -> list[str]:
    faults = []
    for report in reports:
        say(f'  {report.name}: {report.records} acknowledged writes found, '
            f'{report.pages} other pages unchanged')
        faults += report.faults
    return faults


def demo(args: argparse.Namespace) -> list[str]:
    """Returns what is wrong."""
    way = migrate.TwoSockets if args.two_sockets else migrate.OneSocket
    with Testbed(args.build, args.work, options(args)) as bed:
        say('Booting a Linux guest that writes to its disks continuously ...')
        source = bed.boot_source()
        if not (args.two_sockets or migrate.supports_one_socket(source)):
            raise TestbedError(f'{args.build}: this QEMU\'s `migrate` knows '
                               'no channels of type nbd')
        destination = bed.start_destination()
        watch = netwatch.NetWatch({vm.name: vm.pid
                                   for vm in (source, destination)})
        migration = way(source, destination, LOCALHOST)
        migration.listen()
        say(f'Migrating it with {len(bed.config.disks)} disks '
            f'through 127.0.0.1:{migration.address["port"]} ...\n')
        began = time.monotonic()
        outcome = migration.run(Display())
        seen = watch.stop()
        bed.await_writes(destination)
        summary(outcome, bed.log.longest_pause(began))
        say('Sockets of both QEMUs during the migration:')
        faults = check_network(seen, migration)
        if args.two_sockets:
            faults = []         # more than one is how that way works
        say('\nDisks at the destination, where the guest now runs:')
        faults += check_disks(bed.finish(destination)) + bed.log.faults
        bed.keep = bool(faults)
        return faults


def main() -> int:
    args = arguments()
    end_in_good_order()
    try:
        faults = demo(args)
    except ERRORS as err:
        faults = [str(err)]
    except KeyboardInterrupt:
        return 130
    if faults:
        say('\nFAILED')
        for fault in faults:
            say(f'  {fault}')
        return 1
    say('\nNo acknowledged write was lost' +
        ('.' if args.two_sockets else ', and there was one connection.'))
    return 0


if __name__ == '__main__':
    sys.exit(main())
