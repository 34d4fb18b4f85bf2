"""``consisti2v bench quality`` and ``consisti2v tune``: presets by their distance from the converged trajectory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from ...runtime.pipeline import ImageToVideo
    from .converged import Case, Way, Yardstick

_BUNDLE = typer.Argument(help="Folder made by 'consisti2v export', or a name such as demo.")
_Images = Annotated[Path, typer.Option("--images", help="CSV or JSONL listing of photos and prompts.")]
_Seeds = Annotated[int, typer.Option(min=1, max=100, help="Seeds of each photo, from 0.")]
_Device = Annotated[str, typer.Option(help="auto, cpu, cuda or openvino.")]
_Precision = Annotated[str | None, typer.Option(help="As the bundle has it if absent.")]
_Threads = Annotated[int | None, typer.Option(min=1, max=1024, help="Processor threads.")]
_Work = Annotated[
    Path | None, typer.Option(help="Folder that keeps what was computed; in the user's cache folder if absent.")
]
_Output = Annotated[Path | None, typer.Option("--output", "-o", help="JSON record to write.")]


def quality(
    bundle: Annotated[Path, _BUNDLE],
    images: _Images,
    seeds: _Seeds = 1,
    steps: Annotated[
        list[int] | None,
        typer.Option(min=4, max=200, help="Also every solver and spacing with so many steps; may be repeated."),
    ] = None,
    device: _Device = "auto",
    precision: _Precision = None,
    threads: _Threads = None,
    work: _Work = None,
    output: _Output = None,
) -> None:
    """Measure how far presets end from the converged trajectory of the same noise, with guidance and without."""
    from .converged import Way
    from .tuning import ways

    with _measuring(bundle, images, seeds, (device, precision, threads), work, output) as job:
        presets = job.animate.bundle.presets
        chosen = [Way.of_preset(name, preset) for name, preset in presets.items()]
        chosen += [way for count in steps or () for way in ways(job.yardstick, [], count)]
        job.finish(chosen, job.cases, output)


def tune(
    bundle: Annotated[Path, _BUNDLE],
    images: _Images,
    seeds: _Seeds = 1,
    device: _Device = "auto",
    precision: _Precision = None,
    threads: _Threads = None,
    work: _Work = None,
    output: _Output = None,
) -> None:
    """Find a bundle's own presets fast and balanced, and store them in it.

    fast is the fewest steps that end no further from the converged trajectory than the 50 published ones, balanced
    those that end half as far, over the listing's photos and seeds. Timesteps are calibrated on the first quarter of
    the photos and judged on the others. A run that was stopped goes on from what it has.
    """
    from ...errors import UserError
    from ...runtime.bundle.tuned import TUNED, tuned_text
    from ...runtime.commands.console import echo, plain
    from ..bench.record import check_writable, write_text
    from .tuning import find_presets, split

    with _measuring(bundle, images, seeds, (device, precision, threads), work, output) as job:
        target = job.animate.bundle.path / TUNED
        check_writable(target)
        found = find_presets(job.yardstick, job.cases, job.report)
        if not found:
            raise UserError(
                "no sampler with fewer than 50 steps ends as near the converged trajectory as the 50 published ones: "
                "the bundle stays as it was."
            )
        job.finish(list(found.values()), split(job.cases)[1], output)
    presets = {name: way.options for name, way in found.items()}
    write_text(target, tuned_text(job.yardstick.unet_sha256, presets))
    echo(plain(target))


@dataclass
class _Job:
    """A bundle with its reference trajectories, and the progress callbacks."""

    animate: ImageToVideo
    yardstick: Yardstick
    cases: list[Case]
    report: Callable[[str, int], object]
    stop: Callable[[], object]

    def finish(self, ways: list[Way], cases: list[Case], output: Path | None) -> None:
        """Measure what was not measured yet, show it and write it."""
        from ...runtime.commands.console import echo, make_console, plain
        from ..bench.record import write_text
        from .converged import GUIDANCES
        from .preset_report import measured, record_text, show

        self.report(f"{len(ways)} ways", len(GUIDANCES) * len(cases) * (2 * len(ways) + 4))
        summaries = measured(self.yardstick, ways, cases)
        seeds = {guidance: self.yardstick.seed_distance(cases, guidance) for guidance in GUIDANCES}
        self.stop()
        show(summaries, seeds, make_console())
        if output is not None:
            write_text(output, record_text(self.animate, cases, summaries, seeds))
            echo(plain(output))


@contextmanager
def _measuring(
    bundle: Path,
    images: Path,
    seeds: int,
    engine: tuple[str, str | None, int | None],
    work: Path | None,
    output: Path | None,
) -> Iterator[_Job]:
    """Refuse what can be refused, open the bundle, and show progress on a terminal."""
    import platformdirs
    from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from ...runtime.commands.console import make_console
    from ...runtime.commands.progress import leading_columns, prompt_interrupt
    from ...runtime.media.image import load_image
    from ...runtime.media.listing import read_listing
    from ...runtime.pipeline import ImageToVideo
    from ..bench.record import check_writable
    from .converged import Case, Yardstick

    if output is not None:
        check_writable(output)
    rows = read_listing(images)
    for row in rows:
        load_image(row.path)
    device, precision, threads = engine
    animate = ImageToVideo.from_bundle(bundle, device=device, precision=precision, threads=threads)
    folder = work or platformdirs.user_cache_path("consisti2v", appauthor=False) / "presets"
    console = make_console(stderr=True)
    columns: list[Any] = [*leading_columns(console), MofNCompleteColumn(), TextColumn("left"), TimeRemainingColumn()]
    with prompt_interrupt(animate), Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("reading", total=None)
        yardstick = Yardstick(animate, folder, lambda: progress.advance(task))
        cases = Case.of_listing(rows, seeds)
        yield _Job(
            animate,
            yardstick,
            cases,
            lambda text, total: progress.reset(task, description=text, total=total),
            progress.stop,
        )
