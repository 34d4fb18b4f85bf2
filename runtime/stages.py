"""The stages of a bundle, loaded at first use and kept; a VAE that overflows in half precision runs in float32."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from ..errors import CancelledError
from ..kernels.vae import frames_to_uint8
from .backends import Choice, load_in_full_precision
from .bundle.bundle import Bundle
from .bundle.manifest import ModelSpec
from .loop.denoise import Latents
from .request.settings import FramesCallback, ResolvedSettings
from .session import Array, Session
from .stage_failure import check_finite, is_finite, not_finite, stage_failures
from .text import PromptTokenizer, TextConditioner

_log = logging.getLogger("consisti2v_rt")


class Stages:
    """Text encoder, conditioning, VAE and U-Net of a bundle behind their sessions.

    Args:
        choice: the backend and precision they run in.
        threads: processor threads; None: one per physical core.
    """

    def __init__(self, bundle: Bundle, choice: Choice, threads: int | None) -> None:
        self.bundle, self.choice, self._threads = bundle, choice, threads
        self.sessions: dict[str, Session] = {}
        self.text = TextConditioner(PromptTokenizer(bundle), choice.precision)
        self._overflowed: set[str] = set()
        """VAE stages that run in float32 because their half-precision output was not finite."""
        self._cancelled = False
        self.frames_at_once = 1
        """Frames of one run of a decoder that leaves them open. On the processor more are not faster."""

    def resume(self) -> None:
        """Take a cancellation back."""
        self._cancelled = False
        for session in self.sessions.values():
            session.resume()

    def cancel(self) -> None:
        """End a run in another thread, and every one to come."""
        self._cancelled = True
        for session in list(self.sessions.values()):
            session.cancel()

    def check_cancelled(self) -> None:
        """Raise :class:`CancelledError` after :meth:`cancel`."""
        if self._cancelled:
            raise CancelledError

    def session(self, stage: str, clip_shape: tuple[int, ...], branches: int = 1) -> Session:
        """The stage's session, loaded at first use, its buffers fitting the clip."""
        dims = self.dims(clip_shape, branches) | ({"frames": 1} if stage in self._overflowed else {})
        title = self.choice.backend.title
        if stage not in self.sessions:
            with stage_failures(stage, title):
                self.sessions[stage] = self.choice.load(self.bundle, stage, dims, self._threads)
        # A session that was just loaded did not hear of it.
        self.check_cancelled()
        with stage_failures(stage, title):
            self.sessions[stage].allocate(dims)
        return self.sessions[stage]

    def dims(self, clip_shape: tuple[int, ...], branches: int) -> dict[str, int]:
        """Sizes of the stages' dynamic dimensions, by name."""
        model = self.bundle.manifest.model
        height, width = clip_shape[-2:]
        return {
            # Independent rows: with a free batch one video's branches run together, whatever the number of videos.
            "rows": model.rows or branches,
            "frames": self.frames_at_once,
            "latent_height": height,
            "latent_width": width,
            "height": height * model.vae_scale_factor,
            "width": width * model.vae_scale_factor,
        }

    def clip_shape(self, videos: int, settings: ResolvedSettings) -> tuple[int, ...]:
        """Of a clip's latents, [videos, c, frames, h, w]."""
        return clip_shape(self.bundle.manifest.model, videos, settings)

    def unet_rows(self, settings: ResolvedSettings, branches: int) -> int:
        """Rows of one U-Net run."""
        return 1 if settings.guidance_batch == "split" else branches

    def decode_frames(
        self, clip_shape: tuple[int, ...], latents: Latents, on_frames: FramesCallback | None
    ) -> NDArray[np.uint8]:
        """Latents [videos, c, frames, h, w] -> uint8 [videos, frames, height, width, 3], one frame at a time as
        published; `on_frames` gets each.
        """
        videos = []
        for index, video in enumerate(latents):
            frames: list[NDArray[np.uint8]] = []
            for frame in video.transpose(1, 0, 2, 3):
                frames.append(self.decode_frame(clip_shape, frame))
                if on_frames is not None:
                    on_frames(index, len(frames) - 1, frames[-1][None])
            videos.append(np.stack(frames))
        return np.stack(videos)

    def decode_frame(self, clip_shape: tuple[int, ...], frame: Latents) -> NDArray[np.uint8]:
        """Latents [c, h, w] -> uint8 [height, width, 3].

        Raises:
            UserError: the decoder's output is not finite, in float32 either.
        """
        return frames_to_uint8(self.run_vae("vae_decoder", clip_shape, frame)["image"])[0]

    def run_vae(self, stage: str, clip_shape: tuple[int, ...], value: Latents) -> Mapping[str, Array]:
        """Outputs of a VAE stage for one image or frame, valid until its next run.

        Half precision overflows in the VAE of Stable Diffusion on some pictures (values above 65504), which shows as
        black frames: the stage then runs in float32, from there on.
        """
        session = self.session(stage, clip_shape)
        name = next(iter(session.inputs))
        session.inputs[name][0] = value
        session.run()
        if not all(is_finite(output) for output in session.outputs.values()):
            session = self.use_full_precision(stage, clip_shape)
            session.inputs[name][0] = value
            session.run()
            check_finite(stage, "fp32", session.outputs.values())
        return session.outputs

    def use_full_precision(self, stage: str, clip_shape: tuple[int, ...]) -> Session:
        """The stage in float32, for the rest of this object's life; says so once."""
        precision = self.choice.precision
        if precision == "fp32":
            raise not_finite(stage, "fp32")
        if stage not in self._overflowed:
            dims = self.dims(clip_shape, 1) | {"frames": 1}
            session, where = load_in_full_precision(self.bundle, self.choice, stage, dims, self._threads)
            # The half-precision session goes: its memory may be needed.
            self.sessions[stage] = session
            self._overflowed.add(stage)
            _log.warning(
                "stage %s produced values that are not finite in %s: it runs in %s from now on", stage, precision, where
            )
        return self.session(stage, clip_shape)


def clip_shape(model: ModelSpec, videos: int, settings: ResolvedSettings) -> tuple[int, ...]:
    """Of a clip's latents, [videos, c, frames, h, w]."""
    assert settings.height is not None and settings.width is not None
    factor = model.vae_scale_factor
    return (videos, model.latent_channels, model.frames, settings.height // factor, settings.width // factor)
