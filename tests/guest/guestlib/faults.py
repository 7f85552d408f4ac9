# SPDX-License-Identifier: GPL-2.0-or-later
"""
The faults of a round of the campaign, and their expected outcome.

A Fault has all its parameters when it is created: from a row of the catalogue
(timed(), lasting()), or with a random place on the connection.  strike()
injects it while the migration runs; remedy() ends a migration that the fault
would block without limit.
"""

import contextlib
import itertools
import os
import random
import resource
import signal
import threading
import time
from dataclasses import dataclass, field

from . import catalogue
from .catalogue import NEVER, PHASES, START
from .guestlog import GuestLog
from .migrate import ENDED, Migration, MigrationError, jobs_of
from .qmp import QMPError
from .relay import Relay
from .vm import VM

HEAL = 120                      # seconds until a silence must have begun
WORD = 2                        # seconds to wait for the relay's report
DEED = 30                       # ... for it to execute a command
YANK = [{'type': 'migration'}]
DONE = 'done'
SLOW = 'delay=10'               # makes each phase last several round trips
# Frames in which, or in whose headers, a fault is placed
FRAMES_TO = ('HELLO', 'OPEN:main', 'OPEN:nbd-disk0', 'DATA:nbd-disk0',
             'DATA:nbd-disk1', 'DATA:main', 'FIN:nbd-disk0', 'FIN:nbd-disk1',
             'WINDOW:nbd-disk1')
FRAMES_FROM = ('HELLO', 'OPEN_OK:main', 'OPEN_OK:nbd-disk1', 'DATA:nbd-disk0',
               'WINDOW:main', 'FIN_OK:nbd-disk0', 'FIN_OK:nbd-disk1')
BUSY = 20                       # seconds until downtime-limit is LONG_MS
LONG_MS = 20000
PANICS = 5                      # seconds until a guest must have panicked
WITH_USER = 0.3                 # of the random faults, together with an action
DISK = 'disk0'
MIRROR = f'nbd-{DISK}'
FORBIDDEN = (
    ('block_resize', {'node-name': DISK, 'size': 64 << 20}),
    ('blockdev-snapshot-internal-sync', {'device': DISK, 'name': 'a'}),
    ('blockdev-mirror', {'device': DISK, 'target': 'disk1',
                         'sync': 'full'}),
    ('eject', {'id': 'dev-disk0', 'force': True}),
    ('blockdev-del', {'node-name': DISK}),
    ('device_del', {'id': 'dev-disk1'}))


@dataclass
class Scene:
    """The parts of a round that a fault may use."""

    migration: Migration
    source: VM
    destination: VM
    log: GuestLog
    relay: Relay | None = None
    undo: list = field(default_factory=list)    # callables
    struck: bool = False        # the fault was injected
    phase: str = ''             # ... in this phase of the source
    early: bool = False         # ... when the guest was not yet stopped
    late: str = ''              # why it was not
    began: float = field(default_factory=time.monotonic)
    lenient: bool = False       # downtime-limit is LONG_MS

    def look(self) -> dict:
        """
        The source's query-migrate.  Also raises the downtime limit after BUSY
        seconds: on a busy machine the migration might never converge.
        """
        if not self.lenient and time.monotonic() > self.began + BUSY:
            self.lenient = True
            self.source.qmp.cmd('migrate-set-parameters',
                                downtime_limit=LONG_MS)
        return self.source.qmp.cmd('query-migrate')

    def phase_now(self) -> str:
        """The source's phase; DONE if it has ended or no longer has one."""
        info = self.look()
        return DONE if info['status'] in ENDED else info.get('phase', DONE)

    def await_phase(self, phase: str, possible, limit: float = 60) -> bool:
        """
        Wait until the source is in that phase or a later one, and the fault is
        possible().  Returns False if the migration ends before, or on timeout.
        """
        deadline = time.monotonic() + limit
        while time.monotonic() < deadline:
            self.phase = self.phase_now()
            if self.phase == DONE:
                return False
            if self.phase in PHASES[PHASES.index(phase):] and possible(self):
                return True
        return False

    def connected(self) -> bool:
        """Whether the source has noticed that it is connected."""
        return bool(self.source.qmp.cmd('query-migrate').get('streams'))


