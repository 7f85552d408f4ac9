# SPDX-License-Identifier: GPL-2.0-or-later
"""The ways in which the guest's disks are stored and attached."""

from dataclasses import dataclass

EACH, MAPPED = 'each', 'mapped'


@dataclass(frozen=True)
class Configuration:
    """A storage configuration, the same on both sides."""

    name: str
    formats: tuple[str, ...] = ('raw', 'qcow2')
    backing: bool = False       # both sides use the same backing file
    sync: str = 'full'          # 'top': copy only what is above it
    filter: str = ''            # driver of a filter node above each image
    aio: str = ''               # of each image, with O_DIRECT
    device: str = 'virtio-blk'  # or 'virtio-scsi'
    iothreads: str = ''         # EACH: one per disk; MAPPED: all share two
    cpus: int = 1
    nvram: bool = False         # one more disk: the firmware's variables


BASIC = Configuration('basic')
CONFIGURATIONS = (
    BASIC,
    Configuration('iothread-each', iothreads=EACH),
    Configuration('iothread-vq-mapping', iothreads=MAPPED, cpus=2),
    Configuration('virtio-scsi', device='virtio-scsi'),
    Configuration('backing-full', formats=('qcow2',) * 2, backing=True),
    Configuration('backing-top', formats=('qcow2',) * 2, backing=True,
                  sync='top'),
    Configuration('luks', formats=('luks', 'raw')),
    Configuration('throttle', filter='throttle'),
    Configuration('copy-on-read', formats=('qcow2',) * 2, backing=True,
                  filter='copy-on-read'),
    Configuration('aio-native', aio='native'),
    Configuration('io-uring', aio='io_uring'),
    Configuration('nvram', nvram=True),
    Configuration('many-disks', formats=('raw',) * 8),
)
BY_NAME = {conf.name: conf for conf in CONFIGURATIONS}
