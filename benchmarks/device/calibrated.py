"""Engines with activations in 8 bits: calibrated on the example photo, built, and their distance from float32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...runtime.bundle.bundle import Bundle
from ...runtime.files.guarded_read import LOSSES, read_json
from .engines import target_here
from .parity import stage_parity
from .videos import compare_video, find_backend

STAGE = "unet"


def calibrated_engine(bundle: Path, precision: str) -> dict[str, Any]:
    """``build --precision int8|fp8 --calibrate demo`` for this card, then the U-Net's parity and a video.

    Raises:
        UserError: it is not built for this card, or does not run on it.
    """
    from ...export.engines.bundle_engines import build_engines
    from ...export.precision import VariantOptions
    from ...export.precision.calibration import calibration_set

    options = VariantOptions(calibration=calibration_set("demo"))
    target = target_here(Bundle.open(bundle, verify=False))
    engines = build_engines(bundle, target, precision=precision, variant=options)
    backend = engines[0].flavour
    errors = stage_parity(bundle, find_backend(backend), precision, [STAGE])
    return {
        "graph": graph_losses(bundle, precision),
        "engine": {"worst": max(errors.values()), "relative_l2": errors},
        "video": compare_video(bundle, backend, precision),
    }


def graph_losses(bundle: Path, precision: str) -> dict[str, Any]:
    """What the calibrated graph lost when it was written, every operator rounded, on the processor."""
    manifest = Bundle.open(bundle, verify=False).manifest
    calibration = manifest.variants[precision][STAGE].calibration
    recorded = read_json(bundle / "variants" / precision / "losses.json", LOSSES)
    entry = recorded["stages"][STAGE]
    return {
        "calibrated_on": None if calibration is None else calibration.name,
        "quantised_activations": entry["graph"]["quantised_activations"],
        "losses": entry["losses"],
    }
