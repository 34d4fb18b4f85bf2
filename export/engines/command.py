"""``consisti2v build``: bundle -> engines for a GPU."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import MofNCompleteColumn, Progress

from ...errors import UserError
from ...runtime.commands.console import echo, make_console, plain
from ...runtime.commands.progress import leading_columns

if TYPE_CHECKING:
    from ...runtime.bundle.manifest import EngineSpec
    from ..precision.recipe import VariantOptions
    from ..precision.variant import StageVariant


def build(
    bundle: Annotated[Path, typer.Argument(help="Folder made by 'consisti2v export', or a name.")],
    target: Annotated[
        str,
        typer.Option(
            help="A card by name, such as rtx4060 or 'RTX 5090' (docs/gpus.md lists all); rtx (every RTX card since "
            "Ampere); a compute capability, such as sm89; or current."
        ),
    ],
    backend: Annotated[
        str, typer.Option(help="tensorrt-rtx (needs no GPU) or tensorrt (builds on the GPU).")
    ] = "tensorrt-rtx",
    precision: Annotated[
        str, typer.Option(help="fp16, fp32 or bf16; int8 and fp8 are experimental until timed on a card.")
    ] = "fp16",
    stages: Annotated[str | None, typer.Option(help="Names with commas between; all of them.")] = None,
    dynamic: Annotated[
        list[str] | None,
        typer.Option(help="Range of a size, such as height=256:320:512 (also width, rows); repeat. Slower."),
    ] = None,
    batches: Annotated[
        str | None,
        typer.Option(
            help="Guidance batches of the U-Net's engine, with commas between: 1 (no guidance), 2 (text), 3 (text and "
            "image); all of them. One alone makes a smaller engine."
        ),
    ] = None,
    accumulate: Annotated[
        str,
        typer.Option(
            help="What float16 products accumulate in: auto (the library's and the card's choice) or fp32 (exact; on "
            "GeForce cards half as fast)."
        ),
    ] = "auto",
    strip: Annotated[
        bool, typer.Option("--strip", help="No weights in the engines; they are read from the ONNX. Needs a GPU.")
    ] = False,
    calibrate: Annotated[
        str | None,
        typer.Option(
            help="int8, fp8: the U-Net's activations in 8 bits too, by their ranges on a .csv or .jsonl listing of "
            "photos or clips with captions, or demo (the example photo); off: weights alone."
        ),
    ] = None,
    max_rows: Annotated[
        int, typer.Option(min=1, help="Most rows of the listing of --calibrate; a longer one is refused.")
    ] = 10_000,
    max_loss: Annotated[
        float | None,
        typer.Option(
            help="Largest relative L2 of a stage to float32; activations that cost most stay in half precision for it."
        ),
    ] = None,
    quick_check: Annotated[
        bool, typer.Option("--quick-check", help="Check each stage on one seed and batch, not three of each.")
    ] = False,
    compare: Annotated[
        str | None, typer.Option(help="onnxruntime: run both on random inputs and compare. Needs a GPU.")
    ] = None,
) -> None:
    """Build engines ahead of time, also on a machine with no GPU."""
    from ..events import Events
    from .bundle_engines import build_engines
    from .compare import check_comparison, compare_engines

    check_comparison(compare)
    variant = _variant_options(precision, calibrate, max_rows, max_loss, quick_check)
    if stages is not None and not stages.strip(", "):
        raise UserError("--stages is empty: name stages such as unet,vae_decoder, or leave it out.")
    console = make_console(stderr=True)
    started = time.perf_counter()
    columns = (*leading_columns(console), MofNCompleteColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        task = progress.add_task("starting", total=None)
        doing, built, decomposed = "", 0, False

        def say(line: str) -> None:
            console.print(line, soft_wrap=True)

        def on_phase(phase: str) -> None:
            nonlocal doing
            doing = phase
            progress.reset(task, total=None, description=phase)
            if not console.is_terminal:
                say(f"{_minutes(time.perf_counter() - started)}  {phase}")

        def on_progress(what: str, done: int, total: int) -> None:
            progress.update(task, description=f"{doing}: {what[:40]}", completed=done, total=max(total, 1))

        def on_engine(engine: EngineSpec, metadata: dict[str, Any]) -> None:
            nonlocal built, decomposed
            built += 1
            decomposed = decomposed or bool(metadata["attentions"]["decomposed"])
            for line in _engine_lines(engine.stage, metadata):
                say(line)

        def on_variant(report: StageVariant) -> None:
            if not report.skipped:
                say(_variant_line(report))

        engines = build_engines(
            bundle,
            target,
            backend=backend,
            precision=precision,
            stages=None if stages is None else [name.strip() for name in stages.split(",") if name.strip()],
            dynamic=dynamic or (),
            batches=() if batches is None else _batches(batches),
            stripped=strip,
            accumulate=accumulate,
            variant=variant,
            events=Events(on_phase, on_progress, on_variant, on_engine, lambda line: say(f"note: {line}")),
        )
        if decomposed:
            say(
                "note: attentions as separate operations give the same numbers, with more time and memory; nothing is "
                "to be done about them. An attention that has to be fused and is not would have ended the build."
            )
    echo(f"{plain(bundle)}  {plain(_outcome(engines, built, time.perf_counter() - started))}")
    if compare is not None:
        for line in compare_engines(bundle, engines):
            echo(plain(line))


def _batches(text: str) -> tuple[int, ...]:
    """Numbers with commas between."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() and len(part) <= 4 for part in parts):
        raise UserError(f"--batches {text[:60]!r} are no numbers: name guidance batches such as 2, or 1,2.")
    return tuple(sorted({int(part) for part in parts}))


