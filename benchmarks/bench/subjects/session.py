"""One U-Net forward of a bundle, in a session of :mod:`consisti2v_rt.runtime.backends`."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from ....runtime.backends import BACKENDS, Choice
from ....runtime.bundle.bundle import Bundle
from ....runtime.gpu.device import open_gpu
from ....runtime.gpu.device_session import DeviceSession
from ....runtime.session import Session
from ..forward_inputs import FRAME_STRIDE, TIMESTEP, load_inputs
from . import ProgressCallback, Run


class SessionForward:
    """The U-Net stage, its text keys and values made once by the conditioning stage of the same backend.

    Args:
        bundle: its folder.
        backend: a name of :data:`BACKENDS`.
        precision: of the graphs.
        inputs: .npz file of :func:`make_inputs`.
        dims: sizes of dynamic dimensions.
        threads: None: as the backend chooses.
    """

    def __init__(
        self, bundle: str, backend: str, precision: str, inputs: str, dims: dict[str, int], threads: int | None = None
    ) -> None:
        # Verified: the record says that the bundle of this manifest is what ran.
        self._bundle = Bundle.open(bundle)
        self._choice = Choice(next(entry for entry in BACKENDS if entry.name == backend), precision, "measured")
        self._inputs, self._dims, self._threads = load_inputs(inputs), dims, threads
        self._session: Session | None = None

    def load(self, report: ProgressCallback) -> dict[str, Any]:
        started = time.perf_counter()
        session = self._choice.load(self._bundle, "unet", self._dims, self._threads)
        seconds = time.perf_counter() - started
        report(0.5)
        conditioning = self._choice.load(self._bundle, "conditioning", self._dims, self._threads)
        for row, embeddings in enumerate(self._inputs["text_embeddings"]):
            conditioning.inputs["text_embeddings"][0] = embeddings
            conditioning.run()
            for name, value in conditioning.outputs.items():
                session.inputs[name][row] = value[0]
        for name in ("sample", "first_frame_latents"):
            session.inputs[name][...] = self._inputs[name]
        session.inputs["timestep"][...] = TIMESTEP
        if "frame_stride" in session.inputs:
            session.inputs["frame_stride"][...] = FRAME_STRIDE
        self._session = session
        return {"seconds": seconds}

    def run(self, number: int, report: ProgressCallback) -> Run:
        """On a GPU only the first run brings the inputs there; the others find them, as in the denoising loop."""
        assert self._session is not None
        device_seconds = None
        started = time.perf_counter()
        if number > 0 and isinstance(self._session, DeviceSession):
            device_seconds = _enqueue_with_events(self._session)
        else:
            self._session.run()
        seconds = time.perf_counter() - started
        return {"seconds": seconds, "parts": {}, "device_seconds": device_seconds}

    def output(self, path: str, report: ProgressCallback) -> None:
        assert self._session is not None
        if isinstance(self._session, DeviceSession):
            self._session.run()
        np.save(path, self._session.outputs["noise_pred"].astype(np.float32))


def _enqueue_with_events(session: DeviceSession) -> float:
    """One run on the GPU's stream, and its seconds by the events before and after it."""
    gpu = open_gpu()
    before = gpu.record(gpu.stream)
    session.enqueue()
    after = gpu.record(gpu.stream)
    after.sync()
    return float(after - before) / 1000
