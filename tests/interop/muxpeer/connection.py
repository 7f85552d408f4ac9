# SPDX-License-Identifier: GPL-2.0-or-later
"""
A connection with its streams, for blocking use.

Two threads move bytes between the socket and the engine, so that neither
direction waits for the other.  Any thread may use the streams; what breaks
the connection, or resets a stream, is raised as MuxError where it is used.
"""

import socket
import threading

from .engine import Engine, Event, Fault, State
from .engine import Stream as EngineStream
from .frames import Code, Role, Type

PIECE = 256 << 10
# Seconds.  How long a busy machine takes is not what is tested.
PATIENCE = 300
RELEASE = 0.01                  # between two looks at what is held


class MuxError(Exception):
    """The stream or the connection has failed."""

    def __init__(self, text: str, code: int | None = None):
        super().__init__(text)
        self.code = code


class Stream:
    """One stream; its received bytes wait in `unread`."""

    def __init__(self, connection: 'Connection', state: EngineStream):
        self.connection = connection
        self.state = state
        self.name = state.name
        self.unread = bytearray()
        self.consumed = 0
        self.reset: tuple[int, str] | None = None

    def read(self, size: int) -> bytes:
        """Wait for exactly that many bytes."""
        parts = []
        while size:
            self._wait(lambda: self.unread or self.ended)
            parts.append(self._take(min(size, len(self.unread))))
            if not parts[-1]:
                raise MuxError(f'{self.name}: {size} bytes are missing')
            size -= len(parts[-1])
        return b''.join(parts)

    def read_some(self) -> bytes:
        """Wait for any bytes; b'' at the end."""
        self._wait(lambda: self.unread or self.ended)
        return self._take(len(self.unread))

    def write(self, payload: bytes) -> None:
        """Hand it all to the engine, as credit and the socket allow."""
        conn = self.connection
        view = memoryview(payload)
        while view:
            self._wait(lambda: self.state.credit > 0 and conn.room)
            with conn.changed:
                view = view[conn.engine.write(self.state, bytes(view)):]
                conn.changed.notify_all()

    def finish(self) -> None:
        """FIN."""
        self.connection.do(lambda engine: engine.finish(self.state))

    def settle(self) -> None:
        """FIN_OK, when the peer's FIN has come."""
        self._wait(lambda: self.ended)
        self.connection.do(lambda engine: engine.settle(self.state))

    def wait_settled(self) -> None:
        """Wait for the FIN_OK that answers finish()."""
        self._wait(lambda: self.state.fin_ok_received)

    def abort(self, code: int, text: str) -> None:
        self.connection.do(
            lambda engine: engine.reset(self.state, code, text))

    @property
    def ended(self) -> bool:
        return self.state.state in (State.ENDED, State.RETIRED)

    def _take(self, size: int) -> bytes:
        with self.connection.changed:
            data = bytes(self.unread[:size])
            del self.unread[:size]
            self.consumed += size
            self.connection.engine.grant(self.state, self.consumed)
            self.connection.changed.notify_all()
        return data

    def _wait(self, condition) -> None:
        def done():
            return self.reset or condition()
        self.connection.wait(done)
        if self.reset:
            raise MuxError(f'{self.name}: reset: {self.reset[1]}',
                           self.reset[0])


