"""``consisti2v bench``: what is done with records that exist."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer


class FailOn(str, Enum):
    """Verdicts that a script may want to fail on."""

    SLOWER = "slower"
    TOO_FEW = "too-few-samples"


def compare(
    before: Annotated[Path, typer.Argument(help="JSON record.")],
    after: Annotated[Path, typer.Argument(help="JSON record of the same kind.")],
    force: Annotated[
        bool, typer.Option("--force", help="Compare records of different bundles, settings or machines.")
    ] = False,
    fail_on: Annotated[
        list[FailOn] | None, typer.Option(help="Exit with code 1 where a row has this verdict; may be repeated.")
    ] = None,
) -> None:
    """Say of every row whether it became faster or slower, shows no difference, or has too few samples.

    The test is the 95 % bootstrap interval of the ratio of the medians; it is printed with the result. Records of
    different bundles, settings or machines are refused. Exit code: 0; 1 where --fail-on applies; 2 for a refusal.
    """
    from rich.markup import escape

    from ...runtime.commands.console import echo, make_console
    from .comparability import check_comparable, notes
    from .compare import compare_records, comparison_table, summary
    from .record import read_record
    from .statistics import METHOD

    first, second = read_record(before), read_record(after)
    differences = check_comparable(first, second, (str(before), str(after)), force=force)
    rows, left_out = compare_records(first, second)
    console = make_console(markup=True, soft_wrap=True)
    console.print(comparison_table(rows, forced=bool(differences)))
    warnings = [f"Warning: not the same {part}: {'; '.join(told)}." for part, told in differences.items()]
    if left_out:
        warnings.append(f"Not compared: {', '.join(left_out)}.")
    for line in (*warnings, *notes(first, second)):
        console.print(f"[yellow]{escape(line)}[/]", highlight=False)
    console.print(escape(METHOD), highlight=False)
    echo(summary(rows, list(differences)))
    unwanted = {verdict.value.replace("-", " ") for verdict in fail_on or ()}
    if any(row.verdict in unwanted for row in rows):
        raise typer.Exit(1)


def report(
    records: Annotated[list[Path], typer.Argument(help="JSON records, and predictions by 'bench predict --output'.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Markdown file to write.")] = None,
    readme: Annotated[
        Path | None,
        typer.Option(help="Markdown file that takes it in between <!-- bench:begin --> and <!-- bench:end -->."),
    ] = None,
) -> None:
    """Draw a picture beside each record and write a Markdown report."""
    from ...errors import UserError
    from ...runtime.commands.console import echo, plain
    from .report import write_report

    if (output is None) == (readme is None):
        raise UserError("give either --output for a report of its own, or --readme for a file that takes it in.")
    target = output or readme
    assert target is not None
    if readme is not None and not readme.is_file():
        raise UserError(f"{readme} does not exist: give the file that holds the two marks, or --output.")
    for path in write_report(records, target):
        echo(plain(path))
