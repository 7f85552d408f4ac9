# SPDX-License-Identifier: GPL-2.0-or-later
"""
Finds QEMU's own Python packages, qemu.machine and qemu.qmp.

They are not installed, but are part of the source that QEMU was built from, so
they can only be imported once the build directory is known.
"""

import contextlib
import functools
import importlib
import re
import sys
from pathlib import Path

PACKAGE = 'python/qemu/machine'


def source_of(build: Path) -> Path:
    """The source directory of a build directory."""
    folders = [build.parent / 'src']
    with contextlib.suppress(FileNotFoundError):
        config = (build / 'config-host.mak').read_text(encoding='utf-8')
        folders[:0] = [build / path for path in
                       re.findall(r'^SRC_PATH=(.+)$', config, re.M)]
    for folder in folders:
        if (folder / PACKAGE).is_dir():
            return folder
    raise FileNotFoundError(f'{build}: there is no {PACKAGE} in '
                            f'{" or ".join(map(str, folders))}')


@functools.cache
def machine_class(build: Path) -> type:
    """The class Machine, based on the packages of this build's source."""
    sys.path.insert(0, str(source_of(build).resolve() / 'python'))
    return importlib.import_module('.machine', __package__).Machine
