"""``consisti2v lora``: a bundle with LoRAs merged into its weights, without torch."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from ...runtime.bundle.home import find_bundle
from ...runtime.commands.console import echo, make_console, plain
from ..request import check_output
from .files import LoraRequest
from .merge import merge_into_bundle


def lora(
    bundle: Annotated[str, typer.Argument(help="Folder or name of the bundle.")],
    files: Annotated[
        list[str], typer.Argument(metavar="FILE[:SCALE]...", help="LoRA files (safetensors) and their strengths.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the new bundle.")],
    base: Annotated[
        str | None, typer.Option(help="Where BUNDLE holds LoRAs already: the bundle it was made from.")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace a bundle that holds engines or other precisions.")
    ] = False,
) -> None:
    """Merge LoRAs into a bundle's weights; the new bundle is always made from the one without any."""
    requests = [LoraRequest.parse(text) for text in files]
    check_output(output, force=force)
    console = make_console(stderr=True)
    started = time.perf_counter()
    with console.status("merging"):
        path = merge_into_bundle(
            find_bundle(bundle),
            requests,
            output,
            base=base,
            force=force,
            on_notice=lambda line: console.print(f"note: {line}", soft_wrap=True, highlight=False),
        )
    echo(f"{plain(path)}  written in {time.perf_counter() - started:.1f} s")
