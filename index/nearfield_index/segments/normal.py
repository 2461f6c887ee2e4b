"""A field's vectors with the bias of a hubness fit: the same matrix, ranked by inner product less bias.

The bias is an array of one float32 an item beside the matrix, not a column in it: a fit then publishes 4 bytes an item
where a column would rewrite every vector, and raw search reads the rows it always read.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from nearfield_index.backends.biased import BiasedHnsw, BiasedIvf, BiasedSearcher, scan_biased
from nearfield_index.backends.space import Doubles, ItemBiases, original
from nearfield_index.bitmap import Bitmap
from nearfield_index.schema import Metric
from nearfield_index.segments.part import BiasUse, FieldPart, Floats, Rows


@dataclass(frozen=True)
class NormalField(FieldPart):
    """``items`` are aligned with the rows of the matrix. Scores are ``score - strength * bias``; those of l2 are
    ``-d^2 / 2 - strength * bias``, because a bias is subtracted from an inner product."""

    items: ItemBiases | None = None
    use: BiasUse | None = None
    searchers: tuple[BiasedSearcher, BiasedIvf] | None = None

    @classmethod
    def of(
        cls, raw: FieldPart, items: ItemBiases, version: str, searchers: tuple[BiasedSearcher, BiasedIvf] | None
    ) -> NormalField:
        """The normalised face of a field; ``searchers`` hold the whole bias."""
        backend, clusters = (None, None) if searchers is None else searchers
        return cls(
            raw.metric,
            raw.matrix,
            raw.rows,
            raw.flat,
            backend,
            clusters,
            raw.longest,
            lists=raw.lists,
            leaves=raw.leaves,
            items=items,
            use=BiasUse(version),
            searchers=searchers,
        )

    @property
    def known(self) -> ItemBiases:
        """The biases of all rows."""
        assert self.items is not None
        return self.items

    def matrix_rows(self, part_rows: Rows) -> Rows:
        """The rows of the matrix for rows of the part, all of which have a vector here."""
        return part_rows if self.rows is None else self._places[part_rows]

    @cached_property
    def _places(self) -> Rows:
        assert self.rows is not None
        places = np.full(int(self.rows.max(initial=-1)) + 1, -1, dtype=np.int64)
        places[self.rows] = np.arange(len(self.rows))
        return places

    @property
    def version(self) -> str:
        """The fit it belongs to."""
        assert self.use is not None
        return self.use.version

    @property
    def bias(self) -> Floats:
        """The bias in use, ``(rows,)``, as fitted."""
        assert self.use is not None
        return self.known.bias[:, self.use.variant]

    @property
    def strength(self) -> float:
        assert self.use is not None
        return self.use.strength

    def biased(self, use: BiasUse) -> FieldPart:
        if use == self.use:
            return self
        if self.searchers is None or use.variant:  # searchers hold the whole bias, not one bank's
            return replace(self, use=use, backend=None, clusters=None)
        graph, lists = self.searchers
        return replace(self, use=use, backend=graph.at_strength(use.strength), clusters=lists.at_strength(use.strength))

    def scan(self, queries: Floats, k: int, within: Bitmap | None) -> tuple[Floats, Rows]:
        return scan_biased(self.matrix, self.bias, self.strength, queries, k, within)

    def found_scores(self, queries: Floats, rows: Rows, inner: Floats) -> Doubles:
        if self.metric is Metric.L2 or isinstance(self.backend, BiasedHnsw):  # which takes differences of large numbers
            return self.scores(queries, rows, precise=False)
        return inner.astype(np.float64)

    def settled(self, scored: Doubles, rows: Rows) -> Doubles:
        if self.metric is Metric.L2:
            scored = scored * np.abs(scored) / 2  # -d to -d^2 / 2; -inf stays
        bias = self.bias[np.maximum(rows, 0)].astype(np.float64) * self.strength
        return scored - np.where(rows >= 0, bias, 0.0)

    def as_inner(self, scored: Doubles, queries: Floats) -> Doubles:
        if self.metric is not Metric.L2:
            return scored
        own = original(queries, self.metric)
        squares = np.einsum("ij,ij->i", own, own, dtype=np.float64)
        result: Doubles = scored + squares[:, None] / 2
        return result

    def rounding(self, queries: Floats) -> Doubles:
        most = float(np.abs(self.bias).max(initial=0.0)) * self.strength
        return super().rounding(queries) + most * 2.0**-22  # the subtraction rounds once more
