"""The schedulers by name."""

from __future__ import annotations

from collections.abc import Callable

from .ddim import SchedulerConfig, ddim_table
from .dpm_solver import dpmpp_2m_table
from .euler import euler_table
from .lcm import lcm_table
from .sampler import StepTable
from .unipc import unipc_table

_TABLES: dict[str, Callable[[SchedulerConfig, int], StepTable]] = {
    "dpmpp_2m": dpmpp_2m_table,
    "dpmpp_2m_karras": lambda config, steps: dpmpp_2m_table(config, steps, karras=True),
    "unipc": unipc_table,
    "euler": euler_table,
    "lcm": lcm_table,
}
SCHEDULERS = ("ddim", *_TABLES)


def step_table(name: str, config: SchedulerConfig, num_inference_steps: int, eta: float = 0.0) -> StepTable:
    """A run of the named scheduler.

    Args:
        name: one of ``SCHEDULERS``; "ddim" is the published one.
        config: noise schedule, timestep spacing and prediction type, from the bundle.
        num_inference_steps: U-Net evaluations.
        eta: 0 (deterministic) to 1, for "ddim" alone.

    Raises:
        ValueError: an unknown name, eta for another scheduler, or a step count that is not possible.
    """
    if name not in SCHEDULERS:
        raise ValueError(f"Unknown scheduler {name!r}: choose one of {', '.join(SCHEDULERS)}.")
    if name == "ddim":
        return ddim_table(config, num_inference_steps, eta)
    if eta != 0:
        raise ValueError(f"eta={eta} belongs to the ddim scheduler: set eta to 0, or scheduler to ddim.")
    return _TABLES[name](config, num_inference_steps)
