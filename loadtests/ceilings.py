"""What a machine can do at best: bytes a second that it copies, multiplications a second of a large matrix product."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from time import perf_counter
from typing import Any

import numpy as np

_CPU_BYTES, _CPU_SIDE = 256 << 20, 2_048
_GPU_BYTES, _GPU_SIDE = 2 << 30, 8_192
_TIMES = 5


def of_cpu() -> dict[str, Any]:
    """``bandwidth`` (bytes read and written a second) and ``rates`` (operations a second by precision), all cores."""
    held = np.ones(_CPU_BYTES // 4, np.float32)
    other = np.empty_like(held)
    side = np.ones((_CPU_SIDE, _CPU_SIDE), np.float32)
    copied = _best(lambda: np.copyto(other, held))
    multiplied = _best(lambda: side @ side)
    return {"bandwidth": 2 * _CPU_BYTES / copied, "rates": {"fp32": 2 * _CPU_SIDE**3 / multiplied}}


def of_device(name: str) -> dict[str, Any]:
    """The same of a GPU that PyTorch calls ``name``; nothing is known without PyTorch."""
    if find_spec("torch") is None:
        return {"bandwidth": None, "rates": {}, "why": "PyTorch, which measures them, is not installed"}
    import torch

    def settled(work: Callable[[], object]) -> Callable[[], None]:
        def run() -> None:
            work()
            if name.startswith("cuda"):
                torch.cuda.synchronize(name)

        return run

    def copy_s() -> float:
        held = torch.randn(_GPU_BYTES // 4, dtype=torch.float32, device=name)
        other = torch.empty_like(held)
        return _best(settled(lambda: other.copy_(held)))

    def product_s(kind: Any) -> float:
        side = torch.randn((_GPU_SIDE, _GPU_SIDE), device=name).to(kind)  # equal numbers are multiplied faster
        return _best(settled(lambda: side @ side))

    kinds = {"fp32": torch.float32, "fp16": torch.float16}
    rates = {precision: 2 * _GPU_SIDE**3 / product_s(kind) for precision, kind in kinds.items()}
    found = {"bandwidth": 2 * _GPU_BYTES / copy_s(), "rates": rates}
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()  # or the plans would find less memory
    return found


def roof_s(ceiling: dict[str, Any], precision: str, rows: int, columns: int, queries: int) -> float | None:
    """The least seconds of an exact search over so many rows; None where that is not known."""
    rate = ceiling["rates"].get(precision)
    if not ceiling["bandwidth"] or not rate:
        return None
    size = 2 if precision == "fp16" else 4
    return float(max(rows * columns * size / ceiling["bandwidth"], 2.0 * rows * columns * queries / rate))


def _best(work: Callable[[], object]) -> float:
    taken = []
    for _ in range(1 + _TIMES):
        start = perf_counter()
        work()
        taken.append(perf_counter() - start)
    return min(taken[1:])
