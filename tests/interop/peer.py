#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""
Be the other side of a multiplexed migration of QEMU.

    peer.py record FOLDER DISK=BYTES...   accept a migration, write its
                                          streams and disks into a folder
    peer.py replay FOLDER DISK...         migrate what was recorded
    peer.py fault NAME DISK=BYTES...      commit one of the faults that are in
                                          the tables of the specification, as
                                          source with --connect, and show what
                                          the answer is
    peer.py faults                        their names
"""

import argparse
import socket
import sys
from pathlib import Path

import faults
from muxpeer.connection import MuxError
from muxpeer.engine import Fault
from muxpeer.frames import Code, Role
from muxpeer.nbd import NBDError
from muxpeer.record import Recorder, replay
from scene import Scene, goaway


def disk(text: str) -> tuple[str, int]:
    name, _, size = text.partition('=')
    return name, int(size or 0)


def accept(address) -> socket.socket:
    with socket.create_server(address) as listener:
        print(f'listening on port {listener.getsockname()[1]}', flush=True)
        return listener.accept()[0]


def record(args) -> None:
    Recorder(accept(args.address), Path(args.what), args.disks).run()


def play(args) -> None:
    replay(socket.create_connection(args.address), Path(args.what),
           args.disks)


def misbehave(args) -> None:
    """Raises MuxError unless it is answered with a GOAWAY."""
    role = Role.SOURCE if args.connect else Role.DESTINATION
    sock = (socket.create_connection if args.connect else
            accept)(args.address)
    with Scene(sock, role, args.disks,
               faults.beginning(args.what, role)) as scene:
        faults.commit(args.what, scene)
        if args.what in faults.ENDS:
            return
        answer = goaway(scene.answers())
    if answer is None:
        raise MuxError('the connection was closed without a GOAWAY')
    code, text = answer
    name = Code(code).name if code in list(Code) else code
    print(f'GOAWAY {name}: {text}')


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__.strip(),
        formatter_class=argparse.RawDescriptionHelpFormatter)
    acts = {'record': record, 'replay': play, 'fault': misbehave}
    parser.add_argument('act', choices=[*acts, 'faults'])
    parser.add_argument('what', nargs='?', metavar='FOLDER|NAME')
    parser.add_argument('disks', nargs='*', type=disk,
                        metavar='DISK[=BYTES]',
                        help='the size is that at the source, where this side '
                             'is the destination')
    parser.add_argument('--connect', action='store_true')
    parser.add_argument('--host', default='127.0.0.1')
    parser.add_argument('--port', type=int, default=4444)
    args = parser.parse_args()
    args.disks = dict(args.disks)
    args.address = args.host, args.port
    if args.act == 'faults':
        print(*faults.names(), sep='\n')
        return 0
    if args.what is None or \
            args.act == 'fault' and args.what not in faults.names():
        parser.error('a folder, or the name of a fault, is missing')
    try:
        acts[args.act](args)
    except (OSError, MuxError, Fault, NBDError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == '__main__':
    sys.exit(main())
