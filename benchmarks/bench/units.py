"""Numbers with their units, three digits of them."""

from __future__ import annotations

import re


def seconds(value: float) -> str:
    """``1.23 s``, ``45.6 ms``, ``789 us``."""
    for factor, unit in ((1.0, "s"), (1e3, "ms")):
        if value * factor >= 0.9995:
            return f"{three_digits(value * factor)} {unit}"
    return f"{three_digits(value * 1e6)} µs"


def cell(text: str) -> str:
    """For a table: a number and its unit are not torn apart."""
    return re.sub(r"(?<=\d) (?=[^\W\d])", "\N{NO-BREAK SPACE}", text)


def gibibytes(count: float) -> str:
    return f"{three_digits(count / 2**30)} GiB"


def mebibytes(count: float) -> str:
    return f"{three_digits(count / 2**20)} MiB"


def three_digits(value: float) -> str:
    """Three digits, without an exponent."""
    if value >= 99.95:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 9.995 else f"{value:.2f}"
