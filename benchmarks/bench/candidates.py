"""What can be measured for a bundle on this machine, and why the rest cannot; and the turns in which child processes
work, so that a machine that slows down or warms up slows all of them alike.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ...errors import UserError
from ...kernels.guidance import BRANCHES
from ...runtime.backends import BACKENDS, Backend, choose
from ...runtime.bundle.bundle import Bundle
from ...runtime.bundle.manifest import PRECISIONS, Manifest
from ...runtime.bundle.stage_graphs import Availability
from ...runtime.child_process import neutral_place
from ...runtime.commands.console import make_console
from ...runtime.commands.progress import leading_columns
from ...runtime.install import install_hint
from ...runtime.session import resolve_shape
from .machine import has_bf16, require
from .record import Target
from .worker import WorkerProcess, WorkFailedError

TORCH = ("torch-eager", "torch-compile")
REFERENCE = "torch-eager fp32"
_RANDOM = re.compile(r"random weights \((full|tiny)\), seed (-?\d+)")
# Memory of one process over the U-Net's float32 weights: they are held once while they are loaded, and activations.
_PROCESS_FACTOR = 2.2
_PROCESS_BYTES = 2**29
_SHARE_OF_FREE = 0.7


@dataclass(frozen=True)
class Candidate:
    """A line of the comparison, as typed: ``backend:precision``."""

    backend: str
    precision: str

    @property
    def name(self) -> str:
        return f"{self.backend} {self.precision}"

    @property
    def session(self) -> Backend:
        return next(entry for entry in BACKENDS if entry.name == self.backend)

    @classmethod
    def parse(cls, text: str) -> Candidate:
        """A candidate as ``backend:precision``; float32 where no precision is named.

        Raises:
            UserError: not of that form, or unknown.
        """
        backend, _, precision = text.partition(":")
        known = [*TORCH, *(entry.name for entry in BACKENDS)]
        precision = precision or "fp32"
        if backend not in known or precision not in PRECISIONS:
            raise UserError(
                f"{text!r} is no backend:precision, such as onnxruntime-cpu:fp32: backends are {', '.join(known)}, "
                f"precisions {', '.join(PRECISIONS)}."
            )
        return cls(backend, precision)

    @classmethod
    def usual(cls, bundle: Bundle, device: str, precision: str | None) -> Candidate:
        """What ``generate`` would use.

        Raises:
            UserError: nothing fits.
        """
        chosen = choose(bundle, device, precision)
        return cls(chosen.backend.name, chosen.precision)


def default_candidates() -> list[Candidate]:
    """The published formulation in four forms, then every backend in every precision it knows."""
    candidates = [Candidate(backend, precision) for precision in ("fp32", "fp16", "bf16") for backend in TORCH]
    return candidates + [Candidate(entry.name, precision) for entry in BACKENDS for precision in entry.precisions]


@dataclass
class Runner:
    """A target of the record, what its child process is to be, and what that has measured so far."""

    target: Target
    options: dict[str, Any]
    """For :func:`.targets.make_target`."""
    output: Path | None = None
    """Where its last run's result goes; None: nowhere."""
    runs: list[dict[str, Any]] = field(default_factory=list)
    first_run: dict[str, Any] = field(default_factory=dict)

    @property
    def able(self) -> bool:
        return self.target.unavailable is None

    @property
    def seconds(self) -> tuple[float, ...]:
        return tuple(run["seconds"] for run in self.runs)


def session_runner(bundle: Bundle, candidate: Candidate, kind: str, output: Path | None = None, **work: Any) -> Runner:
    """A bundle in a session: `kind` "session" for a forward of its U-Net or "video", `work` being that target's other
    options.
    """
    backend, precision = candidate.session, candidate.precision
    found = backend.probe()
    if found.usable and precision not in backend.precisions:
        found = Availability(False, f"it runs {', '.join(backend.precisions)}, not {precision}")
    elif found.usable:
        found = backend.fits(bundle, precision)
    reason = None if found.usable else found.reason
    target = Target(candidate.name, candidate.backend, precision, backend.device, reason)
    named = {"target": kind, "bundle": str(bundle.path.absolute()), "backend": backend.name, "precision": precision}
    return Runner(target, {**named, **work}, output)


