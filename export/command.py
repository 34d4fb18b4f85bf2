"""``consisti2v export``: checkpoint -> bundle."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import UserError
from ..kernels.ddim import SchedulerConfig
from ..runtime.bundle.recommended import recommended_settings
from ..runtime.commands.console import echo, make_console, plain
from ..runtime.install import install_hint
from ..runtime.request.option_table import whole
from ..runtime.request.settings import parse_settings
from .checkpoint import check_weight_file, open_checkpoint
from .lora.files import LoraRequest
from .random_options import RANDOM_VAE_SCALE_FACTOR, random_unet_config
from .request import check_cache_branch, check_frames, check_request, parse_sizes, settle_size

if TYPE_CHECKING:
    from .bundle_writer import StageReport


def export(
    model: Annotated[
        str | None, typer.Argument(help="Folder in diffusers layout, or a hub id such as TIGER-Lab/ConsistI2V.")
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the new bundle.")] = Path("bundle"),
    precision: Annotated[str, typer.Option(help="fp32 (exact).")] = "fp32",
    height: Annotated[int | None, typer.Option(help="Pixels; what the model was trained at.")] = None,
    width: Annotated[int | None, typer.Option(help="Pixels; what the model was trained at.")] = None,
    frames: Annotated[int | None, typer.Option(help="Frames of a clip; the model's own (it is built for one).")] = None,
    guidance: Annotated[
        str, typer.Option(help="any (batch left open), or fixed: text (2 rows), both (3), none (1).")
    ] = "any",
    dynamic: Annotated[bool, typer.Option("--dynamic", help="Leave batch and size open; slower in engines.")] = False,
    sizes: Annotated[
        str | None,
        typer.Option(
            metavar="WxH,WxH",
            help="Sizes for photos of several shapes, as 256x256,512x320, the default first: 'generate --fit auto' "
            "takes the nearest, 'build' makes engines for each. Leaves batch and size open.",
        ),
    ] = None,
    cache_branch: Annotated[
        int | None, typer.Option(help="Add a shallow U-Net for --cache-interval; 0: the smallest.")
    ] = None,
    text_attention: Annotated[str, typer.Option(help="full (exact), or mean: cheaper, the loss is printed.")] = "full",
    unet_checkpoint: Annotated[Path | None, typer.Option(help="File with other U-Net weights.")] = None,
    lora: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE[:SCALE]", help="Merge a LoRA into the weights; may be given several times."),
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Hub revision.")] = None,
    recommend: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE",
            help="A default of the bundle's users, as guidance_scale_txt=1; wins over recommended.json of the model.",
        ),
    ] = None,
    random_weights: Annotated[
        str | None,
        typer.Option(
            help="Instead of MODEL: full, tiny, or a JSON file of U-Net options. Example: assets/example_unet.json."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of random weights.")] = 0,
    force: Annotated[
        bool, typer.Option("--force", help="Replace a bundle that holds engines or other precisions.")
    ] = False,
) -> None:
    """Turn a checkpoint into a bundle: five ONNX graphs, each compared with torch."""
    if (model is None) == (random_weights is None):
        raise UserError("give either a model (folder or hub id) or --random-weights, not both and not neither.")
    if random_weights is not None and (unet_checkpoint is not None or revision is not None or lora):
        raise UserError(
            "--random-weights takes no --unet-checkpoint, --lora and --revision: drop them, or give a model."
        )
    if sizes is not None and (height is not None or width is not None):
        raise UserError("--sizes takes the place of --height and --width: leave those out.")
    # What torch.manual_seed takes.
    whole(seed, "seed", -(2**63), 2**64 - 1)
    loras = [LoraRequest.parse(text) for text in lora or []]
    for one in loras:
        check_weight_file(one.path)
    check_request(output, guidance, precision, text_attention, force=force)
    advice = parse_settings(recommend or [])
    recommended_settings(advice, asdict(SchedulerConfig()), "--recommend")
    console = make_console(stderr=True)
    started = time.perf_counter()
    try:
        # Everything that the configurations tell comes before torch.
        with console.status("reading the configurations"):
            checkpoint = None
            if random_weights is None:
                checkpoint = open_checkpoint(str(model), unet_checkpoint=unet_checkpoint, revision=revision)
                config, vae_scale_factor = checkpoint.unet, checkpoint.vae.scale_factor
            else:
                config, vae_scale_factor = random_unet_config(random_weights), RANDOM_VAE_SCALE_FACTOR
            check_frames(config, frames)
            settle_size(config, vae_scale_factor, height, width, dynamic)
            buckets = () if sizes is None else parse_sizes(sizes, config, vae_scale_factor)
            check_cache_branch(config, cache_branch)
        with console.status("loading the model"):
            from .bundle_writer import write_bundle
            from .loading import load_checkpoint
            from .random_model import random_model

            if checkpoint is not None:
                source = load_checkpoint(checkpoint, unet_checkpoint, loras)
            else:
                source = random_model(str(random_weights), seed)
    except ImportError as error:
        raise UserError(f"export needs {error.name or error}: {install_hint('export')}.") from None
    source.recommended = recommended_settings(advice, asdict(source.scheduler), "--recommend", source.recommended)
    console.print(f"loaded {source.source} in {time.perf_counter() - started:.1f} s")
    with console.status("") as status:
        path = write_bundle(
            source,
            output,
            height=height,
            width=width,
            guidance=guidance,
            dynamic=dynamic,
            sizes=buckets,
            precision=precision,
            cache_branch=cache_branch,
            text_attention=text_attention,
            force=force,
            on_notice=lambda line: console.print(f"note: {line}", soft_wrap=True, highlight=False),
            on_loss=lambda option, loss: console.print(
                f"{option}: relative L2 of the predicted noise to the published {loss:.1e}", highlight=False
            ),
            on_stage_start=lambda name: status.update(f"exporting {name} (total {_clock(started)})"),
            on_stage_end=lambda report: console.print(_line(report), soft_wrap=True, highlight=False),
        )
    echo(f"{plain(path)}  written in {_clock(started)}")


def _line(report: StageReport) -> str:
    parity = report.parity
    line = f"{report.name:<13} {report.seconds:6.1f} s  {report.bytes / 2**20:8.1f} MiB  "
    line += f"relative L2 to torch {parity.relative_l2:.1e}"
    if parity.graph_noise is not None:
        line += f", accepted as rounding: against float64, the graph {parity.graph_noise:.1e}"
        line += f" and torch {parity.torch_noise:.1e}"
    return line


def _clock(started: float) -> str:
    seconds = round(time.perf_counter() - started)
    return f"{seconds // 60}:{seconds % 60:02d} min"
