"""The command ``consisti2v``: its commands live beside what they run; this file lists them."""

from __future__ import annotations

import logging
import sys
from typing import Annotated

import typer
from rich.console import Console
from rich.logging import RichHandler

from . import __version__
from .export.command import export
from .runtime.commands.demo import demo
from .runtime.commands.doctor import doctor
from .runtime.commands.generate import generate
from .runtime.commands.inspect import inspect
from .runtime.errors import CancelledError, UserError

app = typer.Typer(
    name="consisti2v",
    help="A photo becomes a video: the ConsistI2V image-to-video model, exported once, run without torch.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (generate, demo, export, inspect, doctor):
    app.command()(command)


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", help="Show the version and leave.")] = False,
) -> None:
    if version:
        typer.echo(f"consisti2v-rt {__version__}")
        raise typer.Exit


def main() -> None:
    """Run the command line: bad input gives one sentence and exit code 2, Ctrl-C a clean end with 130."""
    console = Console(stderr=True)
    handler = RichHandler(console=console, show_time=False, show_path=False, markup=False)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[handler])
    try:
        app()
    except UserError as error:
        console.print(f"[bold red]error:[/] {_escape(str(error))}", highlight=False, soft_wrap=True)
        sys.exit(2)
    except (KeyboardInterrupt, CancelledError):
        console.print("stopped; nothing half-written is left")
        sys.exit(130)


def _escape(text: str) -> str:
    return text.replace("[", "\\[")


if __name__ == "__main__":
    main()
