"""Whole videos on the GPU: against the processor's float32 one at the same noise, with and without graph."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from ...runtime.backends import BACKENDS, Choice
from ...runtime.bundle import Bundle
from ...runtime.gpu_options import GpuOptions
from ...runtime.pipeline import ImageToVideo
from .parity import psnr, relative_l2

PHOTO = Path(__file__).parents[2] / "assets" / "example.jpg"


def open_on(bundle: Path, backend: str, precision: str, gpu: GpuOptions) -> ImageToVideo:
    """The bundle on this backend, whichever would be chosen by itself."""
    entry = next(entry for entry in BACKENDS if entry.name == backend)
    return ImageToVideo(Bundle.open(bundle, verify=False), choice=Choice(entry, precision, "asked for"), gpu=gpu)


def compare_video(
    bundle: Path, backend: str, precision: str, *, cuda_graph: bool, steps: int = 25, rounds: int = 3
) -> dict[str, Any]:
    """One video on the GPU, timed after a first run, and its distance from the processor's.

    Args:
        bundle: one that the backend runs in this precision.
        cuda_graph: replay each step as one graph.
        rounds: timed runs.
    """
    options: dict[str, Any] = {"num_inference_steps": steps, "seed": 7}
    exact = ImageToVideo.from_bundle(bundle, verify=False, device="cpu")(PHOTO, "zoom in", **options)
    animate = open_on(bundle, backend, precision, GpuOptions(cuda_graph=cuda_graph))
    started = time.perf_counter()
    result = animate(PHOTO, "zoom in", **options)
    first = time.perf_counter() - started
    runs: list[dict[str, Any]] = []
    for _ in range(rounds):
        started = time.perf_counter()
        result = animate(PHOTO, "zoom in", **options)
        runs.append({"seconds": time.perf_counter() - started, "stages": dict(result.timings)})
    generation = animate.gpu
    assert generation is not None
    return {
        "backend": backend,
        "precision": precision,
        "steps": steps,
        "first_seconds": first,
        "runs": runs,
        "step_ms": 1000 * min((run["stages"]["unet"] for run in runs), default=0.0) / steps,
        "graph": generation.loop.graph_reasons,
        "memory": generation.memory_report(),
        "latents_relative_l2": relative_l2(result.latents, exact.latents),
        "psnr_db": psnr(result.frames, exact.frames),
    }
