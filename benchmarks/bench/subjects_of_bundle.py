"""Which formulations and sessions can be measured for a bundle on this machine, and why the others cannot."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import UserError
from ...runtime.backends import BACKENDS, PRECISIONS, Availability, Backend, choose
from ...runtime.bundle.bundle import Bundle
from ...runtime.install import install_hint
from .machine import has_bf16
from .record import Subject
from .turns import Contestant
from .worker_process import WorkerProcess, WorkFailedError

TORCH = ("torch-eager", "torch-compile")
REFERENCE = "torch-eager fp32"
_RANDOM = re.compile(r"random weights \((full|tiny)\), seed (-?\d+)")


@dataclass(frozen=True)
class Candidate:
    """A line of the comparison, as typed: ``backend:precision``."""

    backend: str
    precision: str

    @property
    def name(self) -> str:
        return f"{self.backend} {self.precision}"

    @classmethod
    def parse(cls, text: str) -> Candidate:
        """Raises:
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


@dataclass(frozen=True)
class TorchHere:
    """What torch can do on this machine."""

    usable: bool
    reason: str
    device: str = "cpu"

    def runs(self, precision: str, explicit: bool) -> Availability:
        """Whether a precision makes sense; one the processor has to emulate does only when asked for by name."""
        if not self.usable:
            return Availability(False, self.reason)
        if precision not in ("fp32", "fp16", "bf16"):
            return Availability(False, f"the published formulation has no {precision} form")
        if self.device == "cpu" and precision != "fp32" and not explicit and not (precision == "bf16" and has_bf16()):
            return Availability(False, f"this processor has no {precision} arithmetic; --row runs it all the same")
        return Availability(True, self.reason)


def probe_torch() -> TorchHere:
    """Ask a child process, which is gone afterwards."""
    try:
        with WorkerProcess({"subject": "torch"}) as worker:
            facts = worker.ask("load")
    except WorkFailedError:
        return TorchHere(False, f"torch is not installed: {install_hint('export')}")
    return TorchHere(True, f"torch {facts['torch']}", "cuda" if facts["cuda"] else "cpu")


def default_candidates() -> list[Candidate]:
    """The published formulation in four forms, then every backend in every precision it knows."""
    candidates = [Candidate(backend, precision) for precision in ("fp32", "fp16", "bf16") for backend in TORCH]
    return candidates + [Candidate(entry.name, precision) for entry in BACKENDS for precision in entry.precisions]


def session_availability(bundle: Bundle, candidate: Candidate) -> Availability:
    """Whether a backend runs the bundle in a precision here."""
    backend = find_backend(candidate.backend)
    found = backend.probe()
    if not found.usable:
        return found
    if candidate.precision not in backend.precisions:
        return Availability(False, f"it runs {', '.join(backend.precisions)}, not {candidate.precision}")
    return backend.fits(bundle, candidate.precision)


def find_backend(name: str) -> Backend:
    return next(entry for entry in BACKENDS if entry.name == name)


def usual_candidate(bundle: Bundle, device: str, precision: str | None) -> Candidate:
    """What ``generate`` would use.

    Raises:
        UserError: nothing fits.
    """
    chosen = choose(bundle, device, precision)
    return Candidate(chosen.backend.name, chosen.precision)


def weights_options(bundle: Bundle, checkpoint: str | None) -> dict[str, Any] | str:
    """How the published formulation gets the bundle's own weights; or why it cannot, as a sentence."""
    if checkpoint is not None:
        # A folder is found from elsewhere too; anything else is a hub id.
        return {"checkpoint": str(Path(checkpoint).absolute()) if Path(checkpoint).exists() else checkpoint}
    found = _RANDOM.fullmatch(bundle.manifest.provenance.source)
    if found:
        return {"random_weights": (found[1], int(found[2]))}
    return "the published formulation needs the bundle's weights: give the --checkpoint it was exported from"


def session_contestant(
    bundle: Bundle,
    candidate: Candidate,
    inputs: Path,
    dims: Mapping[str, int],
    threads: int | None,
    output: Path | None = None,
) -> Contestant:
    """One forward of the bundle's U-Net on these inputs."""
    found = session_availability(bundle, candidate)
    options = {
        "subject": "session",
        "bundle": str(bundle.path.absolute()),
        "backend": candidate.backend,
        "precision": candidate.precision,
        "inputs": str(inputs.absolute()),
        "dims": dict(dims),
        "threads": threads,
    }
    reason = None if found.usable else found.reason
    return Contestant(empty_subject(candidate, find_backend(candidate.backend).device, reason), options, output)


def video_contestant(
    bundle: Bundle, candidate: Candidate, image: Path, prompt: str, options: Mapping[str, Any], threads: int | None
) -> Contestant:
    """Whole videos by a session of the bundle."""
    found = session_availability(bundle, candidate)
    work = {
        "subject": "video",
        "bundle": str(bundle.path.absolute()),
        "backend": candidate.backend,
        "precision": candidate.precision,
        "image": str(image.absolute()),
        "prompt": prompt,
        "options": dict(options),
        "threads": threads,
    }
    reason = None if found.usable else found.reason
    return Contestant(empty_subject(candidate, find_backend(candidate.backend).device, reason), work)


def published_contestant(
    torch: TorchHere,
    weights: dict[str, Any] | str,
    candidate: Candidate,
    inputs: Path,
    threads: int | None,
    output: Path | None,
    *,
    explicit: bool,
) -> Contestant:
    """One forward of the published formulation on these inputs; `explicit`: it was asked for by name."""
    able = torch.runs(candidate.precision, explicit)
    options = {
        "subject": "published",
        "precision": candidate.precision,
        "device": torch.device,
        "compiled": candidate.backend == "torch-compile",
        "inputs": str(inputs.absolute()),
        "threads": threads,
        **(weights if isinstance(weights, dict) else {}),
    }
    reason = able.reason if not able.usable else weights if isinstance(weights, str) else None
    return Contestant(empty_subject(candidate, torch.device, reason), options, output)


def empty_subject(candidate: Candidate, device: str, unavailable: str | None = None) -> Subject:
    return Subject(candidate.name, candidate.backend, candidate.precision, device, unavailable)
