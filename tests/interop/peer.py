#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""
Be the other side of a multiplexed migration of QEMU: record what a source
sends into a folder, or replay a recording to a destination.
"""

import argparse
import socket
import sys
from pathlib import Path

from muxpeer.connection import MuxError
from muxpeer.engine import Fault
from muxpeer.nbd import NBDError
from muxpeer.record import Recorder, replay


def disk(text: str) -> tuple[str, int]:
    name, _, size = text.partition('=')
    return name, int(size or 0)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.strip())
    parser.add_argument('act', choices=('record', 'replay'))
    parser.add_argument('folder', type=Path)
    parser.add_argument('disks', nargs='*', type=disk, metavar='DISK[=BYTES]',
                        help='the size is that at the source; to record only')
    parser.add_argument('--host', default='127.0.0.1')
    parser.add_argument('--port', type=int, default=4444)
    args = parser.parse_args()
    disks = dict(args.disks)
    address = args.host, args.port
    try:
        if args.act == 'replay':
            replay(socket.create_connection(address), args.folder, disks)
            return 0
        with socket.create_server(address) as listener:
            print(f'listening on port {listener.getsockname()[1]}',
                  flush=True)
            Recorder(listener.accept()[0], args.folder, disks).run()
    except (OSError, MuxError, Fault, NBDError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == '__main__':
    sys.exit(main())
