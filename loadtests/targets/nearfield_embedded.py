"""The engine in this process."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import nearfield
from loadtests.targets.nearfield_target import NearfieldTarget


class NearfieldEmbedded(NearfieldTarget):
    """``nearfield.open``. Its usage is that of this process, the load generator included."""

    name: ClassVar[str] = "nearfield-embedded"

    def connect(self, directory: Path) -> nearfield.Client:
        return nearfield.open(directory)
