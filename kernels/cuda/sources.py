"""Every CUDA kernel of this package: source file, NumPy reference, entry points, arguments and grid rule.

Type suffixes of entry points: f32 float32, f16 IEEE half, bf16 bfloat16.
"""

from __future__ import annotations

from collections.abc import Mapping

from .signatures import Argument, EntryPoint, Grid, GridRule, KernelSource, elementwise, per_row

PRECISIONS = ("f32", "f16", "bf16")
MOMENT_BLOCKS = 32
"""Partial sums per video that guidance_moments leaves, each [4] float64."""
MAX_STATES = 4
HEAD_SIZES = (40, 80, 160)
MAX_FRAMES = 32

_STEP = Argument("step", "pointer", "int32 [1], the step's number; at or past `steps` nothing is written")
_STEPS = Argument("steps", "int32", "rows of the tables")
_WEIGHTS = Argument("weights", "pointer", "float32 [steps, weight_stride], first column that of the first branch run")
_PREDICTIONS = Argument("predictions", "pointer", "T [branches, videos, elements], the prompt's branch last")
_GUIDANCE_SIZES = (
    Argument("branches", "int32", "branches that ran"),
    Argument("weight_stride", "int32", "numbers from one step's weights to the next, at least `branches`"),
    Argument("videos", "int32", "videos"),
    Argument("elements", "int64", "c*f*h*w of one video, frame 0 left out"),
)


def _typed_names(name: str) -> tuple[str, ...]:
    return tuple(f"{name}_{precision}" for precision in PRECISIONS)


def _moment_grid(values: Mapping[str, int]) -> tuple[Grid, int]:
    return (MOMENT_BLOCKS, values["videos"], 1), 256


def _single_thread(values: Mapping[str, int]) -> tuple[Grid, int]:
    return (1, 1, 1), 1


