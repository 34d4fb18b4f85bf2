"""A call on an NVIDIA GPU: memory plan, noise, loop and decoder; one call of the process at a time."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import UserError
from ...kernels.cuda.sources import CALL_KERNELS
from ...kernels.ddim import SchedulerConfig
from ...kernels.guidance import BRANCHES
from ...kernels.noise import base_noise_shape, mix_noise
from ..bundle.manifest import STAGES
from ..call_queue import CallQueue, CancelToken
from ..loop.denoise import Decoded, FrameInitPlan, Guidance, Latents, OnStep, fade
from ..request.request import Request
from ..request.settings import FramesCallback
from ..stages import Stages
from ..text import Texts
from ..timings import Timings
from . import entry
from .denoise import DeviceLoop, DeviceNoise
from .device_session import DeviceSession
from .kept import Kept
from .kernels import GpuKernels
from .memory import DeviceArray, GpuMemory
from .options import GpuOptions
from .preflight import Need, Plan, frames_at_once, plan
from .unet_on_device import DeviceUNet
from .vae_decode import DeviceDecoder

_log = logging.getLogger("consisti2v_rt")
_memory_log = logging.getLogger("consisti2v_rt.memory")
"""The preflight's line; the command line shows it."""

_CALLS = CallQueue()
"""All calls of the process: they share the GPU's stream, its scratch block and the graphs captured on them."""
CLIP_STREAMS = 1 << 16
"""Philox streams of a clip: more than any number of steps."""


