"""What a compiled filter says beforehand holds afterwards: bounds, counts and tests, for live rows and others too."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nearfield_index.bitmap import Bitmap
from nearfield_index.filters.compile import compile_filter
from nearfield_index.filters.compiled import Compiled, Known, Living, Mapped, Span, those_pass
from nearfield_index.filters.parse import parse_filter
from nearfield_index.storage.columns import Columns
from nearfield_index.storage.postings import Postings
from oracle import matches

FIXED = settings(derandomize=True, database=None, deadline=None)

VALUES = st.one_of(st.integers(0, 5), st.sampled_from([0.5, 2.5, "a", "ab", "b", True, False]))
ATTRIBUTES = st.fixed_dictionaries(
    {},
    optional={
        "one": st.integers(0, 5),
        "many": st.lists(VALUES, max_size=5),
        "mixed": st.one_of(VALUES, st.none(), st.lists(VALUES, max_size=2)),
    },
)
NAMES = st.sampled_from(["one", "many", "mixed", "no_such"])
NUMBERS = st.one_of(st.integers(-1, 6), st.just(1.5))
BOUNDS = st.fixed_dictionaries({}, optional=dict.fromkeys(["gt", "gte", "lt", "lte"], NUMBERS)).filter(bool)
CONDITIONS = st.one_of(
    VALUES,
    BOUNDS,
    st.builds(lambda op, many: {op: many}, st.sampled_from(["in", "nin", "all"]), st.lists(VALUES, max_size=4)),
    st.builds(lambda flag: {"exists": flag}, st.booleans()),
    st.builds(lambda start: {"prefix": start}, st.sampled_from(["", "a"])),
)
LEAVES = st.one_of(
    st.builds(lambda name, condition: {name: condition}, NAMES, CONDITIONS),
    st.builds(lambda op, ids: {"$id": {op: ids}}, st.sampled_from(["in", "nin"]), st.lists(st.integers(0, 60))),
)
FILTERS = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.builds(lambda parts: {"$and": parts}, st.lists(inner, max_size=3)),
        st.builds(lambda parts: {"$or": parts}, st.lists(inner, max_size=3)),
        st.builds(lambda part: {"$not": part}, inner),
    ),
    max_leaves=5,
)
POINTS = st.one_of(
    st.lists(ATTRIBUTES, max_size=12),
    # more rows than a word of a bitmap, from fewer draws
    st.builds(lambda some, times: some * times, st.lists(ATTRIBUTES, min_size=1, max_size=8), st.integers(20, 90)),
)


def _holds(compiled: Compiled, expected: Any, shape: tuple[int, ...], rows: Any) -> None:
    """``expected``: bool by row. Asks first what must not need the bitmap."""
    true = int(expected.sum())
    low, likely, high = compiled.estimate
    assert 0 <= low <= true <= high <= compiled.n
    assert low <= likely <= high
    if len(expected):
        asked = rows.reshape(shape)
        assert compiled.test(rows).tolist() == expected[rows].tolist()
        assert compiled.test(asked).tolist() == expected[asked].tolist()
    assert sorted(compiled.listed().tolist()) == np.flatnonzero(expected).tolist()
    low, likely, high = compiled.counted()
    assert low <= true <= high
    assert low <= likely <= high
    assert compiled.bitmap.rows().tolist() == np.flatnonzero(expected).tolist()
    assert compiled.count == true
    if len(expected):
        assert compiled.test(asked).tolist() == expected[asked].tolist()


@settings(FIXED, max_examples=300)
@example(points=[{"many": [1, 2, 3]}], body={"many": {"gte": 0}}, seed=0)
@example(points=[{"one": 1}] * 3, body={"$not": {"no_such": 1}}, seed=0)
@given(points=POINTS, body=FILTERS, seed=st.integers(0, 1_000))
def test_estimates_hold_for_all_rows_for_live_ones_and_for_some(
    points: list[dict[str, Any]], body: dict[str, Any], seed: int
) -> None:
    n = len(points)
    random = np.random.default_rng(seed)
    columns = Columns.build(points, {})

    def made() -> Compiled:
        return compile_filter(
            parse_filter(body),
            columns,
            lambda ids: np.array([i for i in ids if isinstance(i, int) and i < n], np.int64),
        )

    passes = np.array([matches(body, point, row) for row, point in enumerate(points)], dtype=np.bool_)
    rows = random.integers(0, n, 12) if n else np.empty(0, np.int64)
    _holds(made(), passes, (3, 4), rows)
    alive = random.random(n) >= random.choice([0.0, 0.05, 0.5, 1.0])
    _holds(Living(made(), Known(Bitmap.from_mask(alive))), passes & alive, (3, 4), rows)
    some = random.permutation(n)[: n - int(random.integers(0, n + 1) * random.random())]
    rows = random.integers(0, len(some), 12) if len(some) else np.empty(0, np.int64)
    _holds(Mapped(made(), some), passes[some], (3, 4), rows)
    living = Living(made(), Known(Bitmap.from_mask(alive)))
    _holds(Mapped(living, some), (passes & alive)[some], (2, 6), rows)


@settings(FIXED, max_examples=150)
@given(
    points=POINTS,
    name=st.sampled_from(["one", "many", "mixed"]),
    bounds=st.lists(st.tuples(st.integers(-1, 6), st.integers(0, 6), st.integers(0, 3)), min_size=1, max_size=5),
    seed=st.integers(0, 1_000),
)
def test_filters_of_several_queries_are_tested_together(
    points: list[dict[str, Any]], name: str, bounds: list[tuple[int, int, int]], seed: int
) -> None:
    columns = Columns.build(points, {})
    if not points:
        return
    bodies = [{name: {"gte": low, "lt": low + length}} for low, length, _ in bounds]
    filters = [compile_filter(parse_filter(body), columns, lambda ids: np.empty(0, np.int64)) for body in bodies]
    sizes = [size for _, _, size in bounds]
    rows = np.random.default_rng(seed).integers(0, len(points), (sum(sizes), 3))
    expected = [
        [matches(body, points[row], row) for row in line]
        for body, line in zip(np.repeat(np.array(bodies, dtype=object), sizes), rows.tolist(), strict=True)
    ]
    assert those_pass(filters, sizes, rows).tolist() == expected


def test_numbers_of_values_at_the_edges_of_their_type() -> None:
    """Two bytes a row hold up to 32,767 values; -1 is a row without one."""
    for count in (32_766, 32_767, 32_768):
        n = count + 3  # the last three rows hold nothing
        postings = Postings(np.arange(count + 1, dtype=np.int64), np.arange(count, dtype=np.int32))
        codes = postings.codes(n)
        assert codes is not None
        assert codes.dtype == (np.int16 if count <= 32_767 else np.int32)
        rows = np.array([0, 1, count - 2, count - 1, count, n - 1])
        for first, last in ((0, count), (0, 1), (1, count), (count - 1, count), (count, count), (count - 2, count - 1)):
            expected = (rows >= first) & (rows < last)
            assert Span(n, postings, first, last).test(rows).tolist() == expected.tolist()
            both = [Span(n, postings, 0, count), Span(n, postings, first, last)]
            assert those_pass(both, [0, 1], rows[None]).tolist() == [expected.tolist()]
            assert Span(n, postings, first, last).bitmap.rows().tolist() == list(range(first, last))
