"""What is tested of GPUs: the kinds of backends, and on which GPU ``tests/gpu`` does it (``NEARFIELD_TEST_GPU``, by
default the first)."""

from __future__ import annotations

import os
from importlib.util import find_spec

NUMBER = int(os.environ.get("NEARFIELD_TEST_GPU", "0"))
HAS_TORCH = find_spec("torch") is not None
KINDS = ["gpu-flat", "gpu-flat16", "gpu-ivf", "gpu-ivfpq", "cagra", *(["gpu-gather"] if HAS_TORCH else [])]
