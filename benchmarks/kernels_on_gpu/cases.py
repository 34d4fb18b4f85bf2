"""What is timed: every kernel at the shipped model's sizes, 256 × 256 pixels, 16 frames, text guidance."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...kernels.cuda.sources import MOMENT_BLOCKS
from ...kernels.temporal_window_attention import rotation_table
from .engine_attention import attention_graph

VIDEOS, CHANNELS, FRAMES, SIDE, PIXELS = 1, 4, 16, 32, 256
HEADS = 8
# Side of the latents and channels of a head at the three levels with temporal attention of their own size.
ATTENTION_LEVELS = ((32, 40), (16, 80), (8, 160))

Formulation = Callable[[dict[str, Any]], Any]
"""Takes the case's arrays as torch tensors on the GPU."""


@dataclass(frozen=True)
class Case:
    """One measurement.

    Attributes:
        name: of the row.
        source: kernel source.
        launches: entry points with their numbers, run one after the other.
        arrays: by argument name, shared by the launches.
        bytes_moved: what has to be read and written at least, for the share of the memory's bandwidth.
        in_torch: the plain formulation.
        engine: the same as an ONNX graph, for kernels that could stand in an engine; None for the others.
    """

    name: str
    source: str
    launches: tuple[tuple[str, dict[str, Any]], ...]
    arrays: dict[str, NDArray[Any]]
    bytes_moved: int
    in_torch: Formulation
    engine: bytes | None = None


def cases() -> list[Case]:
    """All of them, with random data; needs torch for the plain formulations."""
    generator = np.random.default_rng(0)

    def normal(*shape: int) -> NDArray[np.float32]:
        return generator.standard_normal(shape, dtype=np.float32)

    return [
        *(_guided_step(normal, rescale) for rescale in (0.0, 0.7)),
        _frames_to_uint8(normal),
        *_frame_init(normal),
        *_noise(normal),
        *(_attention(normal, side, head_size) for side, head_size in ATTENTION_LEVELS),
    ]


def _guided_step(normal: Callable[..., Any], rescale: float) -> Case:
    from . import torch_formulations

    elements = CHANNELS * (FRAMES - 1) * SIDE * SIDE
    arrays = {
        "state": normal(1, VIDEOS, elements),
        "predictions": normal(2, VIDEOS, elements),
        "weights": np.array([[-6.5, 7.5]], np.float32),
        "matrices": np.array([[[0.99, -0.02, 0.0]]], np.float32),
        "moments": np.zeros((VIDEOS, MOMENT_BLOCKS, 4)),
        "rows": normal(2, VIDEOS, elements),
        "step": np.zeros(1, np.int32),
    }
    sizes = {"steps": 1, "branches": 2, "weight_stride": 2, "videos": VIDEOS, "elements": elements}
    step = {"noise": None, "states": 1, "copies": 2, "noise_stride": 0, "rescale": rescale} | sizes
    if rescale == 0:
        step["moments"] = None
    moments = (("guidance_moments_f32", sizes),) if rescale else ()
    return Case(
        "guided step, rescale" if rescale else "guided step",
        "guided_step",
        (*moments, ("guided_step_f32", step)),
        arrays,
        4 * VIDEOS * elements * (2 + 2 + 2),
        lambda tensors: torch_formulations.guided_step(tensors, rescale),
    )


def _frames_to_uint8(normal: Callable[..., Any]) -> Case:
    from . import torch_formulations

    area = PIXELS * PIXELS
    arrays = {
        "decoded": normal(FRAMES, 3, area).astype(np.float16),
        "pixels": np.zeros((FRAMES, area, 3), np.uint8),
    }
    numbers = {"overflowed": None, "frames": FRAMES, "area": area}
    name = "frames_to_uint8"
    launches = ((f"{name}_f16", numbers),)
    return Case(name, name, launches, arrays, 3 * FRAMES * 3 * area, torch_formulations.frames_to_uint8)


def _frame_init(normal: Callable[..., Any]) -> list[Case]:
    from . import torch_formulations

    planes, area = VIDEOS * CHANNELS, SIDE * SIDE
    bins, volume = FRAMES * SIDE * (SIDE // 2 + 1), FRAMES * SIDE * SIDE
    sizes = {"planes": planes, "frames": FRAMES, "area": area}
    noise = normal(planes, FRAMES, area)
    difference = {"static_latents": normal(planes, 1, area), "noise": noise, "difference": np.zeros_like(noise)}
    spectrum = (normal(planes, bins) + 1j * normal(planes, bins)).astype(np.complex64)
    latents = {
        "noise": noise,
        "correction": normal(planes, FRAMES, area),
        "first_frame": np.zeros((planes, area), np.float32),
        "latents": np.zeros((planes, FRAMES - 1, area), np.float32),
    }
    rows = (
        (
            "frame_init_difference",
            {"signal": 0.6, "spread": 0.8, "static_frames": 1} | sizes,
            difference,
            8 * planes * volume,
            torch_formulations.frame_init_difference,
        ),
        (
            "low_pass_mix",
            {"planes": planes, "bins": bins},
            {"spectrum": spectrum, "mask": np.abs(normal(bins))},
            16 * planes * bins,
            torch_formulations.low_pass_mix,
        ),
        (
            "initial_latents",
            {"scale": 1 / volume} | sizes,
            latents,
            12 * planes * volume,
            torch_formulations.initial_latents,
        ),
    )
    return [
        Case(name, "frame_init", ((name, numbers),), arrays, moved, formulation)
        for name, numbers, arrays, moved, formulation in rows
    ]


def _noise(normal: Callable[..., Any]) -> list[Case]:
    from . import torch_formulations

    planes, area = VIDEOS * CHANNELS, SIDE * SIDE
    count = planes * FRAMES * area
    numbers = {"kept": math.sqrt(0.5), "fresh": math.sqrt(0.5), "planes": planes, "frames": FRAMES, "area": area}
    mixed = {"base": normal(planes, 1, area), "independent": normal(planes, FRAMES, area)}
    drawn = {"normals": normal(VIDEOS, count // VIDEOS), "seeds": np.arange(VIDEOS, dtype=np.uint64)}
    philox = {"step": None, "draw": 1, "videos": VIDEOS, "elements": count // VIDEOS}
    name = "mix_noise_pyoco_mixed"
    return [
        Case(name, "noise", ((name, numbers),), mixed, 8 * count, torch_formulations.mix_noise),
        Case(
            "philox_normal", "philox", (("philox_normal", philox),), drawn, 4 * count, torch_formulations.normal_noise
        ),
    ]


def _attention(normal: Callable[..., Any], side: int, head_size: int) -> Case:
    from . import torch_formulations

    clips, channels = 2 * VIDEOS, HEADS * head_size
    shape = (clips, FRAMES, side * side, channels)
    arrays: dict[str, NDArray[Any]] = {
        name: normal(*shape).astype(np.float16) for name in ("query", "key", "value", "out")
    }
    arrays["rotation"] = rotation_table(FRAMES, channels)
    numbers = {
        "scale": head_size**-0.5,
        "clips": clips,
        "frames": FRAMES,
        "height": side,
        "width": side,
        "heads": HEADS,
        "window": 1,
    }
    name = "temporal_window_attention"
    return Case(
        f"{name}, {side}×{side}, head size {head_size}",
        name,
        ((f"{name}_d{head_size}_f16", numbers),),
        arrays,
        4 * 2 * math.prod(shape),
        lambda tensors: torch_formulations.temporal_window_attention(tensors, HEADS, side, side),
        attention_graph(clips, FRAMES, side, HEADS, head_size),
    )
