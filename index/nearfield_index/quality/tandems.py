"""What a graph and coded lists find between them: a walk and a scan miss different rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from nearfield_index.backends.base import Searcher
from nearfield_index.backends.coded import CodedIvf, blocks
from nearfield_index.execution.curves import DEPTHS, Reach, Tandem
from nearfield_index.quality.probes import Probe
from nearfield_index.quality.sweeps import places

Rows = np.ndarray[Any, np.dtype[np.int64]]
Mask = np.ndarray[Any, np.dtype[np.bool_]]

# Walks that one has gone first, and numbers of lists that are worth a look beside them.
_EFFORTS, _LISTS = (24, 384), 8
_DEEP = 1_024  # an exact answer or one from lists that have rows which pass is nearer than what lies farther down


def tandems(
    graph: Searcher,
    lists: CodedIvf,
    probes: Sequence[Probe],
    truths: Sequence[Rows],
    *,
    reaches: Sequence[Reach],
    sweeps: Sequence[Reach],
    n: int,
) -> tuple[Tandem, ...]:
    """Measure together what ``reaches`` and ``sweeps`` say of each. ``truths``: by probe the nearest of ``n`` rows."""
    deepest = min(_DEEP, *(DEPTHS[len(sweep.recall) - 1] for sweep in sweeps)) if sweeps else 0
    depths = [depth for depth in DEPTHS if depth <= deepest]
    least, most = _EFFORTS
    efforts = [reach.effort for reach in reaches if least <= reach.effort <= most]
    if not depths or not efforts:
        return ()
    truths = [truth[:, : depths[-1]] for truth in truths]
    walked = {
        effort: [_met(graph, probe, truth, effort) for probe, truth in zip(probes, truths, strict=True)]
        for effort in efforts
    }
    wide = lists.width_of(depths[-1])
    found: list[Tandem] = []
    for count in [sweep.effort for sweep in sweeps if sweep.effort >= _LISTS]:
        ranked = [_ranked(lists, probe, truth, count, wide, n) for probe, truth in zip(probes, truths, strict=True)]
        for effort in efforts:
            recall = []
            for depth in depths:
                each = [
                    (met | (at < lists.width_of(depth)))[:, :depth].mean(axis=1)
                    for met, at in zip(walked[effort], ranked, strict=True)
                ]
                recall.append(min(hit.mean() - 2 * hit.std() / np.sqrt(len(hit)) for hit in each))
            found.append(Tandem(effort, count, tuple(np.maximum(0.0, recall).round(4).tolist())))
    return tuple(found)


def _met(graph: Searcher, probe: Probe, truth: Rows, effort: int) -> Mask:
    """Which of the nearest a walk finds, ``(n, depth)``."""
    _, rows = graph.search(probe.queries, effort, effort=effort, within=None)
    return np.stack([np.isin(wanted, got) for wanted, got in zip(truth, rows, strict=True)])


def _ranked(lists: CodedIvf, probe: Probe, truth: Rows, count: int, wide: int, n: int) -> Rows:
    """Where the codes of so many lists rank the nearest, ``(n, depth)``; past ``wide`` where they do not find one."""
    some = blocks(len(truth), wide)
    return np.concatenate([places(lists.candidates(probe.queries[at], wide, count), truth[at], n) for at in some])
