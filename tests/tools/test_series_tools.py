#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""
Tests of scripts/lay, patches and series, on a small tree that stands for
QEMU's.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

SCRIPTS = Path(__file__).resolve().parents[2] / 'scripts'
HEAD = '''Subject: core: call the feature
Reason: call: only the core knows when
Upstream: not sent yet
Rebase: look for core_start()

'''
CORE = '''int core_start(void)
{
    prepare();
    return 0;
}

int core_stop(void)
{
    prepare();
    return 0;
}
'''
LIST = "files(\n  'core.c',\n  'other.c',\n)\n"
COMMITS = '''A feature
Cover text.

== docs: describe the feature

+ docs/*
+ core/meson.build

== core: add the feature

+ core/feature.c
+ core/core.c
'''


class ToolsTest(unittest.TestCase):
    """Each test has a fresh repository and a fresh laid tree."""

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.top = Path(folder.name) / 'repo'
        self.src = self.top / 'build/src'
        self.git_env = {**os.environ, 'LC_ALL': 'C',
                        'GIT_CONFIG_GLOBAL': '/dev/null',
                        'GIT_AUTHOR_NAME': 'T', 'GIT_COMMITTER_NAME': 'T',
                        'GIT_AUTHOR_EMAIL': 't@example.org',
                        'GIT_COMMITTER_EMAIL': 't@example.org'}
        self.write('.gitignore', '/build/\n')
        self.write('patches/series', '')
        self.write('MAINTAINERS', 'Feature\nF: core/feature.*\n'
                   'F: docs/\n')
        (self.top / 'scripts').mkdir()
        shutil.copy(SCRIPTS / 'not-laid', self.top / 'scripts')
        self.git('init', '-q', self.top)
        self.new_base({'core/core.c': CORE, 'core/meson.build': LIST,
                       'MAINTAINERS': 'Core\n----\nF: core/\n\n'
                                      'Migration\nM: A <a@b>\n',
                       'VERSION': '10.0.1\n'})

    def new_base(self, files):
        """As configure does with a source of QEMU."""
        shutil.rmtree(self.top / 'build', ignore_errors=True)
        for path, text in files.items():
            self.write(f'build/src/{path}', text)
        base = self.top / 'build/base.git'
        self.git('init', '-q', '--bare', base)
        tree = [f'--git-dir={base}', f'--work-tree={self.src}']
        self.git(*tree, 'add', '-A', cwd=self.src)
        self.git(*tree, 'commit', '-q', '-m', 'QEMU', cwd=self.src)
        self.git(*tree, 'tag', 'base', cwd=self.src)
        self.write('build/source', '')

    def git(self, *args, cwd=None):
        subprocess.run(['git', *args], cwd=cwd, env=self.git_env, check=True,
                       stdout=subprocess.DEVNULL)

    def write(self, path, text):
        path = self.top / path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def read(self, path):
        return (self.top / path).read_text()

    def tool(self, name, *args, fails=False):
        """Run a script; returns all that it printed."""
        done = subprocess.run(
            [sys.executable, SCRIPTS / name, '--top', self.top, *args],
            env=self.git_env, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, check=False)
        self.assertEqual(done.returncode != 0, fails, done.stdout)
        self.assertNotIn('Traceback', done.stdout)
        return done.stdout

    def add_patch(self, path='core/core.c', old='    prepare();\n    return',
                  new='    prepare();\n    feature();\n    return', at=0):
        """Change a file of QEMU in the laid tree, and refresh."""
        text = self.read(f'build/src/{path}')
        start = text.index(old, at)
        self.write(f'build/src/{path}',
                   text[:start] + new + text[start + len(old):])
        said = self.tool('patches', 'refresh')
        patch = self.read(f'patches/{path}.patch')
        self.write(f'patches/{path}.patch',
                   HEAD + patch[patch.index('--- a/'):])
        return said

    # Laying

    def test_overlay_is_laid_and_only_once(self):
        self.write('core/feature.c', 'one\n')
        self.write('core/other.c', 'other\n')
        self.assertIn('2 files laid', self.tool('lay'))
        before = (self.src / 'core/other.c').stat().st_mtime_ns
        self.write('core/feature.c', 'two\n')
        self.assertIn('1 files laid', self.tool('lay'))
        self.assertEqual(self.read('build/src/core/feature.c'), 'two\n')
        self.assertEqual((self.src / 'core/other.c').stat().st_mtime_ns,
                         before)

    def test_touched_file_is_not_written_again(self):
        self.write('core/feature.c', 'one\n')
        self.tool('lay')
        before = (self.src / 'core/feature.c').stat().st_mtime_ns
        os.utime(self.top / 'core/feature.c')
        self.tool('lay')
        self.assertEqual((self.src / 'core/feature.c').stat().st_mtime_ns,
                         before)

    def test_vanished_overlay_is_removed_with_its_folder(self):
        self.write('new/deep/feature.c', 'one\n')
        self.tool('lay')
        (self.top / 'new/deep/feature.c').unlink()
        self.tool('lay')
        self.assertFalse((self.src / 'new').exists())

    def test_repository_files_are_not_laid(self):
        for path in ('README.md', 'scripts/x', 'patches/commits',
                     'tests/mux/standalone/qemu/osdep.h'):
            self.write(path, 'x\n')
        self.assertIn('0 files laid', self.tool('lay', '-v'))

    def test_overlay_never_replaces_a_file_of_qemu(self):
        self.write('core/core.c', 'mine\n')
        said = self.tool('lay', fails=True)
        self.assertIn('core/core.c is a file of QEMU', said)
        self.assertEqual(self.read('build/src/core/core.c'), CORE)
        self.assertIn('not ok 1', self.tool('patches', 'check', fails=True))

    def test_edit_in_laid_tree_survives_laying(self):
        self.write('core/feature.c', 'one\n')
        self.tool('lay')
        self.write('build/src/core/feature.c', 'edited\n')
        self.assertIn('kept', self.tool('lay'))
        self.assertEqual(self.read('build/src/core/feature.c'), 'edited\n')

    def test_edits_on_both_sides_are_a_conflict(self):
        self.write('core/feature.c', 'one\n')
        self.tool('lay')
        self.write('build/src/core/feature.c', 'edited\n')
        self.write('core/feature.c', 'two\n')
        self.assertIn('core/feature.c was edited',
                      self.tool('lay', fails=True))
        self.tool('patches', 'refresh', fails=True)
        self.assertEqual(self.read('core/feature.c'), 'two\n')
        self.tool('lay', '--force')
        self.assertEqual(self.read('build/src/core/feature.c'), 'two\n')

    # Patches

    def test_refresh_makes_a_patch_with_enough_context(self):
        self.add_patch(at=CORE.index('core_stop'))
        self.tool('patches', 'check')
        self.tool('lay', '--force')
        self.assertEqual(self.read('build/src/core/core.c').index('feature'),
                         CORE.index('prepare', CORE.index('core_stop'))
                         + len('prepare();\n    '))

    def test_new_patch_needs_its_head_filled_in(self):
        self.assertIn('fill in its head', self.add_patch())
        self.tool('patches', 'check')
        patch = self.read('patches/core/core.c.patch')
        for bad, fault in ((HEAD.replace('call:', 'whim:'), 'must begin'),
                           (HEAD.replace('Rebase:', 'Re:'), 'no "Rebase:"'),
                           (HEAD.replace('only', 'FILL-IN'), 'not filled')):
            self.write('patches/core/core.c.patch', patch.replace(HEAD, bad))
            self.assertIn(fault, self.tool('patches', 'check', fails=True))

    def test_refresh_keeps_the_head(self):
        self.add_patch()
        text = self.read('build/src/core/core.c')
        self.write('build/src/core/core.c',
                   text.replace('feature();', 'better_feature();'))
        self.tool('patches', 'refresh')
        patch = self.read('patches/core/core.c.patch')
        self.assertTrue(patch.startswith(HEAD))
        self.assertIn('+    better_feature();', patch)

    def test_reverted_change_takes_its_patch_along(self):
        self.add_patch()
        self.tool('lay')
        self.write('build/src/core/core.c', CORE)
        self.tool('patches', 'refresh')
        self.assertFalse((self.top / 'patches/core/core.c.patch').exists())
        self.assertEqual(self.read('patches/series'), '')

    def test_vanished_patch_restores_the_file(self):
        self.add_patch()
        self.tool('lay')
        (self.top / 'patches/core/core.c.patch').unlink()
        self.write('patches/series', '')
        self.tool('lay')
        self.assertEqual(self.read('build/src/core/core.c'), CORE)

    def test_ambiguous_context_is_refused(self):
        self.add_patch()
        self.write('patches/core/core.c.patch', HEAD +
                   '--- a/core/core.c\n+++ b/core/core.c\n@@ -3,2 +3,3 @@\n'
                   '     prepare();\n+    feature();\n     return 0;\n')
        said = self.tool('patches', 'check', fails=True)
        self.assertIn('ambiguous', said)
        self.assertIn('lines 3, 9', said)
        self.tool('lay', '--force', fails=True)

    def test_fuzz_is_refused(self):
        self.add_patch()
        patch = self.read('patches/core/core.c.patch')
        self.write('patches/core/core.c.patch',
                   patch.replace(' int core_start(void)',
                                 ' int core_begin(void)'))
        self.assertIn('not in the file',
                      self.tool('patches', 'check', fails=True))

    def test_patch_of_another_file_is_refused(self):
        self.add_patch()
        patch = self.read('patches/core/core.c.patch')
        self.write('patches/core/core.c.patch',
                   patch + '--- a/VERSION\n+++ b/VERSION\n@@ -1 +1 @@\n'
                   '-10.0.1\n+10.0.2\n')
        self.tool('patches', 'check', fails=True)

    def test_unlisted_patch_is_reported(self):
        self.add_patch()
        self.write('patches/series', '')
        self.assertIn('not in patches/series',
                      self.tool('patches', 'check', fails=True))

    def test_unmaintained_file_is_reported(self):
        self.write('docs/deep/page.rst', 'covered\n')
        self.write('core/feature.c', 'covered\n')
        self.tool('patches', 'check')
        self.write('core/stray.c', 'not covered\n')
        self.assertIn('core/stray.c: no "F:" line',
                      self.tool('patches', 'check', fails=True))

    def test_check_without_a_source_checks_heads(self):
        self.add_patch()
        shutil.rmtree(self.top / 'build')
        self.assertIn('no source', self.tool('patches', 'check'))
        self.write('patches/core/core.c.patch',
                   self.read('patches/core/core.c.patch')[len(HEAD):])
        self.tool('patches', 'check', fails=True)

    # Another QEMU

    def test_rename_in_another_qemu_is_named(self):
        self.add_patch()
        self.new_base({'core/renamed.c': CORE, 'VERSION': '10.0.2\n'})
        self.assertIn('QEMU has no file core/core.c',
                      self.tool('lay', fails=True))
        self.assertIn('core/core.c', self.tool('patches', 'refresh',
                                               fails=True))
        self.assertTrue((self.top / 'patches/core/core.c.patch').exists())

    def test_moved_lines_apply_and_changed_ones_are_made_by_hand(self):
        self.add_patch()
        self.new_base({'core/core.c': '/* more */\n' * 9 + CORE})
        self.tool('lay')
        self.assertIn('feature();', self.read('build/src/core/core.c'))
        changed = CORE.replace('prepare();', 'get_ready();')
        self.new_base({'core/core.c': changed})
        self.assertIn('patches/core/core.c.patch: hunk 1',
                      self.tool('lay', fails=True))
        self.write('build/src/core/core.c', changed.replace(
            'ready();', 'ready();\n    feature();', 1))
        self.tool('patches', 'refresh')
        self.tool('patches', 'check')
        self.assertTrue(self.read('patches/core/core.c.patch')
                        .startswith(HEAD))

    def test_change_at_no_particular_place_fails_and_is_named(self):
        self.new_base({'core/core.c': 'same();\n' * 100})
        self.write('build/src/core/core.c',
                   'same();\n' * 50 + 'feature();\n' + 'same();\n' * 50)
        said = self.tool('patches', 'refresh', fails=True)
        self.assertIn('core/core.c: no context', said)
        self.assertFalse((self.top / 'patches/core/core.c.patch').exists())

    # Other trees

    def test_refresh_from_a_git_tree(self):
        tree = self.top.parent / 'tree'
        shutil.copytree(self.src, tree)
        self.git('init', '-q', tree)
        self.git('add', '-A', cwd=tree)
        self.git('commit', '-q', '-m', 'base', cwd=tree)
        (tree / 'core/feature.c').write_text('feature\n')
        (tree / 'core/core.c').write_text(
            CORE.replace('{', '{\n    feature();', 1))
        self.git('add', '-A', cwd=tree)
        self.git('commit', '-q', '-m', 'feature', cwd=tree)
        (tree / 'core/stray.c').write_text('stray\n')
        said = self.tool('patches', 'refresh', '--from', tree)
        self.assertIn('core/stray.c: new and untracked', said)
        self.assertFalse((self.top / 'core/stray.c').exists())
        self.assertEqual(self.read('core/feature.c'), 'feature\n')
        self.assertEqual(self.read('patches/series'), 'core/core.c.patch\n')
        self.tool('lay')
        self.assertEqual(self.read('build/src/core/core.c'),
                         (tree / 'core/core.c').read_text())

    # The mail series

    def in_commit(self, revision, path):
        """A file as it is in a commit of the series."""
        return subprocess.run(
            ['git', 'show', f'{revision}:{path}'], check=True,
            cwd=self.top / 'build/branch', stdout=subprocess.PIPE,
            text=True).stdout

    def test_list_entries_come_with_their_files(self):
        self.write('docs/feature.rst', 'Feature\n')
        self.write('core/feature.c', 'feature\n')
        self.tool('lay')
        self.add_patch('core/meson.build', "  'core.c',\n",
                       "  'core.c',\n  'feature.c',\n")
        self.add_patch()
        self.write('patches/commits', COMMITS)
        self.tool('series', '--branch')

        at = self.in_commit
        self.assertEqual(at('series~1', 'core/meson.build'), LIST)
        self.assertIn("'feature.c'", at('series', 'core/meson.build'))
        self.assertEqual(at('series~1', 'MAINTAINERS'),
                         'Core\n----\nF: core/\n\n'
                         + self.read('MAINTAINERS') +
                         '\nMigration\nM: A <a@b>\n')
        self.assertIn('feature();', at('series', 'core/core.c'))

    def commits_of_two_changes(self, regex):
        """Two changes in one hunk, the one that REGEX names comes first."""
        self.write('core/feature.c', 'feature\n')
        self.add_patch(old='    prepare();\n    return',
                       new='    prepare_more();\n    prepare();\n'
                           '    feature();\n    return')
        self.write('patches/commits',
                   f'Cover\n\n== first\n+ core/feature.c\n'
                   f'+ core/core.c /{regex}/\n'
                   '== second\n+ core/core.c\n')

    def test_changes_of_one_hunk_come_in_two_commits(self):
        self.commits_of_two_changes(r'\bfeature\(\)')
        self.tool('series', '--branch')
        first = self.in_commit('series~1', 'core/core.c')
        second = self.in_commit('series', 'core/core.c')
        self.assertIn('feature();', first)
        self.assertNotIn('prepare_more();', first)
        self.assertEqual(second, self.read('build/src/core/core.c'))

    def test_choice_of_no_change_is_refused(self):
        self.commits_of_two_changes('nonsense')
        said = self.tool('series', '--branch', fails=True)
        self.assertIn('core/core.c nonsense: no such change', said)

    def test_large_commit_is_refused(self):
        for name, count in ('large', 801), ('small', 800):
            self.write(f'core/{name}.c', 'x\n' * count)
            self.write(f'docs/{name}.rst', 'x\n' * 10)
            self.write(f'tests/test-{name}.c', 'x\n' * 10)
        self.write('patches/commits', 'Cover\n\n' + ''.join(
            f'== {name} commit\n\n'
            f'+ core/{name}.c\n+ docs/{name}.rst\n+ tests/test-{name}.c\n'
            for name in ('large', 'small')))
        said = self.tool('series', '--branch', fails=True)
        self.assertIn('801 lines of product code, more than 800: '
                      '"large commit"', said)
        self.assertNotIn('small commit', said)

    def test_cover_letter_lists_the_parts(self):
        for name in ('one', 'two', 'three'):
            self.write(f'docs/{name}.rst', 'x\n')
        commits = ('Cover\n\n{structure}\n\nend\n=== the first part\n'
                   '== one\n+ docs/one.rst\n=== a title of\ntwo lines\n'
                   '== two\n+ docs/two.rst\n== three\n+ docs/three.rst\n')
        self.write('patches/commits', commits)
        self.new_base({'scripts/checkpatch.pl': '', 'MAINTAINERS':
                       'Core\n----\n\nMigration\nM: A <a@b>\n'})
        self.tool('series')
        self.assertIn('\n  1      the first part\n'
                      '  2-3    a title of two lines\n\nend\n',
                      self.read('build/series/0000-cover-letter.patch'))
        for wrong in (commits.replace('=== the first part\n', ''),
                      commits + '=== nothing\n',
                      commits.replace('=== a', '=== empty\n=== a')):
            self.write('patches/commits', wrong)
            self.assertIn('needs a commit',
                          self.tool('series', fails=True))

    def test_forgotten_file_is_named(self):
        self.write('docs/feature.rst', 'Feature\n')
        self.write('core/feature.c', 'feature\n')
        self.add_patch()
        self.write('patches/commits',
                   'Cover\n\n== docs: describe it\n+ docs/*\n')
        said = self.tool('series', '--branch', fails=True)
        self.assertIn('+ core/feature.c', said)
        self.assertIn('+ core/core.c', said)


if __name__ == '__main__':
    unittest.main()
