"""The scorers of an engine by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nearfield_index.errors import InvalidRequest, NotFound
from nearfield_index.ranking.dispatch import Dispatcher
from nearfield_index.ranking.scorer import as_scorer
from nearfield_index.schema import check_name


class Scorers:
    """Made once from the engine's options: a request can only name what stands here."""

    def __init__(self, scorers: Mapping[str, object]) -> None:
        self._held = {check_name(n, at="scorers"): Dispatcher(n, as_scorer(given)) for n, given in scorers.items()}

    def get(self, name: object, *, at: str) -> Dispatcher:
        """The scorer of that name. Raises :class:`NotFound` naming those there are."""
        if not isinstance(name, str):
            raise InvalidRequest("must be the name of a scorer", field=at)
        found = self._held.get(name)
        if found is None:
            hint = f"one of: {', '.join(sorted(self._held))}" if self._held else "none is configured"
            raise NotFound("no scorer of that name", code="scorer_not_found", field=at, hint=hint)
        return found

    def to_wire(self) -> list[dict[str, Any]]:
        """What is configured, and how much it was asked."""
        return [
            {"name": name, "version": d.version, "calls": d.calls, "pairs": d.pairs, "failures": d.failures}
            for name, d in sorted(self._held.items())
        ]

    def close(self) -> None:
        for dispatcher in self._held.values():
            dispatcher.close()
