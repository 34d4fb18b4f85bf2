"""``consisti2v batch``: every row of a listing becomes a video; run again, it goes on where it was."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ..errors import UserError
from ..runtime.bundle.bundle import Bundle
from ..runtime.commands.console import echo, make_console, note, plain
from ..runtime.commands.option_groups import Command
from ..runtime.commands.progress import leading_columns, prompt_interrupt
from ..runtime.media.listing import MAX_ROWS
from ..runtime.media.video_file import SUFFIXES, check_output
from ..runtime.request.option_table import check_threads, whole
from ..runtime.request.settings import GenerationSettings, StepProgress, parse_settings
from ..runtime.timings import check_time_limit
from .animator import Animator, Plan
from .results import NAME, Results, open_results
from .rows import BatchRow, read_rows

_SHOWN_FAULTS = 10


class RayCommand(Command):
    """``--ray`` alone is a cluster that this command starts on this machine."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        words = [
            "--ray=local" if word == "--ray" and (place + 1 == len(args) or args[place + 1].startswith("-")) else word
            for place, word in enumerate(args)
        ]
        return super().parse_args(ctx, words)


def batch(
    listing: Annotated[Path, typer.Argument(help="CSV with a header, or JSONL: image, prompt, and any setting.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the videos and of results.jsonl.")],
    bundle: Annotated[
        Path, typer.Option("--bundle", "-b", help="Folder made by 'consisti2v export', or a name.")
    ] = Path("demo"),
    root: Annotated[Path | None, typer.Option(help="Folder that the listing's paths start from; its own.")] = None,
    preset: Annotated[str | None, typer.Option(help="Preset of every row that names none.")] = None,
    setting: Annotated[
        list[str] | None, typer.Option("--set", help="A setting of every row that does not name it, as steps=25.")
    ] = None,
    suffix: Annotated[str, typer.Option("--format", help="mp4, gif, webp or png.")] = "mp4",
    scale: Annotated[float, typer.Option(help="Width and height of the files, times this (0.1 to 16).")] = 1,
    workers: Annotated[
        int | None, typer.Option(help="Processes, each with a model of its own; one, or one per GPU.")
    ] = None,
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="[ADDRESS]",
            help="Run on a Ray cluster: its address, auto for the one that this machine belongs to, or local (no "
            "address) to start one here. Needs the extra 'ray'.",
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or openvino.")] = "auto",
    precision: Annotated[str | None, typer.Option(help="fp32, fp16, bf16, int8 or fp8; the device's best.")] = None,
    threads: Annotated[int | None, typer.Option(help="Processor threads of one worker; one per core.")] = None,
    time_limit: Annotated[float | None, typer.Option(metavar="SECONDS", help="Fail a row that takes longer.")] = None,
    max_rows: Annotated[int, typer.Option(min=1, help="Most rows of a listing; a longer one is refused.")] = MAX_ROWS,
) -> None:
    """Animate a listing. Run again, it skips the rows that are done and tries the failed ones again."""
    console = make_console(stderr=True)
    if "." + suffix.lstrip(".") not in SUFFIXES:
        raise UserError(f"--format {suffix} is unknown: choose {', '.join(name[1:] for name in SUFFIXES)}.")
    if workers is not None:
        whole(workers, "--workers", 1, 1024)
    if time_limit is not None:
        check_time_limit(time_limit)
    check_threads(threads)
    common = GenerationSettings.from_options(
        parse_settings(setting or []) | ({} if preset is None else {"preset": preset})
    )
    rows, repeated = read_rows(listing, root, common, max_rows)
    engine = {"threads": threads, "device": device, "precision": precision}
    plan = Plan(str(bundle), engine, "." + suffix.lstrip("."), scale, time_limit)
    digest = Bundle.open(bundle).digest
    with open_results(output) as results:
        check_output(output / f"row{plan.suffix}")
        waiting = [row for row in rows if not results.is_done(row.key, digest)]
        if repeated:
            note(console, f"{repeated} row(s) repeat an earlier one and are not run again")
        if len(waiting) < len(rows):
            note(console, f"{len(rows) - len(waiting)} of {len(rows)} rows are done already")
        failed = _run(plan, waiting, results, workers, ray, console) if waiting else []
    done = len(waiting) - len(failed)
    echo(f"{plain(output / NAME)}  {done} row(s) done now, {len(rows) - len(waiting)} before, {len(failed)} failed")
    if failed:
        for line in sorted(failed, key=lambda line: int(line["line"]))[:_SHOWN_FAULTS]:
            note(console, f"line {line['line']}: {line['error']}", "failed:", "red")
        raise UserError(
            f"{len(failed)} of {len(rows)} rows failed; {output / NAME} says why: mend them and run the same command "
            "again, which runs only what is not done."
        )


def _run(
    plan: Plan, rows: Sequence[BatchRow], results: Results, workers: int | None, ray: str | None, console: Any
) -> list[dict[str, Any]]:
    """Run the rows, record each as it ends, and give the lines of those that failed."""
    failed = []
    columns = [*leading_columns(console), MofNCompleteColumn(), TextColumn("left"), TimeRemainingColumn()]
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("rows", total=len(rows))

        def on_step(state: StepProgress) -> None:
            progress.update(task, description=f"rows (step {state.step + 1} of {state.steps})")

        for line in _lines(plan, rows, results.folder, workers, ray, on_step):
            results.add(line)
            failed += [line] if line["error"] is not None else []
            progress.update(task, advance=1, description="rows")
            if not console.is_terminal:
                echo(f"{plain(line['image']) or 'line ' + str(line['line'])}  {line['seconds']:.1f} s", err=True)
    return failed


def _lines(
    plan: Plan, rows: Sequence[BatchRow], folder: Path, workers: int | None, ray: str | None, on_step: Any
) -> Iterator[dict[str, Any]]:
    """The line of every row, from whatever runs them."""
    if ray is not None:
        from .on_ray import run_on_ray

        yield from run_on_ray(plan, rows, folder, workers, ray)
        return
    from ..runtime.gpu.device import visible_gpus

    gpus = visible_gpus() if plan.engine.get("device") in ("auto", "cuda") else []
    workers = min(workers or max(1, len(gpus)), len(rows))
    if workers == 1:
        animator = Animator(plan)
        with prompt_interrupt(animator.model):
            for row in rows:
                yield animator.run(row, folder, on_step)
        return
    from .workers import run_in_processes

    yield from run_in_processes(plan, rows, folder, workers, gpus or [None])
