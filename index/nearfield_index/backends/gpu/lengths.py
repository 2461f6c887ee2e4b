"""Lengths of vectors, and the powers of two that bring them into the range of float16."""

from __future__ import annotations

from typing import Any

import numpy as np

from nearfield_index.backends.base import Floats

Doubles = np.ndarray[Any, np.dtype[np.float64]]

_LEAST, _MOST = 1e-30, 1e30


def lengths(matrix: Floats, *, precise: bool = True) -> Doubles:
    """Of each row. Without ``precise`` they are :func:`odd` sooner and right to six digits, at a fifth of the price."""
    with np.errstate(over="ignore"):
        squares = np.einsum("ij,ij->i", matrix, matrix, dtype=np.float64 if precise else np.float32)
    found: Doubles = np.sqrt(squares.astype(np.float64, copy=False))
    return found


def longest_row(matrix: Floats) -> float:
    """The length of the longest row; 0 of none."""
    return float(lengths(matrix).max(initial=0.0))


def odd(long: Doubles | np.float64) -> Any:
    """Whether lengths are too small or large for :func:`power_of_two`, or nothing at all."""
    return ~((long > _LEAST) & (long < _MOST))


def power_of_two(long: Doubles | np.float64) -> Doubles:
    """What brings lengths below 1, but not below a half, and changes no digit; 1 for odd ones."""
    made: Doubles = np.where(odd(long), 1.0, np.ldexp(1.0, -np.frexp(long)[1]))
    return made
