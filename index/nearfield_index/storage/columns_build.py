"""From attribute objects to sorted postings: one Python pass over the values, then whole-column numpy."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from nearfield_index.timestamps import to_micros

Array = npt.NDArray[np.generic]

SCALARS = frozenset((str, int, float, bool))
INT64_MIN = -(2**63)
INT64_END = 2**63
FLOAT_END = float(INT64_END)


@dataclass(frozen=True)
class BuiltAttribute:
    """One attribute's arrays by short name, and the classes of the values it was given, sorted."""

    name: str
    types: tuple[str, ...]
    arrays: dict[str, Array]


def build_attributes(
    attributes: Sequence[Mapping[str, object] | None], declared: Mapping[str, str]
) -> list[BuiltAttribute]:
    """Arrays of every attribute that any row has, sorted by name."""
    sinks: dict[str, _Sink] = {}
    for row, mapping in enumerate(attributes):
        if mapping:
            for name, value in mapping.items():
                if value is None:
                    continue
                sink = sinks.get(name)
                if sink is None:
                    sink = sinks[name] = _Sink()
                add = sink.adders.get(type(value))
                if add is None:
                    _add_other(sinks, sink, name, row, value)
                else:
                    add[0](value)
                    add[1](row)
    built = (_finish(name, sinks[name], len(attributes), declared.get(name)) for name in sorted(sinks))
    return [attribute for attribute in built if attribute is not None]


class _Sink:
    """What was seen of one attribute: values and their rows by Python type, and rows with other values."""

    def __init__(self) -> None:
        self.words: list[str] = []
        self.whole: list[int] = []
        self.floats: list[float] = []
        self.bools: list[bool] = []
        self.rows: dict[type, list[int]] = {kind: [] for kind in SCALARS}
        self.unindexed: list[int] = []
        # looked up by exact type in the hot loop: one dict access and two bound appends a value
        self.adders: dict[type, tuple[Callable[[Any], None], Callable[[int], None]]] = {
            str: (self.words.append, self.rows[str].append),
            int: (self.whole.append, self.rows[int].append),
            float: (self.floats.append, self.rows[float].append),
            bool: (self.bools.append, self.rows[bool].append),
        }


def _add_other(sinks: dict[str, _Sink], sink: _Sink, name: str, row: int, value: object) -> None:
    """A list, a nested object, or something that no JSON parser gives."""
    if isinstance(value, list | tuple):
        _add_list(sink, row, value)
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            if inner is not None:
                dotted = f"{name}.{key}"
                _add_list_or_other(sinks, dotted, row, inner)
    else:
        plain = _plain(value)
        if plain is None:
            sink.unindexed.append(row)
        else:
            _add_list(sink, row, (plain,))


def _add_list_or_other(sinks: dict[str, _Sink], name: str, row: int, value: object) -> None:
    sink = sinks.get(name)
    if sink is None:
        sink = sinks[name] = _Sink()
    if type(value) in SCALARS:
        _add_list(sink, row, (value,))
    else:
        _add_other(sinks, sink, name, row, value)


def _add_list(sink: _Sink, row: int, values: Sequence[object]) -> None:
    present = [value for value in values if value is not None]
    if not all(type(value) in SCALARS for value in present):
        present = [_plain(value) for value in present]
        if any(value is None for value in present):
            sink.unindexed.append(row)
            return
    for value in present:
        add = sink.adders[type(value)]
        add[0](value)
        add[1](row)


