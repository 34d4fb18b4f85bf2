"""The U-Net session behind the loop: any number of branches and videos over a session of fixed batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from ...errors import UserError
from ...kernels.guidance import BRANCHES
from ..bundle.manifest import Manifest
from ..request.settings import ResolvedSettings
from ..session import Session
from ..stage_failure import check_finite, is_finite
from ..text import Texts
from ..timings import Timings
from .denoise import Latents
from .feature_cache import FeatureCache


class BatchedUNet:
    """A :class:`NoisePredictor` over a session.

    Branches and videos are rows, branch-major as in the published batch, and independent of each other. Where there
    are more rows than the session's batch, they run in turn; where the last turn is not full, its last row is repeated.

    Args:
        session: the U-Net stage.
        texts: for each branch and video, the conditioning's outputs ``{name: [1, heads, 77, d]}``.
        frame_stride: of all rows; ignored by a U-Net without that input.
        timings: the session's own time is counted as "unet".
        resize: gives the session with another batch, where its batch is free. Steps without guidance then run rows of
            one, so that no row is spent on padding. None: the batch is fixed.
        cache: which steps reuse the deep features of an earlier one; None: none.
        precision: what the session runs in; an error about values that are not finite names it.
    """

    def __init__(
        self,
        session: Session,
        texts: Texts,
        frame_stride: int,
        timings: Timings,
        resize: Callable[[int], Session] | None = None,
        cache: FeatureCache | None = None,
        precision: str = "fp32",
    ) -> None:
        self._precision = precision
        self._session, self._resize, self._timings, self._cache = session, resize, timings, cache
        self._frame_stride = frame_stride
        self._prompts = texts[-1:]
        self._videos = len(texts[0])
        self._guided = _MicroBatches(texts, session.inputs["sample"].shape[0])
        self._prompt_alone = self._guided if len(texts) == 1 else None
        self._first_frames: Latents | None = None
        self._bound: dict[int, tuple[_MicroBatches, int]] = {}
        self._prepare(session)

    def start(self, first_frames: Latents) -> None:
        self._first_frames = first_frames
        self._guided.set_first_frames(first_frames)
        if self._prompt_alone is not None:
            self._prompt_alone.set_first_frames(first_frames[-1:])
        self._bound.clear()
        if self._cache is not None:
            self._cache.clear()

    def predict(self, sample: Latents, timestep: int, guided: bool = True) -> Latents:
        if not is_finite(sample):
            raise UserError(
                "the latents are no longer finite (NaN or infinity): lower the guidance scales, or take more steps."
            )
        micro_batches = self._guided if guided else self._unguided()
        if self._resize is not None and self._session.inputs["sample"].shape[0] != micro_batches.batch:
            self._session = self._resize(micro_batches.batch)
            self._prepare(self._session)
        session, cache = self._session, self._cache
        reuse = cache is not None and cache.count_step(micro_batches)
        if cache is not None and reuse:
            session = cache.load(micro_batches.batch)
            if self._bound.get(id(session), (None, 0))[0] is not micro_batches:
                self._prepare(session)
        session.inputs["timestep"][...] = timestep
        preds = np.empty((micro_batches.count, *sample.shape[1:]), np.float32)
        for number, rows in enumerate(micro_batches.rows):
            self._bind(session, micro_batches, number)
            if cache is not None and reuse:
                session.bind_input("deep_features", cache.features[number])
            np.take(sample, [row % self._videos for row in rows], axis=0, out=session.inputs["sample"])
            with self._timings.measure("unet"):
                session.run()
            check_finite("unet", self._precision, [session.outputs["noise_pred"]])
            if cache is not None and not reuse:
                cache.keep(session.outputs["deep_features"], alone=len(micro_batches.rows) == 1)
            first = number * micro_batches.batch
            wanted = min(micro_batches.batch, micro_batches.count - first)
            preds[first : first + wanted] = session.outputs["noise_pred"][:wanted]
        return preds.reshape(-1, self._videos, *sample.shape[1:])

    def _unguided(self) -> _MicroBatches:
        """The prompt's rows alone, made when a step first asks for them."""
        if self._prompt_alone is None:
            assert self._first_frames is not None
            self._prompt_alone = _MicroBatches(self._prompts, self._guided.batch if self._resize is None else 1)
            self._prompt_alone.set_first_frames(self._first_frames[-1:])
        return self._prompt_alone

    def _prepare(self, session: Session) -> None:
        """Write what stays the same; a session that was resized has new buffers."""
        if "frame_stride" in session.inputs:
            session.inputs["frame_stride"][...] = self._frame_stride
        self._bound.pop(id(session), None)

    def _bind(self, session: Session, micro_batches: _MicroBatches, number: int) -> None:
        """Point a session at a turn's texts and first frames; nothing is copied."""
        if self._bound.get(id(session)) == (micro_batches, number):
            return
        for name, array in micro_batches.texts[number].items():
            # A shallow step reads the text of its own layers only.
            if name in session.inputs:
                session.bind_input(name, array)
        session.bind_input("first_frame_latents", micro_batches.first_frames[number])
        self._bound[id(session)] = (micro_batches, number)


def batch_forwards(settings: ResolvedSettings, videos: int, manifest: Manifest) -> int:
    """U-Net forwards of one row that a call asks for, rows that fill up a fixed batch included."""
    branches, batch = BRANCHES[settings.guidance], manifest.model.rows or 1
    guided, alone = (-(-rows // batch) * batch for rows in (branches * videos, videos))
    guided_steps = len(settings.guided_steps)
    steps = guided_steps * guided + (settings.num_inference_steps - guided_steps) * alone
    return steps * settings.autoregress_steps


def guidance_saving(settings: ResolvedSettings, videos: int, manifest: Manifest) -> int | None:
    """Row forwards that the guidance interval saves; None where there is no interval, or nothing to guide.

    0 where the bundle's fixed batch holds all branches of all videos: the prompt's branch alone then costs as much.
    """
    everywhere = replace(settings, guidance_interval=(0.0, 1.0))
    if settings.guidance == "none" or settings.guided_steps == everywhere.guided_steps:
        return None
    return batch_forwards(everywhere, videos, manifest) - batch_forwards(settings, videos, manifest)


class _MicroBatches:
    """Branches and videos as rows, cut into turns of the session's batch."""

    def __init__(self, texts: Texts, batch: int) -> None:
        flat = [text for branch in texts for text in branch]
        self.batch, self.count = batch, len(flat)
        padded = [min(row, self.count - 1) for row in range(-(-self.count // batch) * batch)]
        self.rows = [padded[i : i + batch] for i in range(0, len(padded), batch)]
        self.texts = [
            {name: np.ascontiguousarray(np.concatenate([flat[row][name] for row in rows])) for name in flat[0]}
            for rows in self.rows
        ]
        self.first_frames: list[Latents] = []

    def set_first_frames(self, first_frames: Latents) -> None:
        """[branches, videos, c, 1, h, w]."""
        flat = first_frames.reshape(-1, *first_frames.shape[2:])
        self.first_frames = [np.ascontiguousarray(flat[rows]) for rows in self.rows]
