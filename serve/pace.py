"""How long a job will take, from what the jobs before it took."""

from __future__ import annotations

from .job import Job

_WEIGHT = 0.2
"""Of a new figure in the running mean."""


class Pace:
    """Running means of a step's seconds and of a job's seconds outside its steps, for each kind of job."""

    def __init__(self) -> None:
        self._step: dict[str, float] = {}
        self._rest: dict[str, float] = {}

    def step_took(self, job: Job, seconds: float) -> None:
        _mix(self._step, _kind(job), seconds)

    def rest_took(self, job: Job, seconds: float) -> None:
        _mix(self._rest, _kind(job), seconds)

    def step_seconds(self, job: Job) -> float | None:
        """None: no job of its kind has run yet."""
        return self._step.get(_kind(job))

    def left(self, job: Job) -> float | None:
        """Seconds until a job is done, once it runs."""
        step = self.step_seconds(job)
        if step is None:
            return None
        return (job.steps - job.step) * step + self._rest.get(_kind(job), 0.0)


def _mix(means: dict[str, float], kind: str, seconds: float) -> None:
    before = means.get(kind, seconds)
    means[kind] = before + _WEIGHT * (seconds - before)


def _kind(job: Job) -> str:
    """What a step's time depends on: the model, the size, and the rows of a step."""
    values = job.settings
    rows = (values["guidance_scale_txt"] == 1, values["guidance_scale_img"] > 1, values["cache_interval"] > 1)
    return f"{job.model} {values['width']}x{values['height']} {rows}"
