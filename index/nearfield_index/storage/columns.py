"""The attribute index of one immutable set of rows: typed postings per attribute, all of it plain arrays.

An attribute may hold values of several classes side by side. Every number lives in one of two classes: the
integers (every whole number that fits 64 bits, however it was written) and the floats (all others), so that
equal numbers meet in one place and no comparison ever rounds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from nearfield_index.bitmap import Bitmap
from nearfield_index.storage.columns_build import BuiltAttribute, build_attributes
from nearfield_index.storage.postings import Postings, Vocabulary

Array = npt.NDArray[np.generic]

_Scalar = TypeVar("_Scalar", bound=np.generic)

SORTED_PARTS = ("integer", "float", "bool", "datetime")


class SortedPart:
    """Numbers, bools or instants: ``values`` distinct and ascending, beside their postings."""

    def __init__(self, values: Array, postings: Postings) -> None:
        self.values = values
        self.postings = postings


class KeywordPart:
    """Strings beside their postings."""

    def __init__(self, words: Vocabulary, postings: Postings) -> None:
        self.words = words
        self.postings = postings


class Attribute:
    """What one attribute holds: a part per class of values, and the rows that have the attribute at all."""

    def __init__(self, name: str, n: int, types: Sequence[str], arrays: Mapping[str, Array]) -> None:
        """``arrays`` are this attribute's, by their short names (``integer.values``, ``exists.rows``, ..)."""
        self.name = name
        self.n = n
        self.types = tuple(types)
        self.arrays = dict(arrays)

    @cached_property
    def exists(self) -> Bitmap:
        """Rows where the attribute is neither missing nor null nor an empty list."""
        if "exists.words" in self.arrays:
            return Bitmap(self.n, words=_typed(self.arrays["exists.words"], np.uint64))
        if "exists.rows" in self.arrays:
            return Bitmap.from_rows(self.n, _typed(self.arrays["exists.rows"], np.int32))
        return Bitmap.all(self.n)

    @cached_property
    def keyword(self) -> KeywordPart | None:
        """The strings, or None where there are none."""
        if "keyword.blob" not in self.arrays:
            return None
        words = Vocabulary(_typed(self.arrays["keyword.blob"], np.uint8), _typed(self.arrays["keyword.ends"], np.int64))
        return KeywordPart(words, self._postings("keyword"))

    @cached_property
    def sorted(self) -> dict[str, SortedPart]:
        """The parts with sortable values, by class: ``integer``, ``float``, ``bool``, ``datetime``."""
        return {
            part: SortedPart(self.arrays[f"{part}.values"], self._postings(part))
            for part in SORTED_PARTS
            if f"{part}.values" in self.arrays
        }

    def _postings(self, part: str) -> Postings:
        starts = _typed(self.arrays[f"{part}.starts"], np.int64)
        return Postings(starts, _typed(self.arrays[f"{part}.rows"], np.int32))


class Columns:
    """Every attribute of ``n`` rows."""

    def __init__(self, n: int, attributes: Mapping[str, Attribute]) -> None:
        self.n = n
        self._attributes = dict(attributes)

    @classmethod
    def build(
        cls, attributes: Sequence[Mapping[str, object] | None], declared: Mapping[str, str] | None = None
    ) -> Columns:
        """Index one attribute object a row (None: the row has none); ``declared`` maps names to types.

        Scalars and lists of scalars are indexed, nested objects under dotted names; a list that holds
        anything else counts as present and is not indexed. Never raises for what cannot be indexed.
        """
        n = len(attributes)
        return cls(n, {built.name: _attribute(n, built) for built in build_attributes(attributes, declared or {})})

    @classmethod
    def from_arrays(cls, n: int, arrays: Mapping[str, Array], meta: Mapping[str, object]) -> Columns:
        """Take back what ``arrays()`` and ``meta()`` gave, without copying an array.

        Raises ValueError when the two do not belong together or to ``n`` rows.
        """
        entries = meta.get("attributes")
        if meta.get("rows") != n or not isinstance(entries, list):
            raise ValueError("the attribute index is not of these rows")
        attributes: dict[str, Attribute] = {}
        for i, entry in enumerate(entries):
            missing = [short for short in entry["arrays"] if f"{i}.{short}" not in arrays]
            if missing:
                raise ValueError(f"the attribute index lacks the array {i}.{missing[0]}")
            own = {short: arrays[f"{i}.{short}"] for short in entry["arrays"]}
            attributes[entry["name"]] = Attribute(entry["name"], n, entry["types"], own)
        return cls(n, attributes)

    def arrays(self) -> dict[str, Array]:
        """Every array by a unique name, all of plain numeric types."""
        return {
            f"{i}.{short}": array
            for i, attribute in enumerate(self._attributes.values())
            for short, array in attribute.arrays.items()
        }

    def meta(self) -> dict[str, object]:
        """What ``from_arrays`` needs beside the arrays; plain JSON."""
        return {
            "rows": self.n,
            "attributes": [
                {"name": attribute.name, "types": list(attribute.types), "arrays": list(attribute.arrays)}
                for attribute in self._attributes.values()
            ],
        }

    def types(self) -> dict[str, list[str]]:
        """Per attribute the classes of values it was given; empty where it only holds what is not indexed."""
        return {name: list(attribute.types) for name, attribute in self._attributes.items()}

    def names(self) -> list[str]:
        """Names of the attributes any row has, sorted."""
        return list(self._attributes)

    def attribute(self, name: str) -> Attribute | None:
        """The attribute of that (dotted) name, or None when no row has it."""
        return self._attributes.get(name)

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(array.nbytes for array in self.arrays().values())


def _attribute(n: int, built: BuiltAttribute) -> Attribute:
    return Attribute(built.name, n, built.types, built.arrays)


def _typed(array: Array, dtype: type[_Scalar]) -> npt.NDArray[_Scalar]:
    """The same array, checked to be of ``dtype``; raises ValueError where a file holds another."""
    if array.dtype != dtype:
        raise ValueError(f"expected {np.dtype(dtype)}, found {array.dtype}")
    return array.view(np.ndarray).view(dtype)
