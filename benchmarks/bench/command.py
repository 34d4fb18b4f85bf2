"""``consisti2v bench``: its commands, for measuring and for records that exist."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ...locations import ASSETS
from ...runtime.commands.console import PlainGroup

if TYPE_CHECKING:
    from .record import Record

_EXAMPLE_PHOTO = ASSETS / "example.jpg"
_BUNDLE = typer.Argument(help="Folder made by 'consisti2v export', or a name such as demo.")
_Row = Annotated[
    list[str] | None,
    typer.Option(
        help="What to measure, as backend:precision (onnxruntime-cpu:fp32, torch-compile:fp32); may be repeated."
    ),
]
_Rounds = Annotated[int, typer.Option(min=1, max=1000, help="Measured runs of each, in turns.")]
_Warmup = Annotated[int, typer.Option(min=0, max=1000, help="Runs of each process before, not counted.")]
_Threads = Annotated[
    int | None, typer.Option(min=1, max=1024, help="Processor threads; as the backend chooses if absent.")
]
_Output = Annotated[
    Path | None,
    typer.Option("--output", "-o", help="JSON record; benchmarks/results/ if that is here, else this folder."),
]
_Json = Annotated[bool, typer.Option("--json", help="Print the record instead of tables.")]


class BenchGroup(PlainGroup):
    """``bench BUNDLE`` is ``bench run BUNDLE``; ``bench --predict GPU`` is ``bench predict GPU``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        commands = self.list_commands(ctx)
        flagged = (place for place, word in enumerate(args) if word.startswith("--") and word[2:] in commands)
        if (place := next(flagged, None)) is not None:
            args = [args[place][2:], *args[:place], *args[place + 1 :]]
        elif args and args[0] not in (*commands, "-h", "--help"):
            args = ["run", *args]
        parsed: list[str] = super().parse_args(ctx, args)
        return parsed


def _deliver(record: Record, output: Path | None, *, as_json: bool) -> None:
    """Write the record, then show it."""
    from ...runtime.commands.console import echo, make_console, plain
    from .record import place_of
    from .tables import show

    path = place_of(record, output)
    record.save(path)
    if as_json:
        echo(record.to_json(), nl=False)
        return
    # Cells are escaped where they hold names; emoji codes are no part of any.
    show(record, make_console(markup=True))
    echo(plain(path))


def run(
    bundle: Annotated[Path, _BUNDLE],
    row: _Row = None,
    device: Annotated[str, typer.Option(help="Without --row: auto, cpu, cuda or openvino.")] = "auto",
    precision: Annotated[str | None, typer.Option(help="Without --row: as the bundle has it if absent.")] = None,
    image: Annotated[Path, typer.Option("--image", "-i", help="Photo.")] = _EXAMPLE_PHOTO,
    prompt: Annotated[str, typer.Option("--prompt", "-p", help="What happens.")] = "zoom in",
    steps: Annotated[int, typer.Option(help="Denoising steps.")] = 50,
    seed: Annotated[int, typer.Option(help="Of the video.")] = 0,
    rounds: _Rounds = 5,
    warmup: _Warmup = 1,
    resident: Annotated[bool, typer.Option(help="Several rows: all stay loaded, or one at a time.")] = True,
    threads: _Threads = None,
    output: _Output = None,
    json: _Json = False,
) -> None:
    """Time whole videos with the published settings, stage by stage: median, min, max, first run, memory, energy."""
    from ...errors import UserError
    from ...runtime.request.presets import PUBLISHED
    from .candidates import TORCH, Candidate, Plan
    from .measure import measure_latency
    from .record import check_writable, place_of

    check_writable(place_of(None, output))
    candidates = [Candidate.parse(text) for text in dict.fromkeys(row or ())]
    if any(candidate.backend in TORCH for candidate in candidates):
        raise UserError("the published formulation makes no whole video here: use 'bench side-by-side' for it.")
    plan, options = Plan(warmup, rounds, resident, threads), {"num_inference_steps": steps, "seed": seed}
    chosen = lambda opened: candidates or [Candidate.usual(opened, device, precision)]  # noqa: E731
    record = measure_latency(bundle, chosen, image, prompt, {**PUBLISHED, **options}, plan)
    _deliver(record, output, as_json=json)


def side_by_side(
    bundle: Annotated[Path, _BUNDLE],
    row: _Row = None,
    checkpoint: Annotated[
        str | None, typer.Option(help="What the bundle was exported from; random weights are made again.")
    ] = None,
    rounds: _Rounds = 5,
    warmup: _Warmup = 1,
    resident: Annotated[
        bool | None, typer.Option(help="All stay loaded, or one at a time; as memory allows if absent.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the inputs.")] = 0,
    threads: _Threads = None,
    output: _Output = None,
    json: _Json = False,
) -> None:
    """Time one U-Net forward beside the published formulation in torch; relative L2 to it stands with every row."""
    from .candidates import Candidate, Plan
    from .measure import measure_side_by_side
    from .record import check_writable, place_of

    check_writable(place_of(None, output))
    candidates, plan = [Candidate.parse(text) for text in row or ()], Plan(warmup, rounds, resident, threads)
    record = measure_side_by_side(bundle, candidates or None, checkpoint, seed, plan)
    _deliver(record, output, as_json=json)


