# SPDX-License-Identifier: GPL-2.0-or-later
"""
How HELLO and frames look on the wire.

Packs whatever it is given, also what is against the rules, so that tests can
misbehave.  Which received values are in order is the engine's business.
"""

import struct
from dataclasses import dataclass
from enum import IntEnum

MAGIC = 0x514d5558
VERSION = 2
HELLO_COMMON = 40               # the part that is the same in every version
HELLO_MIN = 60
HELLO_MAX = 4096
MAX_FRAME_MIN = 4096
MAX_FRAME_MAX = 1 << 20
TEXT_MAX = 1024
NAME_MAX = 255
OPENS_UNANSWERED = 16
STREAMS_IN_LIFETIME = 4096
PINGS_UNANSWERED = 16
CONTROL_BURST = 65536           # control frames without any data
CONTROL_INTERVAL = 10**7        # ns, for each of which there is one more
CONTROL_PER_DATA = 2            # more for each DATA
CONTROL_BYTES = 4096            # of its payload, for each of which one more
FIRST_SKIPPED_TYPE = 0x80

HELLO = struct.Struct('>IHHIQQIII')
HELLO_SESSION = struct.Struct('>16sI')  # what version 2 has behind it
HEADER = struct.Struct('>BBHIII')
U64 = struct.Struct('>Q')
OPEN_HEAD = struct.Struct('>QHH')


class Role(IntEnum):
    SOURCE = 1
    DESTINATION = 2


class Type(IntEnum):
    OPEN = 1
    OPEN_OK = 2
    DATA = 3
    WINDOW = 4
    FIN = 5
    FIN_OK = 6
    RESET = 7
    PING = 8
    PONG = 9
    GOAWAY = 10


class Code(IntEnum):
    OK = 0
    PROTOCOL = 1
    INCOMPATIBLE = 2
    TIMEOUT = 3
    LIMIT = 4
    REFUSED = 5
    ABORTED = 6


# What each type is about, and the lengths that it may have; those of DATA
# end with what the receiver's HELLO says.
ABOUT_CONNECTION = {Type.PING, Type.PONG, Type.GOAWAY}
# Not among the control frames whose number is limited
UNLIMITED = {Type.DATA, Type.PONG, Type.GOAWAY}
LENGTHS = {Type.OPEN: (OPEN_HEAD.size + 1, OPEN_HEAD.size + NAME_MAX),
           Type.OPEN_OK: (8, 8),
           Type.DATA: (1, None),
           Type.WINDOW: (8, 8),
           Type.FIN: (8, 8),
           Type.FIN_OK: (8, 8),
           Type.RESET: (0, TEXT_MAX),
           Type.PING: (8, 8),
           Type.PONG: (8, 8),
           Type.GOAWAY: (0, TEXT_MAX)}


@dataclass
class Hello:
    role: int
    magic: int = MAGIC
    version_min: int = VERSION
    version_max: int = VERSION
    length: int = HELLO_MIN
    features: int = 0
    required: int = 0
    max_frame: int = 256 << 10
    max_streams: int = 512
    session: bytes = bytes(16)
    connection: int = 0

    def pack(self) -> bytes:
        """
        The HELLO cut at its length, but with what every version has, or with a
        tail of zeroes up to it.
        """
        head = HELLO.pack(self.magic, self.version_min, self.version_max,
                          self.length, self.features, self.required,
                          self.max_frame, self.max_streams, self.role)
        rest = HELLO_SESSION.pack(self.session, self.connection)
        size = max(self.length, HELLO_COMMON)
        return (head + rest)[:size].ljust(size, b'\0')

    @classmethod
    def unpack(cls, data: bytes) -> 'Hello':
        """The HELLO; of less than HELLO_MIN bytes what every version has."""
        (magic, low, high, length, features, required, max_frame,
         max_streams, role) = HELLO.unpack_from(data)
        hello = cls(role, magic, low, high, length, features, required,
                    max_frame, max_streams)
        if len(data) >= HELLO_MIN:
            hello.session, hello.connection = HELLO_SESSION.unpack_from(
                data, HELLO.size)
        return hello


@dataclass
class Frame:
    type: int
    stream: int = 0
    payload: bytes = b''
    arg: int = 0
    flags: int = 0
    zero: int = 0
    length: int | None = None       # if it is to differ from the payload's

    def pack(self) -> bytes:
        length = len(self.payload) if self.length is None else self.length
        return HEADER.pack(self.type, self.flags, self.zero, self.stream,
                           length, self.arg) + self.payload

    @classmethod
    def header(cls, data: bytes) -> 'Frame':
        """The frame of which `data` begins with the header."""
        kind, flags, zero, stream, length, arg = HEADER.unpack_from(data)
        return cls(kind, stream, b'', arg, flags, zero, length)

    @property
    def number(self) -> int:
        """The payload, or its beginning, as 64 bits."""
        return U64.unpack_from(self.payload)[0]

    @property
    def text(self) -> str:
        """The payload as a text, fit to be shown."""
        return printable(self.payload.decode(errors='replace'))


def printable(text: str) -> str:
    """A text of the peer, fit to be shown."""
    return ''.join(c if c.isprintable() else '\ufffd' for c in text)


def open_(stream: int, limit: int, name: bytes, zero: int = 0,
          name_length: int | None = None) -> Frame:
    length = len(name) if name_length is None else name_length
    return Frame(Type.OPEN, stream,
                 OPEN_HEAD.pack(limit, length, zero) + name)


def numbered(kind: Type, stream: int, number: int) -> Frame:
    """OPEN_OK, WINDOW, FIN, FIN_OK, PING or PONG."""
    return Frame(kind, stream, U64.pack(number))


def data(stream: int, offset: int, payload: bytes) -> Frame:
    return Frame(Type.DATA, stream, payload, offset & 0xffffffff)


def ended(kind: Type, stream: int, code: int, text: str | bytes) -> Frame:
    """RESET or GOAWAY."""
    payload = text.encode() if isinstance(text, str) else text
    return Frame(kind, stream, payload, code)
