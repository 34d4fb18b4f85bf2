"""The published ConsistI2V formulation in plain torch: opponent of every timing, judge of every rewrite.

Nothing here is optimised. Each layer does the work the published implementation does, in the same order and with
the same redundancy: text repeated for every frame and again for every spatial position, frame 0 concatenated before
the key and value projections, nearest upsampling before the convolution.

Three things are kinder to the original than it is to itself, so that a speed-up is understated rather than
overstated: gates are clamped without writing to the weights, the 3x3 window leaves its centre out by slices instead
of a boolean mask (which stalls a GPU once in every temporal attention), and the scheduler looks its coefficients up
by plain integers. Input the original would silently mix up is refused with a sentence.
"""

from __future__ import annotations

from .config import UNetConfig
from .frame_init import FrameInitOptions
from .sampling import sample, sample_autoregressive
from .scheduler import SchedulerOptions
from .unet import PublishedUNet

__all__ = [
    "FrameInitOptions",
    "PublishedUNet",
    "SchedulerOptions",
    "UNetConfig",
    "sample",
    "sample_autoregressive",
]
