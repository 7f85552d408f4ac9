# SPDX-License-Identifier: GPL-2.0-or-later
"""
The guest's kernel and initramfs, made from a Debian kernel package.

The package comes through the machine's own apt configuration and is
unpacked in a cache folder, never installed.  The initramfs holds the
modules for virtio disks and one program, init.c.
"""

import fcntl
import lzma
import os
import shutil
import subprocess
import time
from pathlib import Path

KERNEL_PACKAGE = 'linux-image-cloud-amd64'
INIT_SOURCE = Path(__file__).resolve().parent.parent / 'init.c'
MODULES = ('virtio_ring', 'virtio', 'virtio_pci_modern_dev',
           'virtio_pci_legacy_dev', 'virtio_pci', 'virtio_blk', 'scsi_common',
           'scsi_mod', 'virtio_scsi', 'sd_mod')


class ImageError(Exception):
    """The guest cannot be built; the text says what is missing."""


def _run(*argv: str, cwd: Path | None = None) -> str:
    try:
        done = subprocess.run(argv, cwd=cwd, text=True, check=False,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    except FileNotFoundError:
        raise ImageError(f'{argv[0]} is needed to build the guest') from None
    if done.returncode:
        raise ImageError(f'{" ".join(argv)} failed:\n{done.stderr.strip()}')
    return done.stdout


def _versioned_package() -> str:
    """The real package that the kernel's meta package depends on."""
    for line in _run('apt-cache', 'depends', KERNEL_PACKAGE).splitlines():
        word, _, name = line.strip().partition(': ')
        if word == 'Depends' and name.startswith('linux-image-'):
            return name
    raise ImageError(f'apt knows no kernel behind {KERNEL_PACKAGE}; '
                     'is "apt-get update" due?')


def _unpack_kernel(cache: Path) -> Path:
    """Fetch and unpack the kernel package once; returns the folder."""
    tree = cache / 'kernel'
    if tree.exists():
        return tree
    package = _versioned_package()
    fetched = cache / 'package'
    shutil.rmtree(fetched, ignore_errors=True)
    fetched.mkdir(parents=True)
    for pause in (10, 30, 0):
        try:
            _run('apt-get', '-o', 'Acquire::Retries=3', 'download', package,
                 cwd=fetched)
            break
        except ImageError:
            if not pause:
                raise
            time.sleep(pause)   # a mirror that is being brought up to date
    partial = cache / 'kernel.partial'
    shutil.rmtree(partial, ignore_errors=True)
    for deb in fetched.glob('*.deb'):
        _run('dpkg-deb', '-x', str(deb), str(partial))
    shutil.rmtree(fetched)
    partial.rename(tree)
    return tree


def _read_module(path: Path) -> bytes:
    if path.suffix == '.xz':
        return lzma.decompress(path.read_bytes())
    if path.suffix == '.zst':
        return subprocess.run(['zstd', '-dcq', str(path)], check=True,
                              stdout=subprocess.PIPE).stdout
    return path.read_bytes()


def _find_module(tree: Path, name: str) -> Path | None:
    for suffix in ('.ko', '.ko.xz', '.ko.zst'):
        for path in tree.rglob(name + suffix):
            return path
    return None


def _cpio_entry(name: str, mode: int, data: bytes = b'',
                device: tuple = (0, 0)) -> bytes:
    """One file of a newc archive."""
    raw = name.encode() + b'\0'
    fields = (0, mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(raw), 0)
    entry = b'070701' + b''.join(b'%08X' % field for field in fields) + raw
    entry += b'\0' * (-len(entry) % 4) + data
    return entry + b'\0' * (-len(entry) % 4)


def _initramfs(tree: Path, init: bytes) -> bytes:
    parts = [_cpio_entry(folder, 0o040755)
             for folder in ('dev', 'sys', 'modules')]
    parts.append(_cpio_entry('dev/console', 0o020600, device=(5, 1)))
    for number, name in enumerate(MODULES):
        path = _find_module(tree, name)
        if path:        # else it is built in, or this kernel has no such part
            parts.append(_cpio_entry(f'modules/{number:02}-{name}', 0o100644,
                                     _read_module(path)))
    parts.append(_cpio_entry('init', 0o100755, init))
    parts.append(_cpio_entry('TRAILER!!!', 0))
    return b''.join(parts)


def build(cache: Path) -> tuple[Path, Path]:
    """
    Make what is not in the cache yet.  Returns the paths of the kernel
    and of the initramfs.  Raises ImageError.
    """
    cache.mkdir(parents=True, exist_ok=True)
    with open(cache / 'lock', 'w', encoding='ascii') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)        # other tests may need it, too
        return _build(cache)


def _build(cache: Path) -> tuple[Path, Path]:
    tree = _unpack_kernel(cache)
    kernels = sorted((tree / 'boot').glob('vmlinuz-*'))
    if not kernels:
        raise ImageError(f'{tree} holds no kernel')
    initramfs = cache / 'initramfs'
    newest = max(os.stat(path).st_mtime for path in (INIT_SOURCE, __file__))
    if not initramfs.exists() or initramfs.stat().st_mtime < newest:
        init = cache / 'init'
        _run(os.environ.get('CC', 'gcc'), '-static', '-O2', '-Wall',
             '-o', str(init), str(INIT_SOURCE))
        partial = cache / 'initramfs.partial'
        partial.write_bytes(_initramfs(tree, init.read_bytes()))
        partial.rename(initramfs)
    return kernels[-1], initramfs
