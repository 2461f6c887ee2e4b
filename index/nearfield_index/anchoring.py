"""The anchor job: score every item under every anchor query, then factor. It may stop anywhere and go on later."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nearfield_index.backends.space import as_inner, original, queried
from nearfield_index.errors import InvalidRequest, ScorerFailed
from nearfield_index.jobs import Job
from nearfield_index.ranking.anchorset import AnchorSet
from nearfield_index.ranking.dispatch import Ask, Dispatcher
from nearfield_index.ranking.latents import Latents, factorise
from nearfield_index.ranking.scorer import digest
from nearfield_index.schema import Metric
from nearfield_index.segments.live import LiveSegments
from nearfield_index.segments.part import LivePart
from nearfield_index.storage.rows import RowStore, StoredPoint
from nearfield_index.storage.scores import AnchorScores

_log = logging.getLogger(__name__)

Keys = np.ndarray[Any, np.dtype[np.int64]]

_LOOK_S = 0.1
_STILL_S = 60.0
_BLOCK_S = 10.0
_FEWEST = 8
_READ = 2_048
_TRIES = 3
LEAST_ITEMS = 10
"""Points that a fit needs."""


def searchable(live: LiveSegments, field: str) -> Keys:
    """Row keys of the points alive that have a vector in a field, ascending."""
    return np.sort(np.concatenate([np.empty(0, np.int64), *(_alive(part, field)[1] for part in live.view.parts)]))


def _alive(part: LivePart, field: str) -> tuple[Keys, Keys]:
    """Matrix rows of a part's field whose points are alive, and their row keys."""
    here = part.part.fields.get(field)
    if here is None or not len(here):
        return np.empty(0, np.int64), np.empty(0, np.int64)
    rows = np.arange(len(here)) if part.alive is None else here.translate(part.alive).bitmap.rows()
    return rows, part.part.pks[here.part_rows(rows)]


