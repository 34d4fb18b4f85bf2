"""What was measured of ways to sample, as a record and as tables."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console

from ...runtime.pipeline import ImageToVideo
from ..bench.machine import bundle_metadata, describe_machine, now, versions
from ..bench.tables import rich_table
from .converged import CONVERGED_STEPS, EXACT, GUIDANCES, Case, Summary, Way, Yardstick

_HEADERS = ["", "steps", "error", "of exact's", "95 %", "PSNR dB", "flicker", "to exact"]
NOTE = (
    "error: relative L2 of the latents to the converged trajectory of the same noise, frame 0 left out; of exact's: "
    "the same over that of exact, with its bootstrap interval; PSNR: of the frames to the converged ones; flicker: "
    "temporal flickering over the converged one's; to exact: relative L2 to the 50-step sample. Medians."
)


def measured(yardstick: Yardstick, ways: Sequence[Way], cases: Sequence[Case]) -> list[Summary]:
    """Every way at both guidance scales, :data:`EXACT` first."""
    chosen = [EXACT, *(way for way in ways if way != EXACT)]
    return [yardstick.summary(way, cases, guidance) for guidance in GUIDANCES for way in chosen]


def record_text(
    animate: ImageToVideo, cases: Sequence[Case], summaries: Sequence[Summary], seeds: dict[float, float | None]
) -> str:
    """The measurement as JSON; `seeds`: distance of another seed by guidance scale, None: not measured."""
    record: dict[str, Any] = {
        "kind": "presets",
        "created": now(),
        "machine": describe_machine(),
        "versions": versions(),
        "bundle": bundle_metadata(animate.bundle),
        "task": {
            "backend": animate.backend.backend.name,
            "precision": animate.backend.precision,
            "photos": [[name, prompt] for name, prompt in dict.fromkeys((c.image.name, c.prompt) for c in cases)],
            "seeds": sorted({case.seed for case in cases}),
            "converged_steps": CONVERGED_STEPS,
        },
        "another_seed": [{"guidance": guidance, "distance": distance} for guidance, distance in seeds.items()],
        "rows": [
            {
                "name": summary.way.name,
                **summary.way.options,
                "guidance": summary.guidance,
                "ratio": summary.ratio,
                "interval": [summary.interval.low, summary.interval.high] if summary.interval else None,
                **{name: summary.median(name) for name in ("error", "psnr", "flickering", "to_exact")},
                "cases": [asdict(score) for score in summary.scores],
            }
            for summary in summaries
        ],
    }
    return json.dumps(record, indent=1) + "\n"


def show(summaries: Sequence[Summary], seeds: dict[float, float | None], console: Console) -> None:
    """A table for each guidance scale, ways in the order given."""
    for guidance in GUIDANCES:
        rows = [_row(summary) for summary in summaries if summary.guidance == guidance]
        other = seeds[guidance]
        if other is not None:
            rows.append(["another seed", "", f"{other:.4f}", *[""] * 5])
        cases = len(summaries[0].scores)
        console.print(rich_table(f"guidance scale {guidance:g}, {cases} case(s)", _HEADERS, rows))
    console.print(NOTE, highlight=False)


def _row(summary: Summary) -> list[str]:
    median: Callable[[str], float] = summary.median
    interval = f"{summary.interval.low:.2f}-{summary.interval.high:.2f}" if summary.interval else ""
    numbers = [f"{median('error'):.4f}", f"{summary.ratio:.2f}", interval, f"{median('psnr'):.1f}"]
    return [
        summary.way.name,
        str(summary.way.steps),
        *numbers,
        f"{median('flickering'):.4f}",
        f"{median('to_exact'):.4f}",
    ]
