"""The U-Net as the device loop sees it: branches and videos as rows of buffers that stay on the GPU.

Rows are branch-major and independent, as in ``runtime/loop/batches.py``. Where there are more rows than the session's
batch they run in turns, each turn reading and writing its own part of the same buffers: nothing is copied.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import numpy as np

from ...errors import UserError
from ..loop.feature_cache import CachePolicy
from ..text import Texts
from .device import Gpu
from .device_session import DeviceSession
from .kernels import ELEMENT_SUFFIX, GpuKernels
from .memory import DeviceArray, GpuMemory

_ALIGNMENT = 256
"""Bytes, of the memory an engine reads and writes."""


class DeviceUNet:
    """Buffers of all rows, and the turns that fill them.

    Args:
        gpu, kernels: where and with what.
        session: the U-Net stage; its batch is a turn's size.
        branches, videos: guidance branches of a step, and videos of the call.
        shallow: the shallow step of feature caching; None: every step is a whole one.
        cache_interval: every how many steps a whole one.
    """

    def __init__(
        self,
        gpu: Gpu,
        kernels: GpuKernels,
        session: DeviceSession,
        branches: int,
        videos: int,
        shallow: DeviceSession | None = None,
        cache_interval: int = 1,
    ) -> None:
        self._shallow, self.cache = shallow, CachePolicy(cache_interval)
        self._kernels, self.memory = kernels, GpuMemory(gpu)
        self.branches, self.videos = branches, videos
        self._session = session
        sample, prediction = session.device_inputs["sample"], session.device_outputs["noise_pred"]
        if sample.dtype != prediction.dtype:
            raise UserError(
                f"the U-Net reads {sample.dtype} and writes {prediction.dtype}: build its engine again with this "
                "version."
            )
        self.suffix = ELEMENT_SUFFIX[sample.dtype]
        self._all = _MicroBatches(branches * videos, sample.shape[0])
        # Zeros, so that the rows that fill up a turn are numbers.
        self.rows = self.memory.zeros((self._all.padded, *sample.shape[1:]), sample.dtype)
        self.predictions = self.memory.zeros((self._all.padded, *prediction.shape[1:]), prediction.dtype)
        frame = session.device_inputs["first_frame_latents"]
        # The prompt's rows begin in the middle and may fill a turn up with rows behind the last.
        behind = self._all.count + self._all.batch
        self.first_frames = self.memory.zeros((behind, *frame.shape[1:]), frame.dtype)
        self._frame_suffix = ELEMENT_SUFFIX[frame.dtype]
        self.timestep = self.memory.zeros((1,), "int64")
        self._guided = self._row_set(session, self._all, 0)
        self._alone: _BatchedSession | None = self._guided if branches == 1 else None
        self._texts: tuple[Texts, int] | None = None
        self._checked: set[Any] = set()

    def _prompt_rows(self) -> _BatchedSession:
        """The prompt's rows, the last ones, for steps without guidance; in a batch of their own where there is one.

        Made when a step first needs them: a context for another batch takes memory and time to compile.
        """
        if self._alone is None:
            self._alone = self._make_prompt_rows()
            if self._texts is not None:
                self._alone.set_texts(self.memory, *self._texts)
        return self._alone

    def _make_prompt_rows(self) -> _BatchedSession:
        session, first = self._session, (self.branches - 1) * self.videos
        batch = session.device_inputs["sample"].shape[0]
        if batch > self.videos and "rows" in session.dims:
            # Where no such batch was built, a turn of the larger one does it, with rows to spare.
            with suppress(UserError):
                session = session.with_dims({**session.dims, "rows": self.videos})
        return self._row_set(session, _MicroBatches(self.videos, session.device_inputs["sample"].shape[0]), first)

    def _row_set(self, session: DeviceSession, micro_batches: _MicroBatches, first: int) -> _BatchedSession:
        shallow = self._shallow
        if shallow is not None and shallow.device_inputs["sample"].shape[0] != micro_batches.batch:
            shallow = shallow.with_dims({**shallow.dims, "rows": micro_batches.batch})
        return _BatchedSession(self.memory, session, micro_batches, first, shallow)

    def set_texts(self, texts: Texts, frame_stride: int) -> None:
        """Keys and values of every branch and video, and the frame stride of all rows; kept until set again."""
        self._texts = texts, frame_stride
        for rows in (self._guided, self._alone):
            if rows is not None:
                rows.set_texts(self.memory, texts, frame_stride)

    def set_first_frames(self, clean: DeviceArray, noisy: DeviceArray | None) -> None:
        """What each branch sees as frame 0, float32 [videos, c, 1, h, w]: the noisy one in the first branch where it is
        given, the photo's in the others.
        """
        first = 0 if noisy is None else 1
        if noisy is not None:
            self._repeat(noisy, self.first_frames, 1, self._frame_suffix)
        self._repeat(clean, self.first_frames[first * self.videos :], self.branches - first, self._frame_suffix)

    def set_sample(self, latents: DeviceArray) -> None:
        """float32 [videos, c, f-1, h, w] into every branch's rows; the step kernel does it from then on."""
        self._repeat(latents, self.rows, self.branches, self.suffix)

    def _repeat(self, source: DeviceArray, target: DeviceArray, copies: int, suffix: str) -> None:
        elements = int(np.prod(source.shape))
        self._kernels.launch(f"repeat_rows_{suffix}", latents=source, rows=target, copies=copies, elements=elements)

    def enqueue(self, guided: bool, reuse: bool = False) -> None:
        """Predictions of all branches; or, without guidance, of the prompt's branch, into the first `videos` rows.

        With `reuse` by a shallow step, from the deep features of the last whole step of the same kind.
        """
        self._rows(guided).enqueue(self, reuse)

    def prepare(self, guided: bool) -> None:
        """Bring the weights and contexts of a kind of step to the GPU, before its addresses are captured."""
        for session in self._rows(guided).sessions():
            session.prepare()

    def address_version(self, guided: bool) -> tuple[Any, ...]:
        """Changes when a captured step must not be replayed."""
        return tuple(session.address_version for session in self._rows(guided).sessions())

    def was_checked(self, guided: bool, kind: Any) -> bool:
        """Whether a captured step of this kind was compared with the eager one, and no context was made since; after
        :meth:`prepare`.
        """
        return self._check_key(guided, kind) in self._checked

    def set_checked(self, guided: bool, kind: Any) -> None:
        self._checked.add(self._check_key(guided, kind))

    def _check_key(self, guided: bool, kind: Any) -> tuple[Any, ...]:
        return (guided, kind, *(session.context_version for session in self._rows(guided).sessions()))

    def _rows(self, guided: bool) -> _BatchedSession:
        return self._guided if guided else self._prompt_rows()


