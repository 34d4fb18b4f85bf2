"""Photos, and camera moves over them: pictures for the autoencoder, latents for the U-Net."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from .layer import FRAMES
from .media import PHOTOS
from .moves import MOVES, STRIDES, photographed, places, view
from .unet import Clips
from .vae import CHROMA, LUMA, SIZE, latents_of

_PYRAMID = (1.5, 2.0, 3.0, 4.5)
"""Sides of the photos, in frame widths: a view is one frame width of one of these levels."""
_OUTSIDE = 0.1
"""How much that counts which the first frame does not show."""


Photos = list[tuple[str, list[Tensor]]]


def load_photos(work: Path, held_out: bool) -> Photos:
    """Photos as (subject, pyramid): float [3, h, w] in 0..1, never enlarged beyond the first level."""
    photos = []
    for listed in PHOTOS:
        if (listed.held_out == "yes") != held_out:
            continue
        with Image.open(listed.file(work)) as opened:
            opened.draft("RGB", (8 * SIZE, 8 * SIZE))
            image = opened.convert("RGB")
        levels: list[Tensor] = []
        for factor in _PYRAMID:
            scale = factor * SIZE / min(image.size)
            if scale > 1 and levels:
                break
            sides = (round(image.width * scale), round(image.height * scale))
            small = image.resize(sides, Image.Resampling.LANCZOS)
            levels.append(torch.from_numpy(np.asarray(small).copy()).permute(2, 0, 1).float() / 255)
        photos.append((listed.subject, levels))
    return photos


def pictures(photos: Photos, count: int, seed: int = 0) -> Tensor:
    """Random views: float [count, 3, 128, 128] in [-1, 1]."""
    rng = np.random.default_rng([seed, 1])
    views = []
    for _ in range(count):
        photo, (x, y) = _random_view(photos, rng)
        left, top = int(x - SIZE / 2), int(y - SIZE / 2)
        views.append(2 * photo[:, top : top + SIZE, left : left + SIZE] - 1)
    return torch.stack(views)


def clips(photos: Photos, number: int, count: int = 2, seed: int = 0) -> Clips:
    """A batch of camera moves at random places and strides; the moves take turns."""
    rng = np.random.default_rng([seed, 2, number])
    batch = []
    for k in range(count):
        photo, centre = _random_view(photos, rng)
        move, stride = list(MOVES)[(number * count + k) % len(MOVES)], int(rng.choice(STRIDES))
        views = [view(move, frame, stride) for frame in range(FRAMES)]
        seen = [places(v, 2 * SIZE) for v in views]
        frames = photographed(photo, centre, SIZE, seen, smear=True)
        rows = photographed(photo, centre, SIZE, [places(v, 2 * SIZE, rows=True) for v in views], smear=True)
        shown = torch.stack([(x.abs() < 0.5) & (y.abs() < 0.5) for x, y in seen])[:, None].float()
        luma, chroma = F.avg_pool2d(shown, 4), F.avg_pool2d(shown, 8)
        inside = torch.cat([F.pixel_unshuffle(luma, LUMA), *2 * [F.pixel_unshuffle(chroma, CHROMA)]], 1)
        weights = _OUTSIDE + (1 - _OUTSIDE) * inside
        code = torch.tensor(MOVES[move], dtype=torch.float)
        batch.append((latents_of(2 * frames - 1), latents_of(2 * rows - 1), weights, code, torch.tensor(stride)))
    return Clips(*(torch.stack(parts) for parts in zip(*batch, strict=True)))


def _random_view(photos: Photos, rng: np.random.Generator) -> tuple[Tensor, tuple[float, float]]:
    levels = photos[rng.integers(len(photos))][1]
    photo = levels[rng.integers(len(levels))]
    photo = photo.flip(-1) if rng.random() < 0.5 else photo
    height, length = photo.shape[1:]
    return photo, (rng.uniform(SIZE / 2, length - SIZE / 2), rng.uniform(SIZE / 2, height - SIZE / 2))
