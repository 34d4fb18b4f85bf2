"""Efficiencies by kind from measured runs: how much of the roofline each kind of work reached."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import UserError
from ...runtime.bundle.bundle import Bundle
from ...runtime.files.guarded_read import RECORD, read_json
from .gpus import describe_gpu
from .graph_shapes import Graph
from .kinds import KINDS
from .layers import layer_work
from .model_costs import ModelCosts, load_costs, stage_graph
from .record_timings import timings_of_record
from .roofline import Machine, floor_by_kind

Array = NDArray[np.float64]

# Pull of every kind's slowdown towards the common one: timings are taken to be good to 3 %, and the kinds' slowdowns to
# spread by half. It decides what the timings leave open.
_PULL = (0.03 / 0.5) ** 2


@dataclass(frozen=True)
class Timing:
    """One measured run of a stage, or of one kind of work in it: roofline floor by kind, and seconds taken."""

    label: str
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
    residual = _relative_errors(floors @ slowdown, seconds)
    left_out = None
    if len(timings) >= 3:
        errors = []
        for index in range(len(timings)):
            rest = np.arange(len(timings)) != index
            # A kind that only this timing holds takes the others' common slowdown.
            others, _ = _solve(floors[rest], seconds[rest])
            errors.append(floors[index] @ others / seconds[index] - 1)
        left_out = float(np.sqrt(np.mean(np.square(errors))))
    return Fit(
        {kind: float(1 / value) for kind, value in zip(kinds, slowdown, strict=True)},
        1 / common,
        residual,
        left_out,
        len(timings),
        accumulation,
    )


def _solve(floors: Array, seconds: Array) -> tuple[Array, float]:
    """Slowdown of every kind, and the common one."""
    common = float(seconds.sum() / floors.sum())
    relative = floors * common / seconds[:, None]
    pull = np.sqrt(_PULL) * np.eye(floors.shape[1])
    factors, *_ = np.linalg.lstsq(
        np.vstack([relative, pull]), np.concatenate([np.ones(len(seconds)), pull.sum(axis=1)]), rcond=None
    )
    return common * np.maximum(factors, 0.01), common


def _relative_errors(predicted: Array, seconds: Array) -> float:
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
        if "costs" in data:
            bundle = path.parent / data["costs"]
        costs = load_costs(bundle) if "costs" in data and bundle is not None else default
        graphs = _Graphs(bundle)
        timings = [_timing(entry, costs, graphs, machine) for entry in data["timings"]]
        if not timings:
            raise ValueError("no timings")
    except UserError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path} is not a file of timings ({error}): it needs gpu, and timings by stage.") from None
    return fit_efficiencies(timings, machine.accumulation)


class _Graphs:
    """A bundle's graphs, each read when a layer of it comes up."""

    def __init__(self, bundle: Path | None) -> None:
        self._bundle = bundle
        self._read: dict[str, Graph] = {}

    def __getitem__(self, stage: str) -> Graph:
        if self._bundle is None or not self._bundle.is_dir():
            raise UserError("timings of layers need the graph they are of: give its --bundle.")
        if stage not in self._read:
            self._read[stage] = stage_graph(Bundle.open(self._bundle, verify=False), stage)
        return self._read[stage]


def _timing(entry: Mapping[str, Any], costs: ModelCosts, graphs: _Graphs, machine: Machine) -> Timing:
    works = costs.stages[entry["stage"]].kernels
    label, seconds = entry["stage"], float(entry["seconds"])
    if "layer" in entry:
        works = {layer_work(graphs[entry["stage"]], entry["layer"]): 1}
        label += f", {entry['layer']}"
    floors = floor_by_kind(works, machine)
    if "kind" in entry:
        floors = {entry["kind"]: floors[entry["kind"]]}
        label += f", {entry['kind']}"
    if not 0 < seconds < float("inf"):
        raise ValueError(f"{label}: seconds {seconds}")
    return Timing(label, floors, seconds)
