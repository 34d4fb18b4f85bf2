"""Progress of the denoising loop on a terminal, and a Ctrl-C that does not wait for the running step."""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column
from rich.text import Text

from ..pipeline import ImageToVideo
from ..request.settings import StepCallback, StepProgress
from .ending_signals import ENDING_SIGNALS


class _SecondsPerStep(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{1 / task.speed:.2f} s/step" if task.speed else "", style="progress.data.speed")


def leading_columns(console: Console) -> list[ProgressColumn]:
    """Time elapsed, what is being done, and where there is room a bar: what a narrow terminal cuts off is the end."""
    elapsed = TimeElapsedColumn(Column(no_wrap=True, min_width=len("0:00:00")))
    bar: list[ProgressColumn] = [BarColumn()] if console.width >= 80 else []
    return [elapsed, TextColumn("{task.description}", markup=False), *bar]


@contextmanager
def step_progress(steps: int, console: Console) -> Iterator[StepCallback]:
    """A progress bar over all steps of all clips, on a terminal only; the callback advances it."""
    columns = [*leading_columns(console), MofNCompleteColumn(), _SecondsPerStep()]
    columns += [TextColumn("left"), TimeRemainingColumn()]
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("denoising", total=steps)

        def advance(state: StepProgress) -> None:
            name = "denoising" if state.clips == 1 else f"clip {state.clip + 1} of {state.clips}"
            progress.update(task, advance=1, description=name)

        yield advance


@contextmanager
def prompt_interrupt(animate: ImageToVideo) -> Iterator[None]:
    """Make Ctrl-C, SIGTERM and SIGHUP stop the graph that is running.

    Python runs its own signal handler only after the native call returns, which can take half a minute a step at full
    size on a processor. The wake-up socket is written at once, by the signal itself.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    done = threading.Event()

    def watch() -> None:
        while data := reader.recv(64):
            if done.is_set():
                return
            if any(number in data for number in (signal.SIGINT, *ENDING_SIGNALS)):
                animate.cancel()

    watcher = threading.Thread(target=watch, daemon=True)
    previous = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    watcher.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(previous)
        done.set()
        writer.send(b"\0")
        watcher.join()
        reader.close()
        writer.close()
