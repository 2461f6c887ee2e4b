"""``loadtests`` is no installed package: it is run from the root of the tree, and imported from there."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
