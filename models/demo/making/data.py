"""Training pictures and clips: photos at several sizes, film shots, camera moves rendered from both."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from .captions import move_caption
from .media import FILM, PHOTOS, media_path
from .moves import MOVES, STRIDES, extent, render

# Sides of the photo pyramid, in frame widths: a view is one frame width of one of these levels.
_PYRAMID = (1.5, 2.0, 3.0, 4.5)
FILM_STRIDE = 2
"""Film frames kept: every second, 12 a second; a stride of 1 in film is 1/12 s."""
_FILM_SHARE = 0.05
_STILL_PHOTO_SHARE = 0.4
FILM_CAPTIONS = ("an animated film", "a scene of an animated film", "animated characters move")
MAX_SHIFT = 6
"""Pixels between two views of a picture that the autoencoder is trained on."""
_Frames = NDArray[np.uint8]


@dataclass(frozen=True)
class Clip:
    """A training or evaluation clip."""

    frames: Tensor
    """float [f, 3, size, size] in [-1, 1]."""
    caption: str
    stride: int
    move: str
    """One of :data:`MOVES`, or "film"."""


@dataclass(frozen=True)
class PicturePairs:
    """Views of pictures, and the same views moved."""

    seen: Tensor
    """float [n, 3, size, size] in [-1, 1]."""
    moved: Tensor
    """The same, moved by `right` and `down`."""
    right: Tensor
    down: Tensor
    """float [n], pixels, whole numbers."""

    def to(self, device: str) -> PicturePairs:
        return PicturePairs(*(tensor.to(device) for tensor in (self.seen, self.moved, self.right, self.down)))


def load_photos(work: Path, size: int, held_out: bool) -> list[tuple[str, list[Tensor]]]:
    """Photos as (subject, pyramid): float [3, h, w] in 0..1, the shorter side of each level 1.5 to 4.5 frame widths."""
    photos = []
    for medium in PHOTOS:
        if medium.held_out != held_out:
            continue
        with Image.open(media_path(work, medium)) as opened:
            opened.draft("RGB", (8 * size, 8 * size))
            image = opened.convert("RGB")
        photos.append((medium.subject, pyramid(image, size)))
    return photos


def pyramid(image: Image.Image, size: int) -> list[Tensor]:
    """The picture with its shorter side at 1.5, 2, 3 and 4.5 frame widths, never enlarged beyond the first."""
    levels: list[Tensor] = []
    for factor in _PYRAMID:
        scale = factor * size / min(image.size)
        if scale > 1 and levels:
            break
        small = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS)
        levels.append(torch.from_numpy(np.asarray(small).copy()).permute(2, 0, 1).float() / 255)
    return levels


def load_film(work: Path, size: int) -> tuple[_Frames, NDArray[np.int64]]:
    """The film as uint8 [n, 1.5 size, w, 3] at every second frame, and the index of each shot's first frame.

    Decoded once and kept under `work`.
    """
    kept = work / f"film_{size}.npz"
    if not kept.is_file():
        height = int(1.5 * size)
        frames: list[_Frames] = []
        with av.open(str(media_path(work, FILM))) as film:
            stream = film.streams.video[0]
            stream.thread_type = "AUTO"
            width = round(height * stream.width / stream.height / 2) * 2
            for i, frame in enumerate(film.decode(stream)):
                if i % FILM_STRIDE == 0:
                    frames.append(frame.to_ndarray(width=width, height=height, format="rgb24", interpolation="AREA"))
        film_frames = np.stack(frames)
        partial = kept.with_name("film.partial.npz")
        np.savez(partial, frames=film_frames, shots=shot_starts(film_frames))
        partial.rename(kept)
    with np.load(kept) as stored:
        return stored["frames"], stored["shots"]


def shot_starts(frames: _Frames) -> NDArray[np.int64]:
    """First frame of each shot: where the colour histogram jumps."""
    small = frames[:, ::4, ::4].astype(np.int64) // 32
    histograms = np.stack([np.stack([np.bincount(f[..., c].ravel(), minlength=8) for c in range(3)]) for f in small])
    change = np.abs(np.diff(histograms, axis=0)).sum((1, 2)) / (2 * 3 * small[0, ..., 0].size)
    return np.concatenate([[0], np.flatnonzero(change > 0.25) + 1])


class ClipSource:
    """Draws clips: camera moves over photos and film stills, and film shots.

    Every eighth shot of the film, and the photos marked so, are held out as wholes.
    """

    def __init__(self, work: Path, size: int, frames: int, held_out: bool = False) -> None:
        self.size, self.frames = size, frames
        self.photos = load_photos(work, size, held_out)
        self._film, starts = load_film(work, size)
        ends = np.append(starts[1:], len(self._film))
        lots = [(int(a), int(b)) for i, (a, b) in enumerate(zip(starts, ends, strict=True)) if (i % 8 == 7) == held_out]
        # The first and last seconds are titles on black.
        inside = [(a, b) for a, b in lots if a >= 24 * 12 and b <= len(self._film) - 24 * 50]
        self.shots = [(a, b) for a, b in inside if b - a >= frames + 2]

    def draw(self, rng: np.random.Generator, move: str | None = None, stride: int | None = None) -> Clip:
        """A clip; a camera move where one is asked for."""
        stride = int(rng.choice(STRIDES)) if stride is None else stride
        if move is None and rng.random() < _FILM_SHARE:
            clip = self._film_clip(rng, stride)
            if clip is not None:
                return clip
        subject, levels = self._picture(rng)
        move = MOVES[rng.integers(len(MOVES))] if move is None else move
        return self.moved(subject, levels, move, stride, rng)

    def moved(self, subject: str, levels: list[Tensor], move: str, stride: int, rng: np.random.Generator) -> Clip:
        """A camera move at a random place of a picture."""
        photo = levels[rng.integers(len(levels))]
        if rng.random() < 0.5:
            photo = photo.flip(-1)
        left, top, right, bottom = extent(move, self.frames, stride)
        height, length = photo.shape[1:]
        width = min(self.size * rng.uniform(0.8, 1.25), height / (bottom - top), length / (right - left))
        x = rng.uniform(-left * width, max(length - right * width, -left * width + 1e-3))
        y = rng.uniform(-top * width, max(height - bottom * width, -top * width + 1e-3))
        frames = render(photo, (x, y), width, move, stride, self.frames, self.size)
        return Clip(2 * frames - 1, move_caption(move, subject, rng), stride, move)

    def picture_pairs(self, rng: np.random.Generator, count: int) -> PicturePairs:
        """Frames for the autoencoder, each with what a view shows that is moved by up to :data:`MAX_SHIFT` pixels."""
        seen: list[Tensor] = []
        moved: list[Tensor] = []
        shifts = rng.integers(-MAX_SHIFT, MAX_SHIFT + 1, (count, 2))
        for right, down in shifts.tolist():
            _, levels = self._picture(rng)
            photo = levels[rng.integers(len(levels))]
            photo = photo.flip(-1) if rng.random() < 0.5 else photo
            y, x = (rng.integers(MAX_SHIFT, length - self.size - MAX_SHIFT + 1) for length in photo.shape[1:])
            for crops, top, left in ((seen, y, x), (moved, y + down, x + right)):
                crops.append(2 * photo[:, top : top + self.size, left : left + self.size] - 1)
        right, down = torch.from_numpy(shifts).float().unbind(1)
        return PicturePairs(torch.stack(seen), torch.stack(moved), right, down)

    def shot_clips(self, count: int, stride: int) -> list[Clip]:
        """The middles of `count` shots, spread evenly over those that are long enough."""
        span = (self.frames - 1) * stride
        shots = [(a, b) for a, b in self.shots if b - a >= span + 3]
        chosen = [shots[i] for i in np.linspace(0, len(shots) - 1, min(count, len(shots))).round().astype(int)]
        clips = []
        for first, end in chosen:
            start = (first + end - span) // 2
            frames = self._film_frames(start + stride * np.arange(self.frames))
            small = torch.nn.functional.interpolate(frames, scale_factor=2 / 3, mode="area")
            x = (small.shape[-1] - self.size) // 2
            clips.append(Clip(2 * small[..., : self.size, x : x + self.size] - 1, FILM_CAPTIONS[0], stride, "film"))
        return clips

    def _picture(self, rng: np.random.Generator) -> tuple[str, list[Tensor]]:
        if not self.shots or rng.random() < _STILL_PHOTO_SHARE:
            return self.photos[rng.integers(len(self.photos))]
        first, end = self.shots[rng.integers(len(self.shots))]
        return FILM_CAPTIONS[0], [self._film_frames(np.array([rng.integers(first + 1, end - 1)]))[0]]

    def _film_clip(self, rng: np.random.Generator, stride: int) -> Clip | None:
        span = (self.frames - 1) * stride
        long_enough = [(a, b) for a, b in self.shots if b - a >= span + 3]
        if not long_enough:
            return None
        first, end = long_enough[rng.integers(len(long_enough))]
        start = rng.integers(first + 1, end - 1 - span)
        frames = self._film_frames(start + stride * np.arange(self.frames))
        small = torch.nn.functional.interpolate(frames, scale_factor=2 / 3, mode="area")
        x = rng.integers(small.shape[-1] - self.size + 1)
        caption = FILM_CAPTIONS[rng.integers(len(FILM_CAPTIONS))]
        return Clip(2 * small[..., : self.size, x : x + self.size] - 1, caption, stride, "film")

    def _film_frames(self, indices: NDArray[np.int64]) -> Tensor:
        """float [n, 3, h, w] in 0..1."""
        return torch.from_numpy(self._film[indices]).permute(0, 3, 1, 2).float() / 255
