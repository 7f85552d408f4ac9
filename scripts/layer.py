# SPDX-License-Identifier: GPL-2.0-or-later
"""
Laying the series on QEMU's tree: what is written, kept and refused.
"""

import hashlib
import json
import os
import shutil
import sys

from seriestree import SeriesError, read, write


def stamp(path):
    """Changes whenever the file is written."""
    try:
        stat = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return [stat.st_mtime_ns, stat.st_size, stat.st_mode]


def digest(content):
    return hashlib.sha256(content).hexdigest()


class Layer:
    """One run of laying; build/laid.json remembers what the last one did."""

    def __init__(self, series, force):
        self.series = series
        self.force = force
        self.tree = series.laid_tree()
        if self.tree is None:
            raise SeriesError('no source of QEMU is here yet: '
                              'run ./configure')
        self.memory = series.build / 'laid.json'
        self.laid = json.loads(read(self.memory) or b'{}')
        self.written, self.removed = [], []
        self.kept, self.faults = [], {}     # faults: path -> SeriesError

    def source(self, path, patched):
        return self.series.patch_file(path) if patched \
            else self.series.top / path

    def content(self, path, patched):
        if patched:
            return self.series.patch(path).apply(self.tree.base_content(path))
        return self.source(path, False).read_bytes()

    def untouched(self, path):
        """What the tree has there, unless it was edited."""
        if path in self.laid:
            return self.laid[path]['digest']
        if path in self.tree.base_files():
            return digest(self.tree.base_content(path))
        return None

    def lay_file(self, path, patched):
        source, target = self.source(path, patched), self.tree.top / path
        entry = self.laid.get(path)
        if entry and entry['source'] == stamp(source) and \
                entry['target'] == stamp(target):
            return
        if patched != (path in self.tree.base_files()):
            raise SeriesError(
                f'patches/{path}.patch: QEMU has no file {path}' if patched
                else f'{path} is a file of QEMU: change it with a patch '
                     '(edit build/src, then scripts/patches refresh)')
        new, current = self.content(path, patched), read(target)
        if current is not None and current != new and not self.force and \
                digest(current) != self.untouched(path):
            if entry and digest(new) == entry['digest']:
                self.kept.append(path)
                return
            raise SeriesError(
                f'build/src/{path} was edited, and the series has a newer '
                'one too.\n  Bring them together by hand, or drop the one in '
                'build/src: scripts/lay --force')
        if current != new:
            write(target, new)
            self.written.append(path)
        if not patched:
            shutil.copymode(source, target)
        self.laid[path] = {'source': stamp(source), 'target': stamp(target),
                           'digest': digest(new)}

    def remove(self, path):
        """Take back a file that the series no longer has."""
        target = self.tree.top / path
        current = read(target)
        if current is not None and not self.force and \
                digest(current) != self.laid[path]['digest']:
            raise SeriesError(f'{path} is no longer in the series, but was '
                              'edited in build/src.\n  Save it, then run '
                              'scripts/lay --force')
        if path in self.tree.base_files():
            write(target, self.tree.base_content(path))
        elif current is not None:
            target.unlink()
            parent = target.parent
            while not any(parent.iterdir()):
                parent.rmdir()
                parent = parent.parent
        del self.laid[path]
        self.removed.append(path)

    def run(self):
        wanted = {path: False for path in self.series.overlay()}
        for path in self.series.patched():
            if path in wanted:
                raise SeriesError(f'{path} is overlay and has a patch')
            wanted[path] = True
        before = json.dumps(self.laid)
        for action, paths in (
                (self.remove, sorted(set(self.laid) - set(wanted))),
                (lambda path: self.lay_file(path, wanted[path]), wanted)):
            for path in paths:
                try:
                    action(path)
                except SeriesError as error:
                    self.faults[path] = error
        if json.dumps(self.laid) != before:
            write(self.memory, json.dumps(self.laid, indent=0).encode())

    def report(self, verbose):
        if self.written or self.removed or verbose:
            print(f'lay: {len(self.written)} files laid, '
                  f'{len(self.removed)} taken back')
        if verbose:
            for path in self.written + self.removed:
                print(f'  {path}')
        if self.kept:
            print('lay: edited in build/src and kept (take them over with '
                  'scripts/patches refresh):\n  ' + '\n  '.join(self.kept))
        for fault in self.faults.values():
            print(f'lay: {fault}', file=sys.stderr)
