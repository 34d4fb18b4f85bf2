"""Which engines of a bundle this machine can run: by flavour, version, platform, compute capability and precision.

An engine that does not fit fails late and darkly, or runs wrong; so it is refused here, by name, with the command that
mends it. All of it is known from the manifest.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass

from .manifest import STAGES, EngineSpec, Manifest
from .stage_graphs import Availability


@dataclass(frozen=True)
class Machine:
    """What an engine has to fit."""

    compute_capability: str
    """Of the GPU, as "8.9"."""
    versions: Mapping[str, str]
    """Flavour -> version of its installed library; a flavour that is not installed is missing."""
    platform: str = "windows" if sys.platform == "win32" else "linux"


def runs_on(capabilities: tuple[str, ...], compute_capability: str) -> bool:
    """Whether a card is among an engine's: "8.9" is that one, "8.0+" that one and every later one."""
    card = _number(compute_capability)
    return any(card >= _number(c[:-1]) if c.endswith("+") else card == _number(c) for c in capabilities)


def refusal(engine: EngineSpec, machine: Machine) -> str | None:
    """Why the engine does not run here, in one sentence without its end; None: it does."""
    library = {"tensorrt-rtx": "TensorRT for RTX", "tensorrt": "TensorRT"}.get(engine.flavour, engine.flavour)
    version = machine.versions.get(engine.flavour)
    if version is None:
        return f"{library} is not installed"
    if version != engine.version:
        return f"engines for {engine.target} were built by {library} {engine.version}, installed is {version}"
    if engine.platform and engine.platform != machine.platform:
        return f"engines for {engine.target} were built for {engine.platform}, this is {machine.platform}"
    if not runs_on(engine.compute_capabilities, machine.compute_capability):
        cards = ", ".join(engine.compute_capabilities)
        return (
            f"engines for {engine.target} run on compute capability {cards}, this GPU has {machine.compute_capability}"
        )
    return None


def find_engine(manifest: Manifest, stage: str, flavour: str, precision: str, machine: Machine) -> EngineSpec | None:
    """The engine of a stage that fits; one built for this very card before one for a range of cards."""
    fitting = [
        engine
        for engine in manifest.engines
        if (engine.stage, engine.flavour, engine.precision) == (stage, flavour, precision)
        and refusal(engine, machine) is None
    ]
    exact = [engine for engine in fitting if machine.compute_capability in engine.compute_capabilities]
    return next(iter([*exact, *fitting]), None)


def engines_fit(manifest: Manifest, flavour: str, precision: str, machine: Machine) -> Availability:
    """Whether every stage has an engine that fits, and if not, why and which command mends it."""
    mend = f"consisti2v build BUNDLE --target current --flavour {flavour} --precision {precision}"
    candidates = [e for e in manifest.engines if (e.flavour, e.precision) == (flavour, precision)]
    if not candidates:
        others = sorted({engine.precision for engine in manifest.engines if engine.flavour == flavour})
        held = f"it has {', '.join(others)}" if others else "it has none"
        return Availability(False, f"the bundle holds no {precision} engines of {flavour} ({held}): {mend}")
    missing = [stage for stage in STAGES if find_engine(manifest, stage, flavour, precision, machine) is None]
    if not missing:
        return Availability(True, f"{precision} engines for {candidates[0].target}")
    for engine in candidates:
        reason = refusal(engine, machine)
        if reason is not None and engine.stage in missing:
            return Availability(False, f"{reason}: {mend}")
    return Availability(False, f"the bundle lacks {precision} engines of {', '.join(missing)}: {mend}")


def _number(compute_capability: str) -> tuple[int, ...]:
    return tuple(int(part) for part in compute_capability.split("."))