@dataclass(frozen=True)
class TorchHere:
    """What torch can do on this machine."""

    missing: str | None
    device: str = "cpu"

    def refusal(self, precision: str, explicit: bool) -> str | None:
        """Why a precision makes no sense; one the processor has to emulate does only when asked for by name."""
        if self.missing:
            return self.missing
        if precision not in ("fp32", "fp16", "bf16"):
            return f"the published formulation has no {precision} form"
        if explicit or self.device == "cuda" or precision == "fp32" or (precision == "bf16" and has_bf16()):
            return None
        return f"this processor has no {precision} arithmetic; --row runs it all the same"


def probe_torch() -> TorchHere:
    """Ask a child process: importing torch costs seconds and memory."""
    command = [sys.executable, "-c", "import torch; print(torch.cuda.is_available())"]
    asked = subprocess.run(command, capture_output=True, text=True, **neutral_place())
    if asked.returncode:
        return TorchHere(f"torch is not installed: {install_hint('export')}")
    return TorchHere(None, "cuda" if "True" in asked.stdout else "cpu")


def published_runner(
    torch: TorchHere, bundle: Bundle, checkpoint: str | None, candidate: Candidate, explicit: bool, **work: Any
) -> Runner:
    """One forward of the published formulation with the bundle's own weights; `explicit`: it was asked for by name."""
    reason, random = torch.refusal(candidate.precision, explicit), _RANDOM.fullmatch(bundle.manifest.provenance.source)
    weights: dict[str, Any] = {}
    if checkpoint is not None:
        # A folder is found from elsewhere too; anything else is a hub id.
        weights = {"checkpoint": str(Path(checkpoint).absolute()) if Path(checkpoint).exists() else checkpoint}
    elif random:
        weights = {"random_weights": (random[1], int(random[2]))}
    else:
        needed = "the published formulation needs the bundle's weights: give the --checkpoint it was exported from"
        reason = reason or needed
    compiled, output = candidate.backend == "torch-compile", work.pop("output")
    options = {"target": "published", "precision": candidate.precision, "device": torch.device, "compiled": compiled}
    target = Target(candidate.name, candidate.backend, candidate.precision, torch.device, reason)
    return Runner(target, {**options, **weights, **work}, output)


# -- what they all compute ---------------------------------------------------------------------------------------------


def session_dims(manifest: Manifest, rows: int | None = None, side: int | None = None) -> dict[str, int]:
    """Sizes of a bundle's dynamic dimensions; the bundle's own where they are not given."""
    model = manifest.model
    height, width = side or model.height, side or model.width
    return {
        "rows": model.rows or rows or BRANCHES[model.guidance],
        "latent_height": height // model.vae_scale_factor,
        "latent_width": width // model.vae_scale_factor,
        "height": height,
        "width": width,
    }


def make_inputs(
    manifest: Manifest, dims: Mapping[str, int], seed: int, *, one_video: bool = False
) -> dict[str, NDArray[np.float32]]:
    """One U-Net forward's inputs, the same for every formulation: sample [rows, c, f - 1, h, w], first_frame_latents
    [rows, c, 1, h, w], text_embeddings [rows, 77, width].

    Args:
        one_video: the rows are the guidance branches of one video, as in a step of the loop: the same latents with
            another text each; with image guidance the first branch has another first frame, too.
    """
    generator = np.random.default_rng(seed)
    shapes = {spec.name: resolve_shape(spec, dims) for spec in manifest.stages["unet"].inputs}
    text = next(spec for spec in manifest.stages["conditioning"].inputs if spec.name == "text_embeddings")
    shapes["text_embeddings"] = (shapes["sample"][0], *resolve_shape(text, dims)[1:])
    names = ("sample", "first_frame_latents", "text_embeddings")
    inputs = {name: generator.standard_normal(shapes[name], np.float32) for name in names}
    if one_video:
        inputs["sample"][...] = inputs["sample"][-1]
        branches = inputs["first_frame_latents"]
        branches[1 if manifest.model.guidance == "both" else 0 :] = branches[-1]
    return inputs


def all_fit(bundle: Bundle, processes: int) -> bool:
    """Whether every process can stay loaded in what is free now."""
    weights = sum(record.bytes for name, record in bundle.manifest.files.items() if name.startswith("unet/"))
    needed = processes * (_PROCESS_FACTOR * weights + _PROCESS_BYTES)
    return bool(needed < _SHARE_OF_FREE * require("psutil").virtual_memory().available)


