"""Whether two records may be compared: same bundle, same settings, same machine; and what else differs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ...errors import UserError
from .record import Record

_MACHINE = (
    "cpu",
    "architecture",
    "physical_cores",
    "logical_cores",
    "usable_cores",
    "instruction_sets",
    "memory_bytes",
    "system",
    "gpus",
)
_BUNDLE = ("sha256",)
_SETTINGS = ("rounds", "warmup", "resident", "threads")
_MORE_BUNDLE = {"scaling": ("models",)}
_MORE_SETTINGS = {
    "latency": ("image_sha256", "prompt", "num_inference_steps", "seed"),
    "side_by_side": ("seed", "timestep", "frame_stride"),
    "scaling": ("image_sha256",),
}
# More rounds measure the same thing better.
_FREE_SETTINGS = {"rounds"}
# The firmware and the kernel keep a little memory for themselves, not always the same.
_MEMORY_TOLERANCE = 0.02
_LESS_EXACT = 3


def missing_fields(record: Record) -> list[str]:
    """Entries that a comparison needs and this record lacks, such as ``machine.system``."""
    needed = {
        "bundle": (record.bundle, (*_BUNDLE, *_MORE_BUNDLE.get(record.kind, ()))),
        "machine": (record.machine, _MACHINE),
        "settings": (record.settings, (*_SETTINGS, *_MORE_SETTINGS[record.kind])),
        "versions": (record.versions, ("python", "consisti2v-rt", "numpy")),
    }
    return [f"{part}.{key}" for part, (held, keys) in needed.items() for key in keys if key not in held]


def obstacles(before: Record, after: Record) -> dict[str, list[str]]:
    """What forbids a comparison: the part ("bundle", "settings", "machine") -> the differences in it, in words.

    Entries that one record lacks count as a difference; :func:`missing_fields` names those that both need.
    """
    found = {
        "bundle": list(_bundle_differences(before.bundle, after.bundle)),
        "settings": list(_differences(before.settings, after.settings, _FREE_SETTINGS)),
        "machine": list(_differences(before.machine, after.machine, same=_same_machine_value)),
    }
    return {part: differences for part, differences in found.items() if differences}


def check_comparable(before: Record, after: Record, names: tuple[str, str], *, force: bool) -> dict[str, list[str]]:
    """Refuse records that were not measured alike.

    Args:
        names: of the two files, for the message.
        force: compare anyway.

    Returns:
        With `force`, what would have been refused: part -> differences.

    Raises:
        UserError: the bundle, settings or machine differ, or a record does not say what they were.
    """
    if before.kind != after.kind:
        raise UserError(f"a record of kind {before.kind} cannot be compared with one of kind {after.kind}.")
    lacking = {name: missing_fields(record) for name, record in zip(names, (before, after), strict=True)}
    lacking = {name: fields for name, fields in lacking.items() if fields}
    found = obstacles(before, after)
    if lacking and not force:
        told = "; ".join(f"{name} lacks {', '.join(fields)}" for name, fields in lacking.items())
        raise UserError(
            f"{told}: it does not say what ran, so measure again with this version, or compare anyway with --force."
        )
    if found and not force:
        told = "; ".join(f"{part}: {', '.join(differences)}" for part, differences in found.items())
        raise UserError(
            f"the two records were not measured alike ({told}): measure both alike, or compare anyway with --force."
        )
    if lacking:
        found["fields"] = [f"{name} lacks {', '.join(fields)}" for name, fields in lacking.items()]
    return found


def notes(before: Record, after: Record) -> list[str]:
    """Differences that a comparison is often made for, one sentence each: versions, and distance from the reference."""
    told = [f"The versions differ: {difference}." for difference in _differences(before.versions, after.versions)]
    for subject in before.subjects:
        other = next((entry for entry in after.subjects if entry.name == subject.name), None)
        first, second = subject.relative_l2, None if other is None else other.relative_l2
        if first and second and second > _LESS_EXACT * first:
            told.append(
                f"{subject.name} is further from the published formulation: relative L2 {first:.1e}, now {second:.1e}."
            )
    return told


def _bundle_differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> Iterator[str]:
    """By the hash of the manifest, which holds that of every file; names and sizes say no more."""
    if first.get("sha256") != second.get("sha256"):
        yield (
            f"sha256 {_short(first.get('sha256'), 12)} ({first.get('name')}) and "
            f"{_short(second.get('sha256'), 12)} ({second.get('name')})"
        )
    one, other = first.get("models") or {}, second.get("models") or {}
    # Points that one record alone has are not compared.
    for point in sorted(one.keys() & other.keys()):
        if one[point] != other[point]:
            yield f"model of {point} {_short(one[point], 12)} and {_short(other[point], 12)}"


def _differences(
    first: Mapping[str, Any],
    second: Mapping[str, Any],
    leave_out: set[str] | frozenset[str] = frozenset(),
    same: Callable[[str, Any, Any], bool] = lambda key, one, other: one == other,
) -> Iterator[str]:
    for key in sorted({*first, *second} - leave_out):
        one, other = (held.get(key, "absent") for held in (first, second))
        if not same(key, one, other):
            yield f"{key} {_short(one)} and {_short(other)}"


def _same_machine_value(key: str, first: Any, second: Any) -> bool:
    if key == "memory_bytes" and all(isinstance(value, int | float) for value in (first, second)):
        return math.isclose(first, second, rel_tol=_MEMORY_TOLERANCE)
    if key == "gpus" and all(isinstance(value, list) for value in (first, second)):
        # A driver is a version: it is what a comparison may be made for.
        return _without_drivers(first) == _without_drivers(second)
    return bool(first == second)


def _without_drivers(gpus: list[Any]) -> list[Any]:
    return [
        {key: value for key, value in gpu.items() if key != "driver"} if isinstance(gpu, dict) else gpu for gpu in gpus
    ]


def _short(value: object, most: int = 60) -> str:
    text = str(value)
    return text if len(text) <= most else text[: most - 3] + "..."
