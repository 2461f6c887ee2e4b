"""Every kind of vectors becomes float32, and mistakes say what to do."""

import array

import numpy as np
import pyarrow as pa
import pytest

from nearfield import vectors
from nearfield.errors import InvalidRequest

EXPECTED = np.array([[1, 2], [3, 4]], np.float32)


class Tensor:
    """Stands for torch and jax: anything that turns into an array on request."""

    def __array__(self, dtype=None, copy=None):
        return EXPECTED.astype(np.float64)


class Capsule:
    """Stands for polars, arro3 and others that speak Arrow only."""

    def __arrow_c_stream__(self, requested_schema=None):
        return pa.chunked_array([pa.array([[1, 2], [3, 4]], pa.list_(pa.float32(), 2))]).__arrow_c_stream__()


@pytest.mark.parametrize(
    "given",
    [
        [[1, 2], [3, 4]],
        ((1.0, 2.0), (3.0, 4.0)),
        EXPECTED,
        EXPECTED.astype(np.float64),
        EXPECTED.astype(np.float16),
        EXPECTED.astype(np.int8),
        np.asfortranarray(EXPECTED),
        [EXPECTED[0], EXPECTED[1]],
        np.array([EXPECTED[0], None, EXPECTED[1]], object)[[0, 2]],
        Tensor(),
        Capsule(),
        pa.array([[1, 2], [3, 4]], pa.list_(pa.float32())),
        pa.array([[1, 2], [3, 4]], pa.list_(pa.float64(), 2)),
        pa.chunked_array([pa.array([[1, 2]], pa.list_(pa.int64(), 2)), pa.array([[3, 4]], pa.list_(pa.int64(), 2))]),
        [array.array("f", [1, 2]), array.array("f", [3, 4])],
    ],
)
def test_becomes_float32(given):
    made = vectors.to_array(given)

    assert made.dtype == np.float32
    assert made.flags.c_contiguous
    np.testing.assert_array_equal(EXPECTED, made)


def test_what_fits_is_not_copied():
    assert np.shares_memory(vectors.to_array(EXPECTED), EXPECTED)


def test_arrow_slices_keep_their_place():
    column = pa.array([[9, 9], [1, 2], [3, 4]], pa.list_(pa.float32(), 2)).slice(1)

    np.testing.assert_array_equal(EXPECTED, vectors.to_array(column))


def test_one_vector_keeps_its_shape_and_a_matrix_is_made_of_it():
    assert vectors.to_array([1, 2]).shape == (2,)
    assert vectors.to_matrix([1, 2]).shape == (1, 2)
    assert vectors.to_matrix([]).shape == (0, 0)


@pytest.mark.parametrize(
    ("given", "remedy"),
    [
        ([[1, 2], [3]], "same number"),
        ([["a", "b"]], "astype"),
        ([[True, False]], "astype"),
        (np.array([1j]), "astype"),
        ([[1, None]], "leave out rows"),
        ([[1, 2], None], "same number"),
        (np.zeros((2, 2, 2)), "one row per vector"),
        (3.0, "one row per vector"),
        ("abc", "must be numbers"),
        (b"abc", "must be numbers"),
        ({"a": 1}, "must be numbers"),
        (pa.array([[1.0], None], pa.list_(pa.float32())), "filter out rows"),
        (pa.array([[1.0], [1.0, 2.0, 3.0]], pa.list_(pa.float32())), "one length"),
        (pa.array(["a"]), "numbers|one length"),
    ],
)
def test_mistakes_say_the_remedy(given, remedy):
    with pytest.raises(InvalidRequest, match=remedy):
        vectors.to_array(given)


def test_an_overflow_is_left_to_the_engine_without_a_warning():
    assert np.isinf(vectors.to_array([1e300])).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("shape", [(4,), (2, 3), (0, 5)])
def test_base64_round_trip(dtype, shape):
    array = np.arange(np.prod(shape), dtype=dtype).reshape(shape)
    wire = vectors.encode(array)

    assert wire["shape"] == list(shape)
    np.testing.assert_array_equal(array, vectors.decode(wire))


@pytest.mark.parametrize(
    "wire",
    [
        {"b64": "!!", "shape": [1]},
        {"b64": 7, "shape": [1]},
        {"shape": [1]},
        {"b64": "AAAA", "dtype": "f32", "shape": [2]},
        {"b64": "AAAAAA==", "dtype": "f8", "shape": [1]},
        {"b64": "AAAAAA==", "dtype": "f32", "shape": [1, 1, 1]},
        {"b64": "AAAAAA==", "dtype": "f32", "shape": [-1]},
    ],
)
def test_malformed_base64_is_refused(wire):
    with pytest.raises(InvalidRequest):
        vectors.decode(wire)
