# SPDX-License-Identifier: GPL-2.0-or-later
"""
Both sides of a whole migration.

Recorder is a destination: it accepts a migration and writes each stream to a
file, and the disks to images as well.  replay() is a source that plays such a
recording.
"""

import threading
from pathlib import Path

from .connection import Connection, Stream
from .engine import Engine
from .frames import Code, Role
from .nbd import Client, Server

DISK = 'nbd-'


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
        disk = stream.name.removeprefix(DISK)
        if stream.name.startswith(DISK):
            target = self._serve
            wanted = disk in self.disks and disk not in self.servers
        else:
            target = self._store
            wanted = stream.name == 'main' or \
                stream.name.startswith('multifd-')
        if not wanted:
            stream.abort(Code.REFUSED, f'{stream.name}: not expected')
            return
        stream.connection.accept(stream)
        self._workers.append(
            stream.connection.work(lambda: self._work(target, stream)))

    @staticmethod
    def _work(target, stream: Stream) -> None:
        target(stream)
        stream.finish()
        stream.settle()

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
    """A source that sends what a Recorder has left in a folder."""
    conn = Connection(sock, Engine(Role.SOURCE), tap=tap)
    main, *others = send(conn, folder, disks)
    main.settle()
    for stream in others:
        stream.wait_settled()
        stream.settle()
    conn.close()


def send(conn: Connection, folder: Path, disks) -> list[Stream]:
    """
    All of a recording, up to the answer to the FIN of main.  Returns main and
    the multifd streams: with the settle() of main the source gives the guest
    up.
    """
    streams = [conn.open('main')]
    copies = {}
    for disk in disks:
        copies[disk] = Client(conn.open(DISK + disk))
        copies[disk].negotiate(disk)
        copies[disk].send_image(image(folder, disk))
    for client in copies.values():
        client.disconnect()
        end(client.stream)
    streams += [conn.open(path.name)
                for path in sorted(folder.glob('multifd-*'))]
    workers = [conn.work(lambda stream=stream: _play(stream, folder))
               for stream in streams]
    for worker in workers:
        worker.join()
    if conn.error:
        raise conn.error
    streams[0].wait_settled()
    return streams


def _play(stream: Stream, folder: Path) -> None:
    stream.write((folder / stream.name).read_bytes())
    stream.finish()


def end(stream: Stream) -> None:
    """Both directions to their good end."""
    stream.finish()
    stream.wait_settled()
    stream.settle()
