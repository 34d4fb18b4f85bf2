"""What a generation does on a GPU instead of on the host: the loop, device noise, decoding, and the memory plan."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ...errors import UserError
from ...kernels.guidance import BRANCHES
from ...kernels.noise import base_noise_shape
from ..bundle.bundle import Bundle
from ..bundle.engine_choice import find_engine
from ..bundle.manifest import STAGES
from ..bundle.stage_graphs import stage_graph
from ..call_queue import CallQueue
from ..loop.denoise import Latents
from ..request.request import Request
from ..request.settings import FramesCallback
from ..session import Session
from . import entry
from .denoise import DeviceLoop
from .device import Gpu
from .device_session import DeviceSession
from .kernels import GpuKernels
from .memory import DeviceArray, GpuMemory, SharedScratch, WeightTurns
from .options import GpuOptions
from .preflight import Need, Plan, need_of_engines, need_of_graphs, plan
from .tensorrt_session import MODULES, TensorRTSession
from .unet_on_device import DeviceUNet, Texts
from .vae_decode import DeviceDecoder

if TYPE_CHECKING:
    from ..backends import Choice

_log = logging.getLogger("consisti2v_rt")
_memory_log = logging.getLogger("consisti2v_rt.memory")
"""The preflight's line; the command line shows it."""

_CALLS = CallQueue()
"""All calls of the process: they share the GPU's stream, its scratch block and the graphs captured on them."""
CLIP_STREAMS = 1 << 16
"""Philox streams of a clip: more than any number of steps."""


