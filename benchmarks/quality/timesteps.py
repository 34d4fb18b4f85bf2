"""Lists of timesteps to solve a trajectory on: spacings by formula, and the best ones for trajectories that are known.

A list found here is a setting of a call like any other (``timesteps``), so that what is measured is what runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ...kernels.ddim import SchedulerConfig, ddim_timesteps
from ...kernels.schedulers import (
    exponential_timesteps,
    multistep_timesteps,
    step_table,
    training_sigmas,
    whole_timesteps,
)

_Doubles = NDArray[np.float64]

_ALIGNED = (999, 850, 736, 645, 545, 455, 343, 233, 124, 24)
"""Align Your Steps for Stable Diffusion 1.5 (Sabour et al. 2024, https://arxiv.org/abs/2404.14507), shares of 1000."""
SPACINGS = ("leading", "trailing", "karras", "exponential", "aligned")


def spaced_timesteps(spacing: str, config: SchedulerConfig, steps: int) -> tuple[int, ...]:
    """Timesteps by a formula, highest first.

    Args:
        spacing: one of :data:`SPACINGS`. leading and trailing are those of a multistep solver; karras is even in
            sigma^(1/7) (https://arxiv.org/abs/2206.00364), exponential in log sigma, and aligned interpolates the
            published list in log sigma; each is rounded to whole timesteps, every one once.
        config: the noise schedule.
        steps: how many.

    Raises:
        ValueError: a step count that is not possible.
    """
    if spacing == "leading":
        return _whole(multistep_timesteps(replace(config, timestep_spacing="leading"), steps))
    if spacing == "trailing":
        return _whole(ddim_timesteps(replace(config, timestep_spacing="trailing"), steps))
    if spacing == "exponential":
        return _whole(exponential_timesteps(config, steps))
    levels = np.log(training_sigmas(config))
    if spacing == "karras":
        high, low = np.exp(levels[-1] / 7), np.exp(levels[0] / 7)
        return _whole(whole_timesteps(config, 7 * np.log(np.linspace(high, low, steps))))
    known = levels[np.array(_ALIGNED) * len(levels) // 1000]
    return _whole(whole_timesteps(config, np.interp(np.linspace(0, 1, steps), np.linspace(0, 1, len(known)), known)))


@dataclass(frozen=True, eq=False)
class Trajectory:
    """A run of ``deis`` on many timesteps, as inner products of what a coarser run would read.

    In sigma space (latents divided by alpha), of the samples before each step, the final sample and the noise
    predicted at each step, over the number of elements: float64 [2 n + 1, 2 n + 1].
    """

    timesteps: tuple[int, ...]
    products: _Doubles
    unit: float = 1.0
    """What local errors are counted in, as relative L2: a distance that is as bad for every trajectory."""

    @classmethod
    def of_run(cls, config: SchedulerConfig, timesteps: Sequence[int], latents: NDArray[np.float32]) -> Trajectory:
        """From a run's timesteps and the latents after each step, [steps, ...].

        The sample before the first step is not among them, so the trajectory begins after it. What was predicted there
        is taken for what was predicted next.
        """
        table = step_table("deis", config, len(timesteps), timesteps=timesteps).matrices.astype(np.float64)
        scale = np.append(np.sqrt(1 + training_sigmas(config)[list(timesteps[1:])] ** 2), 1.0)
        samples = latents.reshape(len(latents), -1).astype(np.float64)
        noise: list[_Doubles] = []
        for (ahead, predicted, _), sample, after in zip(table[1:], samples, samples[1:], strict=False):
            # after = a sample + b noise before + c noise before that + d output; the noise now is p sample + q output.
            (a, b, c, d, _), (p, _, _, q, _) = ahead, predicted
            rest = after - a * sample
            known = b * noise[-1] + c * noise[-2:][0] if noise else b * p * sample
            output = (rest - known) / (d if noise else d + b * q)
            noise.append(p * sample + q * output)
        samples *= scale[:, None]
        vectors = np.concatenate([samples, noise])
        return cls(tuple(timesteps[1:]), vectors @ vectors.T / vectors.shape[1])


def optimal_timesteps(trajectories: Sequence[Trajectory], config: SchedulerConfig, steps: int) -> tuple[int, ...]:
    """The timesteps, of those of known trajectories, that a solver of higher order should take.

    A step of first order from one point of the trajectory to another misses it by a local error, which the inner
    products give without the network. The sum of the errors' squares, in each trajectory's unit, mean over
    trajectories, is smallest by dynamic programming (after Watson et al. 2021, https://arxiv.org/abs/2106.03802).
    Squares, because an error of first order grows with the square of the step, and one of third with its fourth power.

    Args:
        trajectories: on the same timesteps.
        config: the noise schedule.
        steps: how many, 2 or more.
    """
    timesteps = trajectories[0].timesteps
    sigmas = training_sigmas(config)[list(timesteps)]
    costs = np.mean([(_local_errors(t, sigmas) / t.unit) ** 2 for t in trajectories], axis=0)
    # best[j]: of runs that begin with the first timestep and are at j, the final sample behind the last one.
    best, choices = costs[0], []
    for _ in range(steps - 1):
        through = best[:-1, None] + costs
        choices.append(through.argmin(axis=0))
        best = through.min(axis=0)
    chosen = [len(timesteps)]
    for choice in reversed(choices):
        chosen.append(int(choice[chosen[-1]]))
    # The trajectory begins a short step below the schedule's end.
    return (config.num_train_timesteps - 1, *(timesteps[index] for index in reversed(chosen[1:])))


def _local_errors(trajectory: Trajectory, sigmas: _Doubles) -> _Doubles:
    """Of a step from j to k, float64 [n, n + 1], as relative L2 of the final sample, which is the last k; infinite
    unless j < k.

    An error at some level shrinks on the way to the clean sample, the more the surer the model is: for clean samples of
    variance v about what is known at first, by sqrt(v / (v + sigma^2)). Here v is the distance of the first prediction,
    which is their mean, from the final sample.
    """
    count, products = len(sigmas), trajectory.products
    j, k = np.ix_(np.arange(count), np.arange(count + 1))
    levels, noise = np.append(sigmas, 0.0), j + count + 1
    change = levels[k] - sigmas[j]
    squares = np.diagonal(products)
    missed = squares[j] + change**2 * squares[noise] + squares[k]
    missed += 2 * (change * (products[j, noise] - products[noise, k]) - products[j, k])
    lengths = np.sqrt(np.maximum(missed, 0))
    spread = lengths[0, -1]
    shrinks = spread / np.sqrt(spread**2 + levels[k] ** 2)
    return np.where(j < k, shrinks * lengths / np.sqrt(squares[count]), np.inf)


def _whole(timesteps: NDArray[np.int64]) -> tuple[int, ...]:
    return tuple(int(timestep) for timestep in timesteps)
