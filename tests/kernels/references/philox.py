"""Normal noise from a counter: the same numbers on every machine, any part of them without the rest.

Philox4x32-10: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3" (the generator of cuRAND and of torch
on CUDA). This is NOT the published noise of a seed.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# Draws of one seed: what the numbers of a video are for.
BASE_NOISE, INDEPENDENT_NOISE, FIRST_FRESH_NOISE = 0, 1, 2  # fresh noise of step i: FIRST_FRESH_NOISE + i

_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_KEY_STEPS = (np.uint32(0x9E3779B9), np.uint32(0xBB67AE85))
_LOW = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)


def philox4x32(counters: np.ndarray, key: tuple[int, int]) -> np.ndarray:
    """Ten rounds of Philox on 128-bit counters.

    Args:
        counters: uint32 [..., 4], least significant word first.
        key: two 32-bit words.

    Returns:
        uint32 [..., 4].
    """
    a, b, c, d = (counters[..., i].astype(np.uint64) for i in range(4))
    k0, k1 = (np.array(word, np.uint32) for word in key)
    for _ in range(10):
        even, odd = _MULTIPLIERS[0] * a, _MULTIPLIERS[1] * c
        a, b = (odd >> _SHIFT) ^ b ^ k0, odd & _LOW
        c, d = (even >> _SHIFT) ^ d ^ k1, even & _LOW
        with np.errstate(over="ignore"):  # the key's words wrap
            k0, k1 = k0 + _KEY_STEPS[0], k1 + _KEY_STEPS[1]
    return np.stack([a, b, c, d], axis=-1).astype(np.uint32)


def box_muller(radius_bits: np.ndarray, angle_bits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Two uniform 32-bit numbers -> two independent standard normals (Box and Muller 1958).

    The uniforms are rounded to float32 as the kernel rounds them, the rest is float64: what the kernel's float32
    functions may differ from by their own rounding. The radius' uniform is in (0, 1]; the largest radius is 6.8.
    """
    uniform = radius_bits.astype(np.float32) * np.float32(2.0**-32) + np.float32(2.0**-33)
    turns = angle_bits.astype(np.float32) * np.float32(2.0**-32)
    radius = np.sqrt(-2 * np.log(uniform.astype(np.float64)))
    angle = 2 * np.pi * turns.astype(np.float64)
    return (radius * np.cos(angle)).astype(np.float32), (radius * np.sin(angle)).astype(np.float32)


def philox_normal(seeds: Sequence[int], draw: int, elements: int) -> np.ndarray:
    """Standard normal noise of one draw, one seed per video.

    Elements 4i..4i+3 of a video come from the counter (i, draw) under the seed as key. A video's noise depends on its
    own seed alone, not on its place in the batch, and fewer elements are the beginning of more.

    Args:
        seeds: one per video, 0 to 2^64 - 1.
        draw: which one, 0 to 2^64 - 1; see the names above.
        elements: normals per video.

    Returns:
        float32 [videos, elements].
    """
    blocks = -(-elements // 4)
    index = np.arange(blocks, dtype=np.uint64)
    counters = np.empty((blocks, 4), np.uint32)
    counters[:, 0], counters[:, 1] = index & _LOW, index >> _SHIFT
    counters[:, 2], counters[:, 3] = draw & 0xFFFFFFFF, draw >> 32
    normals = np.empty((len(seeds), blocks, 4), np.float32)
    for video, seed in enumerate(seeds):
        bits = philox4x32(counters, (seed & 0xFFFFFFFF, seed >> 32))
        normals[video, :, 0], normals[video, :, 1] = box_muller(bits[:, 0], bits[:, 1])
        normals[video, :, 2], normals[video, :, 3] = box_muller(bits[:, 2], bits[:, 3])
    return normals.reshape(len(seeds), 4 * blocks)[:, :elements]
