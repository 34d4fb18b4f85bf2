"""Time every rewrite of the OpenVINO session by itself: a part of the full U-Net as exported, and rewritten, in turns.

``python -m consisti2v_rt.benchmarks.rewrites_on_processor --output rewrites.json``

Needs the extras ``openvino`` and ``bench`` and about 2 GiB.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.progress import Progress
from rich.table import Table

from ...runtime.commands.console import make_console
from ...runtime.openvino.session import HINTS, runtime
from ..bench.intervals import ratio_words
from ..bench.machine import describe_machine, versions
from ..bench.script import run_script
from ..bench.statistics import ratio_interval
from .cases import Case, cases


def main(
    output: Annotated[Path | None, typer.Option(help="JSON file for the record.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Timed rounds of each.")] = 7,
) -> None:
    """Time every rewrite of the OpenVINO session against the part of the graph as exported."""
    run_script(output, lambda: measure(rounds), _show)


def measure(rounds: int, wanted: list[Case] | None = None) -> dict[str, Any]:
    """Milliseconds of each part, as exported and rewritten.

    Raises:
        UserError: OpenVINO is not installed.
    """
    runtime()
    found = cases() if wanted is None else wanted
    with Progress(console=make_console(stderr=True), transient=True) as progress:
        rows = [_measure(case, rounds) for case in progress.track(found, description="rewrites")]
    return {
        "what": "parts of the full U-Net in OpenVINO, as exported and rewritten, float32, in turns",
        "machine": describe_machine(),
        "versions": versions(),
        "rounds": rounds,
        "parts": rows,
    }


def _measure(case: Case, rounds: int) -> dict[str, Any]:
    direct, rewritten = case.model(), case.model()
    changed = case.rewrite(rewritten)
    x = case.input()
    runs = [_Run(model, x) for model in (direct, rewritten)]
    samples: list[list[float]] = [[], []]
    for _ in range(rounds):
        for run, seconds in zip(runs, samples, strict=True):
            seconds.append(run())
    expected, got = (run.output().astype(np.float64) for run in runs)
    medians = [statistics.median(seconds) for seconds in samples]
    return {
        "part": case.name,
        "rewritten": changed,
        "direct_ms": [1000 * value for value in samples[0]],
        "rewritten_ms": [1000 * value for value in samples[1]],
        "speed_up": medians[0] / medians[1],
        "relative_l2": float(np.linalg.norm(got - expected) / np.linalg.norm(expected)),
    }


class _Run:
    """A compiled model with its input bound; a call is one run and gives its seconds."""

    def __init__(self, model: Any, x: np.ndarray[Any, Any]) -> None:
        openvino = runtime()
        config = {"INFERENCE_PRECISION_HINT": HINTS["fp32"], "PERFORMANCE_HINT": "LATENCY"}
        self._request = openvino.Core().compile_model(model, "CPU", config).create_infer_request()
        self._request.set_input_tensor(0, openvino.Tensor(x, shared_memory=True))
        self._request.infer()

    def __call__(self) -> float:
        started = time.perf_counter()
        self._request.infer()
        return time.perf_counter() - started

    def output(self) -> np.ndarray[Any, Any]:
        return np.asarray(self._request.get_output_tensor(0).data)


def _show(record: dict[str, Any]) -> None:
    table = Table("part", "as exported", "rewritten", "speed-up (95 % interval)", "relative L2", box=None)
    for row in record["parts"]:
        direct, rewritten = (f"{statistics.median(row[key]):.1f} ms" for key in ("direct_ms", "rewritten_ms"))
        # In turns: round n of both belong together.
        interval = ratio_interval(row["direct_ms"], row["rewritten_ms"], paired=True)
        speed_up = f"{row['speed_up']:.2f}x ({ratio_words(interval)})"
        table.add_row(row["part"], direct, rewritten, speed_up, f"{row['relative_l2']:.1e}")
    make_console().print(table)


if __name__ == "__main__":
    typer.run(main)
