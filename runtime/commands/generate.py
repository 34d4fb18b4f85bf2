"""``consisti2v generate``: a photo and a prompt in, a video file out."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from ...kernels.schedulers import SCHEDULERS
from ..camera_motion import CAMERA_MOTIONS
from ..errors import UserError
from ..gpu_options import GpuOptions, check_gpu_options
from ..image import load_image
from ..pipeline import ImageToVideo
from ..settings import GenerationSettings, whole
from ..unet_rows import guidance_saving
from ..video_file import check_output, numbered
from ..video_stream import VideoStream, streaming
from .progress import prompt_interrupt, step_progress

_PUBLISHED = GenerationSettings()
# Where the command line's word for a setting is another than the library's: a refusal names what the user typed.
_OPTIONS = {
    "num_inference_steps": "--steps",
    "guidance_scale_txt": "--guidance-scale",
    "guidance_scale_img": "--image-guidance-scale",
    "guidance_interval": "--guidance-interval",
    "guidance_batch": "--guidance-batch",
    "cache_interval": "--cache-interval",
    "noise_sampling_method": "--noise",
    "use_frameinit": "--frameinit",
    "num_videos_per_prompt": "--videos-per-prompt",
    "autoregress_steps": "--clips",
    "video_length": "--frames",
    "low_vram": "--low-vram",
    "device_noise": "--device-noise",
    "cuda_graph": "--no-cuda-graph",
}
_MAX_THREADS = 1024


def generate(
    bundle: Annotated[Path, typer.Option("--bundle", "-b", help="Folder made by 'consisti2v export'.")],
    image: Annotated[list[Path], typer.Option("--image", "-i", help="Photo; repeat for one per prompt.")],
    prompt: Annotated[list[str] | None, typer.Option("--prompt", "-p", help="What happens; may be repeated.")] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="File ending in .mp4, .gif, .webp or .png.")] = Path(
        "out.mp4"
    ),
    negative_prompt: Annotated[list[str] | None, typer.Option(help="What to lead away from.")] = None,
    preset: Annotated[
        str, typer.Option(help="exact (published) or balanced (35 steps); other options win over it.")
    ] = "exact",
    steps: Annotated[int | None, typer.Option(help="Denoising steps; the preset's (50).")] = None,
    scheduler: Annotated[
        str | None, typer.Option(help=f"{', '.join(SCHEDULERS)}; the preset's (ddim). lcm is for distilled models.")
    ] = None,
    guidance_scale: Annotated[float, typer.Option(help="Text guidance; 1: off.")] = _PUBLISHED.guidance_scale_txt,
    image_guidance_scale: Annotated[
        float, typer.Option(help="First-frame guidance; above 1 it is on, at half as much work again.")
    ] = _PUBLISHED.guidance_scale_img,
    guidance_rescale: Annotated[float, typer.Option(help="0 (off) to 1.")] = _PUBLISHED.guidance_rescale,
    guidance_interval: Annotated[
        str | None,
        typer.Option(metavar="START:END", help="Shares of the steps between which guidance acts; the preset's (0:1)."),
    ] = None,
    guidance_batch: Annotated[
        str, typer.Option(help="joint: a step's branches at once; split: one after the other, in less memory.")
    ] = _PUBLISHED.guidance_batch,
    cache_interval: Annotated[
        int, typer.Option(help="The whole U-Net every so many steps; needs a bundle with a cache branch.")
    ] = _PUBLISHED.cache_interval,
    eta: Annotated[float, typer.Option(help="0: deterministic DDIM, 1: DDPM; for ddim.")] = _PUBLISHED.eta,
    seed: Annotated[list[int] | None, typer.Option(help="One, or one per video; drawn and shown if absent.")] = None,
    frame_stride: Annotated[int, typer.Option(help="Larger moves more.")] = _PUBLISHED.frame_stride,
    noise: Annotated[
        str, typer.Option(help="pyoco_mixed, pyoco_progressive or vanilla.")
    ] = _PUBLISHED.noise_sampling_method,
    noise_alpha: Annotated[float, typer.Option(help="How much noise frames share.")] = _PUBLISHED.noise_alpha,
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
    fps: Annotated[float, typer.Option(help="Frames a second in the file.")] = _PUBLISHED.fps,
    threads: Annotated[int | None, typer.Option(help="Processor threads; one per core if absent.")] = None,
    device: Annotated[str, typer.Option(help="auto (a GPU where one can be used), cpu, cuda or openvino.")] = "auto",
    precision: Annotated[str | None, typer.Option(help="fp32, fp16, bf16, int8 or fp8; the device's best.")] = None,
    low_vram: Annotated[
        bool | None, typer.Option(help="GPU: one stage's weights at a time; where the rest does not fit.")
    ] = None,
    device_noise: Annotated[bool, typer.Option(help="GPU: draw the noise there; a seed gives another video.")] = False,
    cuda_graph: Annotated[bool, typer.Option(help="GPU: replay each step as one graph.")] = True,
    verify: Annotated[bool, typer.Option(help="Hash what is used of the bundle first.")] = True,
    expect_digest: Annotated[
        str | None, typer.Option(metavar="SHA256", help="Refuse a bundle of another digest; 'inspect' prints it.")
    ] = None,
) -> None:
    """Animate a photo. Defaults are the published model's."""
    options: dict[str, Any] = {
        "preset": preset,
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
    }
    named = {"num_inference_steps": steps, "scheduler": scheduler, "guidance_interval": _interval(guidance_interval)}
    options |= {name: value for name, value in named.items() if value is not None}
    if negative_prompt:
        options["negative_prompt"] = negative_prompt if len(negative_prompt) > 1 else negative_prompt[0]
    if seed:
        options["seed"] = seed if len(seed) > 1 else seed[0]
    engine = {
        "threads": threads,
        "device": device,
        "precision": precision,
        "gpu": GpuOptions(low_vram=low_vram, device_noise=device_noise, cuda_graph=cuda_graph),
        "expect_digest": expect_digest,
    }
    animate_to_file(bundle, image, prompt or [""], [output], options, engine, verify=verify)


