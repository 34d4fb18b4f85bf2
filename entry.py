"""Where the command ``consisti2v`` begins: a Ctrl-C while the program is still imported ends it without a traceback."""

from __future__ import annotations

import sys


def main() -> None:
    """Import the command line and run it; exit code 130 where that is interrupted."""
    try:
        from .cli import main as run

        run()
    except KeyboardInterrupt:
        # From within a run the command line tells it itself; here nothing was begun.
        print("stopped; nothing half-written is left", file=sys.stderr)
        sys.exit(130)
