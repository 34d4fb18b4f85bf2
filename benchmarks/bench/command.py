"""``consisti2v bench``: its commands."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ...locations import ASSETS

_EXAMPLE_PHOTO = ASSETS / "example.jpg"
_BUNDLE = typer.Argument(help="Folder made by 'consisti2v export', or a name such as demo.")
_ROW = typer.Option(
    "--row", help="What to measure, as backend:precision (onnxruntime-cpu:fp32, torch-compile:fp32); may be repeated."
)
_ROUNDS = typer.Option(min=1, max=1000, help="Measured runs of each, in turns.")
_WARMUP = typer.Option(min=0, max=1000, help="Runs of each process before, not counted.")
_THREADS = typer.Option(min=1, max=1024, help="Processor threads; as the backend chooses if absent.")
_OUTPUT = typer.Option("--output", "-o", help="JSON record; benchmarks/results/ if that is here, else this folder.")


def run(
    bundle: Annotated[Path, _BUNDLE],
    row: Annotated[list[str] | None, _ROW] = None,
    device: Annotated[str, typer.Option(help="Without --row: auto, cpu, cuda or openvino.")] = "auto",
    precision: Annotated[str | None, typer.Option(help="Without --row: as the bundle has it if absent.")] = None,
    image: Annotated[Path, typer.Option("--image", "-i", help="Photo.")] = _EXAMPLE_PHOTO,
    prompt: Annotated[str, typer.Option("--prompt", "-p", help="What happens.")] = "zoom in",
    steps: Annotated[int, typer.Option(help="Denoising steps.")] = 50,
    seed: Annotated[int, typer.Option(help="Of the video.")] = 0,
    rounds: Annotated[int, _ROUNDS] = 5,
    warmup: Annotated[int, _WARMUP] = 1,
    resident: Annotated[bool, typer.Option(help="Several rows: all stay loaded, or one at a time.")] = True,
    threads: Annotated[int | None, _THREADS] = None,
    output: Annotated[Path | None, _OUTPUT] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the record instead of tables.")] = False,
) -> None:
    """Time whole videos with the published settings, stage by stage: median, min, max, first run, memory, energy."""
    from ...errors import UserError
    from ...runtime.commands.console import make_console
    from ...runtime.request.presets import PUBLISHED
    from .bundle_facts import open_bundle
    from .latency import measure_latency
    from .outcome import check_place, deliver
    from .subjects_of_bundle import TORCH, Candidate, usual_candidate
    from .turns import Plan

    check_place(output)
    if row:
        candidates = [Candidate.parse(text) for text in dict.fromkeys(row)]
        if any(candidate.backend in TORCH for candidate in candidates):
            raise UserError("the published formulation makes no whole video here: use 'bench side-by-side' for it.")
    else:
        candidates = [usual_candidate(open_bundle(bundle), device, precision)]
    record = measure_latency(
        bundle,
        candidates,
        image=image,
        prompt=prompt,
        options={**PUBLISHED, "num_inference_steps": steps, "seed": seed},
        plan=Plan(warmup, rounds, resident),
        threads=threads,
        console=make_console(stderr=True),
    )
    deliver(record, output, as_json=json)


def side_by_side(
    bundle: Annotated[Path, _BUNDLE],
    row: Annotated[list[str] | None, _ROW] = None,
    checkpoint: Annotated[
        str | None, typer.Option(help="What the bundle was exported from; random weights are made again.")
    ] = None,
    rounds: Annotated[int, _ROUNDS] = 5,
    warmup: Annotated[int, _WARMUP] = 1,
    resident: Annotated[
        bool | None, typer.Option(help="All stay loaded, or one at a time; as memory allows if absent.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the inputs.")] = 0,
    threads: Annotated[int | None, _THREADS] = None,
    output: Annotated[Path | None, _OUTPUT] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the record instead of tables.")] = False,
) -> None:
    """Time one U-Net forward beside the published formulation in torch; relative L2 to it stands with every row."""
    from ...runtime.commands.console import make_console
    from .outcome import check_place, deliver
    from .side_by_side import measure_side_by_side
    from .subjects_of_bundle import Candidate

    check_place(output)
    candidates = [Candidate.parse(text) for text in row] if row else None
    record = measure_side_by_side(
        bundle,
        candidates,
        checkpoint=checkpoint,
        warmup=warmup,
        rounds=rounds,
        resident=resident,
        seed=seed,
        threads=threads,
        console=make_console(stderr=True),
    )
    deliver(record, output, as_json=json)


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
    rounds: Annotated[int, _ROUNDS] = 5,
    warmup: Annotated[int, _WARMUP] = 1,
    threads: Annotated[int | None, _THREADS] = None,
    output: Annotated[Path | None, _OUTPUT] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the record instead of tables.")] = False,
) -> None:
    """Time a U-Net forward over frames, resolution and batch, and a video over steps. Without values: a few of each."""
    from ...errors import UserError
    from ...runtime.commands.console import make_console
    from .outcome import check_place, deliver
    from .scaling import DEFAULTS, Source, measure_scaling

    check_place(output)
    if bundle is not None and models is not None:
        raise UserError("--models keeps models that are exported without BUNDLE: leave one of the two out.")
    given = {"frames": frames, "resolution": resolution, "batch": batch, "steps": steps}
    points = {axis: sorted(set(values)) for axis, values in given.items() if values}
    if not points:
        # A bundle that is given is built for one number of frames.
        points = {axis: list(values) for axis, values in DEFAULTS.items() if bundle is None or axis != "frames"}
    record = measure_scaling(
        Source(bundle, random_weights, models, device, precision),
        points,
        warmup=warmup,
        rounds=rounds,
        threads=threads,
        image=_EXAMPLE_PHOTO,
        console=make_console(stderr=True),
    )
    deliver(record, output, as_json=json)
