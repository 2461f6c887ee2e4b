"""A request for a fit, checked; and kept on disk until the fit is in force, so that a restart goes on with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from nearfield_index.errors import Corrupt, InvalidRequest
from nearfield_index.limits import Limits
from nearfield_index.points import PointId, check_ids
from nearfield_index.ranking.bias import Method, Recipe
from nearfield_index.ranking.tuning import GRID
from nearfield_index.schema import Metric, check_flag, check_int, check_number, check_object
from nearfield_index.storage.arrays import open_arrays, write_arrays
from nearfield_index.storage.atomic import certified_name, is_certified
from nearfield_index.vectors import as_matrix

Floats = np.ndarray[Any, np.dtype[np.float32]]
Json = dict[str, Any]

LEAST_BANK = 20
MOST_BANK = 20_000
_KEYS = frozenset({"field", "method", "strength", "gate", "bank", "gallery_bank", "pairs", "quarantine"})
_STRENGTHS = {
    Method.IS: (0.1, 1_000.0),
    Method.DUAL_IS: (0.1, 1_000.0),
    Method.NNN: (0.01, 4.0),
    Method.CSLS: (0.01, 4.0),
    Method.SINKHORN: (0.005, 10.0),
}


@dataclass(frozen=True)
class FitRequest:
    """``bank`` raw queries ``(m, dim)``, or None for the query log (``log`` of them); ``recipes`` to try; ``pairs``
    raw queries with the id of the point that answers each."""

    field: str
    recipes: tuple[Recipe, ...]
    gate: bool
    quarantine: bool
    bank: Floats | None
    log: int
    gallery_sample: int
    pairs: Floats
    answers: tuple[PointId, ...]


def parse_fit(body: Mapping[str, Any], *, field: str, dim: int, metric: Metric, limits: Limits) -> FitRequest:
    """Check the body of ``PUT .../hubness``. Raises :class:`InvalidRequest` naming the part at fault."""
    check_object(body, at="body", known=_KEYS)
    bank, log = _parse_bank(body.get("bank"), dim, metric)
    sample = 4_096
    if body.get("gallery_bank") is not None:
        part = check_object(body["gallery_bank"], at="gallery_bank", known=frozenset({"sample"}))
        sample = check_int(part.get("sample"), at="gallery_bank.sample", low=LEAST_BANK, high=MOST_BANK)
    pairs, answers = _parse_pairs(body.get("pairs"), dim, metric, limits)
    return FitRequest(
        field,
        parse_recipes(body),
        check_flag(body.get("gate", False), at="gate"),
        check_flag(body.get("quarantine", False), at="quarantine"),
        bank,
        log,
        sample,
        pairs,
        answers,
    )


def parse_recipes(body: Mapping[str, Any]) -> tuple[Recipe, ...]:
    """What ``method`` and ``strength`` ask to try."""
    name, strength = body.get("method", "auto"), body.get("strength")
    if name == "auto":
        if strength is not None:
            raise InvalidRequest("needs a method of its own", field="strength", hint="leave it out with method auto")
        return tuple(recipe for recipes in GRID.values() for recipe in recipes)
    if not isinstance(name, str) or name not in list(Method):
        raise InvalidRequest(f"must be one of: auto, {', '.join(Method)}", field="method", value=name)
    known = GRID[Method(name)]
    if strength is None:
        return known
    low, high = _STRENGTHS[Method(name)]
    value = check_number(strength, at="strength", low=low, high=high)
    like = known[0]
    return (Recipe(like.method, value, like.neighbours, like.gallery_strength, like.passes),)


def _parse_bank(bank: object, dim: int, metric: Metric) -> tuple[Floats | None, int]:
    if bank is None:
        raise InvalidRequest("a fit needs a bank of queries", code="missing", field="bank", hint='{"vectors": V}')
    part = check_object(bank, at="bank", known=frozenset({"vectors", "log"}))
    if ("vectors" in part) == ("log" in part):
        raise InvalidRequest("give either 'vectors' or 'log'", field="bank")
    if "log" in part:
        return None, check_int(part["log"], at="bank.log", low=LEAST_BANK, high=MOST_BANK)
    vectors = as_matrix(part["vectors"], dim=dim, at="bank.vectors", metric=metric, max_rows=MOST_BANK)
    vectors = distinct(vectors)
    if len(vectors) < LEAST_BANK:
        raise InvalidRequest(
            f"{len(vectors)} distinct queries, a bank needs at least {LEAST_BANK}; thousands are better",
            code="bank_too_small",
            field="bank.vectors",
        )
    return vectors, 0


def _parse_pairs(pairs: object, dim: int, metric: Metric, limits: Limits) -> tuple[Floats, tuple[PointId, ...]]:
    if pairs is None:
        return np.empty((0, dim), np.float32), ()
    part = check_object(pairs, at="pairs", known=frozenset({"vectors", "ids"}))
    vectors = as_matrix(part.get("vectors"), dim=dim, at="pairs.vectors", metric=metric, max_rows=limits.queries)
    ids = check_ids(part.get("ids"), at="pairs.ids", limits=limits)
    if len(ids) != len(vectors):
        raise InvalidRequest(f"{len(ids)} ids for {len(vectors)} vectors", field="pairs.ids")
    return vectors, tuple(ids)


def distinct(vectors: Floats) -> Floats:
    """Each vector once, in the order of first appearance."""
    rows = np.ascontiguousarray(vectors)
    _, first = np.unique(rows.view(np.dtype((np.void, rows.dtype.itemsize * rows.shape[1]))), return_index=True)
    return rows[np.sort(first)]


def save_request(directory: Path, request: FitRequest, version: str) -> str:
    """Keep a request whose fit will be ``version``; returns its file name."""
    directory.mkdir(exist_ok=True)
    for old in pending_files(directory, request.field):
        old.unlink(missing_ok=True)
    arrays = {"pairs": request.pairs} | ({} if request.bank is None else {"bank": request.bank})
    meta = {
        "version": version,
        "field": request.field,
        "recipes": [asdict(recipe) | {"method": str(recipe.method)} for recipe in request.recipes],
        "gate": request.gate,
        "quarantine": request.quarantine,
        "log": request.log,
        "gallery_sample": request.gallery_sample,
        "answers": list(request.answers),
    }
    temporary = directory / f"pending-{version}.tmp"
    _, checksum = write_arrays(temporary, arrays, orjson.loads(orjson.dumps(meta)))
    return certified_name(temporary, checksum, f"pending-{request.field}")


def pending_files(directory: Path, field: str | None = None) -> Sequence[Path]:
    """The requests that are not in force yet."""
    pattern = "*-pending-*" if field is None else f"*-pending-{field}"
    return sorted(directory.glob(pattern)) if directory.is_dir() else []


def unfinished(directory: Path) -> frozenset[str]:
    """The versions of the fits that requests wait for: what is there of them already is worth keeping."""
    found = set()
    for path in pending_files(directory):
        try:
            found.add(load_request(path)[1])
        except Corrupt:
            continue
    return frozenset(found)


def load_request(path: Path) -> tuple[FitRequest, str]:
    """A kept request and the version of its fit. Raises :class:`Corrupt`."""
    if not is_certified(path):
        raise Corrupt(f"the request {path.name} is damaged")
    try:
        arrays, meta = open_arrays(path)
        recipes = tuple(Recipe(**(raw | {"method": Method(raw["method"])})) for raw in meta["recipes"])
        request = FitRequest(
            meta["field"],
            recipes,
            meta["gate"],
            meta["quarantine"],
            np.array(arrays["bank"]) if "bank" in arrays else None,
            meta["log"],
            meta["gallery_sample"],
            np.array(arrays["pairs"]),
            tuple(meta["answers"]),
        )
        return request, meta["version"]
    except (KeyError, TypeError, ValueError) as error:
        raise Corrupt(f"the request {path.name} cannot be read") from error
