# SPDX-License-Identifier: GPL-2.0-or-later
"""
Stream control: messages that negotiate a migration and hand over the guest.

Messages to send are not validated, so that tests can break the rules; received
messages are.
"""

import json
import re
import secrets
import struct

from . import frames
from .connection import MuxError, Stream
from .frames import Role

NAME = 'control'
MAIN = 'main'
DISK = 'nbd-'
MULTIFD = 'multifd-'
LENGTH = struct.Struct('>I')
MESSAGE_MAX = 65536
NESTING_MAX = 8
UNACCEPTED_MAX = 262144         # bytes of a direction before `accepted`
LIFETIME_MAX = 1048576          # bytes of a direction
TOKEN = re.compile(r'[0-9a-fA-F]{32}\Z')
NAMES = [str]
# The members of each kind of message, and their types.  Those with an asterisk
# are optional.
MESSAGES = {
    'knows': {'names': NAMES},
    'offer': {'disks': [{'name': str, 'size': int}],
              'channels': [{'kind': str, 'count': int}],
              'machine-type*': str},
    'accepted': {'token': str},
    'rejected': {'reasons': [{'stream*': str, 'text': str}]},
    'phase': {'phase': str},
    'loaded': {},
    'committed': {},
    'running': {},
}
# Who sends a kind, by what it has to come after
AFTER = {
    Role.SOURCE: {'offer': 'knows', 'phase': 'accepted',
                  'committed': 'loaded'},
    Role.DESTINATION: {'accepted': 'offer', 'rejected': 'offer',
                       'loaded': 'accepted', 'running': 'committed'},
}
# What a side can do without
SPARE = {'phase', 'rejected'}


class Unknown(MuxError):
    """A member must not be left out, and is not known here."""

    def __init__(self, name: str):
        super().__init__(f'{name} is required and not known')
        self.name = name


class Rejected(MuxError):
    """The destination does not take what was offered."""


def named(schema, name: str, optional: bool = True) -> list[str]:
    """The names of the members of a type, without or with optional ones."""
    if isinstance(schema, list):
        return named(schema[0], name, optional)
    if not isinstance(schema, dict):
        return []
    result = []
    for key, inner in schema.items():
        if optional or not key.endswith('*'):
            member = f"{name}.{key.rstrip('*')}"
            result += [member, *named(inner, member, optional)]
    return result


def known(kinds, optional: bool = True) -> list[str]:
    """Kinds of messages, and their members."""
    return [name for kind in kinds
            for name in (kind, *named(MESSAGES[kind], kind, optional))]


KNOWS = known(kind for kind in MESSAGES if kind != 'knows')


def pack(message: dict | bytes) -> bytes:
    """A message, or a text that need not be one, behind its length."""
    text = message if isinstance(message, bytes) else \
        json.dumps(message).encode()
    return LENGTH.pack(len(text)) + text


def unpack(text: bytes) -> dict:
    """Raises MuxError if that is no message."""
    try:
        decoded = text.decode()
        if nesting(decoded) > NESTING_MAX:
            raise MuxError(f'{NAME}: nested more than {NESTING_MAX} deep')
        message = json.loads(decoded, parse_constant=_refuse,
                             object_pairs_hook=_object)
    except ValueError as error:
        raise MuxError(f'{NAME}: no JSON: {error}') from error
    if not isinstance(message, dict) or \
            not isinstance(message.get('type'), str):
        raise MuxError(f'{NAME}: no object with a type')
    return message


def nesting(text: str) -> int:
    """How deep objects and arrays are nested."""
    depth = deepest = 0
    for sign in re.sub(r'"(?:[^"\\]|\\.)*"', '', text, flags=re.S):
        depth += (sign in '[{') - (sign in ']}')
        deepest = max(deepest, depth)
    return deepest


def _refuse(word: str) -> None:
    raise ValueError(word)


def _object(pairs: list[tuple]) -> dict:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError('a member is there twice')
    return result


def take(value, schema, name: str):
    """A value without what is unknown.  Raises MuxError if it does not fit."""
    if isinstance(schema, list) and isinstance(value, list):
        return [take(item, schema[0], name) for item in value]
    if isinstance(schema, dict) and isinstance(value, dict):
        return _take_object(value, schema, name)
    if isinstance(schema, (list, dict)) or type(value) is not schema or \
            schema is int and not 0 <= value < 1 << 64:
        raise MuxError(f'{NAME}: {name} is of another type')
    return frames.printable(value) if schema is str else value


def _take_object(value: dict, schema: dict, name: str) -> dict:
    result = {}
    for key, inner in schema.items():
        member = key.rstrip('*')
        if member in value:
            result[member] = take(value[member], inner, f'{name}.{member}')
        elif member == key:
            raise MuxError(f'{NAME}: {name}.{member} is missing')
    return result


def leave_out(value, name: str, names: set[str]):
    """A value without the members that the peer does not know."""
    if isinstance(value, list):
        return [leave_out(item, name, names) for item in value]
    if not isinstance(value, dict):
        return value
    return {key: leave_out(inner, f'{name}.{key}', names)
            for key, inner in value.items()
            if f'{name}.{key}' in names or key == 'require'}


