"""Where the terminal is written to: every console is made here, and every text passes through one filter.

Names in manifests, file names, prompts and messages of libraries may hold terminal escapes, control characters,
bidirectional overrides and rich's markup. None of them reaches the terminal; the styles that this program sets do.
"""

from __future__ import annotations

import argparse
import io
import logging
import os
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import typer
from rich.box import HEAVY_HEAD, Box
from rich.console import Console, ConsoleOptions, RenderableType
from rich.logging import RichHandler
from rich.segment import Segment
from rich.table import Table
from rich.text import Text
from typer.core import TyperGroup

_NO_LINES = Box("    \n    \n -- \n    \n -- \n    \n    \n    \n", ascii=True)


def plain(text: object) -> str:
    """`text` on one line: what is not printable (control and format characters, line ends) becomes a space."""
    shown = str(text)
    if shown.isprintable():
        return shown
    return "".join(character if character.isprintable() else " " for character in shown)


def plain_lines(text: object) -> str:
    """As :func:`plain`, line by line."""
    return "\n".join(plain(line) for line in str(text).split("\n"))


def echo(text: object, *, err: bool = False, nl: bool = True) -> None:
    """Write lines to standard output, or the error stream. A name within a line goes through :func:`plain` first."""
    typer.echo(plain_lines(text), err=err, nl=nl)


class PlainConsole(Console):
    """A console that writes printable characters, line ends and its own styles.

    In a pipe, with NO_COLOR and under TERM=dumb it draws tables and bars in ASCII, without any styling.
    """

    def __init__(self, **options: Any) -> None:
        if os.environ.get("NO_COLOR"):
            # rich alone would keep bold and dim.
            options["color_system"] = None
        super().__init__(**options)

    @property
    def is_plain(self) -> bool:
        """No terminal, one that only takes lines, or a user who asked for no styling."""
        return self.no_color or not self.is_terminal or self.is_dumb_terminal

    @property
    def encoding(self) -> str:
        """rich draws boxes and bars in ASCII for an encoding that is not UTF-8; text is written as it is."""
        return "ascii" if self.is_plain else super().encoding

    def render_str(self, text: str, **options: Any) -> Text:
        # Before the text is measured, so that tables stay in shape.
        return super().render_str(plain_lines(text), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            if segment.control or segment.text.isprintable():
                yield segment
            else:
                yield Segment(plain_lines(segment.text), segment.style)


def make_console(*, stderr: bool = False, markup: bool = False, soft_wrap: bool = False) -> PlainConsole:
    """A console of standard output, or the error stream.

    Args:
        markup: for texts of which every foreign part is escaped.
        soft_wrap: leave the wrapping of lines to the terminal.
    """
    return PlainConsole(stderr=stderr, markup=markup, emoji=False, highlight=False, soft_wrap=soft_wrap)


def table_console() -> PlainConsole:
    """A console of standard output. In a pipe its lines are not broken, unless ``COLUMNS`` says where."""
    if sys.stdout.isatty() or "COLUMNS" in os.environ:
        return make_console()
    console = PlainConsole(file=_Trimmed(), markup=False, emoji=False, highlight=False)
    console.width = 1000
    return console


class _Trimmed(io.StringIO):
    """Standard output without the spaces that rich fills cells up with at the ends of lines."""

    def write(self, text: str) -> int:
        sys.stdout.write(re.sub(r" +$", "", text, flags=re.MULTILINE))
        return len(text)

    def flush(self) -> None:
        sys.stdout.flush()


def make_table(console: PlainConsole, title: str, *columns: str, **options: Any) -> Table:
    """A table with lines on a terminal, in columns without lines where nobody looks or ``TERM`` is dumb."""
    box = _NO_LINES if console.is_plain else HEAVY_HEAD
    return Table(*columns, title=title, box=box, title_justify="left", show_header=bool(columns), **options)


def size_text(count: int) -> str:
    """Bytes in the unit that suits them."""
    size, unit = float(count), "B"
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024 or unit == "GiB":
            break
        size /= 1024
    return f"{size:.1f} {unit}"


def note(console: Console, text: str, label: str = "note:", style: str = "yellow") -> None:
    """One line behind a coloured label."""
    console.print(Text.assemble((label, style), f" {plain(text)}"), soft_wrap=True)


def log_to(console: Console) -> None:
    """Send what this program and its libraries log, and warnings of Python, to a console."""
    handler = RichHandler(console=console, show_time=False, show_path=False, markup=False)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[handler])
    logging.captureWarnings(True)
    # It logs what it raises as well, and what a picture's unused metadata lacks.
    logging.getLogger("PIL").setLevel(logging.CRITICAL)


class PlainGroup(TyperGroup):
    """A group of commands whose usage errors show what was typed without control characters."""

    def make_context(self, *args: Any, **options: Any) -> Any:
        with _plain_usage_errors():
            return super().make_context(*args, **options)

    def invoke(self, ctx: Any) -> Any:
        with _plain_usage_errors():
            return super().invoke(ctx)


@contextmanager
def _plain_usage_errors() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if hasattr(error, "format_message"):
            message = plain(error.format_message())
            error.format_message = lambda: message  # type: ignore[attr-defined]
        raise


class PlainParser(argparse.ArgumentParser):
    """The same for scripts with argparse."""

    def error(self, message: str) -> NoReturn:
        super().error(plain(message))


def print_error(error: BaseException | str) -> None:
    """One sentence on the error stream."""
    print(f"error: {plain(error)}", file=sys.stderr)
