# SPDX-License-Identifier: GPL-2.0-or-later
"""
The NBD that a stream nbd-<disk> carries: a server that writes an image, and
a client that sends one.

Fixed newstyle negotiation with NBD_OPT_GO, simple replies; nothing else is
offered or used.  docs/interop/nbd.rst of QEMU has the references.
"""

import struct
from pathlib import Path

MAGIC = b'NBDMAGIC'
IHAVEOPT = b'IHAVEOPT'
REPLY_MAGIC = 0x3e889045565a9
REQUEST_MAGIC = 0x25609513
SIMPLE_REPLY_MAGIC = 0x67446698
FLAG_FIXED_NEWSTYLE, FLAG_NO_ZEROES = 1, 2
OPT_ABORT, OPT_GO, OPT_STRUCTURED_REPLY, OPT_EXTENDED_HEADERS = 2, 7, 8, 11
OPT_SET_META_CONTEXT = 10
REP_ACK, REP_INFO, REP_META_CONTEXT = 1, 3, 4
REP_ERR_UNSUP, REP_ERR_UNKNOWN = 0x80000001, 0x80000006
INFO_EXPORT, INFO_BLOCK_SIZE = 0, 3
HAS_FLAGS, READ_ONLY, SEND_FLUSH, SEND_FUA, SEND_WRITE_ZEROES = 1, 2, 4, 8, 64
CMD_READ, CMD_WRITE, CMD_DISC, CMD_FLUSH, CMD_WRITE_ZEROES = 0, 1, 2, 3, 6
CMD_BLOCK_STATUS = 7
CMD_FLAG_PAYLOAD_LEN = 32
EINVAL = 22
OPTION = struct.Struct('>8sII')
OPTION_REPLY = struct.Struct('>QIII')
REQUEST = struct.Struct('>IHHQQI')
REPLY = struct.Struct('>IIQ')
# Of structured replies and extended headers, which only tests use
CHUNK = struct.Struct('>IHHQI')
CHUNK_MAGIC = 0x668e33ef
CHUNK_ERROR = 0x8001
EXTENDED_REQUEST = struct.Struct('>IHHQQQ')
EXTENDED_REQUEST_MAGIC = 0x21e41c71
EXTENDED_CHUNK = struct.Struct('>IHHQQQ')
EXTENDED_CHUNK_MAGIC = 0x6e8a278c
PIECE = 1 << 20
SERVED = HAS_FLAGS | SEND_FLUSH | SEND_FUA | SEND_WRITE_ZEROES


class NBDError(Exception):
    """The other side of the NBD connection is wrong, or says no."""


