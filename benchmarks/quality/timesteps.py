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

    In sigma space (latents divided by alpha), of the samples before each step, the final sample and the clean samples
    predicted at each step, over the squared length of the final sample: float64 [2 n + 1, 2 n + 1].
    """

    timesteps: tuple[int, ...]
    products: _Doubles
    unit: float = 1.0
    """What local errors are counted in: a distance that is as bad for every trajectory."""

    @classmethod
    def of_run(cls, config: SchedulerConfig, timesteps: Sequence[int], latents: NDArray[np.float32]) -> Trajectory:
        """From a run's timesteps and the latents after each step, [steps, ...].

        The first sample is not among them. Its step is a short one, so what was predicted there is taken for what was
        predicted after it, and the sample after it for the first one.
        """
        table = step_table("deis", config, len(timesteps), timesteps=timesteps).matrices.astype(np.float64)
        sigmas = training_sigmas(config)[list(timesteps[1:])]
        scale = np.append(np.sqrt(1 + sigmas**2), 1.0)
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
        clean = samples[:-1] - sigmas[:, None] * np.array(noise)
        vectors = np.concatenate([samples, clean])
        return cls((timesteps[0], *timesteps[2:]), vectors @ vectors.T / np.sum(samples[-1] ** 2))


def optimal_timesteps(trajectories: Sequence[Trajectory], config: SchedulerConfig, steps: int) -> tuple[int, ...]:
    """The timesteps, of those of known trajectories, on which ``dpmpp_2m`` would leave them least.

    Each step from a point of the trajectory leaves it by a local error, which the inner products give without the
    network; the sum of the errors' lengths in each trajectory's unit, mean over trajectories, is smallest by dynamic
    programming over pairs of neighbouring timesteps (after Watson et al. 2021, https://arxiv.org/abs/2106.03802).

    Args:
        trajectories: on the same timesteps.
        config: the noise schedule.
        steps: how many, 3 or more.
    """
    timesteps = trajectories[0].timesteps
    sigmas = training_sigmas(config)[list(timesteps)]
    local = [[errors / t.unit for errors in _local_errors(t, sigmas)] for t in trajectories]
    first, inner, last = (np.mean(errors, axis=0) for errors in zip(*local, strict=True))
    count = len(timesteps)
    # best[i, j]: of runs whose last two timesteps so far are i, j; the run begins with timestep 0.
    best = np.full((count, count), np.inf)
    best[0, 1:] = first[1:]
    choices = []
    for _ in range(steps - 2):
        through = best[:, :, None] + inner
        choices.append(through.argmin(axis=0))
        best = through.min(axis=0)
    before, at = np.unravel_index(np.argmin(best + last), best.shape)
    chosen = [int(at), int(before)]
    for choice in reversed(choices):
        chosen.append(int(choice[chosen[-1], chosen[-2]]))
    return tuple(timesteps[index] for index in reversed(chosen))


def _local_errors(trajectory: Trajectory, sigmas: _Doubles) -> tuple[_Doubles, _Doubles, _Doubles]:
    """Lengths of local errors: of a first step to j [n]; of a step from j to k with i before j [n, n, n], infinite
    unless i < j < k; and of a last step from j to the clean sample [n].

    Lengths are taken in variance-preserving space. An error at some level changes on the way to the clean sample; for
    clean samples of unit variance it keeps its length there.
    """
    count, products = len(sigmas), trajectory.products
    samples, clean = np.arange(count), np.arange(count) + count + 1
    square = np.diagonal(products)

    def length(weights: Sequence[float | _Doubles], vectors: Sequence[NDArray[np.int64]]) -> _Doubles:
        total: _Doubles = np.zeros(np.broadcast_shapes(*(np.shape(v) for v in vectors)))
        for a, u in zip(weights, vectors, strict=True):
            for b, v in zip(weights, vectors, strict=True):
                total = total + a * b * products[u, v]
        return np.sqrt(np.maximum(total, 0))

    ratio = sigmas / sigmas[0]
    alpha = 1 / np.sqrt(1 + sigmas**2)
    first = alpha * length([ratio, 1 - ratio, -1.0], [samples * 0, clean * 0 + clean[0], samples])
    last = np.sqrt(np.maximum(square[clean] + square[count] - 2 * products[clean, count], 0))
    i, j, k = np.ix_(samples, samples, samples)
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.log(sigmas)
        back = 0.5 * (logs[j] - logs[k]) / (logs[i] - logs[j])
    valid = (i < j) & (j < k)
    back, keep = np.where(valid, back, 0.0), sigmas[k] / sigmas[j]
    gain = 1 - keep
    inner = alpha[k] * length([keep, gain * (1 + back), -gain * back, -1.0], [j, clean[j], clean[i], k])
    return first, np.where(valid, inner, np.inf), last


def _whole(timesteps: NDArray[np.int64]) -> tuple[int, ...]:
    return tuple(int(timestep) for timestep in timesteps)