def _plain(value: object) -> str | int | float | bool | None:
    """A numpy scalar or a subclass of a scalar as the scalar itself; None for anything else."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bool):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value)
    return str(value) if isinstance(value, str) else None


def _finish(name: str, sink: _Sink, n: int, declared: str | None) -> BuiltAttribute | None:
    exists = np.zeros(n, np.bool_)
    for rows in (*sink.rows.values(), sink.unindexed):
        exists[np.array(rows, np.int64)] = True
    if not exists.any():
        return None
    types: list[str] = []
    arrays: dict[str, Array] = {}
    if sink.words:
        part = "datetime" if declared == "datetime" else "keyword"
        built = _instants(sink) if part == "datetime" else _keywords(sink)
        if built:
            types.append(part)
        arrays.update(built)
    if sink.whole or sink.floats:
        types += ["float"] if sink.floats else []
        types += ["integer"] if sink.whole else []
        arrays.update(_numbers(sink))
    if sink.bools:
        types.append("bool")
        arrays.update(_part("bool", np.array(sink.bools, np.uint8), _row_ids(sink.rows[bool])))
    arrays.update(_existence(exists))
    return BuiltAttribute(name, tuple(sorted(types)), arrays)


def _row_ids(rows: list[int]) -> npt.NDArray[np.int32]:
    return np.array(rows, np.int32)


def _existence(exists: npt.NDArray[np.bool_]) -> dict[str, Array]:
    """Nothing where every row has the attribute, else packed words or, where shorter, the rows."""
    rows = np.flatnonzero(exists)
    if len(rows) == len(exists):
        return {}
    if len(rows) * 32 < len(exists):
        return {"exists.rows": rows.astype(np.int32)}
    words = np.zeros((len(exists) + 63) // 64, np.uint64)
    packed = np.packbits(exists, bitorder="little")
    words.view(np.uint8)[: len(packed)] = packed
    return {"exists.words": words}


def _keywords(sink: _Sink) -> dict[str, Array]:
    distinct = sorted(set(sink.words))  # by code point, which is the order of the UTF-8 bytes
    rank = dict(zip(distinct, range(len(distinct)), strict=True))
    ranks = np.fromiter(map(rank.__getitem__, sink.words), np.int32, len(sink.words))
    encoded = [word.encode("utf-8", "surrogatepass") for word in distinct]
    ends = np.zeros(len(encoded) + 1, np.int64)
    np.cumsum(np.fromiter(map(len, encoded), np.int64, len(encoded)), out=ends[1:])
    _, starts, rows = _invert(ranks, _row_ids(sink.rows[str]))
    blob = np.frombuffer(b"".join(encoded) or b"\0", np.uint8)  # a mapped file has no place for empty arrays
    return {"keyword.blob": blob, "keyword.ends": ends, "keyword.starts": starts, "keyword.rows": rows}


def _instants(sink: _Sink) -> dict[str, Array]:
    """Declared instants; text that is none counts as present only."""
    micros: list[int] = []
    rows: list[int] = []
    for word, row in zip(sink.words, sink.rows[str], strict=True):
        try:
            micros.append(to_micros(word))
        except ValueError:
            continue
        rows.append(row)
    return _part("datetime", np.array(micros, np.int64), _row_ids(rows)) if micros else {}


def _numbers(sink: _Sink) -> dict[str, Array]:
    """Whole numbers of 64 bits as integers, all others as floats, whichever way they were written."""
    whole, whole_rows, floats, float_rows = _split_wide(sink)
    fits = (np.floor(floats) == floats) & (floats >= -FLOAT_END) & (floats < FLOAT_END)
    if fits.any():
        whole = np.concatenate((whole, floats[fits].astype(np.int64)))
        whole_rows = np.concatenate((whole_rows, float_rows[fits]))
    rest = ~fits & np.isfinite(floats)
    arrays: dict[str, Array] = {}
    if len(whole):
        arrays.update(_part("integer", whole, whole_rows))
    if rest.any():
        arrays.update(_part("float", floats[rest], float_rows[rest]))
    return arrays


def _split_wide(
    sink: _Sink,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32], npt.NDArray[np.float64], npt.NDArray[np.int32]]:
    """The integers that fit 64 bits, and the floats with all wider integers rounded among them."""
    whole, whole_rows = sink.whole, sink.rows[int]
    floats, float_rows = sink.floats, sink.rows[float]
    if whole and not (min(whole) >= INT64_MIN and max(whole) < INT64_END):
        wide = [i for i, value in enumerate(whole) if not INT64_MIN <= value < INT64_END]
        floats = floats + [_rounded(whole[i]) for i in wide]
        float_rows = float_rows + [whole_rows[i] for i in wide]
        narrow = [i for i, value in enumerate(whole) if INT64_MIN <= value < INT64_END]
        whole, whole_rows = [whole[i] for i in narrow], [whole_rows[i] for i in narrow]
    return (
        np.array(whole, np.int64),
        _row_ids(whole_rows),
        np.array(floats, np.float64),
        _row_ids(float_rows),
    )


def _rounded(value: int) -> float:
    try:
        return float(value)
    except OverflowError:
        return float("inf")  # dropped with whatever else is not finite


def _part(name: str, values: npt.NDArray[np.generic], rows: npt.NDArray[np.int32]) -> dict[str, Array]:
    distinct, starts, ordered = _invert(values, rows)
    return {f"{name}.values": distinct, f"{name}.starts": starts, f"{name}.rows": ordered}


def _invert(
    values: npt.NDArray[np.generic], rows: npt.NDArray[np.int32]
) -> tuple[Array, npt.NDArray[np.int64], npt.NDArray[np.int32]]:
    """Distinct values ascending, their offsets, and the rows of each, ascending and distinct."""
    order = np.lexsort((rows, values))
    values, rows = values[order], rows[order]
    fresh = np.ones(len(values), np.bool_)
    fresh[1:] = values[1:] != values[:-1]
    keep = fresh.copy()
    keep[1:] |= rows[1:] != rows[:-1]
    if not keep.all():
        values, rows, fresh = values[keep], rows[keep], fresh[keep]
    firsts = np.flatnonzero(fresh)
    return values[firsts], np.append(firsts, len(values)).astype(np.int64), rows
