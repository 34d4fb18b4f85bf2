"""Optical flow: dense inverse search through OpenCV, which needs no network, and RAFT through torchvision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ....runtime.install import install_hint
from ....runtime.media.read_video import Frames
from ..measure import NetworkInfo, UnavailableError, library
from .sources import NetworkSources, require_torch, unavailable

SIDE = 256
"""Frames are scaled to this smaller side before DIS, so that one threshold fits all sizes."""
ITERATIONS = 20
MIN_SIDE = 128


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
        factor = SIDE / min(height, width)
        if factor == 1:
            return frames
        size = (max(SIDE, round(width * factor)), max(SIDE, round(height * factor)))
        kind = self._cv2.INTER_AREA if factor < 1 else self._cv2.INTER_LINEAR
        return np.stack([self._cv2.resize(frame, size, interpolation=kind) for frame in frames])

    def flow(self, first: Frames, second: Frames) -> NDArray[np.float32]:
        """Pixels each point moves, [h, w, 2] as (right, down).

        Args:
            first, second: uint8 RGB [height, width, 3], scaled.
        """
        grey = [self._cv2.cvtColor(frame, self._cv2.COLOR_RGB2GRAY) for frame in (first, second)]
        return np.asarray(self._dis.calc(grey[0], grey[1], None), dtype=np.float32)

    def warp(self, frame: Frames, flow: NDArray[np.float32]) -> NDArray[np.float32]:
        """`frame` read at each point plus `flow`, bilinear, edge repeated: float32 [h, w, 3]."""
        height, width = frame.shape[:2]
        across, down = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
        warped = self._cv2.remap(
            frame.astype(np.float32),
            across + flow[..., 0],
            down + flow[..., 1],
            self._cv2.INTER_LINEAR,
            borderMode=self._cv2.BORDER_REPLICATE,
        )
        return np.asarray(warped, dtype=np.float32)

    def between(self, first: Frames, second: Frames) -> Frames:
        """The middle of two frames: each moved half way along the flow to the other, and averaged.

        The flow at the middle is taken for that at the end frame, which holds where motion varies slowly.
        """
        forward, backward = self.flow(first, second), self.flow(second, first)
        half = np.float32(0.5)
        middle = np.mean([self.warp(first, -half * forward), self.warp(second, -half * backward)], axis=0)
        return np.rint(middle).clip(0, 255).astype(np.uint8)


class RaftFlow:
    """RAFT-large (Teed and Deng 2020, arXiv:2003.12039) with 20 updates, as VBench runs it.

    torchvision's weights C_T_V1 are the original ``raft-things`` that VBench uses.
    """

    def __init__(self, sources: NetworkSources) -> None:
        require_torch()
        import torch

        with unavailable(
            "RAFT needs torchvision, which cannot be imported", "install the torchvision that fits your torch"
        ):
            from torchvision.models.optical_flow import Raft_Large_Weights, raft_large
        entry = Raft_Large_Weights.C_T_V1
        cached = Path(torch.hub.get_dir()) / "checkpoints" / Path(entry.url).name
        if sources.raft is None and not cached.is_file() and not sources.download:
            raise UnavailableError(
                "RAFT's weights C_T_V1 are not in torch's cache: give a file with --raft, or allow --download."
            )
        with unavailable("RAFT's weights cannot be loaded", "give others with --raft"):
            if sources.raft is None:
                state = entry.get_state_dict(progress=False, check_hash=True)
            else:
                state = torch.load(sources.raft, map_location="cpu", weights_only=True)
            self._model = raft_large(weights=None, progress=False)
            self._model.load_state_dict(state)
        self._model.eval().to(sources.device)
        self._device = sources.device
        self.info = NetworkInfo("RAFT-large", library("torchvision"), str(sources.raft or "C_T_V1"))

    def flow(self, first: Frames, second: Frames) -> NDArray[np.float32]:
        """Pixels each point moves, [h, w, 2] as (right, down); sides padded to multiples of 8, as VBench leaves them.

        Args:
            first, second: uint8 RGB [height, width, 3].

        Raises:
            UnavailableError: a side under 128 pixels, which the correlation pyramid cannot hold.
        """
        import torch

        height, width = first.shape[:2]
        if min(height, width) < MIN_SIDE:
            raise UnavailableError(f"RAFT needs frames of at least {MIN_SIDE} pixels a side, not {width}x{height}.")
        pair = padded_pair(first, second, 8).to(self._device) * 2 - 1
        with torch.inference_mode():
            flow = self._model(pair[:1], pair[1:], num_flow_updates=ITERATIONS)[-1]
        return flow[0].permute(1, 2, 0).float().cpu().numpy()


def padded_pair(first: Frames, second: Frames, multiple: int) -> Any:
    """Two frames, sides padded on both ends to multiples, edge repeated: float32 [2, 3, h, w] in 0..1."""
    import torch
    import torch.nn.functional as F

    down, right = (-length % multiple for length in first.shape[:2])
    edges = [right // 2, right - right // 2, down // 2, down - down // 2]
    pair = torch.from_numpy(np.stack([first, second])).permute(0, 3, 1, 2).float() / 255.0
    return F.pad(pair, edges, mode="replicate")
