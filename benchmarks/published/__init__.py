"""The published ConsistI2V formulation in plain torch: correctness reference and performance baseline.

Nothing here is optimised. Each layer does the work the published implementation does, in the same order and with
the same redundancy: text repeated for every frame and again for every spatial position, frame 0 concatenated before
the key and value projections, nearest upsampling before the convolution.

Two things are kinder to the original than it is to itself, so that a speed-up is understated: gates are clamped without
writing to the weights, and the 3x3 window leaves its centre out by slices instead of a boolean mask (which stalls a GPU
once in every temporal attention). Input the original would silently mix up is refused with a sentence.
"""

from __future__ import annotations

from .unet import PublishedUNet

__all__ = ["PublishedUNet"]