def animate_to_file(
    bundle: Path,
    images: list[Path],
    prompts: list[str],
    outputs: list[Path],
    options: dict[str, Any],
    engine: dict[str, Any],
    *,
    verify: bool = True,
) -> None:
    """Generate with progress and write to every output; refuses bad outputs and images before anything else.

    `options` are fields of the settings, `engine` says what runs it: arguments of ``ImageToVideo.from_bundle``.
    """
    console = Console(stderr=True)
    for output in outputs:
        check_output(output)
    photos = [load_image(image) for image in images]
    if engine.get("threads") is not None:
        whole(engine["threads"], "threads", 1, _MAX_THREADS)
    settings = GenerationSettings.from_options(options)
    if "gpu" in engine:
        with _typed_words():
            check_gpu_options(engine["gpu"], engine["device"])
    animate = ImageToVideo.from_bundle(bundle, verify=verify, **engine)
    prompt = prompts if len(prompts) > 1 else prompts[0]
    with _typed_words():
        request = animate.check(photos, prompt, settings=settings)
    videos_asked = request.videos
    for output in outputs:
        for index in range(videos_asked):
            check_output(numbered(output, index, videos_asked))
    if not animate.bundle.manifest.model.trained:
        console.print("[yellow]note:[/] the weights of this bundle are untrained: expect moving noise, not a video")
    saving = guidance_saving(settings, videos_asked, animate.bundle.manifest)
    if saving == 0:
        console.print(
            "[yellow]note:[/] the guidance interval saves no time here: this bundle's U-Net always runs "
            f"{animate.bundle.manifest.model.rows} rows at once; export with --guidance any"
        )
    total_steps = settings.num_inference_steps * settings.autoregress_steps
    clip, clips = request.settings.video_length, request.settings.autoregress_steps
    assert clip is not None
    # A clip begins with the last frame of the one before.
    frames = clip + (clips - 1) * (clip - 1)
    with streaming(outputs, videos_asked, frames, request.settings.fps) as (stream, written):
        with prompt_interrupt(animate), step_progress(total_steps, console) as advance:
            videos = animate(photos, prompt, settings=settings, callback=advance, on_frames=stream.on_frames)
        with videos.timings.measure("file"):
            stream.finish()
    _, _, height, width, _ = videos.frames.shape
    for file in written if len(written) <= 8 else [*written[:3], written[-1]]:
        typer.echo(f"{file}  {file.stat().st_size / 1024:.0f} KiB")
    typer.echo(
        f"{len(videos.frames)} video(s) of {frames} frames {width}x{height}, seed {videos.settings.seed}, "
        f"{videos.timings.total:.1f} s: {videos.timings.summary()}{_hidden(stream)}"
    )


def _hidden(stream: VideoStream) -> str:
    """What the files cost, where it was done while frames were still decoded."""
    hidden = stream.seconds - stream.waited
    return f"; files took {stream.seconds:.1f} s, {hidden:.1f} s of it while decoding" if hidden >= 0.05 else ""


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
