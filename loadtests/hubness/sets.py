"""Two-view data: queries, items and the item that answers each query; real sets from a directory, one built in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]

_SEED = 20_261_125


@dataclass(frozen=True)
class TwoViews:
    """``answers[i]`` is the row of ``items`` that query ``i`` asks for. ``bank``, ``val`` and ``test`` are disjoint
    rows of ``queries``; ``foreign`` is a bank from elsewhere, where the set is about that."""

    name: str
    queries: Floats
    items: Floats
    answers: Integers
    bank: Integers
    val: Integers
    test: Integers
    foreign: Floats | None = None

    @property
    def bank_vectors(self) -> Floats:
        return self.queries[self.bank] if self.foreign is None else self.foreign


def unit(rows: Any) -> Floats:
    """Rows of length one, float32."""
    matrix = np.asarray(rows, np.float32)
    return np.asarray(matrix / np.linalg.norm(matrix, axis=1, keepdims=True), np.float32)


def load(name: str, data: Path | None) -> TwoViews:
    """A set by name. Raises ValueError for an unknown name, FileNotFoundError without the data."""
    if name == "built-in":
        return built_in()
    if name not in SETS:
        raise ValueError(f"there is no set {name!r}; known are {', '.join(names())}")
    if data is None:
        raise FileNotFoundError("name the directory of the data sets with --data or NEARFIELD_TEST_DATA")
    return SETS[name](data)


def names() -> list[str]:
    return ["built-in", *SETS]


def built_in(items: int = 1_500, queries: int = 3_000, dim: int = 24) -> TwoViews:
    """Items of which a few lie where all queries are: hubs by construction."""
    random = np.random.default_rng(_SEED)
    base = random.normal(size=(items, dim))
    answers = random.integers(0, items, queries)
    asked = base[answers] + 0.6 * random.normal(size=(queries, dim)) + 1.2
    base[: items // 100] += 2.0
    return split("built-in", unit(asked), unit(base), answers)


def split(name: str, queries: Floats, items: Floats, answers: Any) -> TwoViews:
    """Half of the queries for the bank, 15 % to tune on, the rest to test."""
    order = np.random.default_rng(_SEED).permutation(len(queries))
    first, second = len(order) // 2, len(order) * 65 // 100
    parts = (order[:first], order[first:second], order[second:])
    return TwoViews(name, queries, items, np.asarray(answers, np.int64), *parts)


def _cross(name: str) -> Callable[[Path], TwoViews]:
    def read(data: Path) -> TwoViews:
        with np.load(data / "cross" / f"{name}.npz") as held:
            parts = [held[part].astype(np.int64) for part in ("gt", "bank", "val", "test")]
            return TwoViews(name, unit(held["queries"]), unit(held["gallery"]), *parts)

    return read


def _short2long(data: Path) -> TwoViews:
    with np.load(data / "cross" / "deb_short2long_index.npz") as held:
        queries = unit(np.load(data / "debian_queries_256.npy")[held["query_rows"]])
        items = unit(np.load(data / "debian_256.npy")[held["corpus_rows"]])
        parts = [held[part].astype(np.int64) for part in ("bank", "val", "test")]
    return TwoViews("deb_short2long", queries, items, np.arange(len(queries)), *parts)


def _own_kind(file: str, noise: float, key: str | None = None) -> Callable[[Path], TwoViews]:
    """A corpus asked by noisy copies of its own items: no hubs worth the name."""

    def read(data: Path) -> TwoViews:
        loaded = np.load(data / file)
        items = unit((loaded if key is None else loaded[key])[:10_000])
        random = np.random.default_rng(_SEED)
        answers = random.permutation(len(items))
        asked = unit(items[answers] + noise * random.normal(size=items.shape))
        return split(f"own kind: {Path(file).stem}", asked, items, answers)

    return read


def _foreign(
    base: Callable[[Path], TwoViews], label: str, bank: Callable[[Path], Floats]
) -> Callable[[Path], TwoViews]:
    def read(data: Path) -> TwoViews:
        views = base(data)
        return replace(views, name=f"{views.name}, bank of {label}", foreign=bank(data))

    return read


def _pypi(data: Path) -> Floats:
    return unit(np.load(data / "pypi_queries_256.npy"))


def _german(data: Path) -> Floats:
    views = _cross("de2en")(data)
    return views.queries[views.bank]


SETS: dict[str, Callable[[Path], TwoViews]] = {
    "de2en": _cross("de2en"),
    "fashion_left2right": _cross("fashion_left2right"),
    "map_glove2static_word": _cross("map_glove2static_word"),
    "deb_short2long": _short2long,
    "own-kind-minilm": _own_kind("debian_short_minilm_384.npy", 0.05),
    "own-kind-glove": _own_kind("glove_50_angular.npz", 0.1, "base"),
    "de2en-pypi-bank": _foreign(_cross("de2en"), "package summaries", _pypi),
    "short2long-pypi-bank": _foreign(_short2long, "package summaries", _pypi),
    "short2long-german-bank": _foreign(_short2long, "German queries", _german),
}


def large(kind: str, data: Path) -> TwoViews:
    """100,000 items of 256 dimensions (Debian and package texts), asked in German (``german``: another view, many
    hubs) or by short descriptions (``short``: their own kind); or the right halves of 60,000 images asked by left
    halves, mapped (``fashion``). No answers are known: for cost, not for recall at 1."""
    if kind == "fashion":
        queries, items = _halves(data)
        return split("fashion halves, 60,000 items", queries, items, np.zeros(len(queries)))
    items = unit(np.concatenate([np.load(data / "debian_256.npy"), np.load(data / "pypi_256.npy")])[:100_000])
    if kind == "german":
        queries = _cross("de2en")(data).queries
    elif kind == "short":
        queries = unit(np.load(data / "debian_queries_256.npy"))[:9_000]
    else:
        raise ValueError(f"there is no large set {kind!r}; known are german, short and fashion")
    return split(f"{kind}, 100,000 items", queries, items, np.zeros(len(queries)))


def _halves(data: Path) -> tuple[Floats, Floats]:
    """Left halves of images, mapped by ridge regression on 4,000 others to where right halves are; right halves."""
    with np.load(data / "fashion_mnist_784_euclidean.npz") as held:
        sides = [held[part].astype(np.float32).reshape(-1, 28, 2, 14) for part in ("train", "queries")]
    (left, right), (asked, _) = ([side[:, :, half].reshape(len(side), -1) for half in (0, 1)] for side in sides)
    centre, right = left.mean(axis=0), unit(right - right.mean(axis=0) + 1e-3)
    left, asked = unit(left[:4_000] - centre + 1e-3), unit(asked - centre + 1e-3)
    mapped = np.linalg.solve(left.T @ left + np.eye(left.shape[1], dtype=np.float32), left.T @ right[:4_000])
    return unit(asked @ mapped), right
