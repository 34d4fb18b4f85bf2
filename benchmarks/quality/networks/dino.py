"""DINO ViT-B/16 (Caron et al. 2021, arXiv:2104.14294) through transformers."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ....runtime.media.read_video import Frames
from ..result import NetworkInfo
from .hub import from_hub, require_torch
from .loader import library

SIDE = 224
BATCH = 16


class DinoNetwork:
    """Image features of a self-supervised vision transformer.

    Args:
        source: hub id or folder (``facebook/dino-vitb16``).
        download: whether the hub may be asked.
        device: torch device.

    Raises:
        UnavailableError: the model cannot be had.
    """

    def __init__(self, source: str, *, download: bool = False, device: str = "cpu") -> None:
        require_torch()
        from transformers import AutoModel

        self._model = from_hub(AutoModel.from_pretrained, source, "--dino", download=download).eval().to(device)
        self._device = device
        self.info = NetworkInfo("DINO", library("transformers"), source)

    def images(self, frames: Frames) -> NDArray[np.float32]:
        """Class token after the last norm, of unit length, float32 [frames, d].

        Pixels as in VBench's ``dino_transform``: smaller side to 224, bilinear, nothing cropped; the position
        embeddings are interpolated to the size, as DINO's own code does.
        """
        import torch
        import torch.nn.functional as F

        from .pixels import IMAGENET_MEAN, IMAGENET_STD, normalise, resize_smaller_side

        features = []
        with torch.inference_mode():
            for start in range(0, len(frames), BATCH):
                resized = resize_smaller_side(frames[start : start + BATCH], SIDE, "bilinear")
                pixels = normalise(resized, IMAGENET_MEAN, IMAGENET_STD).to(self._device)
                output = self._model(pixel_values=pixels, interpolate_pos_encoding=True)
                features.append(F.normalize(output.last_hidden_state[:, 0], dim=-1).float().cpu())
        return torch.cat(features).numpy()