@dataclass
class Fault:
    """No fault; the base class of all faults."""

    name: str = 'none'
    phase: str = 'connect'      # when, if not at a place on the connection
    wait: float = 0             # seconds after that
    harmless: bool = True       # the migration must succeed
    relayed: str = ''           # the command for mux-relay
    # The migration may also end as cancelled
    cancelled: bool = False
    text: str = ''
    error: dict = field(default_factory=dict)   # of the destination's disk
    # The patterns of the source's and the destination's error if the migration
    # fails because of this fault
    says: str = NEVER
    says_there: str = NEVER
    user: str = ''              # what a user does in the same instant

    def __str__(self) -> str:
        return f'{self.name} {self.text}'.strip()

    @property
    def ends_source(self) -> bool:
        return self.name in ('quit-source', 'terminate-source')

    @property
    def ends_destination(self) -> bool:
        return self.name in ('kill-destination', 'quit-destination',
                             'terminate-destination')

    @property
    def stops_guest(self) -> bool:
        """Whether the guest is stopped for a moment."""
        return bool({STOP, PANIC} & {self.text, self.user})

    def strike(self, scene: Scene) -> None:
        """Inject the fault."""

    def struck(self, scene: Scene, status: str) -> bool:
        """Whether it was injected, given how the migration ended."""
        return scene.struck or bool(scene.relay and scene.relay.fired(WORD))

    def remedy(self, scene: Scene) -> None:
        """What a user does when the migration makes no progress."""

    def after(self, scene: Scene) -> None:
        """What is to be done once the guest has moved."""


class Timed(Fault):
    """Is injected at a time within a phase."""

    def strike(self, scene: Scene) -> None:
        if not scene.await_phase(self.phase, self.possible):
            scene.late = f'it was in phase {scene.phase}'
            return
        time.sleep(self.wait)
        try:
            self.act(scene)
            if self.user:
                USER_ACTIONS[self.user](scene)
            self.lift(scene)
            scene.struck = True
            scene.early = scene.phase_now() in PHASES[:-1]
        except QMPError as err:
            # Its object is gone: too late, or because of the fault itself
            scene.late = str(err)

    def struck(self, scene: Scene, status: str) -> bool:
        return scene.struck     # the relay may just be slow

    def possible(self, _: Scene) -> bool:
        """Whether the object of the fault exists already."""
        return True

    def act(self, scene: Scene) -> None:
        raise NotImplementedError

    def lift(self, scene: Scene) -> None:
        """End a fault that lasts, or give up the migration."""

    def __str__(self) -> str:
        return f'{_with(self.name, self.user)} in {self.phase} ' \
            f'+{self.wait * 1000:.0f} ms' + ', slow' * (self.relayed == SLOW)


class Kill(Timed):
    def act(self, scene: Scene) -> None:
        os.kill(scene.destination.pid, signal.SIGKILL)


class Quit(Timed):
    def act(self, scene: Scene) -> None:
        scene.destination.qmp.cmd('quit')


class Terminate(Timed):
    def act(self, scene: Scene) -> None:
        os.kill(scene.destination.pid, signal.SIGTERM)


class QuitSource(Timed):
    """The guest ends with the source, unless it has moved."""

    def act(self, scene: Scene) -> None:
        scene.source.qmp.cmd('quit')


class TerminateSource(Timed):
    """Terminate the source with SIGTERM."""

    def act(self, scene: Scene) -> None:
        os.kill(scene.source.pid, signal.SIGTERM)


class Cancel(Timed):
    def act(self, scene: Scene) -> None:
        scene.source.qmp.cmd('migrate_cancel')


class Yank(Timed):
    def possible(self, scene: Scene) -> bool:
        return scene.connected()

    def act(self, scene: Scene) -> None:
        scene.source.qmp.cmd('yank', instances=YANK)


class YankDestination(Timed):
    def possible(self, scene: Scene) -> bool:
        return 'phase' in scene.destination.qmp.cmd('query-migrate')

    def act(self, scene: Scene) -> None:
        try:
            scene.destination.qmp.cmd('yank', instances=YANK)
        except QMPError as err:
            if 'is gone' not in str(err):       # it may exit before it answers
                raise


class OfUser(Timed):
    """Only the user's action `text`, without a fault."""

    def act(self, scene: Scene) -> None:
        USER_ACTIONS[self.text](scene)


