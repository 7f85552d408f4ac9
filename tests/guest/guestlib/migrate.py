# SPDX-License-Identifier: GPL-2.0-or-later
"""
Migrate a guest with its disks from one QEMU to another.

OneSocket is the series' way: one `migrate`, one `migrate-incoming`, one
connection.  TwoSockets is the classic way for comparison: an NBD server
at the destination and mirror jobs into it, then the migration, each step
by the caller, as management software does it.
"""

import time
from dataclasses import dataclass, field

from .disks import Disk
from .netwatch import listening_ports
from .qmp import QMPError, event_time
from .vm import VM

POLL = 0.1
HOLD = 1 << 20                  # bytes per second, of all disks
ENDED = ('completed', 'failed', 'cancelled')


class MigrationError(Exception):
    """The migration did not complete; the text has QEMU's reasons."""


@dataclass
class Stream:
    """One named stream, as far as QEMU tells."""

    name: str
    state: str = ''
    sent: int = 0
    received: int = 0
    remaining: int | None = None
    total: int | None = None


@dataclass
class Progress:
    """A look at a migration under way."""

    status: str = 'none'
    phase: str = ''
    streams: list[Stream] = field(default_factory=list)
    jobs: dict[str, dict] = field(default_factory=dict)
    ram: dict = field(default_factory=dict)


@dataclass
class Outcome:
    """What a completed migration took: seconds, bytes."""

    disks: float
    ram: float
    downtime: float             # guest stopped here until it ran there
    downtime_reported: float    # query-migrate's
    total: float
    streams: dict[str, int]     # bytes in both directions, by stream


def supports_one_socket(vm: VM) -> bool:
    """Whether this QEMU's `migrate` knows channels of type nbd."""
    return any({'main', 'nbd'} <= set(item.get('values', ()))
               for item in vm.qmp.cmd('query-qmp-schema'))


def job_name(disk: Disk) -> str:
    return f'nbd-{disk.name}'


def jobs_of(vm: VM) -> dict[str, dict]:
    return {job['device']: job for job in vm.qmp.cmd('query-block-jobs')}


