"""``consisti2v build``: bundle -> engines for a GPU."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from ...runtime.errors import UserError

if TYPE_CHECKING:
    from .bundle_engines import EngineReport
    from .monitor import BuildProgress


def build(
    bundle: Annotated[Path, typer.Argument(help="Folder made by 'consisti2v export'.")],
    target: Annotated[
        str, typer.Option(help="rtx4060, sm80, sm86, sm89, sm120, rtx (every RTX card since Ampere) or current.")
    ],
    flavour: Annotated[
        str, typer.Option(help="tensorrt-rtx (needs no GPU) or tensorrt (builds on the GPU).")
    ] = "tensorrt-rtx",
    precision: Annotated[str, typer.Option(help="fp16, fp32, bf16, int8 or fp8.")] = "fp16",
    stages: Annotated[str | None, typer.Option(help="Names with commas between; all of them.")] = None,
    dynamic: Annotated[
        list[str] | None,
        typer.Option(help="Range of a size, such as height=256:320:512 (also width, rows); repeat. Slower."),
    ] = None,
    strip: Annotated[
        bool, typer.Option("--strip", help="No weights in the engines; they are read from the ONNX. Needs a GPU.")
    ] = False,
    compare: Annotated[
        str | None, typer.Option(help="onnxruntime: run both on random inputs and compare. Needs a GPU.")
    ] = None,
) -> None:
    """Build engines ahead of time, also on a machine with no GPU."""
    from .bundle_engines import build_engines
    from .compare import check_comparison, compare_engines

    check_comparison(compare)
    if stages is not None and not stages.strip(", "):
        raise UserError("--stages is empty: name stages such as unet,vae_decoder, or leave it out.")
    console = Console(stderr=True, markup=False, emoji=False, highlight=False)
    started = time.perf_counter()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        task = progress.add_task("starting", total=None)
        doing = ""

        def on_phase(phase: str) -> None:
            nonlocal doing
            doing = phase
            progress.reset(task, total=None, description=phase)

        def on_progress(state: BuildProgress) -> None:
            description = f"{doing}: {state.phase[:40]}"
            progress.update(task, description=description, completed=state.step, total=max(state.steps, 1))

        def on_engine(report: EngineReport) -> None:
            for line in _lines(report):
                console.print(line, soft_wrap=True)

        engines = build_engines(
            bundle,
            target,
            flavour=flavour,
            precision=precision,
            stages=None if stages is None else [name.strip() for name in stages.split(",") if name.strip()],
            dynamic=dynamic or (),
            stripped=strip,
            on_phase=on_phase,
            on_progress=on_progress,
            on_engine=on_engine,
        )
    seconds = time.perf_counter() - started
    typer.echo(f"{bundle}  {len(engines)} engines for {target} in {round(seconds) // 60}:{round(seconds) % 60:02d} min")
    if compare is not None:
        for line in compare_engines(bundle, engines):
            typer.echo(line)


def _lines(report: EngineReport) -> list[str]:
    engine = report.engine
    peak = "" if report.peak_host_bytes is None else f"  peak memory {report.peak_host_bytes / 2**30:.1f} GiB"
    attentions = report.fused_attentions + len(report.decomposed_attentions)
    fused = f"  {report.fused_attentions} of {attentions} attentions fused" if attentions else ""
    size = f"{report.plan_bytes / 2**20:8.1f} MiB"
    lines = [f"{engine.stage:<13} {report.seconds:6.1f} s  {size}{peak}{fused}"]
    reasons: dict[str, list[str]] = {}
    for name, reason in report.decomposed_attentions:
        reasons.setdefault(reason, []).append(name)
    for reason, names in reasons.items():
        lines.append(f"{'':<13} decomposed, {reason}: {', '.join(names)}")
    return lines
