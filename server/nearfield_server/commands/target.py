"""Where a command does its work: a server, or a data directory opened in process."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import nearfield


@dataclass(frozen=True)
class Target:
    """``data`` wins over ``url``."""

    url: str
    api_key: str | None = None
    data: Path | None = None

    def connect(self) -> nearfield.Client:
        """Return a client to be used as a context manager."""
        if self.data is not None:
            return nearfield.open(self.data)
        return nearfield.connect(self.url, api_key=self.api_key)
