#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""
A campaign of migrations that go wrong, as TAP: one test for each round.

What a round does follows from the seed and its number; `--round` repeats
one.  A guest lives at the source from round to round, and moves on when a
migration succeeds.  After each round it has to run on one side, to go on
writing, and the source must have nothing more than before; at the end of a
guest's life every write that it was told is durable has to be there.
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
from pathlib import Path

from guestlib import faults, layout, migrate
from guestlib.leftovers import belongings_at_rest, what_is_left
from guestlib.relay import Relay, RelayError
from guestlib.testbed import (ERRORS, Options, Testbed, TestbedError,
                              end_in_good_order)
from guestlib.vm import Own, VM

SMALL = Options(disk_mb=64, memory_mb=128, fill_mb=16, dirty_mb=8,
                dirty_mb_per_s=5, writes_per_s=40)
LIFE = 60                       # rounds that a guest lives
PLACES = layout.record_capacity(SMALL.disk_mb << 20)    # for its writes
GOOD_EVERY = 6                  # rounds, one of them without a fault
LOADS = (0, 0, 5, 15)           # MiB/s and disk
END = 120                       # seconds until a migration has ended
STUCK = 3                       # ... until somebody does something about it
DESTINATION_ENDS = 60           # ... until it knows of the failure
ALIVE = 60                      # ... until the guest has written again
GOES_ON = 10                    # ... until it runs, once 'failed' was told
TOO_LATE, NEVER = ', fault too late', ', fault never struck'
KEY = 'ab' * 32
FORM = re.compile(r"migration failed in phase '\w+': ")
CHAOS_ERRORS = (*ERRORS, RelayError)


class Plan:
    """All that is random in a round."""

    def __init__(self, seed: int, number: int):
        rng = random.Random(f'{seed}/{number}')
        self.transport = rng.choice(('inet', 'unix', 'inet', 'tls'))
        self.multifd = rng.random() < 0.3
        self.iothread = rng.random() < 0.5
        self.load = rng.choice(LOADS)
        # KiB on the disk, in its half that is full: where an error is
        self.place = rng.randrange(SMALL.disk_mb << 9)
        good = number % GOOD_EVERY == 0
        self.fault = faults.Fault() if good else \
            faults.draw(rng, self.transport == 'tls')
        if self.fault.name == 'throttle':
            self.load = 0       # or the guest may be faster than the link

    def __str__(self) -> str:
        words = [self.transport, f'load {self.load}']
        words += ['multifd'] * self.multifd + ['iothread'] * self.iothread
        return f'{self.fault} ({", ".join(words)})'

    def own(self, keys: Path) -> Own:
        """What is special with the destination."""
        errors = ()
        if self.fault.name in ('there-eio', 'there-enospc'):
            errors = (('disk1', {
                'event': 'none', 'iotype': 'write', 'sector': 2 * self.place,
                'errno': 5 if self.fault.name == 'there-eio' else 28}),)
        small = ('disk1',) * (self.fault.name == 'there-too-small')
        return Own(self.iothread, tls_objects(keys), errors, small)


def tls_objects(keys: Path) -> tuple[str, ...]:
    """Each QEMU is the server of one migration and the client of others."""
    return tuple(word for name, end in (('tls-in', 'server'),
                                        ('tls-out', 'client'))
                 for word in ('-object', f'tls-creds-psk,id={name},'
                                         f'endpoint={end},dir={keys}'))


