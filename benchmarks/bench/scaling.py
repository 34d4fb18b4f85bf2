"""How the time grows with frames, resolution, batch and steps; the bundles for it are made on the way."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from ...errors import UserError
from ...runtime.bundle.bundle import Bundle
from ...runtime.request.presets import PUBLISHED
from .bundle_facts import bundle_facts, file_sha256, manifest_sha256, now, open_bundle
from .forward_inputs import make_inputs, save_inputs, session_dims
from .machine import describe_machine, versions
from .progress import run_progress
from .record import Record, Row, Subject
from .scaled_models import ModelMaker
from .side_by_side import all_fit
from .subjects_of_bundle import (
    Candidate,
    empty_subject,
    find_backend,
    session_contestant,
    usual_candidate,
    video_contestant,
)
from .turns import Contestant, Plan, measure_in_turns

AXES = ("frames", "resolution", "batch", "steps")
DEFAULTS: dict[str, tuple[int, ...]] = {
    "frames": (4, 8, 16, 24),
    "resolution": (64, 128, 192, 256),
    "batch": (1, 2, 3, 4),
    "steps": (1, 2, 4, 8),
}
"""For the tiny model on a processor: seconds, not minutes."""
UNITS = {"frames": "frames", "resolution": "pixels a side", "batch": "rows", "steps": "steps"}
WORK = {
    "frames": "one U-Net forward",
    "resolution": "one U-Net forward",
    "batch": "one U-Net forward",
    "steps": "one video",
}


@dataclass(frozen=True)
class Source:
    """What is scaled: a bundle as it is, or random weights to be exported."""

    bundle: Path | None
    random_weights: str = "tiny"
    models: Path | None = None
    """Where exported models are kept, and found again; None: nowhere."""
    device: str = "auto"
    precision: str | None = None


def measure_scaling(
    source: Source,
    points: Mapping[str, Sequence[int]],
    *,
    warmup: int,
    rounds: int,
    threads: int | None,
    image: Path,
    console: Console,
) -> Record:
    """Time every point of every axis, all others at the bundle's own values.

    Args:
        source: a dynamic bundle takes resolution, batch and steps; one of open batch takes batch and steps; any bundle
            takes steps; frames need an export each.
        points: values by axis.

    Raises:
        UserError: the bundle does not take an axis, or an export failed.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        maker = ModelMaker(source.random_weights, source.models or folder, console)
        if source.bundle is None:
            maker.check()
        # First, because it may not take a point.
        bundle = _base(source, maker, points)
        candidate = usual_candidate(bundle, source.device, source.precision)
        found: dict[str, Contestant] = {}
        models: dict[str, str | None] = {}
        for axis in AXES:
            for value in points.get(axis, ()):
                model = maker.model_of_frames(value) if axis == "frames" else bundle
                contestant = _point(model, candidate, axis, value, folder, image, threads)
                if contestant.subject.unavailable is not None:
                    raise UserError(f"{candidate.name} cannot run this: {contestant.subject.unavailable.rstrip('.')}.")
                contestant.subject.name = f"{axis} {value}"
                found[contestant.subject.name] = contestant
                models[contestant.subject.name] = manifest_sha256(model)
        plan = Plan(warmup, rounds, all_fit(bundle, len(found)))
        with run_progress(plan.runs * len(found), console) as progress:
            measure_in_turns(list(found.values()), plan, progress)
        return _record(
            bundle_facts(bundle) | {"models": models},
            {
                "random_weights": None if source.bundle else Path(source.random_weights).name,
                "image_sha256": file_sha256(image),
                "threads": threads,
                **dataclasses.asdict(plan),
            },
            _what(bundle),
            candidate,
            found,
        )


def split_name(row: str) -> tuple[str, int]:
    """``frames 16`` -> axis and value."""
    axis, _, value = row.partition(" ")
    return axis, int(value)


def _what(bundle: Bundle) -> str:
    model = bundle.manifest.model
    return (
        f"one U-Net forward and one video; where it does not vary: {model.frames} frames, "
        f"{model.width}x{model.height}, batch {session_dims(bundle.manifest)['rows']}"
    )


def _record(
    facts: dict[str, Any],
    settings: dict[str, Any],
    what: str,
    candidate: Candidate,
    found: Mapping[str, Contestant],
) -> Record:
    subject = empty_subject(candidate, find_backend(candidate.backend).device)
    for name, contestant in found.items():
        if contestant.subject.unavailable is not None:
            _note_failure(subject, name, contestant.subject.unavailable)
        else:
            assert contestant.first_run is not None
            subject.rows.append(Row(name, contestant.seconds, 1, contestant.first_run["seconds"]))
            peak = contestant.subject.host_peak_bytes or 0
            subject.host_peak_bytes = max(subject.host_peak_bytes or 0, peak)
    if not subject.rows:
        subject.unavailable = "; ".join(subject.facts["failed"].values())
    return Record("scaling", what, now(), describe_machine(), versions(), facts, settings, [subject])


def _note_failure(subject: Subject, point: str, reason: str) -> None:
    subject.facts.setdefault("failed", {})[point] = reason


def _point(
    bundle: Bundle, candidate: Candidate, axis: str, value: int, folder: Path, image: Path, threads: int | None
) -> Contestant:
    if axis == "steps":
        options = {**PUBLISHED, "num_inference_steps": value, "seed": 0}
        return video_contestant(bundle, candidate, image, "", options, threads)
    rows, side = (value if axis == "batch" else None), (value if axis == "resolution" else None)
    dims = session_dims(bundle.manifest, rows, side, side)
    inputs = folder / f"{axis}-{value}.npz"
    save_inputs(make_inputs(bundle.manifest, dims, 0), inputs)
    return session_contestant(bundle, candidate, inputs, dims, threads)


def _base(source: Source, maker: ModelMaker, points: Mapping[str, Sequence[int]]) -> Bundle:
    """The bundle that all axes but frames are measured on, checked to take every point."""
    if source.bundle is not None:
        if points.get("frames"):
            raise UserError(
                "a bundle is built for one number of frames: without BUNDLE a model is exported for each of --frames."
            )
        bundle = open_bundle(source.bundle)
    elif any(points.get(axis) for axis in AXES if axis != "frames"):
        bundle = maker.open_model(sizes=bool(points.get("resolution")))
    else:
        bundle = maker.model_of_frames(points["frames"][0])
    model = bundle.manifest.model
    if points.get("batch") and model.rows is not None:
        raise UserError("this bundle's batch is fixed: export it with --guidance any, or scale --steps alone.")
    multiple = model.dynamic_size_multiple
    if points.get("resolution") and multiple is None:
        raise UserError("this bundle's size is fixed: export it with --dynamic, or leave --resolution out.")
    if multiple is not None and (wrong := [side for side in points.get("resolution", ()) if side % multiple]):
        raise UserError(f"--resolution {wrong[0]} does not fit: this model takes multiples of {multiple} pixels.")
    return bundle
