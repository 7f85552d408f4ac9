#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""
A campaign of migrations with injected faults, as TAP: one test per round.

The seed and the number of a round determine what it does, and `--round`
repeats one; with `--table`, the rounds are the cells of a table of phases and
faults, for example `--only disks/kill-destination`.  A guest runs at the
source from round to round, and moves to the destination when a migration
succeeds.  After each round it must run on exactly one side and continue to
write, and the source must hold no more resources than before.  At the end of a
guest's life, every write that was acknowledged to it must be on its disks.
"""

import argparse
import contextlib
import os
import random
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

from guestlib import faults, layout, migrate
from guestlib.catalogue import PHASES
from guestlib.configuration import (BASIC, BY_NAME, CONFIGURATIONS,
                                    Configuration)
from guestlib.disks import DiskError, ImageTool
from guestlib.resources import belongings_at_rest, what_is_left
from guestlib.relay import Relay, RelayError
from guestlib.testbed import (ERRORS, Options, Testbed, TestbedError,
                              end_in_good_order)
from guestlib.vm import Own, VM

SMALL = Options(disk_mb=64, memory_mb=128, fill_mb=16, dirty_mb=8,
                dirty_mb_per_s=5, writes_per_s=40)
ALL = 'all'
LIFE = 60                       # rounds per guest
SAME = 20                       # rounds with the same configuration
PLACES = layout.record_capacity(SMALL.disk_mb << 20)    # for its writes
GOOD_EVERY = 6                  # every sixth round has no fault
LOADS = (0, 0, 5, 15)           # MiB/s per disk
LOAD = 5                        # ... of the table
SLOW_STORAGE = 16               # MiB/s of each disk, if a user acts meanwhile
END = 120                       # seconds until a migration must have ended
DOWNTIME_MS = 300
STUCK = 3                       # ... until the fault is remedied
DESTINATION_ENDS = 60           # ... until it detects the failure
ALIVE = 180                     # ... until a rebooted guest has written
QUIT = 'the source quit'
TOO_LATE, NEVER = ', fault too late', ', fault never struck'
KEY = 'ab' * 32
START = "migration failed in phase '"
FORM = re.compile(START + r"(\w+)': (?:stream '[^']+'|all streams): ")
# The source has given up the guest, and the destination has not started it
NOT_HANDED_OVER = 'everything was loaded, but the source did not hand'
CAMPAIGN_ERRORS = (*ERRORS, RelayError)


@dataclass
class Plan:
    """The parameters of a round."""

    title: str
    again: str                  # the options that repeat it
    fault: faults.Fault
    transport: str = 'inet'
    multifd: bool = False
    iothread: bool = True
    load: int = LOAD
    place: int = 0      # of disk errors: KiB, in the half that holds data
    storage: Configuration = BASIC
    pauses: bool = False        # before the switchover

    @classmethod
    def drawn(cls, seed: int, number: int,
              storage: Configuration | None = None) -> 'Plan':
        if not storage:
            turn = seed + (number - 1) // SAME
            storage = CONFIGURATIONS[turn % len(CONFIGURATIONS)]
        rng = random.Random(f'{seed}/{number}')
        transport = rng.choice(('inet', 'unix', 'inet', 'tls'))
        good = number % GOOD_EVERY == 0
        fault = faults.Fault() if good else faults.draw(rng,
                                                        transport == 'tls')
        # With a throttle the guest may be faster than the link
        loads = (0,) if fault.name == 'throttle' else LOADS
        return cls(f'round {number}: {fault}',
                   f'--seed {seed} --round {number}', fault, transport,
                   rng.random() < 0.3, rng.random() < 0.5, rng.choice(loads),
                   rng.randrange(SMALL.disk_mb << 9), storage,
                   rng.random() < 0.2)

    def __str__(self) -> str:
        words = [self.storage.name, self.transport, f'load {self.load}']
        words += ['multifd'] * self.multifd + ['iothread'] * self.iothread
        words += ['pause'] * self.pauses
        return f'{self.title} ({", ".join(words)})'

    def there(self, keys: Path) -> Own:
        """The options of the destination only."""
        errors = ()
        if error := self.fault.error:
            errors = (('disk1', {**error, 'sector': 2 * self.place}),)
        small = ('disk1',) * (self.fault.name == 'destination-too-small')
        # So that there are requests for the user's action to wait for
        limit = SLOW_STORAGE if self.fault.user else 0
        return own(self.iothread, keys, errors=errors, too_small=small,
                   write_mb_per_s=limit)


def failures_in(log: str) -> list[str]:
    """The failure messages, without the program's name."""
    return [START + line.partition(START)[2] for line in log.splitlines()
            if START in line]


