"""Learning short codes for normalised search from a fit's queries.

What counts of a code is how far it is off in an inner product with a query, so dimensions in which queries do not vary
need no bits: rows are coded after a turn by the root of the queries' covariance, in which that error is a Euclidean
distance (as anisotropic quantisation, arXiv 1908.10396, but by the queries themselves). Rows lie in lists and are coded
by what is left of them beside their list's centroid, by product quantisation with 4 bits a group of dimensions. How far
a code is off for the mean query is one known number a row, and is settled together with the bias: both are one more
number, kept in a few groups of their own, whose steps are no larger than any other group's, because FAISS rounds all
tables to one scale of 8 bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np

from nearfield_index.backends.base import Floats, Rows
from nearfield_index.backends.biased import scan_biased
from nearfield_index.backends.fitcodes import EFFORTS, Bytes, FitCodes
from nearfield_index.backends.space import original
from nearfield_index.schema import Metric
from nearfield_index.storage.vectors import MappedVectors

LEAST_ROWS, MOST_ROWS = 2_000, 2_000_000
"""Fewer rows are scanned as fast as they are; what it costs to look at all codes grows with them, a walk hardly."""

# Groups of 4 bits for two dimensions each; those that hold this share of what varies inside of lists are coded: more
# where few codes are looked at.
_CODED, _CODED_FINE = 0.99, 0.995
_PAIR = 2
_LEAST_GROUPS, _MOST_GROUPS = 32, 128
_SHRINK = 0.1  # of the covariance towards a round one: a bank is a sample
_SAMPLE = 32_768
_TRAINED = 16_384
_BLOCK = 16_384
# Rows a list: few where the first lists hold a query's answers, else so many that a list costs nothing to begin.
_FINE, _COARSE = 256, 4_096
_TOGETHER, _HELD = 1 / 8, 0.98
_PROBES = 128
_LEVELS = 16
_MOST_SCALARS = 24
_DEPTH_OF_EFFORT = 8  # an effort is for about an eighth as many answers
_SEED = 20_261_125


@dataclass(frozen=True)
class _Turn:
    """Of rows: ``(x - centre) @ rows``; of queries ``q @ asked``; both ``(dim, groups * each)``."""

    centre: Floats
    rows: Floats
    asked: Floats
    groups: int
    centroids: Floats
    mean: Floats
    """The mean query, from the centre where the metric is l2."""


def learn(vectors: MappedVectors, bias: Floats, asked: Floats, metric: Metric, *, threads: int) -> FitCodes:
    """Codes of ``vectors`` (``LEAST_ROWS`` or more) less a bias ``(rows,)``; ``asked`` ``(m, columns)`` are queries in
    search form. Raises RuntimeError or ``LinAlgError`` where numbers are too large or too small to work with."""
    faiss.omp_set_num_threads(threads)
    matrix = vectors.matrix
    random = np.random.default_rng(_SEED)
    some = asked[np.sort(random.permutation(len(asked))[:_PROBES])]
    truth = scan_biased(matrix, bias, 1.0, some, min(len(matrix), EFFORTS[-1] // _DEPTH_OF_EFFORT), None)[1]
    turn = _turned(matrix, bias, original(asked, metric), metric, original(some, metric), truth, random)
    codes = _coded(matrix, bias, original(asked, metric), metric, turn, random)
    return _with_probes(codes, some, truth)


def _turned(
    matrix: Floats, bias: Floats, asked: Floats, metric: Metric, some: Floats, truth: Rows, random: np.random.Generator
) -> _Turn:
    rows = np.sort(random.permutation(len(matrix))[:_SAMPLE])
    sample = original(matrix[rows], metric).astype(np.float64)
    centre, mean = sample.mean(axis=0), asked.mean(axis=0, dtype=np.float64)
    root, inverse = _roots(asked - mean)
    if metric is Metric.L2:
        mean = mean - centre
    turned = (sample - centre) @ root
    size = max(float(np.sqrt(np.square(turned).mean())), 1e-30)  # FAISS squares in float32
    turned, root, inverse = turned / size, root / size, inverse * size
    biases = bias[rows].astype(np.float64)
    first = truth[:, : min(truth.shape[1], 10)]
    answers = (original(matrix[first.ravel()], metric) - centre) @ root
    shift = -centre if metric is Metric.L2 else 0.0
    for each in (_FINE, _COARSE):
        lists = max(1, min(len(rows) // 32, len(matrix) // each))
        centroids, where = _clustered(turned, lists)
        if each == _COARSE or _keeps_together(
            centroids, where, biases, (some + shift) @ inverse, answers.reshape(*first.shape, -1)
        ):
            break
    spread, groups = _shared_out(turned - centroids[where], _CODED_FINE if each == _FINE else _CODED)
    return _Turn(
        centre.astype(np.float32),
        np.asarray(root @ spread, dtype=np.float32),
        np.asarray(inverse @ spread, dtype=np.float32),
        groups,
        np.asarray(centroids @ spread, dtype=np.float32),
        mean.astype(np.float32),
    )


def _roots(centred: Floats) -> tuple[Any, Any]:
    """The root of the covariance of queries and its inverse."""
    dim = centred.shape[1]
    covariance = centred.T.astype(np.float64) @ centred / max(1, len(centred))
    level = max(np.trace(covariance) / dim, 1e-12)
    values, axes = np.linalg.eigh((1 - _SHRINK) * covariance + _SHRINK * level * np.eye(dim))
    lengths = np.sqrt(np.maximum(values, _SHRINK * level / 2))
    return (axes * lengths) @ axes.T, (axes / lengths) @ axes.T


def _clustered(rows: Any, lists: int) -> tuple[Any, Rows]:
    asked = np.ascontiguousarray(rows, np.float32)
    kmeans = faiss.Kmeans(
        rows.shape[1], lists, niter=6, seed=_SEED, max_points_per_centroid=64, min_points_per_centroid=1
    )
    kmeans.train(asked)
    return kmeans.centroids, _nearest(kmeans.centroids, asked)


def _nearest(centroids: Floats, rows: Any) -> Rows:
    flat = faiss.IndexFlatL2(centroids.shape[1])
    flat.add(np.ascontiguousarray(centroids, np.float32))
    found: Rows = flat.search(np.ascontiguousarray(rows, np.float32), 1)[1][:, 0]
    return found


def _keeps_together(centroids: Any, where: Rows, biases: Any, asked: Any, answers: Any) -> bool:
    """Whether few of the lists hold nearly all answers ``(n, k, dims)`` of some queries ``(n, dims)``."""
    lists = len(centroids)
    level = np.bincount(where, weights=biases, minlength=lists) / np.maximum(1, np.bincount(where, minlength=lists))
    rank = np.argsort(np.argsort(-(asked @ centroids.T - level), axis=1), axis=1)
    at = _nearest(centroids, answers.reshape(-1, answers.shape[2])).reshape(answers.shape[:2])
    return bool((np.take_along_axis(rank, at, 1) < _TOGETHER * lists).mean() >= _HELD)


def _shared_out(rest: Any, share: float) -> tuple[Any, int]:
    """A turn after which every group of dimensions holds about as much of what is left (arXiv 1311.4055), and how
    many groups there are. Dimensions that hold no more than the rest of a ``share`` are left out."""
    values, axes = np.linalg.eigh(rest.T @ rest)
    values, axes = np.maximum(values[::-1], 1e-12), axes[:, ::-1]
    dims = int(np.searchsorted(np.cumsum(values), share * values.sum())) + 1
    groups = int(np.clip(-(-dims // _PAIR), _LEAST_GROUPS, _MOST_GROUPS))
    groups += groups % 2
    dims = min(len(values), _PAIR * groups)
    logs = np.log(values) + 100.0
    held: list[list[int]] = [[] for _ in range(groups)]
    filled = np.zeros(groups)
    for axis in range(dims):
        group = int(np.argmin(filled))
        held[group].append(axis)
        filled[group] = np.inf if len(held[group]) == _PAIR else filled[group] + logs[axis]
    out = np.zeros((len(axes), groups * _PAIR))
    for group, chosen in enumerate(held):
        out[:, group * _PAIR : group * _PAIR + len(chosen)] = axes[:, chosen]
    return out, groups


def _coded(
    matrix: Floats, bias: Floats, asked: Floats, metric: Metric, turn: _Turn, random: np.random.Generator
) -> FitCodes:
    width, groups = turn.rows.shape[1], turn.groups
    each = width // groups
    sample = np.sort(random.permutation(len(matrix))[:_TRAINED])
    rest, _, _ = _rest(matrix[sample], metric, turn)
    coder = faiss.ProductQuantizer(width, groups, 4)
    coder.train(np.ascontiguousarray(rest))
    tables = faiss.vector_to_array(coder.centroids).reshape(groups, _LEVELS, each)
    codes = np.empty((len(matrix), groups // 2), np.uint8)
    where = np.empty(len(matrix), np.int64)
    off = np.empty(len(matrix))
    towards = turn.mean @ turn.asked
    for start in range(0, len(matrix), _BLOCK):
        stop = min(len(matrix), start + _BLOCK)
        rest, where[start:stop], centred = _rest(matrix[start:stop], metric, turn)
        codes[start:stop] = coder.compute_codes(rest)
        said = (coder.decode(codes[start:stop]) + turn.centroids[where[start:stop]]) @ towards
        off[start:stop] = said - centred @ turn.mean
        if metric is Metric.L2:
            off[start:stop] += np.einsum("ij,ij->i", centred, centred, dtype=np.float64) / 2
    heat = (asked[:512] @ turn.asked).reshape(-1, groups, each)
    spans = np.ptp(np.einsum("mkd,nmd->nmk", tables, heat), axis=2).max(axis=1)
    step = float(np.median(spans)) / (_LEVELS - 1)
    # Under l2 the lengths of rows are not the bias's, which a request may scale.
    kinds = [bias + off] if metric is not Metric.L2 else [off, bias.astype(np.float64)]
    return _assembled(turn, tables, codes, where, kinds, step, metric)


def _rest(rows: Floats, metric: Metric, turn: _Turn) -> tuple[Floats, Rows, Floats]:
    """What is left of rows beside their centroids, which lists they are in, and rows from the centre."""
    centred = original(rows, metric) - turn.centre
    turned = centred @ turn.rows
    where = _nearest(turn.centroids, turned)
    return np.ascontiguousarray(turned - turn.centroids[where]), where, centred


def _assembled(
    turn: _Turn, tables: Floats, codes: Bytes, where: Rows, kinds: list[Any], step: float, metric: Metric
) -> FitCodes:
    """Codes with further groups for numbers ``kinds`` ``(rows,)`` to subtract; the last of them is the bias."""
    lists, each = len(turn.centroids), tables.shape[2]
    counts = np.bincount(where, minlength=lists)
    added, parts = [tables], [codes]
    coordinates: list[Any] = []
    levels: list[Any] = []
    at = len(tables)
    for numbers in kinds:
        level = np.bincount(where, weights=numbers, minlength=lists) / np.maximum(1, counts)
        more, digits, least = _digits(numbers - level[where], step)
        table = np.zeros((len(more), _LEVELS, each), np.float32)
        table[:, :, 0] = -more
        added.append(table)
        parts.append((digits[:, 0::2] | digits[:, 1::2] << 4).astype(np.uint8))
        coordinates.append(np.arange(at, at + len(more)) * each)
        levels.append(level + least)
        at += len(more)
    width = at * each
    centroids = np.zeros((lists, width), np.float32)
    centroids[:, : turn.rows.shape[1]] = turn.centroids
    fixed, scaled = np.zeros(width, np.float32), np.zeros(width, np.float32)
    for number, (places, level) in enumerate(zip(coordinates, levels, strict=True)):
        centroids[:, places[0]] = -level
        (scaled if number == len(kinds) - 1 else fixed)[places] = 1.0
    columns = len(turn.centre) + (metric is Metric.L2)
    ahead = np.zeros((columns, width), np.float32)
    ahead[: len(turn.centre), : turn.rows.shape[1]] = turn.asked
    if metric is Metric.L2:
        fixed[: turn.rows.shape[1]] = -turn.centre @ turn.asked
    order = np.argsort(where, kind="stable")
    return FitCodes(
        ahead,
        fixed,
        scaled,
        centroids,
        np.concatenate(added),
        np.ascontiguousarray(np.concatenate(parts, axis=1)[order]),
        counts.astype(np.int64),
        order.astype(np.int32),
        np.full(len(EFFORTS), lists, np.int64),
    )


def _digits(numbers: Any, step: float) -> tuple[Floats, Bytes, float]:
    """Numbers as sums of 16-step tables ``(groups, 16)``, with codes ``(rows, groups)``, an even number of them: a
    last one of small steps, and as many of larger ones as keep each below 15 ``step``; and the least number."""
    least = float(numbers.min(initial=np.inf)) if len(numbers) else 0.0
    extent = float(numbers.max(initial=least)) - least
    large = int(np.clip(np.ceil(extent / max(1e-30, (_LEVELS - 1) * step)), 1, _MOST_SCALARS - 1))
    large += 1 - large % 2
    size = max(extent / ((_LEVELS - 1) * large), 1e-30)
    whole = np.clip(np.floor((numbers - least) / size), 0, (_LEVELS - 1) * large)
    codes = np.empty((len(numbers), large + 1), np.uint8)
    codes[:, large] = np.clip((numbers - least - whole * size) / size * _LEVELS, 0, _LEVELS - 1)
    for group in range(large):
        codes[:, group] = np.minimum(whole, _LEVELS - 1)
        whole -= codes[:, group]
    tables = np.repeat(np.arange(_LEVELS)[None] * size, large + 1, axis=0)
    tables[large] = (np.arange(_LEVELS) + 0.5) * size / _LEVELS
    return tables.astype(np.float32), codes, least


def _with_probes(codes: FitCodes, some: Floats, truth: Rows) -> FitCodes:
    """How many lists each effort should look at: as few as lose little beside what the codes lose anyway."""
    lists = len(codes.centroids)
    deepest = min(EFFORTS[-1], len(codes.rows))
    scanner, _pointed_to = codes.scanner()
    asked = codes.asked(some, 1.0)
    _, found = scanner.search(asked, deepest, params=faiss.SearchParametersIVF(nprobe=lists))
    place = np.stack([_places(*each) for each in zip(truth, found, strict=True)])
    where = np.empty(len(codes.rows), np.int64)
    where[codes.rows] = np.repeat(np.arange(lists), codes.sizes)
    rank = np.argsort(np.argsort(-(asked @ codes.centroids.T), axis=1), axis=1)
    turn = np.take_along_axis(rank, where[truth], 1)
    choices = np.unique(np.ceil(lists * 2.0 ** np.arange(-8, 0.5, 0.5)).astype(np.int64))
    probes = []
    for effort in EFFORTS:
        depth = min(truth.shape[1], max(10, effort // _DEPTH_OF_EFFORT))
        near, early = place[:, :depth] < effort, turn[:, :depth]
        whole = near.mean()
        enough = whole - 0.25 * (1 - whole) - 0.002
        probes.append(next(int(p) for p in choices if p == lists or (near & (early < p)).mean() >= enough))
    return FitCodes(**codes.arrays() | {"probes": np.maximum.accumulate(np.array(probes, np.int64))})


def _places(wanted: Rows, among: Rows) -> Rows:
    """Where each row stands among others; their number where it is missing."""
    order = np.argsort(among)
    at = order[np.minimum(np.searchsorted(among, wanted, sorter=order), len(among) - 1)]
    return np.where(among[at] == wanted, at, len(among))
