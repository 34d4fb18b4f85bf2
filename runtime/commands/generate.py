"""``consisti2v generate``: a photo and a prompt in, a video file out."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

import typer
from PIL import Image
from rich.console import Console

from ...errors import UserError
from ...kernels.schedulers import SCHEDULERS
from ..gpu.options import GpuOptions, check_gpu_options
from ..loop.batches import guidance_saving
from ..media.fit import cropped_shares
from ..media.frame_scale import scaled_size
from ..media.video_file import check_output, numbered
from ..media.video_stream import VideoStream, streaming
from ..pipeline import ImageToVideo
from ..request.choices import CAMERA_MOTIONS
from ..request.option_names import command_name
from ..request.presets import PUBLISHED
from ..request.settings import GenerationSettings, check_threads
from ..time_limit import check_time_limit
from .config_file import with_config
from .console import echo, make_console, note, plain
from .photo_input import read_photos
from .progress import prompt_interrupt, step_progress

_DEFAULTS = GenerationSettings()
# Where a refusal of the library names an option, it is given as the command line spells it. Only names with an
# underscore: the others are words of a sentence too.
_OPTIONS = {
    field.name: command_name(field.name)
    for field in (*fields(GenerationSettings), *fields(GpuOptions))
    if "_" in field.name
} | {"cuda_graph": "--no-cuda-graph", "time_limit": "--time-limit"}


def _recommended(setting: str) -> str:
    """The default of an option that a bundle may recommend, for its help."""
    published = PUBLISHED[setting]
    shown = ":".join(f"{part:g}" for part in published) if isinstance(published, tuple) else published
    return f"the bundle's recommendation ('consisti2v inspect' shows it), else {shown}."


def generate(
    context: typer.Context,
    bundle: Annotated[Path, typer.Option("--bundle", "-b", help="Folder made by 'consisti2v export', or a name.")],
    image: Annotated[
        list[Path], typer.Option("--image", "-i", help="Photo, or - for standard input; repeat for one per prompt.")
    ],
    prompt: Annotated[list[str] | None, typer.Option("--prompt", "-p", help="What happens; may be repeated.")] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="File ending in .mp4, .gif, .webp or .png.")] = Path(
        "out.mp4"
    ),
    negative_prompt: Annotated[list[str] | None, typer.Option(help="What to lead away from.")] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            help="Steps, scheduler and guidance interval: exact (published) or balanced (35 steps). Other options win "
            "over it; without it they are as the bundle recommends."
        ),
    ] = None,
    steps: Annotated[int | None, typer.Option(help=f"Denoising steps; {_recommended('num_inference_steps')}")] = None,
    scheduler: Annotated[
        str | None,
        typer.Option(help=f"{', '.join(SCHEDULERS)} (for distilled models); {_recommended('scheduler')}"),
    ] = None,
    guidance_scale: Annotated[
        float | None, typer.Option(help=f"Text guidance, 1: off; {_recommended('guidance_scale_txt')}")
    ] = None,
    image_guidance_scale: Annotated[
        float | None,
        typer.Option(
            help="First-frame guidance; above 1 it is on, at half as much work again; "
            f"{_recommended('guidance_scale_img')}"
        ),
    ] = None,
    guidance_rescale: Annotated[
        float | None, typer.Option(help=f"0 (off) to 1; {_recommended('guidance_rescale')}")
    ] = None,
    guidance_interval: Annotated[
        str | None,
        typer.Option(
            metavar="START:END",
            help=f"Shares of the steps between which guidance acts; {_recommended('guidance_interval')}",
        ),
    ] = None,
    guidance_batch: Annotated[
        str, typer.Option(help="joint: a step's branches at once; split: one after the other, in less memory.")
    ] = _DEFAULTS.guidance_batch,
    cache_interval: Annotated[
        int, typer.Option(help="The whole U-Net every so many steps; needs a bundle with a cache branch.")
    ] = _DEFAULTS.cache_interval,
    eta: Annotated[float, typer.Option(help="0: deterministic DDIM, 1: DDPM; for ddim.")] = _DEFAULTS.eta,
    seed: Annotated[list[int] | None, typer.Option(help="One, or one per video; drawn and shown if absent.")] = None,
    frame_stride: Annotated[int | None, typer.Option(help=f"Larger moves more; {_recommended('frame_stride')}")] = None,
    noise: Annotated[
        str, typer.Option(help="pyoco_mixed, pyoco_progressive or vanilla.")
    ] = _DEFAULTS.noise_sampling_method,
    noise_alpha: Annotated[float, typer.Option(help="How much noise frames share.")] = _DEFAULTS.noise_alpha,
    frameinit: Annotated[bool, typer.Option(help="Low frequencies of the photo in the first noise.")] = True,
    frameinit_noise_level: Annotated[int | None, typer.Option(help="Timestep; as the bundle says (850).")] = None,
    frameinit_filter: Annotated[str | None, typer.Option(help="gaussian, butterworth, ideal or box.")] = None,
    frameinit_d_s: Annotated[float | None, typer.Option(help="Spatial stop frequency, 0 to 1.")] = None,
    frameinit_d_t: Annotated[float | None, typer.Option(help="Temporal stop frequency, 0 to 1.")] = None,
    frameinit_order: Annotated[int | None, typer.Option(help="Order of the butterworth filter.")] = None,
    camera_motion: Annotated[str | None, typer.Option(help=f"{', '.join(CAMERA_MOTIONS)}.")] = None,
    videos_per_prompt: Annotated[int, typer.Option(help="Videos for each prompt.")] = 1,
    clips: Annotated[int, typer.Option(help="Clips of a long video, each going on from the last frame before.")] = 1,
    height: Annotated[int | None, typer.Option(help="Pixels; as the bundle was exported.")] = None,
    width: Annotated[int | None, typer.Option(help="Pixels; as the bundle was exported.")] = None,
    frames: Annotated[int | None, typer.Option(help="Frames of a clip; as the bundle was exported.")] = None,
    fit: Annotated[
        str, typer.Option(help="Photo of another aspect than the video: crop, pad (black bars) or stretch.")
    ] = _DEFAULTS.fit,
    fps: Annotated[float, typer.Option(help="Frames a second in the file.")] = _DEFAULTS.fps,
    scale: Annotated[float, typer.Option(help="Width and height of the file, times this (0.1 to 16; Lanczos).")] = 1,
    config: Annotated[
        Path | None,
        typer.Option(help="JSON file of settings; other options win over it. Example: assets/example_settings.json."),
    ] = None,
    threads: Annotated[int | None, typer.Option(help="Processor threads; one per core if absent.")] = None,
    device: Annotated[str, typer.Option(help="auto (a GPU where one can be used), cpu, cuda or openvino.")] = "auto",
    precision: Annotated[str | None, typer.Option(help="fp32, fp16, bf16, int8 or fp8; the device's best.")] = None,
    low_vram: Annotated[
        bool | None, typer.Option(help="GPU: one stage's weights at a time; where the rest does not fit.")
    ] = None,
    device_noise: Annotated[bool, typer.Option(help="GPU: draw the noise there; a seed gives another video.")] = False,
    cuda_graph: Annotated[bool, typer.Option(help="GPU: replay each step as one graph.")] = True,
    verify: Annotated[bool, typer.Option(help="Hash what is used of the bundle first.")] = True,
    time_limit: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="Stop a generation that takes longer.")
    ] = None,
    expect_digest: Annotated[
        str | None, typer.Option(metavar="SHA256", help="Refuse a bundle of another digest; 'inspect' prints it.")
    ] = None,
) -> None:
    """Animate a photo. Defaults are the bundle's recommendations, else the published model's."""
    options: dict[str, Any] = {
        "preset": preset,
        "num_inference_steps": steps,
        "scheduler": scheduler,
        "guidance_interval": _interval(guidance_interval),
        "guidance_scale_txt": guidance_scale,
        "guidance_scale_img": image_guidance_scale,
        "guidance_rescale": guidance_rescale,
        "guidance_batch": guidance_batch,
        "cache_interval": cache_interval,
        "eta": eta,
        "frame_stride": frame_stride,
        "noise_sampling_method": noise,
        "noise_alpha": noise_alpha,
        "use_frameinit": frameinit,
        "frameinit_noise_level": frameinit_noise_level,
        "frameinit_filter": frameinit_filter,
        "frameinit_d_s": frameinit_d_s,
        "frameinit_d_t": frameinit_d_t,
        "frameinit_order": frameinit_order,
        "camera_motion": camera_motion,
        "num_videos_per_prompt": videos_per_prompt,
        "autoregress_steps": clips,
        "height": height,
        "width": width,
        "video_length": frames,
        "fps": fps,
        "fit": fit,
    }
    if negative_prompt:
        options["negative_prompt"] = negative_prompt if len(negative_prompt) > 1 else negative_prompt[0]
    if seed:
        options["seed"] = seed if len(seed) > 1 else seed[0]
    if config is not None:
        options = with_config(config, {name: value for name, value in options.items() if _named(context, name)})
    engine = {
        "threads": threads,
        "device": device,
        "precision": precision,
        "gpu": GpuOptions(low_vram=low_vram, device_noise=device_noise, cuda_graph=cuda_graph),
        "expect_digest": expect_digest,
    }
    animate_to_file(
        bundle,
        image,
        prompt or [""],
        [output],
        options,
        engine,
        verify=verify,
        scale=scale,
        time_limit=time_limit,
    )


def animate_to_file(
    bundle: Path,
    images: list[Path],
    prompts: list[str],
    outputs: list[Path],
    options: dict[str, Any],
    engine: dict[str, Any],
    *,
    verify: bool = True,
    scale: float = 1,
    time_limit: float | None = None,
) -> None:
    """Generate with progress and write to every output; refuses bad outputs and images before anything else.

    `options` are fields of the settings, `engine` says what runs it: arguments of ``ImageToVideo.from_bundle``.
    """
    console = make_console(stderr=True)
    for output in outputs:
        check_output(output)
    photos = read_photos(images)
    check_threads(engine.get("threads"))
    if time_limit is not None:
        check_time_limit(time_limit)
    asked = GenerationSettings.from_options(options)
    if "gpu" in engine:
        with _typed_words():
            check_gpu_options(engine["gpu"], engine["device"])
    animate = ImageToVideo.from_bundle(bundle, verify=verify, **engine)
    prompt = prompts if len(prompts) > 1 else prompts[0]
    with _typed_words():
        request = animate.check(photos, prompt, settings=asked)
        settings, videos_asked = request.settings, request.videos
        scaled_size(settings.height, settings.width, scale)
    for output in outputs:
        for index in range(videos_asked):
            check_output(numbered(output, index, videos_asked))
    if not animate.bundle.manifest.model.trained:
        note(console, "the weights of this bundle are untrained: expect moving noise, not a video")
    for notice in animate.new_notices(request):
        note(console, notice)
    _tell_cropped(photos, settings, console)
    saving = guidance_saving(settings, videos_asked, animate.bundle.manifest)
    if saving == 0:
        note(
            console,
            "the guidance interval saves no time here: this bundle's U-Net always runs "
            f"{animate.bundle.manifest.model.rows} rows at once; export with --guidance any",
        )
    total_steps = settings.num_inference_steps * settings.autoregress_steps
    clip, clips = settings.video_length, settings.autoregress_steps
    # A clip begins with the last frame of the one before.
    frames = clip + (clips - 1) * (clip - 1)
    with streaming(outputs, videos_asked, frames, settings.fps, scale) as (stream, written):
        with prompt_interrupt(animate), step_progress(total_steps, console) as advance:
            videos = animate(
                photos, prompt, settings=settings, callback=advance, on_frames=stream.on_frames, time_limit=time_limit
            )
        with videos.timings.measure("file"):
            stream.finish()
    height, width = scaled_size(videos.frames.shape[2], videos.frames.shape[3], scale)
    for file in written if len(written) <= 8 else [*written[:3], written[-1]]:
        echo(f"{plain(file)}  {file.stat().st_size / 1024:.0f} KiB")
    echo(
        f"{len(videos.frames)} video(s) of {frames} frames {width}x{height}, seed {videos.settings.seed}, "
        f"{videos.timings.total:.1f} s: {videos.timings.summary()}{_encoding(stream)}"
    )


def _encoding(stream: VideoStream) -> str:
    """The time that encoding took, where it was overlapped with decoding and is not in the total."""
    overlapped = stream.seconds - stream.waited
    if overlapped < 0.05:
        return ""
    share = "" if stream.waited < 0.05 else f"{overlapped:.1f} s of it "
    return f"; encoding {stream.seconds:.1f} s, {share}overlapped with decoding"


def _tell_cropped(photos: Sequence[Image.Image], settings: GenerationSettings, console: Console) -> None:
    """One line per size of photo of which 1 % or more is cut off at the sides."""
    if settings.fit != "crop" or settings.camera_motion is not None:
        return
    assert settings.height is not None and settings.width is not None
    for width, height in dict.fromkeys(photo.size for photo in photos):
        shares = dict(
            zip(("height", "width"), cropped_shares(height, width, settings.height, settings.width), strict=True)
        )
        told = " and ".join(f"{share:.0%} of its {side}" for side, share in shares.items() if share >= 0.01)
        if told:
            note(
                console,
                f"the {width}x{height} photo is cropped to {settings.width}x{settings.height}: {told} is cut off; "
                "--fit pad or --fit stretch keeps it",
            )


def _named(context: typer.Context, setting: str) -> bool:
    """The user typed the option of this setting."""
    source = context.get_parameter_source(_OPTIONS.get(setting, setting).lstrip("-").replace("-", "_"))
    return source is not None and source.name != "DEFAULT"


def _interval(text: str | None) -> tuple[float, float] | None:
    """``START:END`` as two numbers."""
    if text is None:
        return None
    try:
        start, end = (float(part) for part in text.split(":"))
    except ValueError:
        raise UserError(
            f"--guidance-interval {text!r} is not START:END: give two numbers from 0 to 1, as 0.2:0.8."
        ) from None
    return start, end


@contextmanager
def _typed_words() -> Iterator[None]:
    """A refusal of the library has the names of settings as the command line spells them."""
    try:
        yield
    except UserError as error:
        raise UserError(re.sub(r"\w+", lambda word: _OPTIONS.get(word[0], word[0]), str(error))) from None
