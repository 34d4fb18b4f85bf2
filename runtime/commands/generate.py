"""``consisti2v generate``: a photo and a prompt in, a video file out."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from ..camera_motion import CAMERA_MOTIONS
from ..errors import UserError
from ..image import load_image
from ..pipeline import ImageToVideo
from ..settings import GenerationSettings, whole
from ..video_file import check_output, numbered
from .progress import prompt_interrupt, step_progress

_PUBLISHED = GenerationSettings()
# Where the command line's word for a setting is another than the library's: a refusal names what the user typed.
_OPTIONS = {
    "num_inference_steps": "--steps",
    "guidance_scale_txt": "--guidance-scale",
    "guidance_scale_img": "--image-guidance-scale",
    "noise_sampling_method": "--noise",
    "use_frameinit": "--frameinit",
    "num_videos_per_prompt": "--videos-per-prompt",
    "autoregress_steps": "--clips",
    "video_length": "--frames",
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
    steps: Annotated[int, typer.Option(help="Denoising steps.")] = _PUBLISHED.num_inference_steps,
    guidance_scale: Annotated[float, typer.Option(help="Text guidance; 1: off.")] = _PUBLISHED.guidance_scale_txt,
    image_guidance_scale: Annotated[
        float, typer.Option(help="First-frame guidance; above 1 it is on, at half as much work again.")
    ] = _PUBLISHED.guidance_scale_img,
    guidance_rescale: Annotated[float, typer.Option(help="0 (off) to 1.")] = _PUBLISHED.guidance_rescale,
    eta: Annotated[float, typer.Option(help="0: deterministic DDIM, 1: DDPM.")] = _PUBLISHED.eta,
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
    verify: Annotated[bool, typer.Option(help="Hash the bundle's files first.")] = True,
) -> None:
    """Animate a photo. Defaults are the published model's."""
    options: dict[str, Any] = {
        "num_inference_steps": steps,
        "guidance_scale_txt": guidance_scale,
        "guidance_scale_img": image_guidance_scale,
        "guidance_rescale": guidance_rescale,
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
    if negative_prompt:
        options["negative_prompt"] = negative_prompt if len(negative_prompt) > 1 else negative_prompt[0]
    if seed:
        options["seed"] = seed if len(seed) > 1 else seed[0]
    animate_to_file(bundle, image, prompt or [""], [output], options, verify=verify, threads=threads)


def animate_to_file(
    bundle: Path,
    images: list[Path],
    prompts: list[str],
    outputs: list[Path],
    options: dict[str, Any],
    *,
    verify: bool = True,
    threads: int | None = None,
) -> None:
    """Generate with progress and write to every output; refuses bad outputs and images before anything else."""
    console = Console(stderr=True)
    for output in outputs:
        check_output(output)
    photos = [load_image(image) for image in images]
    if threads is not None:
        whole(threads, "threads", 1, _MAX_THREADS)
    settings = GenerationSettings.from_options(options)
    animate = ImageToVideo.from_bundle(bundle, verify=verify, threads=threads)
    prompt = prompts if len(prompts) > 1 else prompts[0]
    try:
        videos_asked = animate.check(photos, prompt, settings=settings).videos
    except UserError as error:
        raise UserError(_in_typed_words(str(error))) from None
    for output in outputs:
        for index in range(videos_asked):
            check_output(numbered(output, index, videos_asked))
    if not animate.bundle.manifest.model.trained:
        console.print("[yellow]note:[/] the weights of this bundle are untrained: expect moving noise, not a video")
    total_steps = settings.num_inference_steps * settings.autoregress_steps
    with prompt_interrupt(animate), step_progress(total_steps, console) as advance:
        videos = animate(photos, prompt, settings=settings, callback=advance)
    written: list[Path] = []
    for output in outputs:
        with videos.timings.measure("file"):
            written += videos.save(output)
    _, frames, height, width, _ = videos.frames.shape
    for file in written if len(written) <= 8 else [*written[:3], written[-1]]:
        typer.echo(f"{file}  {file.stat().st_size / 1024:.0f} KiB")
    typer.echo(
        f"{len(videos.frames)} video(s) of {frames} frames {width}x{height}, seed {videos.settings.seed}, "
        f"{videos.timings.total:.1f} s: {videos.timings.summary()}"
    )


def _in_typed_words(sentence: str) -> str:
    """A refusal of the library with the names of settings as the command line spells them."""
    return re.sub(r"\w+", lambda word: _OPTIONS.get(word[0], word[0]), sentence)
