"""Random draws of a generation, in the published order: VAE posterior, base noise, independent noise, eta's noise.

They are torch's CPU random numbers without torch, so that a seed gives the video it gives in the published code. The
generator is MT19937 (Matsumoto and Nishimura 1998); normals are Box-Muller, in the order and with the roundings of
``torch.randn`` (PyTorch, aten/src/ATen/native/cpu/DistributionTemplates.h).
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from ...errors import UserError, shown

FloatArray: TypeAlias = NDArray[np.float32]

_BLOCK = 16  # numbers that torch turns into normals together: 8 radii, 8 angles
_MIN_SEED, _MAX_SEED = -(2**63), 2**64 - 1

# Polynomials of Cephes' logf, sinf and cosf (https://www.netlib.org/cephes/), which torch's AVX2 code evaluates.
_LOG = (
    7.0376836292e-2,
    -1.1514610310e-1,
    1.1676998740e-1,
    -1.2420140846e-1,
    1.4249322787e-1,
    -1.6668057665e-1,
    2.0000714765e-1,
    -2.4999993993e-1,
    3.3333331174e-1,
)
_LOG2_LOW, _LOG2_HIGH = -2.12194440e-4, 0.693359375
_SIN = (-1.9515295891e-4, 8.3321608736e-3, -1.6666654611e-1)
_COS = (2.443315711809948e-5, -1.388731625493765e-3, 4.166664568298827e-2)
_QUARTER_PI = (0.78515625, 2.4187564849853515625e-4, 3.77489497744594108e-8)  # pi/4 in three parts


class RandomStreams:
    """One stream for all videos, as in the published pipeline, or one per video.

    With one seed the videos of a call share the stream, so a video depends on its place in the batch. With one seed
    per video each video is the one that its seed gives alone (the published code makes batch^2 samples of such a list).

    Args:
        seed: a number, or one per video.
        videos: how many.

    Raises:
        UserError: the number of seeds is not that of the videos.
    """

    def __init__(self, seed: int | tuple[int, ...] | None, videos: int) -> None:
        self._shared = not isinstance(seed, tuple)
        seeds = seed if isinstance(seed, tuple) else (seed,)
        if not self._shared and len(seeds) != videos:
            raise UserError(f"{len(seeds)} seeds for {videos} videos: give one seed, or one per video.")
        self._streams = [TorchGenerator(s) for s in seeds]  # type: ignore[arg-type]

    def randn(self, shape: tuple[int, ...], rows: int = 1) -> FloatArray:
        """Standard normal noise [videos, ...]; where each video has a stream, it draws `rows` of the first axis."""
        if self._shared:
            return self._streams[0].randn(shape)
        return np.concatenate([stream.randn((rows, *shape[1:])) for stream in self._streams])

    def posterior(self, shape: tuple[int, ...], prompts: int) -> FloatArray:
        """Noise for the VAE posterior of `prompts` images of one or more frames, shape [prompts * frames, c, h, w].

        With one seed per video every video samples the posterior for itself: [videos * frames, c, h, w].
        """
        return self.randn(shape, shape[0] // prompts)

    def noise(self, base_shape: tuple[int, ...] | None, shape: tuple[int, ...]) -> tuple[FloatArray | None, FloatArray]:
        """Base noise (None where `base_shape` is None), then independent noise; no stream waits for another one."""
        base = None if base_shape is None else self.randn(base_shape)
        return base, self.randn(shape)


class TorchGenerator:
    """``torch.Generator("cpu").manual_seed(seed)``, for standard normal float32 numbers.

    Draws are equal bit for bit to those of torch on a processor with AVX2; torch's own draws on other processors
    differ from these by rounding (a few 1e-6 at most).

    Args:
        seed: any whole number torch takes, -2**63 to 2**64 - 1. Only its lowest 32 bits count, as in torch.

    Raises:
        UserError: a seed that is not a whole number or is out of range.
    """

    def __init__(self, seed: int) -> None:
        try:
            value = operator.index(seed)
        except TypeError:
            value = None
        if value is None or isinstance(seed, bool):
            raise UserError(f"Seed {shown(seed)} is not a whole number: give one, for example 42.")
        if not _MIN_SEED <= value <= _MAX_SEED:
            raise UserError(
                f"Seed {shown(value)} is out of range: give a whole number from {_MIN_SEED} to {_MAX_SEED}."
            )
        self._words = np.random.RandomState(value & 0xFFFFFFFF)
        self._spare: float | None = None  # second normal of the last pair; torch keeps it between calls

    def randn(self, shape: int | Sequence[int]) -> FloatArray:
        """Draw standard normal numbers: ``torch.randn(shape, generator=...)``, float32.

        The numbers depend on the sizes of all draws so far, not only on how many numbers were drawn.
        """
        out: FloatArray = np.empty(shape, np.float32)
        flat = out.reshape(-1)
        if flat.size < _BLOCK:
            flat[:] = [self._scalar_normal() for _ in range(flat.size)]
            return out
        uniform = self._uniform(flat.size)
        whole = flat.size // _BLOCK * _BLOCK
        flat[:whole] = _box_muller(uniform[:whole])
        if whole < flat.size:
            # torch draws 16 more for the incomplete last block, and overwrites 16 numbers with them.
            flat[-_BLOCK:] = _box_muller(self._uniform(_BLOCK))
        return out

    def _uniform(self, count: int) -> FloatArray:
        """float32 [count] in [0, 1), multiples of 2**-24."""
        words = self._words.randint(0, 2**32, size=count, dtype=np.uint32)
        return (words & np.uint32(0xFFFFFF)).astype(np.float32) * np.float32(2**-24)

    def _scalar_normal(self) -> float:
        """The path torch takes below 16 numbers: float64, in pairs."""
        if self._spare is not None:
            value, self._spare = self._spare, None
            return value
        high1, low1, high2, low2 = self._words.randint(0, 2**32, size=4, dtype=np.uint32).tolist()
        u1, u2 = (((high << 32 | low) & (2**53 - 1)) * 2.0**-53 for high, low in ((high1, low1), (high2, low2)))
        radius, angle = math.sqrt(-2 * math.log1p(-u2)), 2 * math.pi * u1
        self._spare = radius * math.sin(angle)
        return radius * math.cos(angle)


def _box_muller(uniform: FloatArray) -> FloatArray:
    """Normals of uniforms, float32 [n] with n a multiple of 16; in each block 8 radii come before their 8 angles."""
    blocks = uniform.reshape(-1, _BLOCK)
    half = _BLOCK // 2
    radius = np.sqrt(np.float32(-2) * _log(np.float32(1) - blocks[:, :half]))
    sine, cosine = _sincos(np.float32(2 * math.pi) * blocks[:, half:])
    return np.concatenate([radius * cosine, radius * sine], axis=1).reshape(-1)


def _fma(a: FloatArray, b: FloatArray | float, c: FloatArray | float) -> FloatArray:
    """a b + c with one rounding. float64 holds the product of two float32 exactly."""
    b, c = np.asarray(b, np.float32), np.asarray(c, np.float32)
    return (a.astype(np.float64) * b + c).astype(np.float32)


def _horner(x: FloatArray, coefficients: Sequence[float]) -> FloatArray:
    value = np.full_like(x, coefficients[0])
    for coefficient in coefficients[1:]:
        value = _fma(value, x, coefficient)
    return value


def _log(x: FloatArray) -> FloatArray:
    """Natural logarithm of float32 in (0, 1], Cephes' logf with fused multiply-adds."""
    fraction, exponent = np.frexp(x)
    small = fraction < np.float32(math.sqrt(0.5))
    power = (exponent - small).astype(np.float32)
    rest = np.where(small, fraction + fraction, fraction) - np.float32(1)
    square = rest * rest
    value = _horner(rest, _LOG) * rest
    value = _fma(value, square, power * np.float32(_LOG2_LOW))
    value = rest + _fma(square, -0.5, value)
    return _fma(power, _LOG2_HIGH, value)


def _sincos(angle: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Sine and cosine of float32 angles of at least 0, Cephes' sinf and cosf with fused multiply-adds."""
    octant = ((angle * np.float32(4 / math.pi)).astype(np.int32) + 1) & ~1
    rest = angle
    for part in _QUARTER_PI:
        rest = _fma(octant.astype(np.float32), -part, rest)
    square = rest * rest
    cosine = _fma(_horner(square, _COS) * square, square, square * np.float32(-0.5)) + np.float32(1)
    sine = _fma(_horner(square, _SIN) * square, rest, rest)
    swap = (octant & 2) != 0
    sine, cosine = np.where(swap, cosine, sine), np.where(swap, sine, cosine)
    return (
        np.where((octant & 4) != 0, -sine, sine),
        np.where(((octant - 2) & 4) == 0, -cosine, cosine),
    )
