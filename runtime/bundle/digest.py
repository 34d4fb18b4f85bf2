"""One hash that stands for a manifest, and with it for every file that it records.

The canonical form is JSON with sorted keys, no spaces and no characters beyond ASCII. An entry that holds its default
is left out, so that a manifest has the same digest whether it spells its defaults or not, and whatever optional entries
a later version of this program knows.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from pathlib import Path
from typing import Any

from ...errors import UserError


def digest_of(manifest: Any) -> str:
    """SHA-256, 64 hexadecimal digits, of a dataclass of dataclasses, mappings, sequences and what JSON holds."""
    text = json.dumps(_canonical(manifest), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def check_digest(found: str, expected: str, bundle: Path) -> None:
    """Refuse a bundle that is not the expected one.

    Raises:
        UserError: `expected` is no SHA-256, or another one than `found`; the sentence has both.
    """
    wanted = expected.strip().lower() if isinstance(expected, str) else ""
    if not re.fullmatch(r"[0-9a-f]{64}", wanted):
        raise UserError(
            f"expected digest {str(expected)[:80]!r} is no SHA-256: give the 64 hexadecimal digits that "
            "'consisti2v inspect BUNDLE' prints."
        )
    if found != wanted:
        raise UserError(
            f"bundle {bundle} has the digest {found}, not {wanted} as expected: use the bundle that was meant, or give "
            "the digest that 'consisti2v inspect BUNDLE' prints."
        )


def _canonical(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        entries = {entry.name: (entry, getattr(value, entry.name)) for entry in dataclasses.fields(value)}
        return {name: _canonical(item) for name, (entry, item) in entries.items() if item != _default(entry)}
    if isinstance(value, dict):
        return {key: _canonical(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_canonical(item) for item in value]
    return value


def _default(entry: dataclasses.Field[Any]) -> Any:
    return entry.default if entry.default_factory is dataclasses.MISSING else entry.default_factory()
