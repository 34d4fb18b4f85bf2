"""``consisti2v demo``: the example photo, or anyone's, animated by the small model that travels with the package."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .generate import animate_to_file

ASSETS = Path(__file__).parents[2] / "assets"


def demo(
    image: Annotated[Path, typer.Option("--image", "-i", help="Photo; the example photo if absent.")] = ASSETS
    / "example.jpg",
    prompt: Annotated[str, typer.Option("--prompt", "-p", help="What happens.")] = "zoom in",
    output: Annotated[Path, typer.Option("--output", "-o", help="Video; a GIF is written beside it.")] = Path(
        "demo.mp4"
    ),
    steps: Annotated[int, typer.Option(help="Denoising steps.")] = 50,
    seed: Annotated[int, typer.Option(help="Another seed gives another video.")] = 0,
) -> None:
    """Animate a photo on the processor with the model inside the package; no download, no torch."""
    options = {"num_inference_steps": steps, "seed": seed}
    outputs = list(dict.fromkeys([output, output.with_suffix(".gif")]))
    animate_to_file(ASSETS / "demo_bundle", [image], [prompt], outputs, options)