class GpuGeneration:
    """The device side of an :class:`~..pipeline.ImageToVideo`; kept between calls.

    Args:
        bundle: whose kernels and sizes count.
        choice: what runs the stages, in which precision.
        options: memory, noise, graph.
        machine: GPU, scratch and weights; the process' own where absent.
    """

    def __init__(
        self,
        bundle: Bundle,
        choice: Choice,
        options: GpuOptions,
        machine: tuple[Gpu, SharedScratch, WeightTurns] | None = None,
    ) -> None:
        self._gpu, _, self._turns = machine or entry.shared()
        self._bundle, self._backend, self._precision = bundle, choice.backend.name, choice.precision
        self.options, self.calls = options, _CALLS
        self._memory, self._kernels = GpuMemory(self._gpu), GpuKernels(self._gpu, bundle)
        self.loop = DeviceLoop(self._gpu, self._kernels, use_graph=options.cuda_graph)
        self.plan: Plan | None = None
        self._planned_for: tuple[Any, ...] = ()
        self._unet: tuple[tuple[Any, ...], DeviceUNet] | None = None
        self._decoder: tuple[tuple[Any, ...], DeviceDecoder] | None = None
        self._waiting: list[Latents] = []
        self._seeds: list[int] = []
        self._clip = 0
        self._free_before = self._needed = 0

    def begin(self, dims: Mapping[str, int], request: Request) -> None:
        """At the start of a call: claim the GPU for this thread and, before anything is loaded, see that it fits.

        Args:
            dims: sizes of dynamic dimensions.
            request: its videos, guidance and seeds count.

        Raises:
            UserError: it does not fit.
        """
        self._gpu.make_current()
        seed, rows = request.settings.seed, request.videos * BRANCHES[request.settings.guidance]
        assert seed is not None
        self._seeds, self._clip = video_seeds(seed, request.videos), 0
        low_vram = self._plan_memory(dims, rows, shallow=request.settings.cache_interval > 1)
        if low_vram and request.settings.cache_interval > 1:
            raise UserError(
                "cache_interval above 1 needs two U-Nets on the GPU, and with --low-vram one stage is there at a time: "
                "leave it at 1."
            )

    def _plan_memory(self, dims: Mapping[str, int], rows: int, shallow: bool) -> bool:
        """See that these sizes fit, once for each; whether one stage is on the GPU at a time."""
        sizes = (tuple(sorted(dims.items())), rows, shallow)
        if self.plan is None or self._planned_for != sizes:
            free, total = self._gpu.free_and_total()
            # What this generation holds already is its own to use.
            free = free if self.plan is None else max(free, self._free_before)
            need = self._need((*STAGES, "unet_shallow") if shallow else STAGES, dims, rows)
            self.plan, self._planned_for = plan(need, free, total, self.options.low_vram), sizes
            self._free_before, self._needed = free, need.one_stage if self.plan.low_vram else need.resident
            _memory_log.info("%s", self.plan.told)
            if self.plan.warning:
                _log.warning("%s", self.plan.warning)
            # All sessions of a process take turns as soon as one generation has to.
            self._turns.exclusive = self._turns.exclusive or self.plan.low_vram
        return self.plan.low_vram

    def resume(self) -> None:
        """Forget a cancellation, and what an earlier call left behind; before the next call begins."""
        self.loop.resume()
        self._waiting.clear()
        if self._decoder:
            self._decoder[1].restart()

    def cancel(self) -> None:
        """Stop before the next step, or the next chunk of frames."""
        self.loop.cancel()
        if self._decoder:
            self._decoder[1].cancel()

    def _need(self, stages: tuple[str, ...], dims: Mapping[str, int], rows: int) -> Need:
        if self._backend in MODULES:
            machine = entry.machine(self._backend)
            found = {
                stage: find_engine(self._bundle.manifest, stage, self._backend, self._precision, machine)
                for stage in stages
            }
            return need_of_engines(self._bundle, {s: e for s, e in found.items() if e is not None}, dims, rows)
        graphs = {stage: stage_graph(self._bundle, stage, self._precision) for stage in stages}
        return need_of_graphs(self._bundle, graphs, dims, rows)

    def memory_report(self) -> dict[str, Any]:
        """Bytes of the GPU's memory: all of it, free before anything was loaded, free now, and the plan."""
        free, total = self._gpu.free_and_total()
        plan = None if self.plan is None else dataclasses.asdict(self.plan)
        return {"total": total, "free_before": self._free_before, "free": free, "needed": self._needed, "plan": plan}

    # -- noise ---------------------------------------------------------------------------------------------------------

    def noise(self, kind: str, alpha: float, shape: tuple[int, ...], clip: int) -> DeviceArray:
        """Initial noise [videos, c, f, h, w] from the Philox kernel, mixed over the frames as `kind` says."""
        videos, channels, frames, height, width = shape
        seed_array = self._memory.upload(np.array(self._seeds, np.uint64))

        def draw(drawn: tuple[int, ...], stream: int) -> DeviceArray:
            array = self._memory.empty(drawn, "float32")
            self._kernels.launch(
                "philox_normal",
                normals=array,
                seeds=seed_array,
                step=None,
                draw=clip * CLIP_STREAMS + stream,
                videos=videos,
                elements=math.prod(drawn[1:]),
            )
            return array

        independent = draw(shape, 1)
        base_shape = base_noise_shape(kind, shape)
        if base_shape is None:
            return independent
        # Mixed in place, as numbers: see kernels/noise.py.
        numbers = {
            "kept": math.sqrt(alpha**2 / (1 + alpha**2)),
            "fresh": math.sqrt(1 / (1 + alpha**2)),
            "planes": videos * channels,
            "frames": frames,
            "area": height * width,
        }
        if kind == "pyoco_progressive":
            numbers["base_frames"] = base_shape[2]
        self._kernels.launch(f"mix_noise_{kind}", base=draw(base_shape, 0), independent=independent, **numbers)
        return independent

    # -- U-Net, loop and decoder --------------------------------------------------------------------------------------

    def unet(
        self,
        session: Session,
        texts: Texts,
        frame_stride: int,
        shallow: Session | None = None,
        cache_interval: int = 1,
    ) -> DeviceUNet:
        """The U-Net over all branches and videos; buffers are kept while their numbers stay."""
        assert isinstance(session, DeviceSession) and isinstance(shallow, DeviceSession | None)
        numbers = (len(texts), len(texts[0]))
        key = (id(session), tuple(sorted(session.dims.items())), *numbers, id(shallow), cache_interval)
        if self._unet is None or self._unet[0] != key:
            self._unet = None
            self._unet = (key, DeviceUNet(self._gpu, self._kernels, session, *numbers, shallow, cache_interval))
        self._unet[1].set_texts(texts, frame_stride)
        return self._unet[1]

    def denoise_clip(self, *arguments: Any, **options: Any) -> Latents:
        """As :meth:`DeviceLoop.denoise_clip`; fresh noise from where the initial one came from."""
        if self.options.device_noise:
            options["device_noise"] = (self._clip * CLIP_STREAMS, self._seeds)
            self._clip += 1
        return self.loop.denoise_clip(*arguments, **options)

    def decode(self, session: Session, latents: Latents) -> None:
        """Hand over a clip's frames [videos, c, f, h, w]; decoded at once where the memory allows, else at the end."""
        assert self.plan is not None and isinstance(session, DeviceSession)
        key = (session, session.dims, self.plan.overlap)
        if self._decoder is None or self._decoder[0] != key:
            self._decoder = (key, self._make_decoder(session))
        if self.plan.low_vram:
            self._waiting.append(latents)
        else:
            self._decoder[1].submit(latents)

    def frames(
        self,
        sessions: Iterable[Any],
        on_frames: FramesCallback | None,
        decode_again: Callable[[Latents], NDArray[np.uint8]],
    ) -> NDArray[np.uint8]:
        """All frames handed over: uint8 [videos, frames, height, width, 3]; the end of a generation by `sessions`.

        Args:
            decode_again: latents [n, c, h, w] -> frames, for those that the decoder here gives no finite numbers for.
        """
        assert self._decoder is not None
        for latents in self._waiting:
            self._decoder[1].submit(latents)
        self._waiting.clear()
        frames = self._decoder[1].collect(on_frames, decode_again)
        for session in list(sessions):
            if isinstance(session, DeviceSession):
                session.finished()
        return frames

    def _make_decoder(self, session: DeviceSession) -> DeviceDecoder:
        assert self.plan is not None
        if self.plan.overlap and isinstance(session, TensorRTSession):
            own = session.on_scratch(SharedScratch(self._gpu))
            return DeviceDecoder(self._gpu, self._kernels, own, self._gpu.new_stream())
        return DeviceDecoder(self._gpu, self._kernels, session)


def video_seeds(seed: int | tuple[int, ...], videos: int) -> list[int]:
    """A Philox seed per video: those given, or consecutive ones from a single one."""
    if isinstance(seed, tuple):
        return [int(s) % 2**64 for s in seed]
    return [(int(seed) + video) % 2**64 for video in range(videos)]
