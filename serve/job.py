"""One request for a video, from its arrival to its end, and how clients see it."""

from __future__ import annotations

import json
import secrets
import time
from dataclasses import dataclass, field
from typing import Any

FINISHED = ("completed", "failed", "cancelled")
STATUSES = ("queued", "in_progress", "cancelling", *FINISHED)


def new_id() -> str:
    """A job's name: no client can guess another's."""
    return f"video_{secrets.token_hex(12)}"


@dataclass(eq=False)
class Job:
    """A video that was asked for. Of the fields, those from `step` on belong to the running server alone."""

    id: str
    model: str
    prompt: str
    settings: dict[str, Any]
    """Every field of the resolved settings, the seed included: a second run makes the same video."""
    frames: int
    notices: list[str] = field(default_factory=list)
    """What the model does not know of the request."""
    request_key: str | None = None
    """Of the client's ``Idempotency-Key``."""
    number: int = 0
    """Order of arrival; the store sets it."""
    status: str = "queued"
    created: float = field(default_factory=time.time)
    started: float | None = None
    completed: float | None = None
    runs: int = 0
    """Runs that were begun; ids of events count them."""
    interruptions: int = 0
    """Runs that ended with the server."""
    alone: bool = False
    """A batch that it was part of failed: it runs by itself now."""
    error: dict[str, str] | None = None
    timings: dict[str, float] | None = None
    loras: list[dict[str, Any]] = field(default_factory=list)
    """Names and strengths of those that its last run was made with."""
    weights: str | None = None
    """Digest of the bundle that its last run was made with."""

    step: int = 0
    """Steps done, those of all clips counted together."""
    decoding: bool = False
    is_deleted: bool = False
    """Its client deleted it while it ran: it goes when the run ends."""
    queued_since: float = field(default_factory=time.monotonic)

    @property
    def is_finished(self) -> bool:
        return self.status in FINISHED

    @property
    def steps(self) -> int:
        return int(self.settings["num_inference_steps"]) * int(self.settings["autoregress_steps"])

    @property
    def progress(self) -> int:
        """0 to 100, by steps."""
        return 100 if self.status == "completed" else 100 * self.step // max(self.steps, 1)

    @property
    def batch_key(self) -> str:
        """Jobs of one key can be videos of one call."""
        own = {name: value for name, value in self.settings.items() if name not in ("seed", "negative_prompt")}
        return json.dumps([self.model, own], sort_keys=True)

    def end(self, status: str, code: str | None = None, message: str | None = None) -> None:
        """Set one of the final states."""
        self.status, self.completed = status, time.time()
        self.error = None if code is None else {"code": code, "message": message or code}

    def shown(self, keep_seconds: float, position: int | None = None, eta: float | None = None) -> dict[str, Any]:
        """The job as the API's video object.

        Args:
            keep_seconds: how long a finished video stays.
            position: jobs that run before it, for one that waits.
            eta: seconds until it is done, where that can be told.
        """
        fps = float(self.settings["fps"])
        return {
            "id": self.id,
            "object": "video",
            "model": self.model,
            "status": self.status,
            "progress": self.progress,
            "created_at": int(self.created),
            "started_at": None if self.started is None else int(self.started),
            "completed_at": None if self.completed is None else int(self.completed),
            "expires_at": None if self.completed is None else int(self.completed + keep_seconds),
            "prompt": self.prompt,
            "size": f"{self.settings['width']}x{self.settings['height']}",
            "seconds": f"{self.frames / fps:g}",
            "fps": fps,
            "num_frames": self.frames,
            "seed": self.settings["seed"],
            "step": self.step,
            "steps": self.steps,
            "queue_position": position,
            "eta_seconds": None if eta is None else round(eta, 1),
            "error": self.error,
            "timings": self.timings,
            "notices": self.notices,
            "loras": self.loras,
            "weights": self.weights,
            "settings": self.settings,
        }
