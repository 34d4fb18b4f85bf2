"""The one reader for JSON, CSV and text files that come from outside.

A file is opened only if it is a regular one, read up to a limit that depends on what it is for, and parsed strictly.
Whatever is wrong with it becomes one :class:`UserError` with the file's name and the remedy.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
import re
import stat
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from ...errors import UserError

MIB = 1 << 20
MAX_DEPTH = 64
"""Levels of lists and objects in JSON; the deepest file of ours has about ten."""
_MAX_INTEGER = (1 << 64) - 1
_MAX_FIELD = MIB
_KINDS = (
    (stat.S_ISDIR, "is a folder"),
    (stat.S_ISFIFO, "is a pipe"),
    (stat.S_ISSOCK, "is a socket"),
    (stat.S_ISCHR, "is a device"),
    (stat.S_ISBLK, "is a device"),
)
# Half a surrogate pair cannot be encoded again, and no name or caption holds a NUL.
_NO_TEXT = re.compile("[\0\ud800-\udfff]")


@dataclass(frozen=True)
class FileKind:
    """What a file is for: how large it may be, and what to do where it cannot be read."""

    max_bytes: int
    remedy: str

    def __call__(self, remedy: str) -> FileKind:
        """The same limit with another remedy."""
        return FileKind(self.max_bytes, remedy)


MANIFEST = FileKind(16 * MIB, "export the bundle again")
TOKENIZER = FileKind(64 * MIB, "export the bundle again")
PRESETS = FileKind(MIB, "make it again with 'consisti2v tune', or delete it")
LOSSES = FileKind(16 * MIB, "make it again with 'consisti2v build'")
CONFIG = FileKind(MIB, "give a JSON file of options")
WEIGHT_INDEX = FileKind(16 * MIB, "download the folder again")
MODEL_CARD = FileKind(4 * MIB, "download the folder again")
RECORD = FileKind(32 * MIB, "give a JSON file that 'consisti2v bench' wrote")
REPORT = FileKind(32 * MIB, "give a Markdown file")
LISTING = FileKind(256 * MIB, "give a UTF-8 .csv or .jsonl file")


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a file for reading if it is a regular one. Pipes and devices are neither opened nor waited for.

    Raises:
        ValueError: it is no regular file, or cannot be opened; the message continues a sentence that begins with its
            name ("is a pipe, not a regular file").
    """
    if "\0" in os.fsdecode(path):
        raise ValueError("is no possible name of a file")
    try:
        _check_regular(Path(path).stat().st_mode)
        # Between the check and the opening the file may have been exchanged for a pipe.
        names = ("O_NONBLOCK", "O_NOCTTY", "O_CLOEXEC", "O_BINARY")
        file = os.fdopen(os.open(path, os.O_RDONLY | sum(getattr(os, name, 0) for name in names)), "rb")
    except FileNotFoundError:
        raise ValueError("does not exist") from None
    except OSError as error:
        raise ValueError(f"cannot be read ({error.strerror})") from None
    try:
        _check_regular(os.fstat(file.fileno()).st_mode)
    except BaseException:
        file.close()
        raise
    return file


def _check_regular(mode: int) -> None:
    if not stat.S_ISREG(mode):
        found = next((text for is_kind, text in _KINDS if is_kind(mode)), "is of an unknown kind")
        raise ValueError(f"{found}, not a regular file")


def read_bytes(path: str | os.PathLike[str], kind: FileKind, name: str | None = None) -> bytes:
    """The whole content of a regular file.

    Args:
        kind: the limit and the remedy.
        name: what the message calls the file; None: its path.

    Raises:
        UserError: it is missing, unreadable, no regular file, or larger than the limit.
    """
    with _refusals(path, kind, name):
        return _content(path, kind)


def read_text(path: str | os.PathLike[str], kind: FileKind, name: str | None = None) -> str:
    """The content of a UTF-8 text file, without a byte order mark; :class:`UserError` as :func:`read_bytes`."""
    with _refusals(path, kind, name):
        return decode(_content(path, kind))


def read_json(path: str | os.PathLike[str], kind: FileKind, name: str | None = None) -> Any:
    """The value of a JSON file, parsed as :func:`parse_json` does; :class:`UserError` as :func:`read_bytes`."""
    with _refusals(path, kind, name):
        content = _content(path, kind)
        try:
            return parse_json(content)
        except ValueError as error:
            raise ValueError(f"is not valid JSON ({error})") from None


def read_json_object(path: str | os.PathLike[str], kind: FileKind, name: str | None = None) -> dict[str, Any]:
    """As :func:`read_json`, for a file that holds an object."""
    value = read_json(path, kind, name)
    with _refusals(path, kind, name):
        if not isinstance(value, dict):
            raise ValueError("does not hold a JSON object")
    return value


