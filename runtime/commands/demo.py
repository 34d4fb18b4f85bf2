"""``consisti2v demo``: the example photo, or anyone's, animated by the small model that travels with the package."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..bundle_home import DEMO_FOLDER
from .generate import animate_to_file

ASSETS = Path(__file__).parents[2] / "assets"
# The small model's answer to no text is a still picture: guidance away from that only exaggerates edges, and costs
# every step twice (models/demo/README.md).
GUIDANCE = 1.0


def demo(
    image: Annotated[Path, typer.Option("--image", "-i", help="Photo; the example photo if absent.")] = ASSETS
    / "example.jpg",
    prompt: Annotated[str, typer.Option("--prompt", "-p", help="What happens.")] = "zoom in",
    output: Annotated[Path, typer.Option("--output", "-o", help="Video; a GIF is written beside it.")] = Path(
        "demo.mp4"
    ),
    preset: Annotated[str, typer.Option(help="exact (published) or balanced (35 steps).")] = "exact",
    steps: Annotated[int | None, typer.Option(help="Denoising steps; the preset's (50).")] = None,
    seed: Annotated[int, typer.Option(help="Another seed gives another video.")] = 0,
    device: Annotated[str, typer.Option(help="auto (a GPU where one can be used), cpu, cuda or openvino.")] = "auto",
    precision: Annotated[str | None, typer.Option(help="fp32, fp16, ...; the device's best.")] = None,
) -> None:
    """Animate a photo with the model inside the package; no download, no torch, no GPU needed."""
    options: dict[str, Any] = {"preset": preset, "seed": seed, "guidance_scale_txt": GUIDANCE}
    if steps is not None:
        options["num_inference_steps"] = steps
    outputs = list(dict.fromkeys([output, output.with_suffix(".gif")]))
    engine = {"device": device, "precision": precision}
    animate_to_file(DEMO_FOLDER, [image], [prompt], outputs, options, engine)
