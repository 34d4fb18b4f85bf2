"""``consisti2v generate``: a photo and a prompt in, a video file out; ``demo``, the same with the packaged model."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

import typer
from PIL import Image

from ...errors import UserError
from ...locations import ASSETS
from ..bundle.home import DEMO_FOLDER
from ..gpu.options import GpuOptions, check_gpu_options
from ..loop.batches import guidance_saving
from ..media.fit import cropped_shares
from ..media.video_file import VideoStream, check_output, numbered, scaled_size, streaming
from ..pipeline import ImageToVideo
from ..request.option_table import OPTIONS, Option, check_threads, command_name
from ..request.presets import PUBLISHED
from ..request.settings import GenerationSettings
from ..timings import check_time_limit
from .console import echo, make_console, note, plain
from .inputs import read_photos, with_config
from .progress import prompt_interrupt, step_progress

# Where a refusal of the library names an option, it is given as the command line spells it. Only names with an
# underscore: the others are words of a sentence too.
_OPTIONS = {
    name: command_name(name) for name in (*OPTIONS, *(field.name for field in fields(GpuOptions))) if "_" in name
} | {"cuda_graph": "--no-cuda-graph", "time_limit": "--time-limit"}


def _in(panel: str, *names: str, **options: Any) -> Any:
    return typer.Option(*names, rich_help_panel=panel, **options)


_Preset = Annotated[str | None, _in("Basic", help=OPTIONS["preset"].help)]
_Scale = Annotated[float, _in("Output", help="Width and height of the file, times this (0.1 to 16; Lanczos).")]
_Device = Annotated[str, _in("Speed and memory", help="auto (a GPU where one can be used), cpu, cuda or openvino.")]
_Precision = Annotated[str | None, _in("Speed and memory", help="fp32, fp16, bf16, int8 or fp8; the device's best.")]
_TimeLimit = Annotated[
    float | None, _in("Speed and memory", metavar="SECONDS", help="Stop a generation that takes longer.")
]


_WRITTEN = {"guidance_interval": "START:END", "timesteps": "T,T,...", "chain": "last|overlap:N"}


def _parameter(option: Option) -> inspect.Parameter:
    """A setting as an option of the command line, with the setting's default."""
    text, kind, more = option.help, option.kind, {}
    default = getattr(GenerationSettings, option.setting)
    if option.setting == "negative_prompt":
        default = None
    if option.setting in PUBLISHED:
        published = PUBLISHED[option.setting]
        shown = ":".join(f"{part:g}" for part in published) if isinstance(published, tuple) else published
        text += f"; the bundle's recommendation ('consisti2v inspect' shows it), else {shown}."
    if option.kind is None:
        kind, more = str, {"metavar": _WRITTEN[option.setting]}
    annotation = Annotated[kind if default is not None else kind | None, _in(option.panel, help=text, **more)]  # type: ignore[valid-type]
    name = command_name(option.setting).removeprefix("--").replace("-", "_")
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def generate(
    context: typer.Context,
    bundle: Annotated[Path, _in("Basic", "--bundle", "-b", help="Folder made by 'consisti2v export', or a name.")],
    image: Annotated[
        list[Path], _in("Basic", "--image", "-i", help="Photo, or - for standard input; repeat for one per prompt.")
    ],
    prompt: Annotated[list[str] | None, _in("Basic", "--prompt", "-p", help="What happens; may be repeated.")] = None,
    output: Annotated[Path, _in("Output", "--output", "-o", help="File ending in .mp4, .gif, .webp or .png.")] = Path(
        "out.mp4"
    ),
    scale: _Scale = 1,
    config: Annotated[
        Path | None,
        _in("Basic", help="JSON file of settings; other options win over it. Example: assets/example_settings.json."),
    ] = None,
    threads: Annotated[int | None, _in("Speed and memory", help="Processor threads; one per core if absent.")] = None,
    device: _Device = "auto",
    precision: _Precision = None,
    time_limit: _TimeLimit = None,
    low_vram: Annotated[
        bool | None, _in("GPU", help="GPU: one stage's weights at a time; where the rest does not fit.")
    ] = None,
    device_noise: Annotated[bool, _in("GPU", help="GPU: draw the noise there; a seed gives another video.")] = False,
    cuda_graph: Annotated[bool, _in("GPU", help="GPU: replay each step as one graph.")] = True,
    verify: Annotated[bool, _in("Other options", help="Hash what is used of the bundle first.")] = True,
    expect_digest: Annotated[
        str | None,
        _in("Other options", metavar="SHA256", help="Refuse a bundle of another digest; 'inspect' prints it."),
    ] = None,
    **settings: Any,
) -> None:
    """Animate a photo. Defaults are the bundle's recommendations, else the published model's."""
    options: dict[str, Any] = {}
    for setting, parameter in _PARAMETERS.items():
        value = settings[parameter.name]
        # A single one of those that may be repeated stands for all.
        options[setting] = value[0] if isinstance(value, list) and len(value) == 1 else value
    options["guidance_interval"] = _interval(options["guidance_interval"])
    options["timesteps"] = _timesteps(options["timesteps"])
    if config is not None:
        options = with_config(config, {name: value for name, value in options.items() if _named(context, name)})
    gpu = GpuOptions(low_vram=low_vram, device_noise=device_noise, cuda_graph=cuda_graph)
    engine = {"threads": threads, "device": device, "precision": precision, "gpu": gpu, "expect_digest": expect_digest}
    engine["verify"] = verify
    animate_to_file(bundle, image, prompt or [""], [output], options, engine, scale=scale, time_limit=time_limit)


