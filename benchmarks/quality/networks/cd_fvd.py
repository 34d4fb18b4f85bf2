"""Features of videos through cd-fvd (Ge et al. 2024, arXiv:2404.12391): I3D, or VideoMAE-v2."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from ....runtime.media.read_video import Frames
from ..errors import UnavailableError
from ..result import NetworkInfo
from .hub import require_torch
from .loader import first_line, library

# Where cd-fvd keeps what it fetches, inside its own package.
_CHECKPOINTS = {
    "i3d": "third_party/i3d/i3d_pretrained_400.pt",
    "videomae": "third_party/VideoMAEv2/vit_g_hybrid_pt_1200e_ssv2_ft.pth",
}
NETWORKS = tuple(_CHECKPOINTS)
VIDEOMAE_FRAMES = 16
I3D_MIN_FRAMES = 9


class CdFvd:
    """cd-fvd's evaluator.

    Args:
        network: i3d or videomae.
        weights: its checkpoint; None: the one that cd-fvd fetches.
        download: whether cd-fvd may fetch it.
        device: torch device.

    Raises:
        UnavailableError: cd-fvd, a package it needs, or the checkpoint cannot be had.
    """

    def __init__(
        self, network: str = "i3d", weights: Path | None = None, *, download: bool = False, device: str = "cpu"
    ) -> None:
        require_torch()
        try:
            import scipy.linalg  # noqa: F401  (cd-fvd uses it without importing it)
            from cdfvd import fvd
        except Exception as error:  # a torchvision built for another torch fails with a RuntimeError
            raise UnavailableError(
                f"the package cd-fvd cannot be imported ({first_line(error)}): install cd-fvd and the torchvision that "
                "fits your torch."
            ) from error
        spec = find_spec("cdfvd")
        assert spec is not None and spec.origin is not None
        cached = Path(spec.origin).parent / _CHECKPOINTS[network]
        if weights is not None and not weights.is_file():
            raise UnavailableError(f"{weights} does not exist: give cd-fvd's checkpoint with --fvd-weights.")
        if weights is None and not cached.is_file() and not download:
            raise UnavailableError(
                f"cd-fvd's checkpoint {cached.name} is not here: give it with --fvd-weights, or allow --download."
            )
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                self._evaluator = fvd.cdfvd(
                    network, n_real="full", n_fake="full", ckpt_path=str(weights) if weights else None, device=device
                )
        except Exception as error:  # network, file, pickle and key errors
            raise UnavailableError(
                f"cd-fvd cannot load {network} ({first_line(error)}): give a checkpoint with --fvd-weights."
            ) from error
        self.network = network
        self.info = NetworkInfo(network, library("cd-fvd"), str(weights) if weights else cached.name)

    def distance(self, videos: Iterable[Frames], reference: Iterable[Frames]) -> float:
        """Fréchet distance between the features of two sets.

        Args:
            videos, reference: uint8 [frames, h, w, 3] each; 16 frames for VideoMAE, at least 9 for I3D.

        Raises:
            UnavailableError: a video of another length.
        """
        self._evaluator.empty_real_stats()
        self._evaluator.empty_fake_stats()
        for frames in reference:
            self._evaluator.add_real_stats(self._batch(frames))
        for frames in videos:
            self._evaluator.add_fake_stats(self._batch(frames))
        return float(self._evaluator.compute_fvd_from_stats())

    def _batch(self, frames: Frames) -> Frames:
        if self.network == "videomae" and len(frames) != VIDEOMAE_FRAMES:
            raise UnavailableError(f"VideoMAE takes {VIDEOMAE_FRAMES} frames, a video has {len(frames)}: set --frames.")
        if self.network == "i3d" and len(frames) < I3D_MIN_FRAMES:
            raise UnavailableError(f"I3D takes at least {I3D_MIN_FRAMES} frames, a video has {len(frames)}.")
        return np.ascontiguousarray(frames)[None]