class Server:
    """Serves one image to one client; counts what it was asked."""

    def __init__(self, stream, name: str, image: Path, size: int,
                 flags: int = SERVED,
                 block_sizes: tuple[int, int, int] | None = None):
        self.stream = stream
        self.name = name
        self.size = size
        self.flags = flags
        self.block_sizes = block_sizes
        self.commands: dict[int, int] = {}
        self.image = open(image, 'w+b')
        self.image.truncate(size)

    def serve(self) -> None:
        """Until NBD_CMD_DISC.  Raises NBDError, and what the stream does."""
        with self.image:
            self.stream.write(MAGIC + IHAVEOPT + struct.pack(
                '>H', FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES))
            flags = struct.unpack('>I', self.stream.read(4))[0]
            if flags != FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES:
                raise NBDError(f'client flags {flags:#x}')
            while self._option():
                pass
            while self._request():
                pass

    def _option(self) -> bool:
        """Whether another option follows."""
        magic, option, length = OPTION.unpack(self.stream.read(OPTION.size))
        if magic != IHAVEOPT:
            raise NBDError(f'option magic {magic}')
        data = self.stream.read(length)
        if option == OPT_GO:
            return not self._go(option, data)
        if option == OPT_ABORT:
            self._answer(option, REP_ACK)
            raise NBDError('the client gave up')
        self._answer(option, REP_ERR_UNSUP)
        return True

    def _go(self, option: int, data: bytes) -> bool:
        length = struct.unpack_from('>I', data)[0]
        if data[4:4 + length].decode() != self.name:
            self._answer(option, REP_ERR_UNKNOWN)
            return False
        self._answer(option, REP_INFO,
                     struct.pack('>HQH', INFO_EXPORT, self.size, self.flags))
        if self.block_sizes:
            self._answer(option, REP_INFO, struct.pack(
                '>HIII', INFO_BLOCK_SIZE, *self.block_sizes))
        self._answer(option, REP_ACK)
        return True

    def _answer(self, option: int, kind: int, data: bytes = b'') -> None:
        self.stream.write(OPTION_REPLY.pack(REPLY_MAGIC, option, kind,
                                            len(data)) + data)

    def _request(self) -> bool:
        """Whether another request follows."""
        magic, _, kind, cookie, offset, length = \
            REQUEST.unpack(self.stream.read(REQUEST.size))
        if magic != REQUEST_MAGIC:
            raise NBDError(f'request magic {magic:#x}')
        self.commands[kind] = self.commands.get(kind, 0) + 1
        if kind == CMD_DISC:
            return False
        error, data = self._perform(kind, offset, length)
        self.stream.write(REPLY.pack(SIMPLE_REPLY_MAGIC, error, cookie)
                          + data)
        return True

    def _perform(self, kind: int, offset: int, length: int):
        payload = self.stream.read(length) if kind == CMD_WRITE else None
        if offset + length > self.size:
            return EINVAL, b''
        self.image.seek(offset)
        if kind == CMD_READ:
            return 0, self.image.read(length)
        if kind == CMD_WRITE:
            self.image.write(payload)
        elif kind == CMD_WRITE_ZEROES:
            while length:
                length -= self.image.write(bytes(min(length, PIECE)))
        elif kind == CMD_FLUSH:
            self.image.flush()
        else:
            return EINVAL, b''
        return 0, b''


class Client:
    """Uses one export; waits for each reply."""

    def __init__(self, stream):
        self.stream = stream
        self.size = 0

    def negotiate(self, name: str, *options: int) -> None:
        """
        The options, of those without data, come first.  Raises NBDError if
        the server does not have them, or not that export.
        """
        hello = self.stream.read(18)
        if hello[:16] != MAGIC + IHAVEOPT:
            raise NBDError('this is no newstyle server')
        self.stream.write(
            struct.pack('>I', FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES))
        for option in options:
            self._option(option)
        self._option(OPT_GO, struct.pack('>I', len(name)) + name.encode()
                     + b'\0\0')

    def _option(self, option: int, data: bytes = b'') -> None:
        self.stream.write(OPTION.pack(IHAVEOPT, option, len(data)) + data)
        while True:
            _, _, kind, length = OPTION_REPLY.unpack(
                self.stream.read(OPTION_REPLY.size))
            data = self.stream.read(length)
            if kind == REP_ACK:
                return
            if kind != REP_INFO:
                raise NBDError(f'option {option}: {kind:#x} {data.decode()}')
            if data[:2] == b'\0\0':
                self.size = struct.unpack_from('>Q', data, 2)[0]

    def send_image(self, image: Path) -> None:
        """Write an image to the export, then flush."""
        with open(image, 'rb') as source:
            offset = 0
            while data := source.read(PIECE):
                self._request(CMD_WRITE, offset, len(data), data)
                offset += len(data)
        self._request(CMD_FLUSH)

    def disconnect(self) -> None:
        self.stream.write(REQUEST.pack(REQUEST_MAGIC, 0, CMD_DISC, 0, 0, 0))

    def _request(self, kind: int, offset: int = 0, length: int = 0,
                 data: bytes = b'') -> None:
        self.stream.write(REQUEST.pack(REQUEST_MAGIC, 0, kind, 1, offset,
                                       length) + data)
        magic, error, _ = REPLY.unpack(self.stream.read(REPLY.size))
        if magic != SIMPLE_REPLY_MAGIC or error:
            raise NBDError(f'request {kind}: error {error}')
