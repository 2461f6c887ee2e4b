"""``nearfield serve``: settings, engine, application, process."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import structlog
import typer

from nearfield_index.backends.gpu.setting import DeviceOptions
from nearfield_index.engine import Engine, EngineOptions
from nearfield_server.app import create_app
from nearfield_server.commands.outcome import USAGE, explained, fail
from nearfield_server.logs import configure_logs
from nearfield_server.scorers import build_scorers
from nearfield_server.serving import listen, serve
from nearfield_server.settings import Settings, SettingsError, ignored_variables, load_settings

log = structlog.get_logger("nearfield.serve")


def run(config: Path | None, **arguments: Any) -> None:
    """Serve until stopped; ``arguments`` are settings, None where not given."""
    try:
        settings = load_settings(config, **arguments)
        settings.check_exposure()
        options = engine_options(settings)
    except SettingsError as error:
        fail(str(error), USAGE)
    configure_logs(settings)
    for line in ignored_variables():
        log.warning(line)
    with explained():
        listener = listen(settings)
        with listener:
            engine = Engine.open(settings.data, options=options)
            typer.echo(banner(settings, listener.getsockname()[1]))
            serve(create_app(settings, engine), settings, listener)


def engine_options(settings: Settings) -> EngineOptions:
    """The part of the settings that the engine heeds."""
    usual = EngineOptions()
    limits = replace(
        usual.limits,
        **settings.limits.for_engine(),
        waiting_writes=settings.admission.writes,
        waiting_bytes=settings.admission.write_bytes,
    )
    device = DeviceOptions(settings.device, settings.device_memory_share, settings.device_form, settings.device_builds)
    return replace(
        usual,
        limits=limits,
        sample_rate=settings.recall_sample_rate,
        scorers=build_scorers(settings),
        device=device,
    )


def banner(settings: Settings, port: int) -> str:
    """The line that says where the service is; other programs read the address from it."""
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    keys = "API key needed" if settings.has_keys else "no API key"
    return f"Nearfield at http://{host}:{port} ({keys}), data in {settings.data}, API page at http://{host}:{port}/docs"