def own(iothread: bool, keys: Path, **more) -> Own:
    """Each QEMU is a TLS server in one migration and a client in others."""
    tls = tuple(word for name, end in (('tls-in', 'server'),
                                       ('tls-out', 'client'))
                for word in ('-object', f'tls-creds-psk,id={name},'
                                        f'endpoint={end},dir={keys}'))
    panic = '-device', 'pvpanic', '-action', 'panic=pause'
    return Own(iothread, (*tls, *panic), may_reboot=True, **more)


class Life:
    """One guest, and the rounds in which it is migrated."""

    def __init__(self, build: Path, work: Path, storage: Configuration):
        self.build = build
        self.storage = storage
        self.keys = work / 'keys'
        self.keys.mkdir(parents=True, exist_ok=True)
        (self.keys / 'keys.psk').write_text(f'qemu:{KEY}\n')
        self.bed = Testbed(build, work, replace(
            SMALL, formats=storage.formats, storage=storage))
        self.here = self.bed.boot_source(own(True, self.keys))
        self.over = False       # the guest is lost, or a check failed
        self.where_known = True     # which side runs the guest
        self.handed_back = 0    # times that it was resumed by hand
        self.said = ''          # the source's error in the last round
        self.heard = 0          # length of its log before that

    def round(self, plan: Plan) -> tuple[str, list[str]]:
        """Returns how the migration ended, and what is wrong."""
        bed, source = self.bed, self.here
        bed.load(source, plan.load)
        destination = bed.start_destination(plan.there(self.keys))
        migration = self.prepare(plan, source, destination)
        before = belongings_at_rest(source)
        self.heard = source.log.stat().st_size
        scene = faults.Scene(migration, source, destination, bed.log)
        try:
            if plan.fault.relayed:
                listen = dict(migration.address)
                if listen['type'] == 'unix':
                    listen['path'] += '.relay'
                else:
                    listen['port'] = '0'
                scene.relay = Relay(self.build, listen, migration.address,
                                    [plan.fault.relayed])
                migration.address = scene.relay.address
            status = self.play(plan, scene)
            struck = plan.fault.struck(scene, status)
            wrong = self.judge(plan, scene, status, struck, before)
            if not struck and plan.fault.name != 'none':
                status += TOO_LATE if scene.late else NEVER
            elif scene.phase not in ('', plan.fault.phase):
                status += f', struck in {scene.phase}'
        except CAMPAIGN_ERRORS:
            self.keep_stacks()
            raise
        finally:
            if scene.relay:
                scene.relay.close()
            for undo in scene.undo:
                undo()
        return status, wrong

    def prepare(self, plan: Plan, source: VM, destination: VM):
        tls = plan.transport == 'tls'
        for vm, creds in ((source, 'tls-out'), (destination, 'tls-in')):
            vm.qmp.cmd('migrate-set-capabilities', capabilities=[
                {'capability': 'multifd', 'state': plan.multifd},
                {'capability': 'pause-before-switchover',
                 'state': plan.pauses},
                {'capability': 'events', 'state': True}])
            vm.qmp.cmd('migrate-set-parameters', multifd_channels=2,
                       tls_creds=creds if tls else '',
                       downtime_limit=DOWNTIME_MS)
        address = {'type': 'inet', 'host': '127.0.0.1', 'port': '0'}
        if plan.transport == 'unix':
            address = {'type': 'unix',
                       'path': str(destination.folder / 'socket')}
        migration = migrate.OneSocket(source, destination, address)
        migration.listen()
        return migration

    def play(self, plan: Plan, scene: faults.Scene) -> str:
        """Migrate, with the fault; returns the status it ended with."""
        fault = plan.fault
        if isinstance(fault, faults.FewDescriptors):
            fault.before(scene)
        scene.migration.start()
        fault.strike(scene)
        began = time.monotonic()
        remedied = False
        while time.monotonic() < began + END:
            try:
                info = scene.look()
            except migrate.QMPError:
                if fault.ends_source:
                    return QUIT
                raise
            if info['status'] in migrate.ENDED:
                return info['status']
            if info['status'] == 'pre-switchover':
                self.proceed(scene.source)
            stuck = time.monotonic() > began + STUCK
            if not remedied and (stuck or scene.relay and scene.relay.fired()):
                remedied = True
                fault.remedy(scene)
            time.sleep(0.01)
        self.keep_stacks()
        return f'{info["status"]} in phase {info.get("phase")}'

    @staticmethod
    def proceed(vm: VM) -> None:
        """End the pause before the switchover, if it has not ended."""
        with contextlib.suppress(migrate.QMPError):
            vm.qmp.cmd('migrate-continue', state='pre-switchover')

    def judge(self, plan: Plan, scene: faults.Scene, status: str,
              struck: bool, before: dict) -> list[str]:
        if status == QUIT:
            return self.judge_quit(plan, scene)
        if status == 'completed':
            wrong = self.judge_success(plan, scene, before)
            if struck and scene.early and not plan.fault.harmless:
                wrong.append('completed in spite of it')
            return wrong
        wrong = []
        source, destination = scene.source, scene.destination
        self.said = self.reason(source)
        if status not in migrate.ENDED:
            wrong.append(f'no end of the migration: {status}')
        elif plan.fault.harmless:
            wrong.append(f'{status}, but nothing was wrong: '
                         f'{self.said}')
        elif not struck:
            wrong.append(f'{status}, but the fault did not strike: '
                         f'{scene.late or self.said}')
        wrong += self.judge_messages(plan, status)
        for undo in scene.undo:
            undo()
        scene.undo.clear()
        if plan.fault.name.startswith('silence'):
            scene.relay.close()     # else it would not end
        wrong += self.judge_destination(plan, destination)
        if wrong:
            self.keep_stacks()
        self.end(destination)
        state = self.run_state(plan, source)
        if state != 'running':
            self.over = True
            return wrong + [f'the guest does not run: {state}']
        wrong += self.judge_writes(plan, source)
        wrong += what_is_left(source, before)
        wrong += self.judge_log(source, status)
        if wrong:
            self.over = True
        else:
            self.bed.drop(destination)
        return wrong

    @staticmethod
    def run_state(plan: Plan, vm: VM) -> str:
        """
        The guest's run state.  `failed` is reported only after the guest has
        resumed.
        """
        if plan.fault.stops_guest:
            faults.resume(vm)       # the panic may come late
        return vm.qmp.cmd('query-status')['status']

    @staticmethod
    def reason(vm: VM) -> str:
        return vm.qmp.cmd('query-migrate').get('error-desc', '')

    @staticmethod
    def end(vm: VM) -> None:
        if vm.running:
            os.kill(vm.pid, 9)
            vm.wait(30)

    def judge_messages(self, plan: Plan, status: str) -> list[str]:
        """The source's error names the cause, in the required form."""
        wrong = []
        reason = self.said
        if status == 'failed' and not self.is_right(
                reason, plan.fault.says, plan.fault.phase):
            wrong.append(f'message of the source: "{reason}"')
        # A failure that comes first, and is still being dealt with, is kept
        if status == 'cancelled' and reason and not self.is_right(
                reason, plan.fault.says):
            wrong.append(f'cancelled with a message: {reason}')
        if status == 'cancelled' and not plan.fault.cancelled:
            wrong.append('cancelled without a command')
        return wrong

    @staticmethod
    def is_right(message: str, cause: str, phase: str = PHASES[0]) -> bool:
        """Whether it has the form, the cause, and that or a later phase."""
        found = FORM.match(message)
        return bool(found and message.count(START) == 1 and
                    found[1] in PHASES[PHASES.index(phase):] and
                    re.search(cause, message))

    def judge_log(self, vm: VM, status: str) -> list[str]:
        """The source has logged the same error."""
        said = failures_in(vm.messages(self.heard))
        if said != [self.said] * bool(self.said):
            return [f'{status}: "{self.said}", but in the log of {vm.name}: '
                    f'{said}']
        return []

    def judge_destination(self, plan: Plan, vm: VM) -> list[str]:
        """It exits, reports the cause once, and never runs the guest."""
        wrong = []
        deadline = time.monotonic() + DESTINATION_ENDS
        while vm.running and time.monotonic() < deadline:
            try:
                if vm.qmp.cmd('query-status')['status'] == 'running':
                    return ['the guest runs at the destination, too']
                phase = vm.qmp.cmd('query-migrate').get('phase')
            except migrate.QMPError:
                time.sleep(0.02)        # it is about to end
                continue
            if not phase:
                return []       # no connection: it still listens
            time.sleep(0.02)
        if plan.fault.ends_destination:
            return []
        if vm.running:
            wrong.append('the destination does not end')
        return wrong + self.judge_last_words(vm, plan.fault.says_there)

    def judge_last_words(self, vm: VM, cause: str) -> list[str]:
        said = failures_in(vm.messages())
        if len(said) != 1 or not self.is_right(said[0], cause):
            return [f'messages of {vm.name}: {vm.messages()}, not {cause}']
        return []

    def judge_writes(self, plan: Plan, vm: VM) -> list[str]:
        """The guest continues to write at `vm`."""
        goal = self.bed.log.least(vm.name) + 2
        deadline = time.monotonic() + ALIVE
        while not self.bed.log.wait(
                lambda: self.bed.log.least(vm.name) >= goal, 1):
            if plan.fault.stops_guest:
                faults.resume(vm)       # the panic may come late
            if time.monotonic() < deadline:
                continue
            self.over = True
            self.keep_stacks()
            return [f'the guest does not write at the {vm.name}, '
                    f'{self.keep_state(vm)}', *self.bed.log.faults[:5]]
        return []

    def judge_success(self, plan: Plan, scene: faults.Scene,
                      before: dict) -> list[str]:
        source, destination = scene.source, scene.destination
        for undo in scene.undo:
            undo()
        scene.undo.clear()
        if not self.arrives(plan, scene):
            if plan.fault.harmless:
                return ['completed, but the guest does not run: '
                        f'{destination.messages()}']
            return self.take_back(plan, scene, before)
        self.end_silence(plan, scene)
        plan.fault.after(scene)
        wrong = self.judge_writes(plan, destination)
        if source.qmp.cmd('query-status')['status'] == 'running':
            wrong.append('the guest runs on both sides')
        wrong += what_is_left(source, before, succeeded=True)
        wrong += self.judge_log(source, 'completed')
        self.move_on(scene)
        return wrong

    def arrives(self, plan: Plan, scene: faults.Scene) -> bool:
        """Whether the guest starts to run at the destination."""
        qmp = scene.destination.qmp
        began = time.monotonic()
        while scene.destination.running and time.monotonic() < began + END:
            if time.monotonic() > began + STUCK:
                self.end_silence(plan, scene)
            with contextlib.suppress(migrate.QMPError):     # about to end
                state = qmp.cmd('query-status')['status']
                if state == 'running':
                    return True
                if plan.fault.stops_guest:
                    # It was migrated while stopped
                    faults.resume(scene.destination)
                if 'phase' not in qmp.cmd('query-migrate'):
                    return False        # no connection
            time.sleep(0.02)
        return False

    def judge_quit(self, plan: Plan, scene: faults.Scene) -> list[str]:
        """The guest ends with the source, unless it has moved."""
        wrong = []
        if status := scene.source.wait(END):
            wrong.append(f'exit status {status} of the source: '
                         f'{scene.source.messages(self.heard)}')
        if self.arrives(plan, scene):
            wrong += self.judge_writes(plan, scene.destination)
            self.move_on(scene)
        else:
            wrong += self.judge_destination(plan, scene.destination)
            self.over = True
        return wrong

    def move_on(self, scene: faults.Scene) -> None:
        """Make the destination the source of the next round."""
        self.bed.retire(scene.source)
        self.here = scene.destination

    @staticmethod
    def end_silence(plan: Plan, scene: faults.Scene) -> None:
        """
        Close a relay that fell silent after the source's last frame: otherwise
        the destination would wait for it without limit, and the source for a
        minute until the connection is closed.
        """
        if scene.relay and not plan.fault.harmless:
            scene.relay.close()

    def take_back(self, plan: Plan, scene: faults.Scene,
                  before: dict) -> list[str]:
        """
        The source has handed the guest over, and the destination has ended:
        either it was killed, maybe with the guest running, or it reported that
        the source did not hand the guest over.
        """
        if plan.fault.name != 'kill-destination':
            scene.destination.wait(DESTINATION_ENDS)
        self.end(scene.destination)
        if plan.fault.ends_destination:
            self.here, self.over = scene.destination, True
            return []
        self.handed_back += 1
        wrong = self.judge_last_words(scene.destination, NOT_HANDED_OVER)
        scene.source.qmp.cmd('cont')
        wrong += self.judge_writes(plan, scene.source)
        wrong += what_is_left(scene.source, before, succeeded=True)
        wrong += self.judge_log(scene.source, 'completed')
        self.bed.drop(scene.destination)
        return wrong

    @staticmethod
    def keep_state(vm: VM) -> str:
        """Save the guest's state and memory; returns a summary."""
        if not vm.running:
            return f'which has ended: {vm.messages()}'
        text = '\n'.join(
            vm.qmp.cmd('human-monitor-command', **{'command-line': line})
            for line in ('info registers -a', 'info pic', 'info blockstats',
                         'info block-jobs', 'info qtree'))
        (vm.folder / 'state').write_text(text)
        # Its kernel may have left a message there
        vm.qmp.cmd('pmemsave', val=0, size=vm.config.memory_mb << 20,
                   filename=str(vm.folder / 'memory'))
        return 'status ' + vm.qmp.cmd('query-status')['status']

    def keep_stacks(self) -> None:
        """Save the backtraces of all threads, if gdb is installed."""
        for vm in self.bed.vms:
            if vm.running and shutil.which('gdb'):
                with open(vm.folder / 'stacks', 'ab') as out, \
                        contextlib.suppress(subprocess.TimeoutExpired):
                    subprocess.run(['gdb', '-p', str(vm.pid), '-batch',
                                    '-ex', 'thread apply all bt'],
                                   stdin=subprocess.DEVNULL, stdout=out,
                                   stderr=out, timeout=60, check=False)

    def finish(self) -> list[str]:
        """End this guest, and check that its disks have all its writes."""
        if not self.where_known:
            return self.bed.log.faults
        if self.over:
            for vm in self.bed.vms:
                vm.stop()
            reports = self.bed.check(self.here, killed=True)
        else:
            reports = self.bed.finish(self.here)
        return [fault for report in reports for fault in report.faults] + \
            self.bed.log.faults


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--build', type=Path, required=True, metavar='DIR')
    parser.add_argument('--work', type=Path, metavar='DIR')
    parser.add_argument('--rounds', type=int, default=20, metavar='N')
    parser.add_argument('--seed', type=int, metavar='N')
    parser.add_argument('--round', type=int, metavar='N',
                        help='only that round')
    parser.add_argument('--table', action='store_true',
                        help='the cells of the table, not random rounds')
    parser.add_argument('--every', type=int, default=1, metavar='N',
                        help='only every Nth cell')
    parser.add_argument('--storage', choices=[*BY_NAME, ALL],
                        help='storage configuration (default: '
                        f'{BASIC.name} for the table; random rounds change it '
                        f'every {SAME} rounds); {ALL}: the table with each')
    parser.add_argument('--only', default='', metavar='PART',
                        help='only rounds or cells with PART in their title')
    args = parser.parse_args()
    args.build = args.build.resolve()
    args.work = (args.work or args.build / 'guest').resolve()
    if args.seed is None:
        args.seed = int(time.time()) % 1000000
    return args


