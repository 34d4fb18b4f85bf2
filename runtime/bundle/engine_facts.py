"""The facts beside an engine, which ``consisti2v build`` writes: their version, and the shape they must have."""

from __future__ import annotations

import math
from typing import Any

FACTS_VERSION = 1


def check_facts(facts: Any) -> None:
    """Refuse facts of another version, or that lack what this program shows.

    Args:
        facts: as the JSON file holds them.

    Raises:
        ValueError: what is wrong, in a few words.
    """
    if not isinstance(facts, dict):
        raise ValueError("it holds no JSON object")
    if not _is_count(facts.get("facts_version")) or facts["facts_version"] != FACTS_VERSION:
        raise ValueError(f"facts version {facts.get('facts_version')!r}, this program knows {FACTS_VERSION}")
    layers, attentions = facts.get("layers"), facts.get("attentions")
    kinds = layers.get("kinds") if isinstance(layers, dict) else None
    _demand(
        isinstance(layers, dict)
        and _is_count(layers.get("total"))
        and isinstance(kinds, dict)
        and all(map(_is_count, kinds.values())),
        "layers",
    )
    _demand(
        isinstance(attentions, dict)
        and _is_list(attentions.get("fused"), lambda name: isinstance(name, str))
        and _is_list(attentions.get("decomposed"), _is_decomposed),
        "attentions",
    )
    seconds = facts.get("build_seconds")
    _demand(_is_count(seconds) or (isinstance(seconds, float) and 0 <= seconds < math.inf), "build_seconds")
    for name in ("weight_bytes", "peak_host_bytes"):
        _demand(name in facts and (facts[name] is None or _is_count(facts[name])), name)
    _demand(_is_list(facts.get("activation_bytes"), _is_count), "activation_bytes")


def _demand(holds: bool, name: str) -> None:
    if not holds:
        raise ValueError(f"its {name} are not what a build writes")


def _is_list(value: Any, is_entry: Any) -> bool:
    return isinstance(value, list) and all(map(is_entry, value))


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_decomposed(entry: Any) -> bool:
    return isinstance(entry, dict) and all(isinstance(entry.get(key), str) for key in ("name", "reason"))
