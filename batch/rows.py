"""The rows of a batch: a photo, a prompt and any setting, and what identifies a row when the batch is run again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..runtime.files.guarded_read import parse_json
from ..runtime.media.listing import NAMING, listed_file, listing_rows
from ..runtime.request.option_table import OPTIONS, canonical_options
from ..runtime.request.settings import GenerationSettings

_TEXTS = {name for name, option in OPTIONS.items() if option.kind is str} | {"negative_prompt"}


@dataclass(frozen=True)
class BatchRow:
    """One row of a listing; `fault` says why it cannot be run."""

    line: int
    image: str
    """As the listing names it."""
    path: str
    """The photo's file."""
    prompt: str
    options: dict[str, Any]
    """Settings that the row names, under their own names."""
    settings: GenerationSettings
    """The row's options over those of the command, with a seed."""
    key: str
    """SHA-256 of photo, prompt and settings: what the row asks for, wherever it stands and runs."""
    fault: str | None = None

    @property
    def stem(self) -> str:
        """Of the row's files: the photo's own, and enough of the key that no two rows share it."""
        return f"{Path(self.image).stem[:80]}-{self.key[:10]}"

    def result(self, error: str | None) -> dict[str, Any]:
        """The row's line of the results file, with what is known before it ran."""
        named = {"key": self.key, "line": self.line, "image": self.image, "prompt": self.prompt}
        return named | {"settings": self.options, "bundle": None, "files": [], "seconds": 0.0, "error": error}


def read_rows(
    listing: Path, root: Path | None, settings: GenerationSettings, max_rows: int
) -> tuple[list[BatchRow], int]:
    """The rows of a listing, each once, and the number of rows that repeat an earlier one.

    A row that is wrong has a `fault` and does not end the batch. A row without a seed gets one from its photo's name,
    its prompt and its options, so that a video depends neither on the order of the rows nor on where they run.

    Args:
        listing: .csv with a header, or .jsonl; columns as :func:`read_listing` knows them, and any setting.
        root: folder that the paths start from; None: the listing's own.
        settings: of every row, where the row says nothing else.
        max_rows: a longer listing is refused.

    Raises:
        UserError: the listing cannot be read, is empty or too long.
    """
    base = listing.parent if root is None else root
    rows: dict[str, BatchRow] = {}
    count = 0
    for line, values in listing_rows(listing):
        count += 1
        if count > max_rows:
            raise UserError(
                f'the listing "{listing}" has more than {max_rows} rows: shorten it, or raise the limit with '
                "--max-rows."
            )
        row = _row(line, values, base, settings)
        rows.setdefault(row.key, row)
    if not rows:
        raise UserError(f'the listing "{listing}" holds no rows: give a file and a caption in each.')
    return list(rows.values()), count - len(rows)


def _row(line: int, values: Mapping[str, Any], base: Path, settings: GenerationSettings) -> BatchRow:
    try:
        listed = listed_file(values, "the row", base)
        options = dict(_options(values))
        chosen = GenerationSettings.from_options(options, settings)
        size = Path(listed.path).stat().st_size
    except (UserError, OSError) as error:
        key = _digest("fault", line, {name: str(value) for name, value in values.items()})
        return BatchRow(line, "", "", "", {}, settings, key, str(error))
    if chosen.seed is None:
        chosen = replace(chosen, seed=int(_digest(listed.name, listed.caption, options)[:8], 16) >> 1)
    key = _digest(listed.name, size, listed.caption, vars(chosen))
    return BatchRow(line, listed.name, str(Path(listed.path).absolute()), listed.caption, options, chosen, key)


def _options(values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The settings that a row names; empty cells name nothing, and cells of a CSV are read as JSON where they are."""
    given = {name: value for name, value in values.items() if name not in NAMING and value not in (None, "")}
    for name, value in canonical_options(given).items():
        if isinstance(value, str) and name not in _TEXTS:
            with suppress(ValueError):  # what is no JSON is refused by name, with what is allowed
                value = parse_json(value)
        yield name, value


def _digest(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()