class _MicroBatches:
    def __init__(self, count: int, batch: int) -> None:
        self.count, self.batch = count, batch
        self.total = -(-count // batch)
        self.padded = self.total * batch


class _BatchedSession:
    """A range of rows and the sessions that run them: the whole step's, and with feature caching the shallow one's."""

    def __init__(
        self,
        memory: GpuMemory,
        session: DeviceSession,
        micro_batches: _MicroBatches,
        first: int,
        shallow: DeviceSession | None,
    ) -> None:
        self._session, self._shallow, self._micro_batches, self._first = session, shallow, micro_batches, first
        self._texts: list[dict[str, DeviceArray]] = []
        self._features: list[DeviceArray] = []
        if shallow is not None:
            features = session.device_outputs["deep_features"]
            self._features = [memory.zeros(features.shape, features.dtype) for _ in range(micro_batches.total)]

    def sessions(self) -> tuple[DeviceSession, ...]:
        return (self._session,) if self._shallow is None else (self._session, self._shallow)

    def set_texts(self, memory: GpuMemory, texts: Texts, frame_stride: int) -> None:
        flat = [text for branch in texts for text in branch]
        last = self._first + self._micro_batches.count - 1
        batch = self._micro_batches.batch
        fresh = not self._texts
        for micro_batch in range(self._micro_batches.total):
            chosen = [min(self._first + micro_batch * batch + row, last) for row in range(batch)]
            arrays = {name: np.concatenate([flat[row][name] for row in chosen]) for name in flat[0]}
            if fresh:
                specs = self._session.device_inputs
                self._texts.append({name: memory.empty(specs[name].shape, specs[name].dtype) for name in arrays})
            for name, array in arrays.items():
                memory.upload(array, self._texts[micro_batch][name])
        for session in (self._session, self._shallow):
            if session is not None and "frame_stride" in session.device_inputs:
                memory.upload(np.array([frame_stride], np.int64), session.device_inputs["frame_stride"])

    def enqueue(self, unet: DeviceUNet, reuse: bool) -> None:
        session, batch = (self._shallow if reuse else self._session), self._micro_batches.batch
        assert session is not None
        session.bind("timestep", unet.timestep)
        for micro_batch in range(self._micro_batches.total):
            for name, array in self._texts[micro_batch].items():
                # A shallow step reads the text of its own layers only.
                if name in session.device_inputs:
                    session.bind(name, array)
            if self._features:
                session.bind("deep_features", self._features[micro_batch])
            # All branches hold the same sample, so the prompt's rows may read from the front.
            part = slice(micro_batch * batch, (micro_batch + 1) * batch)
            start = self._first + micro_batch * batch
            read = {"sample": unet.rows[part], "first_frame_latents": unet.first_frames[start : start + batch]}
            for name, array in read.items():
                _bind_or_copy(unet.memory, session, name, array)
            predictions = unet.predictions[part]
            direct = predictions.address % _ALIGNMENT == 0
            session.bind("noise_pred", predictions if direct else session.device_outputs["noise_pred"])
            session.enqueue()
            if not direct:
                unet.memory.copy(predictions, session.device_outputs["noise_pred"])


def _bind_or_copy(memory: GpuMemory, session: DeviceSession, name: str, array: DeviceArray) -> None:
    """Let the session read a part of a buffer in place, or from its own memory where the part is not aligned."""
    if array.address % _ALIGNMENT:
        memory.copy(session.device_inputs[name], array)
        array = session.device_inputs[name]
    session.bind(name, array)
