"""The rerankers of a collection: what they are fitted from, how far their jobs are, and which fit serves.

A reranker is a directory: ``reranker.json`` names the fit that serves and the one that is being made. Anchor queries,
scores and latents of each lie in a directory of their own, so that a refit replaces the old one in one step, and what
was scored survives cancels, crashes and restarts.
"""

from __future__ import annotations

import logging
import shutil
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from nearfield_index.anchoring import LEAST_ITEMS, Anchoring, searchable
from nearfield_index.errors import Conflict, Corrupt, InvalidRequest, NearfieldError, NotFound, ScorerFailed
from nearfield_index.jobs import Cancelled, Job
from nearfield_index.maintenance import Maintenance
from nearfield_index.ranking.anchorset import AnchorSet
from nearfield_index.ranking.latents import Latents
from nearfield_index.ranking.scorers import Scorers
from nearfield_index.segments.live import LiveSegments
from nearfield_index.storage.atomic import checksum_of, sync_directory, sync_file
from nearfield_index.storage.rows import RowStore
from nearfield_index.storage.scores import AnchorScores
from nearfield_index.storage.sealed import read_sealed, write_sealed

_log = logging.getLogger(__name__)

Json = dict[str, Any]

KIND = "reranker "
"""Jobs of this kind and a name score anchors."""


@dataclass
class Reranker:
    """One reranker. ``spec``: scorer, version, field, fingerprint of each fit; ``latents`` is what serves."""

    name: str
    directory: Path
    serving: Json | None = None
    building: Json | None = None
    latents: Latents | None = None
    error: str | None = None
    changing: Lock = field(default_factory=Lock)

    @property
    def current(self) -> Json:
        """The fit in the making, or the one that serves."""
        found = self.building or self.serving
        assert found is not None
        return found

    def write(self) -> None:
        content = {"name": self.name, "serving": self.serving, "building": self.building, "error": self.error}
        write_sealed(self.directory / "reranker.json", content)