class Migration:
    """
    What both ways have in common.  `address` is the socket address the
    destination listens on: port 0 means that it chooses one.
    """

    capabilities: tuple[str, ...] = ('events',)

    def __init__(self, source: VM, destination: VM, address: dict):
        self.source = source
        self.destination = destination
        self.address = dict(address)
        self.disks = source.config.disks
        self.progress = Progress()
        self._largest: dict[str, Stream] = {}
        self._began = 0.0
        self._from = 0          # where the events of this attempt begin

    def listen(self) -> None:
        """Make the destination listen; `address` becomes the real one."""
        raise NotImplementedError

    def run(self, on_progress=lambda progress: None) -> Outcome:
        """Migrate.  Raises MigrationError."""
        raise NotImplementedError

    def cancel(self) -> None:
        """Call it off while disks are copied."""
        raise NotImplementedError

    def hold(self) -> None:
        """
        Before it begins: have the disks copied so slowly that it never ends.
        Once there are jobs it may be too late.
        """
        raise NotImplementedError

    def let_go(self) -> None:
        """End what hold() did."""
        raise NotImplementedError

    def await_disks(self) -> None:
        """Once begun: wait until something of a disk was copied."""
        for _ in range(3000):
            if any(job['offset'] for job in jobs_of(self.source).values()):
                return
            time.sleep(0.02)
        raise MigrationError('the disks do not begin to be copied')

    def _prepare(self) -> None:
        for vm in (self.source, self.destination):
            vm.qmp.cmd('migrate-set-capabilities', capabilities=[
                {'capability': name, 'state': True}
                for name in self.capabilities])
        self.source.qmp.cmd('migrate-set-parameters', max_bandwidth=0)

    def _listen_main(self, channels: list[dict]) -> None:
        self._prepare()
        self.destination.qmp.cmd('migrate-incoming', channels=channels)
        info = self.destination.qmp.cmd('query-migrate')
        for address in info.get('socket-address', ()):
            self.address = address

    def _main_channel(self) -> dict:
        return {'channel-type': 'main',
                'addr': {'transport': 'socket', **self.address}}

    def _look(self) -> Progress:
        """Ask the source how far it is."""
        info = self.source.qmp.cmd('query-migrate')
        jobs = jobs_of(self.source)
        streams = [Stream(s['name'], s['state'], s['sent'], s['received'],
                          s.get('remaining'), s.get('total'))
                   for s in info.get('streams', ())]
        now = Progress(info.get('status', 'none'), info.get('phase', ''),
                       streams, jobs, info.get('ram', {}))
        if not streams:
            now.streams = self._guess_streams(now)
        for stream in now.streams:
            known = self._largest.get(stream.name)
            if known is None or stream.sent >= known.sent:
                self._largest[stream.name] = stream
        self.progress = now
        self._error = info.get('error-desc', '')
        return now

    def _guess_streams(self, now: Progress) -> list[Stream]:
        """Streams as the jobs and the RAM counters show them."""
        streams = []
        if now.ram:
            sent, left = now.ram['transferred'], now.ram['remaining']
            streams.append(Stream('main', now.status, sent, 0, left,
                                  now.ram['total']))
        for name, job in now.jobs.items():
            streams.append(Stream(
                name, 'ready' if job.get('ready') else 'copying',
                job['offset'], 0, job['len'] - job['offset'], job['len']))
        return streams

    def _until(self, condition, on_progress, what: str, limit: float = 120):
        """Poll until condition() gives something; returns that."""
        deadline = time.monotonic() + limit
        next_look = 0.0
        while True:
            result = condition()
            if result:
                return result
            if time.monotonic() >= next_look:
                if self._look().status in ('failed', 'cancelled'):
                    raise MigrationError(
                        f'{self.progress.status}: {self._error}')
                on_progress(self.progress)
                next_look = time.monotonic() + POLL
            if time.monotonic() >= deadline:
                raise MigrationError(f'{what}: not within {limit:.0f} s')
            self.source.qmp.wait_any(POLL / 4)

    def _event(self, name: str, **data):
        return self.source.qmp.find_event(name, self._from, **data)

    def _finish(self, on_progress, limit: float = 120) -> float:
        """Wait for both ends; returns when the guest ran there."""
        self._until(lambda: self._event('MIGRATION', status='completed'),
                    on_progress, 'completion', limit)
        try:
            resumed = self.destination.qmp.wait_event('RESUME', timeout=60)
        except QMPError as err:
            raise MigrationError(
                f'completed, but the guest does not run: {err}; '
                f'{self.destination.messages()}') from None
        on_progress(self._look())
        return event_time(resumed)

    def _outcome(self, disks_done: float, resumed: float) -> Outcome:
        stopped = event_time(self._event('STOP'))
        info = self.source.qmp.cmd('query-migrate')
        return Outcome(
            disks=disks_done - self._began, ram=stopped - disks_done,
            downtime=resumed - stopped,
            downtime_reported=info['downtime'] / 1000,
            total=resumed - self._began,
            streams={name: stream.sent + stream.received
                     for name, stream in self._largest.items()})


class OneSocket(Migration):
    """RAM and disks over one connection."""

    name = 'one socket'

    def listen(self) -> None:
        self._listen_main(self._channels())

    def run(self, on_progress=lambda progress: None) -> Outcome:
        self.start()
        return self.complete(on_progress)

    def complete(self, on_progress=lambda progress: None,
                 limit: float = 120) -> Outcome:
        """Once begun: wait for the end.  Raises MigrationError."""
        precopy = self._until(
            lambda: self._event('MIGRATION', status='active'),
            on_progress, 'the disk phase', limit)
        resumed = self._finish(on_progress, limit)
        return self._outcome(event_time(precopy), resumed)

    def hold(self) -> None:
        self.source.qmp.cmd('migrate-set-parameters', max_bandwidth=HOLD)

    def let_go(self) -> None:
        self.source.qmp.cmd('migrate-set-parameters', max_bandwidth=0)

    def await_phase(self, phase: str) -> None:
        """Once begun: wait for it.  Raises MigrationError."""
        self._until(lambda: self._look().phase == phase,
                    lambda progress: None, f'phase {phase}')

    def await_handover(self) -> None:
        """Wait until both sides have completed; the guest stays stopped."""
        self._until(lambda: self._event('MIGRATION', status='completed'),
                    lambda progress: None, 'completion')
        self.destination.qmp.wait_event('MIGRATION', status='completed')

    def await_ram(self, remaining: int) -> None:
        """Once begun: wait until so many bytes of RAM are left."""
        self._until(lambda: self._look().ram.get('remaining', remaining) <
                    remaining, lambda progress: None, 'RAM')

    def start(self) -> None:
        """Begin, and return at once."""
        self._from = self.source.qmp.mark()
        self._began = time.time()
        storage = self.source.config.storage
        self.source.qmp.cmd('migrate',
                            channels=self._channels(sync=storage.sync))

    def cancel(self) -> None:
        self.source.qmp.cmd('migrate_cancel')
        self.source.qmp.wait_event('MIGRATION', self._from, 60,
                                   status='cancelled')

    def _channels(self, **source_only) -> list[dict]:
        return [self._main_channel()] + [
            {'channel-type': 'nbd', 'disk': disk.name, **source_only}
            for disk in self.disks]


