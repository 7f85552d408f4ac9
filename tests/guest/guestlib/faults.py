# SPDX-License-Identifier: GPL-2.0-or-later
"""
What may go wrong in a round of the campaign, and what comes of it.

A Fault is drawn with all that it needs to know; strike() does the harm
while the migration runs, and remedy() ends what would last for ever.
"""

import itertools
import os
import random
import resource
import signal
import threading
import time
from dataclasses import dataclass, field

from .migrate import ENDED, Migration, MigrationError, jobs_of
from .qmp import QMPError
from .relay import Relay
from .vm import VM

HEAL = 120                      # seconds in which a silence begins
WORD = 2                        # seconds until the relay's word is read
YANK = [{'type': 'migration'}]
PHASES = ('connect', 'disks', 'precopy', 'converge', 'switchover')
# Where a header says something, or a control frame everything
FRAMES_TO = ('HELLO', 'OPEN:main', 'OPEN:nbd-disk0', 'DATA:nbd-disk0',
             'DATA:nbd-disk1', 'DATA:main', 'FIN:nbd-disk0', 'FIN:nbd-disk1',
             'WINDOW:nbd-disk1')
FRAMES_FROM = ('HELLO', 'OPEN_OK:main', 'OPEN_OK:nbd-disk1', 'DATA:nbd-disk0',
               'WINDOW:main', 'FIN_OK:nbd-disk0', 'FIN_OK:nbd-disk1')
# How the source names a cause
YANKED = 'yanked'
CLOSED = 'closed the connection|Connection reset by peer|Broken pipe|' \
    'TLS connection was non-properly terminated|TLS handshake failed|' \
    'TLS channel: The specified session has been invalidated'
# Whoever ends a destination at once may be faster than the connection to it
GONE = f"{CLOSED}|phase 'connect': .*Failed to connect to"
SHUT_DOWN = f'the destination was shut down|{GONE}'
YANKED_THERE = f'{YANKED}|{CLOSED}'     # the other side may be heard no more
# A limit of the migration's own may pass first: with the guest stopped, the
# source does not listen to anybody until then
LATE = '(did not come|was not complete|sent no HELLO|not accept it) within'
GIVEN_UP = f'{YANKED}|{LATE}'
JOB_ENDED = 'was ended by someone other|Operation canceled'


@dataclass
class Scene:
    """The round's parts that a fault may touch."""

    migration: Migration
    source: VM
    destination: VM
    relay: Relay | None = None
    undo: list = field(default_factory=list)    # callables
    struck: bool = False        # what somebody has to do is done
    late: str = ''              # why it is not


def await_phase(scene: Scene, phase: str, limit: float = 10) -> bool:
    """Until the source is there; False: the migration ended before."""
    wanted = PHASES.index(phase)
    deadline = time.monotonic() + limit
    while time.monotonic() < deadline:
        info = scene.source.qmp.cmd('query-migrate')
        if info['status'] in ENDED:
            return False
        now = info.get('phase', 'done')     # that is, it is as good as over
        if now != 'done' and PHASES.index(now) >= wanted:
            return True
    return False


@dataclass
class Fault:
    """Nothing goes wrong."""

    name: str = 'none'
    phase: str = 'connect'      # when, if it is no matter of a place
    wait: float = 0             # seconds after that
    harmless: bool = True       # the migration has to succeed
    relayed: str = ''           # what mux-relay is told
    # Whether the source may have any reason, and the destination a message
    cancelled: bool = False
    text: str = ''
    # How the source names the cause if this is why the migration failed
    says: str = r'(?!)'

    def __str__(self) -> str:
        return f'{self.name} {self.text}'.strip()

    def strike(self, scene: Scene) -> None:
        """Do it."""

    def struck(self, scene: Scene, status: str) -> bool:
        """Whether it happened, when the migration has ended so."""
        return scene.struck or bool(scene.relay and scene.relay.fired(WORD))

    def remedy(self, scene: Scene) -> None:
        """What somebody does when the migration does not go on."""


class Timed(Fault):
    """Happens at a time in a phase."""

    def strike(self, scene: Scene) -> None:
        if not await_phase(scene, self.phase):
            scene.late = 'the migration had ended'
            return
        time.sleep(self.wait)
        try:
            self.act(scene)
            scene.struck = True
        except QMPError as err:
            # Late: what it is about is not there any more
            scene.late = str(err)

    def act(self, scene: Scene) -> None:
        raise NotImplementedError

    def __str__(self) -> str:
        return f'{self.name} in {self.phase} +{self.wait * 1000:.0f} ms ' \
               f'{self.text}'.strip()


class Kill(Timed):
    def act(self, scene: Scene) -> None:
        os.kill(scene.destination.pid, signal.SIGKILL)


class Quit(Timed):
    def act(self, scene: Scene) -> None:
        scene.destination.qmp.cmd('quit')


class Cancel(Timed):
    def act(self, scene: Scene) -> None:
        scene.source.qmp.cmd('migrate_cancel')


class Yank(Timed):
    def act(self, scene: Scene) -> None:
        scene.source.qmp.cmd('yank', instances=YANK)


class YankDestination(Timed):
    def act(self, scene: Scene) -> None:
        scene.destination.qmp.cmd('yank', instances=YANK)


class OfJob(Timed):
    """Happens to the job `text`; not before there is one."""

    def strike(self, scene: Scene) -> None:
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline and \
                self.text not in jobs_of(scene.source) and \
                scene.source.qmp.cmd('query-migrate')['status'] not in ENDED:
            pass
        super().strike(scene)


