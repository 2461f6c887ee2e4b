"""Named data sets: base, queries and the true neighbours. Real ones from a directory, a synthetic one built in."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from loadtests import predicates
from loadtests.expensive import Expensive
from loadtests.passages import passages
from loadtests.predicates import Predicates
from loadtests.truth import nearest

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]

DATA_VARIABLE = "NEARFIELD_TEST_DATA"
DEPTH = 100
_TRAINING = 1_000
_SEED = 20_261_125
_RANK = 12
_CLUSTERED = re.compile(r"(clustered|hybrid)(?:-(\d+)x(\d+))?")
_DEBIAN = ("section", "priority", "architecture", "installed_size", "n_depends")
_HYBRID = (
    *("section", "priority", "architecture", "multi_arch", "maintainer", "source", "homepage_host", "tags"),
    *("installed_size", "size", "n_depends"),
)
_PYPI = ("year", "rank", "version_major", "prerelease", "n_words")


@dataclass(frozen=True)
class Corpus:
    """A data set; the number of a base row is its id.

    ``base`` (n, d) and ``queries`` (m, d) float32; ``truth`` (m, depth) int64 the true neighbours, best first, or None
    where nobody computed them; ``training`` (t, d) further queries, never among ``queries``, that an index may learn
    from; ``metric`` is ``l2`` or ``cosine``; ``attributes`` are columns of n values; ``predicates`` the filter that
    goes with each query, where the data set has such (``truth`` is always without a filter). ``history`` are earlier
    queries with their predicates, which an index may learn from; ``expensive`` what a scorer thinks of queries and
    base, where it has such.
    """

    name: str
    metric: str
    base: Floats
    queries: Floats
    training: Floats
    truth: Integers | None
    attributes: dict[str, NDArray[Any]] = field(default_factory=dict)
    predicates: Predicates | None = None
    history: tuple[Floats, Predicates] | None = None
    expensive: Expensive | None = None


def names() -> list[str]:
    """The data sets that ``load`` knows; those ending in ``NxD`` take any size."""
    return [*_REAL, "clustered-NxD", "hybrid-NxD"]


def load(
    name: str,
    *,
    data: Path | None = None,
    limit: int | None = None,
    queries: int = 1_000,
    where: tuple[str, str] | None = None,
) -> Corpus:
    """Load the first ``limit`` base rows and the first ``queries`` queries of a data set, with their truth.

    The true neighbours are computed anew where the base is cut or ``where`` (attribute, value) filters it.
    Raises ValueError for an unknown name or attribute, FileNotFoundError without the data.
    """
    built_in = _CLUSTERED.fullmatch(name)
    if built_in:
        corpus = clustered(name, int(built_in[2] or 20_000), int(built_in[3] or 64))
        corpus = with_predicates(corpus) if built_in[1] == "hybrid" else corpus
    elif name in _REAL:
        corpus = _REAL[name](data or _directory())
    else:
        raise ValueError(f"there is no data set {name!r}; known are {', '.join(names())}")
    truth = None if corpus.truth is None else corpus.truth[:queries]
    # where queries have predicates one vector comes with several of them: the others are no training
    spare = corpus.queries[queries:] if corpus.predicates is None else corpus.queries[:0]
    training = np.concatenate([spare, corpus.training])[:_TRAINING]
    corpus = replace(corpus, queries=corpus.queries[:queries], training=training, truth=truth)
    if corpus.predicates is not None:
        corpus = replace(corpus, predicates=corpus.predicates.cut(limit, queries))
    if limit is not None and limit < len(corpus.base):
        cut = {column: values[:limit] for column, values in corpus.attributes.items()}
        corpus = replace(corpus, base=corpus.base[:limit], attributes=cut, truth=None)
    if corpus.truth is not None and where is None:
        return corpus
    passing = None if where is None else matching(corpus, *where)
    return replace(corpus, truth=nearest(corpus.base, corpus.queries, DEPTH, corpus.metric, alive=passing))


def matching(corpus: Corpus, attribute: str, value: str) -> NDArray[np.bool_]:
    """Which rows hold this value, given as text. Raises ValueError for an unknown attribute."""
    if attribute not in corpus.attributes:
        raise ValueError(
            f"{corpus.name} has no attribute {attribute!r}; it has {', '.join(corpus.attributes) or 'none'}"
        )
    return np.asarray(corpus.attributes[attribute].astype(str) == value)


def typed(corpus: Corpus, attribute: str, value: str) -> tuple[str, Any]:
    """The same attribute and value with the type the data have. Raises ValueError where no row holds it."""
    rows = np.flatnonzero(matching(corpus, attribute, value))
    if not len(rows):
        raise ValueError(f"no point has {attribute} = {value}")
    held = corpus.attributes[attribute][rows[0]]
    return attribute, held.item() if isinstance(held, np.generic) else held


def clustered(name: str, points: int, dim: int) -> Corpus:
    """A seeded mixture of clusters, each a low-dimensional sheet of its own, so that neighbours mean something.

    Queries are drawn from the same mixture; ``bucket`` (0..9) is an attribute independent of the vectors.
    """
    random = np.random.default_rng(_SEED)
    clusters = max(8, int(np.sqrt(points) / 2))
    rank = min(_RANK, dim)
    centres = random.normal(size=(clusters, dim))
    sheets = random.normal(size=(clusters, rank, dim)) / np.sqrt(rank)

    def draw(count: int) -> Floats:
        of = random.integers(0, clusters, count)
        rows = centres[of] + 0.05 * random.normal(size=(count, dim))
        coordinates = random.normal(size=(count, rank))
        for cluster in range(clusters):
            members = np.flatnonzero(of == cluster)
            rows[members] += coordinates[members] @ sheets[cluster]
        return rows.astype(np.float32)

    base = draw(points)
    queries = draw(2 * _TRAINING)
    return Corpus(
        name,
        "cosine",
        base,
        queries[:_TRAINING],
        queries[_TRAINING:],
        None,
        {"bucket": random.integers(0, 10, points)},
    )


def with_predicates(corpus: Corpus) -> Corpus:
    """A built-in corpus with attributes and a filter for each query, of every kind and selectivity that the real have.

    ``area`` goes with the vectors, ``kind`` (skewed), ``size`` and ``tags`` do not; ``kind`` and ``tags`` have gaps.
    """
    random = np.random.default_rng(_SEED + 1)
    n, m = len(corpus.base), len(corpus.queries)
    kinds = np.array([f"kind {number}" for number in range(40)] + [""], dtype=object)
    shares = 1.0 / np.arange(1, len(kinds) + 1)
    tags = np.empty(n, dtype=object)
    tags[:] = [
        [f"tag {each}" for each in row[:count]]
        for row, count in zip(random.integers(0, 30, (n, 3)).tolist(), random.integers(0, 4, n).tolist(), strict=True)
    ]
    columns: dict[str, NDArray[Any]] = {
        "area": np.argmax(corpus.base @ corpus.base[:12].T, axis=1),
        "kind": predicates.nulled(random.choice(kinds, n, p=shares / shares.sum())),
        "size": random.permutation(n),
        "tags": predicates.nulled(tags),
    }

    def leaf(name: str, op: str, value: Any = None) -> dict[str, Any]:
        return {"field": name, "op": op, "value": value}

    known: list[predicates.Predicate] = [
        *(leaf("area", "eq", number) for number in range(12)),
        *(leaf("kind", "eq", kind) for kind in kinds[:-1]),
        *(leaf("size", "lt", round(n * share)) for share in (0.0005, 0.005, 0.05, 0.3, 0.7, 0.95)),
        *(leaf("tags", "contains", f"tag {number}") for number in range(30)),
        leaf("kind", "in", ["kind 3", "kind 5"]),
        leaf("size", "between", [n // 10, n // 5]),
        leaf("kind", "is_null"),
        {"not": leaf("kind", "eq", "kind 0")},
        {"or": [leaf("area", "eq", 1), leaf("kind", "eq", "kind 1")]},
        {"and": [leaf("tags", "not_null"), leaf("size", "gte", n // 2)]},
        {"and": [leaf("size", "gt", n // 3), leaf("size", "lte", n // 3 + 5)]},
    ]
    order = random.permutation(len(known))
    skew = 1.0 / np.arange(1, len(known) + 1)
    chosen = order[random.choice(len(known), m, p=skew / skew.sum())]
    earlier = order[random.choice(len(known), len(corpus.training), p=skew / skew.sum())]
    return replace(
        corpus,
        attributes=columns,
        predicates=predicates.of(known, chosen, columns),
        history=(corpus.training, predicates.of(known, earlier, columns)),
    )


def _directory() -> Path:
    named = os.environ.get(DATA_VARIABLE)
    if not named:
        raise FileNotFoundError(f"name the directory of the data sets with --data or {DATA_VARIABLE}")
    return Path(named)


def _fashion(data: Path) -> Corpus:
    with np.load(data / "fashion_mnist_784_euclidean.npz") as held:
        return _corpus("fashion_mnist_784_euclidean", "l2", held["train"], held["queries"], held["gt_ids"])


def _glove(data: Path) -> Corpus:
    with np.load(data / "glove_50_angular.npz") as held:
        return _corpus("glove_50_angular", "cosine", held["base"], held["queries"], held["gt_ids"])


def _debian(data: Path) -> Corpus:
    """Its truth covers some of the queries; the others may be learnt from."""
    queries = np.load(data / "debian_queries_256.npy")
    with np.load(data / "debian_gt100.npz") as held:
        tested, truth = held["query_rows"], held["gt_ids"]
    others = np.delete(queries, tested, axis=0)
    corpus = _corpus("debian_256", "cosine", np.load(data / "debian_256.npy"), queries[tested], truth)
    attributes = _columns(data / "debian_attributes.parquet", _DEBIAN)
    return replace(corpus, training=others.astype(np.float32), attributes=attributes)


def _debian_passages(data: Path) -> Corpus:
    """Asked with the same short descriptions."""
    queries = np.load(data / "debian_queries_256.npy").astype(np.float32)
    return Corpus("debian_passages_256", "cosine", passages(data), queries, queries[:0], None)


def _hybrid_debian(data: Path) -> Corpus:
    """The test half of the filtered queries; learnt from are vectors of the other half that the test never asks."""
    queries = np.load(data / "debian_queries_256.npy")
    with np.load(data / "hybrid_debian.npz") as held:
        past, asked, chosen = held["is_past"], held["query"], held["predicate"]
    lines = (data / "hybrid_debian_predicates.jsonl").read_bytes().splitlines()
    stated = {each["id"]: each["predicate"] for each in map(orjson.loads, lines)}
    attributes = {
        name: predicates.nulled(column)
        for name, column in _columns(data / "debian_attributes.parquet", _HYBRID).items()
    }
    numbers = np.array(sorted(stated))
    places = np.searchsorted(numbers, chosen[~past])
    known = [stated[number] for number in numbers.tolist()]
    return Corpus(
        "hybrid_debian",
        "cosine",
        np.load(data / "debian_256.npy").astype(np.float32),
        queries[asked[~past]].astype(np.float32),
        queries[np.setdiff1d(asked[past], asked[~past])].astype(np.float32),
        None,
        attributes,
        predicates.of(known, places, attributes),
        (
            queries[asked[past]].astype(np.float32),
            predicates.of(known, np.searchsorted(numbers, chosen[past]), attributes),
        ),
    )


def _pypi(data: Path) -> Corpus:
    with np.load(data / "pypi_gt100.npz") as held:
        truth = held["gt_ids"]
    base, queries = np.load(data / "pypi_256.npy"), np.load(data / "pypi_queries_256.npy")
    attributes = _columns(data / "pypi_attributes.parquet", _PYPI)
    return replace(_corpus("pypi_256", "cosine", base, queries, truth), attributes=attributes)


def _minilm(data: Path) -> Corpus:
    """It has 1,000 queries: ask for fewer, so that some are left to learn from."""
    stem = "debian_short_minilm_384"
    with np.load(data / f"{stem}_gt100.npz") as held:
        truth = held["gt_ids"]
    return _corpus(stem, "cosine", np.load(data / f"{stem}.npy"), np.load(data / f"{stem}_queries.npy"), truth)


def _ce(data: Path) -> Corpus:
    """Texts under a late-interaction scorer whose every score is known; anchors are other queries than those asked."""
    import pyarrow.parquet

    with np.load(data / "ce" / "late_interaction.npz") as held:
        scores, base, queries = held["maxsim"], held["item_emb"], held["query_emb"]
        asked, others = held["test_queries"], held["train_queries"]
    texts = {
        name: pyarrow.parquet.read_table(data / "ce" / f"{name}.parquet", columns=["text"])["text"].to_pylist()
        for name in ("queries", "items")
    }
    rows = np.concatenate([asked, others])
    expensive = Expensive.of_table(
        scores[rows].astype(np.float64),
        [texts["queries"][row] for row in rows.tolist()],
        texts["items"],
        anchors=queries[others].astype(np.float32),
    )
    none = queries[:0].astype(np.float32)
    return Corpus(
        "ce", "cosine", base.astype(np.float32), queries[asked].astype(np.float32), none, None, expensive=expensive
    )


_REAL: dict[str, Callable[[Path], Corpus]] = {
    "fashion_mnist_784_euclidean": _fashion,
    "glove_50_angular": _glove,
    "debian_256": _debian,
    "debian_passages_256": _debian_passages,
    "hybrid_debian": _hybrid_debian,
    "pypi_256": _pypi,
    "debian_short_minilm_384": _minilm,
    "ce": _ce,
}


def _corpus(name: str, metric: str, base: Any, queries: Any, truth: Any) -> Corpus:
    none = np.empty((0, base.shape[1]), dtype=np.float32)
    return Corpus(name, metric, base.astype(np.float32), queries.astype(np.float32), none, truth.astype(np.int64))


def _columns(path: Path, wanted: tuple[str, ...]) -> dict[str, NDArray[Any]]:
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(path, columns=list(wanted))
    return {name: np.asarray(table[name].to_numpy(zero_copy_only=False)) for name in wanted}
