"""What the demo model does on photos it never saw: prompted motion, fidelity, FrameInit, guidance, stride."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from ..unet import VideoUNet
from .captions import move_phrase
from .flow import Motion, agrees, mean_motion, signed_amount
from .latent_clips import encode_frames
from .moves import MOVES
from .sampling import SampleSettings, sample_videos
from .sheet import to_uint8
from .text_encoder import CaptionEncoder

STILL_SPEED = 0.0015
"""Mean flow, in frame widths per frame, below which a clip counts as still; a pan at stride 3 is 0.012."""
DEMO_GUIDANCE = 1.0
"""Text guidance of ``consisti2v demo``: without a text the model shows a still picture, and guidance away from that
exaggerates edges; see the model card."""
_GROUP = 4


@dataclass(frozen=True)
class Trial:
    """One generated video and what it was asked for."""

    photo: str
    move: str
    prompt: str
    motion: Motion
    first_step_psnr: float
    """Frame 1 against frame 0, dB."""


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Peak signal-to-noise ratio of uint8 pictures, dB."""
    error = float(np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2))
    return 99.0 if error == 0 else 10 * float(np.log10(255**2 / error))


def run_trials(
    model: tuple[VideoUNet, AutoencoderKL, CaptionEncoder],
    photos: list[tuple[str, Tensor]],
    asked: list[tuple[int, str, str]],
    settings: SampleSettings,
    on_videos: Callable[[list[Tensor]], None] = lambda videos: None,
) -> list[Trial]:
    """Generate a video for each (photo index, move, prompt); trial i has the same noise in every condition."""
    trials = []
    for start in range(0, len(asked), _GROUP):
        group = asked[start : start + _GROUP]
        seeded = replace(settings, seed=settings.seed + start)
        pictures = torch.stack([photos[i][1] for i, _, _ in group])
        videos = sample_videos(*model, pictures, [prompt for _, _, prompt in group], seeded)
        on_videos(list(videos))
        for (photo, move, prompt), video in zip(group, videos, strict=True):
            frames = to_uint8(video)
            name = photos[photo][0]
            trials.append(Trial(name, move, prompt, mean_motion(frames), psnr(frames[1], frames[0])))
    return trials


def evaluate_model(
    model: tuple[VideoUNet, AutoencoderKL, CaptionEncoder],
    photos: list[tuple[str, Tensor]],
    *,
    steps: int = 25,
    moves_per_photo: int = 4,
    seed: int = 0,
    progress: Callable[[str], None] = lambda line: None,
    on_videos: Callable[[list[Tensor]], None] = lambda videos: None,
) -> dict[str, Any]:
    """Figures for the model card; every condition uses the same photos, moves and noise.

    Args:
        model: U-Net, autoencoder (scaling factor set) and text encoder, in evaluation mode.
        photos: held-out (subject, picture).
        steps: DDIM steps.
        moves_per_photo: of the nine; they rotate over the photos, so that every move is asked for equally often.

    Returns:
        JSON-ready: agreement with the prompt per condition, mean amount of motion, PSNR.
    """
    pairs = [
        (i, MOVES[(i * moves_per_photo + k) % len(MOVES)]) for i in range(len(photos)) for k in range(moves_per_photo)
    ]
    prompted = [(i, move, move_phrase(move)) for i, move in pairs]
    # The other conditions move: still says nothing about stride or guidance. Two moves a photo keep the time down.
    moving = [trial for trial in prompted if trial[1] != "still"][::2]
    base = SampleSettings(steps=steps, seed=seed, guidance_scale_txt=DEMO_GUIDANCE)
    conditions = {
        "prompted": (prompted, base),
        "empty prompt": ([(i, move, "") for i, move, _ in moving], base),
        "FrameInit off": (moving, replace(base, use_frameinit=False)),
        "guidance 7.5": (moving, replace(base, guidance_scale_txt=7.5)),
        "stride 1": (moving, replace(base, frame_stride=1)),
        "stride 5": (moving, replace(base, frame_stride=5)),
    }
    figures: dict[str, Any] = {}
    for name, (asked, settings) in conditions.items():
        trials = run_trials(model, photos, asked, settings, on_videos if name == "prompted" else lambda videos: None)
        figures[name] = summary(trials)
        if name == "prompted":
            figures["wrong prompt"] = {"agreement": wrong_prompt_agreement(trials), "videos": len(trials)}
            chosen = set(moving)
            figures["prompted, the moves of the other conditions"] = summary(
                [trial for trial, key in zip(trials, asked, strict=True) if key in chosen]
            )
        progress(f"{name}: agreement {figures[name]['agreement']:.2f}, amount {figures[name]['amount']:+.4f}")
    return {
        "photos": [subject for subject, _ in photos],
        "settings": asdict(base),
        "still_speed": STILL_SPEED,
        "conditions": figures,
        "versions": {tool: version(tool) for tool in ("torch", "diffusers", "transformers", "opencv-python-headless")},
        "machine": platform.machine(),
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
    }


def wrong_prompt_agreement(trials: list[Trial]) -> float:
    """How often the videos pass for a move that was NOT asked for, over all other moves: the rate of chance."""
    return _mean(agrees(trial.motion, move, STILL_SPEED) for trial in trials for move in MOVES if move != trial.move)


def true_motion_figures(clips: Iterable[tuple[str, Tensor]]) -> dict[str, Any]:
    """The same measure on real camera moves (move, frames [f, 3, h, w]): what a perfect model would score."""
    trials = []
    for move, clip in clips:
        frames = to_uint8(clip)
        trials.append(Trial("", move, "", mean_motion(frames), psnr(frames[1], frames[0])))
    return summary(trials)


@torch.no_grad()
def round_trip_figures(vae: AutoencoderKL, photos: list[tuple[str, Tensor]], device: str = "cpu") -> dict[str, Any]:
    """PSNR of the photos against their round trip through the autoencoder."""
    values = {}
    for subject, picture in photos:
        latents = encode_frames(vae, picture[None].to(device))
        values[subject] = round(psnr(to_uint8(vae.decode(latents).sample)[0], to_uint8(picture[None])[0]), 2)
    return {"mean_psnr_db": _mean(values.values()), "psnr_db": values}


def write_figures(path: Path, figures: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(figures, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _mean(values: Iterable[float]) -> float:
    listed = [float(value) for value in values]
    return round(float(np.mean(listed)), 5) if listed else float("nan")