class Life:
    """One guest, and the rounds that it lives through."""

    def __init__(self, build: Path, work: Path):
        self.build = build
        self.keys = work / 'keys'
        self.keys.mkdir(parents=True, exist_ok=True)
        (self.keys / 'keys.psk').write_text(f'qemu:{KEY}\n')
        self.bed = Testbed(build, work, SMALL)
        self.here = self.bed.boot_source(Own(True, tls_objects(self.keys)))
        self.over = False       # the guest is lost, or its QEMU not as it was
        self.handed_back = 0    # times that an administrator had to do it
        self.said = ''          # by the source, in the last round

    def round(self, plan: Plan) -> tuple[str, list[str]]:
        """Returns how the migration ended, and what is wrong."""
        bed, source = self.bed, self.here
        bed.load(source, plan.load)
        destination = bed.start_destination(plan.own(self.keys))
        migration = self.prepare(plan, source, destination)
        before = belongings_at_rest(source)
        scene = faults.Scene(migration, source, destination)
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
        except CHAOS_ERRORS:
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
                {'capability': 'events', 'state': True}])
            vm.qmp.cmd('migrate-set-parameters', multifd_channels=2,
                       tls_creds=creds if tls else '')
        address = {'type': 'inet', 'host': '127.0.0.1', 'port': '0'}
        if plan.transport == 'unix':
            address = {'type': 'unix',
                       'path': str(destination.folder / 'socket')}
        migration = migrate.OneSocket(source, destination, address)
        migration.listen()
        return migration

    def play(self, plan: Plan, scene: faults.Scene) -> str:
        """Migrate, with the fault; returns the status it ended with."""
        fault, qmp = plan.fault, scene.source.qmp
        if isinstance(fault, faults.FewDescriptors):
            fault.before(scene)
        scene.migration.start()
        fault.strike(scene)
        began = time.monotonic()
        remedied = False
        while time.monotonic() < began + END:
            info = qmp.cmd('query-migrate')
            if info['status'] in migrate.ENDED:
                return info['status']
            stuck = time.monotonic() > began + STUCK
            if not remedied and (stuck or scene.relay and scene.relay.fired()):
                remedied = True
                fault.remedy(scene)
            time.sleep(0.01)
        self.keep_stacks()
        return f'{info["status"]} in phase {info.get("phase")}'

    def judge(self, plan: Plan, scene: faults.Scene, status: str,
              struck: bool, before: dict) -> list[str]:
        if status == 'completed':
            return self.judge_success(plan, scene, before)
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
        if scene.relay:
            scene.relay.close()
        wrong += self.judge_destination(plan, destination)
        if wrong:
            self.keep_stacks()
        self.end(destination)
        state = self.await_running(source)
        if state != 'running':
            self.over = True
            return wrong + [f'the guest does not run: {state}']
        wrong += self.judge_writes(source)
        wrong += what_is_left(source, before)
        if wrong:
            self.over = True
        else:
            self.bed.drop(destination)
        return wrong

    @staticmethod
    def await_running(vm: VM) -> str:
        """
        The migration thread says 'failed' first, and has the guest go on
        then: returns the state that it is in, in the end.
        """
        deadline = time.monotonic() + GOES_ON
        while True:
            state = vm.qmp.cmd('query-status')['status']
            if state == 'running' or time.monotonic() > deadline:
                return state
            time.sleep(0.02)

    @staticmethod
    def reason(vm: VM) -> str:
        return vm.qmp.cmd('query-migrate').get('error-desc', '')

    @staticmethod
    def end(vm: VM) -> None:
        if vm.running:
            os.kill(vm.pid, 9)
            vm.wait(30)

    def judge_messages(self, plan: Plan, status: str) -> list[str]:
        """The source names the cause, in the form that it has to have."""
        wrong = []
        reason = self.said
        if status == 'failed' and (len(FORM.findall(reason)) != 1 or
                                   not re.search(plan.fault.says, reason)):
            wrong.append(f'message of the source: "{reason}"')
        if status == 'cancelled' and reason:
            wrong.append(f'cancelled with a message: {reason}')
        if status == 'cancelled' and not plan.fault.cancelled:
            wrong.append('cancelled by nobody')
        return wrong

    @staticmethod
    def judge_destination(plan: Plan, vm: VM) -> list[str]:
        """It ends, and says why, once, and never runs the guest."""
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
                return []       # nobody has come, and the next may
            time.sleep(0.02)
        if plan.fault.name in ('kill', 'quit'):
            return []
        if vm.running:
            wrong.append('the destination does not end')
        said = FORM.findall(vm.messages())
        if len(said) != 1:
            wrong.append(f'messages of the destination: {vm.messages()}')
        return wrong

    def judge_writes(self, vm: VM) -> list[str]:
        """The guest goes on, here."""
        goal = self.bed.log.least(vm.name) + 2
        if not self.bed.log.wait(
                lambda: self.bed.log.least(vm.name) >= goal, ALIVE):
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
        began = time.monotonic()
        state = ''
        while destination.running and time.monotonic() < began + END:
            if time.monotonic() > began + STUCK:
                self.end_silence(plan, scene)
            try:
                state = destination.qmp.cmd('query-status')['status']
            except migrate.QMPError:
                time.sleep(0.02)
                continue
            if state == 'running':
                break
            time.sleep(0.02)
        if state != 'running':
            if plan.fault.harmless:
                return [f'completed, but the guest does not run: "{state}" '
                        f'{destination.messages()}']
            return self.take_back(plan, scene, before)
        self.end_silence(plan, scene)
        wrong = self.judge_writes(destination)
        if source.qmp.cmd('query-status')['status'] == 'running':
            wrong.append('the guest runs on both sides')
        wrong += what_is_left(source, before, succeeded=True)
        self.bed.retire(source)
        self.here = destination
        return wrong

    @staticmethod
    def end_silence(plan: Plan, scene: faults.Scene) -> None:
        """
        A relay that fell silent at the very end: the destination would wait
        for the last word for ever, and the source a minute for the end of the
        connection, as both have to.
        """
        if scene.relay and not plan.fault.harmless:
            scene.relay.close()

    def take_back(self, plan: Plan, scene: faults.Scene,
                  before: dict) -> list[str]:
        """
        The source has handed the guest over, and the destination has
        ended.  Either it was ended by force, maybe with the guest running,
        or it said that the source's last word did not come.
        """
        if plan.fault.name != 'kill':
            scene.destination.wait(DESTINATION_ENDS)
        self.end(scene.destination)
        if plan.fault.name in ('kill', 'quit'):
            self.here, self.over = scene.destination, True
            return []
        self.handed_back += 1
        scene.source.qmp.cmd('cont')
        wrong = self.judge_writes(scene.source)
        wrong += what_is_left(scene.source, before, succeeded=True)
        self.bed.drop(scene.destination)
        return wrong

    @staticmethod
    def keep_state(vm: VM) -> str:
        """What the guest waits for, maybe; returns the short of it."""
        if not vm.running:
            return f'which has ended: {vm.messages()}'
        text = '\n'.join(
            vm.qmp.cmd('human-monitor-command', **{'command-line': line})
            for line in ('info registers -a', 'info pic', 'info blockstats',
                         'info block-jobs', 'info qtree'))
        (vm.folder / 'state').write_text(text)
        return 'status ' + vm.qmp.cmd('query-status')['status']

    def keep_stacks(self) -> None:
        """Where every thread is, if gdb is there to tell."""
        for vm in self.bed.vms:
            if vm.running and shutil.which('gdb'):
                with open(vm.folder / 'stacks', 'ab') as out, \
                        contextlib.suppress(subprocess.TimeoutExpired):
                    subprocess.run(['gdb', '-p', str(vm.pid), '-batch',
                                    '-ex', 'thread apply all bt'],
                                   stdin=subprocess.DEVNULL, stdout=out,
                                   stderr=out, timeout=60, check=False)

    def finish(self) -> list[str]:
        """The end of this guest: is everything there that it wrote?"""
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
                        help='that one only')
    args = parser.parse_args()
    args.build = args.build.resolve()
    args.work = (args.work or args.build / 'guest').resolve()
    if args.seed is None:
        args.seed = int(time.time()) % 1000000
    return args


