# SPDX-License-Identifier: GPL-2.0-or-later
"""Parts of the tests that migrate a real guest with its disks."""
