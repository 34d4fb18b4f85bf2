"""Stages on the GPU against ONNX Runtime on the processor, in float32, on the inputs variants are checked on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from consisti2v_rt.export.precision.cases import Cases
from consisti2v_rt.runtime.backends import BACKENDS, Backend
from consisti2v_rt.runtime.bundle.bundle import Bundle
from consisti2v_rt.runtime.session import OnnxCpuSession, Session

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


def stage_parity(
    bundle_path: Path, backend: Backend, precision: str, stages: Sequence[str] | None = None
) -> dict[str, float]:
    """ "stage batch seed" -> largest relative L2 over the stage's outputs: three seeds, each batch of the U-Net.

    Args:
        stages: names; None: all of the bundle.
    """
    bundle = Bundle.open(bundle_path, verify=False)
    cases = Cases(bundle)
    worst: dict[str, float] = {}
    for stage in stages or bundle.manifest.stages:
        spec = bundle.manifest.stages[stage]
        trials = list(cases.of(stage))
        for sizes in cases.sizes(spec):
            dims = dims_of(bundle, sizes)
            session = backend.load(bundle, stage, dims, None, precision)
            exact = OnnxCpuSession(bundle.file(spec.file), spec, dims)
            for case in (case for case in trials if case.dims == sizes):
                found, expected = (run_session(each, case.inputs) for each in (session, exact))
                batch = dims["rows"] if stage.startswith("unet") else sizes.get("frames", 1)
                worst[f"{stage} batch {batch} seed {case.seed}"] = max(
                    relative_l2(found[name], expected[name]) for name in expected
                )
    return worst


def dims_of(bundle: Bundle, sizes: Mapping[str, int]) -> dict[str, int]:
    """Every dynamic size by name: those given, else the bundle's own; two rows where its batch is open."""
    model = bundle.manifest.model
    factor = model.vae_scale_factor
    return {
        "rows": model.rows or 2,
        "latent_height": model.height // factor,
        "latent_width": model.width // factor,
        "height": model.height,
        "width": model.width,
        **sizes,
    }


def run_session(session: Session, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Copies of the outputs, inputs written in the session's types; bfloat16 travels as its bits."""
    for name, array in inputs.items():
        target = session.inputs[name]
        if target.dtype == np.uint16:
            array = (array.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
        target[...] = array.astype(target.dtype)
    session.run()
    return {
        name: (array.astype(np.uint32) << 16).view(np.float32) if array.dtype == np.uint16 else array.astype(np.float64)
        for name, array in session.outputs.items()
    }


def relative_l2(result: NDArray[Any], expected: NDArray[Any]) -> float:
    """|a - b| / |b|."""
    a, b = result.astype(np.float64), expected.astype(np.float64)
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))
