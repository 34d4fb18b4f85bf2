"""``consisti2v bench --quality``: what presets and their single options save and lose, against the published settings.

Its records are ``benchmarks/results/presets_demo.json`` and ``presets_demo_guided.json``; docs/presets.md has the
findings.
"""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from ..locations import ASSETS
from ..runtime.request.presets import PRESETS

EXACT, FINE, ANOTHER_SEED = "exact", "ddim, 200 steps", "another seed"
"""What all are compared with; close to the solution that all samplers approach; exact from other noise."""
# Each changes one thing of "exact", a solver its steps too. Not among them: lcm, which is for distilled checkpoints,
# and euler, which is ddim by algebra.
_SINGLE: dict[str, dict[str, Any]] = {
    FINE: {"num_inference_steps": 200},
    "ddim, 25 steps": {"num_inference_steps": 25},
    "dpmpp_2m, 25 steps": {"scheduler": "dpmpp_2m", "num_inference_steps": 25},
    "dpmpp_2m_karras, 25 steps": {"scheduler": "dpmpp_2m_karras", "num_inference_steps": 25},
    "unipc, 25 steps": {"scheduler": "unipc", "num_inference_steps": 25},
    "ddim, 12 steps": {"num_inference_steps": 12},
    "dpmpp_2m, 12 steps": {"scheduler": "dpmpp_2m", "num_inference_steps": 12},
    "guidance interval 0:0.8": {"guidance_interval": (0.0, 0.8)},
    "guidance interval 0.2:0.8": {"guidance_interval": (0.2, 0.8)},
}
KEEP_BELOW = 0.5
"""A preset's loss is "clearly smaller than the distance between seeds" below this share of it."""
MEASURES = ("temporal_flickering", "subject_consistency_lite0", "motion_smoothness_dis", "camera_motion_agreement_dis")


def variants(guided: bool) -> dict[str, dict[str, Any]]:
    """Options by name: presets, then single options; without guidance those that change it are left out."""
    single = {name: {**PRESETS[EXACT], **options} for name, options in _SINGLE.items()}
    kept = {name: o for name, o in single.items() if guided or o["guidance_interval"] == (0.0, 1.0)}
    return {EXACT: PRESETS[EXACT], **PRESETS, **kept}


def distance(videos: Any, exact: Any) -> dict[str, Any]:
    """Of two GeneratedVideos, relative L2 of latents and PSNR in dB; frame 0, the photo itself, does not count."""
    import numpy as np

    from .quality.evaluation import finite
    from .quality.formulas import latent_relative_l2, mean_squared_errors, psnr

    pairs = zip(videos.latents, exact.latents, strict=True)
    latents = np.mean([latent_relative_l2(a[:, 1:], b[:, 1:]).mean() for a, b in pairs])
    frames = zip(videos.frames, exact.frames, strict=True)
    decibels = psnr(float(np.mean([mean_squared_errors(a[1:], b[1:]).mean() for a, b in frames])))
    return {"latent_relative_l2": float(latents), "psnr": finite(decibels)}


def is_kept(loss: dict[str, Any], other_seed: dict[str, Any]) -> bool:
    """Whether a loss is clearly smaller than the distance between seeds, in latents and in pixels."""
    share = loss["latent_relative_l2"] / other_seed["latent_relative_l2"]
    return bool(share <= KEEP_BELOW and (loss["psnr"] == "infinite" or loss["psnr"] > other_seed["psnr"]))


