# SPDX-License-Identifier: GPL-2.0-or-later
"""A capture of the same bytes when they travel in a TLS session."""

import ssl
import subprocess
from pathlib import Path

from pcap import Capture


def make_certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate that signs itself, and its key."""
    key, template, certificate = (folder / name for name in (
        'key.pem', 'template', 'certificate.pem'))
    template.write_text('cn = interop\n')
    for argv in (['--generate-privkey', '--ecc', '--outfile', key],
                 ['--generate-self-signed', '--load-privkey', key,
                  '--template', template, '--outfile', certificate]):
        subprocess.run(['certtool', *argv], check=True, capture_output=True)
    return certificate, key


class End:
    """One side of a session, whose records go to `capture`."""

    def __init__(self, context: ssl.SSLContext, direction: str, capture):
        self.received = ssl.MemoryBIO()
        self._sent = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self.received, self._sent,
                                     server_side=direction == 'in')
        self._capture = lambda records: capture(direction, records)

    def shake_hands(self, other: 'End') -> None:
        """One step of it."""
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            pass
        records = self._sent.read()
        self._capture(records)
        other.received.write(records)

    def send(self, data: bytes) -> None:
        """A file that does not have to be read."""
        self._tls.write(data)
        self._capture(self._sent.read())


class TLSCapture:
    """As Capture.  `keys` is the file with the keys of the session."""

    def __init__(self, folder: Path, version: ssl.TLSVersion):
        self.keys = folder / 'keys'
        capture = Capture()
        self.packets = capture.packets
        client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        client.check_hostname = False
        client.verify_mode = ssl.CERT_NONE
        client.maximum_version = version
        client.keylog_filename = str(self.keys)
        server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        server.load_cert_chain(*make_certificate(folder))
        self._ends = {'out': End(client, 'out', capture),
                      'in': End(server, 'in', capture)}
        for direction in ('out', 'in', 'out', 'in'):
            other = 'in' if direction == 'out' else 'out'
            self._ends[direction].shake_hands(self._ends[other])

    def __call__(self, direction: str, data: bytes) -> None:
        self._ends[direction].send(data)
