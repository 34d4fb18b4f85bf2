"""The record of a batch: a line of JSON for each row that was tried, appended as soon as the row has ended."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..runtime.files.file_lock import locked
from ..runtime.files.guarded_read import parse_json

NAME = "results.jsonl"


class Results:
    """``results.jsonl`` of one folder; made by :func:`open_results`, which keeps other batches out of the folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / NAME
        self._last = {line["key"]: line for line in _lines(self.file)}

    def is_done(self, key: str, bundle: str) -> bool:
        """The row was finished by this bundle and its files are there."""
        line = self._last.get(key, {})
        files = line.get("files")
        return (
            line.get("error", "") is None
            and line.get("bundle") == bundle
            and isinstance(files, list)
            and all(isinstance(name, str) and os.path.isfile(self.folder / name) for name in files)  # noqa: PTH113
        )

    def add(self, line: Mapping[str, Any]) -> None:
        """Append a line; it is on the disk when this returns."""
        text = json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n"
        with self.file.open("a", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        self._last[line["key"]] = dict(line)


@contextmanager
def open_results(folder: Path) -> Iterator[Results]:
    """The results of a folder, which is made if it is not there.

    Raises:
        UserError: the folder cannot be made or written to, or another batch writes to it.
    """

    def refuse(holder: str) -> None:
        raise UserError(f'"{folder}" is in use by {holder}: wait for it, or choose another folder.')

    try:
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder / ".batch.lock", refuse):
            yield Results(folder)
    except OSError as error:
        raise UserError(
            f'the folder "{folder}" cannot be written to ({error.strerror}): check the free space and the permissions, '
            "or choose another one."
        ) from None


def _lines(file: Path) -> Iterator[dict[str, Any]]:
    """The whole lines of the file. What a killed process wrote half is cut off, so that the next line starts anew."""
    try:
        content = file.read_bytes()
    except FileNotFoundError:
        return
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        os.truncate(file, whole)
    for number, text in enumerate(content[:whole].splitlines(), 1):
        try:
            line = parse_json(text)
            if not isinstance(line["key"], str):
                raise TypeError
        except (ValueError, TypeError, KeyError):
            raise UserError(
                f'"{file}", line {number} is no line that a batch wrote: choose another folder, or move the file away.'
            ) from None
        yield line