class TwoSockets(Migration):
    """An NBD server, mirror jobs, and the migration beside them."""

    name = 'two sockets'
    capabilities = ('events', 'pause-before-switchover')
    _speed = 0                  # of each disk; 0: no limit

    def hold(self) -> None:
        self._speed = HOLD // len(self.disks)

    def let_go(self) -> None:
        for name in jobs_of(self.source):
            self.source.qmp.cmd('block-job-set-speed', device=name, speed=0)

    def listen(self) -> None:
        self._listen_main([self._main_channel()])
        nbd = dict(self.address)
        if nbd['type'] == 'unix':
            address = {'type': 'unix', 'data': {'path': nbd['path'] + '.nbd'}}
        else:
            address = {'type': 'inet',
                       'data': {'host': nbd['host'], 'port': '0'}}
        qmp = self.destination.qmp
        before = listening_ports(self.destination.pid)
        qmp.cmd('nbd-server-start', addr=address)
        if address['type'] == 'inet':   # QEMU does not report the port
            port, = listening_ports(self.destination.pid) - before
            address['data']['port'] = str(port)
        self._nbd = {'type': address['type'], **address['data']}

    def run(self, on_progress=lambda progress: None) -> Outcome:
        self.start()
        disks_done = max(event_time(self._until(
            lambda name=job_name(disk): self._event('BLOCK_JOB_READY',
                                                    device=name),
            on_progress, f'copy of {disk.name}')) for disk in self.disks)
        self.source.qmp.cmd('migrate', channels=[self._main_channel()])
        self._until(lambda: self._event('MIGRATION', status='pre-switchover'),
                    on_progress, 'RAM')
        self._end_jobs(force=False)
        self.destination.qmp.cmd('nbd-server-stop')
        self.source.qmp.cmd('migrate-continue', state='pre-switchover')
        resumed = self._finish(on_progress)
        return self._outcome(disks_done, resumed)

    def start(self) -> None:
        """Begin the mirror jobs, and return at once."""
        self._begin()
        qmp = self.source.qmp
        for disk in self.disks:
            qmp.cmd('blockdev-add', node_name=self._target(disk),
                    driver='nbd', server=self._nbd, export=disk.name)
            qmp.cmd('blockdev-mirror', job_id=job_name(disk),
                    device=disk.name, target=self._target(disk), sync='full',
                    speed=self._speed)

    def _begin(self) -> None:
        """Export the disks, which OneSocket does within the migration."""
        self._from = self.source.qmp.mark()
        self._began = time.time()
        for disk in self.disks:
            self.destination.qmp.cmd('block-export-add', id=job_name(disk),
                                     type='nbd', node_name=disk.name,
                                     writable=True)

    def cancel(self) -> None:
        self._end_jobs(force=True)
        self.destination.qmp.cmd('quit')

    @staticmethod
    def _target(disk: Disk) -> str:
        return f'{disk.name}-target'

    def _end_jobs(self, force: bool) -> None:
        qmp = self.source.qmp
        mark = qmp.mark()
        end = 'BLOCK_JOB_CANCELLED' if force else 'BLOCK_JOB_COMPLETED'
        for disk in self.disks:
            qmp.cmd('block-job-cancel', device=job_name(disk), force=force)
        for disk in self.disks:
            qmp.wait_event(end, mark, device=job_name(disk))
            qmp.cmd('blockdev-del', node_name=self._target(disk))
