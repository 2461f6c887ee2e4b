"""What a graph and coded lists find between them: a walk and a scan miss different rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from nearfield_index.backends.base import Searcher
from nearfield_index.backends.coded import CodedIvf
from nearfield_index.execution.curves import DEPTHS, Reach, Tandem
from nearfield_index.quality.probes import Probe, cautious, met
from nearfield_index.quality.sweeps import ranked

Rows = np.ndarray[Any, np.dtype[np.int64]]

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
        effort: [
            met(truth, graph.search(probe.queries, effort, effort=effort, within=None)[1])
            for probe, truth in zip(probes, truths, strict=True)
        ]
        for effort in efforts
    }
    wide = lists.width_of(depths[-1])
    found: list[Tandem] = []
    for count in [sweep.effort for sweep in sweeps if sweep.effort >= _LISTS]:
        places = [
            ranked(lists, probe.queries, truth, count, wide, n) for probe, truth in zip(probes, truths, strict=True)
        ]
        for effort in efforts:
            recall = []
            for depth in depths:
                each = [
                    (there | (at < lists.width_of(depth)))[:, :depth].mean(axis=1)
                    for there, at in zip(walked[effort], places, strict=True)
                ]
                recall.append(min(cautious(hit) for hit in each))
            found.append(Tandem(effort, count, tuple(np.round(recall, 4).tolist())))
    return tuple(found)
