"""Every sampler as a table of linear maps, so that one loop and one kernel serve them all.

A step of a diffusion solver is linear in what it reads: the sample, what it remembers of earlier steps, the model's
output and fresh noise. Its numbers depend on the noise schedule and the step count alone, so a whole run is known
before it begins.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from . import FloatArray


@dataclass(frozen=True, eq=False)
class StepTable:
    """A whole run as numbers: new_state[i] = sum_j M[i, j] state[j] + M[i, S] e + M[i, S + 1] z.

    state[0] is the sample in variance-preserving space, which is what the U-Net sees; it starts as the initial
    latents. The other S - 1 arrays are what a multistep solver remembers; they start as zeros and have no weight before
    they are written. e is the (guided) model output, z standard normal noise.
    """

    timesteps: NDArray[np.int64]
    """[steps], the timestep input of the U-Net at each step."""
    matrices: FloatArray
    """[steps, S, S + 2], contiguous: M of each step."""
    needs_noise: bool
    """Whether z is drawn. Then it is drawn at EVERY step, also where its weight is 0, as the published loop does for
    eta > 0.
    """

    @property
    def states(self) -> int:
        """S, the number of arrays carried from step to step."""
        return self.matrices.shape[1]

    def start(self, latents: FloatArray) -> FloatArray:
        """The state before the first step: float32 [S, ...] from the initial latents [...]."""
        state = np.zeros((self.states, *latents.shape), np.float32)
        state[0] = latents
        return state


def sampler_step(
    state: FloatArray, model_output: FloatArray, matrix: FloatArray, noise: FloatArray | None = None
) -> FloatArray:
    """One denoising step of any sampler.

    Terms are added in the order state, model output, noise, and those of weight 0 are left out: with one state array
    this is the published DDIM step to the last bit.

    Args:
        state: float32 [S, ...].
        model_output: float32 [...], the guided prediction.
        matrix: float32 [S, S + 2], row i of :attr:`StepTable.matrices`.
        noise: float32 [...], standard normal; needed where its weight is not 0.

    Returns:
        float32 [S, ...], the new state; the old one is left alone.

    Raises:
        ValueError: noise is needed and missing.
    """
    if noise is None and matrix[:, -1].any():
        raise ValueError("This step adds noise but got none: pass standard normal noise.")
    terms = [*state, model_output, noise]
    new_state = np.zeros_like(state)
    for new, weights in zip(new_state, matrix, strict=True):
        used = [(weight, term) for weight, term in zip(weights, terms, strict=True) if weight != 0]
        for number, (weight, term) in enumerate(used):
            if number == 0:
                np.multiply(term, weight, out=new)
            else:
                new += weight * term
    return new_state
