"""``consisti2v bench --quality``: presets and their single options, what they save and what they lose.

Import path for the ``bench`` command: ``consisti2v_rt.benchmarks.preset_quality.command.quality``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ...locations import ASSETS

DEMO_BUNDLE = ASSETS / "demo_bundle"


def quality(
    bundle: Annotated[
        Path, typer.Argument(help="Folder made by 'consisti2v export'; the demo bundle if absent.")
    ] = DEMO_BUNDLE,
    checkpoint: Annotated[
        str | None, typer.Option(help="What the bundle was exported from, to time the published formulation in torch.")
    ] = None,
    image: Annotated[
        list[Path] | None, typer.Option("--image", "-i", help="Photo, for all prompts or one each; the example photo.")
    ] = None,
    prompt: Annotated[list[str] | None, typer.Option("--prompt", "-p", help="One a video; may be repeated.")] = None,
    seed: Annotated[int, typer.Option(help="Of the first video; the next ones follow.")] = 0,
    guidance_scale: Annotated[
        float | None, typer.Option(help="Text guidance; as the bundle recommends, else 7.5.")
    ] = None,
    presets_only: Annotated[bool, typer.Option("--presets-only", help="Leave the single options out.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or openvino.")] = "cpu",
    precision: Annotated[str | None, typer.Option(help="As the bundle has it if absent.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, max=1024, help="Processor threads.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="JSON record.")] = None,
) -> None:
    """Compare presets with the published settings at the same noise: seconds, distance, quality, and a verdict."""
    from dataclasses import asdict

    from ...runtime.commands.console import echo, make_console, plain
    from ...runtime.commands.progress import step_progress
    from ...runtime.request.settings import GenerationSettings
    from ..bench.bundle_facts import bundle_facts, now, open_bundle
    from ..bench.machine import describe_machine, versions
    from ..bench.record import check_writable
    from ..quality.evaluation import save_record
    from .measurement import Task, measure_presets, steps_to_run
    from .outcome import KEEP_BELOW, is_kept, verdicts
    from .table import comparison
    from .variants import all_variants

    if output is not None:
        check_writable(output)
    console = make_console()
    opened = open_bundle(bundle)
    if guidance_scale is None:
        guidance_scale = GenerationSettings().resolved(opened.manifest).guidance_scale_txt
    task = Task(
        tuple(image or (ASSETS / "example.jpg",)),
        tuple(prompt or ("zoom in", "pan left")),
        seed,
        guidance_scale,
    )
    variants = [variant for variant in all_variants(task.guidance_scale > 1) if variant.is_preset or not presets_only]
    steps = steps_to_run(variants)
    with step_progress(steps, make_console(stderr=True)) as bar:
        measurement = measure_presets(
            opened,
            variants,
            task,
            checkpoint=checkpoint,
            threads=threads,
            device=device,
            precision=precision,
            callback=bar,
        )
    console.print(comparison(measurement, len(task.prompts)))
    if output is None:
        return
    record = {
        "kind": "preset_quality",
        "created": now(),
        "machine": describe_machine(),
        "versions": versions(),
        "bundle": bundle_facts(opened),
        "task": {
            "images": [photo.name for photo in task.images],
            "prompts": task.prompts,
            "seed": task.seed,
            "guidance_scale": task.guidance_scale,
            "threads": threads,
        },
        "outcomes": [
            {**outcome.record(), "kept": is_kept(outcome, measurement.other_seed)} for outcome in measurement.outcomes
        ],
        "another_seed": asdict(measurement.other_seed),
        "published_unet_seconds": measurement.published_unet_seconds,
        "unavailable": measurement.unavailable,
        "keep_below": KEEP_BELOW,
        "verdicts": verdicts(measurement.outcomes, measurement.other_seed),
    }
    echo(plain(save_record(record, output)))
