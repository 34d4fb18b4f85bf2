"""Captions: what is seen, and what the camera does. The demo model learns the second; the photo shows the first."""

from __future__ import annotations

import numpy as np

from .moves import MOVES

# The first phrase of each move is the one used for evaluation.
MOVE_PHRASES: dict[str, tuple[str, ...]] = {
    "pan_left": ("pan left", "the camera pans left", "panning to the left", "camera moves left"),
    "pan_right": ("pan right", "the camera pans right", "panning to the right", "camera moves right"),
    "pan_up": ("pan up", "the camera pans up", "the camera tilts up", "camera moves up"),
    "pan_down": ("pan down", "the camera pans down", "the camera tilts down", "camera moves down"),
    "zoom_in": ("zoom in", "the camera zooms in", "zooming in", "camera moves closer"),
    "zoom_out": ("zoom out", "the camera zooms out", "zooming out", "camera moves away"),
    "rotate_clockwise": ("rotate clockwise", "the picture turns clockwise", "rotating clockwise"),
    "rotate_counterclockwise": (
        "rotate counterclockwise",
        "the picture turns counterclockwise",
        "rotating counterclockwise",
    ),
    "still": ("still", "a still picture", "the camera does not move", "static camera"),
}


def move_phrase(move: str) -> str:
    """The plain phrase of a move, as a user would write it.

    Raises:
        KeyError: no such move.
    """
    return MOVE_PHRASES[move][0]


def move_caption(move: str, subject: str, rng: np.random.Generator) -> str:
    """A caption of a camera move over a photo: a phrase of the move, with or without what is seen."""
    phrases = MOVE_PHRASES[move]
    phrase = phrases[rng.integers(len(phrases))]
    form = rng.integers(4)
    if form == 0:
        return f"{phrase}, {subject}"
    if form == 1:
        return f"{subject}, {phrase}"
    return phrase


assert set(MOVE_PHRASES) == set(MOVES)
