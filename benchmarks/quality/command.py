"""``consisti2v evaluate``: measures of videos, from files or generated for it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from ...runtime.media.listing import MAX_ROWS


def evaluate(
    videos: Annotated[
        Path | None, typer.Argument(help="Folder of videos, or a CSV or JSONL listing of videos and captions.")
    ] = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for quality.json, the contact sheet ...")
    ] = Path("quality"),
    bundle: Annotated[
        Path | None, typer.Option("--bundle", "-b", help="Generate the videos with this bundle instead.")
    ] = None,
    inputs: Annotated[
        Path | None, typer.Option("--inputs", help="With --bundle: CSV or JSONL listing of images and prompts.")
    ] = None,
    setting: Annotated[
        list[str] | None, typer.Option("--set", help="With --bundle: a generation setting, as frame_stride=5.")
    ] = None,
    captions: Annotated[Path | None, typer.Option(help="Listing of captions for a folder of videos.")] = None,
    reference: Annotated[
        Path | None, typer.Option("--reference", "-r", help="Real videos: a folder, or a WebVid-style listing.")
    ] = None,
    against: Annotated[
        Path | None,
        typer.Option(help="Originals of the same names (the frames folder of another run), for PSNR, SSIM, latents."),
    ] = None,
    measure: Annotated[
        list[str] | None, typer.Option("--measure", "-m", help="Only this measure; may be repeated.")
    ] = None,
    frames: Annotated[int | None, typer.Option(min=1, help="Read only the first frames of each video.")] = None,
    max_rows: Annotated[int, typer.Option(min=1, help="Most rows of a listing; a longer one is refused.")] = MAX_ROWS,
    clip: Annotated[str, typer.Option(help="CLIP: hub id or folder.")] = "openai/clip-vit-base-patch32",
    dino: Annotated[str, typer.Option(help="DINO: hub id or folder.")] = "facebook/dino-vitb16",
    raft: Annotated[Path | None, typer.Option(help="RAFT-large state dict; torchvision's C_T_V1 if absent.")] = None,
    fvd: Annotated[str, typer.Option(help="Features of the Frechet video distance: i3d or videomae.")] = "i3d",
    fvd_weights: Annotated[Path | None, typer.Option(help="cd-fvd's checkpoint.")] = None,
    lite0: Annotated[Path | None, typer.Option(help="EfficientNet-Lite0 state dict.")] = None,
    download: Annotated[bool, typer.Option("--download", help="Fetch missing weights from their hubs.")] = False,
    device: Annotated[str, typer.Option(help="torch device of the networks: cpu, cuda ...")] = "cpu",
) -> None:
    """Measure videos: quality, motion, fidelity. What cannot be had is said to be unavailable, never replaced."""
    import json

    from ...errors import UserError
    from ...runtime.commands.console import echo, make_console, plain
    from ...runtime.files.replace_files import replacing
    from ...runtime.media.read_video import Video
    from ...runtime.request.settings import parse_settings
    from .evaluation import contact_sheet, evaluate_set, record, results_table
    from .measures import choose_measures
    from .media_set import MediaSet, generate_videos, match_originals, read_videos
    from .network_sources import NetworkSources
    from .networks import Networks

    console = make_console()
    choose_measures(measure)
    if (videos is None) == (bundle is None):
        raise UserError("give either a folder or listing of videos, or --bundle with --inputs to generate them.")
    if bundle is not None and inputs is None:
        raise UserError("--bundle needs --inputs, a listing of images and prompts.")
    if bundle is None and (inputs is not None or setting):
        raise UserError("--inputs and --set are for generation: give --bundle too, or leave them out.")
    if bundle is not None and captions is not None:
        raise UserError("--captions is for videos from files: the prompts of --inputs are the captions here.")
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f'the folder "{output}" cannot be made ({error.strerror}): choose another one.') from None

    # What they are compared with is read first: a wrong path must not cost a generation.
    reference_videos = read_videos(reference, frames, max_rows) if reference else ()
    originals = read_videos(against, frames, max_rows) if against else ()
    sources = NetworkSources(clip, dino, raft, fvd, fvd_weights, lite0, download, device)
    sources.check()
    judged: Sequence[Video]
    if bundle is not None and inputs is not None:
        with console.status("generating") as status:

            def show(done: int, total: int) -> None:
                status.update(f"generating video {min(done + 1, total)} of {total}")

            options = parse_settings(setting or [])
            judged, made_by = generate_videos(bundle, inputs, output, options, max_rows, show)
    else:
        assert videos is not None
        files = read_videos(videos, frames, max_rows)
        judged = files.with_captions(captions, max_rows) if captions else files
        made_by = {"kind": "files", "source": videos.name}
    media = MediaSet(judged, reference_videos, match_originals(judged, originals) if against else {})
    with console.status("measuring") as status:
        results = evaluate_set(media, Networks(sources), measure, lambda chosen: status.update(chosen.title))

    console.print(results_table(results, len(media.videos)))
    evaluation = {"measures": measure or "all", "max_frames": frames, "networks": sources.record()}
    entries = record(media, results, made_by, evaluation)
    report, sheet = output / "quality.json", output / "contact_sheet.png"
    try:
        with replacing([report, sheet]) as (new_report, new_sheet):
            text = json.dumps(entries, indent=2, ensure_ascii=False, allow_nan=False)
            new_report.write_text(text + "\n", encoding="utf-8")
            contact_sheet(media.videos).save(new_sheet, "PNG")
    except OSError as error:
        raise UserError(f'"{report}" cannot be written ({error.strerror}): check space and permissions.') from None
    echo(f"{plain(report)}\n{plain(sheet)}")
