"""Seconds and memory of a video on a GPU, from counted work."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...kernels.guidance import BRANCHES, guided_steps
from ...runtime.request.presets import PRESETS
from .fit import Fit
from .gpus import WIDTHS, Gpu, Machine, seconds_by_kind
from .graph import KINDS
from .model_costs import ModelCosts
from .work import KindTotal, StageCosts, totals_by_kind

ORIGINAL_REPORT_SECONDS = 900.0
"""What the original project report measured: 50 steps, RTX 4060 Laptop at 50 W."""
ORIGINAL_REPORT_GPU = "RTX 4060 Laptop"
PUBLISHED_TFLOP = {1: 5.439, 2: 10.879, 3: 16.318}
"""One forward of the published formulation at full size, by batch, by torch's counter on `benchmarks.published`."""
RESERVED = 768 * 2**20
"""Bytes for the driver's context and a display. Assumed, not measured."""


@dataclass(frozen=True)
class VideoPlan:
    """One way to make a video."""

    name: str
    steps: int
    forwards: float
    """Of the U-Net: steps, each by its share of the guided batch: without guidance the prompt's branch runs alone. The
    work is then counted in proportion to the rows, which holds while the weights' traffic is small beside it.
    """


def plan_of_steps(steps: int) -> VideoPlan:
    """Every step guided."""
    return VideoPlan(f"{steps} steps", steps, float(steps))


def preset_plans(guidance: str) -> list[VideoPlan]:
    """Every preset of :mod:`consisti2v_rt.runtime.request.presets` for a model of this guidance."""
    plans = []
    for name, options in PRESETS.items():
        steps, (start, end) = options["num_inference_steps"], options["guidance_interval"]
        guided = len(guided_steps(start, end, steps))
        plans.append(VideoPlan(name, steps, guided + (steps - guided) / BRANCHES[guidance]))
    return plans


@dataclass(frozen=True)
class Seconds:
    """What some work takes, by four ways of telling."""

    floor_fp16: float
    """At the peaks with FP16 accumulation, which in FP32 is the same as with FP32's."""
    floor_fp32: float
    stated: float
    fitted: float | None
    """None without a fit."""


@dataclass(frozen=True)
class KindPrediction(Seconds):
    """One kind of work in one U-Net forward."""

    total: KindTotal
    traffic_bytes: int
    weight_bytes: int

    @property
    def intensity(self) -> float:
        """FLOPs a byte."""
        return self.total.flops / self.traffic_bytes if self.traffic_bytes else 0.0


@dataclass(frozen=True)
class StagePrediction(Seconds):
    """One run of a stage; sizes in bytes."""

    name: str
    runs: float
    """In the first of the videos asked for."""
    flops: int
    weights: int
    activations: int
    scratch: int

    @property
    def memory(self) -> int:
        """Bytes while it runs, with no other stage loaded."""
        return self.weights + self.activations + self.scratch


@dataclass(frozen=True)
class VideoPrediction(Seconds):
    """All stages for one video."""

    name: str
    steps: int
    forwards: float
    compute_floor: float
    """All FLOPs at the peak with FP16 accumulation: no kernel can beat it."""


@dataclass(frozen=True)
class Prediction:
    costs: ModelCosts
    gpu: Gpu
    precision: str
    kinds: list[KindPrediction]
    stages: list[StagePrediction]
    videos: list[VideoPrediction]
    fit: Fit | None

    @property
    def memory_needed(self) -> int:
        """All weights resident, the largest stage's activations and scratch, and what is reserved."""
        working = max(stage.activations + stage.scratch for stage in self.stages)
        return sum(stage.weights for stage in self.stages) + working + RESERVED

    @property
    def published_tflop(self) -> float | None:
        """The published formulation's FLOPs for the same forward, where this is its size."""
        full = (self.costs.frames, self.costs.height, self.costs.width) == (16, 256, 256)
        large = self.costs.stages["unet"].memory.weights > 1e9
        return PUBLISHED_TFLOP.get(self.costs.rows) if full and large else None

    @property
    def original_seconds(self) -> float | None:
        """The original report's measurement, where it is of this GPU and size."""
        same_gpu = self.gpu.name == ORIGINAL_REPORT_GPU and self.gpu.power == 50.0
        same_work = self.published_tflop is not None and self.costs.guidance == "text"
        return ORIGINAL_REPORT_SECONDS if same_gpu and same_work else None


