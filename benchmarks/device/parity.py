"""Each stage on the GPU against ONNX Runtime on the processor, in float32, on the same random inputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...runtime.backends import BACKENDS, Backend
from ...runtime.bundle import Bundle
from ...runtime.manifest import STAGES, TensorSpec
from ...runtime.session import OnnxCpuSession, Session

SEEDS = (0, 1, 2)
LIMITS = {"fp32": 1e-4, "fp16": 5e-3, "bf16": 5e-2, "int8": 2e-1, "fp8": 2e-1}
"""Largest relative L2 of a stage by precision; fp16's is what is promised, the others catch a wrong graph."""


def cuda_backends(bundle: Bundle) -> list[tuple[Backend, str]]:
    """Every GPU backend and precision that runs this bundle here."""
    return [
        (backend, precision)
        for backend in BACKENDS
        if backend.device == "cuda" and backend.probe().usable
        for precision in backend.precisions
        if backend.fits(bundle, precision).usable
    ]


def batches(bundle: Bundle) -> list[int]:
    """U-Net batches to try: the exported one, or one of each guidance."""
    rows = bundle.manifest.model.rows
    return [rows] if rows is not None else [1, 2, 3]


def stage_parity(bundle_path: Path, backend: Backend, precision: str) -> dict[str, float]:
    """ "stage batch seed" -> largest relative L2 over the stage's outputs."""
    bundle = Bundle.open(bundle_path, verify=False)
    worst: dict[str, float] = {}
    for stage in STAGES:
        for rows in batches(bundle) if stage == "unet" else [1]:
            dims = _dims(bundle, rows)
            session = backend.load(bundle, stage, dims, None, precision)
            spec = bundle.manifest.stages[stage]
            exact = OnnxCpuSession(bundle.file(spec.file), spec, dims)
            for seed in SEEDS:
                inputs = {t.name: _random(t, dims, np.random.default_rng([seed, len(t.name)])) for t in spec.inputs}
                outputs = [_run(s, inputs) for s in (session, exact)]
                worst[f"{stage} batch {rows} seed {seed}"] = max(
                    relative_l2(outputs[0][name], outputs[1][name]) for name in outputs[1]
                )
    return worst


def _dims(bundle: Bundle, rows: int) -> dict[str, int]:
    model = bundle.manifest.model
    factor = model.vae_scale_factor
    return {
        "rows": model.rows or rows,
        "latent_height": model.height // factor,
        "latent_width": model.width // factor,
        "height": model.height,
        "width": model.width,
    }


def _random(spec: TensorSpec, dims: dict[str, int], generator: np.random.Generator) -> NDArray[Any]:
    """Plausible values: tokens, a timestep, pixels in -1..1 or standard normal numbers."""
    shape = tuple(size if isinstance(size, int) else dims[size] for size in spec.shape)
    if spec.dtype.startswith("int"):
        high = {"input_ids": 49000, "timestep": 1000, "frame_stride": 4}.get(spec.name, 2)
        return generator.integers(1, high, shape).astype(spec.dtype)
    return generator.standard_normal(shape, np.float32)


def _run(session: Session, inputs: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    for name, array in inputs.items():
        target = session.inputs[name]
        target[...] = _as_stored(array, target.dtype)
    session.run()
    return {name: _as_numbers(array) for name, array in session.outputs.items()}


def _as_stored(array: NDArray[Any], dtype: Any) -> NDArray[Any]:
    """bfloat16 travels as its bits."""
    if dtype == np.uint16:
        return (array.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    return array.astype(dtype)


def _as_numbers(array: NDArray[Any]) -> NDArray[Any]:
    if array.dtype == np.uint16:
        return (array.astype(np.uint32) << 16).view(np.float32)
    return array.astype(np.float64)


def relative_l2(result: NDArray[Any], expected: NDArray[Any]) -> float:
    """|a - b| / |b|."""
    a, b = result.astype(np.float64), expected.astype(np.float64)
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def psnr(result: NDArray[np.uint8], expected: NDArray[np.uint8]) -> float:
    """Decibels between two 8-bit videos; equal ones count as 100."""
    error = float(np.mean((result.astype(np.float64) - expected.astype(np.float64)) ** 2))
    return 100.0 if error == 0 else float(10 * np.log10(255**2 / error))
