"""Engines of other targets whose graph was written anew: they are refused from then on, and this says so first."""

from __future__ import annotations

from collections.abc import Sequence

from ...runtime.bundle.bundle import Bundle
from ...runtime.bundle.engines import staleness
from ...runtime.bundle.manifest import EngineSpec


def outdated_engines(bundle: Bundle, engines: Sequence[EngineSpec], precision: str) -> str | None:
    """One line with the targets whose engines fit the bundle's graphs no more, and the commands that build them again.

    Args:
        bundle: as it is now.
        engines: those to judge.
        precision: of the graphs that were written.

    Returns:
        None where all fit.
    """
    stages: dict[tuple[str, str, bool], list[str]] = {}
    for engine in engines:
        if engine.precision == precision and staleness(engine, bundle.manifest) is not None:
            stages.setdefault((engine.target, engine.flavour, engine.stripped), []).append(engine.stage)
    if not stages:
        return None
    targets = ", ".join(dict.fromkeys(target for target, _, _ in stages))
    commands = [
        f"consisti2v build {bundle.path} --target {target} --flavour {flavour} --precision {precision} "
        f"--stages {','.join(names)}{' --strip' if stripped else ''}"
        for (target, flavour, stripped), names in stages.items()
    ]
    return (
        f"engines for {targets} were built from the old {precision} graphs and are refused from now on; "
        f"build them again: {'; '.join(commands)}"
    )
