"""Classifier-free guidance by text alone, or by text and first frame.

Two conditions: InstructPix2Pix, https://arxiv.org/abs/2211.09800 section 3.2.1.
Rescale: Common Diffusion Noise Schedules and Sample Steps are Flawed, https://arxiv.org/abs/2305.08891 section 3.4.
Only in an interval of noise levels: https://arxiv.org/abs/2404.07724.
"""

from __future__ import annotations

import math
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from . import FloatArray

GuidanceMode: TypeAlias = Literal["none", "text", "both"]

# U-Net evaluations per step. Order of the branches, text + first frame of each:
#   none: prompt + clean
#   text: empty text + clean, prompt + clean
#   both: empty text + noisy, empty text + clean, prompt + clean
BRANCHES: dict[str, int] = {"none": 1, "text": 2, "both": 3}


def guidance_mode(scale_txt: float, scale_img: float) -> GuidanceMode:
    """Which branches two guidance scales ask for: "both" as soon as scale_img > 1, "text" if only scale_txt > 1."""
    if scale_img > 1:
        return "both"
    return "text" if scale_txt > 1 else "none"


def guided_steps(start: float, end: float, steps: int) -> range:
    """The steps in which guidance acts, counted from 0: those from round(start steps) up to round(end steps).

    The paper bounds the noise level; steps go through the levels in order, so an interval of steps is one of levels.
    Halves are rounded up. start and end are shares of the run, 0 (its first step, pure noise) to 1 (behind its last).
    """
    return range(math.floor(start * steps + 0.5), math.floor(end * steps + 0.5))


def guidance_weights(mode: GuidanceMode, scale_txt: float, scale_img: float, steps: int, guided: range) -> FloatArray:
    """Guidance as data, for kernels: e = sum_b w_b e_b is :func:`combine_guidance` before rescale, up to rounding.

    Returns:
        float32 [steps, branches]; in steps that are not `guided` the last branch counts alone.
    """
    weights = {
        "none": [1.0],
        "text": [1 - scale_txt, scale_txt],
        "both": [1 - scale_img, scale_img - scale_txt, scale_txt],
    }[mode]
    alone = [0.0] * (len(weights) - 1) + [1.0]
    return np.array([weights if step in guided else alone for step in range(steps)], np.float32)


def combine_guidance(
    noise_preds: FloatArray, mode: GuidanceMode, scale_txt: float, scale_img: float, rescale: float = 0.0
) -> FloatArray:
    """One guided prediction from the predictions of all branches.

    * none: e_1
    * text: e = e_1 + scale_txt (e_2 - e_1)
    * both: e = e_1 + scale_img (e_2 - e_1) + scale_txt (e_3 - e_2)

    then, for rescale r > 0, e <- r e std(e_p) / std(e) + (1 - r) e, where e_p is the last branch (prompt + clean first
    frame) and std is the unbiased one of each sample over (c, f, h, w). The published code does not get as far as
    this in "both"; the same formula is what it means.

    Args:
        noise_preds: float32 [branches, b, c, f, h, w], in the order of ``BRANCHES``.
        mode: from :func:`guidance_mode`.
        scale_txt, scale_img: guidance scales; scale_img counts in "both" only.
        rescale: r, 0 (off) to 1; has no effect in "none".

    Returns:
        float32 [b, c, f, h, w]; in "none" a view of the input.

    Raises:
        ValueError: a number of branches that does not fit the mode.
    """
    if len(noise_preds) != BRANCHES[mode]:
        raise ValueError(
            f'Guidance mode "{mode}" combines {BRANCHES[mode]} predictions, not {len(noise_preds)}: '
            f"pass one per branch on the first axis."
        )
    first, prompt = noise_preds[0], noise_preds[-1]
    if mode == "none":
        return first
    if mode == "text":
        guided = first + np.float32(scale_txt) * (prompt - first)
    else:
        image = noise_preds[1]
        guided = first + np.float32(scale_img) * (image - first) + np.float32(scale_txt) * (prompt - image)
    if rescale > 0:
        guided *= rescale_factor(prompt, guided, rescale)
    return guided


def rescale_factor(prompt: NDArray[Any], guided: NDArray[Any], rescale: float) -> FloatArray:
    """What rescale multiplies each sample's guided prediction with, float32 [b, 1, ...]; computed in float64."""
    of_prompt, of_guided = (
        np.std(e, axis=tuple(range(1, e.ndim)), ddof=1, keepdims=True, dtype=np.float64) for e in (prompt, guided)
    )
    return (rescale * of_prompt / of_guided + (1 - rescale)).astype(np.float32)
