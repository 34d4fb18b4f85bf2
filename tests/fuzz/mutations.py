"""Seeded changes of bytes and of JSON, with words that say what was done."""

from __future__ import annotations

import copy
import json
import math
import random
from collections.abc import Iterator
from typing import Any

_WORDS = (
    "",
    "unet",
    "fp16",
    "text",
    "both",
    "../x",
    "../../x",
    "/etc/passwd",
    "C:\\x",
    "a/../../x",
    "..",
    "x" * 70_000,
)
_ODD_TEXT = ("\x1b[2J\x07", "a\x00b", "\ud800", "[red]x[/]", "\u2028", "two\nlines", "\u202e", "NaN", "1e999")
_NUMBERS = (
    0,
    -1,
    1,
    2,
    3,
    7,
    255,
    2**31,
    2**63,
    2**64,
    10**30,
    1e-300,
    1e308,
    0.5,
    -0.0,
    math.nan,
    math.inf,
    -math.inf,
)
_OTHERS: tuple[Any, ...] = (None, True, False, [], {}, [[]], {"": {}}, ["a", 1, None], [0] * 1000)
# Written into the text as they are: what a JSON writer would not write.
_RAW = (
    b"[" * 100_000,
    b'{"a":' * 50_000,
    b"1" * 5000,
    b"1e999999",
    b"NaN",
    b"-",
    b'"\\ud800"',
    b"\x00",
    b"\xff\xfe",
    b"\xef\xbb\xbf",
    b"// x\n",
    b"\xe2\x80\xa8",
    b" " * 200_000,
)


def mutate_json(rng: random.Random, data: Any) -> tuple[bytes, str]:
    """One to three changes of a JSON value, or one of its text."""
    if rng.random() < 0.2:
        return mutate_text(rng, json.dumps(data, indent=2).encode())
    data, told = copy.deepcopy(data), []
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        data, what = _edit(rng, data)
        told.append(what)
    return json.dumps(data, indent=rng.choice((None, 2))).encode(), "; ".join(told)


def mutate_text(rng: random.Random, text: bytes) -> tuple[bytes, str]:
    """Something that is no JSON put in, or the text changed as any bytes."""
    if rng.random() < 0.5:
        place, raw = rng.randrange(len(text) + 1), rng.choice(_RAW)
        return text[:place] + raw + text[place:], f"{raw[:12]!r} ({len(raw)} bytes) put in at {place}"
    return mutate_bytes(rng, text)


def mutate_bytes(rng: random.Random, content: bytes, edge: int | None = None) -> tuple[bytes, str]:
    """Bytes flipped, cut, doubled, put in or overwritten; `edge`: most of it among the first so many bytes."""
    data = bytearray(content)
    reach = len(data) if edge is None or rng.random() < 0.3 else min(edge, len(data))
    place = rng.randrange(max(1, reach))
    what = rng.choice(("flip", "flip", "flips", "cut", "drop", "double", "insert", "extreme", "empty"))
    if what == "flip":
        data[place : place + 1] = bytes(value ^ 1 << rng.randrange(8) for value in data[place : place + 1])
    elif what == "flips":
        for _ in range(rng.randrange(2, 40)):
            other = rng.randrange(max(1, reach))
            data[other : other + 1] = bytes([rng.randrange(256)])
    elif what == "cut":
        del data[place:]
    elif what == "drop":
        del data[place : place + rng.randrange(1, 64)]
    elif what == "double":
        data[place:place] = data[place : place + rng.randrange(1, 4096)]
    elif what == "insert":
        data[place:place] = rng.randbytes(rng.randrange(1, 64))
    elif what == "extreme":
        data[place : place + 4] = rng.choice((b"\xff" * 4, b"\x00" * 4, b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f"))
    elif rng.random() < 0.5:
        data.clear()
    else:
        data.extend(rng.randbytes(rng.randrange(1, 4096)))
        what = "append"
    return bytes(data), f"bytes: {what} at {place}"


def changed_paths(before: Any, after: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Where two JSON values differ."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key in {*before, *after}:
            if key in before and key in after:
                yield from changed_paths(before[key], after[key], (*path, str(key)))
            else:
                yield (*path, str(key))
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for place, (one, other) in enumerate(zip(before, after, strict=True)):
            yield from changed_paths(one, other, (*path, str(place)))
    elif type(before) is not type(after) or before != after:
        yield path


def hostile(rng: random.Random, value: Any = None) -> Any:
    """A value to put in the place of another one, often of the same kind."""
    if isinstance(value, bool):
        return rng.choice((not value, 1, "true", None))
    if isinstance(value, int | float) and rng.random() < 0.7:
        return rng.choice((*_NUMBERS, value + 1, value - 1, -value, value * 2, float(value), str(value)))
    if isinstance(value, str) and rng.random() < 0.7:
        return rng.choice((*_WORDS, *_ODD_TEXT, value + "x", value.upper(), value[:-1], value + "\x00", "./" + value))
    return copy.deepcopy(rng.choice((*_WORDS, *_ODD_TEXT, *_NUMBERS, *_OTHERS)))


def _edit(rng: random.Random, data: Any) -> tuple[Any, str]:
    places = list(_places(data))
    if not places:
        return hostile(rng, data), "the whole replaced"
    holder, key, path = rng.choice(places)
    what = rng.choice(("replace", "replace", "replace", "remove", "add", "swap", "nest"))
    if what == "replace":
        holder[key] = hostile(rng, holder[key])
        return data, f"{path} = {_short(holder[key])}"
    if what == "remove":
        del holder[key]
        return data, f"{path} removed"
    if what == "add" and isinstance(holder, dict):
        name = rng.choice((*_ODD_TEXT, "colour", "__class__", "../x", "unet_shallow", key.upper()))
        holder[name] = hostile(rng, holder[key])
        return data, f"{_short(name)} added beside {path}"
    if what == "nest":
        for _ in range(rng.choice((1, 2, 400))):
            holder[key] = [holder[key]]
        return data, f"{path} nested"
    other, other_key, other_path = rng.choice(places)
    holder[key] = copy.deepcopy(other[other_key])
    return data, f"{path} = value of {other_path}"


def _places(data: Any, path: str = "") -> Iterator[tuple[Any, Any, str]]:
    """Every entry: what holds it, its key there, and its path."""
    entries = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in entries:
        yield data, key, f"{path}.{key}".lstrip(".")
        yield from _places(value, f"{path}.{key}")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 60 else f"{text[:50]}... ({len(text)} characters)"
