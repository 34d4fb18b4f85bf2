"""Features of videos through cd-fvd (Ge et al. 2024, arXiv:2404.12391): I3D, or VideoMAE-v2."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from ....runtime.media.read_video import Frames
from ..measure import NetworkInfo, UnavailableError, library
from .sources import FVD_CHECKPOINTS, NetworkSources, require_torch, unavailable

VIDEOMAE_FRAMES = 16
I3D_MIN_FRAMES = 9


class CdFvd:
    """cd-fvd's evaluator."""

    def __init__(self, sources: NetworkSources) -> None:
        require_torch()
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
        with (
            unavailable(f"cd-fvd cannot load {self.network}", "give a checkpoint with --fvd-weights"),
            contextlib.redirect_stdout(io.StringIO()),
        ):
            self._evaluator = fvd.cdfvd(
                self.network,
                n_real="full",
                n_fake="full",
                ckpt_path=str(weights) if weights else None,
                device=sources.device,
            )
        self.info = NetworkInfo(self.network, library("cd-fvd"), str(weights or cached.name))

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
