"""Pieces of Markdown that every part of a report is made of."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any


def table(heads: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    """A Markdown table with an empty line after it; nothing where there are no rows."""
    if not rows:
        return ["(none)", ""]
    cells = [[str(cell).replace("|", "\\|") for cell in row] for row in rows]
    lines = [heads, ["---"] * len(heads), *cells]
    return [*(f"| {' | '.join(line)} |" for line in lines), ""]


def decimal(value: float, digits: int) -> str:
    """A number with this many decimals; nothing for NaN."""
    return "" if math.isnan(value) else f"{value:,.{digits}f}"


def percent(share: float) -> str:
    """A share as a percentage with no more digits than it needs: ``0.01 %``, ``25 %``."""
    return f"{share * 100:.4g} %"
