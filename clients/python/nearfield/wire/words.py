"""What the models are made of: ids, filters, vectors and the two kinds of model."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Id = Annotated[
    Annotated[str, Field(min_length=1, max_length=256)] | Annotated[int, Field(ge=0, le=2**63 - 1)],
    Field(description='Text of 1 to 256 bytes, or an integer from 0 to 2^63-1; `1` and `"1"` are two points.'),
]
Attributes = Annotated[
    dict[str, Any],
    Field(
        description="Any JSON object; scalars and lists of scalars can be filtered, null means missing.",
        examples=[{"color": "red", "price": 12}],
    ),
]
Filter = Annotated[
    dict[str, Any],
    Field(
        description="Attributes and conditions, ANDed. A bare value is equality; operators: "
        "`eq ne in nin lt lte gt gte exists any all prefix`; combine with `$and`, `$or`, `$not`, `$id`.",
        examples=[{"color": "red", "price": {"gte": 10, "lt": 50}}],
    ),
]
Metric = Literal["cosine", "dot", "l2"]
AttributeType = Literal["keyword", "integer", "float", "bool", "datetime"]
Name = Annotated[str, Field(pattern="^[A-Za-z0-9_-]{1,64}$", examples=["products"])]
WithParts = Annotated[list[Literal["vectors", "text"]], Field(description="What else to return.")]
Select = Annotated[
    bool | list[str],
    Field(description="True: all attributes; false: none; a list: these.", examples=[["price"]]),
]


class Request(BaseModel):
    """What clients send: unknown keys are refused, nothing is converted."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Reply(BaseModel):
    """What the server sends: more keys may come with later versions."""

    model_config = ConfigDict(extra="allow")


class PackedVectors(Request):
    """Vectors as base64 of their little-endian, row-major numbers."""

    b64: str
    dtype: Literal["f32", "f16"] = "f32"
    shape: Annotated[list[int], Field(min_length=1, max_length=2, examples=[[2, 384]])]


class BlockVectors(Request):
    """Vectors as a raw block of a frame body (`application/x-nearfield-frame`)."""

    block: Annotated[int, Field(ge=0)]
    dtype: Literal["f32", "f16"] = "f32"
    shape: Annotated[list[int], Field(min_length=1, max_length=2, examples=[[2, 384]])]


Vector = Annotated[
    list[float] | PackedVectors | BlockVectors, Field(description="One vector.", examples=[[0.1, 0.2, 0.3]])
]
Vectors = Annotated[
    list[list[float] | None] | PackedVectors | BlockVectors,
    Field(description="A batch of vectors, one per row.", examples=[[[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]]]),
]
