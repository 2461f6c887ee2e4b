"""What a collection holds and how it is indexed: vector fields, declared attributes, index settings."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cached_property
from typing import Any, TypeVar

from nearfield_index.errors import Conflict, InvalidRequest
from nearfield_index.limits import Limits
from nearfield_index.timestamps import to_micros

DEFAULT_FIELD = "vector"

_Choice = TypeVar("_Choice", bound=StrEnum)

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)


class Metric(StrEnum):
    """How two vectors are compared; every score is higher-is-better."""

    COSINE = "cosine"
    DOT = "dot"
    L2 = "l2"


class AttributeType(StrEnum):
    """The declared type of an attribute; a list of such values is allowed everywhere."""

    KEYWORD = "keyword"
    INTEGER = "integer"
    FLOAT = "float"
    BOOL = "bool"
    DATETIME = "datetime"


class IndexKind(StrEnum):
    """How sealed segments are searched; ``auto`` picks by size."""

    AUTO = "auto"
    EXACT = "exact"
    HNSW = "hnsw"
    HNSWLIB = "hnswlib"
    IVF = "ivf"


@dataclass(frozen=True)
class VectorField:
    """One named vector per point: its dimension and metric."""

    dim: int
    metric: Metric


@dataclass(frozen=True)
class IndexSpec:
    """Build parameters and the collection's default recall target."""

    kind: IndexKind = IndexKind.AUTO
    m: int = 16
    ef_construction: int = 200
    recall: float = 0.95
    workload: bool = True
    """Whether filters are logged, so that rows can be laid out for them."""

    def to_wire(self) -> dict[str, object]:
        return {
            "kind": str(self.kind),
            "m": self.m,
            "ef_construction": self.ef_construction,
            "recall": self.recall,
            "workload": self.workload,
        }


@dataclass(frozen=True)
class Schema:
    """Vector fields by name, declared attributes by (dotted) name, index settings."""

    vectors: Mapping[str, VectorField]
    attributes: Mapping[str, AttributeType]
    index: IndexSpec

    @cached_property
    def declared(self) -> dict[str, str]:
        """Declared types by attribute, in the words of the wire."""
        return {name: str(kind) for name, kind in self.attributes.items()}

    def field_of(self, body: Mapping[str, Any]) -> str:
        """The vector field that a request is about: its ``field``, else ``vector``, else the only one there is.

        Raises :class:`InvalidRequest` where that leaves a choice, or there is no such field.
        """
        if "field" in body:
            name = body["field"]
            if not isinstance(name, str):
                raise InvalidRequest("must be the name of a vector field", code="unknown_field", field="field")
            self.field(name)
            return name
        if DEFAULT_FIELD in self.vectors:
            return DEFAULT_FIELD
        if len(self.vectors) > 1:
            raise InvalidRequest(
                f"the collection has {len(self.vectors)} vector fields",
                code="missing",
                field="field",
                hint=f"name one of: {', '.join(sorted(self.vectors))}",
            )
        return next(iter(self.vectors))

    def field(self, name: str, *, at: str = "field") -> VectorField:
        """The vector field of that name; raises :class:`InvalidRequest` naming those there are."""
        found = self.vectors.get(name)
        if found is None:
            known = ", ".join(sorted(self.vectors))
            raise InvalidRequest(
                "no such vector field", code="unknown_field", field=at, value=name, hint=f"one of: {known}"
            )
        return found

    def to_wire(self) -> dict[str, Any]:
        return {
            "vectors": {n: {"dim": f.dim, "metric": str(f.metric)} for n, f in self.vectors.items()},
            "attributes": {n: str(t) for n, t in self.attributes.items()},
            "index": self.index.to_wire(),
        }


def check_name(name: object, *, at: str = "name") -> str:
    """A collection or field name: letters, digits, ``_`` and ``-``, 1 to 64 of them."""
    if not isinstance(name, str) or _NAME.fullmatch(name) is None:
        raise InvalidRequest("a name is 1 to 64 letters, digits, '_' or '-'", code="invalid_name", field=at, value=name)
    return name


