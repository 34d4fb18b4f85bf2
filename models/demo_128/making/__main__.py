"""``python -m consisti2v_rt.models.demo_128.making``: makes the demo model from nothing, and measures it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Make the demo model from freely licensed photos.", no_args_is_help=True)
Work = Annotated[Path, typer.Option(help="Photos and finished parts.")]
Threads = Annotated[int, typer.Option(help="Processor threads.")]
Bundle = Annotated[Path, typer.Option(help="The exported model.")]
_BUNDLE = Path(".cache/demo_model/bundle")
_WORK, _MODEL = Path(".cache/demo_model"), Path("models/demo_128")


@app.command()
def make(
    work: Work = _WORK,
    threads: Threads = 1,
    output: Annotated[Path, typer.Option(help="Where the checkpoint goes.")] = _MODEL,
) -> None:
    """Fetch the photos, make the model (5 minutes of a core), write it; after a kill it goes on where it was."""
    import torch

    from .make import make

    torch.set_num_threads(threads)
    work.mkdir(parents=True, exist_ok=True)
    make(work, output, print)


@app.command()
def measure(
    bundle: Bundle = _BUNDLE,
    steps: Annotated[int, typer.Option(help="Denoising steps.")] = 10,
    work: Work = _WORK,
    threads: Threads = 2,
    output: Annotated[Path, typer.Option(help="Folder of evaluation.json and the card.")] = _MODEL,
) -> None:
    """Measure fidelity, grid and motion on held-out photos, and write them into the model card."""
    from .make import write_card
    from .measures import measure

    figures = measure(bundle, work, steps, threads, print)
    (output / "evaluation.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    write_card(output)


@app.command()
def clip(
    bundle: Bundle = _BUNDLE,
    work: Work = _WORK,
    threads: Threads = 2,
    output: Annotated[Path, typer.Option(help="GIF of four photos and moves above the true ones.")] = Path(
        ".cache/demo_model/demo.gif"
    ),
) -> None:
    """Make the clip of the README."""
    from .measures import clip

    clip(bundle, work, output, threads)


def main() -> None:
    from ....errors import UserError
    from ....runtime.commands.console import print_error

    try:
        app()
    except UserError as error:
        print_error(error)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