_PARAMETERS = {setting: _parameter(option) for setting, option in OPTIONS.items()}
_written = inspect.signature(generate, eval_str=True)
generate.__signature__ = _written.replace(  # type: ignore[attr-defined]
    parameters=[*list(_written.parameters.values())[:-1], *_PARAMETERS.values()]
)


def demo(
    image: Annotated[
        Path,
        _in("Basic", "--image", "-i", help="Photo, or - for standard input.", show_default="the example photo"),
    ] = ASSETS / "example.jpg",
    prompt: Annotated[str, _in("Basic", "--prompt", "-p", help="What happens.")] = "zoom in",
    output: Annotated[Path, _in("Output", "--output", "-o", help="Video; a GIF is written beside it.")] = Path(
        "demo.mp4"
    ),
    preset: _Preset = None,
    steps: Annotated[int | None, _in("Basic", help="Denoising steps; the preset's, else 50.")] = None,
    fit: Annotated[str, _in("Video", help=OPTIONS["fit"].help)] = "crop",
    scale: _Scale = 1,
    seed: Annotated[int, _in("Basic", help="Another seed gives another video.")] = 0,
    device: _Device = "auto",
    precision: _Precision = None,
    time_limit: _TimeLimit = None,
) -> None:
    """Animate a photo with the model inside the package; no download, no torch, no GPU needed."""
    options: dict[str, Any] = {"preset": preset, "seed": seed, "num_inference_steps": steps, "fit": fit}
    outputs = list(dict.fromkeys([output, output.with_suffix(".gif")]))
    engine = {"device": device, "precision": precision}
    animate_to_file(DEMO_FOLDER, [image], [prompt], outputs, options, engine, scale=scale, time_limit=time_limit)


def animate_to_file(
    bundle: Path,
    images: list[Path],
    prompts: list[str],
    outputs: list[Path],
    options: dict[str, Any],
    engine: dict[str, Any],
    *,
    scale: float,
    time_limit: float | None,
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
    animate = ImageToVideo.from_bundle(bundle, **engine)
    manifest = animate.bundle.manifest
    prompt = prompts if len(prompts) > 1 else prompts[0]
    with _typed_words():
        request = animate.check(photos, prompt, settings=asked)
        settings, videos_asked = request.settings, request.videos
        scaled_size(settings.height, settings.width, scale)
    for output in outputs:
        for index in range(videos_asked):
            check_output(numbered(output, index, videos_asked))
    untrained = "the weights of this bundle are untrained: expect moving noise, not a video"
    notices = [
        *([] if manifest.model.trained else [untrained]),
        *animate.new_notices(request),
        *_cropped(photos, settings),
    ]
    if guidance_saving(settings, videos_asked, manifest) == 0:
        notices.append(
            "the guidance interval saves no time here: this bundle's U-Net always runs "
            f"{manifest.model.rows} rows at once; export with --guidance any"
        )
    for notice in notices:
        note(console, notice)
    frames, clips = settings.total_frames, settings.autoregress_steps
    with streaming(outputs, videos_asked, frames, settings.fps, scale) as (stream, written):
        with prompt_interrupt(animate), step_progress(settings.num_inference_steps * clips, console) as advance:
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


def _cropped(photos: Sequence[Image.Image], settings: GenerationSettings) -> Iterator[str]:
    """A notice per size of photo of which 1 % or more is cut off at the sides."""
    if settings.fit != "crop" or settings.camera_motion is not None:
        return
    assert settings.height is not None and settings.width is not None
    for width, height in dict.fromkeys(photo.size for photo in photos):
        shares = zip(("height", "width"), cropped_shares(height, width, settings.height, settings.width), strict=True)
        cut = " and ".join(f"{share:.0%} of its {side}" for side, share in shares if share >= 0.01)
        if cut:
            yield (
                f"the {width}x{height} photo is cropped to {settings.width}x{settings.height}: {cut} is cut off; "
                "--fit pad or --fit stretch keeps it"
            )


def _named(context: typer.Context, setting: str) -> bool:
    """The user typed the option of this setting."""
    name = _PARAMETERS[setting].name if setting in _PARAMETERS else setting
    source = context.get_parameter_source(name)
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


def _timesteps(text: str | None) -> tuple[int, ...] | None:
    """Whole numbers with commas between."""
    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise UserError(f"--timesteps {text!r} is no list: give whole numbers, as 999,600,200.") from None


@contextmanager
def _typed_words() -> Iterator[None]:
    """A refusal of the library has the names of settings as the command line spells them."""
    try:
        yield
    except UserError as error:
        raise UserError(re.sub(r"\w+", lambda word: _OPTIONS.get(word[0], word[0]), str(error))) from None
