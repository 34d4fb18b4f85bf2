"""``consisti2v export``: checkpoint -> bundle."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from ..runtime.errors import UserError
from ..runtime.install import install_hint
from ..runtime.settings import whole


def export(
    model: Annotated[
        str | None, typer.Argument(help="Folder in diffusers layout, or a hub id such as TIGER-Lab/ConsistI2V.")
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the new bundle.")] = Path("bundle"),
    precision: Annotated[str, typer.Option(help="fp32 (exact).")] = "fp32",
    height: Annotated[int, typer.Option(help="Pixels.")] = 256,
    width: Annotated[int, typer.Option(help="Pixels.")] = 256,
    frames: Annotated[int | None, typer.Option(help="Frames of a clip; the model's own (it is built for one).")] = None,
    guidance: Annotated[
        str, typer.Option(help="any (batch left open), or fixed: text (2 rows), both (3), none (1).")
    ] = "any",
    dynamic: Annotated[bool, typer.Option("--dynamic", help="Leave batch and size open; slower in engines.")] = False,
    cache_branch: Annotated[
        int | None, typer.Option(help="Add a shallow U-Net for --cache-interval; 0: the smallest.")
    ] = None,
    text_attention: Annotated[str, typer.Option(help="full (exact), or mean: cheaper, the loss is printed.")] = "full",
    unet_checkpoint: Annotated[Path | None, typer.Option(help="File with other U-Net weights.")] = None,
    revision: Annotated[str | None, typer.Option(help="Hub revision.")] = None,
    random_weights: Annotated[
        str | None, typer.Option(help="Instead of MODEL: full, tiny, or a JSON file of U-Net options.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of random weights.")] = 0,
) -> None:
    """Turn a checkpoint into a bundle: five ONNX graphs, each compared with torch."""
    if (model is None) == (random_weights is None):
        raise UserError("give either a model (folder or hub id) or --random-weights, not both and not neither.")
    if random_weights is not None and (unet_checkpoint is not None or revision is not None):
        raise UserError("--random-weights takes no --unet-checkpoint and no --revision: drop them, or give a model.")
    # What torch.manual_seed takes.
    whole(seed, "seed", -(2**63), 2**64 - 1)
    try:
        from .bundle_writer import check_cache_branch, check_request, check_size, write_bundle
        from .loading import load_model
        from .random_model import random_model
    except ImportError as error:
        raise UserError(f"export needs {error.name or error}: {install_hint('export')}.") from None

    check_request(output, guidance, precision, text_attention)
    console = Console(stderr=True, markup=False, emoji=False)
    started = time.perf_counter()
    with console.status("loading the model"):
        if random_weights is not None:
            source = random_model(random_weights, seed)
        else:
            source = load_model(str(model), unet_checkpoint=unet_checkpoint, revision=revision)
    if frames is not None and frames != source.unet.config.n_frames:
        raise UserError(
            f"frames {frames} does not fit: this model is built for clips of {source.unet.config.n_frames} frames."
        )
    check_size(source, height, width, dynamic)
    check_cache_branch(source, cache_branch)
    console.print(f"loaded {source.source} in {time.perf_counter() - started:.1f} s")
    with console.status("") as status:
        path = write_bundle(
            source,
            output,
            height=height,
            width=width,
            guidance=guidance,
            dynamic=dynamic,
            precision=precision,
            cache_branch=cache_branch,
            text_attention=text_attention,
            on_loss=lambda option, loss: console.print(
                f"{option}: relative L2 of the predicted noise to the published {loss:.1e}", highlight=False
            ),
            on_stage_start=lambda name: status.update(f"exporting {name} (total {_clock(started)})"),
            on_stage_end=lambda report: console.print(
                f"{report.name:<13} {report.seconds:6.1f} s  {report.bytes / 2**20:8.1f} MiB  "
                f"relative L2 to torch {report.relative_l2:.1e}",
                highlight=False,
            ),
        )
    typer.echo(f"{path}  written in {_clock(started)}")


def _clock(started: float) -> str:
    seconds = round(time.perf_counter() - started)
    return f"{seconds // 60}:{seconds % 60:02d} min"
