"""``consisti2v demo``: the example photo, or anyone's, animated by the small model that travels with the package."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ...locations import ASSETS
from ..bundle.home import DEMO_FOLDER
from .generate import animate_to_file


def demo(
    image: Annotated[
        Path, typer.Option("--image", "-i", help="Photo, or - for standard input.", show_default="the example photo")
    ] = ASSETS / "example.jpg",
    prompt: Annotated[str, typer.Option("--prompt", "-p", help="What happens.")] = "zoom in",
    output: Annotated[Path, typer.Option("--output", "-o", help="Video; a GIF is written beside it.")] = Path(
        "demo.mp4"
    ),
    preset: Annotated[str | None, typer.Option(help="exact (published) or balanced (35 steps).")] = None,
    steps: Annotated[int | None, typer.Option(help="Denoising steps; the preset's, else 50.")] = None,
    fit: Annotated[str, typer.Option(help="Photo that is not square: crop, pad (black bars) or stretch.")] = "crop",
    scale: Annotated[float, typer.Option(help="Width and height of the files, times this (0.1 to 16; Lanczos).")] = 1,
    seed: Annotated[int, typer.Option(help="Another seed gives another video.")] = 0,
    device: Annotated[str, typer.Option(help="auto (a GPU where one can be used), cpu, cuda or openvino.")] = "auto",
    precision: Annotated[str | None, typer.Option(help="fp32, fp16, ...; the device's best.")] = None,
    time_limit: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="Stop a generation that takes longer.")
    ] = None,
) -> None:
    """Animate a photo with the model inside the package; no download, no torch, no GPU needed."""
    options: dict[str, Any] = {"preset": preset, "seed": seed, "num_inference_steps": steps, "fit": fit}
    outputs = list(dict.fromkeys([output, output.with_suffix(".gif")]))
    engine = {"device": device, "precision": precision}
    animate_to_file(DEMO_FOLDER, [image], [prompt], outputs, options, engine, scale=scale, time_limit=time_limit)