def check_int(value: object, *, at: str, low: int, high: int) -> int:
    """An integer (never a bool or a float) within bounds."""
    if type(value) is not int or not low <= value <= high:
        raise InvalidRequest(f"must be an integer from {low} to {high}", field=at, value=value)
    return value


def check_number(value: object, *, at: str, low: float, high: float) -> float:
    """A finite number within bounds (never a bool)."""
    if type(value) not in (int, float) or not low <= value <= high:  # type: ignore[operator]
        raise InvalidRequest(f"must be a number from {low} to {high}", field=at, value=value)
    return float(value)  # type: ignore[arg-type]


def check_flag(value: object, *, at: str) -> bool:
    """True or false, nothing that merely looks like it."""
    if type(value) is not bool:
        raise InvalidRequest("must be true or false", field=at, value=value)
    return value


def check_object(body: object, *, at: str, known: frozenset[str]) -> Mapping[str, Any]:
    """A JSON object with known keys only."""
    if type(body) is not dict and not isinstance(body, Mapping):
        raise InvalidRequest("must be an object", field=at, value=type(body).__name__)
    if not known.issuperset(body):
        key = next(key for key in body if key not in known)
        where = f"{at}.{key}" if isinstance(key, str) and _NAME.fullmatch(key) else at
        raise InvalidRequest(
            "unknown key", code="unknown_key", field=where, hint=f"known keys: {', '.join(sorted(known))}"
        )
    return body


def check_attribute_name(name: object, *, at: str) -> str:
    """An attribute's name: non-empty text of up to 256 bytes that does not start with ``$``."""
    if not isinstance(name, str) or not name or name.startswith("$") or "\0" in name:
        raise InvalidRequest("an attribute name is non-empty text that does not start with '$'", field=at)
    try:
        length = len(name.encode())
    except UnicodeEncodeError:
        raise InvalidRequest("an attribute name must be valid unicode", field=at) from None
    if length > 256:
        raise InvalidRequest("an attribute name has at most 256 bytes", field=at)
    return name


def parse_datetime(text: object, *, at: str) -> int:
    """Microseconds since 1970 UTC of an ISO-8601 text; a time without zone is UTC."""
    if not isinstance(text, str):
        raise InvalidRequest("must be an ISO-8601 datetime string", code="invalid_datetime", field=at)
    try:
        return to_micros(text)
    except ValueError:
        raise InvalidRequest(
            "not an ISO-8601 datetime",
            code="invalid_datetime",
            field=at,
            hint="for example 2026-11-25T08:00:00Z",
        ) from None


def _choice(kind: type[_Choice], value: object, *, at: str) -> _Choice:
    try:
        if isinstance(value, str):
            return kind(value)
    except ValueError:
        pass
    raise InvalidRequest(f"must be one of: {', '.join(kind)}", field=at, value=value)


def _parse_vector_field(body: object, *, at: str, limits: Limits) -> VectorField:
    parts = check_object(body, at=at, known=frozenset({"dim", "metric"}))
    if "dim" not in parts:
        raise InvalidRequest("a vector field needs its dimension", field=f"{at}.dim")
    dim = check_int(parts["dim"], at=f"{at}.dim", low=1, high=limits.dim)
    return VectorField(dim, _choice(Metric, parts.get("metric", "cosine"), at=f"{at}.metric"))


