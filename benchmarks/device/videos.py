"""Whole videos on the GPU: against the processor's float32 one at the same noise, with and without graph."""

from __future__ import annotations

import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from ...locations import ASSETS
from ...runtime.backends import BACKENDS, Backend, Choice
from ...runtime.bundle.bundle import Bundle
from ...runtime.gpu.options import GpuOptions
from ...runtime.pipeline import ImageToVideo
from ...runtime.request.presets import PUBLISHED
from .parity import psnr, relative_l2

PHOTO = ASSETS / "example.jpg"


def open_on(bundle: Path, backend: str, precision: str, gpu: GpuOptions) -> ImageToVideo:
    """The bundle on this backend, whichever would be chosen by itself."""
    choice = Choice(find_backend(backend), precision, "asked for")
    return ImageToVideo(Bundle.open(bundle, verify=False), choice=choice, gpu=gpu)


def find_backend(name: str) -> Backend:
    return next(entry for entry in BACKENDS if entry.name == name)


def compare_video(
    bundle: Path,
    backend: str,
    precision: str,
    *,
    cuda_graph: bool = True,
    low_vram: bool | None = None,
    steps: int = 25,
    rounds: int = 5,
) -> dict[str, Any]:
    """One video on the GPU, timed after a first run, and its distance from the processor's.

    Args:
        bundle: one that the backend runs in this precision.
        cuda_graph: replay each step as one graph.
        low_vram: one stage's weights on the GPU at a time; None: all where they fit.
        rounds: timed runs.
    """
    options: dict[str, Any] = {**PUBLISHED, "num_inference_steps": steps, "seed": 7}
    exact = ImageToVideo.from_bundle(bundle, verify=False, device="cpu")(PHOTO, "zoom in", **options)
    animate = open_on(bundle, backend, precision, GpuOptions(cuda_graph=cuda_graph, low_vram=low_vram))
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
        "step_ms": 1000 * median(run["stages"]["unet"] for run in runs) / steps if runs else 0.0,
        "graph": generation.loop.graph_reasons,
        "memory": generation.memory_report(),
        "latents_relative_l2": relative_l2(result.latents, exact.latents),
        "psnr_db": psnr(result.frames, exact.frames),
    }


def device_noise(bundle: Path, backend: str, precision: str, *, steps: int = 25) -> dict[str, Any]:
    """Noise drawn on the GPU: another video than the processor's, the same for the same seed.

    Raises:
        RuntimeError: a seed does not repeat, or is not heard.
    """
    animate = open_on(bundle, backend, precision, GpuOptions(device_noise=True))
    on_host = open_on(bundle, backend, precision, GpuOptions())
    options: dict[str, Any] = {**PUBLISHED, "num_inference_steps": steps}
    one, again, other = (animate(PHOTO, "zoom in", seed=seed, **options) for seed in (7, 7, 8))
    drawn_on_host = on_host(PHOTO, "zoom in", seed=7, **options)
    result = {
        "repeats": bool(np.array_equal(one.latents, again.latents)),
        "relative_l2_of_another_seed": relative_l2(other.latents, one.latents),
        "relative_l2_of_noise_from_the_host": relative_l2(drawn_on_host.latents, one.latents),
        "latents_std": float(one.latents.std()),
        "latents_std_of_noise_from_the_host": float(drawn_on_host.latents.std()),
        "noise_seconds": one.timings.get("noise", 0.0),
        "noise_seconds_on_the_host": drawn_on_host.timings.get("noise", 0.0),
    }
    if not result["repeats"] or result["relative_l2_of_another_seed"] < 1e-3:
        raise RuntimeError(f"the noise on the device does not follow its seed: {result}")
    return result
