"""How commands look: styled on a terminal; plain ASCII in a pipe, with NO_COLOR and under TERM=dumb."""

from __future__ import annotations

import os
from typing import Any

from rich.console import Console


class StyledConsole(Console):
    """A rich console that draws tables and bars in ASCII, without any styling, where :attr:`plain` is true."""

    def __init__(self, **options: Any) -> None:
        if os.environ.get("NO_COLOR"):
            # rich alone would keep bold and dim.
            options["color_system"] = None
        super().__init__(**options)

    @property
    def plain(self) -> bool:
        """No terminal, one that only takes lines, or a user who asked for no styling."""
        return self.no_color or not self.is_terminal or self.is_dumb_terminal

    @property
    def encoding(self) -> str:
        """rich draws boxes and bars in ASCII for an encoding that is not UTF-8; text is written as it is."""
        return "ascii" if self.plain else super().encoding
