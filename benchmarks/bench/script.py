"""The frame of a measuring script: its record's place is checked first, then it is made, shown and written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer

from ...errors import UserError
from ...runtime.commands.console import print_error
from .outcome import check_place
from .record import write_text


def run_script(
    output: Path | None, measure: Callable[[], dict[str, Any]], show: Callable[[dict[str, Any]], None]
) -> None:
    """Measure, show, and write the record where a place is given.

    Raises:
        typer.Exit: with code 2, a refusal having been told in one sentence.
    """
    try:
        if output is not None:
            check_place(output)
        record = measure()
        show(record)
        if output is not None:
            write_text(output, json.dumps(record, indent=2) + "\n")
    except UserError as error:
        print_error(error)
        raise typer.Exit(2) from None