class Rerankers:
    """All rerankers of one collection, by name."""

    def __init__(
        self, collection: str, directory: Path, store: RowStore, live: LiveSegments, scorers: Scorers, lane: Maintenance
    ) -> None:
        """Open what is there; jobs that a restart interrupted go on. ``lane`` is where they run."""
        self._collection = collection
        self._directory = directory
        self._store = store
        self._live = live
        self._scorers = scorers
        self._lane = lane
        self._guard = Lock()
        self._putting = Lock()
        self._held: dict[str, Reranker] = {}
        self.findings: list[str] = []
        if directory.exists():
            self._open_all()

    def _open_all(self) -> None:
        for path in sorted(self._directory.iterdir()):
            if path.name.startswith("."):
                shutil.rmtree(path, ignore_errors=True)
                continue
            try:
                found = _open(path)
            except Exception as error:  # whatever it is: the collection itself is whole, and opens
                reason = error.message if isinstance(error, NearfieldError) else repr(error)
                self.findings.append(f"reranker {path.name}: {reason}; PUT it again")
                _log.warning("%s", self.findings[-1])
                continue
            self._held[found.name] = found
            if found.building is not None and found.building["state"] == "scoring":
                self._resume(found)

    def _resume(self, found: Reranker) -> None:
        try:
            self._submit(found)
        except NearfieldError as error:  # its scorer is not configured any more, for instance
            found.error = error.message
            _log.warning("the job of reranker %s did not go on: %s", found.name, error)

    # ------------------------------------------------------------------ asking

    def get(self, name: str) -> Reranker:
        with self._guard:
            found = self._held.get(name)
        if found is None:
            raise NotFound("no reranker of that name", code="reranker_not_found", field="reranker")
        return found

    def names(self) -> list[str]:
        with self._guard:
            return sorted(self._held)

    def serving(self, name: str) -> tuple[Json, Latents]:
        """What serves under a name. Raises :class:`Conflict` while the first fit is not there yet."""
        found = self.get(name)
        spec, latents = found.serving, found.latents
        if spec is None or latents is None:
            raise Conflict(
                "this reranker is not fitted yet",
                code="reranker_not_ready",
                field="rerank.reranker",
                hint="its job is in GET .../rerankers/{name}; until then use 'scorer' with method axn",
            )
        return spec, latents

    def job_of(self, name: str) -> Job | None:
        """The job at work for a reranker."""
        kind = KIND + name
        return self._lane.jobs.find(lambda job: job.kind == kind and job.collection == self._collection)

    def describe(self, name: str) -> Json:
        """State, calls and cost of one reranker."""
        found = self.get(name)
        job, spec = self.job_of(name), found.current
        plan = self.estimate(spec["scorer"], spec["field"], spec["anchors"], found.directory / spec["directory"])
        state = "ready" if found.building is None else "scoring" if job is not None else found.building["state"]
        if state == "scoring" and job is None:
            state = "interrupted"
        serving = found.serving
        return {
            "name": name,
            "state": state,
            "ready": found.latents is not None,
            "scorer": spec["scorer"],
            "scorer_version": spec["version"],
            "field": spec["field"],
            "anchors": spec["anchors"],
            **plan,
            "rank": None if found.latents is None else found.latents.rank,
            "fitted_items": None if serving is None else serving.get("items"),
            "error": found.error,
            "job": None if job is None else job.to_wire(),
        }

    def estimate(self, scorer: str, field_name: str, anchors: int, directory: Path | None) -> Json:
        """Points to score, calls that takes, and seconds where the scorer's speed is known."""
        wanted = searchable(self._live, field_name)
        total = len(wanted)
        scored = 0
        if directory is not None and (directory / "scores.db").exists():
            scores = AnchorScores(directory / "scores.db", anchors=anchors)
            try:
                scored = len(np.intersect1d(wanted, scores.keys(), assume_unique=True))
            finally:
                scores.close()
        speed = None
        try:
            dispatcher = self._scorers.get(scorer, at="scorer")
            if dispatcher.pairs_per_second is not None:
                speed = dispatcher.pairs_per_second * dispatcher.limits.max_in_flight
        except NotFound:
            pass
        calls = (total - scored) * anchors
        return {
            "points": total,
            "scored": scored,
            "calls": scored * anchors,
            "calls_left": calls,
            "pairs_per_second": None if speed is None else round(speed, 1),
            "seconds_left": None if speed is None else round(calls / max(speed, 1e-9), 3),
        }

    # ------------------------------------------------------------------ changing

    def put(self, name: str, scorer: str, field_name: str, anchors: AnchorSet | None, most: int) -> Job:
        """Start (or go on with) the job that fits a reranker. Without ``anchors`` those it has are meant."""
        version = self._scorers.get(scorer, at="scorer").version
        count = len(searchable(self._live, field_name))
        if count < LEAST_ITEMS:
            raise InvalidRequest(
                f"{count} points have a vector in field {field_name}; a fit needs {LEAST_ITEMS}",
                code="too_few_points",
                field="field",
            )
        with self._putting:
            return self._put(name, scorer, version, field_name, anchors, most)

    def _put(self, name: str, scorer: str, version: str, field_name: str, anchors: AnchorSet | None, most: int) -> Job:
        with self._guard:
            found = self._held.get(name)
            if found is None:
                if anchors is None:
                    raise NotFound("no reranker of that name, so it needs anchors", code="missing", field="anchors")
                if len(self._held) >= most:
                    raise Conflict(f"at most {most} rerankers", code="too_many_rerankers")
                found = self._create(name)
        running = self.job_of(name)
        with found.changing:
            wanted = {"scorer": scorer, "version": version, "field": field_name}
            wanted["fingerprint"] = found.current["fingerprint"] if anchors is None else anchors.fingerprint
            same = [s for s in (found.building, found.serving) if s is not None and wanted.items() <= s.items()]
            if running is not None:
                if same and same[0] is found.building:
                    return running
                raise Conflict(
                    "a job with other anchors or another scorer is running",
                    code="reranker_busy",
                    hint="cancel it first; what it scored is kept",
                )
            if same:
                found.building = same[0] | {"state": "scoring"}
            else:
                if anchors is None:  # another scorer, or another version of it
                    anchors = AnchorSet.open(found.directory / found.current["directory"] / "anchors")
                self._begin(found, wanted, anchors)
            found.error = None
            found.write()
            with self._guard:
                self._held[name] = found
            return self._submit(found)

    def _create(self, name: str) -> Reranker:
        self._directory.mkdir(exist_ok=True)
        directory = self._directory / name
        if directory.exists():  # damaged, and given up by whoever puts it anew
            directory.rename(self._directory / f".damaged-{uuid.uuid4().hex}")
        directory.mkdir()
        sync_directory(self._directory)
        return Reranker(name, directory)

    def _begin(self, found: Reranker, wanted: Json, anchors: AnchorSet) -> None:
        """A new fit in a directory of its own; one that was being made before is given up."""
        self._remove(found, found.building)
        made = uuid.uuid4().hex[:12]
        directory = found.directory / made
        directory.mkdir()
        anchors.save(directory / "anchors")
        AnchorScores(directory / "scores.db", anchors=len(anchors.texts)).close()  # whole before anybody looks
        sync_directory(directory)
        sync_directory(found.directory)
        found.building = wanted | {"directory": made, "anchors": len(anchors.texts), "state": "scoring"}

    def _remove(self, found: Reranker, spec: Json | None) -> None:
        others = [s["directory"] for s in (found.serving, found.building) if s is not None and s is not spec]
        if spec is not None and spec["directory"] not in others:
            shutil.rmtree(found.directory / spec["directory"], ignore_errors=True)

    def note_cancel(self, job: Job) -> None:
        """A user cancelled: the job does not go on after a restart, only when it is asked for again."""
        name = job.kind.removeprefix(KIND)
        with self._guard:
            found = self._held.get(name)
        if found is not None and job.kind != name:
            with found.changing:
                if found.building is not None:
                    found.building = found.building | {"state": "cancelled"}
                    found.write()

    def drop(self, name: str) -> None:
        """Remove a reranker with everything scored for it: gone for good once this returns."""
        found = self.get(name)
        job = self.job_of(name)
        if job is not None:
            job.cancel()
            job.wait(60)
        with found.changing:
            with self._guard:
                self._held.pop(name, None)
            gone = self._directory / f".dropped-{uuid.uuid4().hex}"
            found.directory.rename(gone)
            sync_directory(self._directory)
        shutil.rmtree(gone, ignore_errors=True)

    # ------------------------------------------------------------------ the work

    def _submit(self, found: Reranker) -> Job:
        assert found.building is not None
        self._scorers.get(found.building["scorer"], at="scorer")
        return self._lane.submit(KIND + found.name, self._collection, lambda job: self._run(job, found), priority=5)

    def _run(self, job: Job, found: Reranker) -> None:
        spec = found.building
        if spec is None or spec["state"] != "scoring":
            return
        try:
            failed = self._fit(job, found, spec)
        except Cancelled:  # by a user, which is written down already, or by a stop, after which it goes on
            raise
        except NearfieldError as error:
            if not isinstance(error, NotFound):  # the collection was dropped or closed
                self._fail(found, error.message)
            raise
        except Exception as error:
            self._fail(found, f"{type(error).__name__}: {error}")
            raise
        if failed:
            found.error = f"{failed} points could not be scored; their latents are estimated"

    def _fail(self, found: Reranker, reason: str) -> None:
        with found.changing:
            found.error = reason
            if found.building is not None and found.name in self._held:
                found.building = found.building | {"state": "failed"}
                found.write()

    def _fit(self, job: Job, found: Reranker, spec: Json) -> int:
        directory = found.directory / spec["directory"]
        anchors = AnchorSet.open(directory / "anchors")
        dispatcher = self._scorers.get(spec["scorer"], at="scorer")
        if dispatcher.version != spec["version"]:
            raise ScorerFailed(
                f"the scorer is version {dispatcher.version} now, the kept scores are of {spec['version']}",
                hint="PUT .../rerankers/{name} again to score anew",
            )
        scores = AnchorScores(directory / "scores.db", anchors=len(anchors.texts))
        try:
            work = Anchoring(self._store, self._live, spec["field"], dispatcher, anchors, scores)
            failed = work.score(job)
            job.report(0.9, "fitting")
            latents = work.factor(directory, lambda done: job.report(0.9 + 0.09 * done))
        finally:
            scores.close()
        name = f"latents-{uuid.uuid4().hex[:12]}"
        _, checksum = latents.save(directory / name)
        sync_file(directory / name)
        sync_directory(directory)
        job.report(0.99, "publishing")
        with found.changing:
            old = found.serving
            fit = {"latents": name, "xxh3": checksum, "items": len(latents.pks), "state": "ready"}
            found.serving, found.building, found.error = spec | fit, None, None
            found.write()
            found.latents = Latents.open(directory / name)
            if old is not None:
                if old["directory"] != spec["directory"]:
                    self._remove(found, old)
                else:
                    (directory / old["latents"]).unlink(missing_ok=True)
        return failed


def _open(path: Path) -> Reranker:
    """A reranker from its directory. Raises :class:`Corrupt` when it cannot serve."""
    content = read_sealed(path / "reranker.json")
    found = Reranker(content["name"], path, content["serving"], content["building"], error=content["error"])
    if found.serving is not None:
        file = path / found.serving["directory"] / found.serving["latents"]
        try:
            good = checksum_of(file) == found.serving["xxh3"]
        except OSError:
            good = False
        if not good:
            if found.building is None:  # the scores are there: fit again, at the price of no call
                found.building = found.serving | {"state": "scoring"}
            found.serving = None
            _log.warning("the latents of reranker %s are damaged and will be fitted again", found.name)
        else:
            found.latents = Latents.open(file)
    if found.serving is None and found.building is None:
        raise Corrupt("it has no fit")
    return found
