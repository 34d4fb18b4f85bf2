"""What a child process can time. A target is built from a plain dictionary, which is all that the parent sends.

Loaded once, run often: ``load`` gives "seconds" and facts worth recording; ``run`` of a number, 0 being the first of
the process, gives "seconds", those of "parts" (stages) and "device_seconds" by the device's own events; ``output``
writes what the last run made to an .npy file. `report` takes the share that is done, 0 to 1.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import UserError
from ...runtime.install import install_hint

TIMESTEP = 501
FRAME_STRIDE = 3
_DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
ProgressCallback = Callable[[float], None]


def make_target(options: Mapping[str, Any]) -> Any:
    """The target of a name, ``options["target"]``, with the other options as its arguments."""
    kinds: dict[str, Callable[..., Any]] = {
        "published": PublishedForward,
        "session": SessionForward,
        "video": WholeVideo,
    }
    return kinds[options["target"]](**{key: value for key, value in options.items() if key != "target"})


@dataclass
class PublishedForward:
    """One forward of :class:`consisti2v_rt.benchmarks.published.PublishedUNet` around a bundle's own weights."""

    inputs: str
    """.npz file of :func:`.candidates.make_inputs`."""
    precision: str
    """fp32, fp16 or bf16, of weights and activations. In fp32 no product is shortened to TF32."""
    device: str = "cpu"
    compiled: bool = False
    """Through ``torch.compile`` in its default mode."""
    checkpoint: str | None = None
    """Folder in diffusers layout, or hub id, that the bundle was exported from; or:"""
    random_weights: tuple[str, int] | None = None
    """Kind and seed that the bundle was exported with."""
    threads: int | None = None

    def load(self, report: ProgressCallback) -> dict[str, Any]:
        started = time.perf_counter()
        try:
            import torch

            from ...export.loading import load_model
            from ...export.random_model import random_model
            from ..published import PublishedUNet
        except ImportError as error:
            raise UserError(
                f"the published formulation needs {error.name or error}: {install_hint('export')}"
            ) from None
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False
        source = random_model(*self.random_weights) if self.random_weights else load_model(str(self.checkpoint))
        own = source.take_unet()
        report(0.5)
        with torch.device("meta"):
            unet = PublishedUNet(own.config.to_dict())
        unet.load_state_dict({key: value.float() for key, value in own.state_dict().items()}, assign=True)
        del source, own
        kind = {"device": self.device, "dtype": getattr(torch, _DTYPES[self.precision])}
        unet = unet.eval().requires_grad_(False).to(**kind)
        if self.device == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - started
        self._unet: Any = torch.compile(unet) if self.compiled else unet
        self._tensors = {name: torch.from_numpy(value).to(**kind) for name, value in np.load(self.inputs).items()}
        return {"seconds": seconds, "torch_threads": torch.get_num_threads()}

    def run(self, number: int, report: ProgressCallback) -> dict[str, Any]:
        import torch

        tensors, device_seconds, events = self._tensors, None, []
        started = time.perf_counter()
        if self.device == "cuda":
            events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
            events[0].record()
        with torch.no_grad():
            self._noise_pred = self._unet(
                tensors["sample"],
                TIMESTEP,
                tensors["text_embeddings"],
                first_frame_latents=tensors["first_frame_latents"],
                frame_stride=FRAME_STRIDE,
            )
        if events:
            events[1].record()
            events[1].synchronize()
            device_seconds = float(events[0].elapsed_time(events[1])) / 1000
        return {"seconds": time.perf_counter() - started, "parts": {}, "device_seconds": device_seconds}

    def output(self, path: str, report: ProgressCallback) -> None:
        np.save(path, self._noise_pred.float().cpu().numpy())