def predict_model(
    costs: ModelCosts,
    gpu: Gpu,
    precision: str = "fp16",
    plans: Sequence[VideoPlan] | None = None,
    fit: Fit | None = None,
) -> Prediction:
    """Predict every stage and whole videos; without plans, one of 50 steps.

    Raises:
        UserError: the GPU has no arithmetic of that precision.
    """
    wide, narrow = Machine(gpu, precision, "fp32"), Machine(gpu, precision, "fp16")
    plans, width = plans or [plan_of_steps(50)], WIDTHS[precision]

    def times(stage: StageCosts) -> dict[str, dict[str, float]]:
        """The entries of :class:`Seconds`, by kind."""
        found = {
            "floor_fp16": seconds_by_kind(stage.kernels, narrow.floor),
            "floor_fp32": seconds_by_kind(stage.kernels, wide.floor),
            "stated": seconds_by_kind(stage.nodes, wide.stated),
        }
        return found if fit is None else {**found, "fitted": fit.seconds(found[f"floor_{fit.accumulation}"])}

    def runs(plan: VideoPlan) -> dict[str, float]:
        once = costs.runs(1)
        return {**once, "unet": once["unet"] * plan.forwards}

    stages = [
        StagePrediction(
            **_seconds({column: sum(by_kind.values()) for column, by_kind in times(stage).items()}),
            name=name,
            runs=runs(plans[0])[name],
            flops=stage.flops,
            # In FP8 the weights of products, nearly all, take one byte.
            weights=stage.memory.weights * (1 if precision == "fp8" else width),
            activations=stage.memory.activations * width,
            scratch=stage.memory.scratch * width,
        )
        for name, stage in costs.stages.items()
    ]
    videos = []
    for plan in plans:
        count = runs(plan)
        columns = [column for column in Seconds.__annotations__ if column != "fitted" or fit is not None]
        summed = {column: sum(getattr(stage, column) * count[stage.name] for stage in stages) for column in columns}
        compute = sum(stage.flops * count[stage.name] for stage in stages) / gpu.peak(precision, "fp16")
        named = {"name": plan.name, "steps": plan.steps, "forwards": plan.forwards}
        videos.append(VideoPrediction(**_seconds(summed), **named, compute_floor=compute))  # type: ignore[arg-type]
    return Prediction(costs, gpu, precision, _kinds(costs.stages["unet"], times, wide), stages, videos, fit)


def _seconds(found: Mapping[str, float]) -> dict[str, Any]:
    return {"fitted": None, **found}


def _kinds(
    unet: StageCosts, times: Callable[[StageCosts], dict[str, dict[str, float]]], wide: Machine
) -> list[KindPrediction]:
    totals, columns = {total.kind: total for total in totals_by_kind(unet.kernels)}, times(unet)
    rows = []
    for kind in KINDS:
        total = totals.get(kind, KindTotal(kind, 0, 0, 0, 0))
        if total.kernels or kind in columns["stated"]:
            weights = total.weights * wide.weight_width(kind)
            traffic = weights + (total.traffic - total.weights) * WIDTHS[wide.precision]
            # A kind that is all fused away has seconds by its nodes alone.
            taken = {column: by_kind.get(kind, 0.0) for column, by_kind in columns.items()}
            rows.append(KindPrediction(**_seconds(taken), total=total, traffic_bytes=traffic, weight_bytes=weights))
    return rows
