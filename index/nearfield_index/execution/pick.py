"""One query behind a narrow filter: of the rows that pass, those that lie in the lists nearest to it.

The rows come from the posting lists of the filter, and the list of each from a column, so that no bitmap is made and
nothing is scanned that does not pass. What is picked is scored by its own products: recall is lost only where an
answer lies in a list that was left out. How many lists that takes is known from coded lists by depth, which a filter
without any relation to the vectors needs at its selectivity. Where the lists around a query show that the filter has
one, it looks into more of them, as deep as what passes there asks for.
"""

from __future__ import annotations

import numpy as np

from nearfield_index.backends.base import Floats, Lists, Rows
from nearfield_index.backends.coded import CodedIvf
from nearfield_index.backends.ivf import fewer
from nearfield_index.execution.asked import Asked, Walked, exactly
from nearfield_index.execution.clusters import look_elsewhere
from nearfield_index.execution.cost import Calibration
from nearfield_index.execution.curves import depth_of, rounded_down
from nearfield_index.execution.plan import FEW_LISTS, RELATED, TOGETHER

_ONE = np.zeros(1, dtype=np.int64)
_SURELY = 2.5  # deviations, of several looks at the lists around a query
_BEYOND = 4 / 3  # times as many lists again where next to nothing passes close to a query
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
    thin, lacking = _lacking(passed, sizes, share)
    if thin or together(lists, counts) >= TOGETHER:
        around = float(passed.sum() / max(1, sizes.sum()))
        deeper = None
        if not few_lists and around >= _BARE * share:
            deeper = _deeper(calibration, rounded_down(min(share, around)), lacking, k, target)
        if deeper is None:
            _elsewhere(asked, done, len(rows), effort)
            return done
        effort = int(RELATED * max(effort, deeper))
        if effort >= _ALL_BUT * len(lists.sizes):
            exactly(asked, _ONE, done)
            return done
        chosen = _nearest(coded, query, effort)
    near = np.zeros(len(lists.sizes), dtype=np.bool_)
    near[chosen] = True
    kept = np.sort(rows[near[of]]).astype(np.int64)  # of equal ones the first counts, in whatever order they came
    found, done.rows = coded.ranked(query, kept[None], k)
    done.scored = here.found_scores(query, done.rows, found)
    if len(kept) < min(k, len(rows)):
        exactly(asked, _ONE, done)
    return done


def _nearest(coded: CodedIvf, query: Floats, effort: int) -> Rows:
    chosen = coded.nearest(query, effort)[0]
    found: Rows = chosen[chosen >= 0]
    return found


def _lacking(passed: Rows, sizes: Rows, share: float) -> tuple[bool, int]:
    """Whether fewer rows pass in the lists nearest to a query than chance explains, and in how many rows around it next
    to none does. Looked for from the first list on, in ever more of them: what lacks close to the query is made up for
    farther out, where it does not show any more."""
    upto, rows = passed.cumsum(), sizes.cumsum()
    at = [*(2**power - 1 for power in range(1, len(passed).bit_length())), len(passed) - 1]
    some, expected = upto[at], share * rows[at]
    surely = some < 0.95 * expected - _SURELY * np.sqrt(expected)
    bare = surely & (some < _BARE * expected)
    thin = surely.any() or fewer(passed[0], share * sizes[0]) or fewer(some[-1], expected[-1])
    return bool(thin), int(rows[at][bare].max(initial=0))


def _deeper(calibration: Calibration, density: float, lacking: int, k: int, target: float) -> int | None:
    """In how many lists the answers lie where so much passes, but for so many rows around a query; None: in any."""
    setting = calibration.setting(selectivity=density, k=k, target=target)
    if setting is None or not lacking:
        return None if setting is None else setting.effort
    beyond = calibration.sweep_at(depth_of(k, density) + lacking, target)
    return None if beyond is None else int(_BEYOND * max(setting.effort, beyond.effort))


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
