"""AMT-S frame interpolation (Li et al. 2023, arXiv:2304.09790), the network inside the vbench package."""

from __future__ import annotations

import importlib
import os
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import numpy as np

from ....runtime.media.read_video import Frames
from ..measure import NetworkInfo, UnavailableError, library
from .flow import padded_pair
from .sources import NetworkSources, require_torch, unavailable

_MODULE = "vbench.third_party.amt.networks.AMT-S"
_MULTIPLE = 16
MIN_SIDE = 113
"""Padded to 128: below, the coarsest of the four correlation levels is one point wide and AMT divides by zero."""


class AmtInterpolator:
    """The frame halfway between two."""

    def __init__(self, sources: NetworkSources) -> None:
        require_torch()
        import torch

        cache = Path(os.environ.get("VBENCH_CACHE_DIR") or Path.home() / ".cache" / "vbench")
        file = sources.amt or cache / "amt_model" / "amt-s.pth"
        network = amt_module()
        if not file.is_file():
            raise UnavailableError("AMT-S's weights amt-s.pth are not in VBench's cache: give them with --amt.")
        with unavailable(f"AMT-S's weights {file.name} cannot be loaded", "give others with --amt"):
            self._model = network.Model(corr_radius=3, corr_lvls=4, num_flows=3)
            self._model.load_state_dict(torch.load(file, map_location="cpu", weights_only=True)["state_dict"])
        self._model.eval().to(sources.device)
        self._device = sources.device
        self.info = NetworkInfo("AMT-S", library("vbench"), str(file))

    def between(self, first: Frames, second: Frames) -> Frames:
        """The middle frame, uint8 [h, w, 3], fractions cut off as in VBench.

        Raises:
            UnavailableError: a side under 113 pixels.
        """
        import torch

        height, width = first.shape[:2]
        if min(height, width) < MIN_SIDE:
            raise UnavailableError(f"AMT-S needs frames of at least {MIN_SIDE} pixels a side, not {width}x{height}.")
        pair = padded_pair(first, second, _MULTIPLE).to(self._device)
        half = torch.full((1, 1, 1, 1), 0.5, device=self._device)
        with torch.inference_mode():
            middle = self._model(pair[:1], pair[1:], half, scale_factor=1.0, eval=True)["imgt_pred"][0]
        top, left = (-height % _MULTIPLE) // 2, (-width % _MULTIPLE) // 2
        cropped = middle[:, top : top + height, left : left + width].permute(1, 2, 0) * 255.0
        return cropped.float().cpu().numpy().clip(0, 255).astype(np.uint8)


def amt_module() -> ModuleType:
    """The file of vbench that defines AMT-S.

    vbench's own ``__init__`` imports all its measures, for which it pins packages of 2023; it is left out, so that
    ``pip install --no-deps vbench`` is enough.

    Raises:
        UnavailableError: vbench is not installed, or another than known.
    """
    spec = find_spec("vbench")
    if spec is None or not spec.submodule_search_locations:
        raise UnavailableError("AMT-S is defined in the package vbench: pip install --no-deps vbench.")
    bare = ModuleType("vbench")
    bare.__path__ = list(spec.submodule_search_locations)
    before = sys.modules.get("vbench")
    sys.modules["vbench"] = before or bare
    try:
        with unavailable("vbench's AMT-S cannot be imported", "install vbench 0.1.5"):
            return importlib.import_module(_MODULE)
    finally:
        if before is None:
            del sys.modules["vbench"]