def _outcome(engines: Sequence[EngineSpec], built: int, seconds: float) -> str:
    target, kept = engines[0].target, len(engines) - built
    if not built:
        return f"up to date: {kept} engine{'s' * (kept != 1)} for {target}"
    others = f", {kept} up to date," if kept else ""
    return f"{built} engine{'s' * (built != 1)} for {target}{others} in {_minutes(seconds)} min"


def _minutes(seconds: float) -> str:
    return f"{round(seconds) // 60}:{round(seconds) % 60:02d}"


def _variant_options(
    precision: str, calibrate: str | None, max_rows: int, max_loss: float | None, quick_check: bool
) -> VariantOptions | None:
    """What was asked of the graphs in another precision; None: nothing. Refuses a set that cannot be used."""
    if calibrate is None and max_loss is None and not quick_check:
        return None
    from ..precision.calibration_set import calibration_set
    from ..precision.recipe import VariantOptions

    return VariantOptions(
        calibration=None if calibrate in (None, "off") else calibration_set(str(calibrate), max_rows),
        weight_only=calibrate == "off",
        max_loss=max_loss,
        quick_check=quick_check,
    )


def _variant_line(report: StageVariant) -> str:
    line = f"{report.stage:<13} {report.precision} graph, relative L2 to float32 {report.relative_l2:.1e}"
    if report.fp16_accumulators is not None:
        summed = "overflows" if math.isinf(report.fp16_accumulators) else f"{report.fp16_accumulators:.1e}"
        line += f" ({summed} where products accumulate in float16)"
    if report.quantised_activations:
        line += f", {report.quantised_activations} activations in 8 bits"
    if report.float32_sums:
        line += f", {report.float32_sums} residual sums kept in float32, to stay within the limit"
    if report.float32_scores:
        line += f", scores of {report.float32_scores} attentions too"
    return line


def _engine_lines(stage: str, metadata: dict[str, Any]) -> list[str]:
    fused, decomposed = metadata["attentions"]["fused"], metadata["attentions"]["decomposed"]
    line = f"{stage:<13} {metadata['build_seconds']:6.1f} s  {metadata['plan_bytes'] / 2**20:8.1f} MiB"
    if metadata["peak_host_bytes"] is not None:
        line += f"  peak memory {metadata['peak_host_bytes'] / 2**30:.1f} GiB"
    if fused or decomposed:
        line += f"  {len(fused)} of {len(fused) + len(decomposed)} attentions fused"
    lines, reasons = [line], dict[str, list[str]]()
    for entry in decomposed:
        reasons.setdefault(entry["reason"], []).append(entry["name"])
    for reason, names in reasons.items():
        shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        are = "1 attention runs" if len(names) == 1 else f"{len(names)} attentions run"
        lines.append(f"{'':<13} {are} as separate operations, as expected ({reason}): {shown}")
    return lines
