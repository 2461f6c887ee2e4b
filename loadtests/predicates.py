"""A workload of filtered queries: predicates over attributes, in the form of the data set and as filters of ours."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]
Integers = NDArray[np.int64]
Columns = Mapping[str, NDArray[Any]]
Predicate = Mapping[str, Any]

EDGES = (0.001, 0.01, 0.1, 0.5)
BUCKETS = ("< 0.1 %", "0.1-1 %", "1-10 %", "10-50 %", "> 50 %")


@dataclass(frozen=True)
class Predicates:
    """``filters`` in the engine's language, which rows each passes (``masks``), which one a query has (``chosen``)."""

    filters: tuple[dict[str, Any], ...]
    masks: Mask
    chosen: Integers

    @property
    def selectivity(self) -> NDArray[np.float64]:
        """Share of the rows that each query's filter passes, (m,)."""
        share: NDArray[np.float64] = self.masks.mean(axis=1)[self.chosen]
        return share

    @property
    def buckets(self) -> Integers:
        """The place in ``BUCKETS`` of each query, (m,)."""
        return np.searchsorted(EDGES, self.selectivity, side="right").astype(np.int64)

    def cut(self, rows: int | None, queries: int) -> Predicates:
        """The same for the first rows and queries."""
        return replace(self, masks=self.masks[:, :rows], chosen=self.chosen[:queries])

    def permuted(self, seed: int) -> Predicates:
        """Drift of popularity: as many queries share a predicate as before, but it is another one."""
        others = np.random.default_rng(seed).permutation(len(self.filters))
        return replace(self, chosen=others[self.chosen])

    def shuffled(self, seed: int) -> Predicates:
        """Each predicate as often as before, but on any query: filters that have nothing to do with the vectors."""
        return replace(self, chosen=np.random.default_rng(seed).permutation(self.chosen))


def of(predicates: list[Predicate], chosen: NDArray[Any], columns: Columns) -> Predicates:
    """The workload of these predicates, of which only those in use are kept."""
    used, numbers = np.unique(chosen, return_inverse=True)
    kept = [predicates[each] for each in used]
    masks = np.stack([matches(each, columns) for each in kept])
    return Predicates(tuple(to_filter(each) for each in kept), masks, numbers.astype(np.int64))


def to_filter(predicate: Predicate) -> dict[str, Any]:
    """A predicate of the data set in the engine's filter language."""
    for key in ("and", "or"):
        if key in predicate:
            return {f"${key}": [to_filter(each) for each in predicate[key]]}
    if "not" in predicate:
        return {"$not": to_filter(predicate["not"])}
    value: Any = predicate.get("value")
    match predicate["op"]:
        case "between":
            condition = {"gte": value[0], "lte": value[1]}
        case "contains":
            condition = {"any": [value]}
        case "is_null" | "not_null":
            condition = {"exists": predicate["op"] == "not_null"}
        case op:
            condition = {op: value}
    return {predicate["field"]: condition}


def matches(predicate: Predicate, columns: Columns) -> Mask:
    """Which rows a predicate passes, evaluated here and not by any engine. Missing values (None) pass no condition."""
    if "and" in predicate:
        return np.asarray(np.stack([matches(each, columns) for each in predicate["and"]]).all(axis=0))
    if "or" in predicate:
        return np.asarray(np.stack([matches(each, columns) for each in predicate["or"]]).any(axis=0))
    if "not" in predicate:
        return ~matches(predicate["not"], columns)
    values: Any = columns[predicate["field"]]
    value: Any = predicate.get("value")
    match predicate["op"]:
        case "contains":
            return np.array([each is not None and value in each for each in values], dtype=bool)
        case "is_null":
            return _missing(values)
        case "not_null":
            return ~_missing(values)
        case "in":
            return np.asarray(np.stack([_compared("eq", values, each) for each in value]).any(axis=0))
    return _compared(predicate["op"], values, value)


def nulled(values: NDArray[Any]) -> NDArray[Any]:
    """A column with None for empty text and empty lists; numbers stay as they are."""
    if values.dtype != object:
        return values
    result = np.empty(len(values), dtype=object)
    result[:] = [None if each is None or len(each) == 0 else each for each in values]
    return result


def _compared(op: str, values: NDArray[Any], value: Any) -> Mask:
    match op:
        case "eq":
            found = values == value
        case "lt":
            found = values < value
        case "lte":
            found = values <= value
        case "gt":
            found = values > value
        case "gte":
            found = values >= value
        case "between":
            found = (values >= value[0]) & (values <= value[1])
        case _:
            raise ValueError(f"there is no operator {op!r}")
    return np.asarray(found, dtype=bool)


def _missing(values: NDArray[Any]) -> Mask:
    return np.array([each is None for each in values], dtype=bool)
