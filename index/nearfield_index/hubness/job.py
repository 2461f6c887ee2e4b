"""The work of a fit: try recipes, fit the chosen one on the whole bank, compute and calibrate every segment, publish.

The request, the fitted model and the biases of each segment are on disk as soon as they are there, so that a restart
goes on where it was. Nothing is in force before one rename of the manifest puts all of it in force.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from nearfield_index.backends.space import ItemBiases
from nearfield_index.blas import one_thread
from nearfield_index.building import Builder
from nearfield_index.errors import Conflict, Corrupt
from nearfield_index.hubness.fit import Fit, load_fit, save_fit, with_report
from nearfield_index.hubness.gallery import Gallery, biases_of
from nearfield_index.hubness.monitor import HubMonitor
from nearfield_index.hubness.request import FitRequest, distinct
from nearfield_index.hubness.thresholds import MEASURES, UNSET, thresholds
from nearfield_index.jobs import Job
from nearfield_index.quality.probes import ENOUGH_QUERIES
from nearfield_index.quality.reservoir import QueryReservoir
from nearfield_index.ranking.bias import BLOCKS, HUB_K, Recipe
from nearfield_index.ranking.fitting import fit_model, rotated_model
from nearfield_index.ranking.occurrence import counts
from nearfield_index.ranking.tuning import Case, Verdict, choose, held_out, recalls_to_wire
from nearfield_index.segments import biases
from nearfield_index.segments.live import LiveSegments
from nearfield_index.segments.part import FieldPart
from nearfield_index.segments.segment import Segment
from nearfield_index.storage.rows import RowStore

_log = logging.getLogger(__name__)

Floats = np.ndarray[Any, np.dtype[np.float32]]
Keys = np.ndarray[Any, np.dtype[np.int64]]
Compute = Callable[[Segment, FieldPart], ItemBiases]

_CASE_ROWS = 10_000
_PROBES = 512
_HUBS = 20
_COUNTED = 1_000
_ALERTS = 500
_ROUNDS = 3
_SEED = 20_261_125


@dataclass(frozen=True)
class Workplace:
    """What of a collection a fit works with. ``turn`` is its write turn; ``directory`` where fits are kept."""

    directory: Path
    store: RowStore
    live: LiveSegments
    builder: Builder
    reservoir: QueryReservoir
    monitor: HubMonitor
    turn: AbstractContextManager[object]


# Many products of blocks that fit a cache: OpenBLAS would spend longer on waking its threads than on them.
@one_thread()
def fit(place: Workplace, job: Job, request: FitRequest, version: str, bank: Floats) -> None:
    """Carry out a request with a bank of raw queries ``(m, dim)``; its fit is in force when this returns."""
    job.report(0.0, "reading")
    with place.turn:
        place.live.seal()  # a full tail would be computed anew while writes wait
    made = _made(place.directory, version)
    if made is None:
        made = _build(place, job, request, version, bank)
        save_fit(place.directory, request.field, made)
    publish(place, job, request.field, made, lambda segment, part: made.of(part.matrix))


@one_thread()
def rotate(place: Workplace, job: Job, field: str, old: Fit, fresh: Floats, version: str) -> None:
    """Replace one block of the bank by ``fresh`` raw queries: a sixteenth of a fit, by block."""
    job.report(0.0, "rotating")
    gallery = Gallery.of(place.live.view, field)
    number = old.next_block
    model = rotated_model(old.model, version, number, fresh, gallery.parts, step=lambda done: job.report(0.3 * done))
    new = replace(old, model=model, next_block=(number + 1) % BLOCKS)
    new = with_report(new, version=version, bank=old.report["bank"] | {"size": len(model.bank), "rotated": number})

    def compute(segment: Segment, part: FieldPart) -> ItemBiases:
        known = biases.load(segment, field, old.version)
        return new.of(part.matrix) if known is None else model.rotated(part.matrix, known.blocks, number)

    publish(place, job, field, new, compute)


def publish(place: Workplace, job: Job, field: str, fit: Fit, compute: Compute) -> None:
    """Compute the biases of every segment, calibrate, and put the fit in force."""
    faces: dict[str, FieldPart] = {}
    for round_ in range(_ROUNDS + 1):
        missing = [s for s, _ in place.live.view.segments if field in s.fields and s.name not in faces]
        total = max(1, len(missing))
        for number, segment in enumerate(missing):
            first = 0.6 + 0.3 * number / total
            job.report(first, "computing biases")
            items = biases.load(segment, field, fit.version)
            if items is None:
                items = compute(segment, segment.fields[field])
                biases.save(segment, field, fit.version, items)
            faces[segment.name] = biases.face(segment, field, fit, items)
            job.report(first + 0.05 / total, "calibrating")
            step = partial(_tell, job, first + 0.05 / total, 0.25 / total)
            place.builder.calibrate_face(segment, field, faces[segment.name], fit.version, fit.probes, step)
        if not missing and round_:
            break
    job.report(0.92, "counting hubs")
    fit = _with_hubs(place, field, fit, faces)
    file = save_fit(place.directory, field, fit)
    job.report(0.97, "publishing")
    with place.turn:
        job.report(0.98)  # whoever dropped the fits meanwhile has cancelled this
        place.live.publish_fit(field, fit, file, faces)
    place.builder.forget_faces({fit.version for fit in place.live.fits.values()})


def _tell(job: Job, start: float, share: float, done: float) -> None:
    job.report(start + share * done)


def _made(directory: Path, version: str) -> Fit | None:
    """The model of a fit that was interrupted after it was made."""
    for path in directory.glob(f"*-fit-{version}-*"):
        try:
            return load_fit(directory, path.name)
        except Corrupt as error:
            _log.warning("an unfinished fit is made anew: %s", error)
            path.unlink(missing_ok=True)
    return None


def _build(place: Workplace, job: Job, request: FitRequest, version: str, bank: Floats) -> Fit:
    gallery = Gallery.of(place.live.view, request.field)
    if len(gallery) < 2:
        raise Conflict("there are no points to fit against", code="no_points", field="field", hint="write points first")
    metric = place.live.schema.vectors[request.field].metric
    random = np.random.default_rng(_SEED)
    case, live = _case(place, request, gallery, bank, random)
    tried, held = held_out(bank, random)
    case = replace(case, held=held)
    job.report(0.02, "trying methods")
    verdict = choose(case, tried, request.recipes, step=lambda done: job.report(0.02 + 0.28 * done))
    job.report(0.3, "fitting")
    model = fit_model(
        version,
        verdict.chosen,
        bank,
        gallery.parts,
        metric,
        gallery_bank=gallery.take(gallery.sample(request.gallery_sample, np.empty(0, np.int64))),
        step=lambda done: job.report(0.3 + 0.3 * done),
    )
    probes, source = _probes(request.pairs, live, bank, random)
    report = _report(request, verdict, version, bank, source)
    return Fit(model, request.gate, request.quarantine, verdict.recommended, probes, UNSET, 0, report)


def _case(
    place: Workplace, request: FitRequest, gallery: Gallery, bank: Floats, random: np.random.Generator
) -> tuple[Case, Floats]:
    answers = np.empty(0, dtype=np.int64)
    pairs = request.pairs
    if len(pairs):
        found = {p.id: p.pk for p in place.store.find(dict.fromkeys(request.answers))}
        keys = np.array([found.get(point_id, -1) for point_id in request.answers], dtype=np.int64)
        answers = gallery.rows_of(keys)
        pairs, answers = pairs[answers >= 0], answers[answers >= 0]  # deleted since the request was made
    rows = gallery.sample(_CASE_ROWS, answers)
    live = place.reservoir.sample(request.field)
    live = distinct(live) if len(live) else live
    judged = live if len(live) >= ENOUGH_QUERIES else live[:0]
    metric = place.live.schema.vectors[request.field].metric
    case = Case(gallery.take(rows), metric, bank[:0], judged, pairs, np.searchsorted(rows, answers))
    return case, judged


def _probes(pairs: Floats, live: Floats, bank: Floats, random: np.random.Generator) -> tuple[Floats, str]:
    """Real queries to calibrate on, rather not those of the bank, to which the biases were fitted."""
    for vectors, source in ((live, "queries"), (pairs, "pairs"), (bank, "bank")):
        if len(vectors) >= ENOUGH_QUERIES or source == "bank":
            return vectors[random.permutation(len(vectors))[:_PROBES]].copy(), source
    raise AssertionError


def _report(request: FitRequest, verdict: Verdict, version: str, bank: Floats, probes: str) -> dict[str, Any]:
    chosen: Recipe = verdict.chosen
    found: dict[str, Any] = {
        "field": request.field,
        "method": str(chosen.method),
        "strength": chosen.strength,
        "neighbours": chosen.neighbours or None,
        "gate": request.gate,
        "quarantine": request.quarantine,
        "version": version,
        "recommended": verdict.recommended,
        "reason": verdict.reason,
        "bank": {"size": len(bank), "source": "log" if request.bank is None else "upload"},
        "probes": probes,
        "occurrence": {"before": verdict.raw.occurrence.to_wire(), "after": verdict.best.occurrence.to_wire()},
        "trials": [trial.to_wire() for trial in verdict.trials],
    }
    if verdict.raw.recall is not None and verdict.best.recall is not None:
        found["pairs"] = {
            "count": len(verdict.raw.first),
            "before": recalls_to_wire(verdict.raw.recall),
            "after": recalls_to_wire(verdict.best.recall),
        }
    return found


def _with_hubs(place: Workplace, field: str, fit: Fit, faces: dict[str, FieldPart]) -> Fit:
    """The fit with thresholds and the top hubs of its bank in the report; alerts for items that stand out already."""
    view = place.live.view
    gallery = Gallery.of(view, field)
    items = biases_of(view, field, fit, faces)
    asked = fit.model.bank.queries[:_COUNTED]
    before = counts(gallery.best(asked, HUB_K), len(gallery))
    after = counts(gallery.best(asked, HUB_K, [part.bias[:, 0] for part in items]), len(gallery))
    top = np.argsort(-before, kind="stable")[:_HUBS]
    measures = np.concatenate([np.empty((0, len(MEASURES)), np.float32), *(part.hub for part in items)])
    fit = replace(fit, thresholds=thresholds(measures))
    scores = fit.thresholds.scores(measures)
    worst = scores.max(axis=1)
    loud = np.flatnonzero(worst > 1.0)
    loud = loud[np.argsort(-worst[loud], kind="stable")][:_ALERTS]
    named = {p.pk: p.id for p in place.store.fetch(gallery.keys[np.concatenate([top, loud])].tolist())}
    place.monitor.found_by_fit(field, [(named[key], scores[row]) for row, key in _keyed(gallery, loud) if key in named])
    total = max(1, int(before.sum()))
    hubs = [
        {
            "id": named[key],
            "count": int(before[row]),
            "share": round(int(before[row]) / total, 6),
            "after": int(after[row]),
        }
        for row, key in _keyed(gallery, top)
        if key in named and before[row]
    ]
    return with_report(fit, hubs=hubs, hubs_of=len(asked))


def _keyed(gallery: Gallery, rows: Keys) -> list[tuple[int, int]]:
    return list(zip(rows.tolist(), gallery.keys[rows].tolist(), strict=True))