@dataclass
class SessionForward:
    """One forward of a bundle's U-Net stage in a session of :mod:`consisti2v_rt.runtime.backends`; its text keys and
    values are made once by the conditioning stage of the same backend.
    """

    bundle: str
    backend: str
    precision: str
    inputs: str
    """.npz file of :func:`.candidates.make_inputs`."""
    dims: dict[str, int]
    """Sizes of dynamic dimensions."""
    threads: int | None = None

    def load(self, report: ProgressCallback) -> dict[str, Any]:
        from ...runtime.bundle.bundle import Bundle
        from ...runtime.gpu.device import open_gpu
        from ...runtime.gpu.device_session import DeviceSession

        # Verified: the record says that the bundle of this manifest is what ran.
        bundle, choice, inputs = Bundle.open(self.bundle), _choice(self.backend, self.precision), np.load(self.inputs)
        started = time.perf_counter()
        session: Any
        self._session = session = choice.load(bundle, "unet", self.dims, self.threads)
        seconds = time.perf_counter() - started
        self._gpu = open_gpu() if isinstance(session, DeviceSession) else None
        report(0.5)
        conditioning = choice.load(bundle, "conditioning", self.dims, self.threads)
        for row, embeddings in enumerate(inputs["text_embeddings"]):
            conditioning.inputs["text_embeddings"][0] = embeddings
            conditioning.run()
            for name, value in conditioning.outputs.items():
                session.inputs[name][row] = value[0]
        for name in ("sample", "first_frame_latents"):
            session.inputs[name][...] = inputs[name]
        session.inputs["timestep"][...] = TIMESTEP
        if "frame_stride" in session.inputs:
            session.inputs["frame_stride"][...] = FRAME_STRIDE
        return {"seconds": seconds}

    def run(self, number: int, report: ProgressCallback) -> dict[str, Any]:
        """On a GPU only the first run brings the inputs there; the others find them, as in the denoising loop."""
        device_seconds = None
        started = time.perf_counter()
        if number > 0 and self._gpu is not None:
            gpu = self._gpu
            before = gpu.record(gpu.stream)
            self._session.enqueue()
            after = gpu.record(gpu.stream)
            after.sync()
            device_seconds = float(after - before) / 1000
        else:
            self._session.run()
        return {"seconds": time.perf_counter() - started, "parts": {}, "device_seconds": device_seconds}

    def output(self, path: str, report: ProgressCallback) -> None:
        if self._gpu is not None:
            self._session.run()
        np.save(path, self._session.outputs["noise_pred"].astype(np.float32))


@dataclass
class WholeVideo:
    """A whole video, photo and prompt in, a file out, as a program that stays in memory makes it: every run makes the
    same video from new prompts.
    """

    bundle: str
    backend: str
    precision: str
    image: str
    prompt: str
    options: dict[str, Any]
    """Of :class:`GenerationSettings`; the negative prompt among them is varied like the prompt."""
    threads: int | None = None

    def load(self, report: ProgressCallback) -> dict[str, Any]:
        """Open and verify the bundle; its stages are loaded by the first run."""
        from ...runtime.bundle.bundle import Bundle
        from ...runtime.media.image import load_image
        from ...runtime.pipeline import ImageToVideo

        # Several backends may share a device: it is this one that is measured, not the best of them.
        choice = _choice(self.backend, self.precision)
        started = time.perf_counter()
        self._animate = ImageToVideo(Bundle.open(self.bundle), threads=self.threads, choice=choice)
        self._image = load_image(Path(self.image))
        return {"seconds": time.perf_counter() - started}

    def run(self, number: int, report: ProgressCallback) -> dict[str, Any]:
        """Make and write the video. Blanks at its end make a prompt new to the cache of texts, and the same to the
        tokenizer: every run pays the text stages, as a new prompt does.
        """
        blanks = " " * number
        options = {**self.options, "negative_prompt": self.options.get("negative_prompt", "") + blanks}
        started = time.perf_counter()
        self._videos = videos = self._animate(
            self._image, self.prompt + blanks, callback=lambda state: report((state.step + 1) / state.steps), **options
        )
        with tempfile.TemporaryDirectory() as folder, videos.timings.measure("file"):
            videos.save(Path(folder) / "video.mp4")
        return {"seconds": time.perf_counter() - started, "parts": dict(videos.timings), "device_seconds": None}

    def output(self, path: str, report: ProgressCallback) -> None:
        """Latents [videos, c, frames, h, w]."""
        np.save(path, self._videos.latents)


def _choice(backend: str, precision: str) -> Any:
    from ...runtime.backends import BACKENDS, Choice

    return Choice(next(entry for entry in BACKENDS if entry.name == backend), precision, "measured")