class Connection:
    """
    A socket that speaks the protocol.

    `on_open` is called, in the receiving thread and without the lock, with
    each stream that the peer opens, and accepts or aborts it.  `tap` is
    called with ('in' or 'out', bytes) for all that is received and sent.
    """

    def __init__(self, sock: socket.socket, engine: Engine, on_open=None,
                 tap=None):
        self.engine = engine
        self.changed = threading.Condition()
        self.streams: dict[int, Stream] = {}
        self.error: Exception | None = None
        self.peer = sock.getpeername()
        self.over = False               # the peer's bytes have ended
        self.listening = True           # else they are thrown away
        self._sending = False
        self._sock = sock
        self._on_open = on_open
        self._tap = tap or (lambda *_: None)
        self._threads = [threading.Thread(target=target, daemon=True)
                         for target in (self._receive, self._send)]
        for thread in self._threads:
            thread.start()

    @property
    def room(self) -> bool:
        return len(self.engine.out) < 4 * PIECE

    def do(self, action):
        """Call the engine."""
        with self.changed:
            result = action(self.engine)
            self.changed.notify_all()
        return result

    def wait(self, condition) -> None:
        """Wait for a condition.  Raises MuxError at the end of it all."""
        with self.changed:
            if not self.changed.wait_for(
                    lambda: condition() or self.error or self.over, PATIENCE):
                raise MuxError(f'nothing happened in {PATIENCE} s')
            if not condition():
                raise MuxError(f'the connection is gone: {self.why()}')

    def work(self, target) -> threading.Thread:
        """Run something in a thread; its failure breaks the connection."""
        def run():
            try:
                target()
            except Exception as error:      # whatever it is
                self._fail(error)
        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        return thread

    def why(self) -> str:
        if self.engine.goaway:
            code, text = self.engine.goaway
            return f'GOAWAY {code}: {text}'
        return str(self.error or 'its end')

    def open(self, name: str) -> Stream:
        """Open a stream and wait for the answer."""
        return self.opened(self.offer(name))

    def opened(self, stream: Stream) -> Stream:
        """Wait for the answer to an offer."""
        stream._wait(lambda: stream.state.state != State.OFFERED)
        return stream

    def offer(self, name: str) -> Stream:
        """Open a stream."""
        self.wait(lambda: self.engine.peer)
        return self.do(lambda engine: self._add(engine.open(name)))

    def accept(self, stream: Stream) -> None:
        self.do(lambda engine: engine.accept(stream.state))

    def send_raw(self, data: bytes) -> None:
        """Send bytes past the engine."""
        def action(engine):
            engine.out += data
        self.do(action)

    def flush(self) -> None:
        """Wait until all that was queued is in the socket."""
        self.wait(lambda: not self.engine.out and not self.engine.holds
                  and not self._sending)

    def close(self, code: int = Code.OK, text: str = '') -> None:
        """GOAWAY, unless the peer said it, and close after the peer."""
        with self.changed:
            if not self.engine.gone:
                self.engine.leave(code, text)
            self.changed.notify_all()
            self.changed.wait_for(
                lambda: self.over or (self.engine.goaway and not self._sending
                                      and not self.engine.out), PATIENCE)
        self.drop()

    def drop(self) -> None:
        """Close the socket without a word."""
        try:
            self._sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        with self.changed:
            self.over = True
            self.changed.notify_all()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join()
        self._sock.close()

    def _add(self, state: EngineStream) -> Stream:
        self.streams[state.id] = Stream(self, state)
        return self.streams[state.id]

    def _fail(self, error: Exception) -> None:
        with self.changed:
            self.error = self.error or error
            self.changed.notify_all()

    def _receive(self) -> None:
        try:
            while received := self._sock.recv(PIECE):
                self._take(received)
            if self.listening and not self.error:
                self.engine.end()
        except Exception as error:      # also of what `on_open` does
            self._fail(error)
        with self.changed:
            self.over = True
            self.changed.notify_all()

    def _take(self, received: bytes) -> None:
        """A fault of the peer ends it; what still comes is thrown away."""
        with self.changed:
            self._tap('in', received)
            self.changed.notify_all()
            if self.error or not self.listening:
                return
            try:
                self.engine.feed(received)
            except Fault as error:
                self._fail(error)
            events, self.engine.events = self.engine.events, []
            for event in events:
                self._note(event)
        for event in events:
            if event.kind == Type.OPEN and self._on_open:
                self._on_open(self.streams[event.stream.id])

    def _note(self, event: Event) -> None:
        if event.kind == Type.OPEN:
            self._add(event.stream)
        elif event.kind == Type.DATA:
            self.streams[event.stream.id].unread += event.data
        elif event.kind == Type.RESET:
            self.streams[event.stream.id].reset = (event.code,
                                                   event.data.decode())

    def _send(self) -> None:
        try:
            while True:
                with self.changed:
                    while not self.engine.out and not self.over:
                        # time may allow what is held
                        self.changed.wait(RELEASE if self.engine.holds
                                          else None)
                        self.engine.release()
                    if not self.engine.out:
                        return
                    data = self.engine.fetch()
                    self._sending = True
                    self.changed.notify_all()
                self._tap('out', data)
                self._sock.sendall(data)
                with self.changed:
                    self._sending = False
                    self.changed.notify_all()
        except OSError as error:
            self._fail(error)


def connection(sock: socket.socket, role: Role, **keywords) -> Connection:
    """A connection that keeps all the rules."""
    return Connection(sock, Engine(role), **keywords)