class GpuExecutor:
    """An :class:`~..executor.Executor` on one GPU; buffers and graphs are kept between calls.

    Args:
        options: memory, noise, graph.
    """

    def __init__(self, stages: Stages, scheduler: SchedulerConfig, options: GpuOptions) -> None:
        self._gpu, _, self._turns = entry.shared()
        self.stages, self._scheduler, self.options = stages, scheduler, options
        self._memory, self._kernels = GpuMemory(self._gpu), GpuKernels(self._gpu, stages.bundle)
        self.loop = DeviceLoop(self._gpu, self._kernels, stages.check_cancelled, use_graph=options.cuda_graph)
        self._plan = Kept[Plan]()
        self._unet = Kept[DeviceUNet]()
        self._decoder = Kept[DeviceDecoder]()
        self._free_before = 0
        self._clip = 0

    @contextmanager
    def hold(self, token: CancelToken) -> Iterator[Callable[[], None]]:
        with _CALLS.turn(token):
            # First, so that a cancellation from here on is not taken back.
            self.stages.resume()
            with token.listening(self.stages.cancel):
                yield self.stages.cancel

    def prepare(self, request: Request, timings: Timings) -> None:
        self._gpu.make_current()
        settings = request.settings
        self._request, self._timings, self._clip = request, timings, 0
        self._shape = self.stages.clip_shape(request.videos, settings)
        rows, shallow = request.videos * BRANCHES[settings.guidance], settings.cache_interval > 1
        # Without the frames of a decoder's run, which the plan settles.
        dims = self.stages.dims(self._shape, BRANCHES[settings.guidance]) | {"frames": 1}
        key = (tuple(sorted(dims.items())), rows, shallow)
        low_vram = self._plan.get(key, lambda: self._plan_memory(dims, rows, shallow)).low_vram
        if low_vram and shallow:
            raise UserError(
                "cache_interval above 1 needs two U-Nets on the GPU, and with --low-vram one stage is there at a time: "
                "leave it at 1."
            )

        # One that cannot be loaded is found before the first step.
        self._kernels.load(*CALL_KERNELS)

    def _plan_memory(self, dims: dict[str, int], rows: int, shallow: bool) -> Plan:
        """See that these sizes fit."""
        free, total = self._gpu.free_and_total()
        # What this object holds already is its own to use.
        self._free_before = free = max(free, self._free_before)
        stages = (*STAGES, "unet_shallow") if shallow else STAGES

        def need_of(frames: int) -> Need:
            return entry.need(self.stages.bundle, self.stages.choice, stages, dims | {"frames": frames}, rows)

        image = 3 * dims["height"] * dims["width"] * 4
        self.stages.frames_at_once, need = frames_at_once(need_of, image, free, self.options.low_vram)
        made = plan(need, free, total, self.options.low_vram)
        _memory_log.info("%s", made.message)
        if made.warning:
            _log.warning("%s", made.warning)
        # All sessions of a process take turns as soon as one object has to.
        self._turns.exclusive = self._turns.exclusive or made.low_vram
        return made

    def memory_report(self) -> dict[str, Any]:
        """Bytes of the GPU's memory: all of it, free before anything was loaded, free now, and the plan."""
        free, total = self._gpu.free_and_total()
        made = None if self._plan.value is None else dataclasses.asdict(self._plan.value)
        return {"total": total, "free_before": self._free_before, "free": free, "plan": made}

    # -- noise ---------------------------------------------------------------------------------------------------------

    def initial_noise(self, clip: int) -> Latents | DeviceArray:
        """On the host in the published order or, with `device_noise`, from the Philox kernel."""
        settings, shape = self._request.settings, self._shape
        kind, alpha = settings.noise_sampling_method, settings.noise_alpha
        base_shape = base_noise_shape(kind, shape)
        if not self.options.device_noise:
            base, drawn = self._request.streams.noise(base_shape, shape)
            return mix_noise(kind, base, drawn, alpha)
        independent = self._draw(shape, clip, 1)
        if base_shape is None:
            return independent
        # Mixed in place, as numbers: see kernels/noise.py.
        numbers = {
            "kept": math.sqrt(alpha**2 / (1 + alpha**2)),
            "fresh": math.sqrt(1 / (1 + alpha**2)),
            "planes": shape[0] * shape[1],
            "frames": shape[2],
            "area": shape[3] * shape[4],
        }
        if kind == "pyoco_progressive":
            numbers["base_frames"] = base_shape[2]
        base_noise = self._draw(base_shape, clip, 0)
        self._kernels.launch(f"mix_noise_{kind}", base=base_noise, independent=independent, **numbers)
        return independent

    def _draw(self, shape: tuple[int, ...], clip: int, stream: int) -> DeviceArray:
        """Standard normal numbers [videos, ...] of a clip's Philox stream."""
        array = self._memory.empty(shape, "float32")
        self._kernels.launch(
            "philox_normal",
            normals=array,
            seeds=self._memory.upload(np.array(self._seeds(), np.uint64)),
            step=None,
            draw=clip * CLIP_STREAMS + stream,
            videos=shape[0],
            elements=math.prod(shape[1:]),
        )
        return array

    def _seeds(self) -> list[int]:
        seed = self._request.settings.seed
        assert seed is not None
        return video_seeds(seed, self._request.videos)

    # -- loop and decoder ----------------------------------------------------------------------------------------------

    def denoise(
        self, texts: Texts, static: Latents | DeviceArray, noise: Latents | DeviceArray, on_step: OnStep | None
    ) -> DeviceArray:
        request, settings, timings = self._request, self._request.settings, self._timings
        with timings.measure("load"):
            # One that does not load is found before the loop, not after it.
            self.stages.session("vae_decoder", self._shape)
            unet = self._unet_for(texts)
        fresh = DeviceNoise(self._clip * CLIP_STREAMS, self._seeds()) if self.options.device_noise else None
        self._clip += 1
        with timings.measure("loop"):
            return self.loop.denoise_clip(
                unet,
                static if isinstance(static, DeviceArray) else static[:, :, :1],
                static,
                noise,
                table=request.table,
                guidance=Guidance.of(settings),
                frame_init_plan=FrameInitPlan.of(settings, self._scheduler, self._shape),
                draw_noise=request.streams.randn if fresh is None else fresh,
                on_step=on_step,
                timings=timings,
            )

    def _unet_for(self, texts: Texts) -> DeviceUNet:
        """The U-Net over all branches and videos; its buffers are kept while their numbers stay."""
        settings, interval = self._request.settings, self._request.settings.cache_interval
        rows = self.stages.unet_rows(settings, len(texts))
        session = self.stages.session("unet", self._shape, rows)
        shallow = self.stages.session("unet_shallow", self._shape, rows) if interval > 1 else None
        assert isinstance(session, DeviceSession) and isinstance(shallow, DeviceSession | None)
        numbers = (len(texts), len(texts[0]))
        unet = self._unet.get(
            (session, tuple(sorted(session.dims.items())), *numbers, shallow, interval),
            lambda: DeviceUNet(self._gpu, self._kernels, session, *numbers, shallow, interval),
        )
        unet.set_texts(texts, settings.frame_stride)
        return unet

    def next_start(self, clip: DeviceArray) -> DeviceArray:
        videos, channels, frames, height, width = self._shape
        start = self._memory.empty((videos, channels, 1, height, width), "float32")
        for video in range(videos):
            row = (video + 1) * frames - self._request.settings.overlap
            self._memory.copy(start[video : video + 1], clip[row : row + 1])
        return start

    def decode(self, clips: Sequence[DeviceArray], on_frames: FramesCallback | None) -> Decoded:
        """In chunks of the decoder's batch; one whose numbers are not all finite is decoded again in float32."""
        videos, stages = self._request.videos, self.stages
        with self._timings.measure("vae_decoder"):
            session = stages.session("vae_decoder", self._shape)
            decoder = self._decoder_of(session) if isinstance(session, DeviceSession) else None
            joined = self._join(clips, 0 if decoder is None else decoder.batch)
            count = joined.shape[0] - (0 if decoder is None else decoder.batch)
            rows = self._memory.download(joined[:count])
            latents = np.ascontiguousarray(rows.reshape(videos, -1, *rows.shape[1:]).swapaxes(1, 2))
            if not np.isfinite(latents).all():
                raise UserError(
                    "the denoised latents are not finite: try another --precision, and check the bundle with "
                    "'consisti2v inspect'."
                )
            if decoder is None:
                # It overflowed before, and runs in float32 on the processor from then on.
                frames = stages.decode_frames(self._shape, latents, on_frames)
            else:
                frames = decoder.decode(joined, videos, on_frames, self._decode_again)
        for used in stages.sessions.values():
            if isinstance(used, DeviceSession):
                used.finished()
        return Decoded(frames, latents)

    def _join(self, clips: Sequence[DeviceArray], more: int) -> DeviceArray:
        """Clips -> [videos * frames + more, c, h, w], the rows behind the last frame zero; see :func:`join_clips`."""
        videos, channels, frames, height, width = self._shape
        overlap, total = self._request.settings.overlap, self._request.settings.total_frames
        joined = self._memory.zeros((videos * total + more, channels, height, width), "float32")
        for video in range(videos):
            place = video * total
            for number, clip in enumerate(clips):
                first, last = video * frames + (overlap if number else 0), (video + 1) * frames
                if number and overlap > 1:
                    # A few frames of latents: not worth a kernel.
                    shared = joined[place - overlap : place]
                    both = self._memory.download(shared), self._memory.download(clip[first - overlap : first])
                    self._memory.upload(fade(*both, axis=0), shared)
                self._memory.copy(joined[place : place + last - first], clip[first:last])
                place += last - first
        return joined

    def _decoder_of(self, session: DeviceSession) -> DeviceDecoder:
        return self._decoder.get(
            (session, tuple(sorted(session.dims.items()))),
            lambda: DeviceDecoder(
                self._gpu, self._kernels, session, self.stages.check_cancelled, use_graph=self.options.cuda_graph
            ),
        )

    def _decode_again(self, frames: Latents) -> NDArray[np.uint8]:
        """Latents [n, c, h, w] whose decoded frames on the GPU are not finite -> uint8 [n, height, width, 3]."""
        self.stages.use_full_precision("vae_decoder", self._shape)
        return np.stack([self.stages.decode_frame(self._shape, frame) for frame in frames])

    def release(self) -> None:
        """Weights too, which other models on this GPU take turns with."""
        for session in self.stages.sessions.values():
            if isinstance(session, DeviceSession):
                session.release()
        self.stages.sessions.clear()
        self._unet, self._decoder = Kept(), Kept()


def video_seeds(seed: int | tuple[int, ...], videos: int) -> list[int]:
    """A Philox seed per video: those given, or consecutive ones from a single one."""
    if isinstance(seed, tuple):
        return [int(s) % 2**64 for s in seed]
    return [(int(seed) + video) % 2**64 for video in range(videos)]
