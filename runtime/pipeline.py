"""The library: a photo and a prompt in, a video out."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import BackendError, CancelledError, UserError
from ..kernels.ddim import SchedulerConfig, alphas_cumprod
from ..kernels.frame_init import frame_init_mask
from ..kernels.guidance import BRANCHES
from ..kernels.noise import base_noise_shape, mix_noise
from .backends import Choice, choose
from .bundle.bundle import Bundle
from .call_queue import CallQueue, CancelToken
from .gpu.generation import GpuGeneration
from .gpu.options import GpuOptions, check_gpu_options
from .loop.denoise import FrameInitPlan, Guidance, Latents, denoise_clip
from .loop.random_streams import RandomStreams
from .media.camera_motion import camera_motion_crops
from .media.fit import fit_photo
from .media.image import ImageSource, check_image, load_image
from .one_process import OneProcess
from .request.arguments import (
    check_bundle,
    check_bundle_path,
    check_call,
    check_engine,
    check_flag,
    check_inputs,
    checked_latents,
)
from .request.options import GenerationOptions
from .request.request import Request, check_request
from .request.settings import FramesCallback, GenerationSettings, ResolvedSettings, StepCallback, StepProgress
from .stages import Stages, clip_shape
from .time_limit import check_time_limit
from .time_limit import time_limit as limited
from .timings import Timings
from .video import GeneratedVideos

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack  # typing has them from Python 3.11 on

_log = logging.getLogger("consisti2v_rt")
_PLAIN = GpuOptions()
_FORKED: list[Stages] = []
"""Of models that the parent of this process opened, never released: that would wait for threads which only it has."""


class ImageToVideo(OneProcess):
    """A loaded bundle. Stages are loaded at first use and kept: a second call pays no load.

    One object may be called from any number of threads. The calls run one at a time in order of arrival, because the
    stages' buffers are shared; on a GPU, the calls of all objects of the process do. :meth:`cancel` and
    :class:`CancelToken` reach waiting calls too. :meth:`close`, or a ``with`` block, releases the stages' memory.
    It belongs to the process that opened it: it cannot be pickled, and a forked child opens the bundle itself.

    Example:
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
        self._use(choose(bundle, device, precision) if choice is None else choice)
        try:
            self._scheduler = SchedulerConfig.from_dict(bundle.manifest.scheduler)
        except ValueError as error:
            raise UserError(f"the bundle's scheduler cannot be used: {error}") from None

    def _use(self, choice: Choice) -> None:
        """Run everything by this choice from now on."""
        threads, _, gpu = self._asked
        self.backend = choice
        self._gpu = None if choice.backend.device != "cuda" else GpuGeneration(self.bundle, choice, gpu)
        if self._gpu is None and gpu.device_noise:
            raise UserError("device_noise needs a GPU: pass device cuda, or leave it off.")
        self._stages = Stages(self.bundle, choice, threads, self._gpu)

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
        if latents is not None:
            checked_latents(latents, self._clip_shape(request))
        for source in request.images:
            check_image(source)
        self._check_open()
        token = CancelToken() if cancel_token is None else cancel_token
        with self._calls.turn(token):
            self._check_open()
            while True:
                timings = Timings()
                try:
                    with self._running(token) as stop, limited(time_limit, stop, timings):
                        return self._animate(image, prompt, settings, latents, callback, on_frames, timings, options)
                except BackendError as error:
                    # A stage is loaded before the first step and the first frame: the caller saw nothing of this try.
                    if not self._automatic:
                        raise
                    self._failed.add(self.backend.backend.name)
                    _log.warning("%s is not used: %s", self.backend.backend.title, error)
                    self._use(choose(self.bundle, "auto", self._asked[1], self._failed))

    @contextmanager
    def _running(self, token: CancelToken) -> Iterator[Callable[[], None]]:
        """Hold the device during the block, and stop what runs when the token is cancelled; gives the stop itself."""
        gpu, stages = self._gpu, self._stages

        def stop() -> None:
            stages.cancel()
            if gpu is not None:
                gpu.cancel()

        with nullcontext() if gpu is None else gpu.calls.turn(token):
            # First, so that a cancellation from here on is not taken back.
            stages.resume()
            if gpu is not None:
                gpu.resume()
            with token.listening(stop):
                yield stop

    def _animate(
        self,
        image: ImageSource | Sequence[ImageSource],
        prompt: str | Sequence[str],
        asked: GenerationSettings | None,
        latents: NDArray[np.float32] | None,
        callback: StepCallback | None,
        on_frames: FramesCallback | None,
        timings: Timings,
        options: GenerationOptions,
    ) -> GeneratedVideos:
        """One attempt with the chosen backend; arguments as :meth:`__call__`."""
        request = self.check(image, prompt, settings=asked, **options)
        for notice in self.new_notices(request):
            _log.warning("%s", notice)
        settings, prompts, streams = request.settings, request.prompts, request.streams
        clip_shape = self._clip_shape(request)
        if latents is not None:
            latents = checked_latents(latents, clip_shape)

        if self._gpu is not None:
            self._gpu.begin(self._stages.dims(clip_shape, BRANCHES[settings.guidance]), request)
        with timings.measure("image"):
            pixels = [self._pixels(load_image(source), settings) for source in request.images]
        static = self._stages.encode_images(pixels, prompts, settings, streams, timings)
        first_frame = static[:, :, :1]
        texts = self._stages.texts(prompts, request.negatives, settings, timings)
        with timings.measure("load"):
            if self._gpu is not None:
                # One that does not load is found before the loop, not after it.
                self._stages.session("vae_decoder", clip_shape)
            unet = self._stages.unet_rows(texts, clip_shape, settings, timings)

        clips = []
        for clip in range(settings.autoregress_steps):
            with timings.measure("noise"):
                given = latents if clip == 0 else None
                noise = self._noise(clip_shape, settings, streams, clip) if given is None else given

            def report(step: int, timestep: int, current: Latents, clip: int = clip) -> None:
                assert callback is not None
                clips, steps = settings.autoregress_steps, settings.num_inference_steps
                answer = callback(StepProgress(clip, clips, step, steps, timestep, current))
                # Comparisons of arrays give NumPy's own False.
                if isinstance(answer, bool | np.bool_) and not answer:
                    where = f"step {step + 1} of {steps}" + (f" of clip {clip + 1} of {clips}" if clips > 1 else "")
                    raise CancelledError(f"the callback stopped the call after {where}")

            # What is left of it beside the U-Net and FrameInit: guidance and the scheduler.
            with timings.measure("loop"):
                clips.append(
                    self._denoise_clip(
                        unet,
                        first_frame,
                        static,
                        noise,
                        table=request.table,
                        guidance=self._guidance(settings),
                        frame_init_plan=self._frame_init(settings, clip_shape),
                        draw_noise=streams.randn,
                        timings=timings,
                        **({} if callback is None else {"on_step": report}),
                    )
                )
            if self._gpu is not None and self._stages.decodes_on_gpu:
                # Where the memory allows it decodes beside the next clip, which shows this one's last frame once more.
                self._gpu.decode(self._stages.session("vae_decoder", clip_shape), clips[-1][:, :, min(clip, 1) :])
            # The next clip begins with the last latent frame, neither decoded nor encoded again.
            static = first_frame = clips[-1][:, :, -1:]

        result = np.concatenate([clips[0], *(clip[:, :, 1:] for clip in clips[1:])], axis=2)
        frames = self._stages.decode(result, timings, on_frames)
        return GeneratedVideos(frames, result, settings, timings)

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
        return check_request(image, prompt, settings, self.bundle.manifest, self._scheduler)

    def new_notices(self, request: Request) -> list[str]:
        """What a caller should be told of a request before it runs: prompts or a camera motion that the model does not
        know, a sentence each, with what it does know. Each of the two is told once; a call logs, as warnings of the
        logger ``consisti2v_rt``, what was not told before it.
        """
        new = {subject: notice for subject, notice in request.notices.items() if subject not in self._noticed}
        self._noticed |= new.keys()
        return list(new.values())

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
            if hasattr(self, "_stages"):
                self._stages.release()
                del self._stages
                self._gpu = None

    def __enter__(self) -> Self:
        self._check_open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def forked(self) -> None:
        """The child has neither the stages' threads nor the calls that other threads made."""
        if hasattr(self, "_stages"):
            _FORKED.append(self._stages)
            del self._stages
        self._gpu, self._calls = None, CallQueue()
        self._closed = self._is_forked = True

    def _check_open(self) -> None:
        if self._is_forked:
            raise UserError(
                "this ImageToVideo was opened before the process was forked, which does not copy its threads: open the "
                "bundle in each process, after the fork."
            )
        if self._closed:
            raise UserError("this ImageToVideo is closed: open the bundle again with ImageToVideo.from_bundle(...).")

    # -- parts of a call ----------------------------------------------------------------------------------------------

    def _pixels(self, image: Any, settings: ResolvedSettings) -> NDArray[np.float32]:
        """[1 or f, 3, height, width] in [-1, 1]: the photo, or the crops of a camera motion."""
        if settings.camera_motion is None:
            return fit_photo(image, settings.height, settings.width, settings.fit)
        return camera_motion_crops(
            image, settings.camera_motion, settings.video_length, settings.height, settings.width, settings.fit
        )

    def _clip_shape(self, request: Request) -> tuple[int, ...]:
        """[videos, c, frames, h, w]."""
        settings = request.settings
        return clip_shape(self.bundle.manifest.model, request.videos, settings.height, settings.width)

    @property
    def gpu(self) -> GpuGeneration | None:
        """What runs on the GPU, and how; None on a processor."""
        return self._gpu

    @property
    def _denoise_clip(self) -> Callable[..., Latents]:
        return denoise_clip if self._gpu is None else self._gpu.denoise_clip

    def _noise(self, shape: tuple[int, ...], settings: ResolvedSettings, streams: RandomStreams, clip: int) -> Any:
        """The initial noise of a clip; on the GPU where it is drawn there."""
        kind = settings.noise_sampling_method
        if self._gpu is not None and self._gpu.options.device_noise:
            return self._gpu.noise(kind, settings.noise_alpha, shape, clip)
        base_shape = base_noise_shape(kind, shape)
        base, independent = streams.noise(base_shape, shape)
        return mix_noise(kind, base, independent, settings.noise_alpha)

    def _guidance(self, settings: ResolvedSettings) -> Guidance:
        return Guidance(
            settings.guidance,
            settings.guidance_scale_txt,
            settings.guidance_scale_img,
            settings.guidance_rescale,
            settings.guided_steps,
        )

    def _frame_init(self, settings: ResolvedSettings, clip_shape: tuple[int, ...]) -> FrameInitPlan | None:
        if not settings.use_frameinit:
            return None
        d_s, d_t, order = settings.frameinit_d_s, settings.frameinit_d_t, settings.frameinit_order
        mask = frame_init_mask(settings.frameinit_filter, *clip_shape[2:], d_s, d_t, order)
        return FrameInitPlan(float(alphas_cumprod(self._scheduler)[settings.frameinit_noise_level]), mask)
