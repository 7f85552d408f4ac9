# SPDX-License-Identifier: GPL-2.0-or-later
"""What the tests need to know of QMP to make sense of what Machine does."""


class QMPError(Exception):
    """QEMU's refusal of a command, or no answer, or no QEMU any more."""


def event_time(event: dict) -> float:
    """When QEMU raised an event, in seconds of the wall clock."""
    stamp = event['timestamp']
    return stamp['seconds'] + stamp['microseconds'] / 1e6
