"""Examples for as long as there is time, and values that nobody foresaw."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

SECONDS = float(os.environ.get("RAFTSQLITE_FUZZ_SECONDS") or os.environ.get("RAFTSQLITE_SOAK_SECONDS") or "1.5")
"""How long each test tries new examples; .ci/run has it ten seconds."""

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.binary(max_size=40)
    | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=12,
)
"""Whatever msgpack or JSON can carry."""

JUNK: tuple[Any, ...] = (
    None,
    True,
    -1,
    2**63,
    2**64 - 1,
    1.5,
    float("nan"),
    float("inf"),
    "",
    "x",
    "\x00",
    b"",
    b"x",
    b"\x00" * 16,
    [],
    [[]],
    [None],
    {},
    {"x": {}},
)
"""What stands where something else should."""


def fuzz(strategy: st.SearchStrategy[Any], check: Callable[[Any], object]) -> int:
    """Check examples of ``strategy`` for SECONDS; how many there were. A failure prints the smallest example."""
    count, end = 0, time.monotonic() + SECONDS
    while time.monotonic() < end:
        number = random.SystemRandom().getrandbits(32)

        @seed(number)
        @settings(
            max_examples=200,
            deadline=None,
            database=None,
            print_blob=True,
            suppress_health_check=list(HealthCheck),
            phases=(Phase.generate, Phase.shrink),
        )
        @given(strategy)
        def examples(value: Any) -> None:
            nonlocal count
            count += 1
            check(value)

        try:
            examples()
        except BaseException:
            print(f"seed {number}")
            raise
    print(f"{count} examples")
    return count


def damaged(chance: random.Random, value: Any) -> Any:
    """A copy of a message in which one thing, somewhere, is missing, more, or something else."""
    if isinstance(value, dict) and value and chance.random() < 0.9:
        copy = dict(value)
        name = chance.choice(list(copy))
        match chance.randrange(5):
            case 0:
                del copy[name]
            case 1:
                copy[chance.choice(["x", "", "serialized", "transmission", "type "])] = chance.choice(JUNK)
            case 2:
                copy[name] = chance.choice(JUNK)
            case _:
                copy[name] = damaged(chance, copy[name])
        return copy
    if isinstance(value, list | tuple) and value and chance.random() < 0.9:
        items = list(value)
        at = chance.randrange(len(items))
        match chance.randrange(4):
            case 0:
                del items[at]
            case 1:
                items.insert(at, chance.choice(JUNK))
            case _:
                items[at] = damaged(chance, items[at])
        return items
    return chance.choice(JUNK)


def damage_bytes(data: bytes) -> st.SearchStrategy[bytes]:
    """The bytes with some of them changed, cut out, or put in."""

    def apply(edits: list[tuple[int, int, bytes]]) -> bytes:
        made = bytearray(data)
        for at, length, new in edits:
            start = at % (len(made) + 1)
            made[start : start + length] = new
        return bytes(made)

    edit = st.tuples(st.integers(0, 2**16), st.integers(0, 4), st.binary(max_size=4))
    return st.lists(edit, min_size=1, max_size=4).map(apply)
