"""The five questions of the demo: the request as it goes over the wire, and the judge of its answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nearfield_server.demo.dataset import Dataset

SCORE_TOLERANCE = 1e-4
WORST_LIST_RECALL = 0.8
"""A list of k hits may miss a neighbour at recall 0.95; one that misses more than a fifth is called wrong."""


@dataclass(frozen=True)
class Question:
    """One request to ``/query``; ``vectors`` (n, d) and ``allowed`` (n row masks) say what it may answer."""

    name: str
    title: str
    asks: tuple[str, ...]
    body: dict[str, Any]
    vectors: NDArray[np.float32]
    allowed: tuple[NDArray[np.bool_], ...]

    @property
    def k(self) -> int:
        return int(self.body["k"])


def questions(data: Dataset) -> list[Question]:
    """Four questions over the whole data set; the fifth (see `without`) depends on the first one's answer."""
    everything = np.ones(len(data.points), dtype=bool)
    shown: dict[str, Any] = {"select": ["section", "installed_size"], "with": ["text"], "explain": True}

    feeds = "read your RSS feeds from your terminal"
    chess = "3D chess game"
    three = [
        "command line torrent creation program",
        "Optimize laptop battery life",
        "Disk Usage/Free Utility",
    ]
    small_games = {"section": "games", "installed_size": {"lt": 1000}}
    sizes = np.array(data.column("installed_size"))
    sections = np.array(data.column("section"))
    tagged = np.array(["interface::commandline" in tags for tags in data.column("tags")])
    filters = [{"section": "net"}, {"tags": "interface::commandline"}, {"installed_size": {"lt": 1000}}]
    return [
        Question(
            name="1-plain",
            title="nearest to a text",
            asks=(feeds,),
            body={"vector": _plain(data.query(feeds)), "k": 5, **shown},
            vectors=data.query(feeds)[None],
            allowed=(everything,),
        ),
        Question(
            name="2-filtered",
            title="filtered: section = games and installed_size < 1000 KB",
            asks=(chess,),
            body={"vector": _plain(data.query(chess)), "k": 5, "filter": small_games, **shown},
            vectors=data.query(chess)[None],
            allowed=((sections == "games") & (sizes < 1000),),
        ),
        Question(
            name="3-batch",
            title="a batch of three, each with its own filter",
            asks=(
                f"{three[0]}  [section = net]",
                f"{three[1]}  [tags has interface::commandline]",
                f"{three[2]}  [installed_size < 1000]",
            ),
            body={
                "vectors": [_plain(data.query(text)) for text in three],
                "k": 3,
                "filters": filters,
                **shown,
            },
            vectors=np.stack([data.query(text) for text in three]),
            allowed=(sections == "net", tagged, sizes < 1000),
        ),
        Question(
            name="4-by-id",
            title="more like a stored point, by its id",
            asks=("stellarium",),
            body={"ids": ["stellarium"], "k": 5, **shown},
            vectors=data.vectors[data.row_of["stellarium"]][None],
            allowed=(everything & (np.arange(len(everything)) != data.row_of["stellarium"]),),
        ),
    ]


def without(question: Question, row: int) -> Question:
    """The same question after the point at ``row`` was deleted."""
    left = tuple(mask & (np.arange(len(mask)) != row) for mask in question.allowed)
    return Question(
        name="5-deleted",
        title="delete the best hit of the first question, ask it again",
        asks=question.asks,
        body=question.body,
        vectors=question.vectors,
        allowed=left,
    )


def faults(data: Dataset, question: Question, results: Sequence[Sequence[dict[str, Any]]]) -> list[str]:
    """What is wrong with an answer, judged by brute force over the packaged vectors; empty if it is right."""
    if len(results) != len(question.vectors):
        return [f"{len(results)} lists for {len(question.vectors)} queries"]
    found = []
    for number, hits in enumerate(results):
        scores = data.vectors @ question.vectors[number]
        found += [
            f"query {number + 1}: {fault}"
            for fault in _list_faults(data, hits, scores, question.allowed[number], question.k)
        ]
    return found


def _list_faults(
    data: Dataset,
    hits: Sequence[dict[str, Any]],
    scores: NDArray[np.float32],
    allowed: NDArray[np.bool_],
    k: int,
) -> list[str]:
    best = np.sort(scores[allowed])[::-1][:k]
    if len(hits) != len(best):
        return [f"{len(hits)} hits instead of {len(best)}"]
    rows = [data.row_of[hit["id"]] for hit in hits]
    told = np.array([hit["score"] for hit in hits])
    found = [f"{data.ids[row]} does not pass the filter or was deleted" for row in rows if not allowed[row]]
    if len(set(rows)) < len(rows):
        found.append("the same point twice")
    if np.abs(told - scores[rows]).max() > SCORE_TOLERANCE:
        found.append("a score is not the cosine of the stored vectors")
    if np.any(np.diff(told) > 0):
        found.append("hits are not in order")
    reached = np.mean(scores[rows] >= best[-1] - SCORE_TOLERANCE)
    if reached < WORST_LIST_RECALL:
        found.append(f"only {reached:.0%} of the true neighbours")
    return found


def _plain(vector: NDArray[np.float32]) -> list[float]:
    """A vector as short JSON numbers, so that the request files stay readable."""
    return [round(float(number), 5) for number in vector]
