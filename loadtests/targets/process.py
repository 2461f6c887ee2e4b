"""What a process has used, from /proc."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Usage:
    """Processor seconds (user and system) and resident bytes; None where the system does not tell."""

    cpu_s: float | None
    rss_bytes: int | None


def usage_of(process: int | None = None) -> Usage:
    """Usage of a process, by default this one."""
    folder = Path("/proc") / ("self" if process is None else str(process))
    try:
        # the name of the program, in parentheses, may hold spaces
        fields = (folder / "stat").read_text().rpartition(")")[2].split()
        pages = int((folder / "statm").read_text().split()[1])
    except OSError:
        return Usage(None, None)
    ticks = int(fields[11]) + int(fields[12])
    return Usage(ticks / os.sysconf("SC_CLK_TCK"), pages * os.sysconf("SC_PAGE_SIZE"))
