"""One forward of the published formulation in torch, eager or compiled."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from ....errors import UserError
from ....runtime.install import install_hint
from ..forward_inputs import FRAME_STRIDE, TIMESTEP, load_inputs
from . import ProgressCallback, Run

_DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}


class PublishedForward:
    """:class:`consisti2v_rt.benchmarks.published.PublishedUNet` around a bundle's own weights.

    Args:
        inputs: .npz file of :func:`make_inputs`.
        precision: fp32, fp16 or bf16, of weights and activations. In fp32 no product is shortened to TF32.
        device: cpu or cuda.
        compiled: through ``torch.compile`` in its default mode.
        checkpoint: folder in diffusers layout, or hub id, that the bundle was exported from; or:
        random_weights: kind and seed that the bundle was exported with.
        threads: None: as torch chooses.
    """

    def __init__(
        self,
        inputs: str,
        precision: str,
        device: str = "cpu",
        compiled: bool = False,
        checkpoint: str | None = None,
        random_weights: tuple[str, int] | None = None,
        threads: int | None = None,
    ) -> None:
        self._inputs = load_inputs(inputs)
        self._precision, self._device, self._compiled = precision, device, compiled
        self._checkpoint, self._random_weights, self._threads = checkpoint, random_weights, threads
        self._forward: Callable[[], Any] | None = None
        self._noise_pred: Any = None

    def load(self, report: ProgressCallback) -> dict[str, Any]:
        started = time.perf_counter()
        try:
            import torch

            from ...published import PublishedUNet
        except ImportError as error:
            raise UserError(
                f"the published formulation needs {error.name or error}: {install_hint('export')}"
            ) from None
        if self._threads is not None:
            torch.set_num_threads(self._threads)
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False
        dtype = getattr(torch, _DTYPES[self._precision])
        config, weights = self._weights()
        report(0.5)
        with torch.device("meta"):
            unet = PublishedUNet(config)
        unet.load_state_dict({key: value.float() for key, value in weights.items()}, assign=True)
        del weights
        unet = unet.eval().requires_grad_(False).to(device=self._device, dtype=dtype)
        if self._device == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - started
        call: Any = torch.compile(unet) if self._compiled else unet
        tensors = {
            name: torch.from_numpy(value).to(device=self._device, dtype=dtype) for name, value in self._inputs.items()
        }

        def forward() -> Any:
            with torch.no_grad():
                return call(
                    tensors["sample"],
                    TIMESTEP,
                    tensors["text_embeddings"],
                    first_frame_latents=tensors["first_frame_latents"],
                    frame_stride=FRAME_STRIDE,
                )

        self._forward = forward
        return {"seconds": seconds, "torch_threads": torch.get_num_threads()}

    def run(self, number: int, report: ProgressCallback) -> Run:
        assert self._forward is not None
        device_seconds = None
        started = time.perf_counter()
        if self._device == "cuda":
            device_seconds = self._run_with_events()
        else:
            self._noise_pred = self._forward()
        seconds = time.perf_counter() - started
        return {"seconds": seconds, "parts": {}, "device_seconds": device_seconds}

    def output(self, path: str, report: ProgressCallback) -> None:
        np.save(path, self._noise_pred.float().cpu().numpy())

    def _run_with_events(self) -> float:
        import torch

        assert self._forward is not None
        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        before.record()
        self._noise_pred = self._forward()
        after.record()
        after.synchronize()
        return float(before.elapsed_time(after)) / 1000

    def _weights(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """The U-Net's options and state dict, as published."""
        if self._random_weights is not None:
            from ....export.random_model import random_model

            unet = random_model(*self._random_weights).take_unet()
        else:
            from ....export.loading import load_model

            assert self._checkpoint is not None
            unet = load_model(self._checkpoint).take_unet()
        return unet.config.to_dict(), unet.state_dict()
