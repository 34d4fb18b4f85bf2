"""Why a measure has no number."""

from __future__ import annotations


class UnavailableError(Exception):
    """A measure cannot be had here: a package, weights or an input is missing. The message says which, and what to do.

    It never ends an evaluation: the measure is reported as unavailable, with this reason.
    """
