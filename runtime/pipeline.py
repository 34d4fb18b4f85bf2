"""The library: a photo and a prompt in, a video out."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..errors import BackendError, UserError
from ..kernels.ddim import SchedulerConfig
from .backends import Choice, choose
from .bundle.bundle import Bundle
from .call_queue import CallQueue, CancelToken
from .executor import Executor, open_executor
from .generation import generate
from .gpu.options import GpuOptions, check_gpu_options
from .media.image import ImageSource, check_image
from .one_process import OneProcess
from .request.arguments import (
    check_bundle,
    check_bundle_path,
    check_call,
    check_engine,
    check_inputs,
    checked_latents,
)
from .request.option_table import check_flag
from .request.options import GenerationOptions
from .request.presets import PRESETS
from .request.request import Request, check_request
from .request.settings import FramesCallback, GenerationSettings, StepCallback
from .stages import clip_shape
from .timings import Timings, check_time_limit
from .timings import time_limit as limited
from .video import GeneratedVideos

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack  # typing has them from Python 3.11 on

_log = logging.getLogger("consisti2v_rt")
_PLAIN = GpuOptions()
_FORKED: list[Executor] = []
"""Of models that the parent of this process opened, never released: that would wait for threads which only it has."""


class ImageToVideo(OneProcess):
    """A loaded bundle. Stages are loaded at first use and kept: a second call pays no load.

    One object may be called from any number of threads. The calls run one at a time in order of arrival, because the
    stages' buffers are shared; on a GPU, the calls of all objects of the process do. :meth:`cancel` and
    :class:`CancelToken` reach waiting calls too. :meth:`close`, or a ``with`` block, releases the stages' memory.
    It belongs to the process that opened it: it cannot be pickled, and a forked child opens the bundle itself.

    Examples:
        >>> animate = ImageToVideo.from_bundle("consisti2v-256")
        >>> videos = animate("photo.jpg", "a cat turns its head", seed=7)
        >>> videos.save("cat.mp4")
    """

    _instead = "pass the bundle's path, and open it with ImageToVideo.from_bundle in each process"

    def __init__(
        self,
        bundle: Bundle,
        *,
        threads: int | None = None,
        device: str = "auto",
        precision: str | None = None,
        gpu: GpuOptions = _PLAIN,
        choice: Choice | None = None,
    ) -> None:
        """As :meth:`from_bundle`; a `choice` that was already made stands for device and precision."""
        super().__init__()
        check_bundle(bundle)
        check_engine(threads, gpu)
        self._closed = self._is_forked = False
        self.bundle = bundle
        self._calls = CallQueue()
        self._noticed: set[str] = set()
        self._automatic = choice is None and device == "auto"
        if choice is None:
            check_gpu_options(gpu, device)
        self._asked, self._failed = (threads, precision, gpu), set[str]()
        try:
            self._scheduler = SchedulerConfig.from_dict(bundle.manifest.scheduler)
        except ValueError as error:
            raise UserError(f"the bundle's scheduler cannot be used: {error}") from None
        self._use(choose(bundle, device, precision) if choice is None else choice)

    def _use(self, choice: Choice) -> None:
        """Run everything by this choice from now on."""
        threads, _, gpu = self._asked
        if gpu.device_noise and choice.backend.device != "cuda":
            raise UserError("device_noise needs a GPU: pass device cuda, or leave it off.")
        self.backend = choice
        self._executor = open_executor(self.bundle, choice, self._scheduler, threads, gpu)

    @classmethod
    def from_bundle(
        cls,
        path: str | os.PathLike[str],
        *,
        verify: bool = True,
        expect_digest: str | None = None,
        threads: int | None = None,
        device: str = "auto",
        precision: str | None = None,
        gpu: GpuOptions = _PLAIN,
    ) -> ImageToVideo:
        """Open a bundle made by ``consisti2v export``.

        Args:
            path: its folder or its name, such as "demo".
            verify: hash every file that is used, before it is.
            expect_digest: the bundle's digest, as ``consisti2v inspect`` prints it; another bundle is refused.
            threads: processor threads, at most the logical processors; None: one per physical core.
            device: auto (a GPU where one can be used, else the processor), cpu, cuda or openvino.
            precision: fp32, fp16, ...; None: the best that the bundle holds for the device.
            gpu: how a GPU is used: little memory, its own noise.

        Raises:
            UserError: the bundle is incomplete, altered or of another version, or nothing can run it as asked.
        """
        check_bundle_path(path)
        check_flag(verify, "verify")
        bundle = Bundle.open(path, verify=verify, expect_digest=expect_digest)
        return cls(bundle, threads=threads, device=device, precision=precision, gpu=gpu)

    def __call__(
        self,
        image: ImageSource | Sequence[ImageSource],
        prompt: str | Sequence[str] = "",
        *,
        settings: GenerationSettings | None = None,
        latents: NDArray[np.float32] | None = None,
        callback: StepCallback | None = None,
        on_frames: FramesCallback | None = None,
        cancel_token: CancelToken | None = None,
        time_limit: float | None = None,
        **options: Unpack[GenerationOptions],
    ) -> GeneratedVideos:
        """Animate photos. Waits while earlier calls from other threads run.

        Args:
            image: a photo (path, bytes, file, Pillow image or array), or a list with one per prompt.
            prompt: what happens, or a list.
            settings: options as an object; `options` change single ones of them.
            latents: initial noise [videos, c, frames, h, w] of the first clip instead of drawn noise; any float type,
                used as float32.
            callback: called after every step with a :class:`StepProgress`; returning False stops the call.
            on_frames: called with a video's number, a first frame's number and uint8 frames [n, height, width, 3], in
                order, as soon as they are decoded: to encode them while the next ones decode.
            cancel_token: cancels this call alone; :meth:`cancel` cancels all calls.
            time_limit: seconds after which the run is cancelled, which ends endless graphs too; None: no limit. The
                time that the call waits for others does not count.
            **options: fields of :class:`GenerationSettings`: ``num_inference_steps=25, seed=7, ...``. The names that
                diffusers and the command line use, such as ``num_frames`` and ``guidance_scale``, are accepted too.
                What is not named is as the bundle recommends, else as published; the result's settings say it.

        Returns:
            One video per prompt and ``num_videos_per_prompt``, prompt-major.

        Raises:
            UserError: bad input, and nothing was computed; a stage that fails; or `time_limit` was reached.
            CancelledError: the call was cancelled, or its callback returned False.
        """
        check_call(latents, callback, on_frames, cancel_token)
        # Before the turn: bad input is refused at once, not after the calls that wait.
        request = self.check(image, prompt, settings=settings, **options)
        if time_limit is not None:
            check_time_limit(time_limit)
        noise = None
        if latents is not None:
            noise = checked_latents(latents, clip_shape(self.bundle.manifest.model, request.videos, request.settings))
        for source in request.images:
            check_image(source)
        self._check_open()
        token = CancelToken() if cancel_token is None else cancel_token
        with self._calls.turn(token):
            self._check_open()
            while True:
                timings = Timings()
                try:
                    with self._executor.hold(token) as stop, limited(time_limit, stop, timings):
                        request = self.check(image, prompt, settings=settings, **options)
                        for notice in self.new_notices(request):
                            _log.warning("%s", notice)
                        return generate(self._executor, request, noise, callback, on_frames, timings)
                except BackendError as error:
                    # A stage is loaded before the first step and the first frame: the caller saw nothing of this try.
                    if not self._automatic:
                        raise
                    self._failed.add(self.backend.backend.name)
                    _log.warning("%s is not used: %s", self.backend.backend.title, error)
                    self._use(choose(self.bundle, "auto", self._asked[1], self._failed))

    def check(
        self,
        image: ImageSource | Sequence[ImageSource],
        prompt: str | Sequence[str] = "",
        *,
        settings: GenerationSettings | None = None,
        **options: Unpack[GenerationOptions],
    ) -> Request:
        """Refuse now what a call with these arguments would refuse, without running anything.

        Raises:
            UserError: options that are not possible, or numbers of images, prompts and seeds that do not fit.
        """
        check_inputs(image, prompt, settings)
        settings = GenerationSettings.from_options(options, settings)
        presets = PRESETS if settings.preset is None else self.bundle.presets
        return check_request(image, prompt, settings, self.bundle.manifest, self._scheduler, presets)

    def new_notices(self, request: Request) -> list[str]:
        """Notices about a request before it runs: one sentence for prompts, one for a camera motion that the model does
        not know, each with those that it knows. A model gives each notice once; a call logs the remaining ones as
        warnings of the logger ``consisti2v_rt``.
        """
        new = {subject: notice for subject, notice in request.notices.items() if subject not in self._noticed}
        self._noticed |= new.keys()
        return list(new.values())

    def load_weights(
        self, path: str | os.PathLike[str], *, verify: bool = True, expect_digest: str | None = None
    ) -> None:
        """Go over to another bundle of the same model, such as one that ``consisti2v lora`` made.

        Calls that were made before finish on the old weights, in order of arrival; calls that come later run on the
        new ones. The old stages' memory is released before a new stage is loaded.

        Args:
            path: the bundle's folder or its name.
            verify: as for :meth:`from_bundle`.
            expect_digest: as for :meth:`from_bundle`.

        Raises:
            UserError: the bundle cannot be opened or is of another model, nothing can run it as this object was asked
                to, or this is called from a callback. The old weights stay.
        """
        check_bundle_path(path)
        check_flag(verify, "verify")
        self._check_open()
        bundle = Bundle.open(path, verify=verify, expect_digest=expect_digest)
        old, new = self.bundle.manifest, bundle.manifest
        if (old.model, old.scheduler) != (new.model, new.scheduler):
            raise UserError(
                f"{bundle.path} is of another model or size than {self.bundle.path}: open it with "
                "ImageToVideo.from_bundle(...)."
            )
        with self._calls.turn(None):
            self._check_open()
            device = "auto" if self._automatic else self.backend.backend.device
            threads, precision, gpu = self._asked
            choice = choose(bundle, device, precision)
            executor, former = open_executor(bundle, choice, self._scheduler, threads, gpu), self._executor
            self.bundle, self.backend, self._executor = bundle, choice, executor
            self._failed.clear()
            former.release()

    def cancel(self) -> None:
        """Cancel the call that runs in another thread, within one operation of the graph, and every call that waits
        for its turn; each raises :class:`CancelledError`. Without any call it does nothing.
        """
        self._calls.cancel()

    def close(self) -> None:
        """Cancel every call, wait until the running one has ended, and release the stages and the GPU's memory.

        Calls that come later are refused; closing again does nothing. A ``with`` block closes at its end.

        Raises:
            UserError: called from a callback of a running call, which cannot end meanwhile.
        """
        if self._calls.runs_here():
            raise UserError(
                "close was called from a callback of a running call: return False there to stop it, and close the "
                "model after the call."
            )
        self._closed = True
        self._calls.cancel()
        with self._calls.turn(None):
            if hasattr(self, "_executor"):
                self._executor.release()
                del self._executor

    def __enter__(self) -> Self:
        self._check_open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def forked(self) -> None:
        """The child has neither the stages' threads nor the calls that other threads made."""
        if hasattr(self, "_executor"):
            _FORKED.append(self._executor)
            del self._executor
        self._calls = CallQueue()
        self._closed = self._is_forked = True

    def _check_open(self) -> None:
        if self._is_forked:
            raise UserError(
                "this ImageToVideo was opened before the process was forked, which does not copy its threads: open the "
                "bundle in each process, after the fork."
            )
        if self._closed:
            raise UserError("this ImageToVideo is closed: open the bundle again with ImageToVideo.from_bundle(...).")
