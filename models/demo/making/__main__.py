"""``python -m consisti2v_rt.models.demo.making``: re-makes the demo model from nothing."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

# Idle OpenMP threads must sleep: beside other work on few cores, spinning ones slow a step down several times.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

app = typer.Typer(help="Train the demo model on freely licensed media.", no_args_is_help=True)

Work = Annotated[Path, typer.Option(help="Media, training state, logs and sample sheets.")]
PresetName = Annotated[str, typer.Option(help="cpu or gpu: the model's sizes.")]
Size = Annotated[int | None, typer.Option(help="Pixels of a frame's side; default: the preset's.")]
Device = Annotated[str, typer.Option(help="cpu or cuda.")]
Threads = Annotated[int, typer.Option(help="Processor threads; 1 is fastest on a busy machine.")]
Seed = Annotated[int, typer.Option(help="Of data, noise and weights.")]
_WORK = Path(".cache/demo_model")
_MODEL = Path("models/demo")


@app.command()
def fetch(work: Work = _WORK) -> None:
    """Download the training media by package name (108 MB)."""
    from .media import fetch

    work.mkdir(parents=True, exist_ok=True)
    fetch(work)


@app.command()
def train(
    minutes: Annotated[float, typer.Option(help="Time for the U-Net, over all runs.")] = 35.0,
    vae_minutes: Annotated[float, typer.Option(help="Time for the autoencoder, over all runs.")] = 30.0,
    preset: PresetName = "cpu",
    size: Size = None,
    device: Device = "cpu",
    threads: Threads = 2,
    seed: Seed = 0,
    start: Annotated[
        Path | None, typer.Option(help="Weights to begin with, e.g. models/demo, instead of random ones.")
    ] = None,
    work: Work = _WORK,
    output: Annotated[Path, typer.Option(help="Where the weights go.")] = _MODEL,
) -> None:
    """Fetch, train and export; run it again after a kill and it goes on where it was."""
    from .training import train_demo_model

    train_demo_model(
        preset, work, output, minutes, vae_minutes, size=size, device=device, threads=threads, seed=seed, start=start
    )


@app.command()
def evaluate(
    bundle: Annotated[Path, typer.Option(help="The exported model.")] = Path("assets/demo_bundle"),
    model: Annotated[Path, typer.Option(help="Folder of the weights, whose card is written.")] = _MODEL,
    steps: Annotated[int, typer.Option(help="Denoising steps.")] = 10,
    moves_per_photo: Annotated[int, typer.Option(help="Camera moves asked of each held-out photo, of nine.")] = 4,
    long_videos: Annotated[int, typer.Option(help="Of these also made with 50 steps.")] = 18,
    threads: Threads = 2,
    seed: Seed = 0,
    work: Work = _WORK,
    output: Annotated[Path, typer.Option(help="Figures, as JSON.")] = Path("benchmarks/results/demo_model.json"),
) -> None:
    """Measure prompted motion, fidelity, consistency, FrameInit, guidance and stride on held-out photos and shots."""
    from .training import evaluate_demo_model

    evaluate_demo_model(
        bundle,
        model,
        work,
        output,
        steps=steps,
        moves_per_photo=moves_per_photo,
        long_videos=long_videos,
        threads=threads,
        seed=seed,
    )


@app.command()
def export(
    preset: PresetName = "cpu",
    size: Size = None,
    device: Device = "cpu",
    note: Annotated[str, typer.Option(help="A sentence about this training for the model card.")] = "",
    work: Work = _WORK,
    output: Annotated[Path, typer.Option(help="Where the weights go.")] = _MODEL,
) -> None:
    """Write the weights of a training, finished or not, and its model card."""
    from .training import export_demo_model

    export_demo_model(preset, work, output, size=size, device=device, note=note)


def main() -> None:
    from ....errors import UserError
    from ....runtime.commands.console import print_error

    try:
        app()
    except UserError as error:
        print_error(error)
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
