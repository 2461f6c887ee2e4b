"""Exact search in tensors: a rough pass in float16 over all rows, and the best of it compared again in float32.

Plain PyTorch: it runs on any CUDA device and on tensors that lie on the CPU. What a pass takes beside its
multiplications is how often its scores (one for each query and row) are written and read, so they are kept in 16 bits
and read once: for the maximum of each 64, which rules out all but a few.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, Self

import numpy as np

from nearfield_index.backends.base import Floats
from nearfield_index.bitmap import Bitmap

_STEP_QUERIES = 512  # fewer would read the rows more often than multiplying them takes
_GROUP = 64
_GROUPS_PER_WANTED = 2
_SORTED = 8  # times the bytes of scores that are sorted whole
_LOW = 2.0**-11
_FEW = 1 / 64
_PICKED_BYTES = 12  # of a number: two halves, one float32, and another
_PUT_BYTES = 1 << 26

LOST = 2.0**-22
"""What two halves lose of a row, by its length: half a bit more than a float32."""


class Halves(NamedTuple):
    """Rows in the bytes of a float32 matrix, of which a rough pass reads half: ``high`` is a row rounded to float16,
    ``low`` what that lost, ``2**11`` times as large."""

    high: Any
    low: Any

    @classmethod
    def of(cls, matrix: Floats, scale: float, device: str) -> Self:
        """Of rows x ``scale``, none of which is longer than 1."""
        import torch

        high = torch.empty(matrix.shape, dtype=torch.float16, device=device)
        low = torch.empty_like(high)
        for part in _blocks(matrix):
            block = torch.from_numpy(matrix[part] * np.float32(scale)).to(device)
            high[part] = block
            low[part] = (block - high[part].float()) / _LOW
        return cls(high, low)

    def compared(self, asked: Any, at: Any, k: int, nbytes: int) -> tuple[Any, Any]:
        """The best k of rows ``at`` ``(n, width)`` by float32 products with their queries, best first. About
        ``nbytes`` are taken."""
        import torch

        step = max(1, nbytes // (_PICKED_BYTES * at.shape[1] * asked.shape[1]))
        inner = torch.empty(at.shape, dtype=torch.float32, device=at.device)
        for start in range(0, len(at), step):
            part = slice(start, start + step)
            rows = torch.add(self.high[at[part]].float(), self.low[at[part]], alpha=_LOW)
            # No matrix product: whoever has set PyTorch to TF32 would get that.
            inner[part] = rows.mul_(asked[part, None, :]).sum(dim=2)
        found, place = inner.topk(k, dim=1)
        return found, at.gather(1, place)


def tensor(array: Any, device: Any) -> Any:
    """An array on the device. Of one that may not be written, as a mapped file's, a copy goes there: PyTorch warns of
    sharing it."""
    import torch

    return torch.from_numpy(array if array.flags.writeable else array.copy()).to(device)


def whole(matrix: Floats, device: str) -> Any:
    """A matrix on the device, put there in blocks."""
    import torch

    held = torch.empty(matrix.shape, dtype=torch.float32, device=device)
    for part in _blocks(matrix):
        held[part] = tensor(matrix[part], device)
    return held


def _blocks(matrix: Floats) -> Iterator[slice]:
    step = max(1, _PUT_BYTES // (4 * matrix.shape[1]))
    return (slice(start, start + step) for start in range(0, len(matrix), step))


def arithmetic() -> tuple[object, ...]:
    """How PyTorch multiplies: settings of the process, which anybody may change."""
    import torch

    kept = torch.backends.cuda.matmul
    return (
        torch.get_float32_matmul_precision(),
        kept.allow_fp16_reduced_precision_reduction,
        getattr(kept, "allow_fp16_accumulation", False),
    )


def free() -> None:
    """Give back what PyTorch has kept of memory that nothing uses, or FAISS would not find it."""
    import torch

    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def passing(within: Bitmap, device: Any) -> Any:
    """The rows of a set, ascending, on the device; whichever is shorter goes there, their numbers or the bitmap."""
    import torch

    if within.share <= _FEW:
        return tensor(within.rows(), device)
    bits = tensor(within.bits(), device)
    each = (bits[:, None] >> torch.arange(8, dtype=torch.uint8, device=device)) & 1
    return each.flatten()[: within.n].nonzero()[:, 0]


def best(asked: Any, held: Any, chosen: Any, width: int, nbytes: int) -> tuple[Any, Any]:
    """The ``width`` largest products of each query with rows ``held`` (of them, those ``chosen``; None: all), largest
    first, and their rows, both ``(n, width)``. About ``nbytes`` are taken, half by scores, at most as much by rows.

    Of rows that are left out none has a larger product than the last one given.
    """
    import torch

    count = len(held) if chosen is None else len(chosen)
    step = min(len(asked), _STEP_QUERIES)
    size = nbytes // 2 // asked.element_size()
    block_rows = max(1, size // step)
    if min(count, block_rows) < _GROUP * _GROUPS_PER_WANTED * width:
        block_rows = max(1, block_rows // _SORTED)
    if chosen is not None:
        block_rows = max(1, min(block_rows, size // held.shape[1]))
    found: list[Any] = []
    at: list[Any] = []
    for start in range(0, count, block_rows):
        stop = min(count, start + block_rows)
        here = None if chosen is None else chosen[start:stop]
        block = held[start:stop] if here is None else held.index_select(0, here)
        for number, first in enumerate(range(0, len(asked), step)):
            products, place = _largest(asked[first : first + step] @ block.T, min(width, stop - start))
            rows = place + start if here is None else here[place]
            if start == 0:
                found.append(products)
                at.append(rows)
                continue
            products = torch.cat([found[number], products], 1)
            found[number], place = products.topk(min(width, products.shape[1]), dim=1)
            at[number] = torch.cat([at[number], rows], 1).gather(1, place)
    return torch.cat(found), torch.cat(at)


def _largest(scores: Any, width: int) -> tuple[Any, Any]:
    """The largest of each row, largest first, and their columns.

    Every one of them lies in a group of columns whose maximum is among the ``width`` largest maxima, so all scores are
    read once and only those of ``width`` groups are sorted. The columns of a group are as far apart as there are
    groups: their maxima are read in order.
    """
    import torch

    groups = scores.shape[1] // _GROUP
    if groups < _GROUPS_PER_WANTED * width:
        return tuple(scores.topk(width, dim=1))
    grouped = scores[:, : groups * _GROUP].unflatten(1, (_GROUP, groups))
    chosen = grouped.amax(dim=1).topk(width, dim=1, sorted=False).indices[:, None, :]
    among = torch.cat([grouped.gather(2, chosen.expand(-1, _GROUP, -1)).flatten(1), scores[:, groups * _GROUP :]], 1)
    found, place = among.topk(width, dim=1)
    columns = place // width * groups + chosen[:, 0].gather(1, place % width)
    rest = place - _GROUP * width  # of the columns that fill no group
    return found, torch.where(rest < 0, columns, groups * _GROUP + rest)
