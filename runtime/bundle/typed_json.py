"""JSON as annotated dataclasses: every mistake is reported by the path of the entry that is wrong."""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Iterable
from functools import cache
from typing import Annotated, Any

from ...errors import UserError

MANIFEST_NAME = "bundle.json"
NEVER = "do not use this bundle; export it again"


def check_known(entry: str, names: Iterable[str], allowed: tuple[str, ...]) -> None:
    """Refuse a name that is none of the allowed ones."""
    for name in names:
        if name not in allowed:
            raise UserError(
                f"{MANIFEST_NAME}: entry {entry} has {name[:40]!r}, which is none of "
                f"{', '.join(filter(None, allowed))}: {NEVER}."
            )


def parse_typed(kind: Any, value: Any, where: str) -> Any:
    """A value from JSON as an annotated type.

    Args:
        kind: a dataclass, a plain type, or containers of them; ``Annotated`` adds a tuple of known words, or a rule.
        value: as the JSON parser gives it.
        where: path of the entry, for the message.

    Raises:
        UserError: another type, an unknown or a missing entry, or a value that breaks its rule.
    """
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    entry = where.lstrip(".")
    if origin is Annotated:
        parsed, rule = parse_typed(arguments[0], value, where), arguments[1]
        if isinstance(rule, tuple):
            check_known(entry, (parsed,), rule)
        elif not rule(parsed):
            shown = repr(parsed)[:80]
            raise UserError(f"{MANIFEST_NAME}: entry {entry} cannot be {shown}: {NEVER}.")
        return parsed
    if kind is Any:
        return value
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return _parse_dataclass(kind, value, where)
    if origin is dict and isinstance(value, dict):
        key, item = arguments
        return {
            parse_typed(key, name, where): parse_typed(item, one, f"{where}.{name[:80]}") for name, one in value.items()
        }
    if origin is tuple and isinstance(value, list):
        plain = (str, int) if arguments[0] == int | str else (arguments[0],)
        if all(type(item) in plain for item in value):
            return tuple(value)
        return tuple(parse_typed(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if origin in (typing.Union, types.UnionType):
        for option in arguments:
            base = typing.get_args(option)[0] if typing.get_origin(option) is Annotated else option
            json_type = dict if dataclasses.is_dataclass(base) else list if typing.get_origin(base) is tuple else base
            if type(value) is json_type or (base is float and type(value) is int):
                return parse_typed(option, value, where)
    elif type(value) is kind:
        return value
    elif kind is float and type(value) is int:
        return float(value)
    raise UserError(f"{MANIFEST_NAME}: entry {entry} has the wrong kind of value: {json.dumps(value)[:60]}.")


@cache
def _entries(kind: type) -> tuple[dict[str, Any], dict[str, dataclasses.Field[Any]]]:
    """Types and fields of a dataclass; evaluating its annotations takes longer than parsing an entry."""
    return typing.get_type_hints(kind, include_extras=True), {entry.name: entry for entry in dataclasses.fields(kind)}


def _parse_dataclass(kind: type, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise UserError(f"{MANIFEST_NAME}: entry {where.lstrip('.')} must be an object.")
    hints, entries = _entries(kind)
    for name in value:
        if name not in entries:
            raise UserError(f"{MANIFEST_NAME}: entry {f'{where}.{name}'.lstrip('.')} is unknown.")
    parsed = {}
    for name, entry in entries.items():
        if name in value:
            parsed[name] = parse_typed(hints[name], value[name], f"{where}.{name}")
        elif entry.default is dataclasses.MISSING and entry.default_factory is dataclasses.MISSING:
            raise UserError(f"{MANIFEST_NAME}: entry {f'{where}.{name}'.lstrip('.')} is missing.")
    return kind(**parsed)
