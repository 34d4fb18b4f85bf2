"""The U-Net session behind the loop: any number of branches and videos over a session of fixed batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from .denoise import Latents
from .session import Array, Session
from .timings import Timings


class UNetRows:
    """A :class:`NoisePredictor` over a session.

    Branches and videos are rows, branch-major as in the published batch, and independent of each other. Where there
    are more rows than the session's batch, they run in turn; where the last turn is not full, its last row is repeated.

    Args:
        session: the U-Net stage.
        texts: for each branch and video, the conditioning's outputs ``{name: [1, heads, 77, d]}``.
        frame_stride: of all rows; ignored by a U-Net without that input.
        timings: the session's own time is counted as "unet".
    """

    def __init__(
        self, session: Session, texts: Sequence[Sequence[Mapping[str, Array]]], frame_stride: int, timings: Timings
    ) -> None:
        self._session = session
        self._timings = timings
        self._branches, self._videos = len(texts), len(texts[0])
        self._batch = session.inputs["sample"].shape[0]
        rows = self._branches * self._videos
        padded = [min(row, rows - 1) for row in range(-(-rows // self._batch) * self._batch)]
        self._turns = [padded[i : i + self._batch] for i in range(0, len(padded), self._batch)]
        flat = [text for branch in texts for text in branch]
        self._texts = [
            {name: np.ascontiguousarray(np.concatenate([flat[row][name] for row in turn])) for name in flat[0]}
            for turn in self._turns
        ]
        if "frame_stride" in session.inputs:
            session.inputs["frame_stride"][...] = frame_stride
        self._first_frames: list[Latents] = []
        self._bound: int | None = None

    def start(self, first_frames: Latents) -> None:
        flat = first_frames.reshape(-1, *first_frames.shape[2:])
        self._first_frames = [np.ascontiguousarray(flat[turn]) for turn in self._turns]
        self._bound = None

    def predict(self, sample: Latents, timestep: int) -> Latents:
        session = self._session
        session.inputs["timestep"][...] = timestep
        preds = np.empty((self._branches * self._videos, *sample.shape[1:]), np.float32)
        for number, turn in enumerate(self._turns):
            self._bind(number)
            np.take(sample, [row % self._videos for row in turn], axis=0, out=session.inputs["sample"])
            with self._timings.measure("unet"):
                session.run()
            first = number * self._batch
            count = min(self._batch, len(preds) - first)
            preds[first : first + count] = session.outputs["noise_pred"][:count]
        return preds.reshape(self._branches, self._videos, *sample.shape[1:])

    def _bind(self, number: int) -> None:
        """Point the session at a turn's texts and first frames; nothing is copied."""
        if self._bound == number:
            return
        for name, array in self._texts[number].items():
            self._session.bind_input(name, array)
        self._session.bind_input("first_frame_latents", self._first_frames[number])
        self._bound = number
