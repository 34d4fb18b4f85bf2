"""A prediction as tables for a reader, and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from .prediction import RESERVED, Prediction, VideoPrediction
from .roofline import STATED_BANDWIDTH, STATED_EFFICIENCY, STATED_LAUNCH
from .stage_costs import Work

_MIB = 2**20


def print_report(prediction: Prediction, console: Console) -> None:
    """Headline, stages with memory, and the U-Net by kind."""
    console.print(
        _kind_table(prediction), _stage_table(prediction), _memory_table(prediction), _video_table(prediction)
    )
    for line in summary(prediction):
        console.print(line, highlight=False)


def summary(prediction: Prediction) -> list[str]:
    """What the tables come to, in sentences."""
    gpu, costs = prediction.gpu, prediction.costs
    power = f" at {gpu.power:g} W" if gpu.power is not None else ""
    lines = [f"{gpu.name}{power}: {gpu.clock / 1e9:.2f} GHz, {gpu.bandwidth / 1e9:g} GB/s. Source: {gpu.source}."]
    fit = prediction.fit
    what = "prediction, not a measurement"
    if fit is not None:
        error = fit.residual if fit.left_out_residual is None else fit.left_out_residual
        how = "residual" if fit.left_out_residual is None else "residual, each timing left out in turn"
        what = f"fitted to {fit.timings} timings ({how} {error:.1%})"
    lines.append(
        f"{costs.frames} frames, {costs.width}x{costs.height}, {prediction.precision}; {what}: "
        f"{'; '.join(_video_words(video) for video in prediction.videos)}."
    )
    if prediction.original_seconds is not None and prediction.published_seconds is not None:
        fp32, fp16 = prediction.published_seconds
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
    needed, there = prediction.memory_needed / 2**30, gpu.memory / 2**30
    lines.append(
        f"Memory: all weights, the largest stage's activations and scratch, and {RESERVED / _MIB:g} MiB reserved: "
        f"{needed:.2f} of {there:.3g} GiB; it {'fits' if prediction.fits else 'DOES NOT FIT'}."
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
    gpu, costs, fit = prediction.gpu, prediction.costs, prediction.fit
    clip = {key: value for key, value in vars(costs).items() if key != "stages"}
    return {
        "prediction": True,
        "gpu": {**vars(gpu), "peak_flops": {a: gpu.peak(prediction.precision, a) for a in ("fp16", "fp32")}},
        "precision": prediction.precision,
        "model": clip,
        "videos": [vars(video) for video in prediction.videos],
        "original_report_seconds": prediction.original_seconds,
        "published_tflop": prediction.published_tflop,
        "stages": [
            {**vars(stage), "memory": stage.memory, "fits": stage.memory <= gpu.memory} for stage in prediction.stages
        ],
        "unet_kinds": [
            {**vars(row), "total": vars(row.total), "flops_per_byte": row.intensity} for row in prediction.kinds
        ],
        "memory": {
            "needed": prediction.memory_needed,
            "reserved": RESERVED,
            "available": gpu.memory,
            "fits": prediction.fits,
        },
        "fit": None if fit is None else vars(fit),
        "stated": {"efficiency": STATED_EFFICIENCY, "bandwidth": STATED_BANDWIDTH, "launch_seconds": STATED_LAUNCH},
        "summary": summary(prediction),
        **({"unet_nodes": [{"name": name, **vars(work)} for name, work in nodes]} if nodes is not None else {}),
    }


def node_table(nodes: list[tuple[str, Work]], count: int) -> Table:
    """The nodes with the most FLOPs, single and unfused; sizes in elements."""
    table = _table("largest nodes of the U-Net", "node", "kind", "GFLOP", "weights", "read", "written", texts=2)
    for name, work in sorted(nodes, key=lambda item: -item[1].flops)[:count]:
        table.add_row(
            name,
            work.kind,
            f"{work.flops / 1e9:.2f}",
            f"{work.weights:,}",
            f"{work.read:,}",
            f"{work.written:,}",
        )
    return table


def _kind_table(prediction: Prediction) -> Table:
    headers = ["kind", "count", "GFLOP", "weights MB", "traffic MB", "FLOP/ byte", "floor ms", "FP32 acc.", "stated ms"]
    fitted = prediction.fit is not None
    title = f"one U-Net forward, batch {prediction.costs.rows}, {prediction.precision}; floor with FP16 accumulation"
    table = _table(title, *headers, *(["fitted ms", "efficiency"] if fitted else []))
    for row in prediction.kinds:
        cells = [
            row.total.kind,
            f"{row.total.kernels}",
            *(_short(value) for value in (row.total.flops / 1e9, row.weight_bytes / 1e6, row.traffic_bytes / 1e6)),
            f"{row.intensity:.0f}",
            *(_short(1e3 * value) for value in (row.floor_fp16, row.floor_fp32, row.stated)),
        ]
        if prediction.fit is not None:
            efficiency = prediction.fit.efficiency.get(row.total.kind, prediction.fit.common)
            cells += [_short(1e3 * (row.fitted or 0.0)), f"{efficiency:.0%}"]
        table.add_row(*cells)
    return table


def _stage_table(prediction: Prediction) -> Table:
    headers = ["stage", "runs", "GFLOP a run", "floor s", "FP32 acc.", "stated s"]
    title = f"stages of one video, {prediction.videos[0].name}: seconds of all runs"
    table = _table(title, *headers)
    for stage in prediction.stages:
        table.add_row(
            stage.name,
            f"{stage.runs:g}",
            _short(stage.flops / 1e9),
            *(f"{stage.runs * value:.3f}" for value in (stage.floor_fp16, stage.floor_fp32, stage.stated)),
        )
    return table


def _memory_table(prediction: Prediction) -> Table:
    """What each stage takes alone, and what the pipeline takes that keeps every stage loaded."""
    there = prediction.gpu.memory
    table = _table(
        "memory, MiB", "stage", "weights", "activations", "scratch", "together", f"of {there / 2**30:.3g} GiB", "fits"
    )

    def add(name: str, parts: Sequence[int], total: int) -> None:
        cells = [f"{value / _MIB:.0f}" for value in (*parts, total)]
        table.add_row(name, *cells, f"{total / there:.0%}", "yes" if total <= there else "NO")

    for stage in prediction.stages:
        add(stage.name, (stage.weights, stage.activations, stage.scratch), stage.memory)
    largest = max(prediction.stages, key=lambda stage: stage.activations + stage.scratch)
    weights = sum(stage.weights for stage in prediction.stages)
    add("all loaded, with reserve", (weights, largest.activations, largest.scratch), prediction.memory_needed)
    return table


def _video_table(prediction: Prediction) -> Table:
    fitted = prediction.fit is not None
    headers = [
        "",
        "steps",
        "U-Net forwards",
        "compute alone s",
        "floor s",
        "FP32 acc.",
        "stated s",
        *(["fitted s"] if fitted else []),
    ]
    table = _table("one video", *headers)
    for video in prediction.videos:
        values = [video.compute_floor, video.floor_fp16, video.floor_fp32, video.stated]
        cells = [f"{value:.2f}" for value in values + ([video.fitted or 0.0] if fitted else [])]
        table.add_row(video.name, f"{video.steps}", f"{video.forwards:g}", *cells)
    return table


def _table(title: str, *headers: str, texts: int = 1) -> Table:
    # Narrow enough for a terminal of 80 columns.
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for index, header in enumerate(headers):
        table.add_column(header, justify="left" if index < texts else "right", no_wrap=index < texts)
    return table


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 1000 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