class EndJob(OfJob):
    def act(self, scene: Scene) -> None:
        scene.source.qmp.cmd('block-job-cancel', device=self.text,
                             force=self.wait * 1000 % 2 < 1)


class CompleteJob(OfJob):
    """Which is refused."""

    def act(self, scene: Scene) -> None:
        try:
            scene.source.qmp.cmd('block-job-complete', device=self.text)
        except QMPError as err:
            if 'not found' in str(err):
                raise
            return
        raise MigrationError(f'{self.text} was completed by hand')


class PauseJob(OfJob):
    """And resume it a little later."""

    def act(self, scene: Scene) -> None:
        scene.source.qmp.cmd('block-job-pause', device=self.text)
        time.sleep(self.wait)
        scene.source.qmp.cmd('block-job-resume', device=self.text)


class Freeze(Timed):
    """SIGSTOP for a while, and then what `text` says."""

    def act(self, scene: Scene) -> None:
        pid = scene.destination.pid
        os.kill(pid, signal.SIGSTOP)
        scene.undo.append(lambda: os.kill(pid, signal.SIGCONT))
        time.sleep(0.2 + self.wait)
        give_up(scene, self.text)
        if self.text == 'cont':
            scene.undo.pop()()


class Lasting(Fault):
    """Is there all the time, and makes a migration fail or does not."""

    def struck(self, scene: Scene, status: str) -> bool:
        return status == 'failed'


class FewDescriptors(Lasting):
    """The source may open a few more, or none."""

    def strike(self, scene: Scene) -> None:
        """Too late: see before()."""

    def before(self, scene: Scene) -> None:
        pid = scene.source.pid
        old = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        used = set(map(int, os.listdir(f'/proc/{pid}/fd')))
        free = next(fd for fd in itertools.count() if fd not in used)
        resource.prlimit(pid, resource.RLIMIT_NOFILE,
                         (free + int(self.text), old[1]))
        scene.undo.append(lambda: resource.prlimit(
            pid, resource.RLIMIT_NOFILE, old))


class Silence(Fault):
    """The relay falls silent somewhere; later, what `text` says."""

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
    """Something else that the relay does."""

    def __str__(self) -> str:
        return self.relayed


def give_up(scene: Scene, how: str) -> None:
    """What an administrator does with a migration that is stuck."""
    scene.struck = True
    if how == 'cancel':
        scene.source.qmp.cmd('migrate_cancel')
    elif how == 'yank':
        try:
            scene.source.qmp.cmd('yank', instances=YANK)
        except QMPError:
            pass                # it has ended


def _place(rng: random.Random, tls: bool, header: bool) -> str:
    """Where on the connection a fault happens, as the relay wants it."""
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
        # Without TLS, payload is protected by TCP alone
        at = _place(rng, tls, header=True)
        if not tls and 'at=' in at:
            at = 'in=to,frame=DATA:main,nth=2,byte=3'
        return Relayed(kind, harmless=False, says='.',
                       relayed=f'flip,{at},bit={rng.randint(0, 7)}')
    place = _place(rng, tls, header=False)
    ways = ('to', 'from', 'both') if kind == 'silence' else ('to', 'from')
    if kind in ('silence', 'half-close'):
        place += f',dir={rng.choice(ways)}'
    if kind == 'silence':
        how = rng.choice(('cancel', 'yank', 'heal'))
        return Silence(kind, harmless=how == 'heal', wait=rng.random() / 3,
                       relayed=f'{kind},{place}', text=how,
                       cancelled=how == 'cancel', says=GIVEN_UP)
    return Relayed(kind, harmless=False, says=CLOSED,
                   relayed=f'{kind},{place}')


def draw(rng: random.Random, tls: bool) -> Fault:
    """A fault for one round."""
    when = {'phase': rng.choice(PHASES), 'wait': rng.random() ** 3 / 4}
    job = f'nbd-disk{rng.randint(0, 1)}'
    how = rng.choice(('cont', 'cancel', 'yank'))
    choices = [
        (1, lambda: Kill('kill', harmless=False, says=GONE, **when)),
        (1, lambda: Quit('quit', harmless=False, says=SHUT_DOWN, **when)),
        (1, lambda: Cancel('cancel', harmless=False, cancelled=True, **when)),
        (1, lambda: Yank('yank', harmless=False, says=YANKED, **when)),
        (1, lambda: YankDestination('yank-there', harmless=False,
                                    says=YANKED_THERE, **when)),
        (1, lambda: EndJob('job-cancel', harmless=False, text=job,
                           says=JOB_ENDED, **when)),
        (1, lambda: CompleteJob('job-complete', text=job, **when)),
        (1, lambda: PauseJob('job-pause', text=job, **when)),
        (2, lambda: Freeze('freeze', harmless=how == 'cont', text=how,
                           cancelled=how == 'cancel', says=GIVEN_UP,
                           **when)),
        (1, lambda: FewDescriptors('descriptors', harmless=False,
                                   text=str(rng.randint(0, 12)),
                                   says='Too many open files')),
        (1, lambda: Lasting('there-eio', harmless=False,
                            says='Input/output error')),
        (1, lambda: Lasting('there-enospc', harmless=False,
                            says='No space left on device')),
        (1, lambda: Lasting('there-too-small', harmless=False,
                            says="the destination's image has")),
        (8, lambda: _relayed(rng, tls)),
    ]
    weights = [weight for weight, _ in choices]
    return rng.choices([make for _, make in choices], weights)[0]()
