"""Ranges of activations, recorded while a bundle's float32 graphs animate real photos.

Read in this order: ``samples`` (on what), ``graph`` (a graph that tells its activations), ``session`` (runs it inside
the pipeline), ``ranges`` (what is kept of them, and the scale that loses least), ``run`` (all together).
"""

from .run import Calibration, calibrate
from .samples import CalibrationSet, calibration_set

__all__ = ["Calibration", "CalibrationSet", "calibrate", "calibration_set"]
