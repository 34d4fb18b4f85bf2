"""Frames as the networks want them: VBench's transforms, on torch alone.

VBench (``vbench/utils.py``) uses torchvision on uint8 tensors without antialiasing; the same arithmetic is written here
so that the number does not hang on torchvision.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ....runtime.media.read_video import Frames

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def resize_smaller_side(
    frames: Frames, side: int, mode: Literal["bilinear", "bicubic"], *, antialias: bool = False
) -> Tensor:
    """torchvision's ``Resize(side)`` of uint8 images: smaller side = `side`, the other rounded down.

    Returns:
        float32 [frames, 3, h, w], whole numbers 0..255 (torchvision rounds back to uint8).
    """
    height, width = frames.shape[1:3]
    short, long = sorted((height, width))
    scaled = int(side * long / short)
    size = (side, scaled) if height <= width else (scaled, side)
    pixels = torch.from_numpy(frames.copy()).permute(0, 3, 1, 2).contiguous().float()
    if (height, width) != size:
        pixels = F.interpolate(pixels, size=size, mode=mode, align_corners=False, antialias=antialias)
    return pixels.clamp(0, 255).round()


def resize_smaller_side_pillow(frames: Frames, side: int) -> Tensor:
    """As :func:`resize_smaller_side`, by Pillow's antialiased bicubic: CLIP's own preprocessing of pictures."""
    height, width = frames.shape[1:3]
    scaled = int(side * max(height, width) / min(height, width))
    size = (scaled, side) if height <= width else (side, scaled)
    pictures = [Image.fromarray(frame).resize(size, Image.Resampling.BICUBIC) for frame in frames]
    return torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures])).permute(0, 3, 1, 2).float()


def centre_crop(pixels: Tensor, side: int) -> Tensor:
    """torchvision's ``CenterCrop``, of images no smaller than `side`."""
    height, width = pixels.shape[-2:]
    top, left = round((height - side) / 2.0), round((width - side) / 2.0)
    return pixels[..., top : top + side, left : left + side]


def normalise(pixels: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """(x / 255 - mean) / std, per channel."""
    centre = torch.tensor(mean).view(1, 3, 1, 1)
    spread = torch.tensor(std).view(1, 3, 1, 1)
    return (pixels / 255.0 - centre) / spread