def _attention_grid(values: Mapping[str, int]) -> tuple[Grid, int]:
    """One block per position, head and clip; four threads per query, whole warps."""
    threads = -(-4 * values["frames"] // 32) * 32
    positions = values["height"] * values["width"] if values["frames"] else 0
    return (positions, values["heads"], values["clips"]), threads


def _entries(name: str, arguments: tuple[Argument, ...], rule: GridRule) -> tuple[EntryPoint, ...]:
    return tuple(EntryPoint(typed, arguments, rule) for typed in _typed_names(name))


GUIDED_STEP = KernelSource(
    "guided_step",
    "guided_step",
    (
        *_entries(
            "guidance_moments",
            (
                _PREDICTIONS,
                _WEIGHTS,
                Argument("moments", "pointer", "float64 [videos, MOMENT_BLOCKS, 4], written"),
                _STEP,
                _STEPS,
                *_GUIDANCE_SIZES,
            ),
            _moment_grid,
        ),
        *_entries(
            "guided_step",
            (
                Argument("state", "pointer", "float32 [states, videos, elements], updated in place"),
                _PREDICTIONS,
                _WEIGHTS,
                Argument("matrices", "pointer", "float32 [steps, states, states + 2]"),
                Argument("noise", "pointer", "float32 [videos, elements] per step; null: none is added", optional=True),
                Argument("moments", "pointer", "what guidance_moments wrote; null: no rescale", optional=True),
                Argument("rows", "pointer", "T [copies, videos, elements], the next U-Net input; null: none", True),
                _STEP,
                _STEPS,
                *_GUIDANCE_SIZES,
                Argument("states", "int32", f"state arrays S, 1 to {MAX_STATES}", most=MAX_STATES),
                Argument("copies", "int32", "how often the new latents are written to `rows`, one per branch"),
                Argument(
                    "noise_stride", "int64", "elements from one step's noise to the next; 0: one buffer, refilled"
                ),
                Argument("rescale", "float32", "guidance rescale, 0 to 1; used only with `moments`"),
            ),
            per_row("elements", "videos"),
        ),
        *_entries(
            "repeat_rows",
            (
                Argument("latents", "pointer", "float32 [elements]"),
                Argument("rows", "pointer", "T [copies, elements]"),
                Argument("copies", "int32", "branches"),
                Argument("elements", "int64", "videos * c*f*h*w"),
            ),
            elementwise("elements"),
        ),
        EntryPoint(
            "advance_step",
            (
                Argument("step", "pointer", "int32 [1], incremented (start it at -1 and call this once)"),
                Argument("timesteps", "pointer", "int64 [steps]"),
                Argument("timestep", "pointer", "int64 [1], the U-Net's input; left alone after the last step"),
                _STEPS,
            ),
            _single_thread,
        ),
    ),
)

FRAMES_TO_UINT8 = KernelSource(
    "frames_to_uint8",
    "frames",
    _entries(
        "frames_to_uint8",
        (
            Argument("decoded", "pointer", "T [frames, 3, area]"),
            Argument("pixels", "pointer", "uint8 [frames, area, 3]"),
            Argument(
                "overflowed", "pointer", "int32 [1], set to 1 by a number that is not finite; null: not checked", True
            ),
            Argument("frames", "int32", "frames of all videos"),
            Argument("area", "int64", "height * width"),
        ),
        elementwise("frames", "area"),
    ),
)

_PLANES = Argument("planes", "int32", "videos * channels")
_FRAMES = Argument("frames", "int32", "T, frame 0 included")
_AREA = Argument("area", "int64", "latent height * width")
_BY_FRAME = elementwise("planes", "frames", "area")

FRAME_INIT = KernelSource(
    "frame_init",
    "frame_init",
    (
        EntryPoint(
            "frame_init_difference",
            (
                Argument("static_latents", "pointer", "float32 [planes, static_frames, area]"),
                Argument("noise", "pointer", "float32 [planes, frames, area]"),
                Argument("difference", "pointer", "float32 [planes, frames, area], the forward transform's input"),
                Argument("signal", "float32", "sqrt(abar) at FrameInit's noise level"),
                Argument("spread", "float32", "sqrt(1 - abar)"),
                _PLANES,
                Argument("static_frames", "int32", "1 (one frame held still) or `frames`"),
                _FRAMES,
                _AREA,
            ),
            _BY_FRAME,
        ),
        EntryPoint(
            "low_pass_mix",
            (
                Argument("spectrum", "pointer", "complex64 [planes, bins], multiplied in place"),
                Argument("mask", "pointer", "float32 [bins]"),
                _PLANES,
                Argument("bins", "int64", "T * h * (w//2 + 1)"),
            ),
            elementwise("planes", "bins"),
        ),
        EntryPoint(
            "initial_latents",
            (
                Argument("noise", "pointer", "float32 [planes, frames, area]"),
                Argument(
                    "correction", "pointer", "float32, same shape, of the inverse transform; null: no FrameInit", True
                ),
                Argument("first_frame", "pointer", "float32 [planes, area]: frame 0; null: not wanted", True),
                Argument("latents", "pointer", "float32 [planes, frames - 1, area]: the frames to denoise"),
                Argument("scale", "float32", "1 / (T*h*w): cuFFT's inverse is unnormalised"),
                _PLANES,
                _FRAMES,
                _AREA,
            ),
            _BY_FRAME,
        ),
    ),
)

NOISE = KernelSource(
    "noise",
    "noise",
    (
        EntryPoint(
            "mix_noise_pyoco_mixed",
            (
                Argument("base", "pointer", "float32 [planes, 1, area]"),
                Argument("independent", "pointer", "float32 [planes, frames, area], mixed in place"),
                Argument("kept", "float32", "sqrt(a^2 / (1 + a^2))"),
                Argument("fresh", "float32", "sqrt(1 / (1 + a^2))"),
                _PLANES,
                _FRAMES,
                _AREA,
            ),
            _BY_FRAME,
        ),
        EntryPoint(
            "mix_noise_pyoco_progressive",
            (
                Argument("base", "pointer", "float32 [planes, base_frames, area], of which frame 0 is used"),
                Argument("independent", "pointer", "float32 [planes, frames, area], mixed in place"),
                Argument("kept", "float32", "sqrt(a^2 / (1 + a^2))"),
                Argument("fresh", "float32", "sqrt(1 / (1 + a^2))"),
                _PLANES,
                Argument("base_frames", "int32", "frames of `base`, at least 1"),
                _FRAMES,
                _AREA,
            ),
            elementwise("planes", "area"),
        ),
    ),
)

PHILOX = KernelSource(
    "philox",
    "philox",
    (
        EntryPoint(
            "philox_normal",
            (
                Argument("normals", "pointer", "float32 [videos, elements], written"),
                Argument("seeds", "pointer", "uint64 [videos]"),
                Argument("step", "pointer", "int32 [1], added to `draw`; null: 0 is added", optional=True),
                Argument("draw", "uint64", "which of the seed: 0 base noise, 1 independent, 2 + step fresh noise"),
                Argument("videos", "int32", "videos"),
                Argument("elements", "int64", "normals per video"),
            ),
            per_row("elements", "videos", per_thread=4),
        ),
    ),
)

TEMPORAL_WINDOW_ATTENTION = KernelSource(
    "temporal_window_attention",
    "temporal_window_attention",
    tuple(
        EntryPoint(
            f"temporal_window_attention_d{size}_{precision}",
            (
                Argument("query", "pointer", "T [clips, frames, height*width, heads*d], not rotated"),
                Argument("key", "pointer", "T, same shape, not rotated"),
                Argument("value", "pointer", "T, same shape"),
                Argument("rotation", "pointer", "float32 [frames, heads*d/4, 2]: cos, sin; null: no rotation", True),
                Argument("out", "pointer", "T, same shape"),
                Argument("scale", "float32", "of the scores, 1/sqrt(d)"),
                Argument("clips", "int32", "rows of the U-Net batch"),
                Argument("frames", "int32", f"0 to {MAX_FRAMES}", most=MAX_FRAMES),
                Argument("height", "int32", "of the latents at this level"),
                Argument("width", "int32", "of the latents at this level"),
                Argument("heads", "int32", "heads"),
                Argument("window", "int32", "1: frame 0's 3x3 neighbours are keys too; 0: frames only"),
            ),
            _attention_grid,
        )
        for size in HEAD_SIZES
        for precision in PRECISIONS
    ),
)

SOURCES: dict[str, KernelSource] = {
    source.name: source
    for source in (GUIDED_STEP, FRAMES_TO_UINT8, FRAME_INIT, NOISE, PHILOX, TEMPORAL_WINDOW_ATTENTION)
}
"""By name, in the order of use."""
