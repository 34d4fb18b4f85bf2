"""Listings of media and captions: CSV or JSONL, in the columns of WebVid or in plain ones."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...runtime.errors import UserError

_PATHS = ("path", "video", "image", "file")
_CAPTIONS = ("caption", "prompt", "text", "name")


@dataclass(frozen=True)
class ListedFile:
    """One row: a file that exists, and its caption."""

    name: str
    """As the listing names it."""
    path: Path
    caption: str


def read_listing(path: str | os.PathLike[str], root: str | os.PathLike[str] | None = None) -> list[ListedFile]:
    """Read a listing.

    Columns: the file in ``path``, ``video``, ``image`` or ``file``, else ``page_dir`` and ``videoid`` as in WebVid
    (``page_dir/videoid.mp4``; Bain et al. 2021, arXiv:2104.00650); the caption in ``caption``, ``prompt``, ``text``
    or ``name`` (WebVid's).

    Args:
        path: a .csv with a header, or a .jsonl with an object a line; UTF-8.
        root: folder that the paths start from; None: the listing's own.

    Raises:
        UserError: unreadable, empty, a row without file or caption, a path that leaves `root`, or no such file.
    """
    listing = Path(path)
    base = Path(root) if root is not None else listing.parent
    rows = list(_rows(listing))
    if not rows:
        raise UserError(f'the listing "{listing}" holds no rows: give a file and a caption in each.')
    listed = [_listed(row, f'"{listing}", row {number}', base) for number, row in enumerate(rows, 1)]
    names = [entry.name for entry in listed]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f'the listing "{listing}" names {twice!r} twice: keep one row for each file.')
    return listed


def _rows(listing: Path) -> Iterator[Mapping[str, Any]]:
    try:
        text = listing.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError):
        raise UserError(f'the listing "{listing}" cannot be read: give a UTF-8 .csv or .jsonl file.') from None
    if listing.suffix.lower() == ".csv":
        yield from csv.DictReader(text.splitlines())
    elif listing.suffix.lower() in (".jsonl", ".ndjson"):
        for number, line in enumerate(text.splitlines(), 1):
            if line.strip():
                try:
                    row = json.loads(line)
                except ValueError:
                    row = None
                if not isinstance(row, dict):
                    raise UserError(f'"{listing}", line {number} is not a JSON object: write one object a line.')
                yield row
    else:
        raise UserError(f'the listing "{listing}" must end in .csv or .jsonl.')


def _listed(row: Mapping[str, Any], where: str, base: Path) -> ListedFile:
    name = next((str(row[key]) for key in _PATHS if row.get(key)), None)
    if name is None and row.get("videoid"):
        name = f"{row.get('page_dir') or '.'}/{row['videoid']}.mp4"
    caption = next((str(row[key]) for key in _CAPTIONS if row.get(key) is not None), None)
    if name is None or caption is None:
        raise UserError(
            f"{where} lacks {'a file' if name is None else 'a caption'}: "
            f"use the columns {', '.join(_PATHS)} (or page_dir, videoid) and {', '.join(_CAPTIONS)}."
        )
    file = base / name
    if not file.resolve().is_relative_to(base.resolve()):
        raise UserError(f"{where} names {name!r}, outside {base}: use paths below the listing's folder.")
    if not file.exists():
        raise UserError(f"{where} names {name!r}, which is not in {base}: put it there, or give the right root.")
    return ListedFile(name, file, caption)
