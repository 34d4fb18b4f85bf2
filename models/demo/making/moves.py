"""Camera moves over a still photo: what the view sees in each frame.

A view is a square of the photo. Moves are named by the camera: when the camera pans right, the view goes right and the
picture runs left. Speeds are constant and proportional to the frame stride, so that caption and stride together say
exactly what happens.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

PAN_SPEED = 0.004
"""Of the view's width, per frame and unit of stride: 3.8 px over 16 frames of 64 px at stride 1, 19 px at stride 5."""
ZOOM_SPEED = 0.008
"""Natural logarithm of the magnification, per frame and unit of stride: x1.13 at stride 1, x1.82 at stride 5."""
TURN_SPEED = np.deg2rad(0.5)
"""Radians per frame and unit of stride: 7.5 degrees at stride 1, 37 at stride 5."""
STRIDES = (1, 2, 3, 4, 5)
MOVES = (
    "pan_left",
    "pan_right",
    "pan_up",
    "pan_down",
    "zoom_in",
    "zoom_out",
    "rotate_clockwise",
    "rotate_counterclockwise",
    "still",
)
_PANS = {"pan_left": (-1, 0), "pan_right": (1, 0), "pan_up": (0, -1), "pan_down": (0, 1)}


@dataclass(frozen=True)
class View:
    """What a frame shows, relative to the first frame's view (1 = its width)."""

    x: float
    y: float
    """Centre, right and down."""
    size: float
    """Width of the view; below 1 the picture is magnified."""
    angle: float
    """Radians by which the PICTURE is turned clockwise."""


def view(move: str, frame: int, stride: int) -> View:
    """The view of a frame (0 = the first) of a move at a stride.

    Raises:
        ValueError: no such move.
    """
    steps = frame * stride
    if move in _PANS:
        dx, dy = _PANS[move]
        return View(dx * PAN_SPEED * steps, dy * PAN_SPEED * steps, 1.0, 0.0)
    if move in ("zoom_in", "zoom_out"):
        return View(0.0, 0.0, float(np.exp((-1 if move == "zoom_in" else 1) * ZOOM_SPEED * steps)), 0.0)
    if move in ("rotate_clockwise", "rotate_counterclockwise"):
        return View(0.0, 0.0, 1.0, (1 if move == "rotate_clockwise" else -1) * TURN_SPEED * steps)
    if move == "still":
        return View(0.0, 0.0, 1.0, 0.0)
    raise ValueError(f"move {move!r} is unknown: choose {', '.join(MOVES)}.")


def extent(move: str, frames: int, stride: int) -> tuple[float, float, float, float]:
    """Left, top, right and bottom reach of a whole move around the first view's centre, in widths of the first view."""
    boxes = []
    for frame in (0, frames - 1):
        v = view(move, frame, stride)
        # A turned square reaches at most to its half diagonal.
        half = v.size * (0.5 if v.angle == 0 else 0.5 * (abs(np.cos(v.angle)) + abs(np.sin(v.angle))))
        boxes.append((v.x - half, v.y - half, v.x + half, v.y + half))
    array = np.array(boxes)
    return float(array[:, 0].min()), float(array[:, 1].min()), float(array[:, 2].max()), float(array[:, 3].max())


def render(
    photo: Tensor, centre: tuple[float, float], width: float, move: str, stride: int, frames: int, size: int
) -> Tensor:
    """Frames of a camera move.

    Args:
        photo: float [3, h, w].
        centre: x and y of the first view's centre, in pixels of the photo.
        width: of the first view, in pixels of the photo; about `size` (the photo is not prefiltered here).
        move, stride: see :data:`MOVES` and :data:`STRIDES`.
        frames: number of frames.
        size: pixels of a frame's side.

    Returns:
        float [frames, 3, size, size]; beyond the photo its mirror image.
    """
    height, length = photo.shape[1:]
    # Twice the pixels, averaged: a view up to twice as wide as its pixels does not alias.
    fine = 2 * size
    axis = (torch.arange(fine, dtype=torch.float32) + 0.5) / fine - 0.5
    across, down = axis[None, :].expand(fine, fine), axis[:, None].expand(fine, fine)
    grids = []
    for frame in range(frames):
        v = view(move, frame, stride)
        cos, sin = float(np.cos(v.angle)), float(np.sin(v.angle))
        # A picture turned clockwise is seen through a view turned counterclockwise.
        x = centre[0] + width * (v.x + v.size * (cos * across + sin * down))
        y = centre[1] + width * (v.y + v.size * (-sin * across + cos * down))
        grids.append(torch.stack([2 * x / length - 1, 2 * y / height - 1], dim=-1))
    clip = photo[None].expand(frames, -1, -1, -1)
    out = F.grid_sample(clip, torch.stack(grids), mode="bilinear", padding_mode="reflection", align_corners=False)
    return F.avg_pool2d(out, 2)
