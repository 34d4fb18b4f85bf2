"""One U-Net forward's inputs, the same for every formulation."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...kernels.guidance import BRANCHES
from ...runtime.bundle.manifest import Manifest
from ...runtime.session import resolve_shape

TIMESTEP = 501
FRAME_STRIDE = 3


def session_dims(
    manifest: Manifest, rows: int | None = None, height: int | None = None, width: int | None = None
) -> dict[str, int]:
    """Sizes of a bundle's dynamic dimensions; the bundle's own where they are not given."""
    model = manifest.model
    height, width = height or model.height, width or model.width
    return {
        "rows": model.rows or rows or BRANCHES[model.guidance],
        "latent_height": height // model.vae_scale_factor,
        "latent_width": width // model.vae_scale_factor,
        "height": height,
        "width": width,
    }


def make_inputs(
    manifest: Manifest, dims: Mapping[str, int], seed: int, *, one_video: bool = False
) -> dict[str, NDArray[np.float32]]:
    """sample [rows, c, f - 1, h, w], first_frame_latents [rows, c, 1, h, w], text_embeddings [rows, 77, width].

    Args:
        one_video: the rows are the guidance branches of one video, as in a step of the loop: the same latents with
            another text each; with image guidance the first branch has another first frame, too.
    """
    generator = np.random.default_rng(seed)
    shapes = {spec.name: resolve_shape(spec, dims) for spec in manifest.stages["unet"].inputs}
    text = next(spec for spec in manifest.stages["conditioning"].inputs if spec.name == "text_embeddings")
    shapes["text_embeddings"] = (shapes["sample"][0], *resolve_shape(text, dims)[1:])
    names = ("sample", "first_frame_latents", "text_embeddings")
    inputs = {name: generator.standard_normal(shapes[name], np.float32) for name in names}
    if one_video:
        inputs["sample"][...] = inputs["sample"][-1]
        branches = inputs["first_frame_latents"]
        branches[1 if manifest.model.guidance == "both" else 0 :] = branches[-1]
    return inputs


def save_inputs(inputs: Mapping[str, NDArray[np.float32]], path: Path) -> None:
    np.savez(path, **inputs)  # type: ignore[arg-type]


def load_inputs(path: str) -> dict[str, NDArray[Any]]:
    with np.load(path) as file:
        return dict(file)
