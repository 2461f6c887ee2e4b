"""API key -> what its holder may do. Every route declares the scope it needs; there is no default."""

from __future__ import annotations

import hmac
from collections.abc import Iterable
from enum import IntEnum
from hashlib import sha256
from typing import Protocol

from pydantic import SecretStr
from starlette.requests import Request

from nearfield_server.errors import Problem
from nearfield_server.settings import Settings


class Scope(IntEnum):
    """What a route demands of its caller, and what a key grants; each includes the ones before."""

    OPEN = 0
    METRICS = 1
    READ = 2
    WRITE = 3


class Gate(Protocol):
    """Decides who may pass; ``OpenGate`` where no keys are set, ``KeyGate`` otherwise."""

    def check(self, request: Request, needed: Scope) -> None:
        """Return if the caller may pass; raise Problem 401 or 403 otherwise."""


class OpenGate:
    """Lets everyone pass: no keys are configured."""

    def check(self, request: Request, needed: Scope) -> None:
        return


class KeyGate:
    """Compares the caller's key with the configured ones, in constant time, by their SHA-256."""

    def __init__(self, settings: Settings) -> None:
        self._free = {Scope.OPEN, Scope.METRICS} if settings.metrics_public else {Scope.OPEN}
        self._granted = [
            *((digest, Scope.WRITE) for digest in _digests(settings.api_keys)),
            *((digest, Scope.READ) for digest in _digests(settings.read_api_keys)),
        ]

    def check(self, request: Request, needed: Scope) -> None:
        if needed in self._free:
            return
        granted = self._scope(_presented(request))
        if granted is Scope.OPEN:
            raise Problem(
                401,
                "unauthenticated",
                "this route needs an API key",
                hint="send it as 'Authorization: Bearer KEY', 'api-key' or 'x-api-key'",
                headers={"WWW-Authenticate": 'Bearer realm="nearfield"'},
            )
        if granted < needed:
            raise Problem(403, "forbidden", "This key may only read.")

    def _scope(self, key: str | None) -> Scope:
        """The widest scope of this key; every configured key is compared, whichever matches first."""
        if key is None:
            return Scope.OPEN
        digest = sha256(key.encode("utf-8", "surrogateescape")).digest()
        matches = [scope for known, scope in self._granted if hmac.compare_digest(known, digest)]
        return max(matches, default=Scope.OPEN)


def gate(settings: Settings) -> Gate:
    return KeyGate(settings) if settings.has_keys else OpenGate()


def _digests(keys: Iterable[SecretStr]) -> list[bytes]:
    return [sha256(key.get_secret_value().encode()).digest() for key in keys]


def _presented(request: Request) -> str | None:
    """The key in the request's headers; a key in the query string is not looked at (it would end in logs)."""
    headers = request.headers
    scheme, _, token = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and token:
        return token.strip()
    return headers.get("api-key") or headers.get("x-api-key")
