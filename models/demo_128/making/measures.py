"""What the exported demo model does on photos that nothing was fitted on, judged against the photo really moved."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from ....benchmarks.quality.measures import ssim
from ....runtime.media.read_video import Frames
from ....runtime.media.video_file import save_frames
from ....runtime.pipeline import ImageToVideo
from .data import load_photos
from .layer import FRAMES
from .moves import MOVES, photographed, places, view
from .prompts import MOVE_PHRASES
from .vae import GRID, SIZE

JUDGED = (1, 8, 15)
SHOWN = ("zoom_in", "pan_right", "pan_down", "rotate_clockwise")
"""Moves of the clip in the README."""
STILL_SPEED = 0.0015
"""Mean flow, in frame widths per frame, below which a clip counts as still; a pan at stride 3 is 0.012."""
# The part of a motion that shows each move, and its sign; the picture runs against the camera.
_SIGNS = {
    "pan_left": ("right", 1),
    "pan_right": ("right", -1),
    "pan_up": ("down", 1),
    "pan_down": ("down", -1),
    "zoom_in": ("growth", 1),
    "zoom_out": ("growth", -1),
    "rotate_clockwise": ("turn", 1),
    "rotate_counterclockwise": ("turn", -1),
}


def measure(bundle: Path, work: Path, steps: int, threads: int, progress: Callable[[str], None]) -> dict[str, Any]:
    """Figures for the model card, ready for JSON.

    Every held-out photo is moved in all nine ways at stride 3, in three of them at strides 1 and 5, and once without a
    text.
    """
    animate = ImageToVideo.from_bundle(bundle, threads=threads, device="cpu")
    photos = load_photos(work, held_out=True)
    rows: dict[str, list[dict[str, float]]] = {}
    for number, (subject, levels) in enumerate(photos):
        some = [list(MOVES)[(3 * number + k) % len(MOVES)] for k in range(3)]
        asked = [(move, 3, MOVE_PHRASES[move][0]) for move in MOVES]
        asked += [(move, stride, MOVE_PHRASES[move][0]) for stride in (1, 5) for move in some]
        for move, stride, prompt in [*asked, ("still", 3, "")]:
            true = true_frames(levels[0], move, stride)
            made = animate(true[0], prompt, num_inference_steps=steps, frame_stride=stride, seed=number).frames[0]
            name = f"{move}, stride {stride}" if prompt else "no text"
            rows.setdefault(name, []).append(compare(made, true, move, stride))
        progress(f"{subject}: {_means([row[-1] for row in rows.values() if len(row) == number + 1])}")
    return {
        "photos": [subject for subject, _ in photos],
        "steps": steps,
        "strides": {
            f"stride {n}": _means([row for name, of in rows.items() if name.endswith(f" {n}") for row in of])
            for n in (1, 3, 5)
        },
        "moves": {name: _means(of) for name, of in rows.items()},
        "round trip of the photos": round_trip(animate, [levels[0] for _, levels in photos]),
    }


def clip(bundle: Path, work: Path, output: Path, threads: int) -> None:
    """Write four held-out photos, each with another move, above the photos really moved; 128 pixels each."""
    animate = ImageToVideo.from_bundle(bundle, threads=threads, device="cpu")
    columns = []
    for (_, levels), move in zip(load_photos(work, held_out=True), SHOWN, strict=False):
        true = true_frames(levels[0], move, 3)
        columns.append(np.concatenate([animate(true[0], MOVE_PHRASES[move][0], seed=0).frames[0], true], axis=1))
    save_frames(np.concatenate(columns, axis=2), output)


def true_frames(photo: torch.Tensor, move: str, stride: int) -> Frames:
    """The middle of a photo float [3, h, w] in 0..1, really moved: uint8 [16, 128, 128, 3]."""
    seen = [places(view(move, frame, stride), 2 * SIZE) for frame in range(FRAMES)]
    true = photographed(photo, (photo.shape[2] / 2, photo.shape[1] / 2), SIZE, seen)
    return (255 * true).round().byte().permute(0, 2, 3, 1).numpy()


def compare(made: Frames, true: Frames, move: str, stride: int) -> dict[str, float]:
    """One video against the truth, both uint8 [f, h, w, 3].

    PSNR (dB) and SSIM in the area that the first frame shows; *grid*: energy at the frequency of the latents' grid and
    its multiples, over that of the truth; *agrees*: 1 if the flow is the named move; *amount*: its speed over the true.
    """
    figures: dict[str, float] = {"psnr 0": psnr(made[0], true[0])}
    for frame in JUDGED:
        x, y = (place.numpy() for place in places(view(move, frame, stride), made.shape[1]))
        inside = (np.abs(x) < 0.5) & (np.abs(y) < 0.5)
        figures[f"psnr {frame}"] = psnr(made[frame][inside], true[frame][inside])
        shown = np.where(inside[..., None], true[frame], 0), np.where(inside[..., None], made[frame], 0)
        share = float(inside.mean())
        # Outside both are black, which counts as alike.
        figures[f"ssim {frame}"] = (float(ssim(*(part[None] for part in shown))[0]) - 1 + share) / share
    judged = [0, *JUDGED]
    figures["grid"] = grid_energy(made[judged]) / grid_energy(true[judged])
    motion, wanted = mean_motion(made), mean_motion(true)
    figures["agrees"] = float(agrees(motion, move))
    if move != "still":
        figures["amount"] = motion[_SIGNS[move][0]] / wanted[_SIGNS[move][0]]
    return figures


def psnr(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    """Peak signal-to-noise ratio of 8-bit values, dB."""
    return float(10 * np.log10(255**2 / max(float(np.mean((a.astype(float) - b.astype(float)) ** 2)), 1e-3)))


def grid_energy(frames: Frames) -> float:
    """Energy at the frequency of the latents' grid and its multiples, along both axes, of the middle quarter's luma."""
    edge = SIZE // 4
    grey = frames[:, edge:-edge, edge:-edge].astype(float) @ [0.299, 0.587, 0.114]
    side = grey.shape[1]
    bins = np.arange(1, SIZE // GRID // 2 + 1) * side * GRID // SIZE
    energy = 0.0
    for lines in (grey, grey.transpose(0, 2, 1)):
        energy += float((np.abs(np.fft.rfft(lines * np.hanning(side), axis=2)) ** 2)[..., bins].sum())
    return energy


def mean_motion(frames: Frames) -> dict[str, float]:
    """Least-squares similarity fitted to the mean of the optical flows (OpenCV's DIS, arXiv:1603.03590) between frames.

    Returns:
        right, down (frame widths per frame), growth (rate), turn (radians, clockwise), speed (mean length of the flow).
    """
    dis = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    # DIS looks at 8-pixel patches: small frames are enlarged for it.
    grey = [
        cv2.resize(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), None, fx=2, fy=2, interpolation=cv2.INTER_CUBIC)
        for frame in frames
    ]
    field = np.mean([dis.calc(first, second, None) for first, second in pairwise(grey)], axis=0) / grey[0].shape[1]
    axis = (np.arange(len(field)) + 0.5) / len(field) - 0.5
    x, y = axis[None, :], axis[:, None]
    u, v = field[..., 0], field[..., 1]
    radius = float((x**2 + y**2).sum())
    return {
        "right": float(u.mean()),
        "down": float(v.mean()),
        "growth": float((x * u + y * v).sum()) / radius,
        "turn": float((x * v - y * u).sum()) / radius,
        "speed": float(np.hypot(u, v).mean()),
    }


def agrees(motion: dict[str, float], move: str) -> bool:
    """Whether a motion is the named camera move.

    A pan: the mean flow is faster than STILL_SPEED and within 45 degrees of its direction. A zoom or turn: the sign is
    right, and the motion it makes at the frame's edge (half a width away) exceeds STILL_SPEED. Still: slower than that.
    """
    if move == "still":
        return motion["speed"] < STILL_SPEED
    name, sign = _SIGNS[move]
    value = sign * motion[name]
    if name in ("right", "down"):
        return value > STILL_SPEED and value > abs(motion["down" if name == "right" else "right"])
    return value / 2 > STILL_SPEED


def round_trip(animate: ImageToVideo, photos: list[torch.Tensor]) -> float:
    """Mean PSNR, dB, of the middles of photos [3, h, w] against frame 0 of their videos."""
    values = []
    for photo in photos:
        top, left = ((side - SIZE) // 2 for side in photo.shape[1:])
        view_ = (255 * photo[:, top : top + SIZE, left : left + SIZE]).round().byte().permute(1, 2, 0).numpy()
        values.append(psnr(animate(view_, "", num_inference_steps=1, seed=0).frames[0][0], view_))
    return round(float(np.mean(values)), 2)


def _means(rows: list[dict[str, float]]) -> dict[str, float]:
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: round(float(np.mean([row[name] for row in rows if name in row])), 3) for name in names}
