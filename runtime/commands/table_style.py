"""How tables look: with lines on a terminal, in columns without lines where nobody looks or ``TERM`` is dumb."""

from __future__ import annotations

import os
import sys
from typing import Any

from rich.box import HEAVY_HEAD, Box

from .console import PlainConsole, make_console

_PLAIN = Box("    \n    \n -- \n    \n -- \n    \n    \n    \n", ascii=True)
_UNBROKEN = 1000


def table_console() -> PlainConsole:
    """A console of standard output. In a pipe its lines are not broken, unless ``COLUMNS`` says where."""
    console = make_console()
    if not sys.stdout.isatty() and "COLUMNS" not in os.environ:
        console.width = _UNBROKEN
    return console


def table_style(console: PlainConsole) -> dict[str, Any]:
    """Arguments of a ``rich.table.Table`` that is printed to the console."""
    return {"box": _PLAIN if console.is_plain else HEAVY_HEAD, "title_justify": "left"}
