#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""
Migrations of a running Linux guest with two disks, as TAP.

Each case checks that no write that the guest had acknowledged is lost.
"""

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path

from guestlib import layout, migrate, netwatch
from guestlib.configuration import BY_NAME
from guestlib.resources import (belongings, belongings_at_rest, surplus,
                                what_is_left)
from guestlib.link import Link
from guestlib.qmp import QMPError
from guestlib.relay import Relay, RelayError
from guestlib.testbed import (ERRORS, Options, Testbed, TestbedError,
                              end_in_good_order)
from guestlib.vm import Own, VM

LOCALHOST = {'type': 'inet', 'host': '127.0.0.1', 'port': '0'}
SMALL = Options(disk_mb=512, memory_mb=384, fill_mb=96, dirty_mb=32)
# For many migrations: small to be fast, but with space for the records
TRAVELLER = Options(disk_mb=256, memory_mb=192, fill_mb=48, dirty_mb=16,
                    writes_per_s=50)
# A link slower than the guest's disks and the least downtime it can have
SLOW = Options(disk_mb=32, memory_mb=128, fill_mb=16, dirty_mb=8,
               dirty_mb_per_s=0, writes_per_s=20)
FIRST_MBIT = 200                # until little RAM is pending
LITTLE_RAM = 40 << 20
LINK_MBIT = 50
LOAD_MB = 20                    # per second and disk
LOAD_FACTOR = 3                 # least ratio of bytes copied to bytes filled
DOWNTIME_MS = 500
SLACK_MS = 100
# What the guest does, or what happens to it, while disks are copied
ACTOR = Options(disk_mb=64, memory_mb=128, fill_mb=16, dirty_mb=8,
                writes_per_s=50)
WRITES = 20                     # of each disk
WRITES_UNTIL_FULL = 150
SCRIBBLERS = 6                  # of each disk
LONG_DOWNTIME_MS = 20000
CASES = ('tcp', 'unix', 'cancel', 'pingpong', 'reset', 'poweroff', 'full',
         'unplug')
# Not run by default: the result depends on the machine's speed, or on chance
OTHER_CASES = ('downtime', 'latency', 'scribble')
FAR = Options(disk_mb=16, memory_mb=128, fill_mb=16, dirty_mb=8,
              dirty_mb_per_s=1, writes_per_s=20,
              storage=BY_NAME['virtio-scsi'])
NUMBERS_OF_DISKS = (1, 8, 32)
DELAYS_MS = (0, 10, 30)         # of each direction
LIMIT_MS = 300
WRITTEN_DISKS = 8               # at most: see init.c
ROUND_TRIPS = 4                 # that a switchover may take in addition


class Cases:
    """The test cases; each returns a list of errors."""

    def __init__(self, build: Path, work: Path, way, rounds: int,
                 converge: float):
        self.build = build
        self.converge = converge
        self.work = work
        self.way = way
        self.rounds = rounds

    def bed(self, options=SMALL, prefix=()) -> Testbed:
        return Testbed(self.build, self.work, options, prefix)

    def migrate(self, bed: Testbed, source: VM, address: dict):
        """Migrate to a new destination, and check everything."""
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
        """cancelled while disks are copied: no resources are left, a second
        migration completes"""
        with self.bed() as bed:
            source = bed.boot_source()
            before = belongings_at_rest(source)
            destination = bed.start_destination()
            migration = self.way(source, destination, LOCALHOST)
            migration.listen()
            migration.hold()
            migration.start()
            migration.await_disks()
            faults = self.all_kinds_are_seen(before, belongings(source))
            migration.cancel()
            destination.wait(60)
            bed.await_writes(source)
            faults += what_is_left(source, before)
            return faults + self.migrate(bed, source, LOCALHOST)

    def all_kinds_are_seen(self, before: dict, now: dict) -> list[str]:
        """The resources that must not be left exist during the copy."""
        kinds = ['job', 'node', 'bitmap', 'yank instance', 'descriptor']
        if self.way is migrate.OneSocket:
            kinds += ['stream', 'thread']
        return [f'no {kind} of the migration is seen' for kind in kinds
                if not surplus(kind, now[kind], before[kind])]

    def pingpong(self) -> list[str]:
        """there and back again, to a new process each time"""
        with self.bed(TRAVELLER) as bed:
            here = bed.boot_source()
            for number in range(self.rounds):
                here = self.hop(bed, here, number)
            faults = [fault for report in bed.finish(here)
                      for fault in report.faults]
            bed.keep = bool(faults)
            return faults + bed.log.faults

    def hop(self, bed: Testbed, source: VM, number: int) -> VM:
        """One of many migrations; returns the QEMU that runs the guest."""
        before = belongings_at_rest(source)
        destination = bed.start_destination()
        address = LOCALHOST if number % 2 == 0 else {
            'type': 'unix', 'path': str(destination.folder / 'socket')}
        migration = self.way(source, destination, address)
        migration.listen()
        outcome = migration.run()
        print(f'# migration {number + 1}: {outcome.total:.2f} s, guest '
              f'stopped for {outcome.downtime * 1000:.0f} ms', flush=True)
        bed.await_writes(destination, 20)
        if left := what_is_left(source, before, succeeded=True):
            raise TestbedError(f'migration {number + 1}: {"; ".join(left)}')
        bed.retire(source)
        return destination

    def scribble(self) -> list[str]:
        """in phase converge, many processes on two CPUs write to the same
        places of disks that share two IOThreads: both sides have the same
        contents"""
        options = replace(ACTOR, scribblers=SCRIBBLERS,
                          storage=BY_NAME['iothread-vq-mapping'])
        with self.bed(options) as bed:
            source = bed.boot_source()
            destination = bed.start_destination(Own(arguments=('-S',)))
            migration = self.way(source, destination, LOCALHOST)
            migration.listen()
            source.qmp.cmd('migrate-set-parameters', downtime_limit=0)
            migration.start()
            migration.await_phase('converge')
            time.sleep(self.converge)
            bed.await_writes(source)
            source.qmp.cmd('migrate-set-parameters',
                           downtime_limit=LONG_DOWNTIME_MS)
            migration.await_handover()
            faults = bed.compare(source, destination) + bed.log.faults
            bed.keep = bool(faults)
            return faults

    def downtime(self) -> list[str]:
        """the guest writes faster than the link carries: it is stopped for
        the downtime limit at most"""
        if why := Link.missing():
            raise Skipped(why)
        with Link() as link, self.bed(SLOW, link.prefix) as bed:
            source = bed.boot_source()
            destination = bed.start_destination()
            migration = self.way(source, destination, LOCALHOST)
            migration.listen()
            source.qmp.cmd('migrate-set-parameters',
                           downtime_limit=DOWNTIME_MS)
            began = time.monotonic()
            link.limit(FIRST_MBIT)
            bed.load(source, LOAD_MB)
            migration.start()
            migration.await_ram(LITTLE_RAM)
            link.limit(LINK_MBIT)
            outcome = migration.complete()
            bed.await_writes(destination)
            stop = outcome.downtime * 1000
            copied = sum(size for name, size in outcome.streams.items()
                         if name.startswith('nbd-'))
            print(f'# {outcome.total:.1f} s, guest stopped for {stop:.0f} ms, '
                  'longest pause of its writes '
                  f'{bed.log.longest_pause(began) * 1000:.0f} ms; of disks '
                  f'{copied >> 20} MiB were sent', flush=True)
            faults = [fault for report in bed.finish(destination)
                      for fault in report.faults]
            filled = len(bed.config.disks) * SLOW.disk_mb << 19
            if copied < LOAD_FACTOR * filled:
                faults.append('the guest does not write as much as it has to')
            if stop > DOWNTIME_MS + SLACK_MS:
                faults.append(f'guest stopped for {stop:.0f} ms')
            return faults + bed.log.faults

    def held(self, bed: Testbed, source: VM, there: Own = Own()):
        """A migration in the disk phase, where it stays until let go."""
        destination = bed.start_destination(there)
        migration = self.way(source, destination, LOCALHOST)
        migration.listen()
        migration.hold()
        migration.start()
        migration.await_disks()
        return migration

    @staticmethod
    def arrive(bed: Testbed, migration) -> list[str]:
        """Let it go, and see that all of the guest arrives."""
        migration.let_go()
        migration.complete()
        bed.await_writes(migration.destination)
        faults = [fault for report in bed.finish(migration.destination)
                  for fault in report.faults]
        bed.keep = bool(faults)
        return faults + bed.log.faults

    def latency(self) -> list[str]:
        """the downtime does not grow with the number of disks, and grows by at
        most a few round trips with latency"""
        faults = []
        for number in NUMBERS_OF_DISKS:
            options = replace(FAR, formats=('raw',) * number,
                              idle_disks=max(0, number - WRITTEN_DISKS))
            with self.bed(options) as bed:
                here = bed.boot_source()
                for delay in DELAYS_MS:
                    here, stopped = self.move_far(bed, here, delay)
                    most = LIMIT_MS + SLACK_MS + ROUND_TRIPS * 2 * delay
                    text = f'{number} disks, round trip {2 * delay} ms: ' \
                        f'stopped for {stopped:.0f} ms'
                    print(f'# {text}, at most {most} ms', flush=True)
                    if stopped > most:
                        faults.append(text)
                faults += [fault for report in bed.finish(here)
                           for fault in report.faults] + bed.log.faults
        return faults

    def move_far(self, bed: Testbed, source: VM,
                 delay_ms: int) -> tuple[VM, float]:
        """
        Returns the QEMU that runs the guest, and the milliseconds for which
        the guest was stopped.
        """
        destination = bed.start_destination()
        migration = migrate.OneSocket(source, destination, LOCALHOST)
        migration.listen()
        source.qmp.cmd('migrate-set-parameters', downtime_limit=LIMIT_MS)
        relay = Relay(self.build, LOCALHOST, migration.address,
                      [f'delay={delay_ms}'] if delay_ms else [])
        try:
            migration.address = relay.address
            stopped = migration.run().downtime * 1000
        finally:
            relay.close()
        bed.await_writes(destination, 5)
        bed.retire(source)
        return destination, stopped

    def reset(self) -> list[str]:
        """the guest is reset while disks are copied; they change their
        AioContext with that"""
        with self.bed(ACTOR) as bed:
            source = bed.boot_source(Own(iothread=True, may_reboot=True))
            migration = self.held(bed, source, Own(iothread=True))
            bed.log.expect_reboot()
            written = len(bed.log.acks[0])
            source.qmp.cmd('system_reset')
            bed.await_more(written + WRITES)
            return self.arrive(bed, migration)

    def poweroff(self) -> list[str]:
        """the guest powers off while disks are copied: both QEMUs end"""
        with self.bed(ACTOR) as bed:
            source = bed.boot_source()
            migration = self.held(bed, source)
            source.console.sendall(b'poweroff\n')
            faults = []
            if status := source.wait(60):
                faults.append(f'source: exit status {status}')
            if not migration.destination.wait(60):
                faults.append('the destination ended as if all was well')
            said = migration.destination.messages()
            if 'the source' not in said:
                faults.append(f'the destination said "{said}"')
            reports = bed.check(source)
            return faults + bed.log.faults + [
                fault for report in reports for fault in report.faults]

    def full(self) -> list[str]:
        """the source's storage is full while disks are copied: the guest
        stops, and continues on a command"""
        place = layout.record_page(WRITES_UNTIL_FULL, ACTOR.disk_mb << 20)
        own = Own(errors=(('disk0', {
            'event': 'none', 'iotype': 'write', 'errno': 28, 'once': True,
            'sector': place * layout.PAGE // 512}),))
        with self.bed(ACTOR) as bed:
            source = bed.boot_source(own)
            migration = self.held(bed, source)
            source.qmp.wait_event('BLOCK_IO_ERROR')
            state = source.qmp.cmd('query-status')['status']
            source.qmp.cmd('cont')
            faults = self.arrive(bed, migration)
            if state != 'io-error':
                faults.append(f'the guest was "{state}"')
            if len(bed.log.acks[0]) <= WRITES_UNTIL_FULL:
                faults.append('the write that failed was not done again')
            return faults

    def unplug(self) -> list[str]:
        """the guest lets go of a disk that is being copied"""
        with self.bed(replace(ACTOR, formats=('raw', 'qcow2', 'raw'),
                              idle_disks=1)) as bed:
            source = bed.boot_source()
            source.qmp.cmd('stop')
            source.qmp.cmd('device_del', id='dev-disk2')
            migration = self.held(bed, source, Own(no_device=('disk2',)))
            faults = []
            if source.qmp.find_event('DEVICE_DELETED', device='dev-disk2'):
                faults.append('it was gone before the disks were copied')
            source.qmp.cmd('cont')
            source.qmp.wait_event('DEVICE_DELETED', device='dev-disk2')
            try:
                source.qmp.cmd('device_del', id='dev-disk1')
                faults.append('one more could be unplugged')
            except QMPError:
                pass            # not while there is a migration
            return faults + self.arrive(bed, migration)


class Skipped(Exception):
    """This case cannot run here; the text says why."""


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--build', type=Path, required=True, metavar='DIR')
    parser.add_argument('--work', type=Path, metavar='DIR')
    parser.add_argument('--two-sockets', action='store_true',
                        help='use an NBD server, to check the tests')
    parser.add_argument('--rounds', type=int, default=3, metavar='N',
                        help='migrations of the case pingpong (default: 3)')
    parser.add_argument('--converge', type=float, default=2, metavar='SECONDS',
                        help='time that the case scribble stays in phase '
                        'converge (default: 2)')
    parser.add_argument('--only', default='', metavar='PART',
                        help='run only cases with PART in their name')
    parser.add_argument('case', nargs='*',
                        help=f'default: {", ".join(CASES)}; '
                        f'others: {", ".join(OTHER_CASES)}')
    args = parser.parse_args()
    args.build = args.build.resolve()
    args.work = (args.work or args.build / 'guest').resolve()
    return args


def main() -> int:
    args = arguments()
    end_in_good_order()
    way = migrate.TwoSockets if args.two_sockets else migrate.OneSocket
    cases = Cases(args.build, args.work, way, args.rounds, args.converge)
    names = [name for name in args.case or CASES if args.only in name]
    print(f'1..{len(names)}', flush=True)
    failed = 0
    for number, name in enumerate(names, 1):
        case = getattr(cases, name)
        began = time.monotonic()
        skip = ''
        try:
            faults = case()
        except Skipped as why:
            faults, skip = [], f' # SKIP {why}'
        except (*ERRORS, RelayError) as err:
            faults = [str(err)]
        failed += bool(faults)
        for fault in faults:
            print('# ' + fault.replace('\n', '\n# '))
        title = ' '.join(case.__doc__.split())
        print(f'{"not ok" if faults else "ok"} {number} - {name}: {title}'
              f'{skip}\n# {time.monotonic() - began:.1f} s', flush=True)
    return 1 if failed else 0


if __name__ == '__main__':
    sys.exit(main())
