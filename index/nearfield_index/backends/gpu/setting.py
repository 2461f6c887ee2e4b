"""Which device the engine computes on, and how much of it it may take."""

from __future__ import annotations

import re
from dataclasses import dataclass

from nearfield_index.errors import InvalidRequest

AUTO, CPU = "auto", "cpu"
FORMS = ("auto", "flat", "cagra", "ivf", "ivfpq", "none")

_NAMED = re.compile(r"cuda:(\d{1,2})", re.ASCII)


@dataclass(frozen=True)
class DeviceOptions:
    """``device``: ``auto`` (the first GPU that FAISS can use, if any), ``cpu``, or ``cuda:N``, which must be there.

    ``memory_share``: how much of the device's memory is taken at most. ``form``: what segments become there; ``auto``
    goes by size, ``none`` uses the device for builds only. ``builds``: whether graphs are built there.
    Raises :class:`InvalidRequest` for anything else.
    """

    device: str = AUTO
    memory_share: float = 0.8
    form: str = "auto"
    builds: bool = True
    least_bytes: int = 8 * 1024 * 1024
    """Smaller matrices are nothing for a device: a scan of them takes the CPU about as long as asking it."""

    def __post_init__(self) -> None:
        if self.device not in (AUTO, CPU) and not _NAMED.fullmatch(self.device):
            raise InvalidRequest("must be auto, cpu or cuda:N (N from 0)", field="device", value=self.device)
        if not 0.05 <= self.memory_share <= 0.95:
            raise InvalidRequest("must lie between 0.05 and 0.95", field="device_memory_share", value=self.memory_share)
        if self.form not in FORMS:
            raise InvalidRequest(f"must be one of: {', '.join(FORMS)}", field="device_form", value=self.form)

    @property
    def number(self) -> int:
        """Which CUDA device; 0 under ``auto``."""
        named = _NAMED.fullmatch(self.device)
        return int(named[1]) if named else 0

    @property
    def required(self) -> bool:
        """Whether a start without it is an error."""
        return self.device not in (AUTO, CPU)
