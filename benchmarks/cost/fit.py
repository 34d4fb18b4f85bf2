"""Efficiencies by kind from measured runs: how much of the roofline each kind of work reached."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import UserError
from ...runtime.bundle.bundle import Bundle
from ...runtime.files.guarded_read import RECORD, read_json
from ...runtime.gpu.cards import find_card
from .gpus import Machine, describe_gpu, seconds_by_kind
from .graph import KINDS
from .model_costs import ModelCosts, load_costs, stage_graph
from .work import layer_work

Array = NDArray[np.float64]

# Pull of every kind's slowdown towards the common one: timings are taken to be good to 3 %, and the kinds' slowdowns to
# spread by half. It decides what the timings leave open.
_PULL = (0.03 / 0.5) ** 2


@dataclass(frozen=True)
class Timing:
    """One measured run of a stage, or of one kind of work in it: roofline floor by kind, and seconds taken."""

    floors: Mapping[str, float]
    seconds: float


@dataclass(frozen=True)
class Fit:
    """Roofline floor divided by measured time."""

    efficiency: dict[str, float]
    common: float
    """Of all timings together; holds for kinds that were not timed."""
    residual: float
    """Root mean square of (predicted - measured) / measured over the timings."""
    left_out_residual: float | None
    """The same with each timing predicted from the others; None with fewer than three."""
    timings: int
    accumulation: str

    def seconds(self, floors: Mapping[str, float]) -> dict[str, float]:
        """Predicted seconds by kind."""
        return {kind: floor / self.efficiency.get(kind, self.common) for kind, floor in floors.items()}


def fit_efficiencies(timings: Sequence[Timing], accumulation: str = "fp32") -> Fit:
    """Least squares in relative error over one slowdown per kind, none below a hundredth of the common one."""
    kinds = [kind for kind in KINDS if any(kind in timing.floors for timing in timings)]
    floors = np.array([[timing.floors.get(kind, 0.0) for kind in kinds] for timing in timings])
    seconds = np.array([timing.seconds for timing in timings])
    slowdown, common = _solve(floors, seconds)
    left_out = None
    if len(timings) >= 3:
        # A kind that only the timing left out holds takes the others' common slowdown.
        rests = [np.arange(len(timings)) != index for index in range(len(timings))]
        others = np.array([_solve(floors[rest], seconds[rest])[0] for rest in rests])
        left_out = _relative_error((floors * others).sum(axis=1), seconds)
    efficiency = {kind: float(1 / value) for kind, value in zip(kinds, slowdown, strict=True)}
    residual = _relative_error(floors @ slowdown, seconds)
    return Fit(efficiency, 1 / common, residual, left_out, len(timings), accumulation)


def _solve(floors: Array, seconds: Array) -> tuple[Array, float]:
    """Slowdown of every kind, and the common one."""
    common = float(seconds.sum() / floors.sum())
    relative, pull = floors * common / seconds[:, None], np.sqrt(_PULL) * np.eye(floors.shape[1])
    wanted = np.concatenate([np.ones(len(seconds)), pull.sum(axis=1)])
    factors, *_ = np.linalg.lstsq(np.vstack([relative, pull]), wanted, rcond=None)
    return common * np.maximum(factors, 0.01), common


def _relative_error(predicted: Array, seconds: Array) -> float:
    return float(np.sqrt(np.mean(np.square(predicted / seconds - 1))))


def read_fit(path: Path, default: ModelCosts, bundle: Path | None = None) -> Fit:
    """Fit the timings of a JSON file: a record of ``bench``, or the form below.

    It holds ``gpu`` (a name of the table, or an object with name, architecture, multiprocessors, clock_ghz,
    bandwidth_gb, memory_gb), optionally ``power`` (watts), ``precision`` (fp16), ``accumulation`` (fp32) and ``costs``
    (a bundle or table the timings are of, relative to the file; else the one that is predicted), and ``timings``: a
    list of ``{"stage": "unet", "seconds": 0.41}`` for one run of a stage, with ``"kind": "conv 3x3"`` for its share of
    one kind, or with ``"layer": "node_conv2d_3 + node_silu_1"`` for one layer of an engine's profile.

    Args:
        path: the file.
        default: what is predicted.
        bundle: its folder, where it has one: layers are looked up in its graphs.

    Raises:
        UserError: the file does not have that form.
    """
    data = read_json(path, RECORD("give a JSON file of timings"))
    try:
        if "subjects" in data:
            data = timings_of_record(data, default)
        gpu, power = data["gpu"], data.get("power")
        found = describe_gpu(gpu, power) if isinstance(gpu, str) else describe_gpu(**{"power": power, **gpu})
        machine = Machine(found, data.get("precision", "fp16"), data.get("accumulation", "fp32"))
        costs, source = default, bundle
        if "costs" in data:
            source = path.parent / data["costs"]
            costs = load_costs(source)

        @cache
        def graph(stage: str) -> Any:
            if source is None or not source.is_dir():
                raise UserError("timings of layers need the graph they are of: give its --bundle.")
            return stage_graph(Bundle.open(source, verify=False), stage)

        timings = []
        for entry in data["timings"]:
            label, seconds = entry["stage"], float(entry["seconds"])
            works = costs.stages[label].kernels
            if "layer" in entry:
                works = {layer_work(graph(label), entry["layer"]): 1}
            floors = seconds_by_kind(works, machine.floor)
            if "kind" in entry:
                floors = {entry["kind"]: floors[entry["kind"]]}
            if not 0 < seconds < float("inf"):
                raise ValueError(f"{label}: seconds {seconds}")
            timings.append(Timing(floors, seconds))
        if not timings:
            raise ValueError("no timings")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path} is not a file of timings ({error}): it needs gpu, and timings by stage.") from None
    return fit_efficiencies(timings, machine.accumulation)


_STAGES = {
    "text encoder": "text_encoder",
    "conditioning": "conditioning",
    "VAE encoder": "vae_encoder",
    "U-Net": "unet",
    "VAE decoder": "vae_decoder",
    "forward": "unet",
}
"""Rows of a record -> stages."""


def timings_of_record(data: Mapping[str, Any], costs: ModelCosts) -> dict[str, Any]:
    """A fit's timings from a record of ``bench BUNDLE`` or ``bench side-by-side`` on a GPU.

    Args:
        data: the record, as JSON has it.
        costs: of the bundle that was measured.

    Raises:
        UserError: measured on no GPU of the table, nothing of it on the GPU, or another size than `costs`.
    """
    bundle, gpus = data["bundle"], data["machine"]["gpus"]
    if any(bundle[key] != getattr(costs, key) for key in ("frames", "height", "width")):
        raise UserError(
            f"the timings are of {bundle['frames']} frames of {bundle['width']}x{bundle['height']}, the costs of "
            f"{costs.frames} of {costs.width}x{costs.height}: give the measured bundle with --bundle."
        )
    if not gpus:
        raise UserError("the timings were measured on a processor: a GPU's efficiencies need a GPU's timings.")
    for subject in data["subjects"]:
        ran = subject["device"] == "cuda" and subject["unavailable"] is None
        if ran and not subject["backend"].startswith("torch"):
            break
    else:
        raise UserError("none of the record's sessions ran on the GPU: measure with --device cuda.")
    timings = [
        {"stage": _STAGES[row["name"]], "seconds": median(row.get("device_seconds") or row["seconds"]) / row["runs"]}
        for row in subject["rows"]
        if row["name"] in _STAGES
    ]
    card = find_card(gpus[0]["name"])
    if card is None or card.performance is None:
        raise UserError(
            f"{gpus[0]['name']} is not in the table with its clock and bandwidth (docs/gpus.md): give the timings in a "
            "file that describes the GPU."
        )
    # Only where the table knows the card at several limits is the limit a choice.
    power = gpus[0]["power_limit_watts"] if len(card.performance.clocks) > 1 else None
    return {"gpu": card.slug, "power": power, "precision": subject["precision"], "timings": timings}