class Campaign:
    """Rounds with one guest after the other, reported as TAP."""

    def __init__(self, args: argparse.Namespace):
        self.args = args
        self.life: Life | None = None
        self.rounds = 0         # of this life
        self.outcomes: Counter = Counter()
        self.failed = 0

    def run(self) -> int:
        numbers = [self.args.round] if self.args.round else \
            range(1, self.args.rounds + 1)
        print(f'1..{len(numbers)}\n# seed {self.args.seed}', flush=True)
        for count, number in enumerate(numbers, 1):
            self.one(count, number)
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

    def one(self, count: int, number: int) -> None:
        plan = Plan(self.args.seed, number)
        began = time.monotonic()
        status = 'error'
        try:
            if self.life and (self.life.over or self.rounds >= LIFE or
                              self.life.bed.log.most() > PLACES // 2):
                self.end_life()
            if not self.life:
                self.life = Life(self.args.build, self.args.work)
                self.rounds = 0
            self.rounds += 1
            self.life.said = ''
            status, wrong = self.life.round(plan)
        except CHAOS_ERRORS as err:
            wrong = [str(err)]
        if wrong and self.life:
            self.life.over = True
            self.life.bed.keep = True
        self.outcomes[plan.fault.name, status] += 1
        if self.life and self.life.said:
            print(f'#   {self.life.said}')
        self.report(count, f'round {number}: {plan}: {status}', wrong,
                    f'--round {number}', time.monotonic() - began)

    def report(self, count, title: str, wrong: list[str], again: str,
               seconds: float) -> None:
        self.failed += bool(wrong)
        for text in wrong:
            print('#   ' + text.replace('\n', '\n#   '))
        if wrong:
            print(f'#   again: chaos.py --seed {self.args.seed} {again}')
        print(f'{"not ok" if wrong else "ok"} {count} - {title} '
              f'{seconds:.1f} s', flush=True)

    def end_life(self) -> None:
        """Every write of a guest is checked when it ends."""
        life, self.life = self.life, None
        if not life:
            return
        try:
            wrong = life.finish()
        except CHAOS_ERRORS as err:
            wrong = [str(err)]
        life.bed.keep |= bool(wrong)
        life.bed.__exit__(None, None, None)
        print(f'# guest of {self.rounds} rounds: '
              f'{sum(map(len, life.bed.log.acks))} writes, '
              f'{life.handed_back} times continued by hand at the source')
        if wrong:
            self.report('', 'writes of a guest', wrong,
                        f'--rounds {self.args.rounds}', 0)


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