def make_offer(disks: dict[str, int], multifd: int = 0) -> dict:
    """The members of an offer of disks with these sizes."""
    counts = {'main': 1, 'nbd': len(disks), 'multifd': multifd}
    return {'disks': [{'name': name, 'size': size}
                      for name, size in disks.items()],
            'channels': [{'kind': kind, 'count': count}
                         for kind, count in counts.items() if count]}


class Control:
    """One side of the stream, which is open."""

    def __init__(self, stream: Stream):
        self.stream = stream
        self.role = stream.connection.engine.role
        self.peer_role = Role(3 - self.role)
        self.sent: set[str] = set()         # kinds of message
        self.received: set[str] = set()
        self.peer_knows: set[str] = set()
        self._bytes = 0                     # received

    @property
    def accepted(self) -> bool:
        return 'accepted' in self.sent | self.received

    def say(self, message: dict | bytes) -> None:
        """Send anything."""
        if isinstance(message, dict) and message.get('type') in MESSAGES:
            self.sent.add(message['type'])
        self.stream.write(pack(message))

    def send(self, kind: str, **members) -> None:
        """Send what of a message the peer knows, if it knows the message."""
        if kind == 'knows':
            self.say({'type': kind, **members})
        elif kind in self.peer_knows:
            self.say({'type': kind,
                      **leave_out(members, kind, self.peer_knows)})

    def introduce(self, names=tuple(KNOWS)) -> None:
        """
        Exchange `knows` messages.  Raises MuxError if the peer does not know
        a name that this side needs.
        """
        self.send('knows', names=list(names))
        self.peer_knows = set(self.expect('knows')['names'])
        for name in known(AFTER[self.role].keys() - SPARE, optional=False):
            if name not in self.peer_knows:
                raise MuxError(f'the {self.peer_role.name.lower()} does not '
                               f'know {name}')

    def propose(self, **offer) -> None:
        """The source's way to `accepted`.  Raises Rejected."""
        self.introduce()
        self.send('offer', **offer)
        answer = self.receive()
        if answer['type'] == 'rejected':
            raise Rejected('; '.join(
                f"{reason.get('stream', 'all')}: {reason['text']}"
                for reason in answer['reasons']))

    def accept(self) -> None:
        self.send('accepted', token=secrets.token_hex(16))

    def commit(self) -> None:
        """The source's way to the end, when it has sent everything."""
        self.expect('loaded')
        self.send('committed')
        self.expect('running')

    def expect(self, kind: str) -> dict:
        """Wait for a message of that kind; phases may come before."""
        while (message := self.receive())['type'] != kind:
            if message['type'] != 'phase':
                raise MuxError(f"{NAME}: {message['type']} instead of {kind}")
        return message

    def receive(self) -> dict:
        """
        The next message of a known kind, without what is unknown.  Raises
        MuxError if the peer breaks a rule.
        """
        while True:
            message = unpack(self._text())
            kind = message['type']
            self._check_order(kind)
            if kind in MESSAGES:
                break
        self._check_required(message)
        result = take(message, MESSAGES[kind], kind)
        self._check_values(kind, result)
        return {'type': kind, **result}

    def _text(self) -> bytes:
        size = LENGTH.unpack(self.stream.read(LENGTH.size))[0]
        if not 1 <= size <= MESSAGE_MAX:
            raise MuxError(f'{NAME}: a message of {size} bytes')
        self._bytes += LENGTH.size + size
        most = LIFETIME_MAX if self.accepted else UNACCEPTED_MAX
        if self._bytes > most:
            raise MuxError(f'{NAME}: more than {most} bytes')
        return self.stream.read(size)

    def _check_order(self, kind: str) -> None:
        if (kind == 'knows') == ('knows' in self.received):
            raise MuxError(f'{NAME}: {kind}, but knows comes first, and once')
        if kind not in MESSAGES:
            return
        if kind != 'knows':
            self._check_kind(kind)
        self.received.add(kind)

    def _check_kind(self, kind: str) -> None:
        before = AFTER[self.peer_role].get(kind)
        if before is None:
            raise MuxError(f'{NAME}: {kind} of the wrong side')
        if before not in self.sent | self.received or \
                'rejected' in self.received:
            raise MuxError(f'{NAME}: {kind} at the wrong time')
        if kind != 'phase' and kind in self.received or \
                kind == 'rejected' and 'accepted' in self.received:
            raise MuxError(f'{NAME}: {kind} after another answer')

    @staticmethod
    def _check_required(message: dict) -> None:
        kind = message['type']
        for name in take(message.get('require', []), NAMES,
                         f'{kind}.require'):
            if f'{kind}.{name}' not in KNOWS:
                raise Unknown(f'{kind}.{name}')

    @staticmethod
    def _check_values(kind: str, members: dict) -> None:
        if kind == 'rejected' and not members['reasons']:
            raise MuxError(f'{NAME}: rejected without a reason')
        if kind == 'accepted' and not TOKEN.match(members['token']):
            raise MuxError(f'{NAME}: the token is no 32 hexadecimal digits')
