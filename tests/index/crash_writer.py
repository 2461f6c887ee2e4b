"""The process that test_crash kills: a stream of writes on one collection, each told before and after.

Lines in the file named last: ``try N {json}`` before operation N, ``ack N`` once the engine has said it is durable;
``ready`` on stdout when the collection is open.
"""

from __future__ import annotations

import random
import sys
from typing import Any, TextIO

import orjson

from nearfield_index.engine import Engine, EngineOptions
from nearfield_index.limits import Limits

DIM = 8
IDS = 60


def operation(dice: random.Random, number: int) -> dict[str, Any]:
    """The next operation: its kind and its body; ``n`` in the attributes says which write a version is from."""
    kind = dice.choices(["write", "delete", "patch", "delete_filter"], [6, 2, 3, 1])[0]
    ids = [dice.choice([i, str(i)]) for i in dice.sample(range(IDS), dice.randint(1, 6))]
    if kind == "write":
        rows = [
            {
                "id": i,
                "vector": [dice.uniform(0.1, 1) for _ in range(DIM)],
                "attributes": {"n": number, "g": number % 9},
            }
            for i in ids
        ]
        return {"kind": kind, "body": {"points": rows}}
    if kind == "delete":
        return {"kind": kind, "body": {"ids": ids}}
    if kind == "patch":
        return {"kind": kind, "body": {"ids": ids, "set": {"p": number}}}
    return {"kind": kind, "body": {"filter": {"g": dice.randrange(9)}}}


def stream(data: str, seed: int, out: TextIO) -> None:
    """Write until killed."""
    dice = random.Random(seed)
    engine = Engine.open(data, options=EngineOptions(limits=Limits(tail_bytes=2_000)))
    engine.create_collection("c", {"dim": DIM, "metric": "l2", "index": {"kind": "hnsw"}})
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    number = seed * 1_000_000
    while True:
        number += 1
        step = operation(dice, number)
        out.write(f"try {number} {orjson.dumps(step).decode()}\n")
        out.flush()
        if step["kind"] == "write":
            engine.write_points("c", step["body"])
        elif step["kind"] == "patch":
            engine.patch_points("c", step["body"])
        else:
            engine.delete_points("c", step["body"])
        out.write(f"ack {number}\n")
        out.flush()
        if number % 40 == 0:
            engine.optimize("c")


if __name__ == "__main__":
    with open(sys.argv[3], "w") as said:
        stream(sys.argv[1], int(sys.argv[2]), said)
