"""Options of ``consisti2v generate`` under the library's and diffusers' names too: ``--num-frames`` is ``--frames``."""

from __future__ import annotations

from typing import Any

from typer.core import TyperCommand

from ...errors import UserError
from ..request.option_names import ALIASES, command_name, similar_names


class AliasCommand(TyperCommand):
    """Replaces other names of an option before the command line is parsed; help shows the command's own names only."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        own = {name for param in self.get_params(ctx) for name in (*param.opts, *param.secondary_opts)}
        typed: dict[str, str] = {}
        words = list(args)
        for place, word in enumerate(words):
            if word == "--":
                break
            name, equals, value = word.partition("=")
            option = name if name in own else _own_name(name)
            if not name.startswith("--") or option not in own:
                continue
            earlier = typed.setdefault(option, name)
            if earlier != name:
                raise UserError(f"{earlier} and {name} are two names of one option: give one of them.")
            words[place] = option + equals + value
        try:
            parsed: list[str] = super().parse_args(ctx, words)
        except Exception as error:
            # Known by its fields: typer brings a click of its own in some versions and imports click in others.
            if hasattr(error, "option_name") and hasattr(error, "possibilities"):
                near = similar_names(error.option_name.lstrip("-").replace("-", "_"), _settings(own))
                options = [command_name(ALIASES.get(one, one)) for one in near]
                error.possibilities = list(dict.fromkeys([*options, *(error.possibilities or ())]))
            raise
        return parsed


def _own_name(name: str) -> str:
    """``--num-frames``, ``--num_frames``: ``--frames``; ``--no-use-frameinit``: ``--no-frameinit``."""
    word = name.removeprefix("--").replace("-", "_")
    no, word = ("--no-", word[3:]) if word.startswith("no_") else ("--", word)
    return no + command_name(ALIASES.get(word, word)).removeprefix("--")


def _settings(own: set[str]) -> list[str]:
    """The options that a command has, as the settings call them."""
    names = [name.removeprefix("--").replace("-", "_") for name in sorted(own) if name.startswith("--")]
    return [ALIASES.get(name, name) for name in names]
