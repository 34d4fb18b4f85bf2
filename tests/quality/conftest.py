"""Known clips to be ranked: a photo moved as told, and the same frames stilled, shuffled, blurred and made noisy."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageFilter

PHOTO = Path(__file__).parents[2] / "assets" / "example.jpg"
FRAMES, SIDE = 9, 96

Frames = NDArray[np.uint8]


class Mover(Protocol):
    def __call__(
        self,
        *,
        right: float = 0,
        down: float = 0,
        growth: float = 1,
        turn: float = 0,
        centre: tuple[float, float] = (160, 130),
        frames: int = FRAMES,
    ) -> Frames: ...


@pytest.fixture(scope="session")
def photo() -> Image.Image:
    return Image.open(PHOTO).convert("RGB")


@pytest.fixture(scope="session")
def move(photo: Image.Image) -> Mover:
    """A clip [frames, 96, 96, 3] of a view over the photo.

    right, down: of the view, in pixels a frame; growth: of the picture, as a factor a frame; turn: of the picture,
    clockwise, in radians a frame.
    """

    def render(
        *,
        right: float = 0,
        down: float = 0,
        growth: float = 1,
        turn: float = 0,
        centre: tuple[float, float] = (160, 130),
        frames: int = FRAMES,
    ) -> Frames:
        pages = []
        for t in range(frames):
            size, angle = growth**-t, -turn * t
            cos, sin = size * math.cos(angle), size * math.sin(angle)
            x0, y0 = centre[0] + right * t, centre[1] + down * t
            half = SIDE / 2
            matrix = (cos, -sin, x0 - half * cos + half * sin, sin, cos, y0 - half * sin - half * cos)
            pages.append(photo.transform((SIDE, SIDE), Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC))
        return np.stack([np.asarray(page) for page in pages])

    return render


def shuffle(frames: Frames, other: Frames) -> Frames:
    """Every other frame from another clip."""
    mixed = frames.copy()
    mixed[1::2] = other[1::2]
    return mixed


def add_noise(frames: Frames, spread: float, seed: int = 0) -> Frames:
    noise = np.random.default_rng(seed).normal(0, spread, frames.shape)
    return np.rint(frames + noise).clip(0, 255).astype(np.uint8)


def blur(frames: Frames, radius: float) -> Frames:
    return np.stack([np.asarray(Image.fromarray(f).filter(ImageFilter.GaussianBlur(radius))) for f in frames])


@pytest.fixture(scope="session")
def known(move: Mover) -> dict[str, Frames]:
    """One clip of each kind, uint8 [9, 96, 96, 3]."""
    real = move(right=3.0, down=0.5)
    order = np.random.default_rng(3).permutation(len(real))
    return {
        "still": move(),
        "real": real,
        "reordered": real[order],
        "shuffled": shuffle(real, move(centre=(330, 90), right=-2.0)),
        "noisy": add_noise(real, 60),
        "blurred": blur(real, 3),
    }


@pytest.fixture(scope="session")
def degraded(move: Mover) -> Callable[[Frames], dict[str, Frames]]:
    """The same clip and worse ones."""

    def make(frames: Frames) -> dict[str, Frames]:
        other = move(centre=(330, 90), right=-2.0, frames=len(frames))
        return {
            "equal": frames,
            "faint noise": add_noise(frames, 5),
            "noise": add_noise(frames, 40),
            "slight blur": blur(frames, 1),
            "blur": blur(frames, 4),
            "shuffled": shuffle(frames, other),
        }

    return make


@pytest.fixture(scope="session", autouse=True)
def one_torch_thread() -> Iterator[None]:
    """Small networks are slower on two threads than on one where others use the processor too."""
    try:
        import torch
    except ImportError:
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
