"""Runs one row on a loaded bundle; whatever is wrong with the row becomes the error of its result."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import CancelledError, UserError, first_line
from ..runtime.pipeline import ImageToVideo
from ..runtime.request.settings import StepProgress
from .rows import BatchRow


@dataclass(frozen=True)
class Plan:
    """What is the same for every row: the bundle, what runs it, and how videos are written."""

    bundle: str
    engine: dict[str, Any] = field(default_factory=dict)
    """Arguments of ``ImageToVideo.from_bundle``."""
    suffix: str = ".mp4"
    scale: float = 1.0
    time_limit: float | None = None
    """Seconds a row."""


class Animator:
    """Runs rows, one after the other, with one loaded model.

    Raises:
        UserError: the bundle cannot be opened or run as asked.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.model = ImageToVideo.from_bundle(plan.bundle, **plan.engine)

    @property
    def digest(self) -> str:
        """Of the bundle."""
        return self.model.bundle.digest

    def run(
        self, row: BatchRow, folder: Path, on_step: Callable[[StepProgress], object] | None = None
    ) -> dict[str, Any]:
        """Animate one row and write its videos into `folder`.

        Returns:
            The row's line of the results file: `error` is None where the videos were written.

        Raises:
            CancelledError: the model was cancelled.
        """
        started = time.perf_counter()
        result = row.result(row.fault) | {"bundle": self.digest}
        if row.fault is None:
            try:
                videos = self.model(
                    row.path, row.prompt, settings=row.settings, callback=on_step, time_limit=self.plan.time_limit
                )
                files = videos.save(folder / f"{row.stem}{self.plan.suffix}", scale=self.plan.scale)
                result |= {"files": [file.name for file in files], "settings": vars(videos.settings)}
                result["timings"] = {stage: round(seconds, 4) for stage, seconds in videos.timings.items()}
            except CancelledError:
                raise
            except UserError as error:
                result["error"] = str(error)
            except MemoryError:
                result["error"] = "there is not enough memory for this row: make it smaller, or run fewer workers."
            except OSError as error:
                result["error"] = f"a file could not be read or written ({error.strerror or first_line(error)})."
        return result | {"seconds": round(time.perf_counter() - started, 3)}
