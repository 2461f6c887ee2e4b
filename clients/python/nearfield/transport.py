"""The seam between calls and how they are carried: over HTTP or to an engine in this process."""

from __future__ import annotations

from typing import Protocol, TypeVar

from nearfield.operations import Operation

T = TypeVar("T")


class Transport(Protocol):
    """Carries out operations, blocking. Safe to use from several threads."""

    @property
    def name(self) -> str:
        """Where it leads: a URL or a path."""

    @property
    def window(self) -> int:
        """How many bulk requests are worth having under way at once."""

    def run(self, operation: Operation[T]) -> T:
        """Carry out the operation. Raises nearfield.errors.Error."""

    def close(self) -> None:
        """Release what it holds; closing twice is harmless."""


class AsyncTransport(Protocol):
    """Carries out operations, awaited."""

    @property
    def name(self) -> str:
        """Where it leads: a URL or a path."""

    @property
    def window(self) -> int:
        """How many bulk requests are worth having under way at once."""

    async def run(self, operation: Operation[T]) -> T:
        """Carry out the operation. Raises nearfield.errors.Error."""

    async def close(self) -> None:
        """Release what it holds; closing twice is harmless."""