def quality(
    bundle: Annotated[
        Path, typer.Argument(help="Folder made by 'consisti2v export'; the demo bundle if absent.")
    ] = ASSETS / "demo_bundle",
    image: Annotated[
        list[Path] | None, typer.Option("--image", "-i", help="Photo, for all prompts or one each; the example photo.")
    ] = None,
    prompt: Annotated[list[str] | None, typer.Option("--prompt", "-p", help="One a video; may be repeated.")] = None,
    seed: Annotated[int, typer.Option(help="Of the first video; the next ones follow.")] = 0,
    guidance_scale: Annotated[
        float | None, typer.Option(help="Text guidance; as the bundle recommends, else 7.5.")
    ] = None,
    presets_only: Annotated[bool, typer.Option("--presets-only", help="Leave the single options out.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or openvino.")] = "cpu",
    precision: Annotated[str | None, typer.Option(help="As the bundle has it if absent.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, max=1024, help="Processor threads.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="JSON record.")] = None,
) -> None:
    """Compare presets with the published settings at the same noise: seconds, distance, quality, and a verdict."""
    from rich.table import Table

    from ..runtime.commands.console import echo, make_console, plain
    from ..runtime.commands.progress import step_progress
    from ..runtime.loop.batches import row_forwards
    from ..runtime.media.read_video import Video
    from ..runtime.pipeline import ImageToVideo
    from ..runtime.request.settings import GenerationSettings
    from .bench.bundle_facts import bundle_facts, now, open_bundle
    from .bench.machine import describe_machine, versions
    from .bench.record import check_writable, write_text
    from .quality.evaluation import evaluate_set
    from .quality.media_set import MediaSet
    from .quality.networks import Networks

    if output is not None:
        check_writable(output)
    opened = open_bundle(bundle)
    recommended = GenerationSettings().resolved(opened.manifest)
    scale = recommended.guidance_scale_txt if guidance_scale is None else guidance_scale
    photos, prompts = image or [ASSETS / "example.jpg"], prompt or ["zoom in", "pan left"]
    chosen = {name: options for name, options in variants(scale > 1).items() if name in PRESETS or not presets_only}
    photo = photos[0] if len(photos) == 1 else photos
    animate = ImageToVideo(opened, threads=threads, device=device, precision=precision)

    def settings(options: dict[str, Any], first: int = seed) -> Any:
        seeds = tuple(range(first, first + len(prompts)))
        return animate.check(photo, prompts, **options, seed=seeds, guidance_scale_txt=scale).settings

    runs = {name: settings(options) for name, options in chosen.items()}
    runs[ANOTHER_SEED] = settings(chosen[EXACT], seed + 1000)
    # Loads every stage and touches every buffer, which none of the timed runs should pay.
    animate(photo, prompts, settings=replace(runs[EXACT], num_inference_steps=1))
    with step_progress(sum(run.num_inference_steps for run in runs.values()), make_console(stderr=True)) as bar:
        made = {name: animate(photo, prompts, settings=run, callback=bar) for name, run in runs.items()}
    exact, fine = made[EXACT], made.get(FINE)
    other_seed = distance(made.pop(ANOTHER_SEED), exact)
    networks, outcomes = Networks(), []
    unavailable: dict[str, str | None] = {}
    verdicts: list[str] = []
    table = Table("settings", "seconds", "rows", "rel. L2", "of a seed's", "PSNR", *MEASURES)
    for name, videos in made.items():
        loss, run = distance(videos, exact), videos.settings
        judged = [
            Video(f"{number}-{text}", frames, run.fps, text)
            for number, (text, frames) in enumerate(zip(prompts, videos.frames, strict=True))
        ]
        results = evaluate_set(MediaSet(judged), networks, MEASURES)
        unavailable |= {result.measure.name: result.reason for result in results if result.scores is None}
        values = {result.measure.name: result.scores.value for result in results if result.scores is not None}
        outcome = {
            "name": name,
            "options": chosen[name],
            "is_preset": name in PRESETS,
            "seconds": videos.timings.total - videos.timings.get("load", 0.0),
            "unet_seconds": videos.timings["unet"],
            "row_forwards": row_forwards(runs[name], len(prompts), opened.manifest),
            "distance": loss,
            "fine_relative_l2": None if fine is None else distance(videos, fine)["latent_relative_l2"],
            "measures": values,
            "kept": is_kept(loss, other_seed),
        }
        outcomes.append(outcome)
        share = loss["latent_relative_l2"] / other_seed["latent_relative_l2"]
        if name in PRESETS and share > 0:
            verdicts.append(
                f"preset {name}: {'keep' if outcome['kept'] else 'drop'}; its distance from exact is {share:.0%} of "
                f"another seed's (at most {KEEP_BELOW:.0%} is clearly smaller)"
            )
        cells = [f"{outcome['seconds']:.2f}", str(outcome["row_forwards"]), f"{loss['latent_relative_l2']:.4f}"]
        cells += [f"{share:.0%}", str(loss["psnr"])[:5], *(f"{values.get(each, math.nan):.4f}" for each in MEASURES)]
        table.add_row(name, *cells)
    distances = f"{other_seed['latent_relative_l2']:.4f}", "100%", f"{other_seed['psnr']:.1f}"
    table.add_row(ANOTHER_SEED, "", "", *distances)
    make_console().print(table, *verdicts, sep="\n")
    if output is not None:
        task = {"images": [each.name for each in photos], "prompts": prompts, "seed": seed}
        record = {
            "kind": "preset_quality",
            "created": now(),
            "machine": describe_machine(),
            "versions": versions(),
            "bundle": bundle_facts(opened),
            "task": {**task, "guidance_scale": scale, "threads": threads},
            "outcomes": outcomes,
            "another_seed": other_seed,
            "unavailable": unavailable,
            "keep_below": KEEP_BELOW,
            "verdicts": verdicts,
        }
        write_text(output, json.dumps(record, indent=2) + "\n")
        echo(plain(output))
