"""Scorers of the configuration, made. Requests name them; no request can bring one."""

from __future__ import annotations

from typing import Any

from nearfield.errors import InvalidRequest
from nearfield.scorers import make
from nearfield_server.settings import ScorerSettings, Settings, SettingsError


def build_scorers(settings: Settings) -> dict[str, object]:
    """Return every scorer by name. Raises SettingsError for one that cannot be made."""
    made: dict[str, object] = {}
    for name, each in settings.scorers.items():
        try:
            made[name] = make(each.kind, limits=each.limits, **_options(each))
        except InvalidRequest as error:
            raise SettingsError(f"scorers.{name}: {error}") from None
    return made


def _options(each: ScorerSettings) -> dict[str, Any]:
    options: dict[str, Any] = {"version": each.version, **each.options}
    if each.url is not None:
        options |= {"url": each.url, "body": each.body}
        options |= {"api_key": each.api_key.get_secret_value()} if each.api_key is not None else {}
    if each.model is not None:
        options["model"] = each.model
    return options
