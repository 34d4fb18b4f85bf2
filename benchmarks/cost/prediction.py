"""Seconds and memory of a video on a GPU, from counted work; as tables for a reader, and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console

from ...kernels.guidance import BRANCHES, guided_steps
from ...runtime.request.presets import PRESETS
from ..bench.tables import rich_table
from .gpus import STATED_BANDWIDTH, STATED_EFFICIENCY, STATED_LAUNCH, WIDTHS, Gpu, Machine, seconds_by_kind
from .graph import KINDS
from .work import KindTotal, ModelCosts, StageCosts, totals_by_kind

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
    """What some work takes, by three ways of telling."""

    floor_fp16: float
    """At the peaks with FP16 accumulation, which in FP32 is the same as with FP32's."""
    floor_fp32: float
    stated: float


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
    """What a model is predicted to take on a GPU."""

    costs: ModelCosts
    gpu: Gpu
    precision: str
    kinds: list[KindPrediction]
    stages: list[StagePrediction]
    videos: list[VideoPrediction]

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
    costs: ModelCosts, gpu: Gpu, precision: str = "fp16", plans: Sequence[VideoPlan] | None = None
) -> Prediction:
    """Predict every stage and whole videos; without plans, one of 50 steps.

    Raises:
        UserError: the GPU has no arithmetic of that precision.
    """
    wide, narrow = Machine(gpu, precision, "fp32"), Machine(gpu, precision, "fp16")
    plans, width, once = plans or [plan_of_steps(50)], WIDTHS[precision], costs.runs(1)

    def times(stage: StageCosts) -> dict[str, dict[str, float]]:
        """The entries of :class:`Seconds`, by kind."""
        return {
            "floor_fp16": seconds_by_kind(stage.kernels, narrow.floor),
            "floor_fp32": seconds_by_kind(stage.kernels, wide.floor),
            "stated": seconds_by_kind(stage.nodes, wide.stated),
        }

    stages = [
        StagePrediction(
            **{column: sum(by_kind.values()) for column, by_kind in times(stage).items()},
            name=name,
            runs=once[name] * (plans[0].forwards if name == "unet" else 1),
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
        runs, columns = {**once, "unet": once["unet"] * plan.forwards}, ("flops", *Seconds.__annotations__)
        sums = {column: sum(getattr(stage, column) * runs[stage.name] for stage in stages) for column in columns}
        compute, named = sums.pop("flops") / gpu.peak(precision, "fp16"), {"name": plan.name, "steps": plan.steps}
        videos.append(VideoPrediction(**sums, **named, forwards=plan.forwards, compute_floor=compute))  # type: ignore[arg-type]
    unet, by_column, kinds = costs.stages["unet"], times(costs.stages["unet"]), []
    totals = {total.kind: total for total in totals_by_kind(unet.kernels)}
    for kind in KINDS:
        if kind in totals or kind in by_column["stated"]:
            total = totals.get(kind, KindTotal(kind, 0, 0, 0, 0))
            weights = total.weights * wide.weight_width(kind)
            traffic = weights + (total.traffic - total.weights) * width
            # A kind that is all fused away has seconds by its nodes alone.
            taken = {column: by_kind.get(kind, 0.0) for column, by_kind in by_column.items()}
            kinds.append(KindPrediction(**taken, total=total, traffic_bytes=traffic, weight_bytes=weights))
    return Prediction(costs, gpu, precision, kinds, stages, videos)


# -- for a reader ------------------------------------------------------------------------------------------------------

_MIB = 2**20


def summary(prediction: Prediction) -> list[str]:
    """What the tables come to, in sentences."""
    gpu, costs = prediction.gpu, prediction.costs
    power = f" at {gpu.power:g} W" if gpu.power is not None else ""
    lines = [f"{gpu.name}{power}: {gpu.clock / 1e9:.2f} GHz, {gpu.bandwidth / 1e9:g} GB/s. Source: {gpu.source}."]
    lines.append(
        f"{costs.frames} frames, {costs.width}x{costs.height}, {prediction.precision}; prediction, not a measurement: "
        f"{'; '.join(_video_words(video) for video in prediction.videos)}."
    )
    if prediction.original_seconds is not None:
        flops = 50 * PUBLISHED_TFLOP[BRANCHES[costs.guidance]] * 1e12
        fp32, fp16 = (flops / gpu.peak(precision, precision) for precision in ("fp32", "fp16"))
        lines.append(
            f"The original project report measured {prediction.original_seconds:g} s there for 50 steps. The published "
            f"formulation's FLOPs alone take at least {fp32:.3g} s in FP32 and {fp16:.3g} s in FP16."
        )
    if prediction.published_tflop is not None:
        step = costs.stages["unet"].flops / 1e12
        lines.append(
            f"One U-Net forward at batch {costs.rows}: {step:.3f} TFLOP; published formulation "
            f"{prediction.published_tflop:.3f} TFLOP ({prediction.published_tflop / step:.2f}x)."
        )
    lines.append(
        f"Memory: all weights, the largest stage's activations and scratch, and {RESERVED / _MIB:g} MiB reserved: "
        f"{prediction.memory_needed / 2**30:.2f} of {gpu.memory / 2**30:.3g} GiB; it "
        f"{'fits' if prediction.memory_needed <= gpu.memory else 'DOES NOT FIT'}."
    )
    return lines


def _video_words(video: VideoPrediction) -> str:
    steps = f"{video.steps} steps"
    name = steps if video.name == steps else f"{video.name} ({steps})"
    return (
        f"{name} {video.floor_fp16:.3g} s (roofline floor, FP16 accumulation) to {video.stated:.3g} s (stated "
        "efficiencies, FP32 accumulation)"
    )


def as_json(prediction: Prediction) -> dict[str, Any]:
    """Every number of the report; seconds, bytes, FLOPs."""
    gpu, needed = prediction.gpu, prediction.memory_needed
    peaks = {accumulation: gpu.peak(prediction.precision, accumulation) for accumulation in ("fp16", "fp32")}
    return {
        "prediction": True,
        "gpu": {**vars(gpu), "peak_flops": peaks},
        "precision": prediction.precision,
        "model": prediction.costs.clip,
        "videos": [vars(video) for video in prediction.videos],
        "original_report_seconds": prediction.original_seconds,
        "published_tflop": prediction.published_tflop,
        "stages": [
            {**vars(stage), "memory": stage.memory, "fits": stage.memory <= gpu.memory} for stage in prediction.stages
        ],
        "unet_kinds": [
            {**vars(row), "total": vars(row.total), "flops_per_byte": row.intensity} for row in prediction.kinds
        ],
        "memory": {"needed": needed, "reserved": RESERVED, "available": gpu.memory, "fits": needed <= gpu.memory},
        "stated": {"efficiency": STATED_EFFICIENCY, "bandwidth": STATED_BANDWIDTH, "launch_seconds": STATED_LAUNCH},
        "summary": summary(prediction),
    }


def print_report(prediction: Prediction, console: Console) -> None:
    """The U-Net by kind, stages with memory, videos, and the summary."""
    there, needed = prediction.gpu.memory, prediction.memory_needed
    kinds, stages, memory, videos = [], [], [], []
    for row in prediction.kinds:
        numbers = (row.total.flops / 1e9, row.weight_bytes / 1e6, row.traffic_bytes / 1e6)
        times = [_short(1e3 * value) for value in (row.floor_fp16, row.floor_fp32, row.stated)]
        kinds.append([row.total.kind, str(row.total.kernels), *map(_short, numbers), f"{row.intensity:.0f}", *times])
    for stage in prediction.stages:
        times = [f"{stage.runs * value:.3f}" for value in (stage.floor_fp16, stage.floor_fp32, stage.stated)]
        stages.append([stage.name, f"{stage.runs:g}", _short(stage.flops / 1e9), *times])
        memory.append((stage.name, (stage.weights, stage.activations, stage.scratch, stage.memory)))
    largest = max(prediction.stages, key=lambda stage: stage.activations + stage.scratch)
    weights = sum(stage.weights for stage in prediction.stages)
    memory.append(("all loaded, with reserve", (weights, largest.activations, largest.scratch, needed)))
    sizes = []
    for name, parts in memory:
        fits = "yes" if parts[-1] <= there else "NO"
        sizes.append([name, *(f"{part / _MIB:.0f}" for part in parts), f"{parts[-1] / there:.0%}", fits])
    for video in prediction.videos:
        taken = (video.compute_floor, video.floor_fp16, video.floor_fp32, video.stated)
        videos.append([video.name, str(video.steps), f"{video.forwards:g}", *(f"{value:.2f}" for value in taken)])

    forward = f"one U-Net forward, batch {prediction.costs.rows}, {prediction.precision}; floor with FP16 accumulation"
    seconds = f"stages of one video, {prediction.videos[0].name}: seconds of all runs"
    share = f"of {there / 2**30:.3g} GiB"
    for title, headers, rows in (
        (forward, "kind,count,GFLOP,weights MB,traffic MB,FLOP/ byte,floor ms,FP32 acc.,stated ms", kinds),
        (seconds, "stage,runs,GFLOP a run,floor s,FP32 acc.,stated s", stages),
        ("memory, MiB", f"stage,weights,activations,scratch,together,{share},fits", sizes),
        ("one video", ",steps,U-Net forwards,compute alone s,floor s,FP32 acc.,stated s", videos),
    ):
        console.print(rich_table(title, headers.split(","), rows))
    for line in summary(prediction):
        console.print(line, highlight=False)


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 1000 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
