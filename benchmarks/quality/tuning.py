"""The search for a bundle's presets: the fewest steps that end as near the converged trajectory as the rule asks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from .converged import EXACT, GUIDANCES, Case, Way, Yardstick
from .timesteps import SPACINGS, Trajectory, optimal_timesteps, spaced_timesteps

SOLVERS = ("deis", "dpmpp_2m", "unipc")
OPTIMAL = "optimal"
RULE = {"fast": 1.0, "balanced": 0.5}
"""A preset's most error, over that of ``exact``."""
FEWEST, SCREENED, KEPT = 4, 8, 3
"""Steps that the search begins with, steps of the first screening, and how many ways are left after it."""

Report = Callable[[str, int], object]
"""Told what is done next, and how many videos it takes at most."""


def split(cases: Sequence[Case]) -> tuple[list[Case], list[Case]]:
    """Cases of the first quarter of the photos, one seed each, to calibrate timesteps on; and all cases of the others,
    to judge by. A single photo serves for both.
    """
    images = list(dict.fromkeys((case.image, case.prompt) for case in cases))
    first = images[: max(1, len(images) // 4)]
    calibration = [case for case in cases if (case.image, case.prompt) in first]
    judged = [case for case in cases if (case.image, case.prompt) not in first] or list(cases)
    return [case for case in calibration if case.seed == calibration[0].seed], judged


def ways(yardstick: Yardstick, trajectories: Sequence[Trajectory], steps: int) -> list[Way]:
    """Every solver on every list of timesteps; those of ``optimal`` come first."""
    lists = {}
    if trajectories:
        lists[OPTIMAL] = optimal_timesteps(trajectories, yardstick.config, steps)
    lists |= {spacing: spaced_timesteps(spacing, yardstick.config, steps) for spacing in SPACINGS}
    return [
        Way(f"{solver} {spacing}", solver, steps, timesteps)
        for spacing, timesteps in lists.items()
        for solver in SOLVERS
    ]


def find_presets(yardstick: Yardstick, cases: Sequence[Case], report: Report) -> dict[str, Way]:
    """The presets by :data:`RULE`; one is left out where no way with fewer steps than ``exact`` is near enough.

    All ways are screened on one case; those that are nearest there go on, with more and more steps, and are judged over
    all cases where they come near the bar.
    """
    calibration, judged = split(cases)
    both = len(GUIDANCES)
    report("converged trajectories", 2 * both * (len(judged) + len(calibration)))
    trajectories = [yardstick.trajectory(case, guidance) for case in calibration for guidance in GUIDANCES]
    yardstick.worst(EXACT, judged)
    candidates = ways(yardstick, trajectories, SCREENED)
    report(f"screening of {len(candidates)} ways", 4 * both * len(candidates))
    order = sorted(candidates, key=lambda way: yardstick.worst(way, judged[:1]))
    kept = [way.name for way in order[:KEPT]]
    found: dict[str, Way] = {}
    for steps in range(FEWEST, EXACT.steps):
        bar = max(bar for name, bar in RULE.items() if name not in found)
        report(f"{steps} steps", 4 * both * KEPT * len(judged))
        nearest: tuple[float, Way] | None = None
        for way in (way for way in ways(yardstick, trajectories, steps) if way.name in kept):
            if yardstick.worst(way, judged[:1]) <= 1.5 * bar:
                nearest = min(
                    [*([nearest] if nearest else []), (yardstick.worst(way, judged), way)], key=lambda n: n[0]
                )
        for name in [name for name in RULE if name not in found]:
            if nearest is not None and nearest[0] <= RULE[name]:
                found[name] = nearest[1]
        if len(found) == len(RULE):
            break
    return found
