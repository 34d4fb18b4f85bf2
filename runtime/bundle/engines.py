"""Checks that an engine fits the machine, the bundle and the sizes, before it is loaded; errors name the remedy.

An engine that does not fit fails late with an opaque error, or runs wrong (NVIDIA/TensorRT issue 2176). All of it is
known from the manifest, so that no library has to be asked.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from ...errors import UserError
from ..gpu.cards import is_data_centre
from .manifest import STAGES, EngineSpec, Manifest, StageSpec, TensorSpec, graph_sha256
from .stage_graphs import Availability

METADATA_VERSION = 1
"""Of the file beside an engine with what its build found."""
_LIBRARIES = {"tensorrt-rtx": "TensorRT for RTX", "tensorrt": "TensorRT"}


@dataclass(frozen=True)
class Machine:
    """What an engine has to fit."""

    compute_capability: str
    """Of the GPU, as "8.9"."""
    versions: Mapping[str, str]
    """Backend -> version of its installed library; one that is not installed is missing."""
    platform: str = "windows" if sys.platform == "win32" else "linux"


def runs_on(capabilities: tuple[str, ...], compute_capability: str) -> bool:
    """Whether a card is among an engine's: "8.9" is that one, "8.0+" that one and every later one."""
    card = _number(compute_capability)
    return any(card >= _number(c[:-1]) if c.endswith("+") else card == _number(c) for c in capabilities)


def refusal(engine: EngineSpec, machine: Machine) -> str | None:
    """Why the engine does not run here, in one sentence without its end; None: it does."""
    library = _LIBRARIES.get(engine.backend, engine.backend)
    version = machine.versions.get(engine.backend)
    if version is None:
        return f"{library} is not installed"
    if version != engine.version:
        return f"engines for {engine.target} were built by {library} {engine.version}, installed is {version}"
    if _knows_no_such_card(engine.backend, machine):
        return f"{library} runs no engines on compute capability {machine.compute_capability}"
    if engine.platform and engine.platform != machine.platform:
        return f"engines for {engine.target} were built for {engine.platform}, this is {machine.platform}"
    if not runs_on(engine.compute_capabilities, machine.compute_capability):
        cards, own = ", ".join(engine.compute_capabilities), machine.compute_capability
        return f"engines for {engine.target} run on compute capability {cards}, this GPU has {own}"
    return None


def _knows_no_such_card(backend: str, machine: Machine) -> bool:
    return backend == "tensorrt-rtx" and is_data_centre(machine.compute_capability)


def _engine_backend_for(backend: str, machine: Machine) -> str:
    """The library that builds engines for this machine's GPU where `backend` was looked for."""
    return "tensorrt" if _knows_no_such_card(backend, machine) else backend


def find_engine(manifest: Manifest, stage: str, backend: str, precision: str, machine: Machine) -> EngineSpec | None:
    """The engine of a stage that fits; one built for this very card before one for a range of cards."""
    fitting = [
        engine
        for engine in manifest.engines
        if (engine.stage, engine.backend, engine.precision) == (stage, backend, precision)
        and refusal(engine, machine) is None
    ]
    exact = [engine for engine in fitting if machine.compute_capability in engine.compute_capabilities]
    return next(iter([*exact, *fitting]), None)


def engines_fit(manifest: Manifest, backend: str, precision: str, machine: Machine) -> Availability:
    """Whether every stage has an engine that fits; if not, the reason and the command that builds the missing ones."""
    wanted = _engine_backend_for(backend, machine)
    mend = f"consisti2v build BUNDLE --target current --backend {wanted} --precision {precision}"
    if _knows_no_such_card(backend, machine):
        return Availability(
            False,
            f"{_LIBRARIES[backend]} runs no engines on compute capability {machine.compute_capability}: TensorRT does "
            f"({mend}), and ONNX Runtime's CUDA provider runs the bundle's graphs",
        )
    candidates = [e for e in manifest.engines if (e.backend, e.precision) == (backend, precision)]
    if not candidates:
        others = sorted({engine.precision for engine in manifest.engines if engine.backend == backend})
        held = f"it has {', '.join(others)}" if others else "it has none"
        return Availability(False, f"the bundle holds no {precision} engines of {backend} ({held}): {mend}")
    missing = [stage for stage in STAGES if find_engine(manifest, stage, backend, precision, machine) is None]
    if not missing:
        return Availability(True, f"{precision} engines for {candidates[0].target}")
    reasons = (refusal(engine, machine) for engine in candidates if engine.stage in missing)
    lacks = f"the bundle lacks {precision} engines of {', '.join(missing)}"
    return Availability(False, f"{next(filter(None, reasons), lacks)}: {mend}")