class Forbidden(Timed):
    """
    Run commands that QEMU must refuse while a disk is mirrored.  The first,
    x-blockdev-set-iothread, may succeed if the disk is already in that
    AioContext.
    """

    def possible(self, scene: Scene) -> bool:
        return MIRROR in jobs_of(scene.source)

    def act(self, scene: Scene) -> None:
        with contextlib.suppress(QMPError):
            scene.source.qmp.cmd('x-blockdev-set-iothread', node_name=DISK,
                                 iothread=None)
        for name, args in FORBIDDEN:
            try:
                scene.source.qmp.cmd(name, **args)
            except QMPError as err:
                if 'is gone' in str(err):
                    raise
                continue
            if MIRROR in jobs_of(scene.source):
                raise MigrationError(f'{name} was accepted')
            return                  # too late: the mirrors have ended


class OfJob(Timed):
    """Affects the job `text`."""

    def possible(self, scene: Scene) -> bool:
        return self.text in jobs_of(scene.source)

    def __str__(self) -> str:
        return f'{super().__str__()}, {self.text}'


class EndJob(OfJob):
    def act(self, scene: Scene) -> None:
        scene.source.qmp.cmd('block-job-cancel', device=self.text,
                             force=self.name == 'job-kill')


class CompleteJob(OfJob):
    """Complete the job, which must be rejected."""

    def act(self, scene: Scene) -> None:
        try:
            scene.source.qmp.cmd('block-job-complete', device=self.text)
        except QMPError as err:
            if 'not found' in str(err):
                raise
            return
        raise MigrationError(f'{self.text} was completed by hand')


class PauseJob(OfJob):
    """Pause the job and resume it a little later."""

    def act(self, scene: Scene) -> None:
        scene.source.qmp.cmd('block-job-pause', device=self.text)
        time.sleep(self.wait)
        scene.source.qmp.cmd('block-job-resume', device=self.text)


class LimitJob(OfJob):
    """Limit the speed of the job, and lift the limit."""

    def act(self, scene: Scene) -> None:
        for speed in (1 << 20, 0):
            scene.source.qmp.cmd('block-job-set-speed', device=self.text,
                                 speed=speed)


class Freeze(Timed):
    """Stop the destination with SIGSTOP for a while, then do `text`."""

    def possible(self, scene: Scene) -> bool:
        return scene.connected()

    def act(self, scene: Scene) -> None:
        pid = scene.destination.pid
        os.kill(pid, signal.SIGSTOP)
        scene.undo.append(lambda: os.kill(pid, signal.SIGCONT))
        time.sleep(0.2 + self.wait)

    def lift(self, scene: Scene) -> None:
        give_up(scene, self.text)
        if self.text == 'thaw-destination':
            scene.undo.pop()()


class Connection(Timed):
    """The relay does `text` to the connection."""

    def deed(self) -> str:
        return self.text

    def possible(self, scene: Scene) -> bool:
        return scene.connected()

    def act(self, scene: Scene) -> None:
        scene.relay.do(self.deed(), DEED)

    def struck(self, scene: Scene, status: str) -> bool:
        return scene.relay.fired(fault=self.deed())


class Mute(Connection):
    """The relay falls silent for a while, then `text` follows."""

    def deed(self) -> str:
        return 'silence'

    def act(self, scene: Scene) -> None:
        super().act(scene)
        time.sleep(0.2 + self.wait)

    def lift(self, scene: Scene) -> None:
        if self.text == 'heal':
            scene.relay.add('heal')
        else:
            give_up(scene, self.text)


class Lasting(Fault):
    """Exists from the start, and may make the migration fail."""

    def struck(self, scene: Scene, status: str) -> bool:
        return status == 'failed'


class FewDescriptors(Lasting):
    """The source can open only a few more descriptors, or none."""

    def strike(self, scene: Scene) -> None:
        """Nothing: see before()."""

    def before(self, scene: Scene) -> None:
        self.limit(scene, scene.source.pid)

    def limit(self, scene: Scene, pid: int) -> None:
        old = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        used = set(map(int, os.listdir(f'/proc/{pid}/fd')))
        free = next(fd for fd in itertools.count() if fd not in used)
        resource.prlimit(pid, resource.RLIMIT_NOFILE,
                         (free + int(self.text), old[1]))
        scene.undo.append(lambda: resource.prlimit(
            pid, resource.RLIMIT_NOFILE, old))


