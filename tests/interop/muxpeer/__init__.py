# SPDX-License-Identifier: GPL-2.0-or-later
"""
A second implementation of QEMU's migration multiplexing protocol.

Written from docs/interop/migration-mux.rst alone, with nothing but Python's
standard library: what this package needs and the document does not say is a
defect of the document.
"""
