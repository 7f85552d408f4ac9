# SPDX-License-Identifier: GPL-2.0-or-later
"""
Both sides of a whole migration.

Recorder is a destination: it accepts a migration and writes each stream to a
file, and the disks to images as well.  replay() is a source that plays such a
recording.
"""

import threading
from pathlib import Path

from .connection import Connection, MuxError, Stream
from .control import (DISK, MAIN, MULTIFD, NAME, Control, Unknown,
                      make_offer)
from .engine import Engine
from .frames import Code, Role
from .nbd import Client, Server

MULTIFD_MAX = 255               # streams


class Recorder:
    """
    A destination.  `disks` has the size in bytes of each disk that is
    expected.  FOLDER/STREAM is what a stream has carried to this side, and
    FOLDER/DISK.image the disk that came of it.
    """

    def __init__(self, sock, folder: Path, disks: dict[str, int],
                 engine: Engine | None = None, tap=None):
        self.folder = folder
        self.disks = disks
        self.servers: dict[str, Server] = {}
        self._workers: list[threading.Thread] = []
        self._taken: dict[str, Stream] = {}     # that were not refused
        self._expected = {NAME, MAIN}           # streams
        self._agreed = self._loaded = False
        self._lock = threading.Lock()
        self.connection = Connection(sock, engine or Engine(Role.DESTINATION),
                                     on_open=self._opened, tap=tap)

    def run(self) -> None:
        """Until all streams have ended well.  Raises what goes wrong."""
        conn = self.connection
        try:
            conn.wait(lambda: conn.streams)
            conn.wait(lambda: conn.engine.all_retired or conn.error)
            for worker in self._workers:
                worker.join()
            if conn.error:
                raise conn.error
        except Exception as error:
            conn.close(Code.ABORTED, str(error))
            raise
        conn.close()

    def _opened(self, stream: Stream) -> None:
        """`main` may come early, and waits."""
        with self._lock:
            name = stream.name
            wanted = name in self._expected and name not in self._taken
            if wanted:
                self._taken[name] = stream
            now = self._agreed or name == NAME
        if not wanted:
            stream.abort(Code.REFUSED, f'{name}: not expected')
        elif now:
            self._begin(stream)

    def _begin(self, stream: Stream) -> None:
        stream.connection.accept(stream)
        target = self._serve if stream.name.startswith(DISK) else \
            self._talk if stream.name == NAME else self._store
        self._workers.append(
            stream.connection.work(lambda: self._work(target, stream)))

    def _work(self, target, stream: Stream) -> None:
        target(stream)
        if stream.name == MAIN:
            self._note_loaded()
        stream.finish()
        stream.settle()

    def _note_loaded(self) -> None:
        """The end of main is taken for that of the migration stream."""
        self._loaded = True
        self.connection.do(lambda _: None)

    def _talk(self, stream: Stream) -> None:
        control = Control(stream)
        control.introduce()
        self._judge(control)
        control.accept()
        with self._lock:
            self._agreed = True
            main = self._taken.get(MAIN)
        if main:
            self._begin(main)
        self.connection.wait(lambda: self._loaded)
        self._take_over(control)

    def _judge(self, control: Control) -> None:
        """Raises MuxError if the offer is not what is expected."""
        try:
            offer = control.expect('offer')
            reasons = [*self._compare_disks(offer['disks']),
                       *self._compare_channels(offer['channels'])]
        except Unknown as error:
            reasons = [{'text': str(error)}]
        if reasons:
            conn = self.connection
            control.send('rejected', reasons=reasons)
            conn.wait(lambda: conn.engine.goaway or conn.over)
            raise MuxError('; '.join(reason['text'] for reason in reasons))

    def _compare_disks(self, offered: list[dict]) -> list[dict]:
        reasons = []
        sizes = {disk['name']: disk['size'] for disk in offered}
        if len(sizes) != len(offered):
            reasons.append({'text': 'a disk is offered twice'})
        for name in sorted({*self.disks, *sizes}):
            here, there = self.disks.get(name), sizes.get(name)
            if here != there:
                reasons.append({
                    'stream': DISK + name, 'text': f'disk {name}: ' + (
                        'not expected' if here is None else
                        'not offered' if there is None else
                        f'{there} bytes instead of {here}')})
        return reasons

    def _compare_channels(self, offered: list[dict]) -> list[dict]:
        counts = {channel['kind']: channel['count'] for channel in offered}
        multifd = min(counts.pop('multifd', 0), MULTIFD_MAX)
        self._expected |= {DISK + name for name in self.disks}
        self._expected |= {f'{MULTIFD}{i}' for i in range(multifd)}
        wanted = {'main': 1, 'nbd': len(self.disks)}
        return [{'text': f'{counts.get(kind, 0)} channels of kind {kind} '
                         f'instead of {wanted.get(kind, 0)}'}
                for kind in sorted({*wanted, *counts})
                if counts.get(kind, 0) != wanted.get(kind, 0)]

    def _take_over(self, control: Control) -> None:
        """Everything is loaded."""
        control.send('loaded')
        control.expect('committed')
        control.send('running')

    def _store(self, stream: Stream) -> None:
        with open(self.folder / stream.name, 'wb') as file:
            while data := stream.read_some():
                file.write(data)

    def _serve(self, stream: Stream) -> None:
        disk = stream.name.removeprefix(DISK)
        with open(self.folder / stream.name, 'wb') as file:
            server = Server(Recorded(stream, file), disk,
                            image(self.folder, disk), self.disks[disk])
            self.servers[disk] = server
            server.serve()


