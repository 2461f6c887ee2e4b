"""Normalised search: the bias of a fit where a request wants it, gated per query where the fit says so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nearfield_index.errors import InvalidRequest
from nearfield_index.execution.batch import Report, Search
from nearfield_index.execution.cost import Calibrations
from nearfield_index.execution.query import Query
from nearfield_index.execution.run import run
from nearfield_index.execution.topk import Candidates
from nearfield_index.hubness.fit import Fit
from nearfield_index.ranking.bias import Method
from nearfield_index.schema import Metric
from nearfield_index.segments.normal import NormalField
from nearfield_index.segments.part import BiasUse, FindKeys
from nearfield_index.segments.view import View

Doubles = np.ndarray[Any, np.dtype[np.float64]]
Ints = np.ndarray[Any, np.dtype[np.int64]]

_RAW = -1


@dataclass(frozen=True)
class Normalised:
    """How a batch was normalised: the fit, how strongly, and per query which bias of an item (-1: none)."""

    fit: Fit
    strength: float
    variants: Ints

    def to_wire(self) -> dict[str, Any]:
        """For ``meta``."""
        return {
            "version": self.fit.version,
            "method": str(self.fit.model.recipe.method),
            "strength": round(self.fit.model.recipe.strength * self.strength, 6)
            if self.fit.model.recipe.method in (Method.NNN, Method.CSLS)
            else self.fit.model.recipe.strength,
            "normalised": int((self.variants != _RAW).sum()),
        }


def fit_for(view: View, query: Query) -> tuple[Fit, float] | None:
    """The fit to use and how strongly, or None for a raw search. Raises :class:`InvalidRequest`."""
    fit = view.fits.get(query.field)
    if not isinstance(fit, Fit):
        if query.hubness == "on":
            raise InvalidRequest(
                "this field has no hubness fit", code="no_hubness_fit", field="hubness", hint="fit one: PUT .../hubness"
            )
        return None
    if query.hubness == "off" or (query.hubness == "auto" and not fit.recommended):
        return None
    if query.hubness_strength is None:
        return fit, 1.0
    if fit.model.recipe.method not in (Method.NNN, Method.CSLS):
        raise InvalidRequest(
            f"the strength of {fit.model.recipe.method} is fixed by its fit",
            code="strength_fixed",
            field="hubness_strength",
            hint="only nnn and csls take one per request",
        )
    return fit, query.hubness_strength / fit.model.recipe.strength


def search_normalised(
    view: View,
    search: Search,
    fit: Fit,
    strength: float,
    metric: Metric,
    calibrations: Calibrations,
    find_keys: FindKeys,
) -> tuple[Candidates, Report, Normalised]:
    """As :func:`run`, ranked by score less bias. Under l2 scores are ``-d^2 / 2 - bias``."""
    variants = np.zeros(len(search.vectors), dtype=np.int64)
    report = Report()
    if fit.gate:
        variants = _gates(view, search, metric, calibrations, find_keys, report)
    if not fit.gate:
        use = BiasUse(fit.version, strength)
        found, report = run(view, search._replace(bias=use), metric, calibrations, find_keys)
        return found, report, Normalised(fit, strength, variants)
    answers: list[tuple[Ints, Candidates]] = []
    for variant in np.unique(variants).tolist():
        members = np.flatnonzero(variants == variant)
        use_or_none = None if variant == _RAW else BiasUse(fit.version, strength, variant)
        one = search._replace(
            vectors=search.vectors[members],
            filters=search.filters if len(search.filters) == 1 else [search.filters[m] for m in members.tolist()],
            bias=use_or_none,
        )
        part, ran = run(view, one, metric, calibrations, find_keys)
        if use_or_none is None and metric is Metric.L2:
            part = part._replace(scores=part.scores * np.abs(part.scores) / 2)
        answers.append((members, part))
        report.ran += ran.ran
        report.groups += [(members[rows], plan) for rows, plan in ran.groups]
    return joined(answers, len(variants), search.k), report, Normalised(fit, strength, variants)


def _gates(
    view: View,
    search: Search,
    metric: Metric,
    calibrations: Calibrations,
    find_keys: FindKeys,
    report: Report,
) -> Ints:
    """Which bias each query gets: its raw best item (among those that pass its filter) must be one that some query
    of the bank has for its best; with two banks each has its own say."""
    first, ran = run(view, search._replace(k=1), metric, calibrations, find_keys)
    report.ran += ran.ran
    if not first.rows.shape[1]:
        return np.full(len(search.vectors), _RAW, dtype=np.int64)
    flags = np.zeros((len(search.vectors), 2), dtype=np.bool_)
    banks = 1
    for number, live in enumerate(view.parts):
        here = live.part.fields.get(search.field)
        face = None if here is None else here.normal
        members = np.flatnonzero((first.parts[:, 0] == number) & (first.rows[:, 0] >= 0))
        if isinstance(face, NormalField) and len(members):
            active = face.known.active
            banks = active.shape[1]
            flags[members, :banks] = active[face.matrix_rows(first.rows[members, 0])]
    if banks == 1:
        return np.where(flags[:, 0], 0, _RAW)
    return np.select([flags.all(axis=1), flags[:, 0], flags[:, 1]], [0, 1, 2], default=_RAW)


def joined(answers: Sequence[tuple[Ints, Candidates]], count: int, k: int) -> Candidates:
    """Answers of parts of a batch in the order of the batch, ``(count, k)``."""
    out = Candidates(np.full((count, k), -np.inf), *(np.full((count, k), -1, dtype=np.int64) for _ in range(3)))
    for members, found in answers:
        width = found.scores.shape[1]
        out.scores[members, :width] = found.scores
        out.parts[members, :width] = found.parts
        out.rows[members, :width] = found.rows
        out.pks[members, :width] = found.pks
    return out


def biases_of_hits(view: View, field: str, found: Candidates, used: Normalised) -> Doubles:
    """What was subtracted from each hit, ``(n, k)``; 0 where nothing was."""
    out = np.zeros(found.scores.shape)
    known = used.variants[:, None] != _RAW
    for number, live in enumerate(view.parts):
        here = live.part.fields.get(field)
        face = None if here is None else here.normal
        if not isinstance(face, NormalField) or not len(face):
            continue
        here_too = (found.parts == number) & known
        if here_too.all():  # the common case, at half the price
            rows = face.matrix_rows(found.rows)
            return face.known.bias[rows, used.variants[:, None]].astype(np.float64) * used.strength
        at = np.nonzero(here_too)
        if len(at[0]):
            rows = face.matrix_rows(found.rows[at])
            out[at] = face.known.bias[rows, used.variants[at[0]]].astype(np.float64) * used.strength
    return out


def raw_scores(scores: Doubles, biases: Doubles, metric: Metric) -> Doubles:
    """The scores that the same hits have without normalisation."""
    raw = scores + biases
    if metric is Metric.L2:
        raw = -np.sqrt(np.maximum(0.0, -2.0 * raw))
    return raw
