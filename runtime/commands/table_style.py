"""How tables look: with lines on a terminal, in plain ASCII where ``TERM`` is dumb or nobody looks."""

from __future__ import annotations

import os
import sys
from typing import Any

from rich.box import HEAVY_HEAD, Box
from rich.console import Console

_PLAIN = Box("    \n    \n -- \n    \n -- \n    \n    \n    \n", ascii=True)
_UNBROKEN = 1000


def table_console(*, stderr: bool = False) -> Console:
    """A console for text that is no markup. In a pipe lines are not broken, unless ``COLUMNS`` says where."""
    piped = not (sys.stderr if stderr else sys.stdout).isatty() and "COLUMNS" not in os.environ
    return Console(stderr=stderr, markup=False, emoji=False, highlight=False, width=_UNBROKEN if piped else None)


def table_style(console: Console) -> dict[str, Any]:
    """Arguments of a ``rich.table.Table`` that is printed to the console."""
    plain = not console.is_terminal or console.is_dumb_terminal
    return {"box": _PLAIN if plain else HEAVY_HEAD, "title_justify": "left"}
