"""Camera moves over a still photo: what the view sees in each frame.

A view is a square of the photo. Moves are named by the camera: when the camera pans right, the view goes right and the
picture runs left. Speeds are constant and proportional to the frame stride, so that caption and stride together say
exactly what happens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

PAN_SPEED = 0.004
"""Of the view's width, per frame and unit of stride: 8 px over 16 frames of 128 px at stride 1, 38 px at stride 5."""
ZOOM_SPEED = 0.008
"""Natural logarithm of the magnification, per frame and unit of stride: x1.13 at stride 1, x1.82 at stride 5."""
TURN_SPEED = math.radians(0.5)
"""Radians per frame and unit of stride: 7.5 degrees at stride 1, 37 at stride 5."""
STRIDES = (1, 2, 3, 4, 5)
MOVES: dict[str, tuple[int, int, int, int]] = {
    "pan_left": (-1, 0, 0, 0),
    "pan_right": (1, 0, 0, 0),
    "pan_up": (0, -1, 0, 0),
    "pan_down": (0, 1, 0, 0),
    "zoom_in": (0, 0, 1, 0),
    "zoom_out": (0, 0, -1, 0),
    "rotate_clockwise": (0, 0, 0, 1),
    "rotate_counterclockwise": (0, 0, 0, -1),
    "still": (0, 0, 0, 0),
}
"""Camera codes: camera right, camera down, growth and clockwise turn of the picture."""


class View(NamedTuple):
    """What a frame shows, relative to the first frame's view (1 = its width)."""

    x: float = 0.0
    y: float = 0.0
    """Centre, right and down."""
    size: float = 1.0
    """Width of the view; below 1 the picture is magnified."""
    angle: float = 0.0
    """Radians by which the PICTURE is turned clockwise."""


def view(move: str, frame: float, stride: int) -> View:
    """The view of a frame (0 = the first) of a move at a stride."""
    right, down, growth, turn = (frame * stride * part for part in MOVES[move])
    return View(PAN_SPEED * right, PAN_SPEED * down, math.exp(-ZOOM_SPEED * growth), TURN_SPEED * turn)


def places(v: View, size: int, rows: bool = False) -> tuple[Tensor, Tensor]:
    """Where a view's pixels lie in the first view, right and down of its centre (1 = its width): [size, size] each.

    Args:
        v, size: the view, and pixels of its side.
        rows: for the first of two resamplings, along rows; the second, along columns, ends where the view is.
    """
    axis = (torch.arange(size, dtype=torch.float32) + 0.5) / size - 0.5
    across, down = axis[None, :].expand(size, size), axis[:, None].expand(size, size)
    cos, sin = math.cos(v.angle), math.sin(v.angle)
    if rows:
        return v.x + v.size * across / cos + sin / cos * down, down
    # A picture turned clockwise is seen through a view turned counterclockwise.
    return v.x + v.size * (cos * across + sin * down), v.y + v.size * (-sin * across + cos * down)


def photographed(
    photo: Tensor, centre: tuple[float, float], size: int, seen: Sequence[tuple[Tensor, Tensor]], smear: bool = False
) -> Tensor:
    """Frames of a camera over a photo.

    Args:
        photo: float [3, h, w].
        centre: x and y of the first view's centre, in pixels of the photo, of which the view is `size` wide.
        size: pixels of a frame's side.
        seen: :func:`places` of each frame, of twice as many pixels a side; they are averaged, so that views up to
            twice as wide as their pixels do not alias.
        smear: show the first view's border for what lies beyond it, not the photo.

    Returns:
        float [frames, 3, size, size]; beyond the photo its mirror image.
    """
    height, length = photo.shape[1:]
    edge = 0.5 - 0.5 / size if smear else float("inf")
    scale, middle = (
        2 * size / torch.tensor([length, height]),
        2 * torch.tensor(centre) / torch.tensor([length, height]) - 1,
    )
    grids = [scale * torch.stack(place, dim=-1).clamp(-edge, edge) + middle for place in seen]
    clip = photo[None].expand(len(grids), -1, -1, -1)
    out = F.grid_sample(clip, torch.stack(grids), mode="bilinear", padding_mode="reflection", align_corners=False)
    return F.avg_pool2d(out, 2)
