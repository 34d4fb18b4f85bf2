"""Torch-free operations of the loop as NumPy functions, and CUDA kernels of the same meaning."""

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]
