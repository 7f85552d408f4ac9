# SPDX-License-Identifier: GPL-2.0-or-later
"""The benchmark of `make bench`: see ../bench.py."""
