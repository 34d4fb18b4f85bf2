"""Paths inside a bundle: plain ones that every operating system takes for the same file."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

from ...errors import UserError
from .typed_json import MANIFEST_NAME, NEVER

_RESERVED = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9\u00b9\u00b2\u00b3])(\..*)?", re.I)
"""Names that are devices on Windows, whatever their ending."""
_UNSAFE = re.compile('[\x00-\x1f\x7f-\x9f*?"<>|\ud800-\udfff\u200e\u200f\u2028-\u202e\u2066-\u2069]')
"""Control characters, wildcards, halves of characters, and what turns the direction of text."""


def check_inner_path(path: str) -> None:
    """Refuse a path that is absolute, climbs out of the bundle, or that some operating system takes for another one.

    Raises:
        UserError: it is not a plain path with slashes.
    """
    parts = PurePosixPath(path).parts
    fault = ""
    if not parts or path.startswith("/") or "\\" in path or ":" in path or ".." in parts:
        fault = "is outside the bundle"
    too_long = len(path) > 1000 or any(len(part.encode("utf-8", "replace")) > 255 for part in parts)
    if too_long or "/".join(parts) != path or _UNSAFE.search(path) or any(map(_RESERVED.fullmatch, parts)):
        fault = fault or "is no plain path"
    if fault:
        raise UserError(f"{MANIFEST_NAME} names {path[:200]!r}, which {fault}: {NEVER}.")
