"""Latency of a bundle: whole videos, stage by stage, in the session that would be used or in several in turns."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from ...kernels.guidance import BRANCHES
from ...runtime.bundle.bundle import Bundle
from ...runtime.request.settings import GenerationSettings, ResolvedSettings
from .bundle_facts import bundle_facts, file_sha256, now, open_bundle
from .machine import describe_machine, runtime_bytes, versions
from .progress import run_progress
from .record import Record, Row
from .subjects_of_bundle import Candidate, video_contestant
from .turns import Contestant, Plan, measure_in_turns

VIDEO = "video"
STAGES = {
    "image": "photo",
    "load": "load",
    "text_encoder": "text encoder",
    "conditioning": "conditioning",
    "vae_encoder": "VAE encoder",
    "noise": "noise",
    "frame_init": "FrameInit",
    "unet": "U-Net",
    "loop": "guidance and scheduler",
    "vae_decoder": "VAE decoder",
    "file": "file",
}
"""The pipeline's names of its stages -> a reader's, in the order they run."""
_GUIDANCE_WORDS = {"none": "no guidance", "text": "text guidance", "both": "text and image guidance"}


def measure_latency(
    path: Path,
    candidates: Sequence[Candidate],
    *,
    image: Path,
    prompt: str,
    options: Mapping[str, Any],
    plan: Plan,
    threads: int | None,
    console: Console,
) -> Record:
    """Make videos and time them.

    Args:
        path: the bundle's folder.
        candidates: sessions to measure, in turns.
        options: of :class:`GenerationSettings`.
        plan: warm-up and measured runs.

    Raises:
        UserError: the bundle cannot be used, or the options are not possible.
    """
    bundle = open_bundle(path)
    settings = GenerationSettings.from_options(options).resolved(bundle.manifest)
    contestants = [video_contestant(bundle, candidate, image, prompt, options, threads) for candidate in candidates]
    able = [contestant for contestant in contestants if contestant.subject.unavailable is None]
    with run_progress(plan.runs * len(able), console) as progress:
        measure_in_turns(able, plan, progress)
    for contestant in able:
        if contestant.subject.unavailable is None:
            _fill(contestant, stage_runs(settings, bundle))
    model = bundle.manifest.model
    return Record(
        "latency",
        f"one video of {model.frames} frames, {settings.width}x{settings.height}, "
        f"{settings.num_inference_steps} steps, {_GUIDANCE_WORDS[settings.guidance]}",
        now(),
        describe_machine(),
        versions(),
        bundle_facts(bundle),
        {
            **dataclasses.asdict(settings),
            "guidance": settings.guidance,
            "image": image.name,
            "image_sha256": file_sha256(image),
            "prompt": prompt,
            "threads": threads,
            **dataclasses.asdict(plan),
        },
        [contestant.subject for contestant in contestants],
        runtime_bytes(),
    )


def stage_runs(settings: ResolvedSettings, bundle: Bundle) -> dict[str, int]:
    """How often a video runs a stage, by a reader's name of it; 1 where it is not listed."""
    model = bundle.manifest.model
    branches = BRANCHES[settings.guidance]
    texts = min(branches, 2)
    videos = settings.num_videos_per_prompt
    steps = settings.num_inference_steps * settings.autoregress_steps
    turns = -(-branches * videos // (model.rows or branches))
    return {
        "text encoder": texts,
        "conditioning": texts,
        "U-Net": steps * turns,
        "guidance and scheduler": steps,
        "VAE decoder": videos * (settings.autoregress_steps * (model.frames - 1) + 1),
    }


def _fill(contestant: Contestant, runs: Mapping[str, int]) -> None:
    """Rows of the record from the runs; what the first run spent beyond a later one was spent once."""
    assert contestant.first_run is not None
    subject, first = contestant.subject, contestant.first_run
    names = {stage: STAGES.get(stage, stage.replace("_", " ")) for run in contestant.runs for stage in run["parts"]}
    order = list(STAGES.values())
    for stage, name in sorted(names.items(), key=lambda item: order.index(item[1]) if item[1] in order else len(order)):
        seconds = tuple(run["parts"].get(stage, 0.0) for run in contestant.runs)
        subject.rows.append(Row(name, seconds, runs.get(name, 1), first["parts"].get(stage)))
    subject.rows.append(Row(VIDEO, contestant.seconds, 1, first["seconds"]))
    steady = statistics.median(contestant.seconds)
    loading = first["parts"].get("load", 0.0)
    subject.first |= {
        "open": subject.first.pop("load"),
        "load": loading,
        "first_run": max(0.0, first["seconds"] - loading - steady),
    }
