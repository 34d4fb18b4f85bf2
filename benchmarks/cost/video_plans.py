"""What a video asks of the U-Net: a number of steps, or a preset."""

from __future__ import annotations

from dataclasses import dataclass

from ...kernels.guidance import guided_steps
from ...runtime.request.presets import PRESETS
from .model_costs import ROWS


@dataclass(frozen=True)
class VideoPlan:
    """One way to make a video."""

    name: str
    steps: int
    forwards: float
    """Steps, each by its share of the guided batch: without guidance the prompt's branch runs alone. The work is then
    counted in proportion to the rows, which holds while the weights' traffic is small beside it.
    """


def plan_of_steps(steps: int) -> VideoPlan:
    """Every step guided."""
    return VideoPlan(f"{steps} steps", steps, float(steps))


def preset_plans(guidance: str) -> list[VideoPlan]:
    """Every preset of :mod:`consisti2v_rt.runtime.request.presets` for a model of this guidance."""
    plans = []
    for name, options in PRESETS.items():
        steps, (start, end) = options["num_inference_steps"], options["guidance_interval"]
        guided = len(guided_steps(start, end, steps))
        plans.append(VideoPlan(name, steps, guided + (steps - guided) / ROWS[guidance]))
    return plans
