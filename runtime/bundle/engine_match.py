"""Does an engine fit this machine, this bundle and these sizes? Refused before anything is loaded, with what mends it.

An engine that does not fit fails late and darkly, or runs wrong (NVIDIA/TensorRT issue 2176). All of it is known from
the manifest, so that no library has to be asked.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ...errors import UserError
from .engine_choice import Machine, refusal
from .engine_source import staleness
from .manifest import EngineSpec, Manifest, TensorSpec


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
            for; with the command that mends it.
    """
    reason = refusal(engine, machine) or staleness(engine, manifest)
    if reason is not None:
        raise UserError(f"{reason}: {build_command(engine)}.")
    if dims is not None:
        reason = size_mismatch(engine, manifest, dims)
        if reason is not None:
            inputs = manifest.stages[engine.stage].inputs
            raise UserError(f"{reason}: {build_command(engine, dims, inputs)}, or ask for sizes it has.")


def build_command(engine: EngineSpec, dims: Mapping[str, int] | None = None, inputs: Iterable[TensorSpec] = ()) -> str:
    """The command that builds this engine for the GPU at hand; with `dims`, for ranges that hold them.

    Args:
        inputs: of its graph; a size that they do not leave open can have no range. None: the engine's own.
    """
    sizes = {str(size).partition("/")[0] for spec in inputs or engine.inputs for size in spec.shape}
    command = f"consisti2v build BUNDLE --target current --flavour {engine.flavour} --precision {engine.precision}"
    for name in ("height", "width", "rows"):
        if dims is not None and name in dims and sizes & {name, f"latent_{name}"}:
            command += f" --dynamic {name}={dims[name]}:{dims[name]}:{dims[name]}"
    return command


def size_mismatch(engine: EngineSpec, manifest: Manifest, dims: Mapping[str, int]) -> str | None:
    """Why the engine does not take these sizes, in one sentence without its end; None: it does."""
    wanted = {spec.name: spec for spec in manifest.stages[engine.stage].inputs}
    for spec in engine.inputs:
        sizes = tuple(dims.get(str(size), size) for size in wanted[spec.name].shape)
        if not any(_takes(profile, sizes) for profile in _profiles(engine, spec)):
            held = " or ".join(dict.fromkeys(_words(profile) for profile in _profiles(engine, spec)))
            shown = "x".join(map(str, sizes))
            return f"the engine of {engine.stage} takes {spec.name} {held}, not {shown}"
    return None


_Sizes = tuple[tuple[int, ...], tuple[int, ...]]


def _profiles(engine: EngineSpec, spec: TensorSpec) -> list[_Sizes]:
    """Smallest and largest shape of an input, for every profile."""
    ranges = [profile.inputs[spec.name] for profile in engine.profiles if spec.name in profile.inputs]
    if ranges:
        return [(entry.minimum, entry.maximum) for entry in ranges]
    shape = tuple(int(size) for size in spec.shape)
    return [(shape, shape)]


def _takes(profile: _Sizes, sizes: tuple[int | str, ...]) -> bool:
    return all(isinstance(size, int) and low <= size <= high for size, low, high in zip(sizes, *profile, strict=True))


def _words(profile: _Sizes) -> str:
    low, high = profile
    return "x".join(str(a) if a == b else f"{a}-{b}" for a, b in zip(low, high, strict=True))