class Recorded:
    """A stream for NBD, of which what is read is written to a file."""

    def __init__(self, stream: Stream, file):
        self.write = stream.write
        self._stream = stream
        self._file = file

    def read(self, size: int) -> bytes:
        data = self._stream.read(size)
        self._file.write(data)
        return data


def image(folder: Path, disk: str) -> Path:
    return folder / f'{disk}.image'


def replay(sock, folder: Path, disks, tap=None) -> None:
    """
    A source that sends what a Recorder has left in a folder.  Raises what goes
    wrong.
    """
    conn = Connection(sock, Engine(Role.SOURCE), tap=tap)
    try:
        control, streams = send(conn, folder, disks)
        control.commit()
        for stream in (control.stream, *streams):
            end(stream)
    except Exception as error:
        conn.close(Code.ABORTED, str(error))
        raise
    conn.close()


def send(conn: Connection, folder: Path,
         disks) -> tuple[Control, list[Stream]]:
    """
    All of a recording, up to the end of main.  Returns control, on which the
    source has yet to give the guest up, with main and the multifd streams.
    """
    multifd = sorted(path.name for path in folder.glob(f'{MULTIFD}*'))
    opened = conn.offer(NAME)
    main = conn.offer(MAIN)
    control = Control(conn.opened(opened))
    control.propose(**make_offer(
        {disk: image(folder, disk).stat().st_size for disk in disks},
        len(multifd)))
    streams = [conn.opened(main)]
    copies = {}
    for disk in disks:
        copies[disk] = Client(conn.open(DISK + disk))
        copies[disk].negotiate(disk)
        copies[disk].send_image(image(folder, disk))
    for client in copies.values():
        client.disconnect()
        end(client.stream)
    streams += map(conn.open, multifd)
    workers = [conn.work(lambda stream=stream: _play(stream, folder))
               for stream in streams]
    for worker in workers:
        worker.join()
    if conn.error:
        raise conn.error
    return control, streams


def _play(stream: Stream, folder: Path) -> None:
    stream.write((folder / stream.name).read_bytes())
    stream.finish()


def end(stream: Stream) -> None:
    """Both directions to their good end."""
    stream.finish()
    stream.wait_settled()
    stream.settle()
