"""One query behind a narrow filter: of the rows that pass, those that lie in the lists nearest to it.

The rows come from the posting lists of the filter, and the list of each from a column, so that no bitmap is made and
nothing is scanned that does not pass. What is picked is scored by its own products: recall is lost only where an
answer lies in a list that was left out. How many lists that takes is known from coded lists by depth, which a filter
without any relation to the vectors needs at its selectivity. Where the lists around a query show that the filter has
one, it looks into more of them, as deep as what passes there asks for.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from nearfield_index.backends.base import Floats, Lists, Rows
from nearfield_index.backends.coded import CodedIvf
from nearfield_index.backends.exact import pad
from nearfield_index.backends.ivf import fewer
from nearfield_index.execution.asked import Asked, Walked, exactly
from nearfield_index.execution.clusters import look_elsewhere
from nearfield_index.execution.cost import rounded_down
from nearfield_index.execution.plan import FEW_LISTS, RELATED, TOGETHER

_ONE = np.zeros(1, dtype=np.int64)
_BARE = 0.25  # where less of what passes elsewhere passes near a query, its answers may lie in any list
_ALL_BUT = 0.8  # of the lists: then all rows that pass may as well be scored


def pick(asked: Asked, *, effort: int, recall: float) -> Walked:
    """The best passing rows of the nearest ``effort`` lists, which are expected to reach ``recall``, for one query."""
    here, calibration, passing, query, k, target, _ = asked
    assert isinstance(here.clusters, CodedIvf)
    assert passing is not None
    coded, lists = here.clusters, here.clusters.lists
    rows = passing.listed()
    done = Walked(
        np.full((1, k), -1, dtype=np.int64), np.full((1, k), -np.inf), np.array([recall]), np.array([k], dtype=np.int64)
    )
    few_lists = effort < FEW_LISTS * len(lists.sizes)
    of = lists.by_row[rows]
    counts = np.bincount(of, minlength=len(lists.sizes))
    chosen = _nearest(coded, query, effort)
    passed, sizes = counts[chosen], lists.sizes[chosen]
    share = len(rows) / len(here)
    # List by list, for what lacks close to the query is made up for farther out, where it does not show any more.
    upto, expected = passed.cumsum(), share * sizes.cumsum()
    thin = fewer(upto, expected)
    if thin.any() or together(lists, counts) >= TOGETHER:
        around = float(upto[-1] / max(1, sizes.sum()))
        bare = around < _BARE * share or (upto < _BARE * expected)[thin].any()
        deeper = None
        if not (few_lists or bare):
            density = rounded_down(min(share, around))
            deeper = calibration.setting(selectivity=density, k=k, target=target)
        if deeper is None:
            _elsewhere(asked, done, len(rows), effort)
            return done
        effort = int(RELATED * max(effort, deeper.effort))
        if effort >= _ALL_BUT * len(lists.sizes):
            exactly(asked, _ONE, done)
            return done
        chosen = _nearest(coded, query, effort)
    near = np.zeros(len(lists.sizes), dtype=np.bool_)
    near[chosen] = True
    kept = rows[near[of]].astype(np.int64)
    inner = coded.products(query, kept[None])
    found, at = pad(*_best(inner[0], kept, k), k)
    done.rows, done.scored = at, here.found_scores(query, at, found)
    if len(kept) < min(k, len(rows)):
        exactly(asked, _ONE, done)
    return done


def _nearest(coded: CodedIvf, query: Floats, effort: int) -> Rows:
    chosen = coded.nearest(query, effort)[0]
    found: Rows = chosen[chosen >= 0]
    return found


def _elsewhere(asked: Asked, done: Walked, rows: int, effort: int) -> None:
    """Answer by a scan of lists that have rows which pass, or of these rows themselves, whichever is cheaper."""
    assert asked.passing is not None
    share = rounded_down(rows / asked.passing.n)
    _, by_scan = asked.calibration.elsewhere_us(rows, share, asked.k, asked.target)
    if by_scan:
        exactly(asked, _ONE, done)
    else:
        look_elsewhere(asked, _ONE, done, effort=effort, depth=0.0)


def together(lists: Lists, counts: Rows) -> float:
    """How much rows keep together, by how many of them lie in each list: 0 for a random set, 1 for whole lists."""
    sizes = lists.sizes.astype(np.float64)
    total, squares = sizes.sum(), float(sizes @ sizes)
    found = counts.astype(np.float64)
    share = found.sum() / total
    random = share * share * squares + share * (1 - share) * total
    whole = share * squares
    return float((found @ found - random) / max(1e-9, whole - random))


def _best(inner: Any, rows: Rows, k: int) -> tuple[Any, Rows]:
    """The best k, best first, ``(1, k or fewer)``; equal ones by row, in whatever order they came."""
    if len(rows) > k:
        enough = (inner >= np.partition(inner, len(inner) - k)[len(inner) - k]).nonzero()[0]
        inner, rows = inner[enough], rows[enough]
    order = np.lexsort((rows, -inner))[:k]
    return inner[None, order], rows[None, order]
