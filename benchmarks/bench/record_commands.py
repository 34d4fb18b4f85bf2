"""``consisti2v bench``: what is done with records that exist."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def compare(
    before: Annotated[Path, typer.Argument(help="JSON record.")],
    after: Annotated[Path, typer.Argument(help="JSON record of the same kind.")],
) -> None:
    """Say of every row whether it became faster, slower, or stayed within noise.

    They differ where the ratio of the medians is further from 1 than 3 % and than its 95 % interval, which comes from
    the spread of the raw samples.
    """
    from rich.markup import escape

    from ...runtime.commands.console import echo, make_console
    from .compare import compare_records, comparison_table, differences, summary
    from .record import read_record

    first, second = read_record(before), read_record(after)
    rows = compare_records(first, second)
    console = make_console(markup=True)
    console.print(comparison_table(rows))
    for line in differences(first, second):
        console.print(f"[yellow]{escape(line)}[/]", highlight=False)
    echo(summary(rows))


def report(
    records: Annotated[list[Path], typer.Argument(help="JSON records, and predictions by 'bench predict --output'.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Markdown file to write.")] = None,
    readme: Annotated[
        Path | None,
        typer.Option(help="Markdown file that takes it in between <!-- bench:begin --> and <!-- bench:end -->."),
    ] = None,
) -> None:
    """Draw a picture beside each record and write a Markdown report."""
    from ...runtime.commands.console import echo, plain
    from ...runtime.errors import UserError
    from .report import write_report

    if (output is None) == (readme is None):
        raise UserError("give either --output for a report of its own, or --readme for a file that takes it in.")
    target = output or readme
    assert target is not None
    if readme is not None and not readme.is_file():
        raise UserError(f"{readme} does not exist: give the file that holds the two marks, or --output.")
    for path in write_report(records, target):
        echo(plain(path))
