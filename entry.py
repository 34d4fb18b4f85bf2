"""Where the command ``consisti2v`` begins: neither a Ctrl-C while the program is still imported nor a package that
cannot be imported ends it with a traceback.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path


def main() -> None:
    """Import the command line and run it; exit code 130 where that is interrupted, 2 where a package is damaged."""
    # Closed streams: every library may then write to them, and no file that is opened later takes their numbers.
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115 - for the whole process
    try:
        run = _command_line()
    except KeyboardInterrupt:
        # From within a run the command line tells it itself; here nothing was begun.
        print("stopped; nothing half-written is left", file=sys.stderr)
        sys.exit(130)
    run()


def _command_line() -> Callable[[], None]:
    try:
        from .cli import main as run

        return run
    except Exception as error:
        # Whatever a damaged package raises. The doctor needs fewer packages than the other commands.
        from .runtime.install import install_hint

        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        sentence = f"error: a package cannot be imported ({reason}): {install_hint()} --force-reinstall."
        print("".join(character if character.isprintable() else " " for character in sentence), file=sys.stderr)
        try:
            if sys.argv[1:2] == ["doctor"]:
                from typer import run as run_alone

                from .runtime.commands.doctor import doctor

                del sys.argv[1]
                return lambda: run_alone(doctor)
        except Exception:
            pass
        sys.exit(2)
