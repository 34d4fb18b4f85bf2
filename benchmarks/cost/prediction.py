"""Seconds and memory of a video on a GPU, from counted work."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .fit import Fit
from .gpus import Gpu
from .kinds import KINDS
from .model_costs import ROWS, ModelCosts
from .roofline import WIDTHS, Machine, floor_by_kind, stated_by_kind
from .stage_costs import KindTotal, totals_by_kind
from .video_plans import VideoPlan, plan_of_steps

ORIGINAL_REPORT_SECONDS = 900.0
"""What the original project report measured: 50 steps, RTX 4060 Laptop at 50 W."""
ORIGINAL_REPORT_GPU = "RTX 4060 Laptop"
PUBLISHED_TFLOP = {1: 5.439, 2: 10.879, 3: 16.318}
"""One forward of the published formulation at full size, by batch, by torch's counter on `benchmarks.published`."""
RESERVED = 768 * 2**20
"""Bytes for the driver's context and a display. Assumed, not measured."""


@dataclass(frozen=True)
class KindPrediction:
    """One kind of work in one U-Net forward; seconds."""

    total: KindTotal
    traffic_bytes: int
    weight_bytes: int
    floor_fp16: float
    """With FP16 accumulation, which in FP32 is the same as with FP32's."""
    floor_fp32: float
    stated: float
    fitted: float | None

    @property
    def intensity(self) -> float:
        """FLOPs a byte."""
        return self.total.flops / self.traffic_bytes if self.traffic_bytes else 0.0


@dataclass(frozen=True)
class StagePrediction:
    """One stage: one run's seconds, and bytes."""

    name: str
    runs: float
    """In the first of the videos asked for."""
    flops: int
    floor_fp16: float
    floor_fp32: float
    stated: float
    fitted: float | None
    weights: int
    activations: int
    scratch: int

    @property
    def memory(self) -> int:
        """Bytes while it runs, with no other stage loaded."""
        return self.weights + self.activations + self.scratch


@dataclass(frozen=True)
class VideoPrediction:
    """Seconds of all stages for one video."""

    name: str
    steps: int
    forwards: float
    """Of the U-Net, as :class:`VideoPlan` counts them."""
    compute_floor: float
    """All FLOPs at the peak with FP16 accumulation: no kernel can beat it."""
    floor_fp16: float
    floor_fp32: float
    stated: float
    fitted: float | None


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
    def fits(self) -> bool:
        return self.memory_needed <= self.gpu.memory

    @property
    def published_tflop(self) -> float | None:
        """The published formulation's FLOPs for the same forward, where this is its size."""
        unet = self.costs.stages["unet"]
        full = (self.costs.frames, self.costs.height, self.costs.width) == (16, 256, 256)
        return PUBLISHED_TFLOP.get(self.costs.rows) if full and unet.memory.weights > 1e9 else None

    @property
    def original_seconds(self) -> float | None:
        """The original report's measurement, where it is of this GPU and size."""
        same_gpu = self.gpu.name == ORIGINAL_REPORT_GPU and self.gpu.power == 50.0
        same_work = self.published_tflop is not None and self.costs.guidance == "text"
        return ORIGINAL_REPORT_SECONDS if same_gpu and same_work else None

    @property
    def published_seconds(self) -> tuple[float, float] | None:
        """Least seconds of 50 steps of the published formulation's FLOPs, in FP32 and in FP16."""
        if self.published_tflop is None:
            return None
        flops = 50 * PUBLISHED_TFLOP[ROWS[self.costs.guidance]] * 1e12
        return flops / self.gpu.peak("fp32", "fp32"), flops / self.gpu.peak("fp16", "fp16")


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
    fitted_on = narrow if fit is not None and fit.accumulation == "fp16" else wide
    plans = plans or [plan_of_steps(50)]
    stages = []
    for name, stage in costs.stages.items():
        fitted = sum(fit.seconds(floor_by_kind(stage.kernels, fitted_on)).values()) if fit else None
        # In FP8 the weights of products, nearly all, take one byte.
        weight_width = 1 if precision == "fp8" else WIDTHS[precision]
        stages.append(
            StagePrediction(
                name,
                _runs(costs, plans[0])[name],
                stage.flops,
                sum(floor_by_kind(stage.kernels, narrow).values()),
                sum(floor_by_kind(stage.kernels, wide).values()),
                sum(stated_by_kind(stage.nodes, wide).values()),
                fitted,
                stage.memory.weights * weight_width,
                stage.memory.activations * WIDTHS[precision],
                stage.memory.scratch * WIDTHS[precision],
            )
        )
    videos = [_video(costs, stages, narrow, plan) for plan in plans]
    return Prediction(costs, gpu, precision, _kinds(costs, wide, narrow, fit), stages, videos, fit)


def _runs(costs: ModelCosts, plan: VideoPlan) -> dict[str, float]:
    """How often each stage runs for one video."""
    once = costs.runs(1)
    return {**once, "unet": once["unet"] * plan.forwards}


def _video(costs: ModelCosts, stages: list[StagePrediction], narrow: Machine, plan: VideoPlan) -> VideoPrediction:
    runs = _runs(costs, plan)
    peak = narrow.gpu.peak(narrow.precision, narrow.accumulation)
    return VideoPrediction(
        plan.name,
        plan.steps,
        plan.forwards,
        sum(stage.flops * runs[stage.name] for stage in stages) / peak,
        sum(stage.floor_fp16 * runs[stage.name] for stage in stages),
        sum(stage.floor_fp32 * runs[stage.name] for stage in stages),
        sum(stage.stated * runs[stage.name] for stage in stages),
        sum(stage.fitted * runs[stage.name] for stage in stages if stage.fitted is not None) or None,
    )


def _kinds(costs: ModelCosts, wide: Machine, narrow: Machine, fit: Fit | None) -> list[KindPrediction]:
    unet = costs.stages["unet"]
    totals = {total.kind: total for total in totals_by_kind(unet.kernels)}
    floor_narrow, floor_wide = floor_by_kind(unet.kernels, narrow), floor_by_kind(unet.kernels, wide)
    stated = stated_by_kind(unet.nodes, wide)
    fitted = fit.seconds(floor_narrow if fit.accumulation == "fp16" else floor_wide) if fit else {}
    rows = []
    for kind in KINDS:
        total = totals.get(kind, KindTotal(kind, 0, 0, 0, 0))
        if not total.kernels and kind not in stated:
            continue
        weights = total.weights * wide.weight_width(kind)
        traffic = weights + (total.traffic - total.weights) * WIDTHS[wide.precision]
        rows.append(
            KindPrediction(
                total,
                traffic,
                weights,
                floor_narrow.get(kind, 0.0),
                floor_wide.get(kind, 0.0),
                stated.get(kind, 0.0),
                fitted.get(kind),
            )
        )
    return rows
