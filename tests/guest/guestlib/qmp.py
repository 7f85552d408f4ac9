# SPDX-License-Identifier: GPL-2.0-or-later
"""The QMP definitions that do not depend on QEMU's packages."""


class QMPError(Exception):
    """QEMU rejected a command, did not reply, or has ended."""


def event_time(event: dict) -> float:
    """When QEMU raised an event, in seconds of the wall clock."""
    stamp = event['timestamp']
    return stamp['seconds'] + stamp['microseconds'] / 1e6