class FewDescriptorsThere(FewDescriptors):
    """The same for the destination."""

    def before(self, scene: Scene) -> None:
        self.limit(scene, scene.destination.pid)

    def after(self, scene: Scene) -> None:
        """
        Devices that were without descriptors get them when they start again,
        which would look like a leak in a later round.
        """
        scene.destination.qmp.cmd('stop')
        scene.destination.qmp.cmd('cont')


class Silence(Fault):
    """The relay falls silent at a place; later, `text` follows."""

    def strike(self, scene: Scene) -> None:
        # Not in remedy(): a source with the guest stopped does not answer
        if self.text == 'heal':
            threading.Thread(target=self._heal, args=(scene.relay,),
                             daemon=True).start()

    def _heal(self, relay: Relay) -> None:
        if relay.fired(HEAL):
            time.sleep(0.2 + self.wait)
            relay.add('heal')

    def remedy(self, scene: Scene) -> None:
        if self.text != 'heal':
            time.sleep(0.2 + self.wait)
            give_up(scene, self.text)

    def __str__(self) -> str:
        return f'{self.relayed}, then {self.text}'


class Relayed(Fault):
    """Any other fault of the relay."""

    def __str__(self) -> str:
        return self.relayed


def _with(name: str, user: str) -> str:
    """The name of a fault with a user's action."""
    return f'{name}+{user}' if user else name


def reset_guest(scene: Scene) -> None:
    scene.log.expect_reboot()
    scene.source.qmp.cmd('system_reset')


def reboot_guest(scene: Scene) -> None:
    """It reboots by itself."""
    scene.log.expect_reboot()
    scene.source.console.sendall(b'reboot\n')


def resume(vm: VM) -> None:
    """Resume the guest, unless it runs or a migration has taken it."""
    if vm.qmp.cmd('query-status')['status'] in STOPPED:
        vm.qmp.cmd('cont')


def stop_guest(scene: Scene) -> None:
    scene.source.qmp.cmd('stop')
    time.sleep(0.1)
    resume(scene.source)


def panic_guest(scene: Scene) -> None:
    scene.source.console.sendall(b'panic\n')
    deadline = time.monotonic() + PANICS
    while time.monotonic() < deadline and \
            scene.source.qmp.cmd('query-status')['status'] == 'running':
        time.sleep(0.01)
    resume(scene.source)


STOP, PANIC = 'stop-guest', 'panic-guest'
STOPPED = ('paused', 'guest-panicked')
USER_ACTIONS = {'reset-guest': reset_guest, 'reboot-guest': reboot_guest,
                STOP: stop_guest, PANIC: panic_guest}


def give_up(scene: Scene, how: str) -> None:
    """End a migration that makes no progress, as a user would."""
    scene.struck = True
    if how == 'cancel':
        scene.source.qmp.cmd('migrate_cancel')
    elif how == 'yank-source':
        try:
            scene.source.qmp.cmd('yank', instances=YANK)
        except QMPError:
            pass                # it has ended


def _place(rng: random.Random, tls: bool, header: bool) -> str:
    """A place on the connection, in the syntax of the relay."""
    way = rng.choice(('to', 'from'))
    if tls or rng.random() < 0.3:
        most = 80 << 20 if way == 'to' else 1 << 14
        return f'in={way},at={int(most ** rng.random())}'
    frame = rng.choice(FRAMES_TO if way == 'to' else FRAMES_FROM)
    nth = 1
    if frame.startswith(('DATA', 'WINDOW')):
        nth = rng.choice((1, 1, 2, 3, 10, 40))
    byte = rng.choice((0, 1, 3, 4, 7, 8, 11, 12, 15) if header else
                      (0, 5, 16, 'mid'))
    return f'in={way},frame={frame},nth={nth},byte={byte}'


def _relayed(rng: random.Random, tls: bool) -> Fault:
    kind = rng.choice(('cut', 'reset', 'half-close', 'silence', 'silence',
                       'flip', 'flip', 'delay', 'throttle'))
    if kind == 'delay':
        return Relayed(kind, relayed=f'delay={rng.randint(1, 30)}')
    if kind == 'throttle':
        return Relayed(kind, relayed=f'throttle={rng.randint(16, 60) << 20}')
    if kind == 'flip':
        # Without TLS, only TCP protects the payload
        at = _place(rng, tls, header=True)
        if not tls and 'at=' in at:
            at = 'in=to,frame=DATA:main,nth=2,byte=3'
        return Relayed(kind, harmless=False, says='.', says_there='.',
                       relayed=f'flip,{at},bit={rng.randint(0, 7)}')
    place = _place(rng, tls, header=False)
    ways = ('to', 'from', 'both') if kind == 'silence' else ('to', 'from')
    if kind in ('silence', 'half-close'):
        place += f',dir={rng.choice(ways)}'
    if kind == 'silence':
        like = catalogue.Row(rng.choice(('silence-cancel', 'silence-yank',
                                         'silence-heal')))
        return Silence(kind, relayed=f'{kind},{place}', wait=rng.random() / 3,
                       text=_then(like), **_outcome(like))
    return Relayed(kind, relayed=f'{kind},{place}',
                   **_outcome(catalogue.Row('cut')))


