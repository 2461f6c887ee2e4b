"""The binary body: what goes in comes out, and nothing malformed gets past."""

import struct

import numpy as np
import orjson
import pytest

from nearfield import frames
from nearfield.errors import InvalidRequest, TooLarge

MATRIX = np.arange(12, dtype=np.float32).reshape(3, 4)


def framed(head: object, blocks: bytes = b"") -> bytes:
    text = orjson.dumps(head)
    return struct.pack("<I", len(text)) + text + blocks


def block(index: object, shape: object, dtype: object = "f32") -> dict[str, object]:
    return {"block": index, "dtype": dtype, "shape": shape}


def test_round_trip_of_columns():
    head = {
        "ids": ["a", 2, "c"],
        "vectors": {"image": MATRIX, "text": MATRIX.astype(np.float16)},
        "attributes": {"n": [1]},
    }

    back = frames.decode(frames.encode(head))

    assert back["ids"] == ["a", 2, "c"]
    assert back["attributes"] == {"n": [1]}
    np.testing.assert_array_equal(back["vectors"]["image"], MATRIX)
    assert back["vectors"]["text"].dtype == np.float16


def test_round_trip_of_rows_and_queries():
    rows = {
        "points": [{"id": 1, "vector": MATRIX[0]}, {"id": 2}, {"id": 3, "vectors": {"image": MATRIX[1]}}],
    }
    back = frames.decode(frames.encode(rows))
    np.testing.assert_array_equal(back["points"][0]["vector"], MATRIX[0])
    np.testing.assert_array_equal(back["points"][2]["vectors"]["image"], MATRIX[1])

    query = frames.decode(frames.encode({"vectors": MATRIX, "k": 3}))
    np.testing.assert_array_equal(query["vectors"], MATRIX)


def test_decoding_copies_nothing_and_aligns():
    body = frames.encode({"vectors": MATRIX, "k": 10})
    array = frames.decode(body)["vectors"]

    assert not array.flags.owndata
    assert not array.flags.writeable
    assert np.shares_memory(array, np.frombuffer(body, np.uint8))
    assert (len(body) - MATRIX.nbytes) % 64 == 0


def test_strided_and_empty_arrays():
    strided = np.asfortranarray(MATRIX)[::2]
    back = frames.decode(frames.encode({"vectors": {"a": strided, "b": np.zeros((0, 4), np.float32)}}))

    np.testing.assert_array_equal(back["vectors"]["a"], strided)
    assert back["vectors"]["b"].shape == (0, 4)


def test_unaligned_blocks_are_read():
    half = np.array([1], np.float16)
    body = framed({"vectors": {"a": block(0, [1], "f16"), "b": block(1, [4])}}, half.tobytes() + MATRIX[0].tobytes())

    np.testing.assert_array_equal(frames.decode(body)["vectors"]["b"], MATRIX[0])


def test_attributes_that_look_like_blocks_stay_what_they_are():
    sly = {"block": 0, "dtype": "f32", "shape": [4]}
    body = framed({"points": [{"id": 1, "attributes": {"a": sly}}]})

    assert frames.decode(body)["points"][0]["attributes"]["a"] == sly


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\1\0\0",
        struct.pack("<I", 100) + b"{}",
        struct.pack("<I", 2) + b"{]",
        framed([1]),
        framed({}, b"left over"),
        framed({"vectors": block(0, [4])}, b"\0" * 15),
        framed({"vectors": block(0, [4])}, b"\0" * 17),
        framed({"vectors": block(1, [1])}, b"\0" * 4),
        framed({"vectors": {"a": block(0, [1]), "b": block(0, [1])}}, b"\0" * 8),
        framed({"vectors": block(-1, [1])}, b"\0" * 4),
        framed({"vectors": block(True, [1])}, b"\0" * 4),
        framed({"vectors": block("0", [1])}, b"\0" * 4),
        framed({"vectors": block(0, [1], "f64")}, b"\0" * 8),
        framed({"vectors": block(0, [1], ["f32"])}, b"\0" * 4),
        framed({"vectors": block(0, [1.0])}, b"\0" * 4),
        framed({"vectors": block(0, [-1])}, b""),
        framed({"vectors": block(0, [])}, b"\0" * 4),
        framed({"vectors": block(0, [1, 1, 1])}, b"\0" * 4),
        framed({"vectors": block(0, "1")}, b"\0" * 4),
        framed({"vectors": block(0, [2**39, 2**39])}, b"\0" * 4),
        framed({"vectors": {"block": 0}}, b"\0" * 4),
    ],
)
def test_malformed_frames_are_refused(body: bytes):
    with pytest.raises(InvalidRequest):
        frames.decode(body)


def test_a_head_over_the_limit_is_refused_before_it_is_read():
    with pytest.raises(TooLarge):
        frames.decode(struct.pack("<I", frames.MAX_HEAD_BYTES + 1))


def test_what_json_cannot_say_is_refused():
    with pytest.raises(InvalidRequest, match="JSON"):
        frames.encode({"ids": [object()]})
