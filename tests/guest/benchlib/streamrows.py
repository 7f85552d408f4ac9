# SPDX-License-Identifier: GPL-2.0-or-later
"""The rows about streams: those that mux-bench measures."""

from pathlib import Path

from .model import Row
from .streams import MuxBench
from .verdict import Goal

BULK_GOALS = {'TCP': (0.97, 1.1), 'unix': (0.9, 1.2)}
TRANSPORTS = {'TCP': '--tcp', 'unix': ''}
NBD_GOALS = (Goal('speed', 0.97, at_least=True),)
DEPTH_1_GOALS = (Goal('p50', 1.3), Goal('p99', 1.3))
NBD_NOTE = ('both sides keep freed memory (MALLOC_MMAP_THRESHOLD_, '
            'MALLOC_TRIM_THRESHOLD_)')
WINDOWS_MIB = 256               # what all streams of one side may hold
OWN_MIB = 32                    # what the process itself may grow by
IDLE_STREAMS = 256
RAM_WINDOW_MIB = 16             # of the stream 'main' (mux-streams.c)


def speed_and_cpu(speed: float, cpu: float) -> tuple[Goal, Goal]:
    return Goal('speed', speed, at_least=True), Goal('cpu', cpu)


def bulk(bench: MuxBench) -> list[Row]:
    """Rows 1 to 4."""
    rows = []
    for name, (speed, cpu) in BULK_GOALS.items():
        rows.append(Row(1 if name == 'TCP' else 2, f'one bulk stream, {name}',
                        *socket_and_mux(bench, 'bulk', TRANSPORTS[name]),
                        speed_and_cpu(speed, cpu)))
    for streams in (2, 8, 64):
        rows.append(Row(
            3, f'{streams} bulk streams in sum, TCP',
            bench.side('one socket', '--case bulk --on socket --tcp'),
            bench.side('mux', f'--case bulk --on mux --tcp '
                              f'--streams {streams}'),
            speed_and_cpu(0.9, 1.3)))
    rows.append(Row(4, 'one bulk stream, TLS over TCP',
                    *socket_and_mux(bench, 'bulk', '--tcp --tls'),
                    speed_and_cpu(0.97, 1.05)))
    return rows


def socket_and_mux(bench: MuxBench, case: str, arguments: str):
    return [bench.side(on, f'--case {case} --on {on} {arguments}')
            for on in ('socket', 'mux')]


def requests(bench: MuxBench) -> list[Row]:
    """Row 5, and row 6 on loopback."""
    rows = [Row(5, f'request of {size} bytes, reply of 4096, TCP',
                *socket_and_mux(bench, 'request',
                                f'--tcp --request {size} --reply 4096'),
                (Goal('p50', 1.2), Goal('p99', 1.3)))
            for size in (64, 4096)]
    return rows + [urgent(bench, 'TCP, paced to 300 MB/s',
                          '--tcp --rate 300')]


def urgent(bench: MuxBench, title: str, arguments: str, prefix: tuple = (),
           missing: str = '') -> Row:
    """Requests beside two bulk streams."""
    sides = [bench.side(name, f'--case request --bulk 2 --on {on} {arguments}',
                        prefix, seconds=2)
             for name, on in (('one socket', 'shared'), ('mux', 'mux'),
                              ('separate sockets', 'socket'))]
    return Row(6, f'urgent requests beside two bulk streams, {title}',
               *sides[:2], (Goal('p99', 0.3),), others=(sides[2],),
               missing=missing)


def shaped(bench: MuxBench, network, missing: str) -> list[Row]:
    """Row 6 on a link of 1 Gb/s."""
    if missing:
        return [urgent(bench, '1 Gb/s', '', missing=missing)]
    return [urgent(bench, '1 Gb/s', network.arguments, network.prefix(0))]


def nbd_targets(folder: Path) -> dict[str, str]:
    """Files are made by prepare_targets()."""
    return {'null': 'null', 'memory': f'/dev/shm/{folder.name}-target',
            'file': str(folder / 'target')}


def coroutines(bench: MuxBench) -> list[Row]:
    """Row 7 without NBD."""
    return [Row(7, f'coroutine in an IOThread, {name}',
                *socket_and_mux(bench, 'coroutine', transport),
                NBD_GOALS) for name, transport in TRANSPORTS.items()]


def nbd(bench: MuxBench, targets: dict[str, str]) -> list[Row]:
    """Row 7 with NBD."""
    rows = []
    for transport, option in TRANSPORTS.items():
        for target, path in targets.items():
            for pattern in ('sequential', 'random'):
                for size, text, depth in ((1 << 20, '1 MiB', 16),
                                          (4096, '4 KiB', 1)):
                    rows.append(Row(
                        7, f'NBD, {text} x {depth}, {pattern}, to {target}, '
                           f'{transport}',
                        *socket_and_mux(
                            bench, 'nbd', f'{option} --size {size} --depth '
                            f'{depth} --pattern {pattern} --target {path}'),
                        DEPTH_1_GOALS if depth == 1 else NBD_GOALS,
                        note=NBD_NOTE))
    return rows


def idle(bench: MuxBench) -> list[Row]:
    """Row 14."""
    sides = [bench.side(f'{number} streams',
                        f'--case idle --on mux --tcp --streams {number}')
             for number in (1, IDLE_STREAMS, 16)]
    return [Row(14, f'{IDLE_STREAMS} streams that no thread reads', *sides[:2],
                (Goal('threads', 1.0),
                 Goal('memory', WINDOWS_MIB + OWN_MIB, absolute=True)),
                others=(sides[2],), pairs=(6, 6),
                note='memory in MiB by which a process grows')]


def delayed(bench: MuxBench, network, missing: str) -> list[Row]:
    """Row 11."""
    link = '60 ms round trip, 1 Gb/s'
    arguments = '' if missing else network.arguments
    prefix = () if missing else network.prefix(0)
    sides = [bench.side(name, f'--case bulk --on {on} --memory 64 '
                              f'--streams {streams} {arguments}', prefix,
                        seconds=5)
             for name, on, streams in (('one socket', 'socket', 1),
                                       ('mux', 'mux', 2),
                                       ('separate sockets', 'socket', 2))]
    ram = bench.side('mux', '--case bulk --on mux --memory 64 --window '
                            f'{RAM_WINDOW_MIB} {arguments}', prefix, seconds=5)
    goals = (Goal('speed', 0.97, at_least=True),)
    return [Row(11, f'two bulk streams in sum, {link}', *sides[:2], goals,
                others=(sides[2],), pairs=(6, 15), missing=missing),
            Row(11, f'a stream with the window of RAM, {link}', sides[0], ram,
                goals, pairs=(6, 15), missing=missing)]


def sweep(bench: MuxBench) -> dict[str, list[tuple[int, float]]]:
    """MiB/s on one mux connection over TCP, by size of the writes."""
    curves = {}
    for size in (4 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20):
        curve = curves[f'{size >> 10} KiB'] = []
        for streams in (1, 2, 4, 8, 16, 32, 64):
            side = bench.side('mux', f'--case bulk --on mux --tcp --size '
                                     f'{size} --streams {streams}')
            curve.append((streams, side.measure().metrics['speed']))
    return curves
