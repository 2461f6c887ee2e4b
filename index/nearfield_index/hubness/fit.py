"""A fit as it is kept: the bias model and what was found out about it, in one file whose name holds its checksum."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from nearfield_index.backends.space import ItemBiases
from nearfield_index.errors import Corrupt
from nearfield_index.hubness.thresholds import Thresholds
from nearfield_index.ranking.bias import Bank, BiasModel, Method, Recipe
from nearfield_index.ranking.target import Target
from nearfield_index.schema import Metric
from nearfield_index.storage.arrays import open_arrays, write_arrays
from nearfield_index.storage.atomic import certified_name, is_certified

Floats = np.ndarray[Any, np.dtype[np.float32]]
Json = dict[str, Any]

FORMAT = 2
_PARTS = ("queries", "shift", "logs", "top", "entry")
_TARGET = ("point", "lean", "axes", "widths")


@dataclass(frozen=True)
class Fit:
    """A published (or nearly published) fit of one vector field.

    ``gate``: normalise only queries whose raw best item is in the activation set (arXiv 2112.12777). ``probes``:
    raw queries that calibrations of normalised search are measured on. ``thresholds``: of the hub monitor.
    ``next_block``: the block of the bank that a rotation replaces. ``report``: what ``GET .../hubness`` tells.
    """

    model: BiasModel
    gate: bool
    quarantine: bool
    recommended: bool
    probes: Floats
    thresholds: Thresholds
    next_block: int
    report: Json

    @property
    def version(self) -> str:
        return self.model.version

    @property
    def asked(self) -> Floats:
        """The queries of the bank in search form."""
        return self.model.bank.queries

    def of(self, rows: Floats) -> ItemBiases:
        """The biases of items in stored form."""
        return self.model.of(rows)


def save_fit(directory: Path, field: str, fit: Fit) -> str:
    """Write a fit into ``directory``; returns its file name. It is in force once a manifest names it."""
    model = fit.model
    arrays = {f"bank.{part}": getattr(model.bank, part) for part in _PARTS} | {"probes": fit.probes}
    if model.gallery is not None:
        arrays |= {f"gallery.{part}": getattr(model.gallery, part) for part in _PARTS}
    if model.target is not None:
        arrays |= {f"target.{part}": getattr(model.target, part) for part in _TARGET}
    meta = {
        "format": FORMAT,
        "version": model.version,
        "metric": str(model.metric),
        "recipe": asdict(model.recipe) | {"method": str(model.recipe.method)},
        "unit": model.unit,
        "spread": model.spread,
        "gate": fit.gate,
        "quarantine": fit.quarantine,
        "recommended": fit.recommended,
        "limits": [limit if np.isfinite(limit) else None for limit in fit.thresholds.limits],
        "usual": list(fit.thresholds.usual),
        "next_block": fit.next_block,
        "report": fit.report,
    }
    directory.mkdir(exist_ok=True)
    temporary = directory / f"{model.version}.tmp"
    _, checksum = write_arrays(temporary, arrays, meta)
    return certified_name(temporary, checksum, f"fit-{model.version}-{field}")


def load_fit(directory: Path, file: str) -> Fit:
    """Read a fit back. Raises :class:`Corrupt` for a file that is missing, damaged or of a newer format."""
    path = directory / file
    if not is_certified(path):
        raise Corrupt(f"the fit {file} is missing or damaged")
    try:
        arrays, meta = open_arrays(path)
        if meta["format"] != FORMAT:
            raise Corrupt(f"the fit has format {meta['format']}, this version reads {FORMAT}")
        recipe = Recipe(**(meta["recipe"] | {"method": Method(meta["recipe"]["method"])}))
        gallery = _bank(arrays, "gallery") if "gallery.queries" in arrays else None
        metric = Metric(meta["metric"])
        target = Target(*(np.array(arrays[f"target.{part}"]) for part in _TARGET))
        model = BiasModel(
            meta["version"], metric, recipe, meta["unit"], _bank(arrays, "bank"), gallery, meta["spread"], target
        )
        limits = tuple(np.inf if limit is None else float(limit) for limit in meta["limits"])
        marks = Thresholds(limits, tuple(map(float, meta["usual"])))
    except (KeyError, TypeError, ValueError) as error:
        raise Corrupt(f"the fit {file} cannot be read") from error
    return Fit(
        model,
        meta["gate"],
        meta["quarantine"],
        meta["recommended"],
        np.array(arrays["probes"]),
        marks,
        meta["next_block"],
        meta["report"],
    )


def _bank(arrays: Json, side: str) -> Bank:
    return Bank(*(np.array(arrays[f"{side}.{part}"]) for part in _PARTS))


def sweep(directory: Path, kept: set[str]) -> None:
    """Remove files that no manifest and no unfinished request names."""
    if directory.is_dir():
        for path in directory.glob("*"):
            if ("-fit-" in path.name or path.suffix == ".tmp") and path.name not in kept:
                path.unlink(missing_ok=True)


def with_report(fit: Fit, **more: Any) -> Fit:
    """The fit with more in its report."""
    return replace(fit, report=fit.report | more)