class Campaign:
    """Runs the rounds, with one guest after another, and prints TAP."""

    def __init__(self, args: argparse.Namespace):
        self.args = args
        if args.table:
            self.again = f'--table --every {args.every}'
            self.plans = self.table()
        else:
            self.again = f'--seed {args.seed} --rounds {args.rounds}'
            numbers = [args.round] if args.round else \
                range(1, args.rounds + 1)
            plans = [Plan.drawn(args.seed, number, BY_NAME.get(args.storage))
                     for number in numbers]
            self.plans = [plan for plan in plans if args.only in plan.title]
        self.refusals: dict[str, str] = {}      # by AIO backend
        self.life: Life | None = None
        self.rounds = 0         # of this guest
        self.outcomes: Counter = Counter()
        self.failed = 0

    def table(self) -> list[Plan]:
        every = CONFIGURATIONS if self.args.storage == ALL else \
            [BY_NAME[self.args.storage or BASIC.name]]
        plans = [Plan(name, f'--table --only {name} --storage {storage.name}',
                      fault, storage=storage)
                 for storage in every
                 for name, fault in faults.cells()]
        return [plan for plan in plans[::self.args.every]
                if self.args.only in plan.title]

    def refusal(self, storage: Configuration) -> str:
        """Why the AIO backend is unavailable on this host, or ''."""
        if storage.aio and storage.aio not in self.refusals:
            image = self.args.work / 'probe'
            image.write_bytes(bytes(1 << 20))
            try:
                ImageTool(self.args.build).run(
                    'info', '--image-opts', 'driver=file,cache.direct=on,'
                    f'filename={image},aio={storage.aio}')
                self.refusals[storage.aio] = ''
            except DiskError as err:
                self.refusals[storage.aio] = str(err).rpartition(': ')[2]
        return self.refusals.get(storage.aio, '')

    def run(self) -> int:
        print(f'1..{len(self.plans)}\n# {self.again}', flush=True)
        for count, plan in enumerate(self.plans, 1):
            self.one(count, plan)
        self.end_life()
        for (fault, status), times in sorted(self.outcomes.items()):
            print(f'# {times:4} {fault}: {status}')
        missed = sum(times for (_, status), times in self.outcomes.items()
                     if status.endswith((TOO_LATE, NEVER)))
        faultless = sum(times for (fault, _), times in self.outcomes.items()
                        if fault == 'none')
        print(f'# {self.outcomes.total() - faultless - missed} faults struck, '
              f'{missed} came too late or not at all, {faultless} rounds '
              'had none')
        return 1 if self.failed else 0

    def one(self, count: int, plan: Plan) -> None:
        if why := self.refusal(plan.storage):
            print(f'ok {count} - {plan} # SKIP {why}', flush=True)
            return
        began = time.monotonic()
        status = 'error'
        try:
            if self.life and (self.life.over or self.rounds >= LIFE or
                              self.life.storage != plan.storage or
                              self.life.bed.log.most() > PLACES // 2):
                self.end_life()
            if not self.life:
                self.life = Life(self.args.build, self.args.work,
                                 plan.storage)
                self.rounds = 0
            self.rounds += 1
            self.life.said = ''
            status, wrong = self.life.round(plan)
        except CAMPAIGN_ERRORS as err:
            wrong = [str(err)]
            if self.life:
                self.life.where_known = False
        if wrong and self.life:
            self.life.over = True
            self.life.bed.keep = True
        self.outcomes[plan.fault.name, status] += 1
        if self.life and self.life.said:
            print(f'#   {self.life.said}')
        self.report(count, f'{plan}: {status}', wrong, plan.again,
                    time.monotonic() - began)

    def report(self, count, title: str, wrong: list[str], again: str,
               seconds: float) -> None:
        self.failed += bool(wrong)
        for text in wrong:
            print('#   ' + text.replace('\n', '\n#   '))
        if wrong:
            print(f'#   again: campaign.py {again}')
        print(f'{"not ok" if wrong else "ok"} {count} - {title} '
              f'{seconds:.1f} s', flush=True)

    def end_life(self) -> None:
        """End the guest, and report whether all its writes are there."""
        life, self.life = self.life, None
        if not life:
            return
        try:
            wrong = life.finish()
        except CAMPAIGN_ERRORS as err:
            wrong = [str(err)]
        life.bed.keep |= bool(wrong)
        life.bed.__exit__(None, None, None)
        print(f'# guest of {self.rounds} rounds: '
              f'{sum(map(len, life.bed.log.acks))} writes, '
              f'{life.handed_back} times continued by hand at the source')
        if wrong:
            self.report('', 'writes of a guest', wrong, self.again, 0)


def main() -> int:
    args = arguments()
    end_in_good_order()
    campaign = Campaign(args)
    try:
        return campaign.run()
    finally:
        if campaign.life:
            campaign.life.bed.__exit__(None, None, None)


if __name__ == '__main__':
    sys.exit(main())
