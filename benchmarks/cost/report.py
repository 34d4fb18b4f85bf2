"""A prediction as tables for a reader, and as JSON."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from ...kernels.guidance import BRANCHES
from .gpus import STATED_BANDWIDTH, STATED_EFFICIENCY, STATED_LAUNCH
from .prediction import PUBLISHED_TFLOP, RESERVED, Prediction, VideoPrediction
from .work import Work

_MIB = 2**20


def summary(prediction: Prediction) -> list[str]:
    """What the tables come to, in sentences."""
    gpu, costs, fit = prediction.gpu, prediction.costs, prediction.fit
    power = f" at {gpu.power:g} W" if gpu.power is not None else ""
    lines = [f"{gpu.name}{power}: {gpu.clock / 1e9:.2f} GHz, {gpu.bandwidth / 1e9:g} GB/s. Source: {gpu.source}."]
    what = "prediction, not a measurement"
    if fit is not None:
        error = fit.residual if fit.left_out_residual is None else fit.left_out_residual
        how = "residual" if fit.left_out_residual is None else "residual, each timing left out in turn"
        what = f"fitted to {fit.timings} timings ({how} {error:.1%})"
    lines.append(
        f"{costs.frames} frames, {costs.width}x{costs.height}, {prediction.precision}; {what}: "
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
    if video.fitted is not None:
        return f"{name} about {video.fitted:.3g} s"
    return (
        f"{name} {video.floor_fp16:.3g} s (roofline floor, FP16 accumulation) to {video.stated:.3g} s (stated "
        "efficiencies, FP32 accumulation)"
    )


def as_json(prediction: Prediction, nodes: list[tuple[str, Work]] | None = None) -> dict[str, Any]:
    """Every number of the report; seconds, bytes, FLOPs."""
    gpu, fit, needed = prediction.gpu, prediction.fit, prediction.memory_needed
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
        "fit": None if fit is None else vars(fit),
        "stated": {"efficiency": STATED_EFFICIENCY, "bandwidth": STATED_BANDWIDTH, "launch_seconds": STATED_LAUNCH},
        "summary": summary(prediction),
        **({} if nodes is None else {"unet_nodes": [{"name": name, **vars(work)} for name, work in nodes]}),
    }


def print_report(prediction: Prediction, console: Console) -> None:
    """The U-Net by kind, stages with memory, videos, and the summary."""
    fit, there = prediction.fit, prediction.gpu.memory
    kinds = []
    for row in prediction.kinds:
        numbers = (row.total.flops / 1e9, row.weight_bytes / 1e6, row.traffic_bytes / 1e6)
        times = (row.floor_fp16, row.floor_fp32, row.stated, *([row.fitted or 0.0] if fit else []))
        cells = [*map(_short, numbers), f"{row.intensity:.0f}", *(_short(1e3 * value) for value in times)]
        reached = [f"{fit.efficiency.get(row.total.kind, fit.common):.0%}"] if fit else []
        kinds.append([row.total.kind, str(row.total.kernels), *cells, *reached])
    headers = ["kind", "count", "GFLOP", "weights MB", "traffic MB", "FLOP/ byte", "floor ms", "FP32 acc.", "stated ms"]
    title = f"one U-Net forward, batch {prediction.costs.rows}, {prediction.precision}; floor with FP16 accumulation"
    console.print(_table(title, [*headers, *(["fitted ms", "efficiency"] if fit else [])], kinds))

    stages, memory = [], []
    for stage in prediction.stages:
        times = (stage.floor_fp16, stage.floor_fp32, stage.stated)
        cells = [_short(stage.flops / 1e9), *(f"{stage.runs * value:.3f}" for value in times)]
        stages.append([stage.name, f"{stage.runs:g}", *cells])
        memory.append((stage.name, (stage.weights, stage.activations, stage.scratch, stage.memory)))
    headers = ["stage", "runs", "GFLOP a run", "floor s", "FP32 acc.", "stated s"]
    console.print(_table(f"stages of one video, {prediction.videos[0].name}: seconds of all runs", headers, stages))

    largest = max(prediction.stages, key=lambda stage: stage.activations + stage.scratch)
    weights, needed = sum(stage.weights for stage in prediction.stages), prediction.memory_needed
    memory.append(("all loaded, with reserve", (weights, largest.activations, largest.scratch, needed)))
    rows = [
        [
            name,
            *(f"{part / _MIB:.0f}" for part in parts),
            f"{parts[-1] / there:.0%}",
            "yes" if parts[-1] <= there else "NO",
        ]
        for name, parts in memory
    ]
    headers = ["stage", "weights", "activations", "scratch", "together", f"of {there / 2**30:.3g} GiB", "fits"]
    console.print(_table("memory, MiB", headers, rows))

    videos = []
    for video in prediction.videos:
        times = (
            video.compute_floor,
            video.floor_fp16,
            video.floor_fp32,
            video.stated,
            *([video.fitted or 0.0] if fit else []),
        )
        videos.append([video.name, str(video.steps), f"{video.forwards:g}", *(f"{value:.2f}" for value in times)])
    headers = ["", "steps", "U-Net forwards", "compute alone s", "floor s", "FP32 acc.", "stated s"]
    console.print(_table("one video", [*headers, *(["fitted s"] if fit else [])], videos))
    for line in summary(prediction):
        console.print(line, highlight=False)


def node_table(nodes: list[tuple[str, Work]], count: int) -> Table:
    """The nodes with the most FLOPs, single and unfused; sizes in elements."""
    rows = [
        [name, work.kind, f"{work.flops / 1e9:.2f}", *(f"{size:,}" for size in (work.weights, work.read, work.written))]
        for name, work in sorted(nodes, key=lambda item: -item[1].flops)[:count]
    ]
    return _table("largest nodes of the U-Net", ["node", "kind", "GFLOP", "weights", "read", "written"], rows, texts=2)


def _table(title: str, headers: Iterable[str], rows: Iterable[Iterable[str]], texts: int = 1) -> Table:
    # Narrow enough for a terminal of 80 columns.
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for index, header in enumerate(headers):
        table.add_column(header, justify="left" if index < texts else "right", no_wrap=index < texts)
    for row in rows:
        table.add_row(*row)
    return table


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 1000 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
