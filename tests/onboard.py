"""Which GPU the tests of ``tests/gpu`` use: ``NEARFIELD_TEST_GPU``, by default the first."""

from __future__ import annotations

import os

NUMBER = int(os.environ.get("NEARFIELD_TEST_GPU", "0"))
