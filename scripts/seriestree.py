# SPDX-License-Identifier: GPL-2.0-or-later
"""
What the tools know of the series and of QEMU's tree.

The series is overlay files, kept at the paths that they have in QEMU's
tree, and patches/, one patch for each file that QEMU has already. QEMU's
tree is build/src (laid: with the series on it); the tree as it came is
the tag "base" of build/base.git.

A patch applies only where the lines that it replaces, with their context,
stand exactly once in the file: no fuzz, and nothing to misplace. Line
numbers are informative.
"""

import fnmatch
import os
import re
import subprocess
import tempfile
from pathlib import Path

FILL_IN = 'FILL-IN'
HEAD_FIELDS = ('Subject', 'Reason', 'Upstream', 'Rebase')
REASONS = {
    'call': 'QEMU has to call the series at this place',
    'list': 'the series needs an entry in a list that QEMU keeps here',
    'interface': 'a declaration of QEMU has to offer the series more',
    'fix': 'a defect of QEMU that stands in the way of the series',
}
HEAD_TEMPLATE = f'''Subject: {FILL_IN}: {{path}}: what the hook does
Reason: {FILL_IN} ({' | '.join(REASONS)}): why this cannot be overlay
Upstream: not sent yet
Rebase: {FILL_IN}: what to look at when this place of QEMU has changed

'''
HUNK = re.compile(r'@@ -(\d+)(?:,\d+)? \+\d+(?:,\d+)? @@')
CONTEXT_TRIED = (1, 2, 3, 4, 6, 8, 12)


class SeriesError(Exception):
    """Something the user has to mend; the text says what and where."""


class DoesNotApply(SeriesError):
    """A patch whose place is not (or not only once) in the file."""


def run(*command, **kwargs):
    """Run a command, return what it printed (bytes)."""
    done = subprocess.run([str(word) for word in command],
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          check=False, **kwargs)
    if done.returncode:
        raise SeriesError(f'{" ".join(str(w) for w in command)}: '
                          + (done.stderr or done.stdout)
                          .decode(errors='replace').strip())
    return done.stdout


def names(output):
    """The names in the output of a git command with -z."""
    return [os.fsdecode(name) for name in output.split(b'\0') if name]


def read(path):
    """A file's content, None when there is none."""
    try:
        return Path(path).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None


