"""Optical flow for the measures: DIS through OpenCV, and RAFT through torchvision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...runtime.install import install_hint
from ...runtime.media.read_video import Frames
from .network_sources import (
    NetworkInfo,
    NetworkSources,
    UnavailableError,
    import_torch,
    library,
    load_weights,
    unavailable,
)

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
        torch = import_torch()
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
        self._model = load_weights(raft_large(weights=None, progress=False), file, sources, "RAFT's", "--raft")
        self._device = sources.device
        self.info = NetworkInfo("RAFT-large", library("torchvision"), str(sources.raft or "C_T_V1"))

    def flow(self, first: Frames, second: Frames) -> NDArray[np.float32]:
        """Pixels each point moves, [h, w, 2] as (right, down), of uint8 RGB [h, w, 3]; sides padded to multiples of 8,
        as VBench leaves them.

        Raises:
            UnavailableError: a side under 128 pixels, which the correlation pyramid cannot hold.
        """
        torch, (height, width) = import_torch(), first.shape[:2]
        if min(height, width) < 128:
            raise UnavailableError(f"RAFT needs frames of at least 128 pixels a side, not {width}x{height}.")
        edges = [(0, 0), *((-side % 8 // 2, -side % 8 - -side % 8 // 2) for side in (height, width)), (0, 0)]
        padded = np.pad(np.stack([first, second]), edges, mode="edge")
        pair = torch.from_numpy(padded).permute(0, 3, 1, 2).to(self._device).float() / 127.5 - 1
        with torch.inference_mode():
            flow = self._model(pair[:1], pair[1:], num_flow_updates=20)[-1]
        return flow[0].permute(1, 2, 0).float().cpu().numpy()  # type: ignore[no-any-return]