def scaling(
    bundle: Annotated[Path | None, typer.Argument(help="Bundle; random models are exported if absent.")] = None,
    random_weights: Annotated[str, typer.Option(help="Without BUNDLE: tiny, full, or a JSON file.")] = "tiny",
    models: Annotated[
        Path | None, typer.Option(help="Folder that keeps the exported models; the next time they are found there.")
    ] = None,
    frames: Annotated[list[int] | None, typer.Option(min=2, max=256, help="Frames of a clip; repeat.")] = None,
    resolution: Annotated[list[int] | None, typer.Option(min=8, max=8192, help="Pixels a side; repeat.")] = None,
    batch: Annotated[list[int] | None, typer.Option(min=1, max=64, help="Rows of the U-Net; repeat.")] = None,
    steps: Annotated[list[int] | None, typer.Option(min=1, max=1000, help="Denoising steps; repeat.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or openvino.")] = "auto",
    precision: Annotated[str | None, typer.Option(help="As the bundle has it if absent.")] = None,
    rounds: _Rounds = 5,
    warmup: _Warmup = 1,
    threads: _Threads = None,
    output: _Output = None,
    json: _Json = False,
) -> None:
    """Time a U-Net forward over frames, resolution and batch, and a video over steps. Without values: a few of each."""
    from ...errors import UserError
    from .candidates import Plan
    from .measure import DEFAULTS, ModelMaker, measure_scaling
    from .record import check_writable, place_of

    check_writable(place_of(None, output))
    if bundle is not None and models is not None:
        raise UserError("--models keeps models that are exported without BUNDLE: leave one of the two out.")
    given = {"frames": frames, "resolution": resolution, "batch": batch, "steps": steps}
    points = {axis: sorted(set(values)) for axis, values in given.items() if values}
    # A bundle that is given is built for one number of frames.
    usual = {axis: list(values) for axis, values in DEFAULTS.items() if bundle is None or axis != "frames"}
    with TemporaryDirectory() as folder:
        maker = ModelMaker(random_weights, models or Path(folder))
        if bundle is None:
            maker.check()
        plan = Plan(warmup, rounds, None, threads)
        record = measure_scaling(maker, bundle, (device, precision), points or usual, _EXAMPLE_PHOTO, plan)
    _deliver(record, output, as_json=json)


class FailOn(str, Enum):
    """Verdicts that a script may want to fail on."""

    SLOWER = "slower"
    TOO_FEW = "too-few-samples"


def compare(
    before: Annotated[Path, typer.Argument(help="JSON record.")],
    after: Annotated[Path, typer.Argument(help="JSON record of the same kind.")],
    force: Annotated[
        bool, typer.Option("--force", help="Compare records of different bundles, settings or machines.")
    ] = False,
    fail_on: Annotated[
        list[FailOn] | None, typer.Option(help="Exit with code 1 where a row has this verdict; may be repeated.")
    ] = None,
) -> None:
    """Say of every row whether it became faster or slower, shows no difference, or has too few samples.

    The test is the 95 % bootstrap interval of the ratio of the medians; it is printed with the result. Records of
    different bundles, settings or machines are refused. Exit code: 0; 1 where --fail-on applies; 2 for a refusal.
    """
    from rich.markup import escape

    from ...runtime.commands.console import echo, make_console
    from .compare import check_comparable, compare_records, comparison_table, notes, summary
    from .record import read_record
    from .statistics import METHOD

    first, second = read_record(before), read_record(after)
    differences = check_comparable(first, second, (str(before), str(after)), force=force)
    rows, left_out = compare_records(first, second)
    console = make_console(markup=True, soft_wrap=True)
    console.print(comparison_table(rows, forced=bool(differences)))
    warnings = [f"Warning: not the same {part}: {'; '.join(found)}." for part, found in differences.items()]
    if left_out:
        warnings.append(f"Not compared: {', '.join(left_out)}.")
    for line in (*warnings, *notes(first, second)):
        console.print(f"[yellow]{escape(line)}[/]", highlight=False)
    console.print(escape(METHOD), highlight=False)
    echo(summary(rows, list(differences)))
    unwanted = {verdict.value.replace("-", " ") for verdict in fail_on or ()}
    if any(row.verdict in unwanted for row in rows):
        raise typer.Exit(1)


def report(
    records: Annotated[list[Path], typer.Argument(help="JSON records, and predictions by 'bench predict --output'.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Markdown file to write.")] = None,
    readme: Annotated[
        Path | None,
        typer.Option(help="Markdown file that takes it in between <!-- bench:begin --> and <!-- bench:end -->."),
    ] = None,
) -> None:
    """Draw a picture beside each record and write a Markdown report."""
    from ...errors import UserError
    from ...runtime.commands.console import echo, plain
    from .report import write_report

    target = output or readme
    if target is None or (output and readme):
        raise UserError("give either --output for a report of its own, or --readme for a file that takes it in.")
    if readme is not None and not readme.is_file():
        raise UserError(f"{readme} does not exist: give the file that holds the two marks, or --output.")
    for path in write_report(records, target):
        echo(plain(path))