def write(path, content):
    """Write a file, making its folder."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_bytes(content)


class GitTree:
    """A tree of QEMU: a base commit, and files as they stand now."""

    def __init__(self, top, git_dir=None, base=None):
        self.top = Path(top)
        self.git_dir = Path(git_dir) if git_dir else self.top / '.git'
        if not self.git_dir.exists():
            raise SeriesError(f'{top} is no git repository')
        self.base = base or self._root_commit()
        self._base_files = None

    def git(self, *args, **kwargs):
        return run('git', f'--git-dir={self.git_dir}',
                   f'--work-tree={self.top}', *args, cwd=self.top, **kwargs)

    def _root_commit(self):
        roots = self.git('rev-list', '--max-parents=0', 'HEAD').split()
        if len(roots) != 1:
            raise SeriesError(f'{self.top}: not one root commit but '
                              f'{len(roots)}; name the base with --base')
        return roots[0].decode()

    def base_files(self):
        if self._base_files is None:
            self._base_files = set(names(self.git(
                'ls-tree', '-r', '-z', '--name-only', self.base)))
        return self._base_files

    def base_content(self, path):
        return self.git('cat-file', 'blob', f'{self.base}:{path}')

    def changes(self):
        """(status letter, path) of every base file that is not as it was,
        and of every tracked new one."""
        fields = iter(names(self.git('diff', '--name-status', '-z',
                                     '--no-renames', self.base, '--')))
        return list(zip(fields, fields))

    def untracked(self):
        return names(self.git('ls-files', '-o', '-z', '--exclude-standard'))


class Part:
    """Lines of a hunk that follow each other: context, or one change."""

    def __init__(self, is_change):
        self.is_change = is_change
        self.old = []
        self.new = []

    def matches(self, pattern):
        return any(re.search(pattern, line.decode(errors='replace'))
                   for line in self.old + self.new)


class Hunk:
    """One place of a patch: the lines before and after."""

    def __init__(self, line):
        self.line = line
        self.parts = []

    def add(self, line):
        kind, text = line[:1], line[1:]
        is_change = kind != b' '
        if not self.parts or self.parts[-1].is_change != is_change:
            self.parts.append(Part(is_change))
        if kind in (b' ', b'-'):
            self.parts[-1].old.append(text)
        if kind in (b' ', b'+'):
            self.parts[-1].new.append(text)

    def find(self, lines):
        """Where the old lines stand in a file: all places."""
        old = [line for part in self.parts for line in part.old]
        return [at for at in range(len(lines) - len(old) + 1)
                if lines[at:at + len(old)] == old]


class Patch:
    """A patch of the series: a head, and a diff of one upstream file."""

    def __init__(self, path, head, diff):
        self.path = path        # of the upstream file
        self.head = head        # text
        self.diff = diff        # bytes

    @classmethod
    def parse(cls, path, content):
        start = re.search(rb'^--- ', content, re.M)
        if not start:
            raise SeriesError(f'patches/{path}.patch: no diff in it')
        return cls(path, content[:start.start()].decode(),
                   content[start.start():])

    def content(self):
        return self.head.encode() + self.diff

    def field(self, name):
        """A field of the head, with its continuation lines."""
        found = re.search(rf'^{name}: *(.*(?:\n[ \t]+.*)*)', self.head, re.M)
        return found and re.sub(r'\s+', ' ', found.group(1)).strip()

    def head_faults(self):
        """What is wrong with the head, as texts."""
        for name in HEAD_FIELDS:
            text = self.field(name)
            if not text:
                yield f'its head has no "{name}:"'
            elif FILL_IN in text:
                yield f'"{name}:" in its head is not filled in'
            elif name == 'Reason' and re.match(r'\w*', text)[0] \
                    not in REASONS:
                yield ('"Reason:" must begin with one of: '
                       + ', '.join(REASONS))

    def hunks(self):
        hunks = []
        expected = [b'--- a/' + os.fsencode(self.path),
                    b'+++ b/' + os.fsencode(self.path)]
        lines = self.diff.splitlines(keepends=True)
        if [line.rstrip(b'\n') for line in lines[:2]] != expected:
            raise SeriesError(f'patches/{self.path}.patch: it must begin with '
                              f'--- a/{self.path} and +++ b/{self.path}, and '
                              'change that file alone')
        for line in lines[2:]:
            start = HUNK.match(line.decode(errors='replace'))
            if start:
                hunks.append(Hunk(int(start.group(1))))
            elif hunks and line[:1] in (b' ', b'+', b'-'):
                hunks[-1].add(line)
            else:
                raise SeriesError(f'patches/{self.path}.patch: not part of a '
                                  f'diff of one file: {line.decode()!r}')
        return hunks

    def changes(self):
        """Its changes in order, each a Part."""
        return [part for hunk in self.hunks() for part in hunk.parts
                if part.is_change]

    def apply(self, content, only=None):
        """The file with the patch (or ONLY those changes, from 0) on it."""
        lines = content.splitlines(keepends=True)
        result, done, change = [], 0, 0
        for number, hunk in enumerate(self.hunks(), 1):
            places = hunk.find(lines)
            if len(places) != 1 or places[0] < done:
                raise DoesNotApply(self._misplaced(number, hunk, places, done))
            result += lines[done:places[0]]
            done = places[0]
            for part in hunk.parts:
                result += (part.new if only is None or change in only
                           else part.old)
                done += len(part.old)
                change += part.is_change
        return b''.join(result + lines[done:])

    def _misplaced(self, number, hunk, places, done):
        if not places:
            what = ('its lines are not in the file: the place has changed.\n'
                    '  Make the change by hand in build/src, then run '
                    'scripts/patches refresh')
        elif len(places) > 1:
            what = (f'its context is ambiguous: it stands {len(places)} '
                    'times in the file, at lines '
                    + ', '.join(str(at + 1) for at in places)
                    + '.\n  scripts/patches refresh gives it enough')
        else:
            what = (f'it belongs at line {places[0] + 1}, before the end of '
                    f'the hunk above it ({done})')
        return (f'patches/{self.path}.patch: hunk {number} '
                f'(line {hunk.line}): {what}')


def make_diff(path, old, new):
    """The shortest diff whose context is unambiguous in the old file."""
    if not (old.endswith(b'\n') and new.endswith(b'\n')):
        raise SeriesError(f'{path}: no newline at its end')
    with tempfile.TemporaryDirectory() as folder:
        for name, content in ('old', old), ('new', new):
            write(Path(folder, name), content)
        for context in CONTEXT_TRIED:
            diff = subprocess.run(
                ['diff', f'-U{context}', '--label', f'a/{path}',
                 '--label', f'b/{path}', 'old', 'new'],
                cwd=folder, stdout=subprocess.PIPE, check=False).stdout
            try:
                if Patch(path, '', diff).apply(old) == new:
                    return diff
            except DoesNotApply:
                pass
    raise SeriesError(f'{path}: no context makes the place of its change '
                      'unambiguous; change a more particular place')


class Series:
    """The repository: overlay files and patches."""

    def __init__(self, top):
        self.top = Path(top)
        self.build = self.top / 'build'
        self.patches = self.top / 'patches'

    def laid_tree(self):
        """QEMU's tree with the series on it, None before ./configure."""
        git_dir = self.build / 'base.git'
        if not (self.build / 'source').exists():
            return None
        return GitTree(self.build / 'src', git_dir, 'base')

    def not_laid(self, path):
        if '/' not in path:
            return True
        lines = (self.top / 'scripts/not-laid').read_text().split('\n')
        return any(fnmatch.fnmatch(path, line) for line in lines
                   if line and not line.startswith('#'))

    def overlay(self):
        """Paths of the overlay files, sorted."""
        listed = names(run('git', 'ls-files', '-coz', '--exclude-standard',
                           cwd=self.top))
        return sorted(path for path in set(listed)
                      if not self.not_laid(path)
                      and os.path.lexists(self.top / path))

    def patch_file(self, path):
        return self.patches / f'{path}.patch'

    def patched(self):
        """Paths of the upstream files that patches/series names."""
        listed = (read(self.patches / 'series') or b'').decode().split('\n')
        listed = [line for line in listed
                  if line and not line.startswith('#')]
        for line in listed:
            if not line.endswith('.patch'):
                raise SeriesError(f'patches/series: {line}: not a .patch')
        return [line[:-len('.patch')] for line in listed]

    def patch(self, path):
        content = read(self.patch_file(path))
        if content is None:
            raise SeriesError(f'patches/series names {path}.patch, '
                              'which is not there')
        return Patch.parse(path, content)

    def write_series(self, paths):
        content = ''.join(f'{path}.patch\n' for path in sorted(paths))
        if read(self.patches / 'series') != content.encode():
            write(self.patches / 'series', content.encode())