def check_engine(
    engine: EngineSpec, manifest: Manifest, machine: Machine, dims: Mapping[str, int] | None = None
) -> None:
    """Refuse an engine that does not fit.

    Args:
        engine: one of the manifest's.
        machine: compute capability, library versions and operating system.
        dims: sizes of dynamic dimensions; None: sizes are not checked.

    Raises:
        UserError: another library, version, system or GPU, a graph that changed since, or sizes that it was not built
            for. The message names the command that rebuilds it.
    """
    reason = refusal(engine, machine) or staleness(engine, manifest)
    if reason is not None:
        built = replace(engine, backend=_engine_backend_for(engine.backend, machine))
        raise UserError(f"{reason}: {build_command(built)}.")
    reason = None if dims is None else _size_mismatch(engine, manifest, dims)
    if reason is not None:
        inputs = manifest.stages[engine.stage].inputs
        raise UserError(f"{reason}: {build_command(engine, dims, inputs)}, or ask for sizes it has.")


def build_command(engine: EngineSpec, dims: Mapping[str, int] | None = None, inputs: Iterable[TensorSpec] = ()) -> str:
    """The command that builds this engine for the GPU at hand; with `dims`, for ranges that hold them.

    Args:
        inputs: of its graph; a size that they do not leave open can have no range. Empty: the engine's own.
    """
    sizes = {str(size).partition("/")[0] for spec in inputs or engine.inputs for size in spec.shape}
    command = f"consisti2v build BUNDLE --target current --backend {engine.backend} --precision {engine.precision}"
    if engine.accumulate != "auto":
        command += f" --accumulate {engine.accumulate}"
    for name in ("height", "width", "rows"):
        if dims is not None and name in dims and sizes & {name, f"latent_{name}"}:
            command += f" --dynamic {name}={dims[name]}:{dims[name]}:{dims[name]}"
    return command


def staleness(engine: EngineSpec, manifest: Manifest) -> str | None:
    """Why the engine is not of this bundle's graph, in one sentence without its end; None: it is."""
    graph = engine_graph(engine, manifest)
    if graph is None:
        return f"the engine of {engine.stage} was built from a {engine.precision} graph that the bundle no longer has"
    if graph_sha256(manifest, graph, weights=not engine.stripped) != engine.onnx_sha256:
        return f"the engine of {engine.stage} was built from another {engine.precision} graph than the bundle has now"
    return None


def engine_graph(engine: EngineSpec, manifest: Manifest) -> StageSpec | None:
    """The ONNX graph an engine is built from; None where the bundle has none of that precision."""
    stages = manifest.stages if engine.precision == "fp32" else manifest.variants.get(engine.precision, {})
    return stages.get(engine.stage)


def _size_mismatch(engine: EngineSpec, manifest: Manifest, dims: Mapping[str, int]) -> str | None:
    """Why the engine does not take these sizes, in one sentence without its end; None: it does."""
    wanted = {spec.name: spec for spec in manifest.stages[engine.stage].inputs}
    for spec in engine.inputs:
        sizes = tuple(dims.get(str(size), size) for size in wanted[spec.name].shape)
        ranges = [profile.inputs[spec.name] for profile in engine.profiles if spec.name in profile.inputs]
        # Smallest and largest of every size, for every profile.
        profiles = [list(zip(entry.minimum, entry.maximum, strict=True)) for entry in ranges]
        profiles = profiles or [[(int(size), int(size)) for size in spec.shape]]
        if not any(
            all(isinstance(size, int) and low <= size <= high for size, (low, high) in zip(sizes, profile, strict=True))
            for profile in profiles
        ):
            shapes = ("x".join(str(a) if a == b else f"{a}-{b}" for a, b in profile) for profile in profiles)
            held, asked = " or ".join(dict.fromkeys(shapes)), "x".join(map(str, sizes))
            return f"the engine of {engine.stage} takes {spec.name} {held}, not {asked}"
    return None


def _number(compute_capability: str) -> tuple[int, ...]:
    return tuple(int(part) for part in compute_capability.split("."))
