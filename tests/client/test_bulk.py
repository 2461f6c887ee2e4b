"""How a large write is cut up. What becomes of the pieces is tested in test_suite.py, on the real thing."""

import numpy as np
import pytest

from nearfield import bulk
from nearfield.points import gather


@pytest.mark.parametrize(
    ("expected", "weights", "max_bytes", "max_points"),
    [
        ([], [], 10, 10),
        ([(0, 3)], [1, 1, 1], 10, 10),
        ([(0, 2), (2, 3)], [5, 5, 5], 10, 10),
        ([(0, 1), (1, 2), (2, 3)], [50, 50, 50], 10, 10),
        ([(0, 2), (2, 4)], [1, 1, 1, 1], 10, 2),
        ([(0, 1), (1, 2), (2, 4)], [1, 99, 1, 1], 10, 10),
    ],
)
def test_split(expected, weights, max_bytes, max_points):
    assert expected == bulk.split(np.array(weights, float), max_bytes=max_bytes, max_points=max_points)


def test_weights_are_near_what_is_sent():
    texts = ["x" * (n % 500) for n in range(2000)]
    points = gather(np.arange(2000), np.ones((2000, 64)), attributes={"color": ["red"] * 2000}, text=texts)
    weights = points.weights()

    assert weights.shape == (2000,)
    assert np.all(weights > 64 * 4)
    assert weights[499] - weights[0] == 499
