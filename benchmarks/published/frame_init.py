"""FrameInit (https://arxiv.org/abs/2402.04324): low frequencies of the first frame, high frequencies of noise.

Also the correlated noise of PYoCo (https://arxiv.org/abs/2305.10474) it starts from. Complex FFTs, shifted spectra
and `.real`, as published.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ...errors import UserError

_VIDEO_DIMS = (-3, -2, -1)


@dataclass(frozen=True)
class FrameInitOptions:
    """Low-pass filter, and the timestep whose noise the static video gets; the defaults are the published ones."""

    filter: str = "gaussian"  # or "butterworth", "ideal", "box"
    order: int = 4  # of "butterworth" only
    d_s: float = 0.25  # spatial stop frequency, relative to Nyquist
    d_t: float = 0.25  # temporal stop frequency, relative to Nyquist
    noise_level: int = 850

    def __post_init__(self) -> None:
        kinds = ("gaussian", "butterworth", "ideal", "box")
        if self.filter not in kinds:
            raise UserError(f"filter must be one of {', '.join(kinds)}, not {self.filter!r}.")


def low_pass_filter(size: tuple[int, int, int], options: FrameInitOptions) -> Tensor:
    """(frames, h, w) float32 gains, laid out as a shifted spectrum; off-centre for odd sizes, as published."""
    mask = torch.zeros(size)
    d_s, d_t = options.d_s, options.d_t
    if d_s == 0 or d_t == 0:
        return mask
    if options.filter == "box":
        mask[_box(size, d_s, d_t)] = 1.0
        return mask
    grids = [2 * torch.arange(n, dtype=torch.float64) / n - 1 for n in size]
    t, h, w = torch.meshgrid(*grids, indexing="ij")
    squared = (d_s / d_t * t) ** 2 + h**2 + w**2
    if options.filter == "gaussian":
        gains = torch.exp(-1 / (2 * d_s**2) * squared)
    elif options.filter == "butterworth":
        gains = 1 / (1 + (squared / d_s**2) ** options.order)
    else:
        gains = (squared <= 2 * d_s).double()
    return gains.float()


def _box(size: tuple[int, int, int], d_s: float, d_t: float) -> tuple[slice, slice, slice]:
    frames, height, width = (n // 2 for n in size)
    # The original takes the spatial half-width from the height alone.
    half_s, half_t = round(height * d_s), round(frames * d_t)
    return (
        slice(frames - half_t, frames + half_t),
        slice(height - half_s, height + half_s),
        slice(width - half_s, width + half_s),
    )


def mix_frequencies(latents: Tensor, noise: Tensor, mask: Tensor) -> Tensor:
    """Low frequencies of `latents`, high ones of `noise`.

    Args:
        latents, noise: (b, c, frames, h, w), any floating dtype; the transform runs in float32.
        mask: (frames, h, w) gains from :func:`low_pass_filter`.

    Returns:
        (b, c, frames, h, w) in the dtype of `latents`.
    """
    low = torch.fft.fftshift(torch.fft.fftn(latents.float(), dim=_VIDEO_DIMS), dim=_VIDEO_DIMS)
    high = torch.fft.fftshift(torch.fft.fftn(noise.float(), dim=_VIDEO_DIMS), dim=_VIDEO_DIMS)
    mixed = low * mask + high * (1 - mask)
    mixed = torch.fft.ifftn(torch.fft.ifftshift(mixed, dim=_VIDEO_DIMS), dim=_VIDEO_DIMS)
    return mixed.real.to(latents.dtype)


def draw_noise(
    shape: tuple[int, int, int, int, int],
    method: str = "pyoco_mixed",
    alpha: float = 1.0,
    generator: torch.Generator | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Unit-variance starting noise, drawn in the published order (shared noise first).

    Args:
        shape: (b, c, frames, h, w), frame 0 included.
        method: "pyoco_mixed", "pyoco_progressive" or "vanilla" (independent frames).
        alpha: share of the common part; 1 gives a correlation of 0.5 between frames.
        generator: None draws from torch's global generator.

    Raises:
        UserError: for an unknown method.
    """
    batch, channels, frames, height, width = shape
    common, own = math.sqrt(alpha**2 / (1 + alpha**2)), math.sqrt(1 / (1 + alpha**2))

    def draw(count: int) -> Tensor:
        size = (batch, channels, count, height, width)
        return torch.randn(size, generator=generator, device=device, dtype=dtype)

    if method == "vanilla":
        return draw(frames)
    if method == "pyoco_mixed":
        base = draw(1)
        return common * base + own * draw(frames)
    if method == "pyoco_progressive":
        # A whole clip is drawn for the sake of its frame 0, and every frame once more.
        noise, independent = draw(frames), draw(frames)
        for i in range(1, frames):
            noise[:, :, i] = common * noise[:, :, i - 1] + own * independent[:, :, i]
        return noise
    raise UserError(f"The noise method must be pyoco_mixed, pyoco_progressive or vanilla, not {method!r}.")
