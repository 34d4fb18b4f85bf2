"""Listings of media and captions: CSV or JSONL, in the columns of WebVid or in plain ones."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import UserError
from ..files.guarded_read import LISTING, csv_rows, json_lines, parse_json, read_text

MAX_ROWS = 10_000
"""Of a listing, where no other limit is given; WebVid's validation set has 5,000."""
_PATHS = ("path", "video", "image", "file")
_CAPTIONS = ("caption", "prompt", "text", "name")
NAMING = (*_PATHS, *_CAPTIONS, "page_dir", "videoid")
"""Columns that give the file and the caption."""


@dataclass(frozen=True)
class ListedFile:
    """One row: a file that exists, and its caption."""

    name: str
    """As the listing names it."""
    path: Path
    caption: str


def read_listing(
    path: str | os.PathLike[str], root: str | os.PathLike[str] | None = None, *, max_rows: int = MAX_ROWS
) -> list[ListedFile]:
    """Read a listing.

    Columns: the file in ``path``, ``video``, ``image`` or ``file``, else ``page_dir`` and ``videoid`` as in WebVid
    (``page_dir/videoid.mp4``; Bain et al. 2021, arXiv:2104.00650); the caption in ``caption``, ``prompt``, ``text``
    or ``name`` (WebVid's).

    Args:
        path: a .csv with a header, or a .jsonl with an object a line; UTF-8.
        root: folder that the paths start from; None: the listing's own.
        max_rows: a listing with more rows is refused, so that a wrong file does not start hours of work.

    Raises:
        UserError: unreadable, empty or too long, a row without file or caption, a path that leaves `root`, or no such
            file.
    """
    listing = Path(path)
    base = Path(root) if root is not None else listing.parent
    listed: list[ListedFile] = []
    for number, row in listing_rows(listing):
        if len(listed) == max_rows:
            raise UserError(
                f'the listing "{listing}" has more than {max_rows} rows: shorten it, or raise the limit with '
                "--max-rows."
            )
        listed.append(listed_file(row, f'"{listing}", line {number}', base))
    if not listed:
        raise UserError(f'the listing "{listing}" holds no rows: give a file and a caption in each.')
    twice, count = Counter(entry.name for entry in listed).most_common(1)[0]
    if count > 1:
        raise UserError(f'the listing "{listing}" names {twice!r} twice: keep one row for each file.')
    return listed


def listing_rows(listing: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Every row of a listing as it stands, with the number of its line.

    Raises:
        UserError: no such file, another suffix, or no CSV or JSONL; with a generator, when the row is reached.
    """
    suffix = listing.suffix.lower()
    if suffix not in (".csv", ".jsonl", ".ndjson"):
        # os.path answers for names that are too long, where Path raises.
        fault = "must end in .csv or .jsonl" if os.path.lexists(listing) else "does not exist"
        raise UserError(f'the listing "{listing}" {fault}: give a .csv or .jsonl file in UTF-8.')
    text = read_text(listing, LISTING, f'the listing "{listing}"')
    if suffix == ".csv":
        try:
            yield from csv_rows(text)
        except UserError:
            raise
        except ValueError as error:
            raise UserError(f'the listing "{listing}" {error}: save it as plain CSV again.') from None
        return
    for number, line in json_lines(text):
        fault = "it is another value"
        try:
            row = parse_json(line)
        except ValueError as error:
            row, fault = None, str(error)
        if not isinstance(row, dict):
            raise UserError(f'"{listing}", line {number} is not a JSON object ({fault}): write one object a line.')
        yield number, row


def listed_file(row: Mapping[str, Any], where: str, base: Path) -> ListedFile:
    """The file and the caption of a row.

    Args:
        where: what a refusal calls the row.
        base: folder that the paths start from.

    Raises:
        UserError: no file or caption, a path that leaves `base`, or no such file.
    """
    known = {key: row[key] for key in NAMING if row.get(key) is not None}
    for key, value in known.items():
        if not isinstance(value, str | int) or isinstance(value, bool):
            raise UserError(f"{where} has a {key} that is no text: write the file and the caption in quotes.")
    name = next((str(known[key]) for key in _PATHS if known.get(key)), None)
    if name is None and known.get("videoid"):
        name = f"{known.get('page_dir') or '.'}/{known['videoid']}.mp4"
    caption = next((str(known[key]) for key in _CAPTIONS if key in known), None)
    if name is None or caption is None:
        raise UserError(
            f"{where} lacks {'a file' if name is None else 'a caption'}: "
            f"use the columns {', '.join(_PATHS)} (or page_dir, videoid) and {', '.join(_CAPTIONS)}."
        )
    file = base / name
    # os.path answers for names that are too long, where Path raises.
    if not Path(os.path.realpath(file)).is_relative_to(os.path.realpath(base)):
        raise UserError(f"{where} names {name!r}, outside {base}: use paths below the listing's folder.")
    if not os.path.exists(file):  # noqa: PTH110
        raise UserError(f"{where} names {name!r}, which is not in {base}: put it there, or give the right root.")
    return ListedFile(name, file, caption)
