"""What torch can do here, asked in a process of its own: importing it costs the parent seconds and memory."""

from __future__ import annotations

from typing import Any

from . import ProgressCallback, Run


class TorchProbe:
    """``load`` tells the version and whether there is a CUDA device; there is nothing to run."""

    def load(self, report: ProgressCallback) -> dict[str, Any]:
        import torch

        return {"torch": torch.__version__, "cuda": torch.cuda.is_available()}

    def run(self, number: int, report: ProgressCallback) -> Run:
        return {"seconds": 0.0, "parts": {}, "device_seconds": None}

    def output(self, path: str, report: ProgressCallback) -> None:
        raise NotImplementedError("a probe makes nothing")