# -- turns -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """How often what is run."""

    warmup: int
    """Runs of every new process that do not count."""
    rounds: int
    """Measured runs of every runner."""
    resident: bool | None
    """All processes stay loaded and change places after every run. Otherwise one is loaded at a time, and the turns
    go round twice: for where memory does not hold all of them.
    """
    threads: int | None = None
    """Of the processor; None: as a backend chooses."""

    @property
    def visits(self) -> list[int]:
        """Measured runs of each turn of a runner."""
        if self.resident or self.rounds < 2:
            return [self.rounds]
        return [self.rounds - self.rounds // 2, self.rounds // 2]


def measure_interleaved(runners: Sequence[Runner], plan: Plan) -> None:
    """Fill in the runs, costs of the first run and memory of every runner that can run; or why it could not."""
    able = [runner for runner in runners if runner.able]
    console = make_console(stderr=True)
    left = (MofNCompleteColumn(), TextColumn("left"), TimeRemainingColumn(elapsed_when_finished=False))
    columns = (*leading_columns(console), *left)
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        runs = (plan.rounds + plan.warmup * len(plan.visits)) * len(able)
        progress.add_task("starting", total=runs)
        for number, rounds in enumerate(plan.visits):
            # All of them loaded, or one after the other.
            for group in [able] if plan.resident else [[runner] for runner in able]:
                with ExitStack() as stack:
                    turns = [_Turn(runner, progress, stack) for runner in group]
                    for turn in turns:
                        turn.begin(plan.warmup)
                    for _ in range(rounds):
                        for turn in turns:
                            turn.run()
                    for turn in turns:
                        if number == 0 and turn.runner.output is not None:
                            turn.ask("output", path=str(turn.runner.output.absolute()))


class _Turn:
    """A runner's process, from its start to its end. Once it failed, the rest of its turn does nothing."""

    def __init__(self, runner: Runner, progress: Progress, stack: ExitStack) -> None:
        self.runner, self._progress = runner, progress
        self._stack = stack.enter_context(ExitStack())
        self._worker: WorkerProcess | None = None
        self._number = 0

    def begin(self, warmup: int) -> None:
        """Start the process, load, and warm up."""
        target = self.runner.target
        self._show(f"{target.name}: loading")
        if self.runner.able:
            try:
                self._worker = worker = WorkerProcess(self.runner.options)
                self._stack.callback(self._note_memory, worker)
                self._stack.enter_context(worker)
            except WorkFailedError as error:
                self._fail(str(error))
        metadata = self.ask("load")
        if metadata is not None:
            assert self._worker is not None
            target.first.setdefault("start", self._worker.start_seconds)
            target.first.setdefault("load", metadata.pop("seconds"))
            target.metadata |= metadata
        for _ in range(warmup):
            self.run(counts=False)

    def run(self, counts: bool = True) -> None:
        """One run; the first of a runner is also kept as such."""
        runner, worker = self.runner, self._worker
        self._show(runner.target.name if counts else f"{runner.target.name}: warming up")
        before = worker.energy_joules() if worker else None
        run = self.ask("run", number=self._number)
        self._number += 1
        if run is not None:
            runner.first_run = runner.first_run or run
            if counts:
                runner.runs.append(run)
                after = worker.energy_joules() if worker else None
                if before is not None and after is not None:
                    runner.target.energy_joules += (after - before,)
        self._show(None, 1)

    def ask(self, what: str, **arguments: Any) -> Any:
        """The answer of the process; None where it is gone or fails."""
        if self._worker is None:
            return None
        bar, task = self._progress, self._progress.tasks[0]
        done = task.completed
        try:
            return self._worker.ask(what, lambda share: bar.update(task.id, completed=done + share), **arguments)
        except WorkFailedError as error:
            self._fail(str(error))
            return None
        finally:
            bar.update(task.id, completed=done)

    def _show(self, text: str | None, runs: int = 0) -> None:
        self._progress.update(self._progress.task_ids[0], description=text, advance=runs)

    def _fail(self, reason: str) -> None:
        self.runner.target.unavailable = reason
        self.runner.runs.clear()
        self._worker = None
        # Its memory is for the others.
        self._stack.close()

    def _note_memory(self, worker: WorkerProcess) -> None:
        target = self.runner.target
        target.host_peak_bytes = max(target.host_peak_bytes or 0, worker.host_peak_bytes)
        if worker.device_peak_bytes is not None:
            target.device_peak_bytes = max(target.device_peak_bytes or 0, worker.device_peak_bytes)
