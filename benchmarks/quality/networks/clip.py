"""CLIP (Radford et al. 2021, arXiv:2103.00020) through transformers."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ....runtime.media.read_video import Frames
from ..result import NetworkInfo
from .hub import from_hub, require_torch
from .loader import library

BATCH = 16


class ClipNetwork:
    """Images and texts in one space.

    Args:
        source: hub id or folder (``openai/clip-vit-base-patch32``), with model and tokenizer.
        download: whether the hub may be asked.
        device: torch device.

    Raises:
        UnavailableError: the model or its tokenizer cannot be had.
    """

    def __init__(self, source: str, *, download: bool = False, device: str = "cpu") -> None:
        require_torch()
        from transformers import AutoTokenizer, CLIPModel

        self._model = from_hub(CLIPModel.from_pretrained, source, "--clip", download=download).eval().to(device)
        self._tokenizer = from_hub(AutoTokenizer.from_pretrained, source, "--clip", download=download)
        self._device = device
        self.side = int(self._model.config.vision_config.image_size)
        self.info = NetworkInfo("CLIP", library("transformers"), source)

    def images(self, frames: Frames, *, as_vbench: bool = False) -> NDArray[np.float32]:
        """Projected image features of unit length, float32 [frames, d].

        Args:
            frames: uint8 [frames, h, w, 3]; smaller side to the network's size, bicubic, centre crop.
            as_vbench: without antialiasing, as VBench's ``clip_transform`` resizes; else as CLIP itself does.
        """
        import torch
        import torch.nn.functional as F

        from .pixels import (
            CLIP_MEAN,
            CLIP_STD,
            centre_crop,
            normalise,
            resize_smaller_side,
            resize_smaller_side_pillow,
        )

        features = []
        with torch.inference_mode():
            for start in range(0, len(frames), BATCH):
                batch = frames[start : start + BATCH]
                if as_vbench:
                    resized = resize_smaller_side(batch, self.side, "bicubic")
                else:
                    resized = resize_smaller_side_pillow(batch, self.side)
                pixels = normalise(centre_crop(resized, self.side), CLIP_MEAN, CLIP_STD).to(self._device)
                pooled = self._model.vision_model(pixel_values=pixels).pooler_output
                features.append(F.normalize(self._model.visual_projection(pooled), dim=-1).float().cpu())
        return torch.cat(features).numpy()

    def text(self, caption: str) -> NDArray[np.float32]:
        """Projected text features of unit length, float32 [d]; a caption too long for CLIP (77 tokens) is cut."""
        import torch
        import torch.nn.functional as F

        length = int(self._model.config.text_config.max_position_embeddings)
        tokens = self._tokenizer(caption, truncation=True, max_length=length, return_tensors="pt").to(self._device)
        with torch.inference_mode():
            pooled = self._model.text_model(
                input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]
            ).pooler_output
            return F.normalize(self._model.text_projection(pooled), dim=-1)[0].float().cpu().numpy()
