"""One U-Net forward, the same for all: the published formulation in torch beside the bundle's sessions, in turns."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from ...runtime.bundle.bundle import Bundle
from .bundle_facts import bundle_facts, now, open_bundle
from .forward_inputs import FRAME_STRIDE, TIMESTEP, make_inputs, save_inputs, session_dims
from .machine import describe_machine, require, runtime_bytes, versions
from .progress import run_progress
from .record import Record, Row
from .subjects_of_bundle import (
    REFERENCE,
    TORCH,
    Candidate,
    default_candidates,
    probe_torch,
    published_contestant,
    session_contestant,
    weights_options,
)
from .turns import Contestant, Plan, measure_in_turns

FORWARD = "forward"
# Memory of one process over the U-Net's float32 weights: they are once on the way in, and activations.
_PROCESS_FACTOR = 2.2
_PROCESS_BYTES = 2**29
_SHARE_OF_FREE = 0.7


def measure_side_by_side(
    path: Path,
    candidates: Sequence[Candidate] | None,
    *,
    checkpoint: str | None,
    warmup: int,
    rounds: int,
    resident: bool | None,
    seed: int,
    threads: int | None,
    console: Console,
) -> Record:
    """Time one forward of every candidate and compare what they give.

    Args:
        path: the bundle's folder.
        candidates: what to measure; None: all. The published formulation in torch eager, float32, is always there.
        checkpoint: what the bundle was exported from; not needed for random weights.
        resident: keep all loaded; None: where memory allows.
        seed: of the inputs: the guidance branches of one video, as in a step of the loop.

    Raises:
        UserError: the bundle cannot be used.
    """
    bundle = open_bundle(path)
    dims = session_dims(bundle.manifest)
    wanted = list(dict.fromkeys([Candidate.parse("torch-eager:fp32"), *(candidates or default_candidates())]))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_inputs(make_inputs(bundle.manifest, dims, seed, one_video=True), folder / "inputs.npz")
        contestants = _contestants(bundle, wanted, candidates is not None, checkpoint, dims, folder, threads)
        able = [contestant for contestant in contestants if contestant.subject.unavailable is None]
        if resident is None:
            resident = all_fit(bundle, len(able))
        plan = Plan(warmup, rounds, resident)
        with run_progress(plan.runs * len(able), console) as progress:
            measure_in_turns(able, plan, progress)
        _compare(contestants)
    model = bundle.manifest.model
    return Record(
        "side_by_side",
        f"one U-Net forward, batch {dims['rows']}, {model.frames} frames, {model.width}x{model.height}",
        now(),
        describe_machine(),
        versions(),
        bundle_facts(bundle),
        {
            "warmup": warmup,
            "rounds": rounds,
            "resident": resident,
            "seed": seed,
            "threads": threads,
            "timestep": TIMESTEP,
            "frame_stride": FRAME_STRIDE,
        },
        [contestant.subject for contestant in contestants],
        runtime_bytes(),
    )


def relative_l2(got: NDArray[Any], expected: NDArray[Any]) -> float:
    """|got - expected| / |expected|, in float64."""
    expected = expected.astype(np.float64)
    return float(np.linalg.norm(got.astype(np.float64) - expected) / np.linalg.norm(expected))


def _contestants(
    bundle: Bundle,
    candidates: Sequence[Candidate],
    explicit: bool,
    checkpoint: str | None,
    dims: Mapping[str, int],
    folder: Path,
    threads: int | None,
) -> list[Contestant]:
    weights, torch, inputs = weights_options(bundle, checkpoint), probe_torch(), folder / "inputs.npz"
    found = []
    for number, candidate in enumerate(candidates):
        output = folder / f"{number}.npy"
        if candidate.backend in TORCH:
            made = published_contestant(torch, weights, candidate, inputs, threads, output, explicit=explicit)
        else:
            made = session_contestant(bundle, candidate, inputs, dims, threads, output)
        found.append(made)
    return found


def all_fit(bundle: Bundle, processes: int) -> bool:
    """Whether every process can stay loaded in what is free now."""
    weights = sum(record.bytes for name, record in bundle.manifest.files.items() if name.startswith("unet/"))
    needed = processes * (_PROCESS_FACTOR * weights + _PROCESS_BYTES)
    return bool(needed < _SHARE_OF_FREE * require("psutil").virtual_memory().available)


def _compare(contestants: Sequence[Contestant]) -> None:
    """Rows, relative L2 and speed-up, from what was measured."""
    for contestant in contestants:
        subject = contestant.subject
        if subject.unavailable is None:
            assert contestant.first_run is not None
            device_seconds = tuple(run["device_seconds"] for run in contestant.runs if run["device_seconds"])
            first = contestant.first_run["seconds"]
            subject.rows.append(Row(FORWARD, contestant.seconds, 1, first, device_seconds))
            subject.first["first_run"] = max(0.0, first - statistics.median(contestant.seconds))
    reference = next((entry for entry in contestants if entry.subject.name == REFERENCE), None)
    if reference is None or reference.subject.unavailable is not None or reference.output is None:
        return
    expected = np.load(reference.output)
    for contestant in contestants:
        if contestant.subject.unavailable is None and contestant.output is not None:
            contestant.subject.relative_l2 = relative_l2(np.load(contestant.output), expected)
            ratio = statistics.median(reference.seconds) / statistics.median(contestant.seconds)
            contestant.subject.speed_up = ratio