@contextmanager
def _refusals(path: str | os.PathLike[str], kind: FileKind, name: str | None) -> Iterator[None]:
    """What is raised within continues a sentence that begins with the file's name."""
    try:
        yield
    except (OSError, ValueError) as error:
        fault = f"cannot be read ({error.strerror})" if isinstance(error, OSError) else error
        raise UserError(f"{Path(path) if name is None else name} {fault}: {kind.remedy}.") from None


def _content(path: str | os.PathLike[str], kind: FileKind) -> bytes:
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > kind.max_bytes:
            raise ValueError(f"has more than {kind.max_bytes // MIB} MiB, the most for such a file")
        # One more than there should be: a file of /proc has a size of 0 and any content.
        content = file.read(size + 1)
    if len(content) > size:
        raise ValueError("has more content than its size says")
    return content


def decode(content: bytes) -> str:
    """UTF-8 bytes as text; a byte order mark in front is dropped.

    Raises:
        ValueError: another encoding, or NUL characters; the message continues a sentence.
    """
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise ValueError("is UTF-16 text, not UTF-8")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"is not UTF-8 text (byte {error.start})") from None
    if "\0" in text:
        raise ValueError("holds a NUL character, which no text has")
    return text


def parse_json(content: str | bytes) -> Any:
    """Strict JSON: no NaN or Infinity, no number that does not fit, no entry twice, no half surrogate pair or NUL in a
    text, and at most :data:`MAX_DEPTH` levels.

    Raises:
        ValueError: what is wrong, in a few words.
    """
    text = decode(content) if isinstance(content, bytes) else content
    try:
        numbers: Any = {"parse_int": _number, "parse_float": _number, "parse_constant": _no_number}
        value = json.loads(text, object_pairs_hook=unique_entries, **numbers)
    except RecursionError:
        raise ValueError(f"more than {MAX_DEPTH} levels") from None
    _check_levels(value)
    return value


def _number(digits: str) -> int | float:
    # int() takes time that grows with the square of the digits.
    is_whole = digits.lstrip("-").isdigit()
    number = float(digits) if len(digits) > 20 or not is_whole else int(digits)
    if math.isinf(number) or (is_whole and (len(digits) > 20 or abs(number) > _MAX_INTEGER)):
        raise ValueError(f"number {_short(digits)} does not fit")
    return number


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def unique_entries(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The entries of a JSON object as a mapping, for ``json.loads``.

    Raises:
        ValueError: a name that is there twice, which other parsers read in another way.
    """
    entries = dict(pairs)
    if len(entries) < len(pairs):
        twice, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        raise ValueError(f"entry {_short(twice)!r} is there twice")
    return entries


def _check_levels(value: Any) -> None:
    """Depth and texts, without recursion."""
    level, depth = [value], 0
    while level:
        deeper: list[Any] = []
        for item in level:
            if isinstance(item, str):
                if _NO_TEXT.search(item):
                    raise ValueError(f"{_short(item)!r} holds a NUL or half a surrogate pair")
            elif isinstance(item, dict | list) and depth == MAX_DEPTH:
                raise ValueError(f"more than {MAX_DEPTH} levels")
            elif isinstance(item, dict):
                deeper += item
                deeper += item.values()
            elif isinstance(item, list):
                deeper += item
        level, depth = deeper, depth + 1


def json_lines(text: str) -> Iterator[tuple[int, str]]:
    """The lines of a JSONL text that are not blank, with their numbers; only a line feed ends a line, since JSON's
    texts may hold U+2028, U+2029 and U+0085.
    """
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield number, line


def csv_rows(text: str) -> Iterator[tuple[int, dict[str, str]]]:
    """The rows of a CSV text below its header, each with the number of its last line; blank rows are passed over.

    Raises:
        ValueError: a field longer than a megabyte, a quote that is not closed, a row with more fields than the header,
            or a header that names a column twice; the message continues a sentence.
    """
    previous = csv.field_size_limit(_MAX_FIELD)
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    header: list[str] | None = None
    try:
        for fields in reader:
            if not any(field.strip() for field in fields):
                continue
            if header is None:
                header = [field.strip() for field in fields]
                twice = next((name for name in header if name and header.count(name) > 1), None)
                if twice is not None:
                    raise ValueError(f"names the column {_short(twice)!r} twice")
                continue
            if len(fields) > len(header):
                raise ValueError(f"has more fields in line {reader.line_num} than columns in its header")
            yield reader.line_num, dict(zip(header, fields, strict=False))
    except csv.Error as error:
        raise ValueError(f"is not valid CSV in line {reader.line_num} ({error})") from None
    finally:
        csv.field_size_limit(previous)


def _short(text: str) -> str:
    return text if len(text) <= 24 else f"{text[:24]}..."
