"""The command ``consisti2v``: its commands live beside what they run; this file lists them."""

from __future__ import annotations

import functools
import logging
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console

from . import __version__
from .batch.command import RayCommand, batch
from .benchmarks.bench.command import BenchGroup, compare, report, run, scaling, side_by_side
from .benchmarks.cost.command import predict
from .benchmarks.quality.command import evaluate
from .benchmarks.quality.preset_commands import quality, tune
from .errors import CancelledError, UserError, first_line
from .export.command import export
from .export.engines.command import build
from .export.lora.command import lora
from .runtime.commands.console import PlainGroup, echo, log_to, make_console, note
from .runtime.commands.doctor import doctor
from .runtime.commands.ending_signals import ending_signals
from .runtime.commands.generate import demo, generate
from .runtime.commands.inspect import inspect
from .runtime.commands.option_groups import Command
from .serve.command import serve

app = typer.Typer(
    name="consisti2v",
    cls=PlainGroup,
    help="A photo becomes a video: the ConsistI2V image-to-video model, exported once, run without torch.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)


def _cancellable(command: Callable[..., None]) -> Callable[..., None]:
    """typer would end silently on Ctrl-C; :func:`main` reports it as a cancelled run."""

    @functools.wraps(command)
    def run(*args: Any, **options: Any) -> None:
        try:
            command(*args, **options)
        except KeyboardInterrupt:
            raise CancelledError from None

    return run


_OUT_OF_MEMORY = (
    "there is not enough memory for this: use a smaller size or fewer videos at once, or close other programs."
)
bench = typer.Typer(cls=BenchGroup, help="Measure and predict: 'bench BUNDLE' times its videos.", no_args_is_help=True)
for command in (generate, demo, export, lora, build, tune, inspect, evaluate, doctor):
    app.command(cls=Command)(_cancellable(command))
app.command(cls=RayCommand)(_cancellable(serve))
app.command(cls=RayCommand)(_cancellable(batch))
for measurement in (run, side_by_side, scaling, quality, compare, report, predict):
    bench.command(cls=Command)(_cancellable(measurement))
app.add_typer(bench, name="bench")


def _show_version(wanted: bool) -> None:
    if wanted:
        echo(f"consisti2v-rt {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and leave.", is_eager=True, callback=_show_version)
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line: bad input gives one sentence and exit code 2; Ctrl-C, SIGTERM and SIGHUP a clean end with
    128 and the signal's number.
    """
    console = make_console(stderr=True)
    # Help and refusals of options: without boxes and styles unless both of their streams show them.
    app.rich_markup_mode = None if console.is_plain or make_console().is_plain else "rich"
    log_to(console)
    logging.getLogger("consisti2v_rt.memory").setLevel(logging.INFO)
    with ending_signals() as ending:
        try:
            app()
        except (KeyboardInterrupt, CancelledError):
            _stopped(console, ending.exit_code)
        except (UserError, MemoryError, OSError, SystemExit) as error:
            # A terminal that is gone cannot be written to, and a builder may have heard the signal first.
            if ending.signal is not None:
                _stopped(console, ending.exit_code)
            if isinstance(error, MemoryError):
                error = UserError(_OUT_OF_MEMORY)
            elif isinstance(error, OSError):
                _drop_output()
                error = UserError(_refused(error))
            if not isinstance(error, UserError):
                raise
            with suppress(OSError):
                note(console, str(error), "error:", "bold red")
            sys.exit(2)


def _refused(error: OSError) -> str:
    named = f' of "{os.fsdecode(error.filename)}"' if isinstance(error.filename, str | bytes) else ""
    return (
        f"the operating system refused a read or write{named} ({error.strerror or first_line(error)}): check the free "
        "space, the permissions, and where the output goes."
    )


def _drop_output() -> None:
    """What standard output does not take would be tried again, and fail again, at the end of the process."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _stopped(console: Console, exit_code: int) -> NoReturn:
    with suppress(OSError):
        console.print("stopped; nothing half-written is left")
    sys.exit(exit_code)


if __name__ == "__main__":
    main()
