"""What the demo model does on photos and film shots it never saw: prompted motion, fidelity, consistency.

The videos are made by the exported bundle through the runtime, as a user makes them.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ....runtime.media.read_video import Frames
from ....runtime.pipeline import ImageToVideo
from .captions import move_phrase
from .counterparts import consistency_figures
from .flow import Motion, agrees, mean_motion, signed_amount
from .moves import MOVES
from .recommendation import DEMO_GUIDANCE
from .sampling import SampleSettings
from .sheet import to_uint8

STILL_SPEED = 0.0015
"""Mean flow, in frame widths per frame, below which a clip counts as still; a pan at stride 3 is 0.012."""
_LONG_STEPS = 50
"""The runtime's default."""
_GROUP = 2
"""Videos made in one call; the figures were made with two rows at once."""


@dataclass(frozen=True)
class Trial:
    """One generated video and what it was asked for."""

    photo: str
    move: str
    prompt: str
    motion: Motion
    first_step_psnr: float
    """Frame 1 against frame 0, the photo's round trip; dB."""
    photo_psnr: float
    """Frame 1 against the photo itself, dB."""


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Peak signal-to-noise ratio of uint8 pictures, dB."""
    error = float(np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2))
    return 99.0 if error == 0 else 10 * float(np.log10(255**2 / error))


def animate_pictures(
    animate: ImageToVideo,
    pictures: Sequence[Tensor],
    prompts: Sequence[str],
    seeds: Sequence[int],
    settings: SampleSettings,
) -> list[Frames]:
    """Videos uint8 [f, h, w, 3] of pictures float [3, h, w] in [-1, 1]; each is the one that its seed gives alone."""
    videos: list[Frames] = []
    for start in range(0, len(pictures), _GROUP):
        group = slice(start, start + _GROUP)
        made = animate(
            [to_uint8(picture[None])[0] for picture in pictures[group]],
            list(prompts[group]),
            num_inference_steps=settings.steps,
            guidance_scale_txt=settings.guidance_scale_txt,
            frame_stride=settings.frame_stride,
            use_frameinit=settings.use_frameinit,
            seed=tuple(seeds[group]),
        )
        videos += list(made.frames)
    return videos


def run_trials(
    animate: ImageToVideo,
    photos: Sequence[tuple[str, Tensor]],
    asked: Sequence[tuple[int, str, str]],
    settings: SampleSettings,
) -> tuple[list[Trial], list[Frames]]:
    """Generate a video for each (photo index, move, prompt); equal photo and move have equal noise everywhere."""
    pictures = [photos[photo][1] for photo, _, _ in asked]
    seeds = [settings.seed + len(MOVES) * photo + MOVES.index(move) for photo, move, _ in asked]
    videos = animate_pictures(animate, pictures, [prompt for _, _, prompt in asked], seeds, settings)
    trials = []
    for (photo, move, prompt), picture, frames in zip(asked, pictures, videos, strict=True):
        given = to_uint8(picture[None])[0]
        fidelity = (psnr(frames[1], frames[0]), psnr(frames[1], given))
        trials.append(Trial(photos[photo][0], move, prompt, mean_motion(frames), *fidelity))
    return trials, videos


def evaluate_model(
    animate: ImageToVideo,
    photos: Sequence[tuple[str, Tensor]],
    shots: Sequence[Tensor],
    shot_caption: str,
    *,
    steps: int = 10,
    moves_per_photo: int = 4,
    long_videos: int = 18,
    seed: int = 0,
    progress: Callable[[str], None] = lambda line: None,
    on_videos: Callable[[str, list[Frames]], None] = lambda condition, videos: None,
) -> dict[str, Any]:
    """Figures for the model card; every condition uses the same photos, moves and noise.

    Args:
        animate: the exported model.
        photos: held-out (subject, picture).
        shots: first to last frame of held-out film shots, float [f, 3, h, w] in [-1, 1].
        shot_caption: what the shots are animated with.
        steps: DDIM steps.
        moves_per_photo: of the nine; they rotate over the photos, so that every move is asked for equally often.
        long_videos: of the prompted trials, also made with 50 steps.

    Returns:
        JSON-ready: agreement with the prompt per condition, mean amount of motion, PSNR, consistency.
    """
    pairs = [
        (i, MOVES[(i * moves_per_photo + k) % len(MOVES)]) for i in range(len(photos)) for k in range(moves_per_photo)
    ]
    prompted = [(i, move, move_phrase(move)) for i, move in pairs]
    # The other conditions move: still says nothing about stride or guidance. Every fourth trial keeps the time down.
    moving = [trial for trial in prompted if trial[1] != "still"][::4]
    base = SampleSettings(steps=steps, seed=seed, guidance_scale_txt=DEMO_GUIDANCE)
    # Every second trial, so that all moves are among them.
    long = prompted[::2][:long_videos]
    conditions = {
        "prompted": (prompted, base),
        f"prompted, {_LONG_STEPS} steps": (long, replace(base, steps=_LONG_STEPS)),
        "empty prompt": ([(i, move, "") for i, move, _ in moving], base),
        "FrameInit off": (moving, replace(base, use_frameinit=False)),
        "guidance 7.5": (moving, replace(base, guidance_scale_txt=7.5)),
        "stride 1": (moving, replace(base, frame_stride=1)),
        "stride 5": (moving, replace(base, frame_stride=5)),
    }
    figures: dict[str, Any] = {}
    consistency: dict[str, Any] = {}
    for name, (asked, settings) in conditions.items():
        trials, videos = run_trials(animate, photos, asked, settings)
        on_videos(name, videos)
        figures[name] = summary(trials)
        if name == "prompted":
            figures["wrong prompt"] = {"agreement": wrong_prompt_agreement(trials), "videos": len(trials)}
            chosen = set(moving)
            figures["prompted, the moves of the other conditions"] = summary(
                [trial for trial, key in zip(trials, asked, strict=True) if key in chosen]
            )
            consistency["photos"] = consistency_figures(videos[::2], seed)
        progress(f"{name}: agreement {figures[name]['agreement']:.2f}, amount {figures[name]['amount']:+.4f}")
    return {
        "photos": [subject for subject, _ in photos],
        "settings": asdict(base),
        "still_speed": STILL_SPEED,
        "conditions": figures,
        "film shots": shot_figures(animate, shots, shot_caption, base, consistency, on_videos),
        "consistency": consistency,
        "versions": {tool: version(tool) for tool in ("onnxruntime", "torch", "opencv-python-headless")},
        "machine": platform.machine(),
    }


def shot_figures(
    animate: ImageToVideo,
    shots: Sequence[Tensor],
    caption: str,
    settings: SampleSettings,
    consistency: dict[str, Any],
    on_videos: Callable[[str, list[Frames]], None],
) -> dict[str, Any]:
    """Videos from the first frames of film shots: fidelity here, consistency into `consistency`."""
    seeds = [settings.seed + number for number in range(len(shots))]
    videos = animate_pictures(animate, [shot[0] for shot in shots], [caption] * len(shots), seeds, settings)
    on_videos("film shots", videos)
    real = [to_uint8(shot) for shot in shots]
    consistency["film shots"] = consistency_figures(videos, settings.seed)
    consistency["film shots, real"] = consistency_figures(real, settings.seed)
    return {
        "videos": len(videos),
        "caption": caption,
        "speed": _mean(mean_motion(video).speed for video in videos),
        "real_speed": _mean(mean_motion(video).speed for video in real),
        "first_step_psnr_db": _mean(psnr(video[1], video[0]) for video in videos),
        "round_trip_psnr_db": _mean(psnr(video[0], shot[0]) for video, shot in zip(videos, real, strict=True)),
    }


def summary(trials: list[Trial]) -> dict[str, Any]:
    """Means over trials, and agreement per move."""
    by_move: dict[str, list[bool]] = {}
    for trial in trials:
        by_move.setdefault(trial.move, []).append(agrees(trial.motion, trial.move, STILL_SPEED))
    moving = [trial for trial in trials if trial.move != "still"]
    return {
        "videos": len(trials),
        "agreement": _mean(ok for results in by_move.values() for ok in results),
        "agreement_by_move": {move: f"{sum(results)}/{len(results)}" for move, results in sorted(by_move.items())},
        "sign_agreement": _mean(signed_amount(trial.motion, trial.move) > 0 for trial in moving),
        "amount": _mean(signed_amount(trial.motion, trial.move) for trial in moving),
        "speed": _mean(trial.motion.speed for trial in trials),
        "first_step_psnr_db": _mean(trial.first_step_psnr for trial in trials),
        "photo_psnr_db": _mean(trial.photo_psnr for trial in trials),
    }


def wrong_prompt_agreement(trials: list[Trial]) -> float:
    """How often the videos pass for a move that was NOT asked for, over all other moves: the rate of chance."""
    return _mean(agrees(trial.motion, move, STILL_SPEED) for trial in trials for move in MOVES if move != trial.move)


def true_motion_figures(clips: Iterable[tuple[str, Tensor]]) -> dict[str, Any]:
    """The same measure on real camera moves (move, frames [f, 3, h, w]): what a perfect model would score."""
    trials = []
    for move, clip in clips:
        frames = to_uint8(clip)
        trials.append(Trial("", move, "", mean_motion(frames), *2 * (psnr(frames[1], frames[0]),)))
    return summary(trials)


def round_trip_figures(animate: ImageToVideo, photos: Sequence[tuple[str, Tensor]]) -> dict[str, Any]:
    """PSNR of the photos against their round trip through the autoencoder: frame 0 of any video."""
    pictures = [picture for _, picture in photos]
    settings = SampleSettings(steps=1, guidance_scale_txt=1.0)
    videos = animate_pictures(animate, pictures, [""] * len(pictures), [0] * len(pictures), settings)
    values = {
        subject: round(psnr(video[0], to_uint8(picture[None])[0]), 2)
        for (subject, picture), video in zip(photos, videos, strict=True)
    }
    return {"mean_psnr_db": _mean(values.values()), "psnr_db": values}


def write_figures(path: Path, figures: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(figures, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _mean(values: Iterable[float]) -> float:
    listed = [float(value) for value in values]
    return round(float(np.mean(listed)), 5) if listed else float("nan")
