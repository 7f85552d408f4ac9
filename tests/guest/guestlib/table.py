# SPDX-License-Identifier: GPL-2.0-or-later
"""
The table of the source's phases and of what may go wrong in them.

Each cell happens as soon as the source says that it is in the phase, over a
connection so slow that it is still there then.
"""

from .faults import PHASES, SLOW, Fault, timed

# Cells that cannot happen
LEFT_OUT = {
    ('connect', 'job-cancel'): 'there are no jobs yet',
    ('connect', 'job-kill'): 'there are no jobs yet',
    ('connect', 'job-complete'): 'there are no jobs yet',
    ('connect', 'job-pause'): 'there are no jobs yet',
}


def cells(every: int = 1, part: str = '') -> list[tuple[str, Fault]]:
    """
    Each one, or each second, third ... (which are of all phases unless 5
    divides it), fault by fault; of these the ones with `part` in their name.
    """
    columns = [timed(phase, relayed=SLOW) for phase in PHASES]
    table = [(f'{fault.phase}/{fault.name}', fault)
             for row in zip(*columns) for fault in row
             if (fault.phase, fault.name) not in LEFT_OUT]
    return [cell for cell in table[::every] if part in cell[0]]
