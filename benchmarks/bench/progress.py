"""Progress of a long measurement: runs done and to do, time elapsed and left, on a terminal only."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ...runtime.commands.progress import leading_columns


class RunProgress:
    """Counts runs; a run in progress counts as the share of it that is done."""

    def __init__(self, bar: Progress, runs: int) -> None:
        self._bar = bar
        self._task = bar.add_task("starting", total=runs)
        self._done = 0

    def describe(self, text: str) -> None:
        self._bar.update(self._task, description=text)

    def share(self, share: float) -> None:
        """Of the current run."""
        self._bar.update(self._task, completed=self._done + min(max(share, 0.0), 1.0))

    def finish_run(self, runs: int = 1) -> None:
        self._done += runs
        self._bar.update(self._task, completed=self._done)


@contextmanager
def run_progress(runs: int, console: Console) -> Iterator[RunProgress]:
    """A bar over all runs of a measurement, warm-up included."""
    columns = (
        *leading_columns(console),
        MofNCompleteColumn(),
        TextColumn("left"),
        TimeRemainingColumn(elapsed_when_finished=False),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        yield RunProgress(bar, runs)