def parse_index(body: object, *, base: IndexSpec, at: str = "index") -> IndexSpec:
    """Index settings of a request over those of ``base``."""
    parts = check_object(body, at=at, known=frozenset({"kind", "m", "ef_construction", "recall", "workload"}))
    spec = base
    if "kind" in parts:
        spec = replace(spec, kind=_choice(IndexKind, parts["kind"], at=f"{at}.kind"))
    if "m" in parts:
        spec = replace(spec, m=check_int(parts["m"], at=f"{at}.m", low=4, high=96))
    if "ef_construction" in parts:
        value = check_int(parts["ef_construction"], at=f"{at}.ef_construction", low=16, high=2000)
        spec = replace(spec, ef_construction=value)
    if "recall" in parts:
        spec = replace(spec, recall=check_recall(parts["recall"], at=f"{at}.recall"))
    if "workload" in parts:
        spec = replace(spec, workload=check_flag(parts["workload"], at=f"{at}.workload"))
    return spec


def check_recall(value: object, *, at: str) -> float:
    """A recall target: 0.5 to 1 (1 means exact)."""
    return check_number(value, at=at, low=0.5, high=1.0)


def _parse_attributes(body: object, *, limits: Limits) -> dict[str, AttributeType]:
    if not isinstance(body, Mapping):
        raise InvalidRequest("must be an object of attribute names and types", field="attributes")
    if len(body) > limits.attribute_keys:
        raise InvalidRequest(f"at most {limits.attribute_keys} declared attributes", field="attributes")
    return {
        check_attribute_name(name, at="attributes"): _choice(AttributeType, kind, at=f"attributes.{name}")
        for name, kind in body.items()
    }


def parse_schema(body: object, *, limits: Limits) -> Schema:
    """The schema a create request asks for. Shorthand ``{"dim": 384, "metric": "cosine"}`` is one default field."""
    known = frozenset({"vectors", "attributes", "index", "dim", "metric"})
    parts = check_object(body, at="body", known=known)
    vectors: dict[str, VectorField] = {}
    if "vectors" in parts:
        if "dim" in parts or "metric" in parts:
            raise InvalidRequest("give either 'vectors' or 'dim', not both", field="vectors")
        if not isinstance(parts["vectors"], Mapping) or not 1 <= len(parts["vectors"]) <= 64:
            raise InvalidRequest("must be an object of 1 to 64 vector fields", field="vectors")
        for name, field in parts["vectors"].items():
            check_name(name, at="vectors")
            vectors[name] = _parse_vector_field(field, at=f"vectors.{name}", limits=limits)
    else:
        short = {key: parts[key] for key in ("dim", "metric") if key in parts}
        if not short:
            raise InvalidRequest("a collection needs 'dim' or 'vectors'", field="dim")
        vectors[DEFAULT_FIELD] = _parse_vector_field(short, at="body", limits=limits)
    attributes = _parse_attributes(parts.get("attributes", {}), limits=limits)
    return Schema(vectors, attributes, parse_index(parts.get("index", {}), base=IndexSpec()))


def check_same(stored: Schema, body: Mapping[str, Any], asked: Schema) -> None:
    """Raise :class:`Conflict` unless everything the create request declares is what is stored."""
    if dict(asked.vectors) != dict(stored.vectors):
        raise Conflict("a collection of that name has other vector fields", code="schema_conflict", field="vectors")
    for name, kind in asked.attributes.items():
        if stored.attributes.get(name) != kind:
            raise Conflict(
                "a collection of that name declares this attribute otherwise",
                code="schema_conflict",
                field=f"attributes.{name}",
            )
    declared = body.get("index", {})
    if any(asked.index.to_wire()[key] != stored.index.to_wire()[key] for key in declared):
        raise Conflict("a collection of that name has other index settings", code="schema_conflict", field="index")


def schema_from_wire(stored: Mapping[str, Any]) -> Schema:
    """The schema back from :meth:`Schema.to_wire` (trusted: it was checked when it was written)."""
    index = stored["index"]
    return Schema(
        {n: VectorField(f["dim"], Metric(f["metric"])) for n, f in stored["vectors"].items()},
        {n: AttributeType(t) for n, t in stored["attributes"].items()},
        IndexSpec(
            IndexKind(index["kind"]),
            index["m"],
            index["ef_construction"],
            index["recall"],
            index.get("workload", True),  # settings stored by an older version lack it
        ),
    )
