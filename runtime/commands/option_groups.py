"""Commands whose options have other names too (``--num-frames`` is ``--frames``), and whose help groups them."""

from __future__ import annotations

from typing import Any

from typer.core import TyperCommand

from ...errors import UserError
from ..request.option_table import ALIASES, PANELS, command_name, similar_names

_FORMER_NAMES = {"flavour": "backend", "max_photo_pixels": "max_image_pixels", "photos": "images"}
"""Options as versions before 0.2 name them."""


class Command(TyperCommand):
    """Replaces other names of an option before the command line is parsed; help shows the command's own names only."""

    def get_params(self, ctx: Any) -> list[Any]:
        """As always, ordered by panel where options name one; typer shows each panel as a group."""
        params: list[Any] = list(super().get_params(ctx))
        if any(getattr(param, "rich_help_panel", None) for param in self.params):
            for param in params:
                param.rich_help_panel = getattr(param, "rich_help_panel", None) or PANELS[-1]
            params.sort(key=lambda param: PANELS.index(param.rich_help_panel))
        return params

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """The plain text, which typer does not group."""
        if not any(getattr(param, "rich_help_panel", None) for param in self.params):
            super().format_options(ctx, formatter)
            return
        rows: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None:
                rows.setdefault(param.rich_help_panel, []).append(record)
        for panel, records in rows.items():
            with formatter.section(panel):
                formatter.write_dl(records)

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
                names = [_word(name) for name in sorted(own) if name.startswith("--")]
                near = similar_names(_word(error.option_name), [ALIASES.get(name, name) for name in names])
                options = [command_name(ALIASES.get(one, one)) for one in near]
                error.possibilities = list(dict.fromkeys([*options, *(error.possibilities or ())]))
            raise
        return parsed


def _word(option: str) -> str:
    return option.lstrip("-").replace("-", "_")


def _own_name(name: str) -> str:
    """``--num-frames``, ``--num_frames``: ``--frames``; ``--no-use-frameinit``: ``--no-frameinit``."""
    word = _word(name)
    no, word = ("--no-", word[3:]) if word.startswith("no_") else ("--", word)
    word = _FORMER_NAMES.get(word, word)
    return no + command_name(ALIASES.get(word, word)).removeprefix("--")
