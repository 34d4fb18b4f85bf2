"""RAFT optical flow (Teed and Deng 2020, arXiv:2003.12039) through torchvision."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ....runtime.media.read_video import Frames
from ..errors import UnavailableError
from ..result import NetworkInfo
from .hub import require_torch
from .loader import first_line, library

ITERATIONS = 20
MIN_SIDE = 128


class RaftFlow:
    """RAFT-large with 20 updates, as VBench runs it.

    Args:
        weights: a state dict for ``torchvision.models.optical_flow.raft_large``; None: torchvision's C_T_V1, which are
            the original ``raft-things`` weights that VBench uses.
        download: whether torchvision may fetch them.
        device: torch device.

    Raises:
        UnavailableError: torchvision or the weights cannot be had.
    """

    def __init__(self, weights: Path | None = None, *, download: bool = False, device: str = "cpu") -> None:
        require_torch()
        import torch

        try:
            from torchvision.models.optical_flow import Raft_Large_Weights, raft_large
        except Exception as error:  # a torchvision built for another torch fails with a RuntimeError
            raise UnavailableError(
                f"RAFT needs torchvision, which cannot be imported ({first_line(error)}): install the torchvision that "
                "fits your torch."
            ) from error
        entry = Raft_Large_Weights.C_T_V1
        file = weights or Path(torch.hub.get_dir()) / "checkpoints" / Path(entry.url).name
        if weights is None and not file.is_file() and not download:
            raise UnavailableError(
                "RAFT's weights C_T_V1 are not in torch's cache: give a file with --raft, or allow --download."
            )
        try:
            if weights is None:
                state = entry.get_state_dict(progress=False, check_hash=True)
            else:
                state = torch.load(file, map_location="cpu", weights_only=True)
            self._model = raft_large(weights=None, progress=False)
            self._model.load_state_dict(state)
        except Exception as error:  # network, file, pickle and key errors
            raise UnavailableError(
                f"RAFT's weights cannot be loaded ({first_line(error)}): give others with --raft."
            ) from error
        self._model.eval().to(device)
        self._device = device
        self.info = NetworkInfo("RAFT-large", library("torchvision"), str(weights) if weights else "C_T_V1")

    def check_size(self, height: int, width: int) -> None:
        """Refuse frames that RAFT's correlation pyramid cannot hold.

        Raises:
            UnavailableError: a side under 128 pixels.
        """
        if min(height, width) < MIN_SIDE:
            raise UnavailableError(f"RAFT needs frames of at least {MIN_SIDE} pixels a side, not {width}x{height}.")

    def flow(self, first: Frames, second: Frames) -> NDArray[np.float32]:
        """Pixels each point moves, [h, w, 2] as (right, down); sides padded to multiples of 8, as VBench leaves them.

        Args:
            first, second: uint8 RGB [height, width, 3].
        """
        import torch
        import torch.nn.functional as F

        height, width = first.shape[:2]
        self.check_size(height, width)
        down, right = -height % 8, -width % 8
        edges = [right // 2, right - right // 2, down // 2, down - down // 2]
        pair = torch.from_numpy(np.stack([first, second])).permute(0, 3, 1, 2).float() / 127.5 - 1
        pair = F.pad(pair, edges, mode="replicate").to(self._device)
        with torch.inference_mode():
            flow = self._model(pair[:1], pair[1:], num_flow_updates=ITERATIONS)[-1]
        return flow[0].permute(1, 2, 0).float().cpu().numpy()
