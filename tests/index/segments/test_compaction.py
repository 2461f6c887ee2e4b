"""The merge policy is a pure function of sizes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from nearfield_index.segments.compaction import SegmentSize, plan_merge

MB = 1024 * 1024

sizes = st.builds(
    SegmentSize,
    id=st.uuids().map(str),
    indexed=st.booleans(),
    count=st.integers(1, 10**6),
    dead=st.just(0),
    nbytes=st.integers(1, 2_000 * MB),
    current=st.booleans(),
)


def segment(name: str, *, indexed: bool, mb: float = 10, dead: int = 0, current: bool = True) -> SegmentSize:
    return SegmentSize(name, indexed, 100, dead, int(mb * MB), current)


@given(st.lists(sizes, max_size=8, unique_by=lambda s: s.id))
def test_a_full_merge_leaves_nothing_flat_or_outdated_and_is_then_content(segments: list[SegmentSize]) -> None:
    chosen = plan_merge(segments, full=True)
    left = [s for s in segments if s.id not in chosen]
    assert all(s.indexed and s.current for s in left)
    assert len(set(chosen)) == len(chosen)
    assert plan_merge(left, full=True) == []


def test_few_small_flat_segments_wait() -> None:
    assert plan_merge([segment("a", indexed=False, mb=5)], full=False) == []


def test_many_or_large_flat_segments_are_merged() -> None:
    assert len(plan_merge([segment(str(n), indexed=False, mb=1) for n in range(4)], full=False)) == 4
    assert plan_merge([segment("a", indexed=False, mb=64)], full=False) == ["a"]


def test_much_deleted_segments_are_rewritten() -> None:
    assert plan_merge([segment("a", indexed=True, dead=30)], full=False) == ["a"]
    assert plan_merge([segment("a", indexed=True, dead=10)], full=False) == []


def test_a_large_segment_is_not_rebuilt_for_a_few_new_points() -> None:
    few, more = segment("new", indexed=False, mb=0.5), segment("new", indexed=False, mb=10)
    for large, new in ((1000, few), (2000, more)):
        assert plan_merge([segment("large", indexed=True, mb=large), new], full=True) == ["new"]
    for small, new in ((100, few), (1000, more)):
        assert set(plan_merge([segment("small", indexed=True, mb=small), new], full=True)) == {"small", "new"}
