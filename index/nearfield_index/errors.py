"""The engine's exception tree: every error carries a stable code and, where one is at fault, the field."""

from __future__ import annotations

from typing import ClassVar


class NearfieldError(Exception):
    """Base of everything the engine raises on purpose.

    ``code`` is stable and meant for programs; ``field`` names the part of the request at fault, ``value`` what
    was received (short, never echoed over the wire) and ``hint`` what to do instead.
    """

    default_code: ClassVar[str] = "error"

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        field: str | None = None,
        value: object = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code or self.default_code
        self.field = field
        self.value = value
        self.hint = hint


class InvalidRequest(NearfieldError):
    """The request itself is wrong; sending it again will not help."""

    default_code = "invalid"


class TooLarge(NearfieldError):
    """The request is over a size limit; split it."""

    default_code = "too_large"


class NotFound(NearfieldError):
    """A collection, point or job of that name does not exist."""

    default_code = "not_found"


class Conflict(NearfieldError):
    """The request contradicts what is stored (another schema under that name, for instance)."""

    default_code = "conflict"


class Busy(NearfieldError):
    """A bounded queue is full; come back after ``retry_after`` seconds."""

    default_code = "busy"

    def __init__(self, message: str, *, retry_after: float = 1.0, code: str | None = None) -> None:
        super().__init__(message, code=code)
        self.retry_after = retry_after


class DeadlineExceeded(NearfieldError):
    """The caller's own ``timeout_ms`` ran out before an answer was found."""

    default_code = "timeout"


class ReadOnly(NearfieldError):
    """The store stopped taking writes after a storage fault; reads go on, a restart re-opens it."""

    default_code = "read_only"


class OutOfSpace(NearfieldError):
    """The disk is full; the write did not happen. Reads and deletes go on."""

    default_code = "out_of_space"


class StorageFailed(NearfieldError):
    """The disk refused an operation; whether the write happened is known only after a restart."""

    default_code = "storage_failed"


class Corrupt(NearfieldError):
    """Stored bytes do not match their checksum and cannot be rebuilt from elsewhere."""

    default_code = "data_corrupt"


class Locked(NearfieldError):
    """Another process holds the data directory."""

    default_code = "locked"


class ScorerFailed(NearfieldError):
    """An expensive scorer cannot be reached or answers nonsense, and nothing was scored."""

    default_code = "scorer_failed"
