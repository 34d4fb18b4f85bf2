"""The loop by itself, on a real GPU too: it needs only a driver and cuda.core."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from consisti2v_rt.errors import UserError
from consisti2v_rt.kernels.ddim import SchedulerConfig
from consisti2v_rt.kernels.frame_init import frame_init, frame_init_mask
from consisti2v_rt.kernels.schedulers import step_table
from consisti2v_rt.runtime.bundle.bundle import Bundle
from consisti2v_rt.runtime.bundle.manifest import TensorSpec
from consisti2v_rt.runtime.gpu.denoise import DeviceLoop
from consisti2v_rt.runtime.gpu.device import open_gpu, probe
from consisti2v_rt.runtime.gpu.device_session import DeviceSession
from consisti2v_rt.runtime.gpu.frame_init import DeviceFrameInit
from consisti2v_rt.runtime.gpu.kernels import GpuKernels
from consisti2v_rt.runtime.gpu.memory import GpuMemory
from consisti2v_rt.runtime.gpu.unet_on_device import DeviceUNet
from consisti2v_rt.runtime.loop.denoise import FrameInitPlan, Guidance, denoise_clip

SHAPE = (1, 4, 16, 16, 16)


class CopyingSession(DeviceSession):
    """A "U-Net" of copies: frame 0's latents over its prediction's first frame, the sample over the others."""

    def __init__(self, gpu: Any, rows: int) -> None:
        video, frame = (rows, 4, 15, 16, 16), (rows, 4, 1, 16, 16)
        inputs = [
            TensorSpec("sample", "float32", video),
            TensorSpec("first_frame_latents", "float32", frame),
            TensorSpec("timestep", "int64", (1,)),
            TensorSpec("text", "float32", (rows, 1)),
        ]
        super().__init__(gpu, inputs, [TensorSpec("noise_pred", "float32", video)])
        self.allocate({})

    def _set_sizes(self, dims: Any) -> None: ...

    def _set_address(self, name: str, array: Any) -> None: ...

    def enqueue(self) -> None:
        bound, stream = self._bound, self._gpu.stream
        self._gpu.copy(bound["noise_pred"].address, bound["sample"].address, bound["sample"].nbytes, stream)
        # The first branch sees other first frames in "both"; its first channel shows that it got them.
        self._gpu.copy(bound["noise_pred"].address, bound["first_frame_latents"].address, 16 * 16 * 4, stream)

    def with_dims(self, dims: Any) -> DeviceSession:
        raise UserError("one batch only.")

    def release(self) -> None: ...

    def prepare(self) -> None: ...

    @property
    def _backend_version(self) -> tuple[int, ...]:
        return ()

    context_version = 0


class CopyingPredictor:
    """The same on the host; rows of all branches in one batch, so that only the first row's first frame is copied."""

    def start(self, first_frames: Any) -> None:
        self._first_frames = first_frames

    def predict(self, sample: Any, timestep: int, guided: bool = True) -> Any:
        branches = len(self._first_frames) if guided else 1
        predictions = np.stack([sample] * branches)
        frames = self._first_frames[0] if guided else self._first_frames[-1]
        predictions[0, 0, 0, 0] = frames[0, 0, 0]
        return predictions


@pytest.fixture(scope="session")
def real_gpu() -> Any:
    if not probe().found:
        pytest.skip(f"needs an NVIDIA GPU: {probe().reason}")
    return open_gpu()


@pytest.mark.gpu
@pytest.mark.parametrize("use_graph", [True, False], ids=["graph", "eager"])
@pytest.mark.parametrize("mode", ["none", "text", "both"])
def test_the_loop_by_itself(real_gpu, demo_bundle, mode, use_graph, relative_l2):
    generator = np.random.default_rng(5)
    first, noise = (generator.standard_normal(s, np.float32) for s in ((1, 4, 1, 16, 16), SHAPE))
    arguments: dict[str, Any] = {
        "table": step_table("dpmpp_2m", SchedulerConfig(), 6, 0.0),
        "guidance": Guidance(mode, 2.0, 1.5, 0.3, range(1, 6)),
        "frame_init_plan": FrameInitPlan(0.1, frame_init_mask("gaussian", *SHAPE[2:], 0.25, 0.25)),
        "draw_noise": lambda shape: np.zeros(shape, np.float32),
    }
    expected = denoise_clip(CopyingPredictor(), first, first, noise, **arguments)
    branches = {"none": 1, "text": 2, "both": 3}[mode]
    kernels = GpuKernels(real_gpu, Bundle.open(demo_bundle, verify=False))
    session = CopyingSession(real_gpu, branches)
    unet = DeviceUNet(real_gpu, kernels, session, branches, 1)
    unet.set_texts([[{"text": np.zeros((1, 1), np.float32)}]] * branches, 3)
    loop = DeviceLoop(real_gpu, kernels, lambda: None, use_graph=use_graph)
    told: list[int] = []
    result = loop.denoise_clip(
        unet, first, first, noise, on_step=lambda step, timestep, latents: told.append(step), **arguments
    )
    frames = GpuMemory(real_gpu).download(result).reshape(1, 16, 4, 16, 16).swapaxes(1, 2)
    assert relative_l2(frames, expected) < 1e-5
    assert told == list(range(6))
    assert set(loop.graph_reasons.values()) == ({""} if use_graph else {"switched off"})


@pytest.mark.gpu
def test_frame_init_through_cufft(real_gpu, demo_bundle, relative_l2):
    pytest.importorskip("cuda.pathfinder")
    generator = np.random.default_rng(6)
    shape = (2, 4, 16, 40, 64)
    static, noise = (generator.standard_normal(s, np.float32) for s in ((2, 4, 1, 40, 64), shape))
    plan = FrameInitPlan(0.0358, frame_init_mask("gaussian", *shape[2:], 0.25, 0.25))
    kernels, memory = GpuKernels(real_gpu, Bundle.open(demo_bundle, verify=False)), GpuMemory(real_gpu)
    device = DeviceFrameInit(real_gpu, kernels, shape)
    latents = memory.empty((2, 4, 15, 40, 64), "float32")
    first = device.initial_latents(static, noise, plan, latents)
    if not device.on_device:
        pytest.skip("cuFFT is not installed")
    expected = frame_init(static, noise, plan.alpha_cumprod, plan.mask)
    assert relative_l2(memory.download(latents), expected[:, :, 1:]) < 1e-6
    assert relative_l2(memory.download(first), expected[:, :, :1]) < 1e-6
