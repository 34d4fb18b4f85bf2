"""The work of one denoising step on the device: U-Net, guidance, the sampler's linear map, the step counter.

Timesteps, matrices and guidance weights of the whole run lie in tables on the GPU; the kernels read the row that a
counter there points at. So every step is the same work on the same memory, and one graph serves all of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from ...kernels.cuda.sources import MOMENT_BLOCKS
from ...kernels.guidance import guidance_weights
from ...kernels.sampler import StepTable
from ..loop.denoise import Guidance
from .device import Gpu
from .kernels import GpuKernels
from .memory import DeviceArray, GpuMemory
from .step_graph import StepGraph, capture_and_check, capture_step
from .unet_on_device import DeviceUNet

FRESH_NOISE = 2
"""First of the Philox streams of fresh noise; the step's number is added on the device."""


@dataclass(frozen=True)
class StepKey:
    """What is fixed in a captured step: another key means other buffers and another graph."""

    steps: int
    states: int
    shape: tuple[int, ...]
    """Of the latents being denoised, [videos, c, f-1, h, w]."""
    rescale: float
    needs_noise: bool
    device_noise_stream: int | None
    """Offset of the Philox streams where fresh noise is drawn on the device; None: it comes from the host."""


class StepWork:
    """Buffers of a run and the step over them.

    Args:
        gpu, kernels, unet: where, with what, and what predicts.
        key: sizes, and the numbers that a capture fixes.
        use_graph: False never captures.
    """

    def __init__(self, gpu: Gpu, kernels: GpuKernels, unet: DeviceUNet, key: StepKey, use_graph: bool) -> None:
        self._gpu, self._kernels, self._unet, self._use_graph = gpu, kernels, unet, use_graph
        self.key = key
        self.memory = memory = GpuMemory(gpu)
        videos = key.shape[0]
        self.state = memory.empty((key.states, *key.shape), "float32")
        self._step = memory.empty((1,), "int32")
        self._timesteps = memory.empty((key.steps,), "int64")
        self._matrices = memory.empty((key.steps, key.states, key.states + 2), "float32")
        self._weights = memory.empty((key.steps, unet.branches), "float32")
        self.noise = memory.zeros(key.shape, "float32") if key.needs_noise else None
        self._seeds = memory.zeros((videos,), "uint64") if key.device_noise_stream is not None else None
        self._moments = memory.zeros((videos, MOMENT_BLOCKS, 4), "float64") if key.rescale > 0 else None
        self._graphs: dict[tuple[bool, bool], tuple[Any, StepGraph]] = {}
        """(guided, shallow) -> the graph, and the version of the addresses that it was captured with."""

    @property
    def latents(self) -> DeviceArray:
        """The sample after the steps enqueued so far: float32 [videos, c, f-1, h, w]."""
        return DeviceArray(self.state.address, self.key.shape, "float32", self.state.owner)

    def start(self, table: StepTable, guidance: Guidance, seeds: list[int] | None) -> None:
        """Load the run's tables and go to step 0; :attr:`latents` hold the initial ones already."""
        steps, memory = self.key.steps, self.memory
        memory.upload(table.timesteps.astype(np.int64), self._timesteps)
        memory.upload(table.matrices.astype(np.float32), self._matrices)
        guided = range(steps) if guidance.steps is None else guidance.steps
        memory.upload(
            guidance_weights(guidance.mode, guidance.scale_txt, guidance.scale_img, steps, guided), self._weights
        )
        if self._seeds is not None and seeds is not None:
            memory.upload(np.array(seeds, np.uint64), self._seeds)
        if self.key.states > 1:
            memory.fill(self.state[1:], 0)
        memory.upload(np.array([-1], np.int32), self._step)
        self._advance()
        self._unet.set_sample(self.latents)
        self._unet.cache.clear()

    def run(self, guided: bool) -> None:
        """Enqueue the next step, with guidance or the prompt's branch alone, whole or shallow; returns at once."""
        reuse = self._unet.cache.count_step(guided)
        graph = self._graph(guided, reuse).graph
        if graph is None:
            self._enqueue(guided, reuse)
        else:
            graph.launch(self._gpu.stream)

    def graph_reasons(self) -> dict[str, str]:
        """Kind of step -> why it runs without a graph; empty text where it runs with one."""
        return {
            ("guided" if guided else "prompt alone") + (", shallow" if reuse else ""): graph.reason
            for (guided, reuse), (_, graph) in self._graphs.items()
        }

    def _graph(self, guided: bool, reuse: bool) -> StepGraph:
        self._unet.prepare(guided)
        version = self._unet.address_version(guided)
        known = self._graphs.get((guided, reuse))
        if known is None or known[0] != version:
            captured = self._capture(guided, reuse) if self._use_graph else StepGraph(None, "switched off")
            self._graphs[guided, reuse] = known = (version, captured)
        return known[1]

    def _capture(self, guided: bool, reuse: bool) -> StepGraph:
        unet, key = self._unet, self.key
        kind = (reuse, key.states, key.rescale > 0, key.needs_noise, key.device_noise_stream is None)

        def enqueue() -> None:
            self._enqueue(guided, reuse)

        if unet.was_checked(guided, kind):
            return capture_step(self._gpu, enqueue)
        captured = capture_and_check(
            self._gpu,
            enqueue,
            changes=[self.state, self._step, unet.timestep, unet.rows, unet.predictions],
            poisoned=[unet.predictions],
            compared=[self._used_predictions(guided), self.latents],
        )
        if captured.graph is not None:
            unet.set_checked(guided, kind)
        return captured

    def _used_predictions(self, guided: bool) -> DeviceArray:
        rows = self._unet.videos * (self._unet.branches if guided else 1)
        return self._unet.predictions[:rows]

    def _enqueue(self, guided: bool, reuse: bool) -> None:
        key, unet, launch = self.key, self._unet, self._kernels.launch
        unet.enqueue(guided, reuse)
        if self.noise is not None and self._seeds is not None:
            assert key.device_noise_stream is not None
            launch(
                "philox_normal",
                normals=self.noise,
                seeds=self._seeds,
                step=self._step,
                draw=key.device_noise_stream + FRESH_NOISE,
                videos=unet.videos,
                elements=prod(key.shape[1:]),
            )
        # Without guidance the prompt's column of the same table counts alone; it is the last.
        first_column = 0 if guided else unet.branches - 1
        sizes = {
            "weights": int(self._weights) + 4 * first_column,
            "predictions": unet.predictions,
            "step": self._step,
            "steps": key.steps,
            "branches": unet.branches - first_column,
            "weight_stride": unet.branches,
            "videos": unet.videos,
            "elements": prod(key.shape[1:]),
        }
        moments = self._moments if guided and unet.branches > 1 else None
        if moments is not None:
            launch(f"guidance_moments_{unet.suffix}", moments=moments, **sizes)
        launch(
            f"guided_step_{unet.suffix}",
            state=self.state,
            matrices=self._matrices,
            noise=self.noise,
            moments=moments,
            rows=unet.rows,
            states=key.states,
            copies=unet.branches,
            noise_stride=0,
            rescale=key.rescale,
            **sizes,
        )
        self._advance()

    def _advance(self) -> None:
        self._kernels.launch(
            "advance_step",
            step=self._step,
            timesteps=self._timesteps,
            timestep=self._unet.timestep,
            steps=self.key.steps,
        )
