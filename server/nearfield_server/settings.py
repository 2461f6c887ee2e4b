"""Every knob of the service, typed; built once by the command line and passed down."""

from __future__ import annotations

import ipaddress
import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from nearfield_server.faults import faults, unheeded

MEBIBYTE = 1024 * 1024
ENVIRONMENT_PREFIX = "NEARFIELD_"
CONFIG_VARIABLE = "NEARFIELD_CONFIG"
CLIENT_VARIABLES = {"NEARFIELD_URL", "NEARFIELD_API_KEY"}

Keys = Annotated[list[SecretStr], NoDecode]
Positive = Annotated[int, Field(gt=0)]
Seconds = Annotated[float, Field(ge=0, le=86_400)]


class SettingsError(ValueError):
    """The settings contradict themselves or name something unknown; the text is one line per fault."""


class Limits(BaseModel):
    """Bounds of one request. Those named like a field of the engine's own limits are handed on to it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_body_bytes: Positive = 64 * MEBIBYTE
    max_header_bytes: Annotated[int, Field(ge=1024)] = 16 * 1024
    max_points: Positive = 10_000
    max_queries: Positive = 10_000
    max_k: Positive = 10_000
    max_hits: Positive = 1_000_000
    """Queries x (k + offset) of one request."""
    max_reply_bytes: Positive = 512 * MEBIBYTE
    """Of the hits of one query request."""
    max_query_cost: Positive = 20_000_000_000
    max_dim: Annotated[int, Field(gt=0, le=65_536)] = 65_536
    max_collections: Positive = 1_000
    max_filter_depth: Annotated[int, Field(gt=0, le=64)] = 32
    max_filter_conditions: Positive = 256
    max_filter_values: Positive = 10_000
    max_attribute_bytes: Positive = 64 * 1024
    max_text_bytes: Positive = MEBIBYTE
    max_rerank_calls: Positive = 10_000
    """Queries x budget of one request."""
    max_logged_pairs: Annotated[int, Field(ge=0)] = 1_000_000
    """Scored pairs that a collection keeps for training; 0 keeps none."""
    max_scan_page: Positive = 10_000

    def for_engine(self) -> dict[str, int]:
        """The bounds the engine checks, under the engine's names (``max_points`` is its ``points``)."""
        served_here = {"max_header_bytes"}
        bounds = self.model_dump(exclude=served_here)
        return {name.removeprefix("max_"): bound for name, bound in bounds.items()}


class Admission(BaseModel):
    """How much work is let in at once; past it the server refuses early and says when to come back."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    searches: Positive = 2 * (os.cpu_count() or 1)
    search_queue: Annotated[int, Field(ge=0)] = 64
    queue_timeout: Seconds = 5.0
    search_bytes: Positive = 256 * MEBIBYTE
    search_hits: Positive = 2_000_000
    """Hits that all running searches look for together."""
    reranks: Positive = 32
    """Queries that may wait for a scorer at once; they hold up no other search."""
    rerank_queue: Annotated[int, Field(ge=0)] = 64
    writes: Positive = 256
    write_bytes: Positive = 64 * MEBIBYTE
    body_timeout: Seconds = 10.0
    """Longest silence within a request body."""


class ScorerSettings(BaseModel):
    """One expensive relevance model that queries may name in ``rerank``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["tei", "cohere", "jina", "pairs", "onnx", "sentence-transformers", "late-interaction"]
    url: str | None = None
    """Of the endpoint (tei, cohere, jina, pairs)."""
    model: str | None = None
    """Directory or name of the model; with cohere and jina the name that is sent."""
    version: str | None = None
    """Changes with the weights: scores of another version are never mixed with these."""
    api_key: SecretStr | None = None
    body: dict[str, Any] = {}
    """Added to every request of an HTTP scorer."""
    options: dict[str, Any] = {}
    """Of a model in this process: max_length, threads, device, query_prefix, item_prefix."""
    max_batch: Positive | None = None
    max_in_flight: Positive | None = None
    timeout_s: Annotated[float, Field(gt=0, le=3_600)] | None = None
    deadline_s: Annotated[float, Field(gt=0, le=3_600)] | None = None
    retries: Annotated[int, Field(ge=0, le=10)] | None = None
    retry_wait_s: Annotated[float, Field(ge=0, le=60)] | None = None
    max_waiting: Positive | None = None
    cache_entries: Annotated[int, Field(ge=0)] | None = None
    linger_s: Annotated[float, Field(ge=0, le=1)] | None = None

    @model_validator(mode="after")
    def _complete(self) -> Self:
        served = self.kind in ("tei", "cohere", "jina", "pairs")
        if served and self.url is None:
            raise ValueError(f"a scorer of kind {self.kind} needs a url")
        if not served and (self.model is None or self.url is not None):
            raise ValueError(f"a scorer of kind {self.kind} needs a model and no url")
        if served and self.options:
            raise ValueError("options are for models in this process; use body")
        return self

    @property
    def limits(self) -> dict[str, Any]:
        """Those limits that are set; the others are the scorer's own."""
        names = "max_batch max_in_flight timeout_s deadline_s retries retry_wait_s max_waiting cache_entries linger_s"
        return {name: value for name in names.split() if (value := getattr(self, name)) is not None}


