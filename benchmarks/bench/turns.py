"""Sends child processes to work in turns, so that a machine that slows down or warms up slows all of them alike."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .progress import RunProgress
from .record import Subject
from .worker_process import WorkerProcess, WorkFailedError


@dataclass
class Contestant:
    """A subject of the record, what its child process is to be, and what that has measured so far."""

    subject: Subject
    options: dict[str, Any]
    """For :func:`.subjects.make_subject`."""
    output: Path | None = None
    """Where its last run's result goes; None: nowhere."""
    runs: list[dict[str, Any]] = field(default_factory=list)
    first_run: dict[str, Any] | None = None

    @property
    def seconds(self) -> tuple[float, ...]:
        return tuple(run["seconds"] for run in self.runs)


@dataclass(frozen=True)
class Plan:
    """How often what is run."""

    warmup: int
    """Runs of every new process that do not count."""
    rounds: int
    """Measured runs of every contestant."""
    resident: bool
    """All processes stay loaded and change places after every run. Otherwise one is loaded at a time, and the turns
    go round twice: for where memory does not hold all of them.
    """

    @property
    def visits(self) -> list[int]:
        """Measured runs of each turn of a contestant."""
        if self.resident or self.rounds < 2:
            return [self.rounds]
        return [self.rounds - self.rounds // 2, self.rounds // 2]

    @property
    def runs(self) -> int:
        """Of one contestant, warm-up included."""
        return self.rounds + self.warmup * len(self.visits)


def measure_in_turns(contestants: Sequence[Contestant], plan: Plan, progress: RunProgress) -> None:
    """Fill in every contestant's runs, costs of the first run, and memory; or why it could not run."""
    if plan.resident:
        _all_loaded(contestants, plan, progress)
        return
    for number, rounds in enumerate(plan.visits):
        for contestant in contestants:
            if contestant.subject.unavailable is not None:
                progress.finish_run(plan.warmup + rounds)
                continue
            with _Turn(contestant, progress) as turn:
                turn.begin(plan.warmup)
                for _ in range(rounds):
                    turn.run()
                if number == 0:
                    turn.save_output()


def _all_loaded(contestants: Sequence[Contestant], plan: Plan, progress: RunProgress) -> None:
    with ExitStack() as stack:
        turns = []
        for contestant in contestants:
            turn = stack.enter_context(_Turn(contestant, progress))
            turn.begin(plan.warmup)
            turns.append(turn)
        for _ in range(plan.rounds):
            for turn in turns:
                turn.run()
        for turn in turns:
            turn.save_output()


class _Turn:
    """A contestant's process, from its start to its end. Once it failed, the rest of its turn does nothing."""

    def __init__(self, contestant: Contestant, progress: RunProgress) -> None:
        self._contestant, self._progress = contestant, progress
        self._stack = ExitStack()
        self._worker: WorkerProcess | None = None
        self._number = 0

    def __enter__(self) -> _Turn:
        return self

    def __exit__(self, *error: Any) -> None:
        worker = self._worker
        self._stack.__exit__(*error)
        if worker is not None:
            subject = self._contestant.subject
            subject.host_peak_bytes = max(subject.host_peak_bytes or 0, worker.host_peak_bytes)
            if worker.device_peak_bytes is not None:
                subject.device_peak_bytes = max(subject.device_peak_bytes or 0, worker.device_peak_bytes)

    def begin(self, warmup: int) -> None:
        """Start the process, load, and warm up."""
        contestant = self._contestant
        self._progress.describe(f"{contestant.subject.name}: loading")
        try:
            self._worker = self._stack.enter_context(WorkerProcess(contestant.options))
            facts = self._worker.ask("load")
        except WorkFailedError as error:
            self._fail(str(error))
            self._progress.finish_run(warmup)
            return
        first = contestant.subject.first
        first.setdefault("start", self._worker.start_seconds)
        first.setdefault("load", facts.pop("seconds"))
        contestant.subject.facts |= facts
        for _ in range(warmup):
            self.run(counts=False)

    def run(self, counts: bool = True) -> None:
        """One run; the first of a contestant is also kept as such."""
        if self._worker is None:
            self._progress.finish_run()
            return
        contestant = self._contestant
        self._progress.describe(contestant.subject.name if counts else f"{contestant.subject.name}: warming up")
        energy = self._worker.energy_joules()
        try:
            run = self._worker.ask("run", self._progress.share, number=self._number)
        except WorkFailedError as error:
            self._fail(str(error))
            self._progress.finish_run()
            return
        self._number += 1
        if contestant.first_run is None:
            contestant.first_run = run
        if counts:
            after = self._worker.energy_joules()
            contestant.runs.append(run)
            if energy is not None and after is not None:
                contestant.subject.energy_joules += (after - energy,)
        self._progress.finish_run()

    def save_output(self) -> None:
        """Write what the last run made, where it is asked for."""
        if self._worker is None or self._contestant.output is None:
            return
        try:
            self._worker.ask("output", path=str(self._contestant.output.absolute()))
        except WorkFailedError as error:
            self._fail(str(error))

    def _fail(self, reason: str) -> None:
        self._contestant.subject.unavailable = reason
        self._contestant.runs.clear()
        self._worker = None
        # Its memory is for the others.
        self._stack.close()