@dataclass(frozen=True)
class Anchoring:
    """One anchor set at work on one collection's field."""

    store: RowStore
    live: LiveSegments
    field: str
    dispatcher: Dispatcher
    anchors: AnchorSet
    scores: AnchorScores

    def missing(self) -> Keys:
        """Row keys of the points whose scores are not kept, ascending (those without text included)."""
        return np.setdiff1d(searchable(self.live, self.field), self.scores.keys(), assume_unique=True)

    def score(self, job: Job) -> int:
        """Score what is missing, a block at a time; returns how many points could not be scored.

        Raises :class:`ScorerFailed` after three blocks in a row without one whole item; what was scored is kept.
        """
        gone = np.setdiff1d(self.scores.keys(), self.store.keys(), assume_unique=True)
        kept_versions = self.scores  # dead versions serve patched points first, and are dropped when all is done
        missing = self.missing()
        failed, hopeless, start = 0, 0, 0
        while start < len(missing):
            job.report(0.9 * start / len(missing), f"scoring: {start} of {len(missing)} points")
            count = self._block_size()
            points = [p for p in self.live.readable(missing[start : start + count]) if p.text]
            start += count
            scored, bad, reason = self._block(job, points)
            failed += bad
            hopeless = hopeless + 1 if bad and not scored else 0
            if hopeless >= _TRIES:
                raise ScorerFailed(
                    f"the scorer {self.dispatcher.name} is gone ({reason}); {len(kept_versions.keys())} points are"
                    " scored and kept",
                    hint="PUT .../rerankers/{name} again to go on",
                )
        self.scores.forget(gone.tolist())
        return failed

    def _block_size(self) -> int:
        """Points a block: ten seconds' worth, so that little is lost, and no more than fit a call."""
        speed = self.dispatcher.pairs_per_second
        most = self.dispatcher.limits.max_batch
        if speed is None:
            return min(_FEWEST, most)
        speed *= self.dispatcher.limits.max_in_flight
        return max(min(_FEWEST, most), min(most, int(speed * _BLOCK_S / max(1, len(self.anchors.texts)))))

    def _block(self, job: Job, points: list[StoredPoint]) -> tuple[int, int, str | None]:
        """Score some points and keep them: how many were, how many could not be, and why not."""
        rows = []
        asked = []
        for point in points:
            known = self.scores.same(point.vkey, digest(point.text or ""))
            if known is not None:
                rows.append((point.pk, point.vkey, digest(point.text or ""), known))
            else:
                asked.append(point)
        texts = self.anchors.texts
        pairs = [(text, point.text or "") for text in texts for point in asked]
        reason = None
        if pairs:
            ask = self.dispatcher.ask(
                pairs, allowance=len(pairs) * (1 + self.dispatcher.limits.retries), background=True
            )
            self._wait(job, ask)
            reason = ask.error or "it does not answer"
            table = ask.scores.reshape(len(texts), len(asked)).astype(np.float32)
            whole = np.logical_and.reduce(np.isfinite(table), axis=0).tolist()
            rows += [(p.pk, p.vkey, digest(p.text or ""), table[:, n]) for n, p in enumerate(asked) if whole[n]]
        self.scores.add(rows)
        return len(rows), len(points) - len(rows), reason

    def _wait(self, job: Job, ask: Ask) -> None:
        """Wait for a block as long as it moves; somebody who cancels the job does not wait with it."""
        limits = self.dispatcher.limits
        patience = max(_STILL_S, 3 * limits.timeout_s * (1 + limits.retries))
        still, left = time.monotonic(), ask.open
        try:
            while not ask.wait(_LOOK_S):
                job.report(job.progress)
                if ask.open < left:
                    still, left = time.monotonic(), ask.open
                elif time.monotonic() > still + patience:
                    self.dispatcher.abandon(ask)
        except BaseException:
            self.dispatcher.abandon(ask)
            raise

    # ------------------------------------------------------------------ factoring

    def factor(self, directory: Path, step: Callable[[float], None]) -> Latents:
        """Latents of every scored point that is alive and has a vector. ``directory`` takes the table meanwhile."""
        parts = self.live.view.parts
        scored = self.scores.keys()
        located = []
        for number, part in enumerate(parts):
            rows, pks = _alive(part, self.field)
            keep = np.isin(pks, scored)
            located += [(int(pk), number, int(row)) for pk, row in zip(pks[keep], rows[keep], strict=True)]
        located.sort()
        if len(located) < LEAST_ITEMS:
            raise InvalidRequest(
                f"{len(located)} points with text and a vector are scored; a fit needs {LEAST_ITEMS}",
                code="too_few_points",
                field="anchors",
            )
        pks, numbers, rows = (np.array(column, np.int64) for column in zip(*located, strict=True))
        table = np.memmap(directory / "table.tmp", np.float32, mode="w+", shape=(len(pks), len(self.anchors.texts)))
        try:
            pks, numbers, rows = self._fill(table, pks, numbers, rows)
            metric = self.live.schema.vectors[self.field].metric
            asked = queried(self.anchors.vectors, metric)

            def stored(chunk: slice) -> Any:
                out = np.empty((chunk.stop - chunk.start, asked.shape[1]), np.float32)
                for number in np.unique(numbers[chunk]).tolist():
                    mine = np.flatnonzero(numbers[chunk] == number)
                    out[mine] = parts[number].part.fields[self.field].matrix[rows[chunk][mine]]
                return out

            def base(chunk: slice) -> Any:
                inner = (stored(chunk) @ asked.T).astype(np.float64)
                if metric is not Metric.L2:
                    return inner
                squares = as_inner(np.zeros((len(asked), 1)), asked, metric)[:, 0] * 2
                return -np.sqrt(np.maximum(0.0, squares - 2 * inner))

            return factorise(pks, table[: len(pks)], base, lambda c: original(stored(c), metric), step)
        finally:
            del table
            (directory / "table.tmp").unlink(missing_ok=True)

    def _fill(self, table: Any, pks: Keys, numbers: Keys, rows: Keys) -> tuple[Keys, Keys, Keys]:
        """Read kept scores into the table in the order of ``pks``; items that cannot be read are left out."""
        found = np.zeros(len(pks), np.bool_)
        after = 0
        while True:
            read = list(self.scores.read(after, _READ))
            if not read:
                break
            after = read[-1][0]
            for pk, scores in read:
                at = int(np.searchsorted(pks, pk))
                if at < len(pks) and pks[at] == pk:
                    table[at], found[at] = scores, True
        if not found.all():
            keep = np.flatnonzero(found)
            table[: len(keep)] = table[keep]
            return pks[keep], numbers[keep], rows[keep]
        return pks, numbers, rows
