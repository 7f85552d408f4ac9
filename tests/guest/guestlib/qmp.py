# SPDX-License-Identifier: GPL-2.0-or-later
"""A QMP client for tests: one reader thread, commands and events."""

import itertools
import json
import socket
import threading
import time

REPLY_TIMEOUT = 60              # seconds, on a busy machine


class QMPError(Exception):
    """QEMU's refusal of a command, or the end of the connection."""


class QMP:
    """
    One QMP session on a connected socket.  Thread-safe.

    `events` only grows; take mark() before the act whose events matter
    and hand it to wait_event().
    """

    def __init__(self, sock: socket.socket, name: str):
        self.name = name
        self.events: list[dict] = []
        self._sock = sock
        self._ids = itertools.count(1)
        self._replies: dict[int, dict] = {}
        self._changed = threading.Condition()
        self._greeted = False
        self._closed = False
        threading.Thread(target=self._read, daemon=True).start()

    def negotiate(self) -> None:
        """Wait for the greeting and leave capability negotiation."""
        with self._changed:
            self._changed.wait_for(lambda: self._greeted or self._closed,
                                   REPLY_TIMEOUT)
        self.cmd('qmp_capabilities')

    def cmd(self, command: str, **arguments):
        """Run a command and return its result.  Raises QMPError."""
        number = next(self._ids)
        message = {'execute': command, 'id': number, 'arguments': {
            key.replace('_', '-'): value for key, value in arguments.items()}}
        try:
            self._sock.sendall(json.dumps(message).encode() + b'\n')
        except OSError as err:
            raise QMPError(f'{self.name}: {command}: {err}') from None
        with self._changed:
            self._changed.wait_for(
                lambda: number in self._replies or self._closed,
                REPLY_TIMEOUT)
            reply = self._replies.pop(number, None)
        if reply is None:
            why = 'QEMU is gone' if self._closed else 'no reply'
            raise QMPError(f'{self.name}: {command}: {why}')
        if 'error' in reply:
            raise QMPError(f'{self.name}: {command}: '
                           f'{reply["error"]["desc"]}')
        return reply['return']

    def mark(self) -> int:
        """The position behind the last event so far."""
        return len(self.events)

    def find_event(self, name: str, since: int = 0, **data) -> dict | None:
        """The first event of that name and those data members, if any."""
        for event in self.events[since:]:
            if event['event'] == name and all(
                    event['data'].get(k) == v for k, v in data.items()):
                return event
        return None

    def wait_event(self, name: str, since: int = 0, timeout: float = 60,
                   **data) -> dict:
        """Wait for an event.  Raises QMPError when it does not come."""
        deadline = time.monotonic() + timeout
        with self._changed:
            while True:
                event = self.find_event(name, since, **data)
                if event:
                    return event
                left = deadline - time.monotonic()
                if self._closed or left <= 0:
                    raise QMPError(f'{self.name}: no event {name} {data}')
                self._changed.wait(left)

    def wait_any(self, timeout: float) -> None:
        """Wait for anything to arrive, so long at most."""
        with self._changed:
            self._changed.wait(timeout)

    def close(self) -> None:
        self._sock.close()

    def _read(self) -> None:
        try:
            with self._sock.makefile('rb') as lines:
                for line in lines:
                    self._take(json.loads(line))
        except (OSError, ValueError):
            pass
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _take(self, message: dict) -> None:
        with self._changed:
            if 'QMP' in message:
                self._greeted = True
            elif 'event' in message:
                message.setdefault('data', {})
                self.events.append(message)
            else:
                self._replies[message['id']] = message
            self._changed.notify_all()


def event_time(event: dict) -> float:
    """When QEMU raised an event, in seconds of the wall clock."""
    stamp = event['timestamp']
    return stamp['seconds'] + stamp['microseconds'] / 1e6
