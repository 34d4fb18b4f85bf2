"""The command group: ``bench BUNDLE`` needs no further word, and every word may be written as a flag."""

from __future__ import annotations

from typing import Any

from ...runtime.commands.console import PlainGroup

DEFAULT = "run"


class BenchGroup(PlainGroup):
    """``bench BUNDLE`` is ``bench run BUNDLE``; ``bench --predict GPU`` is ``bench predict GPU``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        commands = self.list_commands(ctx)
        flagged = (place for place, word in enumerate(args) if word.startswith("--") and word[2:] in commands)
        if (place := next(flagged, None)) is not None:
            args = [args[place][2:], *args[:place], *args[place + 1 :]]
        elif args and args[0] not in (*commands, "-h", "--help"):
            args = [DEFAULT, *args]
        parsed: list[str] = super().parse_args(ctx, args)
        return parsed
