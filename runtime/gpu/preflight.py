"""Memory check before anything is loaded: bytes needed against bytes free.

On Windows a full GPU memory silently spills to system RAM, about 10x slower. So the need is added up first, from the
manifest and from the facts beside each engine, and reported in one sentence.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from ...errors import UserError
from ...kernels.vae import FRAMES_AT_ONCE
from ..bundle.bundle import Bundle
from ..bundle.manifest import EngineSpec, ProfileSpec, StageSpec
from ..files.guarded_read import parse_json
from ..session import dynamic_size
from .memory import STORAGE

RESERVE = 256 << 20
"""Assumed, not measured: what the libraries keep beside our buffers (kernels, cuFFT's work area, fragments)."""
_DECODER_WORK = 256
"""Assumed where a backend does not tell: working memory of the VAE decoder for a frame, in pictures of float32. Stable
Diffusion's has 256 channels at full size, held a few times in half precision."""
_GIB = float(1 << 30)


@dataclass(frozen=True)
class Need:
    """Bytes of device memory, by stage."""

    weights: Mapping[str, int]
    workspace: Mapping[str, int]
    """Working memory of engines; the largest is shared by all. Of ONNX graphs it is not known before they run."""
    buffers: int
    """Inputs, outputs and the loop's own arrays."""
    known: bool = True
    """Whether `workspace` is complete."""

    @property
    def resident(self) -> int:
        """Every stage's weights at once: nothing is loaded twice."""
        return sum(self.weights.values()) + max(self.workspace.values(), default=0) + self.buffers + RESERVE

    @property
    def one_stage(self) -> int:
        """The weights of the stage that runs, and no others."""
        largest = max(self.weights.values(), default=0)
        return largest + max(self.workspace.values(), default=0) + self.buffers + RESERVE


@dataclass(frozen=True)
class Plan:
    """How a generation uses the memory there is."""

    low_vram: bool
    """Only one stage's weights on the GPU at a time."""
    needed: int
    """Bytes."""
    known: bool
    """Whether `needed` is all of it, or the least."""
    message: str
    """Needed against free memory, in one line."""
    warning: str | None = None


def plan(need: Need, free: int, total: int, low_vram: bool | None) -> Plan:
    """Choose how to run in the memory that is free.

    Args:
        free, total: bytes of the GPU's memory.
        low_vram: True: as little as possible; False: everything stays on the GPU; None: the second where it fits.

    Raises:
        UserError: it does not fit.
    """
    at_least = "" if need.known else "at least "
    there = f"{free / _GIB:.1f} of {total / _GIB:.1f} GiB are free"
    lean = f"{at_least}{need.one_stage / _GIB:.1f} GiB"
    full = f"{at_least}{need.resident / _GIB:.1f} GiB"
    if need.one_stage > free:
        raise UserError(
            f"this bundle needs {lean} of GPU memory even with --low-vram, and {there}: close other programs that use "
            "the GPU, choose a smaller size or precision, or pass --device cpu."
        )
    if need.resident > free:
        if low_vram is False:
            raise UserError(
                f"this bundle needs {full} of GPU memory, and {there}: pass --low-vram ({lean}), or close other "
                "programs that use the GPU."
            )
        warning = None
        if low_vram is None:
            warning = (
                f"{full} of GPU memory would be needed to keep all stages there, and {there}: going on as --low-vram"
            )
        return Plan(True, need.one_stage, need.known, f"GPU memory: {lean} needed, {there}", warning)
    if low_vram:
        return Plan(True, need.one_stage, need.known, f"GPU memory: {lean} needed, {there}")
    return Plan(False, need.resident, need.known, f"GPU memory: {full} needed, {there}")


def frames_at_once(
    need_of: Callable[[int], Need], image_bytes: int, free: int, low_vram: bool | None
) -> tuple[int, Need]:
    """How many frames the decoder takes in one run, of :data:`FRAMES_AT_ONCE` the most that fit without stages taking
    turns for it; and what is needed then.

    Args:
        need_of: frames of one run -> what is needed.
        image_bytes: of one decoded frame in float32.
        free: bytes of the GPU's memory.
        low_vram: whether stages take turns in any case.
    """
    for frames in sorted(FRAMES_AT_ONCE, reverse=True):
        need = need_of(frames)
        working = 0 if need.known else frames * _DECODER_WORK * image_bytes
        if (need.one_stage if low_vram else need.resident) + working <= free:
            break
    return frames, need


def need_of_engines(bundle: Bundle, engines: Mapping[str, EngineSpec], dims: Mapping[str, int], rows: int) -> Need:
    """What engines need, from their files and the facts beside them.

    Args:
        engines: stage -> engine.
        dims: sizes of dynamic dimensions.
        rows: of the loop's buffers: guidance branches times videos.
    """
    weights = {stage: bundle.manifest.files[engine.file].bytes for stage, engine in engines.items()}
    workspace: dict[str, int] = {}
    for stage, engine in engines.items():
        size = _scratch_of(bundle, engine, rows, dims.get("frames", 1))
        if size is not None:
            workspace[stage] = size
    stages = {stage: bundle.manifest.stages[stage] for stage in engines}
    return Need(weights, workspace, _buffers(stages, dims, rows), known=len(workspace) == len(engines))


def need_of_graphs(bundle: Bundle, stages: Mapping[str, StageSpec], dims: Mapping[str, int], rows: int) -> Need:
    """What ONNX graphs need at least: their weights and our buffers."""
    weights = {}
    for stage, spec in stages.items():
        folder = spec.file.rsplit("/", 1)[0] + "/"
        weights[stage] = sum(r.bytes for path, r in bundle.manifest.files.items() if path.startswith(folder))
    return Need(weights, {}, _buffers(stages, dims, rows), known=False)


def _scratch_of(bundle: Bundle, engine: EngineSpec, rows: int, frames: int) -> int | None:
    """Working memory of an engine by its facts, of the profiles that so many rows, or frames of the decoder, use; None
    where they do not say.
    """
    if not engine.metadata:
        return None
    try:
        metadata: Any = parse_json(bundle.read(engine.metadata).tobytes())
        sizes = [int(size) for size in metadata["activation_bytes"]]
        if len(sizes) == len(engine.profiles):
            used = [
                size
                for size, profile in zip(sizes, engine.profiles, strict=True)
                if (profile.rows is None or profile.rows <= rows) and _fewest_frames(engine, profile) <= frames
            ]
            return max(used, default=sizes[0])
        return max(sizes)
    except (ValueError, KeyError, TypeError):
        return None


def _fewest_frames(engine: EngineSpec, profile: ProfileSpec) -> int:
    """Of a profile of the decoder's engine; 1 of another stage's."""
    open_frames = (spec.name for spec in engine.inputs if spec.shape[:1] == ("frames",))
    return min((profile.inputs[name].minimum[0] for name in open_frames), default=1)


def _buffers(stages: Mapping[str, StageSpec], dims: Mapping[str, int], rows: int) -> int:
    """Every stage's inputs and outputs; the loop's rows, states and noise (eight times its rows, generously)."""
    total = 0
    for stage in stages.values():
        total += sum(_bytes(spec.shape, spec.dtype, dims) for spec in (*stage.inputs, *stage.outputs))
    sample = next((spec for spec in stages["unet"].inputs if spec.name == "sample"), None) if "unet" in stages else None
    if sample is not None:
        one_row = _bytes(sample.shape, sample.dtype, dims) // max(_size(sample.shape[0], dims), 1)
        total += 8 * rows * one_row
    return total


def _bytes(shape: tuple[int | str, ...], dtype: str, dims: Mapping[str, int]) -> int:
    return prod(_size(size, dims) for size in shape) * STORAGE[dtype]().itemsize


def _size(size: int | str, dims: Mapping[str, int]) -> int:
    return size if isinstance(size, int) else dynamic_size(size, dims)