# How the campaign executes an action of the catalogue
ACTIONS = {
    'cancel': Cancel,
    'cancel-job': EndJob,
    'complete-job': CompleteJob,
    'freeze-destination': Freeze,
    'kill-destination': Kill,
    'kill-job': EndJob,
    'limit-job': LimitJob,
    'pause-job': PauseJob,
    'quit-destination': Quit,
    'quit-source': QuitSource,
    'terminate-destination': Terminate,
    'terminate-source': TerminateSource,
    'try-forbidden': Forbidden,
    **{name: OfUser for name in USER_ACTIONS},
    'yank-destination': YankDestination,
    'yank-source': Yank,
}


def _then(row: catalogue.Row) -> str:
    """What ends a persistent fault."""
    return row.get('relay-then') or row.get('then')


def _outcome(row: catalogue.Row, phase: str = '') -> dict:
    """The expected outcome."""
    end = row.get('end', default='failed')
    return {'harmless': end == 'completed', 'cancelled': end == 'cancelled',
            'says': row.says('source', phase),
            'says_there': row.says('destination', phase)}


def _timed(row: catalogue.Row, phase: str, wait: float, job: str,
           relayed: str, user: str = '') -> Fault:
    """
    The fault of a row, in that phase after that time, alone or with an action
    of a user, after which the migration may also report another failure.
    """
    how = {'phase': phase, 'wait': wait, 'user': user, **_outcome(row, phase)}
    if user:
        how |= {'says': '.', 'says_there': '.'}
    relay = row.get('relay')
    if relay == 'silence':
        return Mute(row.name, text=_then(row), relayed=SLOW, **how)
    if relay:
        return Connection(row.name, text=relay, relayed=SLOW, **how)
    kind = ACTIONS[row.get('act') or row.get('then')]
    text = job if issubclass(kind, OfJob) else row.get('then')
    return kind(row.name, text=text, relayed=relayed, **how)


def timed(phase: str, wait: float = 0, job: str = 'nbd-disk0',
          relayed: str = '', user: str = '') -> list[Fault]:
    """
    All faults that are possible in `phase`, injected after `wait` seconds and
    combined with the user action `user` where the catalogue allows it.
    """
    return [_timed(row, phase, wait, job, relayed,
                   user if row.allows_user_action else '')
            for row in catalogue.rows() if phase in row.phases]


def lasting(spare: str) -> list[Fault]:
    """All faults that exist from the start; `spare` descriptors are left."""
    kinds = {'source-without-descriptors': FewDescriptors,
             'destination-without-descriptors': FewDescriptorsThere}
    return [kinds.get(row.name, Lasting)(
        row.name, text=spare * (row.name in kinds),
        error=row.options('destination-error'), **_outcome(row))
        for row in catalogue.rows() if START in row.phases]


def draw(rng: random.Random, tls: bool) -> Fault:
    """A fault for one round."""
    if rng.random() < 0.3:
        return _relayed(rng, tls)
    user = rng.choice(sorted(USER_ACTIONS)) if rng.random() < WITH_USER else ''
    return rng.choice(
        timed(rng.choice(PHASES), rng.random() ** 3 / 4,
              f'nbd-disk{rng.randint(0, 1)}', rng.choice(('', SLOW)), user) +
        lasting(str(rng.randint(0, 12))))


def cells() -> list[tuple[str, Fault]]:
    """
    The table of phases and faults, fault by fault.  The fault is injected when
    the source reports the phase, over a connection that is slow enough for the
    source to be still in that phase.
    """
    return [(f'{phase}/{_with(row.name, user)}',
             _timed(row, phase, 0, 'nbd-disk0', SLOW, user))
            for row in catalogue.rows() for phase in row.phases
            if phase != START for user in ('', *row.users)]