class Settings(BaseSettings):
    """Arguments win over ``NEARFIELD_`` variables (``__`` between levels), which win over the TOML file."""

    model_config = SettingsConfigDict(
        env_prefix=ENVIRONMENT_PREFIX, env_nested_delimiter="__", extra="forbid", frozen=True
    )

    data: Path = Path("data")
    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65_535)] = 7333
    api_keys: Keys = []
    read_api_keys: Keys = []
    insecure: bool = False
    """Allow a host other than loopback although no key is set."""
    limits: Limits = Limits()
    admission: Admission = Admission()
    recall_sample_rate: Annotated[float, Field(ge=0, le=1)] = 0.01
    """Share of queries answered again exactly in the background, to measure recall; 0 switches it off."""
    device: str = "auto"
    """What computes: ``auto`` (a GPU beside the CPU where FAISS can use one), ``cpu`` or ``cuda:N``, which must be
    there."""
    device_memory_share: Annotated[float, Field(ge=0.05, le=0.95)] = 0.8
    """Share of the device's memory that is taken at most."""
    device_form: Literal["auto", "flat", "cagra", "ivf", "ivfpq", "none"] = "auto"
    """What segments become on the device; ``auto`` goes by their size, ``none`` uses the device for builds only."""
    device_builds: bool = True
    """Whether the device builds graphs and clusters."""
    scorers: dict[str, ScorerSettings] = {}
    """Expensive relevance models by name."""
    metrics_public: bool = False
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["console", "json"] = "console"
    slow_request: Seconds = 1.0
    """Requests slower than this many seconds are logged."""
    shutdown_grace: Seconds = 10.0
    drain_delay: Seconds = 0.5
    """After SIGTERM, seconds during which the port stays open and /readyz says 503."""

    @field_validator("api_keys", "read_api_keys", mode="before")
    @classmethod
    def _split(cls, given: object) -> object:
        """``a,b`` from the environment is the list of ``a`` and ``b``."""
        if isinstance(given, str):
            return [part.strip() for part in given.split(",") if part.strip()]
        return given

    @field_validator("api_keys", "read_api_keys")
    @classmethod
    def _usable(cls, keys: list[SecretStr]) -> list[SecretStr]:
        for key in keys:
            text = key.get_secret_value()
            if not text.isascii() or not text.isprintable() or " " in text or len(text) < 8:
                raise ValueError("a key is at least 8 printable ASCII characters without spaces")
        return keys

    @field_validator("device")
    @classmethod
    def _known(cls, device: str) -> str:
        if re.fullmatch(r"auto|cpu|cuda:[0-9]{1,2}", device) is None:
            raise ValueError("must be auto, cpu or cuda:N, as cuda:0")
        return device

    @property
    def has_keys(self) -> bool:
        return bool(self.api_keys or self.read_api_keys)

    @property
    def is_loopback(self) -> bool:
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    def check_exposure(self) -> None:
        """Raise SettingsError where anyone on the network could read and write the data."""
        if not self.has_keys and not self.is_loopback and not self.insecure:
            raise SettingsError(
                f"refusing to listen on {self.host} without an API key: set NEARFIELD_API_KEYS, or pass --insecure"
            )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls)


def ignored_variables() -> list[str]:
    """A line for each variable of the environment that is meant as a setting, as far as one can tell, and is none."""
    others = {CONFIG_VARIABLE, *CLIENT_VARIABLES}
    return unheeded(Settings, os.environ, prefix=ENVIRONMENT_PREFIX, others=others)


def load_settings(config: Path | None = None, **arguments: Any) -> Settings:
    """Settings from arguments (None means not given), the environment and the TOML file at ``config``.

    Without ``config`` the file named by ``NEARFIELD_CONFIG`` is read, if that is set.
    Raises SettingsError with one line per fault; values are never repeated, they may be keys.
    """
    named = config or os.environ.get(CONFIG_VARIABLE)
    if named is not None and not Path(named).is_file():
        raise SettingsError(f"there is no configuration file at {named}")
    file = None if named is None else Path(named)

    class FromFile(Settings):
        model_config = SettingsConfigDict(toml_file=file)

    try:
        return FromFile(**{name: value for name, value in arguments.items() if value is not None})
    except ValidationError as error:
        raise SettingsError("\n".join(faults(Settings, error))) from None
    except ValueError as error:
        raise SettingsError(f"cannot read the settings: {error}") from None
